"""Scores of translations: BLEU, chrF and TER by sacreBLEU; exact matches and WER counted here.

Every score carries a signature that says how it was computed, so that two numbers with the same
signature can be compared. This is the one module that knows sacreBLEU, which is imported only when
something is scored (it takes 0.1 s).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from s2s_cli import __version__
from s2s_cli.core.errors import DataError, S2SError
from s2s_cli.core.recipe.schema import MetricName

if TYPE_CHECKING:
    from sacrebleu import BLEU, CHRF, TER

# sacreBLEU calls a text tokenized when this many of its lines end in " .".
TOKENIZED_LINES = 100


@dataclass(frozen=True)
class Score:
    """A score of a whole text. `value` is unrounded, in percent; error rates may exceed 100."""

    name: str
    value: float
    signature: str


def higher_is_better(metric: MetricName) -> bool:
    """Whether a greater value of `metric` is a better one; the error rates say False."""
    match metric:
        case "bleu" | "chrf" | "exact":
            return True
        case "ter" | "wer":
            return False


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[MetricName],
    *,
    tokenize: str = "13a",
    smooth_method: str = "exp",
    lowercase: bool = False,
) -> list[Score]:
    """Scores a whole text against one or more whole references.

    Args:
        hypotheses: The translations, one a line.
        references: `references[r][i]` is what stream r has for line i; each stream is complete.
        metrics: What to measure. TER ignores case whatever `lowercase` says, as sacreBLEU's does.
        tokenize: sacreBLEU's tokenizer for BLEU.
        smooth_method: sacreBLEU's smoothing for BLEU: exp, floor, add-k or none.
        lowercase: Ignore case.

    Returns:
        A score for each of `metrics`, in their order.
        exact: the percentage of lines that equal one of their references, white space at the ends
            of both apart.
        WER: 100 times the edits of all lines over the words of all lines' references; words are
            parted by white space, an edit inserts, deletes or replaces one. Of several references
            of a line, the one with the fewest edits for each of its words counts, and at equal
            rates the one with fewer edits; its edits and its words enter the two sums. An empty
            reference counts only if the hypothesis is empty too, or if all are empty. With no
            reference words at all the rate is 0 without edits and 100 with, as in TER.

    Raises:
        DataError: There are no lines, no references, or the counts differ.
        S2SError: An unknown `tokenize` or `smooth_method`, or a tokenizer that needs what this
            machine does not have.
    """
    check_settings(tokenize, smooth_method)
    _check_counts(hypotheses, references)

    def score(metric: MetricName) -> Score:
        match metric:
            case "bleu":
                bleu = _bleu(tokenize, smooth_method, lowercase)
                return _sacrebleu_score("BLEU", bleu, hypotheses, references)
            case "chrf":
                from sacrebleu import CHRF

                return _sacrebleu_score("chrF", CHRF(lowercase=lowercase), hypotheses, references)
            case "ter":
                from sacrebleu import TER

                return _sacrebleu_score("TER", TER(), hypotheses, references)
            case "exact":
                return _exact(hypotheses, references, lowercase)
            case "wer":
                return _word_error_rate(hypotheses, references, lowercase)

    return [score(metric) for metric in metrics]


def check_settings(tokenize: str, smooth_method: str) -> None:
    """Raises an S2SError if sacreBLEU knows no such tokenizer or smoothing.

    `evaluate` does this too; whoever waits for the hypotheses does it before the wait.
    """
    from sacrebleu import BLEU

    for key, value, allowed in (
        ("tokenize", tokenize, BLEU.TOKENIZERS),
        ("smooth-method", smooth_method, BLEU.SMOOTH_DEFAULTS),
    ):
        if value not in allowed:
            raise S2SError(f"{key} = {value!r} is unknown; choose one of {', '.join(allowed)}")


def seems_tokenized(hypotheses: Sequence[str]) -> bool:
    """Whether sacreBLEU would warn that its tokenizer gets text that is tokenized already.

    sacreBLEU itself says so through `logging`, at the end of a long run and with advice for
    programmers; here the caller decides who is told.
    """
    return sum(line.endswith(" .") for line in hypotheses) >= TOKENIZED_LINES


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements between the two.

    sacreBLEU's own (in TER) is not exact: it looks only near the diagonal.
    """
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, candidate in enumerate(other, start=1):
            replaced = diagonal + (word != candidate)
            diagonal, row[j] = row[j], min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def _check_counts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not references:
        raise DataError(f"{len(hypotheses)} hypotheses and no references; give at least one stream")
    for number, stream in enumerate(references, start=1):
        if len(stream) != len(hypotheses):
            raise DataError(
                f"{len(hypotheses)} hypotheses, but {len(stream)} lines in reference {number}; "
                "give a line of each for every sentence"
            )
    if not hypotheses:
        raise DataError("0 hypotheses and 0 reference lines; give at least one line of each")


def _bleu(tokenize: str, smooth_method: str, lowercase: bool) -> "BLEU":
    """SacreBLEU's BLEU, silent about tokenized text (see `seems_tokenized`)."""
    from sacrebleu import BLEU

    try:
        return BLEU(tokenize=tokenize, smooth_method=smooth_method, lowercase=lowercase, force=True)
    except (ImportError, OSError, RuntimeError) as error:
        # Some tokenizers need a package that is not installed, or fetch a model on first use.
        reason = " ".join(str(error).split())
        raise S2SError(
            f"sacreBLEU's tokenizer {tokenize!r} does not work on this machine: {reason}\n"
            "mend that, or choose another tokenizer"
        ) from error


def _sacrebleu_score(
    name: str,
    metric: "BLEU | CHRF | TER",
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
) -> Score:
    value = float(metric.corpus_score(hypotheses, references).score)
    # The signature knows the number of references only after the scoring.
    return Score(name, value, metric.get_signature().format())


def _exact(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool
) -> Score:
    equal = sum(
        _cased(hypothesis, lowercase).strip()
        in {_cased(reference, lowercase).strip() for reference in of_line}
        for hypothesis, *of_line in zip(hypotheses, *references, strict=True)
    )
    signature = _signature(len(references), lowercase, "space:stripped")
    return Score("exact", 100 * equal / len(hypotheses), signature)


def _word_error_rate(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool
) -> Score:
    edits = words = 0
    for hypothesis, *of_line in zip(hypotheses, *references, strict=True):
        hypothesis_words = _cased(hypothesis, lowercase).split()
        candidates = []
        for reference in of_line:
            reference_words = _cased(reference, lowercase).split()
            distance = edit_distance(hypothesis_words, reference_words)
            if reference_words:
                rate = distance / len(reference_words)
            else:
                rate = float("inf") if distance else 0.0
            candidates.append((rate, distance, len(reference_words)))
        _, distance, length = min(candidates)
        edits += distance
        words += length
    value = 100 * edits / words if words else 100.0 * (edits > 0)
    return Score("WER", value, _signature(len(references), lowercase, "tok:whitespace"))


def _cased(line: str, lowercase: bool) -> str:
    return line.lower() if lowercase else line


def _signature(
    references: int, lowercase: bool, how: Literal["space:stripped", "tok:whitespace"]
) -> str:
    """A signature in sacreBLEU's manner for what s2s counts by itself."""
    case = "lc" if lowercase else "mixed"
    return f"nrefs:{references}|case:{case}|{how}|version:s2s-{__version__}"
