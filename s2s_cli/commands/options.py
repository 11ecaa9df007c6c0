"""Options that more than one command takes, so that they read the same everywhere."""

from typing import Annotated, Literal

import typer

RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", metavar="R", help="A recipe file, or the name of a packaged recipe."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model file or a run's folder; repeat for an ensemble. "
        "Default: $S2S_MODEL, else the newest run below runs/.",
    ),
]
SetSearchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of [search], and no other, such as search.unk=forbid; repeatable.",
    ),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "int8"],
    typer.Option("--precision", help="Of the products; int8 on a CPU alone."),
]
InputOption = Annotated[
    str, typer.Option("--input", "-i", metavar="FILE", help="Read from FILE; - is stdin.")
]
OutputOption = Annotated[
    str, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE; - is stdout.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
]
ThreadsOption = Annotated[
    int,
    typer.Option("--threads", min=0, max=1024, help="CPU threads; 0: one a core that it may use."),
]
InvalidOption = Annotated[
    Literal["error", "replace"],
    typer.Option("--invalid", help="What to do with bytes that are not UTF-8."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
