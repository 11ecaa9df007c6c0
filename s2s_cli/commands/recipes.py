"""`s2s recipes`: the packaged recipes, or one of them resolved."""

from typing import Annotated

import typer

from s2s_cli.commands.options import SetOption


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="R", help="A recipe's name, or a file.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """List the packaged recipes, or print one with every key written out."""
    from s2s_cli.core.recipe import dump, load, packaged

    if name:
        print(dump(load(name, set_ or ())), end="")
        return
    if set_:
        raise typer.BadParameter("needs a recipe to change", param_hint="--set")
    names = packaged()
    width = max(len(each) for each in names)
    for each in names:
        print(f"{each:{width}}  {load(each).about}")
