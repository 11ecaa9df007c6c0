"""N lines in, N lines out: in order, blank for blank, as they come, whatever they hold."""

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import wide_model
from hypothesis import given, settings
from hypothesis import strategies as st

from s2s_cli.app import app
from s2s_cli.commands.translation_formats import FORMATS
from s2s_cli.core.checkpoint import load_model, save_model
from s2s_cli.core.corpus import LineGroups, read_lines
from s2s_cli.core.errors import DataError
from s2s_cli.core.prepared import prepare
from s2s_cli.core.recipe import load
from s2s_cli.core.translator import Translation, Translator
from s2s_cli.core.translator.translation import joined

# What ends a line for str.splitlines, and for us does not.
BREAKS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
# NUL, a byte order mark, spaces of all kinds, joiners, combining marks, emoji, right to left.
ODD = "\0\t \u00a0\u3000\u200b\u200d\ufeff\u0301\u05d0\u0627\u202e\U0001f600\U0001f468\ufffd"
PLAIN = "one two three four five six seven eight nine ten"
# Output that Python does not hold back would hide one that nobody flushes.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONUNBUFFERED", "S2S_MODEL", "FORCE_COLOR")
}
PATIENCE = 300  # seconds, after which a command that hangs is a failure

characters = st.one_of(
    st.sampled_from(BREAKS + ODD),
    st.sampled_from("abcdefghijklmnopqrstuvwxyz "),
    st.characters(exclude_characters="\n", exclude_categories=("Cs",)),
)
line = st.one_of(
    st.text(characters, max_size=12),
    st.lists(st.sampled_from(PLAIN.split()), max_size=5).map(" ".join),
    st.sampled_from(["", " ", "\u2028", "\t\x0b", "\u3000\x85"]),
)
stream = st.one_of(
    st.lists(line.map(str.encode), max_size=12).map(b"\n".join),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\xef\xbb\xbf", b"\r", b"ab", b" ", b"\xc3\xa9"]))
    .map(b"".join),
)  # fmt: skip
broken = st.lists(
    st.sampled_from([b"\n", b"\n", b"\r", b"ab", b"\xff", b"\xc3", b"\xe2\x80", b"\xef\xbb\xbf"])
).map(b"".join)


def read(data: bytes) -> list[bytes]:
    """What the lines of `data` are, by the contract."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    lines = [each.removesuffix(b"\r") for each in lines]
    return [lines[0].removeprefix(b"\xef\xbb\xbf"), *lines[1:]] if lines else []


def holds_a_break(text: str) -> bool:
    return f"{text}.".splitlines() != [f"{text}."]


# --- models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> dict[str, Path]:
    """A model of words, and one of characters whose translations are full of line breaks.

    Their weights are so wide that sentences get different translations.
    """
    folder = tmp_path_factory.mktemp("models")
    found = {}
    alphabet = "".join(sorted(set(PLAIN + BREAKS + ODD) - {"\0"}))
    (folder / "odd").write_bytes(f"{alphabet}\n{PLAIN}\n{BREAKS * 9}\n".encode())
    char = '{kind="char", vocabulary=999, normalization="identity"}'
    changes = {
        "words": ["search.max_source=5"],
        "characters": [
            f'data.train={{kind="text", source="{folder}/odd", target="{folder}/odd"}}',
            f'tokenizer={{kind="shared", model={char}}}',
            "search.max_source=100",
            "search.max_length_ratio=0.5",
        ],
    }
    for kind, made in changes.items():
        recipe = load(str(recipe_file), made)
        corpus = prepare(recipe, folder / f"{kind}-corpus")
        tokenizers = corpus.source_tokenizer, corpus.target_tokenizer
        model = wide_model(recipe, tokenizers, 4)
        found[kind] = folder / f"{kind}.safetensors"
        save_model(found[kind], model, recipe, tokenizers, {})
    return found


Make = Callable[..., Translator]


@pytest.fixture(scope="module")
def translator(models: dict[str, Path]) -> Make:
    """Makes a translator of a kind, with some keys of its search changed."""
    loaded = {kind: load_model(path, torch.device("cpu")) for kind, path in models.items()}

    def make(kind: str, **changes: int) -> Translator:
        changed = loaded[kind].recipe.search.model_copy(update=changes)
        return Translator([loaded[kind]], changed, warn=lambda _message: None)

    return make


@contextlib.contextmanager
def killed_if_it_hangs(process: subprocess.Popen[bytes]) -> Iterator[None]:
    guard = threading.Timer(PATIENCE, process.kill)
    guard.start()
    try:
        yield
    finally:
        guard.cancel()


def translate_command(*arguments: str | Path) -> int:
    """The exit code of `s2s translate`, without a process of its own."""
    with pytest.raises(SystemExit) as ended:
        app(["translate", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


# --- whatever the lines hold -----------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("kind", ["words", "characters"])
def test_lines_are_translated_one_for_one(translator: Make, kind: str, beam_size: int) -> None:
    """And as they would be alone, whatever the size of a batch."""
    alone = translator(kind, beam_size=beam_size, batch_size=1)
    together = [translator(kind, beam_size=beam_size, batch_size=size) for size in (2, 64)]

    @settings(max_examples=25, deadline=None)
    @given(lines=st.lists(line, max_size=5))
    def check(lines: list[str]) -> None:
        expected = [alone.translate([each])[0] for each in lines]
        for some in together:
            assert some.translate(lines) == expected
        for source, text in zip(lines, expected, strict=True):
            assert source.strip() or text == ""
            assert not holds_a_break(text)

    check()


def test_the_models_could_go_wrong(translator: Make) -> None:
    """Or the tests here say little: sentences differ, and characters may be line breaks."""
    lines = [*PLAIN.split(), "one two three", "five six", "ten nine ten nine"]
    for kind, beam_size in itertools.product(["words", "characters"], [1, 3]):
        found = translator(kind, beam_size=beam_size).n_best(lines, 1)
        assert len({best[0].text for best in found}) > len(lines) // 2
        pieces = {piece for best in found for piece in best[0].pieces}
        assert (kind == "characters") == bool(pieces & set(BREAKS))


def test_no_line_break_that_a_model_says_comes_out(models: dict[str, Path]) -> None:
    """A bias makes it say nothing else."""
    loaded = load_model(models["characters"], torch.device("cpu"))
    bias = loaded.model.decoder.output.bias
    for character in BREAKS:
        piece = loaded.target_tokenizer.encode([f"a{character}a"])[0][-2]
        with torch.no_grad():
            bias.zero_()
            bias[piece] = 1e4
        found = Translator([loaded]).n_best(["one"], 1)[0][0]
        assert set(found.pieces) == {character}
        assert found.text
        assert not holds_a_break(found.text)


@settings(max_examples=60, deadline=None)
@given(
    source=line,
    texts=st.lists(
        line.map(lambda text: "".join(" " if c in BREAKS else c for c in text)), min_size=1
    ),
    number=st.integers(1, 10**6),
)
def test_every_format_keeps_the_lines_apart(source: str, texts: list[str], number: int) -> None:
    """Of a text without line breaks, as the translator gives it; the source may have some."""
    best = [
        Translation(text, -rank / 7, -rank / 3, (*BREAKS, *text)) for rank, text in enumerate(texts)
    ]
    lines = {"text": 1, "jsonl": 1, "tsv": len(best), "moses": len(best)}
    for name, count in lines.items():
        written = FORMATS[name](number, source, best)
        assert written.endswith("\n")
        assert len(written.splitlines()) == written.count("\n") == count
    rows = [row.split("\t") for row in FORMATS["tsv"](number, source, best).splitlines()]
    assert [row[:2] for row in rows] == [[str(number), str(rank + 1)] for rank in range(len(best))]
    assert [row[3:] for row in rows] == [[text.replace("\t", " ")] for text in texts]
    facts = json.loads(FORMATS["jsonl"](number, source, best))
    assert (facts["line"], facts["source"]) == (number, source)
    assert [one["text"] for one in facts["translations"]] == texts
    assert [one["pieces"] for one in facts["translations"]] == [[*BREAKS, *text] for text in texts]


# --- how lines are read ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def test_only_a_newline_ends_a_line(scratch: Path) -> None:
    @settings(max_examples=100, deadline=None)
    @given(data=stream)
    def check(data: bytes) -> None:
        (scratch / "in").write_bytes(data)
        path = str(scratch / "in")
        expected = [each.decode() for each in read(data)]
        groups = list(LineGroups(path, first=2, most=4))
        assert list(itertools.chain.from_iterable(groups)) == expected
        assert all(1 <= len(group) <= 4 for group in groups)
        assert list(read_lines(path)) == expected

    check()


def test_the_first_line_that_is_not_utf8_ends_the_reading(scratch: Path) -> None:
    """The lines before it come first; replaced, it is a line like the others."""

    @settings(max_examples=100, deadline=None)
    @given(data=broken)
    def check(data: bytes) -> None:
        (scratch / "in").write_bytes(data)
        path = str(scratch / "in")
        raw = read(data)
        replaced = LineGroups(path, first=1, most=2, invalid="replace")
        texts = [each.decode(errors="replace") for each in raw]
        assert list(itertools.chain.from_iterable(replaced)) == texts
        good = list(itertools.takewhile(is_utf8, raw))
        found: list[str] = []
        said = ""
        try:
            for group in LineGroups(path, first=1, most=3):
                found.extend(group)
        except DataError as error:
            said = str(error)
        assert found == [each.decode() for each in good]
        assert bool(said) == (len(good) < len(raw))
        assert not said or said.startswith(f"{path}, line {len(good) + 1}: not UTF-8")

    check()


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- the command -----------------------------------------------------------------------------


def test_any_stream_keeps_its_count(models: dict[str, Path], scratch: Path) -> None:
    paths = ["-i", scratch / "in", "-o", scratch / "out"]

    @settings(max_examples=25, deadline=None)
    @given(data=st.one_of(stream, broken), batch_size=st.integers(1, 5))
    def check(data: bytes, batch_size: int) -> None:
        (scratch / "in").write_bytes(data)
        how = ["--invalid", "replace", "-b", "1", "--batch-size", str(batch_size)]
        assert translate_command("-m", models["characters"], *paths, *how) == 0
        found = (scratch / "out").read_bytes().decode().split("\n")
        assert found.pop() == ""
        sources = [raw.decode(errors="replace") for raw in read(data)]
        for source, text in zip(sources, found, strict=True):
            assert source.strip() or text == ""
            assert not holds_a_break(text)

    check()


def some_lines(count: int) -> list[str]:
    """Lines of all kinds, every fourth of them blank, some far too long."""
    generator = random.Random(7)
    lines = []
    for number in range(count):
        length = generator.choice([1, 3, 9, 30]) if number % 50 else 321
        odd = "".join(generator.choices(PLAIN + BREAKS + ODD, k=length))
        blank = "".join(generator.choices(" \t\u2028\x1c", k=number % 3))
        lines.append(blank if number % 4 == 1 else odd.strip("\r\ufeff"))
    return lines


def test_the_process_gives_what_python_gives(models: dict[str, Path], translator: Make) -> None:
    """Through pipes, and without a newline after the last line."""
    lines = some_lines(200)
    assert sum(not each.strip() for each in lines) >= 50
    command = [sys.executable, "-m", "s2s_cli", "translate", "-m", str(models["characters"])]
    done = subprocess.run(
        [*command, "--batch-size", "7"],
        input="\n".join(lines).encode(),
        capture_output=True,
        env=CLEAN,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0
    found = done.stdout.decode().split("\n")
    assert found.pop() == ""
    assert found == translator("characters", batch_size=64).translate(lines)
    for source, text in zip(lines, found, strict=True):
        assert source.strip() or text == ""
        assert not holds_a_break(text)
    warned = done.stderr.decode().splitlines()
    assert [each.split()[:3] for each in warned] == [
        ["warning:", "line", str(number)] for number in (1, 51, 101, 151)
    ]


@pytest.mark.parametrize("form", ["tsv", "jsonl", "moses"])
def test_every_line_has_its_number(models: dict[str, Path], scratch: Path, form: str) -> None:
    """Counted on from group to group."""
    lines = ["one", "", "two three", "\u2028"] * 50
    (scratch / "in").write_text("".join(f"{each}\n" for each in lines))
    how = ["-i", scratch / "in", "-o", scratch / "out", "-b", "2", "--n-best", "2"]
    assert translate_command("-m", models["words"], *how, "--format", form) == 0
    found = (scratch / "out").read_text().splitlines()
    numbers = [
        json.loads(each)["line"] if form == "jsonl" else int(each.split()[0]) for each in found
    ]
    first = 0 if form == "moses" else 1
    assert sorted(set(numbers)) == list(range(first, first + len(lines)))
    assert numbers == sorted(numbers)
    many = 1 if form == "jsonl" else 2
    assert [numbers.count(number) for number in range(first, first + 4)] == [many, 1, many, 1]


def test_an_over_long_line_is_translated_in_parts(
    models: dict[str, Path], translator: Make, scratch: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`search.max_source` is 5 there. The line's number counts the blank ones, and all groups."""
    words = PLAIN.split()[:7] * 2
    lines = ["one", ""] * 40
    lines[70] = " ".join(words)
    lines[72] = " ".join(words[:5])  # as long as may be
    (scratch / "in").write_text("".join(f"{each}\n" for each in lines))
    paths = ["-i", scratch / "in", "-o", scratch / "out"]
    assert translate_command("-m", models["words"], *paths) == 0
    parts = [" ".join(words[start : start + 5]) for start in (0, 5, 10)]
    plain = translator("words").translate
    expected = plain([each if place != 70 else "" for place, each in enumerate(lines)])
    expected[70] = " ".join(part for part in plain(parts) if part)
    assert (scratch / "out").read_text().split("\n") == [*expected, ""]
    warned = capfd.readouterr().err.splitlines()
    assert len(warned) == 1
    assert warned[0].startswith("warning: line 71 has 14 pieces")
    assert "search.max_source = 5" in warned[0]
    assert "3 parts" in warned[0]


def test_a_part_that_comes_out_empty_leaves_no_space() -> None:
    parts = [
        [Translation(text, -1.0, -2.0, tuple(text)), Translation("z", -3.0, -4.0, ("z",))]
        for text in ("", "a", "", "b", "")
    ]
    best, second = joined(parts)
    assert best == Translation("a b", -5.0, -10.0, ("a", "b"))
    assert second == Translation("z z z z z", -15.0, -20.0, ("z",) * 5)


def test_bytes_that_are_not_utf8_end_the_command(models: dict[str, Path], translator: Make) -> None:
    """With the lines before them translated."""
    command = [sys.executable, "-m", "s2s_cli", "translate", "-m", str(models["words"])]
    data = b"one two\n\nten\nzw\xf6lf one\nten\n"
    done = subprocess.run(
        command, input=data, capture_output=True, env=CLEAN, timeout=PATIENCE, check=False
    )
    expected = translator("words").translate(["one two", "", "ten"])
    assert done.returncode == 1
    assert done.stdout.decode() == "".join(f"{each}\n" for each in expected)
    told = done.stderr.decode().splitlines()
    assert told[0].startswith("error: stdin, line 4: not UTF-8 at byte 3")
    assert len(told) == 2


def test_bytes_that_are_not_utf8_can_be_replaced(
    models: dict[str, Path], translator: Make, scratch: Path
) -> None:
    (scratch / "in").write_bytes(b"one two\nzw\xf6lf one\nten\n")
    paths = ["-i", scratch / "in", "-o", scratch / "out"]
    assert translate_command("-m", models["characters"], *paths) == 1
    assert translate_command("-m", models["characters"], *paths, "--invalid", "replace") == 0
    expected = translator("characters").translate(["one two", "zw\ufffdlf one", "ten"])
    assert (scratch / "out").read_text() == "".join(f"{each}\n" for each in expected)


@pytest.mark.parametrize("way", ["stdin", "fifo"])
def test_answers_come_before_the_input_ends(
    models: dict[str, Path], translator: Make, tmp_path: Path, way: str
) -> None:
    """The writer waits for each answer before it says more. What hangs is killed, and fails."""
    command = [sys.executable, "-m", "s2s_cli", "translate", "-m", str(models["words"])]
    if way == "fifo":
        os.mkfifo(tmp_path / "in")
        command += ["-i", str(tmp_path / "in")]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=CLEAN
        ) as process,
        killed_if_it_hangs(process),
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        # Opened for reading too, so that it does not wait for a reader that has died.
        where = process.stdin.fileno()
        if way == "fifo":
            where = os.open(tmp_path / "in", os.O_RDWR)
        for said in (["one two"], ["", "three"], ["four", "five six"]):
            os.write(where, "".join(f"{each}\n" for each in said).encode())
            found = [process.stdout.readline().decode() for _ in said]
            assert found == [f"{each}\n" for each in translator("words").translate(said)]
        process.stdin.close()
        if way == "stdin":
            assert process.wait() == 0
        else:
            process.kill()
            os.close(where)
