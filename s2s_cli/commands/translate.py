"""`s2s translate`: lines in, as many lines out, in order, as they come."""

import sys
from typing import Annotated, Literal

import typer

from s2s_cli.commands.options import (
    DeviceOption,
    InputOption,
    InvalidOption,
    OutputOption,
    QuietOption,
    SetOption,
    ThreadsOption,
)
from s2s_cli.commands.output import writing
from s2s_cli.commands.terminal import Terminal
from s2s_cli.commands.translation_formats import FORMATS

# Lines translated together: few at first, so that a reader need not wait, then more, because
# sorting by length pays.
FIRST_GROUP, LARGEST_GROUP = 64, 4096


def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A model file or a run's folder; repeat for an ensemble. "
            "Default: $S2S_MODEL, else the newest run below runs/.",
        ),
    ] = None,
    input_: InputOption = "-",
    output: OutputOption = "-",
    beam_size: Annotated[
        int | None, typer.Option("--beam-size", "-b", min=1, help="Width of the beam; 1: greedy.")
    ] = None,
    n_best: Annotated[
        int, typer.Option("--n-best", min=1, help="Translations a line; needs another format.")
    ] = 1,
    length_penalty: Annotated[
        float | None, typer.Option("--length-penalty", min=0, help="GNMT's alpha; 0: off.")
    ] = None,
    max_length_ratio: Annotated[
        float | None,
        typer.Option("--max-length-ratio", help="Pieces out at most: ratio * pieces in + 10."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Sentences searched together.")
    ] = None,
    format_: Annotated[
        Literal["text", "tsv", "jsonl", "moses"],
        typer.Option("--format", help="What a line of the output is."),
    ] = "text",
    set_: SetOption = None,
    device: DeviceOption = "auto",
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option("--precision", help="Of the products.")
    ] = "fp32",
    threads: ThreadsOption = 0,
    invalid: InvalidOption = "error",
    quiet: QuietOption = False,
) -> None:
    """Translate stdin to stdout: N lines in, N lines out, in order; blank for blank.

    Formats: text, a line each; tsv, line number, rank, score and text; jsonl, an object a line
    with all translations; moses, `line ||| text ||| s2s= log-probability ||| score`, lines counted
    from 0. Scores are natural logarithms.
    """
    from s2s_cli.core.corpus import LineGroups
    from s2s_cli.core.recipe import override

    if n_best > 1 and format_ == "text":
        raise typer.BadParameter("needs --format tsv, jsonl or moses", param_hint="--n-best")
    terminal = Terminal(quiet)
    if input_ == "-" and sys.stdin.isatty():
        terminal.note("reading lines from the terminal; Ctrl-D ends them")
    # The reader's thread starts here, so that lines arrive while the model is loaded.
    groups = LineGroups(input_, first=FIRST_GROUP, most=LARGEST_GROUP, invalid=invalid)
    flags = {
        "beam_size": beam_size,
        "length_penalty": length_penalty,
        "max_length_ratio": max_length_ratio,
        "batch_size": batch_size,
    }
    changes = [*(set_ or ()), *(f"search.{k}={v}" for k, v in flags.items() if v is not None)]

    from s2s_cli.core.checkpoint import find_model, load_model
    from s2s_cli.core.device import find_device, set_threads
    from s2s_cli.core.errors import RecipeError
    from s2s_cli.core.translator import Translator

    place = find_device(device)
    set_threads(threads)
    paths = [find_model(path) for path in model] if model else [find_model(None)]
    members = [load_model(path, place) for path in paths]
    if not model:
        terminal.note(f"model: {members[0].path}")
    settings = override(members[0].recipe, changes, "search").search
    if n_best > settings.beam_size:
        raise RecipeError(
            f"--n-best {n_best} needs a beam at least as wide; it is {settings.beam_size}\n"
            f"widen it with -b {n_best}"
        )
    translator = Translator(members, settings, precision, terminal.warn)
    writer = FORMATS[format_]
    number = 1
    with writing(output) as file:
        for lines in groups:
            found = translator.n_best(lines, n_best, number)
            for line, best in zip(lines, found, strict=True):
                file.write(writer(number, line, best).encode())
                number += 1
            file.flush()
