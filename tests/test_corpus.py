"""Lines and pairs from outside, against plain `bytes.split` and lists made by hand."""

import gzip
import importlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from s2s_cli.core.corpus import LineGroups, read_lines, read_pairs
from s2s_cli.core.errors import DataError
from s2s_cli.core.recipe.schema import HubDataset, TextFiles, TsvFile

# A busy machine is no mistake.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Everything that some library somewhere takes for the end of a line, and letters around it.
BREAKS = "\r\n\x0b\x0c\x1c\x1d\x1e\u0085\u2028\u2029"
TEXTS = st.text(BREAKS + "\n\nab é\ufeff", max_size=60)


def expected_lines(data: bytes) -> list[str]:
    """The contract in its own words: LF ends a line, a CR before it goes, a BOM at the top too."""
    parts = data.split(b"\n")
    if parts[-1] == b"":
        parts.pop()
    if parts and parts[0].startswith(b"\xef\xbb\xbf"):
        parts[0] = parts[0][3:]
    return [(part[:-1] if part.endswith(b"\r") else part).decode() for part in parts]


def write(path: Path, data: str | bytes) -> str:
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def text_files(folder: Path, source: str | bytes, target: str | bytes, **more: Any) -> TextFiles:
    return TextFiles(
        kind="text",
        source=write(folder / "a.en", source),
        target=write(folder / "a.fr", target),
        **more,
    )


# --- lines -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@PATIENT
@given(text=TEXTS)
@example(text=f"a{BREAKS}b\r\n\r\n\n\rc\r")
@example(text="\ufeffa\n\ufeffb\n")
def test_only_lf_ends_a_line(folder: Path, text: str) -> None:
    data = text.encode()
    for name in ("text", "text.gz"):
        path = write(folder / name, data)
        assert list(read_lines(path)) == expected_lines(data)
    groups = list(LineGroups(str(folder / "text"), first=2, most=3))
    assert [line for group in groups for line in group] == expected_lines(data)


def test_crlf_and_a_byte_order_mark_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "dos", b"\xef\xbb\xbfone\r\ntwo\r\r\n\r\nlast")
    assert list(read_lines(path)) == ["one", "two\r", "", "last"]
    second = write(tmp_path / "second", b"a\n\xef\xbb\xbfb\n")
    assert list(read_lines(second)) == ["a", "\ufeffb"]


def test_dash_is_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in", b"one\ntwo\xff\n")
    with open(path, encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        lines = read_lines("-")
        assert next(lines) == "one"
        with pytest.raises(DataError, match=r"^stdin, line 2: not UTF-8 at byte 4"):
            next(lines)


@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_bytes_that_are_not_utf_8_name_file_line_and_byte(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"good\n\xc3\xa9t\xe9 la\nmore\n")
    lines = read_lines(path)
    assert next(lines) == "good"
    with pytest.raises(DataError) as caught:
        next(lines)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: not UTF-8 at byte 4: ")
    assert r"b'\xc3\xa9t\xe9 la'" in message
    assert list(read_lines(path, "replace")) == ["good", "ét\ufffd la", "more"]


@pytest.mark.parametrize("reader", [read_lines, lambda path: LineGroups(path, first=9, most=9)])
def test_files_that_cannot_be_read(tmp_path: Path, reader: Callable[[str], Iterator[Any]]) -> None:
    draw = random.Random(1)
    whole = gzip.compress("".join(draw.choices("abcdefgh\n", k=5000)).encode())
    cut = tmp_path / "cut.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    plain = tmp_path / "plain.gz"
    plain.write_bytes(b"not gzip\n")
    flipped = tmp_path / "flipped.gz"
    flipped.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])  # in the checksum
    torn = tmp_path / "torn.gz"
    torn.write_bytes(whole[:10] + bytes(255 for _ in whole[10:]))
    cases = {
        str(tmp_path / "nobody"): "cannot read .*nobody: No such file",
        str(tmp_path): "cannot read .*: Is a directory",
        str(cut): "cut.gz is not a whole gzip file",
        str(plain): "plain.gz is not a whole gzip file",
        str(flipped): "flipped.gz is not a whole gzip file",
        str(torn): "torn.gz is not a whole gzip file",
    }
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            list(reader(path))


# --- groups of lines -------------------------------------------------------------------------


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` gives; a test that would hang fails instead."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "nothing came"
    return done[0]


def test_a_slow_writers_line_comes_before_the_pipe_closes() -> None:
    reading, writing = os.pipe()
    try:
        groups = iter(LineGroups(f"/dev/fd/{reading}", first=64, most=1024))
        for line in ("one", "two", "tr\u2028ois"):
            half = len(line.encode()) // 2
            os.write(writing, line.encode()[:half])
            os.write(writing, line.encode()[half:] + b"\n")
            assert within(60, lambda: next(groups)) == [line]
        os.write(writing, b"no end of line")
        os.close(writing)
        writing = -1
        assert within(60, lambda: list(groups)) == [["no end of line"]]
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def everything_arrived(path: str, first: int, most: int) -> LineGroups:
    """Groups of a file that is read to its end already; it must have fewer than `most` lines."""
    before = set(threading.enumerate())
    groups = LineGroups(path, first=first, most=most)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    return groups


def test_groups_double_up_to_the_most(tmp_path: Path) -> None:
    lines = [str(number) for number in range(100)]
    path = write(tmp_path / "text", "\n".join(lines))
    groups = list(everything_arrived(path, 4, 128))
    assert [len(group) for group in groups] == [4, 8, 16, 32, 40]
    assert [line for group in groups for line in group] == lines


@settings(PATIENT, max_examples=20)
@given(count=st.integers(0, 60), first=st.integers(1, 5), most=st.integers(5, 9))
def test_groups_are_never_larger_than_allowed(
    folder: Path, count: int, first: int, most: int
) -> None:
    path = write(folder / "many", "".join(f"{number}\n" for number in range(count)))
    groups = list(LineGroups(path, first=first, most=most))
    assert [line for group in groups for line in group] == [str(n) for n in range(count)]
    for place, group in enumerate(groups):
        assert 1 <= len(group) <= min(first * 2**place, most)


def test_groups_stay_small_while_the_reader_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path / "text", "line\n" * 5000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the reader fills up what a group takes out
    try:
        sizes = [len(group) for group in LineGroups(path, first=1, most=4)]
    finally:
        sys.setswitchinterval(interval)
    assert sum(sizes) == 5000
    assert max(sizes) <= 4


def test_a_mistake_comes_after_the_lines_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "text", b"one\ntwo\n\xff\nfour\n")
    groups = iter(everything_arrived(path, 64, 64))
    assert next(groups) == ["one", "two"]
    with pytest.raises(DataError, match="text, line 3: not UTF-8"):
        next(groups)
    replaced = everything_arrived(path, 64, 64)
    again = LineGroups(path, first=64, most=64, invalid="replace")
    assert [line for group in again for line in group] == ["one", "two", "\ufffd", "four"]
    assert next(iter(replaced)) == ["one", "two"]


# --- pairs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sources", "targets"), [(3, 5), (5, 3), (0, 2), (1, 0), (1200, 1201)])
def test_unequal_files_tell_both_counts(tmp_path: Path, sources: int, targets: int) -> None:
    spec = text_files(tmp_path, "a\n" * sources, "b\n" * targets)
    pairs = read_pairs(spec)
    for _ in range(min(sources, targets)):
        assert next(pairs) == ("a", "b")
    with pytest.raises(DataError) as caught:
        next(pairs)
    said = f"{spec.source} has {sources:,} lines, {spec.target} has {targets:,}\n"
    assert said in str(caught.value)


def test_text_pairs_keep_blank_lines_and_strange_breaks(tmp_path: Path) -> None:
    spec = text_files(tmp_path, "a\x0cb\n\n c \n", "A\n\u2028\nC")
    assert list(read_pairs(spec)) == [("a\x0cb", "A"), ("", "\u2028"), (" c ", "C")]


def test_text_pairs_from_gzip(tmp_path: Path) -> None:
    spec = TextFiles(
        kind="text",
        source=write(tmp_path / "a.gz", "one\ntwo\n"),
        target=write(tmp_path / "b", "un\ndeux\n"),
    )
    assert list(read_pairs(spec)) == [("one", "un"), ("two", "deux")]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", '"one\t"un" x\t#1\ntwo ""\tde\'ux\nthree\t\tthird\n')
    assert list(read_pairs(TsvFile(kind="tsv", path=path))) == [
        ('"one', '"un" x'),
        ('two ""', "de'ux"),
        ("three", ""),
    ]


def test_tsv_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv.gz", "id\tun\tone\r\n2\tdeux\ttwo\r\n")
    spec = TsvFile(kind="tsv", path=path, source_column=3, target_column=2)
    assert list(read_pairs(spec)) == [("one", "un"), ("two", "deux")]


def test_a_missing_column_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "one\tun\tx\ntwo deux\n")
    pairs = read_pairs(TsvFile(kind="tsv", path=path))
    assert next(pairs) == ("one", "un")
    with pytest.raises(DataError) as caught:
        next(pairs)
    assert str(caught.value) == (f"{path}, line 2: column 2 was asked for, there are 1: 'two deux'")


# --- limit and sample ------------------------------------------------------------------------


def numbered(count: int, blank: Sequence[int] = ()) -> tuple[str, str]:
    """Sources and targets whose words are their places; some of them blank, on either side."""
    sources = ["" if place in blank[::2] else str(place) for place in range(count)]
    targets = [" " if place in blank[1::2] else f"t{place}" for place in range(count)]
    return "\n".join(sources) + "\n", "\n".join(targets) + "\n"


def places(spec: TextFiles) -> list[int]:
    pairs = list(read_pairs(spec))
    assert [target for _, target in pairs] == [f"t{source}" for source, _ in pairs]
    return [int(source) for source, _ in pairs]


@settings(PATIENT, max_examples=50)
@given(sample=st.integers(1, 40), limit=st.integers(44, 60), seed=st.integers(0, 3))
def test_a_sample_is_exact_in_order_and_the_seeds(
    folder: Path, sample: int, limit: int, seed: int
) -> None:
    blank = (0, 7, 23, 43)
    spec = text_files(folder, *numbered(60, blank), sample=sample, limit=limit, sample_seed=seed)
    drawn = places(spec)
    assert len(drawn) == sample
    assert sorted(set(drawn)) == drawn
    assert set(drawn) <= set(range(limit)) - set(blank)
    assert places(spec) == drawn


def test_each_pair_may_be_drawn_and_seeds_differ(tmp_path: Path) -> None:
    spec = text_files(tmp_path, *numbered(30), sample=6)
    draws = [places(spec.model_copy(update={"sample_seed": seed})) for seed in range(60)]
    assert len({tuple(draw) for draw in draws}) == 60
    assert {place for draw in draws for place in draw} == set(range(30))


def test_a_sample_of_all_and_of_more_than_all(tmp_path: Path) -> None:
    spec = text_files(tmp_path, *numbered(9, (2, 5)), sample=7)
    assert places(spec) == [0, 1, 3, 4, 6, 7, 8]
    with pytest.raises(DataError, match="sample = 8 pairs were asked of a corpus of 7"):
        read_pairs(spec.model_copy(update={"sample": 8}))


def test_limit_reads_the_first_and_not_a_line_more(tmp_path: Path) -> None:
    good = "".join(f"{place}\n" for place in range(4)).encode()
    spec = text_files(tmp_path, good + b"\xff\n", good.replace(b"0", b"t0") + b"\xff\n", limit=1)
    assert places(spec) == [0]
    assert len(list(read_pairs(spec.model_copy(update={"limit": 4})))) == 4
    with pytest.raises(DataError, match="line 5"):
        list(read_pairs(spec.model_copy(update={"limit": 0})))


# --- the hub ---------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing kept outside the test's folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Both libraries read their environment once, when they are imported.
    config = importlib.import_module("datasets.config")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True
    )


ROWS: list[dict[str, Any]] = [
    {"translation": {"en": f"number {number}", "fr": f"numéro\n{number}\x0c"}, "id": number}
    for number in range(2500)
]


@pytest.fixture
def hub_folder(tmp_path: Path, offline: None) -> Path:
    """A data set as it lies on the hub: a card that names its configurations, and Parquet files."""
    folder = tmp_path / "set"
    (folder / "en-fr").mkdir(parents=True)
    for part, rows in enumerate((ROWS[:1100], ROWS[1100:])):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), folder / "en-fr" / f"train-{part:05}-of-00002.parquet"
        )
    empty = [{"translation": {"en": None, "fr": "x"}, "id": 1}]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(empty), folder / "en-fr" / "test-00000-of-00001.parquet"
    )
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: en-fr\n  data_files:\n  - split: train\n"
        "    path: en-fr/train-*\n  - split: test\n    path: en-fr/test-*\n---\n",
        encoding="utf-8",
    )
    return folder


def hub(folder: Path | str, **more: Any) -> HubDataset:
    keys = {"subset": "en-fr", "source_column": "translation.en"}
    keys |= {"target_column": "translation.fr"}
    return HubDataset(kind="hub", dataset=str(folder), **(keys | more))


def test_a_folder_with_the_hubs_layout(hub_folder: Path) -> None:
    # A line break in a cell would be a line too many in what is written from it.
    expected = [
        (row["translation"]["en"], row["translation"]["fr"].replace("\n", " ")) for row in ROWS
    ]
    assert list(read_pairs(hub(hub_folder))) == expected
    assert list(read_pairs(hub(hub_folder, limit=3))) == expected[:3]
    drawn = list(read_pairs(hub(hub_folder, sample=9)))
    assert [pair for pair in expected if pair in drawn] == drawn
    assert len(drawn) == 9
    assert list(read_pairs(hub(hub_folder, split="test"))) == [("", "x")]


@pytest.mark.parametrize("column", ["text", "translation.de", "id.en"])
def test_a_column_that_is_not_there_lists_those_there_are(hub_folder: Path, column: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_pairs(hub(hub_folder, target_column=column)))
    assert str(caught.value) == (
        f"data set {hub_folder} has no column `{column}`; it has translation.en, translation.fr, id"
    )


@pytest.mark.parametrize(
    ("column", "shown"), [("translation", "{'en': 'number 0'"), ("id", "`id`: 0 is not text")]
)
def test_a_column_without_text_is_a_data_error(hub_folder: Path, column: str, shown: str) -> None:
    with pytest.raises(DataError, match="is not text") as caught:
        list(read_pairs(hub(hub_folder, source_column=column)))
    assert f"data set {hub_folder}, column `{column}`: " in str(caught.value)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"split": "dev"}, r'split dev\): Unknown split "dev"'),
        ({"subset": "en-de"}, r"subset en-de, split train\): .*'en-de'"),
    ],
)
def test_a_split_or_subset_that_is_not_there(
    hub_folder: Path, more: dict[str, str], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        list(read_pairs(hub(hub_folder, **more)))


@pytest.mark.usefixtures("offline")
def test_a_hub_out_of_reach_tells_the_way_round_it() -> None:
    with pytest.raises(DataError) as caught:
        list(read_pairs(hub("nobody/nothing")))
    first, second = str(caught.value).splitlines()
    assert first.startswith("cannot load data set nobody/nothing (subset en-fr, split train): ")
    assert second.startswith("without a way to the hub, put a copy of its folder here")
