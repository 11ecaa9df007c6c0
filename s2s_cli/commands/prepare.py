"""`s2s prepare`: text to tokenizers and a packed corpus, with a report on the data."""

from pathlib import Path
from typing import Annotated

import typer

from s2s_cli.commands.options import QuietOption, RecipeOption, SetOption
from s2s_cli.commands.terminal import Terminal


def command(
    recipe: RecipeOption,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Folder of the prepared corpus."),
    ] = None,
    set_: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Prepare a recipe's text: tokenizer, packed corpus, and a report on the data.

    Prints the folder. A second run finds the corpus and only reports.
    """
    from s2s_cli.core.recipe import load

    terminal = Terminal(quiet)
    checked = load(recipe, set_ or ())

    from s2s_cli.core import prepared

    tokenizers = None
    if checked.training.start_from:  # loads a model, which takes a while
        from s2s_cli.core.trainer import other_tokenizers

        tokenizers = other_tokenizers(checked)
    found = prepared.prepare(checked, Path(out) if out else None, terminal.stage, tokenizers)
    for line in prepared.report(found):
        terminal.note(line)
    print(found.folder)
