"""`s2s score`: how likely translations are that are there already."""

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from s2s_cli.commands.scoring_formats import Case

# Lines scored together, at first, so that a reader need not wait, and at most.
FIRST_GROUP, LARGEST_GROUP = 128, 4096


def command(
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="A file of sources, plain or .gz; - is stdin."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="Its translations, line N of the one for line N."),
    ] = None,
    model: ModelOption = None,
    input_: InputOption = "-",
    output: OutputOption = "-",
    input_format: Annotated[
        Literal["tsv", "jsonl"],
        typer.Option("--input-format", help="What a line of the input is, without two files."),
    ] = "tsv",
    format_: Annotated[
        Literal["text", "tsv", "jsonl"],
        typer.Option("--format", help="What a line of the output is."),
    ] = "text",
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Print the perplexity of the whole alone.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Pairs scored together.")
    ] = None,
    set_: SetSearchOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = 0,
    invalid: InvalidOption = "error",
    quiet: QuietOption = False,
) -> None:
    """Print the log-probability of each pair, in order: N pairs in, N lines out.

    Pairs come from two files, SOURCE and TARGET, or from the input: `source<TAB>target` lines, or
    with --input-format jsonl objects, {"source", "target"} or what `s2s translate --format jsonl`
    writes, whose translations are scored on the pieces that were found.

    Formats: text, the natural logarithm of the probability, EOS included (several translations of
    an object: with tabs between); tsv, line number, log-probability, target pieces with EOS and the
    log-probability of each, a line a translation; jsonl, an object a line, `pieces` without EOS and
    `word_log_probabilities` with it. --perplexity prints exp(-sum of log-probabilities / pieces),
    EOS counted, and nothing else.

    A pair blank on both sides has 0 and no pieces; a blank target is EOS alone; a blank source is
    read as EOS alone; a source longer than search.max_source is scored whole, with a warning.
    Probabilities are among the whole vocabulary, whatever search.shortlist.
    """
    if perplexity and format_ != "text":
        raise typer.BadParameter("is one number, in text alone", param_hint="--perplexity")
    # The readers' threads start here, so that lines arrive while the model is loaded.
    groups = _cases(source, target, input_, input_format, invalid)

    from s2s_cli.commands.scoring_formats import FORMATS

    terminal = Terminal(quiet)
    if "-" in ((input_,) if source is None else (source, target)) and sys.stdin.isatty():
        terminal.note("reading lines from the terminal; Ctrl-D ends them")
    changes = [*(set_ or ()), *([f"search.batch_size={batch_size}"] if batch_size else ())]

    from s2s_cli.commands.models import open_translator
    from s2s_cli.core.errors import DataError

    translator = open_translator(
        model, changes, device=device, threads=threads, precision=precision, terminal=terminal
    )
    writer = FORMATS[format_]
    total, pieces = 0.0, 0
    with writing(output) as file:
        for cases in groups:
            sources = [case.source for case in cases for _ in case.targets]
            targets = [target for case in cases for target in case.targets]
            numbers = [case.number for case in cases for _ in case.targets]
            scored = iter(translator.score(sources, targets, numbers))
            for case in cases:
                scores = [next(scored) for _ in case.targets]
                total += math.fsum(one.log_probability for one in scores)
                pieces += sum(len(one.word_log_probabilities) for one in scores)
                if not perplexity:
                    file.write(writer(case, scores).encode())
            file.flush()
        if perplexity:
            if not pieces:
                raise DataError("there is nothing to score: all of the input is blank")
            # A model that knows nothing may exceed what exp can hold.
            file.write(f"{math.exp(min(-total / pieces, 700.0)):.10g}\n".encode())


def _cases(
    source: str | None,
    target: str | None,
    path: str,
    form: Literal["tsv", "jsonl"],
    invalid: Literal["error", "replace"],
) -> "Iterator[list[Case]]":
    """What is to be scored, in groups: from two files, or from `path`."""
    if (source is None) != (target is None):
        raise typer.BadParameter("TARGET is missing", param_hint="SOURCE TARGET")
    if source is not None and (path != "-" or form != "tsv"):
        raise typer.BadParameter("there are two files already: no --input, no --input-format")
    if source == target == "-":
        raise typer.BadParameter("stdin (-) can be read only once", param_hint="SOURCE TARGET")

    from s2s_cli.commands.scoring_formats import from_files, from_lines

    if source is None or target is None:
        return from_lines(path, form, first=FIRST_GROUP, most=LARGEST_GROUP, invalid=invalid)
    return from_files(source, target, first=FIRST_GROUP, most=LARGEST_GROUP, invalid=invalid)
