"""`s2s info`: what is inside a model file."""

from typing import Annotated

import typer

from s2s_cli.commands.terminal import Terminal


def command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model file or run; default the newest run."),
    ] = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Print the recipe that it was trained by, as TOML.")
    ] = False,
) -> None:
    """Print what is inside a model file: where it comes from, its scores, its sizes."""
    import torch

    from s2s_cli.core.checkpoint import find_model, load_model
    from s2s_cli.core.recipe import dump

    found = load_model(find_model(model), torch.device("cpu"))
    if recipe:
        print(dump(found.recipe), end="")
        return
    header, network = found.header, found.model
    if model is None:
        Terminal().note(f"model: {found.path}")
    facts = {
        "file": found.path,
        "recipe": ": ".join(filter(None, (found.recipe.name, found.recipe.about))),
        "written by": f"s2s {header['s2s']}, format {header['format']}",
        **header["results"],
        "parameters": f"{network.parameter_count():,}",
        "source": f"{found.source_tokenizer.size:,} entries"
        + (", read in reverse" if found.recipe.model.reverse_source else ""),
        "target": f"{found.target_tokenizer.size:,} entries",
    }
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        told = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:{width}}  {told}")
    print()
    for name, tensor in network.state_dict().items():
        print(f"{name}  {list(tensor.shape)}")
