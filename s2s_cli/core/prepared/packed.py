"""A prepared corpus on disk: tokenizers, packed ids that are memory-mapped, and a manifest.

A folder holds `manifest.json`, `source.tokenizer`, `target.tokenizer`, for each split
`SPLIT.source.ids` and `SPLIT.source.offsets` and the same for the target, and the raw references
of the validation split. Words stand in their natural order; nothing is pickled.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy
import numpy.typing
from pydantic import TypeAdapter

from s2s_cli.core.corpus import read_lines
from s2s_cli.core.errors import DataError, ModelError
from s2s_cli.core.recipe.schema import OneTokenizer, SentencePiece, Words
from s2s_cli.core.tokenizer import Tokenizer, restore

FORMAT = 1
MANIFEST = "manifest.json"
REFERENCES = "validation.target.txt"
SIDES = ("source", "target")

Ids = numpy.typing.NDArray[numpy.integer[Any]]
Offsets = numpy.typing.NDArray[numpy.int64]


@dataclass(frozen=True)
class PackedText:
    """Sentences as ids, one after another, without BOS and EOS.

    ids: [tokens]; offsets: [sentences + 1]; sentence i is ids[offsets[i]:offsets[i + 1]].
    """

    ids: Ids
    offsets: Offsets

    @classmethod
    def pack(cls, sentences: Sequence[Sequence[int]]) -> Self:
        """Sentences packed in memory."""
        lengths = [len(sentence) for sentence in sentences]
        flat = [word for sentence in sentences for word in sentence]
        return cls(numpy.array(flat, numpy.int32), numpy.cumsum([0, *lengths], dtype=numpy.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[int]:
        ids: list[int] = self.ids[self.offsets[index] : self.offsets[index + 1]].tolist()
        return ids

    @property
    def lengths(self) -> Offsets:
        """Tokens of each sentence, counted anew each time: 8 bytes a sentence. [sentences]"""
        return numpy.diff(self.offsets)

    def lengths_of(self, rows: numpy.typing.NDArray[numpy.integer[Any]]) -> Offsets:
        """Tokens of the sentences at `rows`, of which nothing else is read. [rows]"""
        offsets = numpy.asarray(self.offsets)  # which is indexed twice as fast as a memory map
        lengths: Offsets = offsets[rows + 1] - offsets[rows]
        return lengths


@dataclass(frozen=True)
class PackedPairs:
    """The two sides of a split; sentence i of one translates sentence i of the other."""

    source: PackedText
    target: PackedText

    def __len__(self) -> int:
        return len(self.source)


class PackedWriter:
    """Writes one side of a split, a chunk of sentences at a time; `with` closes it."""

    def __init__(self, folder: Path, name: str, vocabulary: int) -> None:
        self._dtype = id_type(vocabulary)
        self._ids = open(folder / f"{name}.ids", "wb")  # noqa: SIM115 - closed in `__exit__`
        self._offsets = open(folder / f"{name}.offsets", "wb")  # noqa: SIM115
        self._end = numpy.int64(0)
        self._offsets.write(self._end.tobytes())

    def write(self, sentences: Sequence[Sequence[int]]) -> None:
        """Appends sentences."""
        for sentence in sentences:
            self._ids.write(numpy.array(sentence, self._dtype).tobytes())
        ends = self._end + numpy.cumsum([len(s) for s in sentences], dtype=numpy.int64)
        self._offsets.write(ends.tobytes())
        if len(ends):
            self._end = ends[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._ids, self._offsets:
            if kind is None:
                for file in (self._ids, self._offsets):
                    file.flush()
                    os.fsync(file.fileno())


def id_type(vocabulary: int) -> numpy.dtype[Any]:
    """The smallest type that holds every id of a vocabulary."""
    return numpy.dtype("<u2" if vocabulary <= 1 << 16 else "<i4")


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus, opened.

    `manifest` is the content of `manifest.json`; `validation_references` the raw target text.
    """

    folder: Path
    manifest: dict[str, Any]
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train: PackedPairs
    validation: PackedPairs | None
    validation_references: list[str]


def open_prepared(folder: Path) -> Prepared:
    """A prepared corpus, its ids memory-mapped.

    Raises:
        DataError: the folder is not a prepared corpus, or is damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(
                f"{folder} has format {manifest['format']}, this s2s reads {FORMAT}\n"
                "prepare it again, into another folder"
            )
        checker: TypeAdapter[SentencePiece | Words] = TypeAdapter(OneTokenizer)
        tokenizers = [
            restore(
                (folder / f"{side}.tokenizer").read_bytes(),
                checker.validate_python(manifest["tokenizers"][side]["recipe"]),
            )
            for side in SIDES
        ]
        splits = {
            split: PackedPairs(
                *(
                    _open_packed(folder / f"{split}.{side}", tokenizer.size)
                    for side, tokenizer in zip(SIDES, tokenizers, strict=True)
                )
            )
            for split in manifest["splits"]
        }
        references = list(read_lines(str(folder / REFERENCES))) if "validation" in splits else []
        for split, pairs in splits.items():
            _check_count(split, pairs, references, manifest["splits"][split]["kept"])
        return Prepared(
            folder=folder,
            manifest=manifest,
            source_tokenizer=tokenizers[0],
            target_tokenizer=tokenizers[1],
            train=splits["train"],
            validation=splits.get("validation"),
            validation_references=references,
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is not a prepared corpus: {Path(error.filename).name} is missing\n"
            "remove the folder, or prepare into another one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        raise DataError(
            f"the prepared corpus {folder} is damaged: {error}\nremove it and prepare it again"
        ) from None


def _check_count(split: str, pairs: PackedPairs, references: list[str], kept: int) -> None:
    """Raises ValueError where a file of the split holds other than `kept` sentences."""
    counts = [len(pairs.source), len(pairs.target)]
    if split == "validation":
        counts.append(len(references))
    if any(count != kept for count in counts):
        raise ValueError(f"{split} should hold {kept:,} pairs, its files hold {counts}")


def _open_packed(path: Path, vocabulary: int) -> PackedText:
    offsets = numpy.memmap(f"{path}.offsets", numpy.int64, mode="r")
    ids: Ids = numpy.zeros(0, id_type(vocabulary))  # a file without a byte cannot be mapped
    if Path(f"{path}.ids").stat().st_size:
        ids = numpy.memmap(f"{path}.ids", id_type(vocabulary), mode="r")
    if offsets[0] != 0 or offsets[-1] != len(ids):
        raise ValueError(f"{path.name}.ids and {path.name}.offsets do not belong together")
    return PackedText(ids, offsets)
