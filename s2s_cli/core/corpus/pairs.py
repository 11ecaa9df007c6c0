"""Pairs of sentences from files and hub data sets. The only door to the datasets library."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_never

import numpy

from s2s_cli.core.corpus.lines import read_lines, unreadable
from s2s_cli.core.errors import DataError
from s2s_cli.core.recipe.schema import HubDataset, TextFiles, TsvFile

Pair = tuple[str, str]
Spec = TextFiles | TsvFile | HubDataset


def read_pairs(spec: Spec) -> Iterator[Pair]:
    """The pairs of a corpus in their order, after `limit` and `sample`.

    `sample` reads the corpus twice, because it has to know how many pairs there are; it draws
    from those with text on both sides.

    Raises:
        DataError: unequal sides, a missing file or column, bytes that are not UTF-8.
    """
    if not spec.sample:
        return _limited(spec)
    total = sum(1 for pair in _limited(spec) if not is_blank(pair))
    if total < spec.sample:
        raise DataError(f"sample = {spec.sample:,} pairs were asked of a corpus of {total:,}")
    chosen = numpy.zeros(total, dtype=bool)
    generator = numpy.random.default_rng(spec.sample_seed)
    chosen[generator.choice(total, spec.sample, replace=False, shuffle=False)] = True
    pairs = (pair for pair in _limited(spec) if not is_blank(pair))
    return (pair for pair, keep in zip(pairs, chosen, strict=True) if keep)


def is_blank(pair: Pair) -> bool:
    """Whether either side is empty or white space only."""
    return not pair[0].strip() or not pair[1].strip()


def _limited(spec: Spec) -> Iterator[Pair]:
    match spec:
        case TextFiles():
            pairs = _text_pairs(spec)
        case TsvFile():
            pairs = _tsv_pairs(spec)
        case HubDataset():
            pairs = _hub_pairs(spec)
        case _:
            assert_never(spec)
    return itertools.islice(pairs, spec.limit or None)


def _text_pairs(spec: TextFiles) -> Iterator[Pair]:
    sources, targets = read_lines(spec.source), read_lines(spec.target)
    for number in itertools.count():
        source, target = next(sources, None), next(targets, None)
        if source is None and target is None:
            return
        if source is None or target is None:
            more = sum(1 for _ in (targets if source is None else sources)) + 1
            counts = (number, number + more) if source is None else (number + more, number)
            raise DataError(
                f"unequal files: {spec.source} has {counts[0]:,} lines, "
                f"{spec.target} has {counts[1]:,}\n"
                "line N of one must be the translation of line N of the other"
            )
        yield source, target


def _tsv_pairs(spec: TsvFile) -> Iterator[Pair]:
    needed = max(spec.source_column, spec.target_column)
    for number, line in enumerate(read_lines(spec.path), 1):
        columns = line.split("\t")
        if len(columns) < needed:
            raise DataError(
                f"{spec.path}, line {number}: column {needed} was asked for, there are "
                f"{len(columns)}: {line[:60]!r}"
            )
        yield columns[spec.source_column - 1], columns[spec.target_column - 1]


def _hub_pairs(spec: HubDataset) -> Iterator[Pair]:
    import datasets

    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(
            spec.dataset,
            name=spec.subset or None,
            split=spec.split,
            revision=spec.revision or None,
        )
    except Exception as error:  # noqa: BLE001 - datasets has no base of its errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot load data set {spec.dataset} (subset {spec.subset or 'default'}, split "
            f"{spec.split}): {reason}\n"
            "without a way to the hub, put a copy of its folder here and set `dataset` to ./FOLDER"
        ) from None
    for batch in data.iter(batch_size=1000):
        sources = _column(batch, spec.source_column, spec.dataset)
        targets = _column(batch, spec.target_column, spec.dataset)
        # A data set's cell may hold a line break; a line of ours may not.
        for source, target in zip(sources, targets, strict=True):
            yield (source or "").replace("\n", " "), (target or "").replace("\n", " ")


def _column(batch: dict[str, list[Any]], name: str, dataset: str) -> list[str | None]:
    first, *inner = name.split(".")
    try:
        cells = batch[first]
        for key in inner:
            cells = [cell[key] for cell in cells]
    except (KeyError, TypeError):
        there = [
            f"{column}.{key}" if isinstance(cells[0], dict) else column
            for column, cells in batch.items()
            for key in (cells[0] if isinstance(cells[0], dict) else [""])
        ]
        raise DataError(
            f"data set {dataset} has no column `{name}`; it has {', '.join(there)}"
        ) from None
    other = next((cell for cell in cells if not isinstance(cell, str | None)), None)
    if other is not None:
        raise DataError(f"data set {dataset}, column `{name}`: {str(other)[:60]} is not text")
    return cells


def contents(spec: Spec) -> list[str]:
    """What identifies the text behind a corpus: SHA-256 of each file, or the name on the hub.

    Raises:
        DataError: a file cannot be read.
    """
    match spec:
        case TextFiles():
            return [_sha256(spec.source), _sha256(spec.target)]
        case TsvFile():
            return [_sha256(spec.path)]
        case HubDataset():
            folder = Path(spec.dataset)
            if folder.is_dir():
                return [
                    f"{name} {_sha256(str(folder / name))}"
                    for name in sorted(
                        file.relative_to(folder) for file in folder.rglob("*") if file.is_file()
                    )
                    # What begins with a dot is a downloader's notes, not data.
                    if not any(part.startswith(".") for part in name.parts)
                ]
            return [spec.dataset, spec.revision]
        case _:
            assert_never(spec)


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
