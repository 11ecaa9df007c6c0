"""The `s2s` command: joins the commands, and turns errors into a message and an exit code."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer

from s2s_cli import __version__
from s2s_cli.commands import evaluate, info, prepare, recipes, train, translate
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
        except BrokenPipeError:
            # The reader has seen enough (`| head`). What is still buffered must not be written
            # when the interpreter closes stdout, or it would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None

    return run


for _command in (prepare, train, translate, evaluate, recipes, info):
    app.command(_command.__name__.rpartition(".")[2])(_guarded(_command.command))


def main() -> None:
    """Entry point of the console script."""
    app()
