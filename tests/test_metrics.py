"""Scores: sacreBLEU's command line, brute force and counts made by hand are the oracles."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from s2s_cli.core.errors import DataError, S2SError
from s2s_cli.core.metrics import (
    Score,
    check_settings,
    edit_distance,
    evaluate,
    higher_is_better,
    seems_tokenized,
)
from s2s_cli.core.recipe.schema import MetricName

WORDS = ["The", "the", "cat,", "Cat", "sat", "on", "a", "mat.", "Où", "est-il?", "3.5%", "it's"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)


def damaged(lines: Sequence[str], seed: int, share: float) -> list[str]:
    """`lines` with about `share` of the words replaced, doubled, dropped or moved."""
    draw = random.Random(seed)
    result = []
    for line in lines:
        words = []
        for word in line.split():
            if draw.random() > share:
                words.append(word)
                continue
            words += draw.choice([[], [word, word], [draw.choice(WORDS)], [word.upper()]])
            if draw.random() < 0.3:
                draw.shuffle(words)
        result.append(" ".join(words))
    return result


def text(lines: int) -> list[str]:
    """Made-up sentences with punctuation, capitals and accents; the second is blank."""
    draw = random.Random(lines)
    made = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(lines)]
    return [made[0], "", *made[2:]]


def write(path: Path, lines: Sequence[str]) -> str:
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return str(path)


def sacrebleu_says(
    folder: Path, hypotheses: Sequence[str], references: Sequence[Sequence[str]], *options: str
) -> dict[str, tuple[float, str]]:
    """Value and signature of BLEU, chrF2 and TER, from sacreBLEU's own command line."""
    paths = [write(folder / f"ref.{r}", stream) for r, stream in enumerate(references)]
    files = [*paths, "-i", write(folder / "hyp", hypotheses)]
    how = ["-m", "bleu", "chrf", "ter", "-w", "12", "-f", "json", *options]
    done = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *files, *how], capture_output=True, check=True
    )
    return {each["name"]: (each["score"], each["signature"]) for each in json.loads(done.stdout)}


# Two lines without a common 4-gram: only there does the smoothing matter.
SPARSE = ["a b c x y z", "q r s t"], [["a b c d e f", "q r u v"]]
RICH = damaged(text(60), 1, 0.3), [text(60)]
RICH_TWICE = damaged(text(60), 1, 0.3), [damaged(text(60), 2, 0.2), text(60)]


@pytest.mark.parametrize("data", [RICH, RICH_TWICE, SPARSE], ids=["one", "two", "sparse"])
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, []),
        (
            {"tokenize": "none", "smooth_method": "none"},
            ["--tokenize", "none", "--smooth-method", "none"],
        ),
        (
            {"tokenize": "char", "smooth_method": "floor"},
            ["--tokenize", "char", "--smooth-method", "floor"],
        ),
        (
            {"lowercase": True, "smooth_method": "add-k"},
            ["--lowercase", "--chrf-lowercase", "--smooth-method", "add-k"],
        ),
    ],
    ids=["default", "none", "char-floor", "lowercase-add-k"],
)
def test_equals_the_command_line_of_sacrebleu(
    tmp_path: Path,
    data: tuple[list[str], list[list[str]]],
    settings: dict[str, str | bool],
    options: list[str],
) -> None:
    expected = sacrebleu_says(tmp_path, *data, *options)
    scores = evaluate(*data, ["bleu", "chrf", "ter"], **settings)  # type: ignore[arg-type]
    assert [score.name for score in scores] == ["BLEU", "chrF", "TER"]
    for score, name in zip(scores, ["BLEU", "chrF2", "TER"], strict=True):
        value, signature = expected[name]
        assert score.value == pytest.approx(value, abs=1e-11)
        assert score.signature == signature


def test_the_settings_of_the_oracle_matter() -> None:
    """Else the test above could not see a setting that is not passed on."""

    def values(data: tuple[list[str], list[list[str]]], **settings: str | bool) -> list[float]:
        scores = evaluate(*data, ["bleu", "chrf"], **settings)  # type: ignore[arg-type]
        return [score.value for score in scores]

    assert len({values(RICH, tokenize=name)[0] for name in ("13a", "none", "char")}) == 3
    smoothings = ("exp", "none", "floor", "add-k")
    assert len({values(SPARSE, smooth_method=name)[0] for name in smoothings}) == 4
    cased, lowered = values(RICH), values(RICH, lowercase=True)
    assert cased[0] != lowered[0]
    assert cased[1] != lowered[1]


def test_order_and_repetition_of_the_metrics_are_kept() -> None:
    scores = evaluate(["a b"], [["a c"]], ["wer", "exact", "bleu", "ter", "chrf", "wer"])
    assert [score.name for score in scores] == ["WER", "exact", "BLEU", "TER", "chrF", "WER"]
    assert evaluate(["a b"], [["a c"]], []) == []


@pytest.mark.parametrize("metric", METRICS)
def test_higher_is_better_agrees_with_the_score(metric: MetricName) -> None:
    reference = text(30)
    (perfect,) = evaluate(reference, [reference], [metric])
    (worse,) = evaluate(damaged(reference, 3, 0.6), [reference], [metric])
    assert perfect.value != worse.value
    assert higher_is_better(metric) == (perfect.value > worse.value)


# --- edit distance and WER -------------------------------------------------------------------


@cache
def fewest_edits(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Levenshtein distance by trying every edit at the first word."""
    if not one or not other:
        return len(one) + len(other)
    return min(
        fewest_edits(one[1:], other[1:]) + (one[0] != other[0]),
        fewest_edits(one[1:], other) + 1,
        fewest_edits(one, other[1:]) + 1,
    )


some_words = st.lists(st.sampled_from("abc"), max_size=7).map(tuple)


@given(some_words, some_words)
def test_edit_distance_is_the_brute_force_one(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert edit_distance(one, other) == fewest_edits(one, other)


def test_edit_distance_is_exact_far_from_the_diagonal() -> None:
    """Where a search that stays near the diagonal, as sacreBLEU's for TER, finds 36."""
    words = [str(number) for number in range(30)]
    assert edit_distance(words, ["x"] * 30 + words) == 30


def expected_word_error_rate(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> Fraction:
    """The docstring of `evaluate`, in fractions."""
    edits = words = 0
    for i, hypothesis in enumerate(hypotheses):
        best: tuple[Fraction, int, int] | None = None
        for stream in references:
            distance = fewest_edits(tuple(hypothesis), tuple(stream[i]))
            length = len(stream[i])
            # A million edits a word is more than any non-empty reference here can cost.
            rate = Fraction(distance, length) if length else Fraction(distance * 10**6)
            if best is None or (rate, distance) < best[:2]:
                best = rate, distance, length
        assert best is not None
        edits += best[1]
        words += best[2]
    if words == 0:
        return Fraction(100 if edits else 0)
    return Fraction(100 * edits, words)


some_line = st.lists(st.sampled_from(["a", "b", "c"]), max_size=5)
some_text = st.integers(1, 4).flatmap(
    lambda lines: st.tuples(
        st.lists(some_line, min_size=lines, max_size=lines),
        st.lists(st.lists(some_line, min_size=lines, max_size=lines), min_size=1, max_size=3),
    )
)


@given(some_text)
def test_wer_is_the_brute_force_one(
    lines: tuple[list[list[str]], list[list[list[str]]]],
) -> None:
    hypotheses, references = lines
    (score,) = evaluate(
        [" ".join(line) for line in hypotheses],
        [[" ".join(line) for line in stream] for stream in references],
        ["wer"],
    )
    expected = expected_word_error_rate(hypotheses, references)
    assert score.value == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("hypotheses", "references", "expected"),
    [
        # Two edits (b -> x, and d dropped) for 4 words; none for 1.
        (["a x c", "e"], [["a b c d", "e"]], 100 * 2 / 5),
        # Words count together, not the mean of the lines' rates, which is 50.
        (["x", "a b c"], [["y", "a b c"]], 100 * 1 / 4),
        # More edits than words.
        (["a b c"], [["x"]], 300.0),
        # Each line has a reference of its own: 0 of 2 words, then 0 of 1.
        (["a b", "c"], [["a b", "x"], ["y", "c"]], 0.0),
        # 2 edits for 6 words beat 1 edit for 2.
        (["a b c d"], [["a b c d e f"], ["a b"]], 100 * 2 / 6),
        # 1 of 2 and 2 of 4: the second line tells which counted (1 / 12 against 2 / 14).
        (["a b", "k " * 10], [["a x", "k " * 10], ["a b c d", "k " * 10]], 100 * 1 / 12),
        # An empty reference is only for an empty hypothesis.
        (["a", "b"], [["", "b"], ["x y", "b"]], 100 * 2 / 3),
        (["", "a"], [["", "a"], ["x y", "b"]], 0.0),
        # No words to divide by.
        ([""], [[""]], 0.0),
        (["a b"], [[""]], 100.0),
        # White space of any kind and length parts words.
        (["  a \t b\u3000c "], [["a b c"]], 0.0),
    ],
)
def test_wer_of_cases_counted_by_hand(
    hypotheses: list[str], references: list[list[str]], expected: float
) -> None:
    for streams in (references, references[::-1]):
        (score,) = evaluate(hypotheses, streams, ["wer"])
        assert score.value == pytest.approx(expected, rel=1e-12)


# --- exact matches ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hypotheses", "references", "expected"),
    [
        (["a b", "c", "d"], [["a b", "x", "y"]], 100 / 3),
        # Any reference of the same line, but not one of another line.
        (["a", "b", "x"], [["a", "x", "b"], ["y", "b", "a"]], 100 * 2 / 3),
        # White space at the ends, not inside.
        ([" a b\t", "a  b"], [["a b ", "a b"]], 50.0),
        (["", "a"], [["  ", "A"]], 50.0),
    ],
)
def test_exact_of_cases_counted_by_hand(
    hypotheses: list[str], references: list[list[str]], expected: float
) -> None:
    for streams in (references, references[::-1]):
        (score,) = evaluate(hypotheses, streams, ["exact"])
        assert score.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("metric", "cased", "lowered"), [("exact", 0, 100), ("wer", 50, 0)])
def test_lowercase_reaches_what_is_counted_here(
    metric: MetricName, cased: float, lowered: float
) -> None:
    for hypothesis, reference in (("a B", "a b"), ("a b", "a B")):
        assert evaluate([hypothesis], [[reference]], [metric])[0].value == cased
        assert evaluate([hypothesis], [[reference]], [metric], lowercase=True)[0].value == lowered


@pytest.mark.parametrize("metric", ["exact", "wer"])
def test_signatures_of_what_is_counted_here_tell_settings_apart(metric: MetricName) -> None:
    def keys(references: int, lowercase: bool) -> dict[str, str]:
        (score,) = evaluate(["a"], [["a"]] * references, [metric], lowercase=lowercase)
        return dict(part.split(":") for part in score.signature.split("|"))

    assert keys(1, False)["nrefs"] == "1"
    assert keys(3, False)["nrefs"] == "3"
    assert keys(1, False)["case"] == "mixed"
    assert keys(1, True)["case"] == "lc"
    assert keys(1, False)["version"].startswith("s2s-")


# --- errors, and what reaches the screen -----------------------------------------------------


@pytest.mark.parametrize(
    ("hypotheses", "references", "named"),
    [
        ([], [[]], ["0 hypotheses", "0 reference lines", "give"]),
        ([], [["a"] * 12], ["0 hypotheses", "12 lines", "give"]),
        (["a"] * 7, [], ["7 hypotheses", "no references", "give"]),
        (["a"] * 7, [["a"] * 12], ["7 hypotheses", "12 lines", "reference 1", "give"]),
        (["a"] * 7, [["a"] * 7, ["a"] * 5], ["7 hypotheses", "5 lines", "reference 2", "give"]),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_counts_that_do_not_fit_are_named(
    metric: MetricName, hypotheses: list[str], references: list[list[str]], named: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        evaluate(hypotheses, references, [metric])
    for part in named:
        assert part in str(caught.value)


def test_an_unknown_tokenizer_lists_those_of_sacrebleu() -> None:
    with pytest.raises(S2SError) as caught:
        evaluate(["a"], [["a"]], ["wer"], tokenize="13b")
    assert "'13b'" in str(caught.value)
    for name in sacrebleu.BLEU.TOKENIZERS:
        assert name in str(caught.value)


def test_an_unknown_smoothing_lists_those_of_sacrebleu() -> None:
    with pytest.raises(S2SError) as caught:
        check_settings("13a", "expo")
    assert "'expo'" in str(caught.value)
    for name in sacrebleu.BLEU.SMOOTH_DEFAULTS:
        assert name in str(caught.value)


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
def test_a_tokenizer_that_cannot_start_is_a_message(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(sacrebleu.BLEU):
        def __init__(self, **settings: object) -> None:
            raise kind("\nPlease install:\n\n   it\n")

    monkeypatch.setattr(sacrebleu, "BLEU", Broken)
    with pytest.raises(S2SError) as caught:
        evaluate(["a"], [["a"]], ["bleu"], tokenize="ja-mecab")
    assert "'ja-mecab'" in str(caught.value)
    assert "Please install: it" in str(caught.value)


def test_tokenized_text_is_told_by_a_function_and_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for count in (99, 100):
        lines = ["a b ."] * count + ["c d."] * 30
        path = write(tmp_path / "lines", lines)
        done = subprocess.run(
            [sys.executable, "-m", "sacrebleu", path, "-i", path], capture_output=True, check=True
        )
        assert seems_tokenized(lines) == (b"tokenized period" in done.stderr) == (count == 100)
        capfd.readouterr()
        evaluate(lines, [lines], METRICS)
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []


def test_sacrebleu_is_imported_only_to_score() -> None:
    code = "import sys, s2s_cli.core.metrics; print('sacrebleu' in sys.modules)"
    words = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    assert subprocess.run(words, capture_output=True, cwd=root, check=True).stdout == b"False\n"


def test_a_score_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Score("BLEU", 1.0, "").value = 2.0  # type: ignore[misc]
