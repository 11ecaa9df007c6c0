"""`s2s train`: trains a recipe, or goes on with its run."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from s2s_cli.commands.options import (
    DeviceOption,
    QuietOption,
    RecipeOption,
    SetOption,
    ThreadsOption,
    VerboseOption,
)
from s2s_cli.commands.terminal import Terminal
from s2s_cli.commands.training_screen import TrainingScreen


def command(
    recipe: RecipeOption,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="DIR", help="Folder of the run; default runs/NAME."),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a recipe; prepare its text first where that is not done.

    The same command goes on from the last checkpoint. Prints the folder of the run.
    """
    from s2s_cli.core.recipe import load

    terminal = Terminal(quiet, verbose)
    checked = load(recipe, set_ or ())

    # After the recipe, whose mistakes need not wait for these.
    from s2s_cli.core import prepared
    from s2s_cli.core.device import find_device, set_threads
    from s2s_cli.core.events import Finished, Log
    from s2s_cli.core.trainer import Trainer, check_run, check_start, other_tokenizers

    place = find_device(device)
    set_threads(threads)
    folder = Path(run) if run else Path("runs") / checked.name
    check_run(folder, checked)  # preparing may take hours
    check_start(checked, place, folder)
    tokenizers = other_tokenizers(checked, folder)
    corpus = prepared.prepare(checked, notify=terminal.stage, tokenizers=tokenizers)
    trainer = Trainer(checked, corpus, folder, place)
    if ended := trainer.reason_to_end():
        key = {"updates": "max_updates"}.get(ended, ended)
        terminal.note(
            f"{folder} is finished ({ended}, update {trainer.place.update:,}); "
            f"--run NEW trains it again, a larger training.{key} goes on with it"
        )
        print(folder)
        return
    log = Log(folder / "log.jsonl", trainer.place.update)
    with (
        _signals(terminal) as received,
        TrainingScreen(terminal, folder) as screen,
        contextlib.closing(log),
    ):
        for event in trainer.train(lambda: bool(received)):
            screen.show(event)
            log.write(event)
            latest = event
    print(folder)
    if isinstance(latest, Finished) and latest.reason == "stopped":
        raise typer.Exit(128 + received[0])


STOPPING = b"stopping after this update; once more ends it at once, without saving\n"


@contextlib.contextmanager
def _signals(terminal: Terminal) -> Iterator[list[int]]:
    """The signals that ask to stop, as they come; a second one ends the program at once."""
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        if not terminal.quiet:
            # Past the streams of Python, which may be in the middle of a line.
            os.write(sys.stderr.fileno(), STOPPING)

    # A signal that is ignored from outside (nohup, a background job) stays ignored.
    before = {
        number: signal.signal(number, receive)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
