"""The `s2s` command: joins the commands, and turns errors into a message and an exit code."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer

# OpenMP's threads wait for each other by spinning, for milliseconds by default: then two programs
# on the same cores take turns in waiting, at a tenth of their speed. This is as fast alone. It has
# to be said before torch is there.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from s2s_cli import __version__
from s2s_cli.commands import average, evaluate, info, prepare, recipes, score, train, translate
from s2s_cli.commands.terminal import Terminal
from s2s_cli.core.errors import S2SError

P = ParamSpec("P")

app = typer.Typer(
    name="s2s",
    help="Trains, runs and scores RNN sequence-to-sequence models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"s2s {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version."),
    ] = False,
) -> None:
    """Trains, runs and scores RNN sequence-to-sequence models."""


def _guarded(command: Callable[P, None]) -> Callable[P, None]:
    """`command`, with its errors turned into a message on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except S2SError as error:
            Terminal().error(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader has seen enough (`| head`)
            _drop_output()
            raise typer.Exit from None
        except OSError as error:  # of the machine, not of the program: a full disk, a bad name
            where = f"{error.filename}: " if error.filename else ""
            Terminal().error(f"{where}{error.strerror or error}")
            _drop_output()
            raise typer.Exit(1) from None

    return run


def _drop_output() -> None:
    """Keeps the interpreter from writing, and complaining, when it closes stdout."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


for _command in (prepare, train, translate, evaluate, score, recipes, info, average):
    app.command(_command.__name__.rpartition(".")[2])(_guarded(_command.command))


def _terminate(number: int, _frame: object) -> None:
    """Leaves as Ctrl-C does, so that half-written files are removed on the way out."""
    sys.exit(128 + number)


def main() -> None:
    """Entry point of the console script."""
    # Python has None for a stdin or stdout that is closed (`<&-`).
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open to the end
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    app()
