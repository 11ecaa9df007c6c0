"""`s2s recipes`: the packaged recipes, or one of them resolved."""

from typing import TYPE_CHECKING, Annotated

import typer

from s2s_cli.commands.options import SetOption, VerboseOption
from s2s_cli.commands.terminal import Terminal

if TYPE_CHECKING:
    from s2s_cli.core.recipe import Recipe


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="R", help="A recipe's name, or a file.")
    ] = None,
    set_: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """List the packaged recipes, or print one with every key written out.

    With --verbose, also tell the parameters of its network, its vocabularies as large as asked.
    """
    from s2s_cli.core.recipe import dump, load, packaged

    if name:
        recipe = load(name, set_ or ())
        print(dump(recipe), end="", flush=True)
        if verbose:
            Terminal().note(f"{_parameters(recipe):,} parameters")
        return
    if set_:
        raise typer.BadParameter("needs a recipe to change", param_hint="--set")
    names = packaged()
    width = max(len(each) for each in names)
    for each in names:
        recipe = load(each)
        size = f"{_parameters(recipe):>13,}  " if verbose else ""
        print(f"{each:{width}}  {size}{recipe.about}")


def _parameters(recipe: "Recipe") -> int:
    from s2s_cli.core.checkpoint import outline

    source, target = recipe.tokenizer.sides
    return outline(recipe, source.vocabulary, target.vocabulary).parameter_count()
