"""`s2s evaluate`: scores translations against references."""

import dataclasses
import json
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from s2s_cli.commands.options import InputOption, InvalidOption, QuietOption
from s2s_cli.commands.terminal import Terminal
from s2s_cli.core.errors import DataError

if TYPE_CHECKING:
    from s2s_cli.core.recipe.schema import MetricName


class Metric(Enum):
    """Core's `MetricName`, as an Enum because typer cannot repeat an option of a Literal."""

    BLEU = "bleu"
    CHRF = "chrf"
    TER = "ter"
    EXACT = "exact"
    WER = "wer"


def command(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REF",
            help="Reference files, plain or .gz; line N of each belongs to line N of the input.",
            show_default=False,
        ),
    ],
    source: InputOption = "-",
    metrics: Annotated[
        list[Metric] | None,
        typer.Option(
            "--metric", "-M", help="A score to print; repeatable, kept in order; bleu if not given."
        ),
    ] = None,
    tokenize: Annotated[
        str, typer.Option("--tokenize", metavar="NAME", help="sacreBLEU's tokenizer for BLEU.")
    ] = "13a",
    smooth_method: Annotated[
        Literal["exp", "floor", "add-k", "none"],
        typer.Option("--smooth-method", help="sacreBLEU's smoothing for BLEU."),
    ] = "exp",
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Ignore case; TER always does.")
    ] = False,
    output_format: Annotated[
        Literal["text", "tsv", "json"],
        typer.Option("--format", help="text rounds to two decimals; tsv and json do not round."),
    ] = "text",
    invalid: InvalidOption = "error",
    quiet: QuietOption = False,
) -> None:
    """Scores translations, from stdin or --input, against one or more references.

    text prints a line `BLEU 24.31` for each metric, then a line `# BLEU SIGNATURE` for each; tsv
    prints name, value and signature in columns; json prints one object, {"scores": [{"name",
    "value", "signature"}]}.

    BLEU, chrF and TER are sacreBLEU's. exact is the percentage of lines that equal a reference,
    WER the word error rate, with words parted by white space.
    """
    if [source, *references].count("-") > 1:
        raise typer.BadParameter("stdin (-) can be read only once: as --input or as one REF")

    from s2s_cli.core.corpus import read_lines
    from s2s_cli.core.metrics import check_settings, evaluate, seems_tokenized

    terminal = Terminal(quiet=quiet)

    def read(path: str) -> list[str]:
        if path == "-" and sys.stdin.isatty():
            terminal.note("waiting for text on stdin; Ctrl-D ends it")
        return list(read_lines(path, invalid))

    # What can fail at once comes before what a pipe may take hours to deliver.
    check_settings(tokenize, smooth_method)
    streams = [read(path) for path in references]
    hypotheses = read(source)

    if not hypotheses:
        raise DataError(
            f"{_name(source)} has 0 lines; send the translations through a pipe, "
            "or name their file with --input"
        )
    for path, stream in zip(references, streams, strict=True):
        if len(stream) != len(hypotheses):
            raise DataError(
                f"the number of lines differs: {len(hypotheses)} in {_name(source)}, "
                f"{len(stream)} in {_name(path)}\n"
                "line N of the one is compared with line N of the other; "
                "give the translations of exactly this reference"
            )

    chosen: list[MetricName] = [metric.value for metric in metrics or [Metric.BLEU]]
    if "bleu" in chosen and tokenize != "none" and seems_tokenized(hypotheses):
        terminal.warn(
            f"many lines of {_name(source)} end in ' .' and look tokenized; "
            "detokenize them for a BLEU that compares with others, or say --tokenize none"
        )
    scores = evaluate(
        hypotheses,
        streams,
        chosen,
        tokenize=tokenize,
        smooth_method=smooth_method,
        lowercase=lowercase,
    )
    match output_format:
        case "text":
            for score in scores:
                print(f"{score.name} {score.value:.2f}")
            for score in scores:
                print(f"# {score.name} {score.signature}")
        case "tsv":
            for score in scores:
                print(score.name, score.value, score.signature, sep="\t")
        case "json":
            print(json.dumps({"scores": [dataclasses.asdict(score) for score in scores]}))


def _name(path: str) -> str:
    return "stdin" if path == "-" else path
