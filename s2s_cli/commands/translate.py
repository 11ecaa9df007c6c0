"""`s2s translate`: lines in, as many lines out, in order, as they come."""

import sys
from typing import Annotated, Literal

import typer

from s2s_cli.commands.options import (
    DeviceOption,
    InputOption,
    InvalidOption,
    ModelOption,
    OutputOption,
    PrecisionOption,
    QuietOption,
    SetSearchOption,
    ThreadsOption,
)
from s2s_cli.commands.output import writing
from s2s_cli.commands.terminal import Terminal
from s2s_cli.commands.translation_formats import FORMATS

# Lines translated together: a batch at first, so that a reader need not wait, then more, because
# sorting by length pays.
LARGEST_GROUP = 4096


def command(
    model: ModelOption = None,
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
    input_format: Annotated[
        Literal["text", "tsv"],
        typer.Option(
            "--input-format",
            help="tsv: source, tab, what its translation begins with; more columns are ignored.",
        ),
    ] = "text",
    set_: SetSearchOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = 0,
    invalid: InvalidOption = "error",
    quiet: QuietOption = False,
) -> None:
    """Translate stdin to stdout: N lines in, N lines out, in order; blank for blank.

    Formats: text, a line each; tsv, line number, rank, score and text; jsonl, an object a line
    with all translations; moses, `line ||| text ||| s2s= log-probability ||| score`, lines counted
    from 0. Scores are natural logarithms. Sampling, prefixes, word scores, alignments, unknown
    words and more are keys of [search]: see docs/recipes.md.
    """
    from s2s_cli.core.corpus import LineGroups

    if n_best > 1 and format_ == "text":
        raise typer.BadParameter("needs --format tsv, jsonl or moses", param_hint="--n-best")
    terminal = Terminal(quiet)
    if input_ == "-" and sys.stdin.isatty():
        terminal.note("reading lines from the terminal; Ctrl-D ends them")
    # The reader's thread starts here, so that lines arrive while the model is loaded.
    groups = LineGroups(input_, first=1, most=LARGEST_GROUP, invalid=invalid)
    flags = {
        "beam_size": beam_size,
        "length_penalty": length_penalty,
        "max_length_ratio": max_length_ratio,
        "batch_size": batch_size,
    }
    changes = [*(set_ or ()), *(f"search.{k}={v}" for k, v in flags.items() if v is not None)]

    from s2s_cli.commands.models import open_translator
    from s2s_cli.core.errors import RecipeError
    from s2s_cli.core.search import sentences_together

    translator = open_translator(
        model, changes, device=device, threads=threads, precision=precision, terminal=terminal
    )
    settings = translator.settings
    groups.first = min(sentences_together(settings, n_best), LARGEST_GROUP)
    if n_best > settings.beam_size and settings.sampling is None:
        raise RecipeError(
            f"--n-best {n_best} needs a beam at least as wide; it is {settings.beam_size}\n"
            f"widen it with -b {n_best}"
        )
    writer, how = FORMATS[format_], translator.how
    number = 1
    with writing(output) as file:
        for lines in groups:
            sources, prefixes = lines, None
            if input_format == "tsv":
                columns = [[*line.split("\t"), ""] for line in lines]
                sources, prefixes = [row[0] for row in columns], [row[1] for row in columns]
            found = translator.n_best(sources, n_best, number, prefixes, scores=format_ != "text")
            for source, best in zip(sources, found, strict=True):
                file.write(writer(number, source, best, how).encode())
                number += 1
            file.flush()
