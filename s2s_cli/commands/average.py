"""`s2s average`: the mean of several models' weights."""

from pathlib import Path
from typing import Annotated

import typer

from s2s_cli.commands.options import QuietOption
from s2s_cli.commands.terminal import Terminal


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Model files; a run stands for the models in its kept/."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Default: RUN/average.safetensors of one run."
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Average the weights of several models of one training, and print the new model's path.

    A run keeps models to average with `training.keep_best`.
    """
    run = Path(models[0])
    if output is None and (len(models) > 1 or run.is_file()):
        raise typer.BadParameter("needed for models that are not one run", param_hint="-o")

    from s2s_cli.core.checkpoint import average_models, kept_models

    paths = [path for name in models for path in kept_models(Path(name))]
    target = Path(output) if output else run / "average.safetensors"
    terminal = Terminal(quiet)
    for other in average_models(paths, target):
        terminal.warn(
            f"{other} is of another training than {paths[0]}: the mean of networks that were never "
            "one is rarely any good"
        )
    terminal.note(f"the mean of {len(paths)} models: {', '.join(str(p) for p in paths)}")
    print(target)
