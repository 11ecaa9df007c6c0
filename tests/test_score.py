"""`s2s score`: how likely a given translation is, as the model and as the search say it."""

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import wide_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from s2s_cli.app import app
from s2s_cli.commands.scoring_formats import FORMATS, Case, from_files, from_lines
from s2s_cli.core.batches import make_batch
from s2s_cli.core.checkpoint import load_model, save_model
from s2s_cli.core.errors import DataError
from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.prepared import PackedPairs, PackedText, Prepared
from s2s_cli.core.recipe import Recipe
from s2s_cli.core.recipe.schema import Model
from s2s_cli.core.search import ModelScorer, forced_scores
from s2s_cli.core.tokenizer import BOS, EOS, WordTokenizer
from s2s_cli.core.translator import Scored, Translator

PATIENCE = 60  # seconds, after which a command that hangs is a failure
VOCABULARY = 10
# Empty sides, sources that come twice, and targets both shorter and longer than their sources.
SOURCES = [[5, 6], [4, 5, 6, 7, 8], [], [5, 6], [9], [3, 3, 4, 8], [9], [7, 8, 4]]
TARGETS = [[4], [9, 8, 7, 6, 5, 4, 3], [3, 3], [], [6, 0, 6], [5, 1], [6], [8, 4, 4]]

ADDITIVE = {"kind": "additive", "size": 3}
TANH = {"kind": "tanh", "size": 4}
DECODERS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain"},
    "peeky": {"kind": "peeky"},
    "general": {"kind": "attention", "attention": {"kind": "general"}},
    "previous": {
        "kind": "attention",
        "attention": {**ADDITIVE, "coverage": True},
        "query": "previous",
    },
    "bottom": {"kind": "attention", "attention": ADDITIVE, "query": "bottom"},
    "feeding": {
        "kind": "attention",
        "attention": {"kind": "dot", "local_window": 2},
        "input_feeding": True,
        "readout": TANH,
    },
}


# --- the numbers -----------------------------------------------------------------------------


def random_model(decoder: dict[str, Any]) -> Seq2Seq:
    """Of a decoder, with parameters far from zero."""
    stack = {"cell": "lstm", "layers": 2, "embedding": 5, "hidden": 6}
    side = {**stack, "bridge": "linear", **decoder}
    encoder = {**stack, "hidden": 3, "bidirectional": True}
    torch.manual_seed(3)
    model = build(
        Model.model_validate({"encoder": encoder, "decoder": side}),
        source_vocabulary=VOCABULARY,
        target_vocabulary=VOCABULARY,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.7)
    return model.eval()


@torch.no_grad()
def by_the_whole_sequence(model: Seq2Seq, source: list[int], target: list[int]) -> list[float]:
    """The log-softmax of a forward over all of one target at once."""
    pairs = PackedPairs(PackedText.pack([source]), PackedText.pack([target]))
    batch = make_batch(pairs, numpy.arange(1), reverse=True, start=BOS)
    features, _ = model.decoder(batch.inputs, model.start(batch.source))
    known = model.decoder.output(features)[:, 0].double().log_softmax(-1)
    return [float(known[step, word]) for step, word in enumerate([*target, EOS])]


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_scores_are_those_of_the_whole_sequence(decoder: dict[str, Any]) -> None:
    """Whatever the size of a batch, and with the longer sources in batches of their own."""
    model = random_model(decoder)
    expected = list(map(by_the_whole_sequence, itertools.repeat(model), SOURCES, TARGETS))
    scorer = ModelScorer(model, reverse=True)
    for size, longest in itertools.product((1, 3, 64), (2, 1024)):
        found = forced_scores(
            scorer, SOURCES, TARGETS, first_word=BOS, batch_size=size, longest=longest
        )
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=2e-5)


@dataclass(frozen=True)
class TableState:
    """The source of each row, and what it has read."""

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def select(self, rows: Tensor) -> "TableState":
        return TableState(tuple(self.rows[row] for row in rows.tolist()))


class CountingScorer:
    """Logits drawn anew for each source and history; keeps what it was asked."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.started: list[list[list[int]]] = []
        self.read: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def start(self, sources: PackedText) -> TableState:
        self.started.append([sources[row] for row in range(len(sources))])
        return TableState(tuple((tuple(source), ()) for source in self.started[-1]))

    def step(self, words: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        rows = tuple(
            (source, (*history, word))
            for (source, history), word in zip(state.rows, words.tolist(), strict=True)
        )
        self.read += rows
        return torch.tensor([self.logits(*row) for row in rows]), TableState(rows)

    def logits(self, source: Sequence[int], history: Sequence[int]) -> list[float]:
        drawn = numpy.random.default_rng([*source, 99, *history]).normal(size=VOCABULARY)
        return [float(each) for each in drawn]

    def attention(self, state: TableState) -> None:
        return None


@pytest.mark.parametrize("longest", [1024, 3])
def test_nothing_is_computed_twice_or_in_vain(longest: int) -> None:
    """No row goes on behind its EOS, and a source is read once a batch, in falling length."""
    scorer = CountingScorer()
    found = forced_scores(scorer, SOURCES, TARGETS, first_word=BOS, batch_size=64, longest=longest)
    needed = []
    for source, target, gained in zip(SOURCES, TARGETS, found, strict=True):
        histories = [(BOS, *target[:step]) for step in range(len(target) + 1)]
        needed += [(tuple(source), history) for history in histories]
        for history, word, value in zip(histories, [*target, EOS], gained, strict=True):
            logits = scorer.logits(source, history)
            assert value == pytest.approx(
                logits[word] - math.log(sum(map(math.exp, logits))), abs=1e-5
            )
    assert sorted(scorer.read) == sorted(needed)
    long = [[source] for source in SOURCES if len(source) > longest]
    assert sorted(scorer.started[:-1]) == sorted(long)
    rest = {tuple(source) for source in SOURCES if len(source) <= longest}
    assert {tuple(source) for source in scorer.started[-1]} == rest
    lengths = [len(source) for source in scorer.started[-1]]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == len(rest)


def test_batches_hold_as_many_as_asked() -> None:
    scorer = CountingScorer()
    how = {"first_word": BOS, "longest": 4}
    sources = [[word] * word for word in range(1, 6)]
    forced_scores(scorer, sources, sources, batch_size=3, **how)
    assert [[len(source) for source in batch] for batch in scorer.started] == [[5], [4, 3, 2], [1]]


# --- models and commands ---------------------------------------------------------------------

LINES = ["one two three", "", "ten", "seven seven two nine", "four zwölf", "six five"]
OTHERS = ["trois deux un", "", "dix", "neuf deux", "", "cinq six onze dix dix dix"]


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, prepared: Prepared
) -> list[Path]:
    """Two model files of the same words, with wide weights."""
    folder = tmp_path_factory.mktemp("models")
    tokenizers = prepared.source_tokenizer, prepared.target_tokenizer
    for seed in (4, 5):
        model = wide_model(recipe, tokenizers, seed)
        save_model(folder / f"{seed}.safetensors", model, recipe, tokenizers, {})
    return sorted(folder.iterdir())


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def s2s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command in `tmp_path`, without a process of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path) -> Done:
        with pytest.raises(SystemExit) as ended:
            app(list(map(str, arguments)))
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capfd.readouterr())

    return command


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def numbers(text: str) -> list[float]:
    return [float(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("members", "mean"), [(1, "probabilities"), (2, "probabilities"), (2, "log-probabilities")]
)
def test_the_score_of_a_translation_is_its_search_score(
    s2s: Command, tmp_path: Path, models: list[Path], members: int, mean: str
) -> None:
    """All that a beam of 4 finds, on the same pieces; the blank line's is 0."""
    which = [word for path in models[:members] for word in ("-m", path)]
    which += [f"--set=search.ensemble={mean}", "--set=search.word_scores=true"]
    write(tmp_path / "in", LINES)
    how = ["-b", "4", "--n-best", "4", "--format", "jsonl", "-i", "in", "-o", "found"]
    assert s2s("translate", *which, *how).code == 0
    done = s2s("score", *which, "--input-format", "jsonl", "--format", "jsonl", "-i", "found")
    assert (done.code, done.err) == (0, "")
    texts = s2s("score", *which, "--input-format", "jsonl", "-i", "found").out.splitlines()
    found = [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()]
    scored = [json.loads(line) for line in done.out.splitlines()]
    assert sum(len(one["translations"]) for one in found) == 4 * (len(LINES) - 1) + 1
    for one, other, text in zip(found, scored, texts, strict=True):
        assert (one["line"], one["source"]) == (other["line"], other["source"])
        wanted = [each["log_probability"] for each in one["translations"]]
        assert [each["log_probability"] for each in other["translations"]] == pytest.approx(
            wanted, abs=1e-4
        )
        assert [float(each) for each in text.split("\t")] == pytest.approx(wanted, abs=1e-4)
        for each, again in zip(one["translations"], other["translations"], strict=True):
            assert (each["text"], each["pieces"]) == (again["text"], again["pieces"])
            words = len(again["pieces"]) + 1 if one["source"] else 0
            assert len(again["word_log_probabilities"]) == words
            told = each["word_log_probabilities"]
            assert again["word_log_probabilities"] == pytest.approx(told, abs=1e-4)
            assert sum(again["word_log_probabilities"]) == pytest.approx(again["log_probability"])


def test_an_ensemble_is_the_mean_of_probabilities(models: list[Path]) -> None:
    """Word by word: each member has read the same words before."""
    one, other = (Translator.load(path, device="cpu").score(LINES, OTHERS) for path in models)
    both = Translator.load(*models, device="cpu").score(LINES, OTHERS)
    for left, right, joined in zip(one, other, both, strict=True):
        mean = [
            math.log((math.exp(a) + math.exp(b)) / 2)
            for a, b in zip(left.word_log_probabilities, right.word_log_probabilities, strict=True)
        ]
        assert joined.word_log_probabilities == pytest.approx(mean, abs=1e-5)
        assert joined.pieces == left.pieces


def test_text_and_its_pieces_are_the_same_target(models: list[Path]) -> None:
    """What is no word has no piece but <unk>."""
    translator = Translator.load(models[0], device="cpu")
    expected = translator.score(LINES, OTHERS)
    assert expected[5].pieces == ("cinq", "six", "<unk>", "dix", "dix", "dix")
    assert translator.score(LINES, [one.pieces for one in expected]) == expected
    for strange in ("zwölf", "</s>"):
        with pytest.raises(DataError, match=f"line 7: '{strange}'"):
            translator.score(["one"], [["dix", strange]], [7])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_products_may_be_of_lower_precision(
    s2s: Command, tmp_path: Path, models: list[Path], precision: str
) -> None:
    write(tmp_path / "a", LINES)
    write(tmp_path / "b", OTHERS)
    exact, rounded = (
        numbers(s2s("score", "-m", models[0], "a", "b", "--precision", name).out)
        for name in ("fp32", precision)
    )
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.1)


def test_blank_sides(models: list[Path]) -> None:
    """Both blank: nothing is asked, as of the translation of a blank line."""
    member = load_model(models[0], torch.device("cpu"))
    translator = Translator([member])
    blank, no_target, no_source = translator.score([" \t", "one two", "\u2028"], ["", "  ", "dix"])
    assert (blank, blank.log_probability) == (Scored((), ()), 0.0)
    assert no_target.pieces == ()
    assert no_source.pieces == ("dix",)
    ids = member.source_tokenizer.encode(["one two"])
    dix = member.target_tokenizer.encode(["dix"])
    scorer = ModelScorer(member.model, reverse=True)
    expected = forced_scores(
        scorer, [*ids, []], [[], *dix], first_word=EOS, batch_size=1, longest=9
    )
    found = [list(one.word_log_probabilities) for one in (no_target, no_source)]
    assert found == [pytest.approx(each, abs=1e-5) for each in expected]


def test_white_space_is_blank_for_every_tokenizer(models: list[Path]) -> None:
    """For one of characters, too, which could take it for text."""

    class Letters(WordTokenizer):
        def encode(self, lines: Sequence[str]) -> list[list[int]]:
            return [[3] * len(line) for line in lines]

    letters = Letters(["a"] * 10, "whitespace", "en")
    member = load_model(models[0], torch.device("cpu"))
    member = replace(member, source_tokenizer=letters, target_tokenizer=letters)
    found = Translator([member]).score([" ", "b", "bb"], ["\t\u3000", " ", "b "])
    assert [len(one.word_log_probabilities) for one in found] == [0, 1, 3]


def test_a_long_source_is_scored_whole(s2s: Command, tmp_path: Path, models: list[Path]) -> None:
    write(tmp_path / "a", ["one", "one two three four", "", "two two", "one two three"])
    write(tmp_path / "b", ["un", "deux", "", "trois", "cinq"])
    expected = s2s("score", "-m", models[0], "a", "b")
    assert expected.err == ""
    done = s2s("score", "-m", models[0], "a", "b", "--set", "search.max_source=2")
    assert numbers(done.out) == pytest.approx(numbers(expected.out), abs=2e-5)
    told = done.err.splitlines()
    assert [line.partition(" pieces")[0] for line in told] == [
        "warning: line 2 has 4",
        "warning: line 5 has 3",
    ]
    assert all("search.max_source = 2" in line for line in told)


def test_the_perplexity_is_the_trainers(
    s2s: Command, tmp_path: Path, recipe_file: Path, corpus: Path
) -> None:
    """On the validation pairs, from a file a side, from columns and from objects."""
    changes = ["--set", "training.max_updates=4", "--set", "evaluation.metrics=[]"]
    assert s2s("train", "-q", "-r", recipe_file, *changes).code == 0
    log = [json.loads(line) for line in Path("runs/tiny/log.jsonl").read_text().splitlines()]
    (validated,) = [event for event in log if event["event"] == "validated"]
    files = corpus / "validation.source", corpus / "validation.target"
    pairs = list(zip(*(file.read_text().splitlines() for file in files), strict=True))
    write(tmp_path / "tsv", [f"{source}\t{target}" for source, target in pairs])
    keys = ("source", "target")
    write(tmp_path / "objects", [json.dumps(dict(zip(keys, pair, strict=True))) for pair in pairs])
    ways: list[list[str | Path]] = [
        list(files),
        ["-i", "tsv"],
        ["-i", "objects", "--input-format", "jsonl", "--batch-size", "1"],
    ]
    for way in ways:
        done = s2s("score", "-q", "--perplexity", *way)
        assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
        assert float(done.out) == pytest.approx(validated["perplexity"], rel=1e-5)


# --- what goes in and out --------------------------------------------------------------------


def test_formats_agree_and_keep_the_count(s2s: Command, tmp_path: Path, models: list[Path]) -> None:
    """Two files, one of them .gz; the third column of a TSV is nobody's."""
    expected = Translator.load(models[0], device="cpu").score(LINES, OTHERS)
    write(tmp_path / "a", LINES)
    (tmp_path / "b.gz").write_bytes(gzip.compress("\n".join(OTHERS).encode()))
    rows = [f"{source}\t{target}\tx" for source, target in zip(LINES, OTHERS, strict=True)]
    rows[1] = ""
    write(tmp_path / "tsv", rows)
    for way in (["a", "b.gz"], ["-i", "tsv"], ["-i", "tsv", "--batch-size", "2"]):
        found = {
            form: s2s("score", "-m", models[0], *way, "--format", form, "-o", "out")
            and (tmp_path / "out").read_text()
            for form in FORMATS
        }
        totals = [one.log_probability for one in expected]
        assert numbers(found["text"]) == pytest.approx(totals, abs=2e-5)
        table = [line.split("\t") for line in found["tsv"].splitlines()]
        objects = [json.loads(line) for line in found["jsonl"].splitlines()]
        for number, (row, facts, one) in enumerate(zip(table, objects, expected, strict=True), 1):
            assert int(row[0]) == facts["line"] == number
            assert (facts["source"], facts["target"]) == (LINES[number - 1], OTHERS[number - 1])
            assert facts["pieces"] == list(one.pieces)
            assert row[2].split() == [*one.pieces, *(["</s>"] if LINES[number - 1] else [])]
            gained = pytest.approx(one.word_log_probabilities, abs=2e-5)
            assert [float(each) for each in row[3].split()] == gained
            assert facts["word_log_probabilities"] == gained
            assert float(row[1]) == pytest.approx(one.log_probability, abs=2e-5)
            assert facts["log_probability"] == pytest.approx(one.log_probability, abs=2e-5)


odd = st.text(
    st.one_of(
        st.sampled_from("\r\x0b\x0c\x1c\x85\u2028\u2029\0\t\u00a0\ufeff\u202e\U0001f600ab "),
        st.characters(exclude_characters="\n", exclude_categories=("Cs",)),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(odd, odd), min_size=1, max_size=9),
    pieces=st.lists(odd.filter(bool), max_size=5),
    most=st.integers(1, 4),
)
def test_hostile_lines_are_read_and_written_as_they_are(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[str, str]],
    pieces: list[str],
    most: int,
) -> None:
    """Pieces may be line breaks and tabs; what is written has as many lines and columns as ever."""
    folder = tmp_path_factory.mktemp("odd")
    sides = [[side.removesuffix("\r") for side in each] for each in zip(*pairs, strict=True)]
    for side in sides:
        side[0] = side[0].removeprefix("\ufeff")
    a, b = (write(folder / name, side) for name, side in zip("ab", sides, strict=True))
    cases = list(itertools.chain(*from_files(str(a), str(b), first=1, most=most, invalid="error")))
    expected = [
        Case(number, source, (target,), (target,))
        for number, (source, target) in enumerate(zip(*sides, strict=True), 1)
    ]
    assert cases == expected
    objects = [json.dumps({"source": case.source, "target": case.texts[0]}) for case in cases]
    path = str(write(folder / "objects", objects))
    found = from_lines(path, "jsonl", first=1, most=most, invalid="error")
    assert list(itertools.chain(*found)) == expected
    one = Scored(tuple(pieces), (-1.5,) * (len(pieces) + 1))
    for case in cases:
        for form, write_case in FORMATS.items():
            line = write_case(case, [one])
            assert line.endswith("\n")
            assert len(line.splitlines()) == line.count("\n") == 1, form
        columns = FORMATS["tsv"](case, [one]).removesuffix("\n").split("\t")
        assert [len(column.split()) for column in columns] == [1, 1, *[len(pieces) + 1] * 2]
        facts = json.loads(FORMATS["jsonl"](case, [one]))
        assert (facts["source"], facts["target"]) == (case.source, case.texts[0])
        assert facts["pieces"] == list(one.pieces)


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (b"one\ntwo\nten\n", b"un\ndeux\n", "b ends after line 2, a goes on"),
        (b"one\ntwo\n", b"un\ndeux\n\n", "a ends after line 2, b goes on"),
        (b"one\ntwo\nten\n", b"un\ndeux\n\xff\n", "b, line 3: not UTF-8"),
        (b"one\ntwo\nt\xffn\n", b"un\ndeux\ndix\n", "a, line 3: not UTF-8"),
    ],
)
def test_files_that_do_not_fit_are_told_apart(
    s2s: Command, tmp_path: Path, models: list[Path], left: bytes, right: bytes, said: str
) -> None:
    """What comes before is scored; a perplexity is not."""
    (tmp_path / "a").write_bytes(left)
    (tmp_path / "b").write_bytes(right)
    done = s2s("score", "-m", models[0], "a", "b")
    assert done.code == 1
    assert f"error: {said}" in done.err
    assert len(numbers(done.out)) == 2
    whole = s2s("score", "-m", models[0], "a", "b", "--perplexity")
    assert (whole.code, whole.out, whole.err) == (1, "", done.err)


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    """The end may never come: here a writer of the pipe holds it open."""
    write(tmp_path / "a", ["one", "two"])
    os.mkfifo(tmp_path / "b")
    pipe = os.open(tmp_path / "b", os.O_RDWR)
    guard = threading.Timer(PATIENCE, os.close, (pipe,))
    guard.start()
    os.write(pipe, b"un\ndeux\ntrois\n")
    paths = str(tmp_path / "a"), str(tmp_path / "b")
    groups = from_files(*paths, first=1, most=1, invalid="error")
    assert sum(len(next(groups)) for _ in range(2)) == 2
    with pytest.raises(DataError, match="a ends after line 2"):
        next(groups)
    assert guard.is_alive()
    guard.cancel()
    os.close(pipe)


MISTAKES: dict[str, tuple[list[str], str, int, str]] = {
    "one file": (["a"], "", 2, "TARGET"),
    "files and an input": (["a", "a", "-i", "in"], "", 2, "two files"),
    "files and objects": (["a", "a", "--input-format", "jsonl"], "", 2, "two files"),
    "stdin twice": (["-", "-"], "", 2, "only once"),
    "perplexity as an object": (["--perplexity", "--format", "jsonl"], "", 2, "--perplexity"),
    "another table": (["-i", "in", "--set", "model.x=1"], "one\tun", 1, "[search]"),
    "no tab": (["-i", "in"], "one\tun\none", 1, "in, line 2: there is no tab"),
    "no batch": (["-i", "in", "--batch-size", "0"], "", 2, "--batch-size"),
    "no file": (["-i", "nowhere"], "", 1, "cannot read nowhere"),
    "nothing at all": (["-i", "in", "--perplexity"], " \t\n\n", 1, "blank"),
    **{
        name: (["-i", "in", "--input-format", "jsonl"], f'{{"source": {rest}\n', 1, said)
        for name, rest, said in (
            ("half an object", '"one"', "in, line 1: it is not JSON"),
            ("deep", "[" * 100_000, "it is not JSON"),
            ("no target", '"one"}', "translate --format jsonl"),
            ("a number", '1, "target": "a"}', "translate --format jsonl"),
            ("no texts", '"one", "translations": [{}]}', "`translations`"),
            ("odd pieces", '"one", "translations": [{"pieces": [1]}]}', "list of strings"),
            ("unknown", '"one", "translations": [{"pieces": ["x"]}]}', "line 1: 'x' is no piece"),
            ("surrogate", '"\\ud800", "target": "a"}', "line 1: half a character"),
        )
    },
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(
    s2s: Command,
    tmp_path: Path,
    models: list[Path],
    mistake: tuple[list[str], str, int, str],
) -> None:
    how, text, code, said = mistake
    (tmp_path / "in").write_text(text)
    done = s2s("score", "-m", models[0], *how)
    assert done.code == code
    assert said in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert done.out.count("\n") == (text.count("\n") if "no tab" in said else 0)


def test_half_a_character_can_be_replaced(s2s: Command, tmp_path: Path, models: list[Path]) -> None:
    (tmp_path / "in").write_text('{"source": "one \\ud800 \\ud83d\\ude00", "target": "un"}\n')
    how = ["-i", "in", "--input-format", "jsonl", "--format", "jsonl", "--invalid", "replace"]
    done = s2s("score", "-m", models[0], *how)
    assert json.loads(done.out)["source"] == "one \ufffd \U0001f600"


def test_an_object_without_translations_keeps_its_line(
    s2s: Command, tmp_path: Path, models: list[Path]
) -> None:
    lines = ['{"source": "one", "translations": []}', "", '{"source": "", "target": ""}']
    write(tmp_path / "in", lines)
    how = ["-m", models[0], "-i", "in", "--input-format", "jsonl"]
    assert s2s("score", *how).out == "\n0.000000\n0.000000\n"
    assert [line.count("[]") for line in s2s("score", *how, "--format", "jsonl").out.splitlines()]


class Typed(io.FileIO):
    """A file that is taken for a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_person_is_told_that_it_waits(
    s2s: Command, tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it reads what they type, and nowhere else."""
    write(tmp_path / "a", ["one\tun"])
    for how, waits in (
        ([], True),
        (["-q"], False),
        (["-", "a"], True),
        (["a", "-"], True),
        (["a", "a"], False),
        (["-i", "a"], False),
    ):
        with Typed(str(tmp_path / "a")) as typed:
            monkeypatch.setattr(sys, "stdin", typed)
            done = s2s("score", "-m", models[0], *how)
        assert done.code == 0
        assert ("terminal; Ctrl-D" in done.err) == waits
        assert len(numbers(done.out)) == 1


@contextlib.contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose streams are pipes."""
    hidden = ("PYTHONUNBUFFERED", "S2S_MODEL")
    with subprocess.Popen(
        [sys.executable, "-m", "s2s_cli", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name not in hidden},
    ) as process:
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def test_answers_come_at_once_and_a_closed_pipe_ends_it(tmp_path: Path, models: list[Path]) -> None:
    """The writer waits for each answer; then the reader has seen enough, as `| head` has.

    The other side is a file, all of which is there from the beginning.
    """
    sources, targets = ["one two", "ten"], ["deux un", "dix"]
    expected = Translator.load(models[0], device="cpu").score(sources, targets)
    write(tmp_path / "b", [*targets, *targets])
    with started("score", "-m", models[0], "-", tmp_path / "b") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for source, one in zip(sources, expected, strict=True):
            process.stdin.write(f"{source}\n".encode())
            process.stdin.flush()
            assert float(process.stdout.readline()) == pytest.approx(one.log_probability, abs=2e-5)
        process.stdout.close()
        process.stdin.write(b"one\n")
        process.stdin.flush()
        process.wait()
        assert (process.returncode, process.stderr.read()) == (0, b"")
