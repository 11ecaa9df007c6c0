"""Prepared corpora: what is packed, what is counted, and that nothing is ever overwritten."""

import errno
import gzip
import importlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from s2s_cli.core.errors import DataError
from s2s_cli.core.prepared import Prepared, fingerprint, open_prepared, prepare, report
from s2s_cli.core.prepared.packed import PackedText, PackedWriter, id_type
from s2s_cli.core.recipe import Recipe, parse
from s2s_cli.core.tokenizer import Tokenizer

preparation = importlib.import_module("s2s_cli.core.prepared.preparation")

# Two are blank, one on each side; two have a side of more than four words.
TRAIN = [
    ("one two", "un deux"),
    ("", "rien"),
    ("two three two", "deux trois deux"),
    ("a b c d e", "a b c d"),
    ("four", " \t"),
    ("four", "quatre"),
    ("one", "v w x y z"),
    ("one two three four", "un deux trois quatre"),
]
KEPT = [TRAIN[place] for place in (0, 2, 5, 7)]
VALIDATION = [("one five", "un  cinq "), ("", ""), ("a b c d e", "six"), ("three", "trois")]


def write_text(folder: Path, name: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The table of a corpus in two files, written here."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {"kind": "text"}
    for side, lines in zip(("source", "target"), zip(*pairs, strict=True), strict=True):
        path = folder / f"{name}.{side}"
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
        table[side] = str(path)
    return table


def keys(train: dict[str, Any], validation: dict[str, Any] | None = None) -> dict[str, Any]:
    """The keys of a small recipe."""
    sizes = {"layers": 1, "embedding": 2, "hidden": 3}
    data = {"train": train, "max_length": {"source": 4, "target": 4}}
    return {
        "name": "small",
        "data": data | ({"validation": validation} if validation else {}),
        "tokenizer": {
            "kind": "separate",
            "source": {"kind": "words", "vocabulary": 6},
            "target": {"kind": "words", "vocabulary": 50},
        },
        "model": {"encoder": sizes, "decoder": {"kind": "plain"} | sizes},
        "optimizer": {"kind": "sgd", "lr": 1.0},
    }


def made(raw: dict[str, Any]) -> Recipe:
    return parse(raw, "test")


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    return keys(
        write_text(tmp_path / "data", "train", TRAIN),
        write_text(tmp_path / "data", "validation", VALIDATION),
    )


@pytest.fixture
def recipe(raw: dict[str, Any]) -> Recipe:
    return made(raw)


def sentences(text: PackedText) -> list[list[int]]:
    return [text[place] for place in range(len(text))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what is packed --------------------------------------------------------------------------


def test_packed_ids_give_back_the_encoded_sentences(recipe: Recipe, tmp_path: Path) -> None:
    found = prepare(recipe, tmp_path / "made")
    # The words of all pairs with text on both sides are counted, of those too that are too long.
    counted = [source.split() for source, target in TRAIN if source.strip() and target.strip()]
    counts = Counter(itertools.chain.from_iterable(counted))
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:3]
    ids = [[kept.index(w) + 3 if w in kept else 0 for w in source.split()] for source, _ in KEPT]
    assert sentences(found.train.source) == ids
    target = found.target_tokenizer
    assert target.decode(sentences(found.train.target)) == [target for _, target in KEPT]
    assert target.encode([target for _, target in KEPT]) == sentences(found.train.target)
    assert found.train.source.lengths.tolist() == [2, 3, 1, 4]
    assert len(found.train) == 4


def test_validation_is_whole_and_its_references_raw(recipe: Recipe, tmp_path: Path) -> None:
    found = prepare(recipe, tmp_path / "made")
    assert found.validation is not None
    assert found.validation_references == [target for _, target in VALIDATION]
    encode = found.source_tokenizer.encode
    assert sentences(found.validation.source) == encode([source for source, _ in VALIDATION])
    assert found.validation.target.lengths.tolist() == [2, 0, 1, 1]


def test_ids_are_mapped_not_read(recipe: Recipe, tmp_path: Path) -> None:
    found = prepare(recipe, tmp_path / "made")
    for text in (found.train.source, found.train.target):
        assert isinstance(text.ids, numpy.memmap)
        assert isinstance(text.offsets, numpy.memmap)
        with pytest.raises(ValueError, match="read-only"):
            text.ids[0] = 1


@pytest.mark.parametrize(("vocabulary", "size"), [(65_536, 2), (65_537, 4)])
def test_every_id_of_a_vocabulary_fits(tmp_path: Path, vocabulary: int, size: int) -> None:
    rows = [[vocabulary - 1, 0], [], [vocabulary - 1]]
    with PackedWriter(tmp_path, "x", vocabulary) as writer:
        writer.write(rows[:1])
        writer.write([])
        writer.write(rows[1:])
    ids = numpy.fromfile(tmp_path / "x.ids", id_type(vocabulary))
    offsets = numpy.fromfile(tmp_path / "x.offsets", numpy.int64)
    assert sentences(PackedText(ids, offsets)) == rows == sentences(PackedText.pack(rows))
    assert (tmp_path / "x.ids").stat().st_size == 3 * size


def test_without_validation(raw: dict[str, Any], tmp_path: Path) -> None:
    del raw["data"]["validation"]
    found = prepare(made(raw), tmp_path / "made")
    assert found.validation is None
    assert found.validation_references == []
    assert not list((tmp_path / "made").glob("validation*"))


def test_a_side_of_the_validation_may_be_blank(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["data"]["validation"] = write_text(tmp_path, "blank", [("one", ""), ("two", " ")])
    found = prepare(made(raw), tmp_path / "made")
    assert found.validation is not None
    assert sentences(found.validation.target) == [[], []]


def test_a_shared_tokenizer_reads_both_sides(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["tokenizer"] = {"kind": "shared", "model": {"kind": "words", "vocabulary": 50}}
    found = prepare(made(raw), tmp_path / "made")
    both = {word for pair in TRAIN if all(map(str.strip, pair)) for word in " ".join(pair).split()}
    assert found.source_tokenizer.size == 3 + len(both)
    assert found.source_tokenizer.to_bytes() == found.target_tokenizer.to_bytes()


# --- what is counted -------------------------------------------------------------------------


def test_the_manifest_counts(recipe: Recipe, tmp_path: Path) -> None:
    found = prepare(recipe, tmp_path / "made")
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text(encoding="utf-8"))
    assert found.manifest == manifest
    train, validation = manifest["splits"]["train"], manifest["splits"]["validation"]
    assert (train["read"], train["kept"]) == (8, 4)
    assert train["dropped"] == {"blank": 2, "source over 4 tokens": 1, "target over 4 tokens": 1}
    assert (validation["read"], validation["kept"], validation["dropped"]) == (4, 4, {})
    for side, text in (("source", found.train.source), ("target", found.train.target)):
        flat = list(itertools.chain.from_iterable(sentences(text)))
        facts = train[side]
        assert facts["tokens"] == len(flat) == 10
        assert facts["unknown"] == flat.count(0)
        assert (facts["length_mean"], facts["length_median"], facts["length_max"]) == (2.5, 2, 4)
    assert train["source"]["unknown"] > 0
    assert manifest["tokenizers"]["source"]["size"] == found.source_tokenizer.size == 6
    assert manifest["fingerprint"] == fingerprint(recipe)


def test_the_report_tells_the_counts(recipe: Recipe, tmp_path: Path) -> None:
    lines = report(prepare(recipe, tmp_path / "made"))
    assert lines[0] == (
        "train: 8 pairs read, 4 kept (dropped: 2 blank; 1 source over 4 tokens; "
        "1 target over 4 tokens)"
    )
    assert "validation: 4 pairs read, 4 kept" in lines
    assert "source vocabulary: words, 6" in lines
    assert any(line.startswith("target vocabulary: words, ") for line in lines)
    assert [line for line in lines if "(asked: 50; the text gives no more)" in line] == lines[-1:]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, (0, 2, 3, 5, 6, 7)),
        ({"source": 3}, (0, 2, 5, 6)),
        ({"target": 3}, (0, 2, 5)),
        ({"source": 2, "target": 1}, (5,)),
    ],
)
def test_the_longest_that_is_kept(
    raw: dict[str, Any], tmp_path: Path, limits: dict[str, int], kept: tuple[int, ...]
) -> None:
    raw["data"]["max_length"] = limits
    found = prepare(made(raw), tmp_path / "made")
    texts = found.target_tokenizer.decode(sentences(found.train.target))
    assert texts == [TRAIN[place][1] for place in kept]


@pytest.mark.parametrize(
    ("pairs", "limits", "said"),
    [
        ([("", ""), ("a", " ")], {}, "no training pairs in .*train.source and .*train.target"),
        ([("a b c", "a")], {"source": 2}, "no pairs are left in the train data: 1 read"),
    ],
)
def test_nothing_to_learn_from(
    tmp_path: Path, pairs: list[tuple[str, str]], limits: dict[str, int], said: str
) -> None:
    raw = keys(write_text(tmp_path, "train", pairs))
    raw["data"]["max_length"] = limits
    with pytest.raises(DataError, match=said):
        prepare(made(raw), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_work_in_chunks_changes_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(recipe, tmp_path / "whole")
    stages: list[tuple[str, int]] = []
    monkeypatch.setattr(preparation, "CHUNK", 3)
    prepare(recipe, tmp_path / "parts", lambda stage, pairs: stages.append((stage, pairs)))
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert stages == [
        ("training the tokenizer", 0),
        *(("encoding train", pairs) for pairs in (3, 6, 8)),
        *(("encoding validation", pairs) for pairs in (3, 4)),
    ]


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_tokenizer_is_trained_on_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pairs = [(f"s {place}", f"t {place}") for place in range(500)]
    spec = {"kind": "char", "vocabulary": 50, "sample": 40}
    raw = keys(write_text(tmp_path, "train", pairs))
    raw["tokenizer"] = {"kind": "shared", "model": spec}
    if kind == "separate":
        raw["tokenizer"] = {"kind": "separate", "source": spec, "target": spec}
    seen: list[list[str]] = []

    def watched(lines: Iterable[str], spec: Any) -> Tokenizer:
        seen.append(list(lines))
        return train(seen[-1], spec)

    train: Callable[..., Tokenizer] = preparation.train
    monkeypatch.setattr(preparation, "train", watched)
    prepare(made(raw), tmp_path / "first")
    both = [line for pair in pairs for line in pair]
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    texts = [both] if kind == "shared" else [sources, targets]
    assert len(seen) == len(texts)
    for sample, text in zip(seen, texts, strict=True):
        assert len(sample) == (80 if kind == "shared" else 40)
        assert sample == [line for line in text if line in sample]
        assert {text.index(line) * 4 // len(text) for line in sample} == {0, 1, 2, 3}
    once = list(seen)
    prepare(made(raw), tmp_path / "second")
    assert seen == once + once


# --- the fingerprint -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"max_length": {"source": 5}}},
        {"data": {"train": {"limit": 7}}},
        {"data": {"train": {"sample": 2}}},
        {"data": {"train": {"sample_seed": 2}}},
        {"data": {"validation": {"limit": 1}}},
        {"tokenizer": {"source": {"vocabulary": 8}}},
        {"tokenizer": {"target": {"pretokenizer": "moses"}}},
        {"tokenizer": {"target": {"language": "fr"}}},
    ],
)
def test_the_fingerprint_changes_with_data_and_tokenizer(
    raw: dict[str, Any], change: dict[str, Any]
) -> None:
    before = fingerprint(made(raw))
    assert fingerprint(made(merged(raw, change))) != before
    assert fingerprint(made(raw)) == before


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = base | changes
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict):
            both[key] = merged(base[key], changes[key])
    return both


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_the_fingerprint_changes_with_the_text(raw: dict[str, Any], split: str, side: str) -> None:
    before = fingerprint(made(raw))
    path = Path(raw["data"][split][side])
    path.write_bytes(path.read_bytes().replace(b"o", b"0").replace(b"u", b"v"))
    assert fingerprint(made(raw)) != before


def test_the_fingerprint_forgets_places_names_and_the_model(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    before = fingerprint(made(raw))
    raw["data"]["train"] = write_text(tmp_path / "elsewhere", "other", TRAIN)
    raw["data"]["prepared"] = str(tmp_path / "there")
    raw |= {"name": "else", "about": "x", "batches": {"size": 9}, "training": {"seed": 7}}
    raw["model"]["reverse_source"] = True
    assert fingerprint(made(raw)) == before


def test_the_fingerprint_of_swapped_sides_differs(raw: dict[str, Any]) -> None:
    before = fingerprint(made(raw))
    train = raw["data"]["train"]
    train["source"], train["target"] = train["target"], train["source"]
    assert fingerprint(made(raw)) != before


# --- where it goes ---------------------------------------------------------------------------


def test_the_folder_is_named_or_has_a_name_of_its_own(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = made(raw)
    assert prepare(recipe).folder == Path("prepared") / f"small-{fingerprint(recipe)}"
    raw["data"]["prepared"] = str(tmp_path / "named")
    assert prepare(made(raw)).folder == tmp_path / "named"
    assert prepare(made(raw), tmp_path / "deep" / "given").folder == tmp_path / "deep" / "given"


def test_a_second_time_opens_what_is_there(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    first = prepare(recipe, folder)
    files = [folder, *folder.iterdir()]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files]
    stages: list[str] = []
    second = prepare(recipe, folder, lambda stage, _: stages.append(stage))
    assert stages == []
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files] == before
    assert sentences(second.train.source) == sentences(first.train.source)
    assert second.manifest == first.manifest


def test_a_folder_of_something_else_is_refused_and_left_alone(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    prepare(made(raw), folder)
    before = contents(folder)
    raw["tokenizer"]["target"]["vocabulary"] = 20
    with pytest.raises(DataError, match="was prepared from other text") as caught:
        prepare(made(raw), folder)
    assert str(folder) in str(caught.value)
    assert contents(folder) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not a prepared corpus: manifest\.json is missing"):
        prepare(made(raw), foreign)
    assert contents(foreign) == {"thesis.txt": b"years of work"}
    plain = tmp_path / "plain"
    plain.write_bytes(b"a file")
    with pytest.raises(DataError, match="plain"):
        prepare(made(raw), plain)
    assert plain.read_bytes() == b"a file"


@pytest.mark.parametrize(
    "stop", ["training the tokenizer", "encoding train", "encoding validation"]
)
def test_an_interrupted_preparation_leaves_nothing(
    recipe: Recipe, tmp_path: Path, stop: str
) -> None:
    folder = tmp_path / "place" / "made"

    def interrupt(stage: str, _pairs: int) -> None:
        if stage == stop:
            assert list(folder.parent.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, folder, interrupt)
    assert list(folder.parent.iterdir()) == []
    assert len(prepare(recipe, folder).train) == 4
    assert list(folder.parent.iterdir()) == [folder]


def test_a_full_disk_is_a_data_error_and_leaves_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "place" / "made"

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=f"cannot write {folder}: No space left on device"):
        prepare(recipe, folder)
    assert list(folder.parent.iterdir()) == []


def test_every_file_is_on_the_disk_before_the_folder_has_its_name(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "made"
    flushed = {}

    def watched(file: int) -> None:
        assert not folder.exists()
        path = Path(f"/proc/self/fd/{file}").readlink()
        flushed[path.name] = path.stat().st_size

    monkeypatch.setattr(os, "fsync", watched)
    prepare(recipe, folder)
    assert flushed == {name: len(data) for name, data in contents(folder).items()}


def test_what_a_killed_run_left_is_not_in_the_way(recipe: Recipe, tmp_path: Path) -> None:
    left = tmp_path / f".made.{os.getpid()}.partial"
    left.mkdir()
    (left / "manifest.json").write_bytes(b"half")
    assert len(prepare(recipe, tmp_path / "made").train) == 4
    assert contents(left) == {"manifest.json": b"half"}


# --- damage ----------------------------------------------------------------------------------

FILES = [
    "manifest.json",
    *("source.tokenizer", "target.tokenizer", "validation.target.txt"),
    *(
        f"{split}.{side}.{part}"
        for split in ("train", "validation")
        for side in ("source", "target")
        for part in ("ids", "offsets")
    ),
]


def missing(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 16 * 8])


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def doubled(path: Path) -> None:
    path.write_bytes(2 * path.read_bytes())


def replaced(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus to copy and damage."""
    folder = tmp_path_factory.mktemp("whole")
    splits = [write_text(folder, "train", TRAIN), write_text(folder, "validation", VALIDATION)]
    return prepare(made(keys(*splits)), folder / "made").folder


DAMAGES = [missing, emptied, halved, torn, doubled, replaced]
# Without its last LF a text has as many lines as before.
HARMLESS = [("validation.target.txt", torn)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [each for each in itertools.product(FILES, DAMAGES) if each not in HARMLESS],
)
def test_a_damaged_file_is_a_data_error(
    whole: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    assert set(FILES) == set(contents(whole))
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    damage(folder / name)
    with pytest.raises(DataError) as caught:
        open_prepared(folder)
    assert str(folder) in str(caught.value)


def test_another_format_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    manifest = prepare(recipe, tmp_path / "made").folder / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_bytes()) | {"format": 99}), encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"has format 99, this s2s reads 1\n.*another folder"):
        open_prepared(tmp_path / "made")


# --- forms of the same corpus ----------------------------------------------------------------


def as_gzip(folder: Path) -> dict[str, Any]:
    table = write_text(folder, "x", TRAIN)
    for side in ("source", "target"):
        packed = Path(f"{table[side]}.gz")
        packed.write_bytes(gzip.compress(Path(table[side]).read_bytes()))
        table[side] = str(packed)
    return table


def as_tsv(folder: Path) -> dict[str, Any]:
    path = folder / "x.tsv"
    rows = [(target.replace("\t", " "), "-", source) for source, target in TRAIN]
    path.write_bytes("".join("\t".join(row) + "\r\n" for row in rows).encode())
    return {"kind": "tsv", "path": str(path), "source_column": 3, "target_column": 1}


def as_hub(folder: Path) -> dict[str, Any]:
    rows = [{"translation": {"en": source, "fr": target}} for source, target in TRAIN]
    (folder / "data").mkdir()
    file = folder / "data" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    columns = {"source_column": "translation.en", "target_column": "translation.fr"}
    return {"kind": "hub", "dataset": str(folder)} | columns


@pytest.mark.parametrize("form", [as_gzip, as_tsv, as_hub])
def test_the_same_text_in_another_form_is_the_same_packed(
    raw: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[[Path], dict[str, Any]],
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = importlib.import_module("datasets.config")  # has read its environment by now
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    text: Prepared = prepare(made(raw), tmp_path / "text")
    (tmp_path / "form").mkdir()
    raw["data"]["train"] = form(tmp_path / "form")
    other = prepare(made(raw), tmp_path / "other")
    ours, theirs = contents(text.folder), contents(other.folder)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == ["manifest.json"]
    assert text.manifest["splits"] == other.manifest["splits"]
