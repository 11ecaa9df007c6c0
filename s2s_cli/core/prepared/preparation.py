"""Makes a prepared corpus: trains the tokenizers, encodes, packs, and reports on the data."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, assert_never

import numpy

from s2s_cli import __version__
from s2s_cli.core.corpus import Pair, contents, is_blank, read_pairs
from s2s_cli.core.errors import DataError
from s2s_cli.core.prepared.packed import (
    FORMAT,
    MANIFEST,
    REFERENCES,
    SIDES,
    PackedWriter,
    Prepared,
    open_prepared,
)
from s2s_cli.core.recipe.schema import (
    MaxLength,
    Recipe,
    SentencePiece,
    SeparateTokenizers,
    SharedTokenizer,
    Words,
)
from s2s_cli.core.tokenizer import UNKNOWN, Tokenizer, train

CHUNK = 10_000  # pairs encoded at a time

Notify = Callable[[str, int], None]
Tokenizers = tuple[Tokenizer, Tokenizer]


def fingerprint(recipe: Recipe, tokenizers: Tokenizers | None = None) -> str:
    """Sixteen hexadecimal digits that change with the text, `[data]` or `[tokenizer]`.

    Where the files lie does not count, what they hold does. `tokenizers` are those of another
    model, if they are not to be trained.

    Raises:
        DataError: a file cannot be read.
    """
    splits = {"train": recipe.data.train, "validation": recipe.data.validation}
    where = {"source", "target", "path", "dataset"}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "max_length": recipe.data.max_length.model_dump(),
        "tokenizer": recipe.tokenizer.model_dump(),
        "splits": {
            name: [spec.model_dump(exclude=where), contents(spec)]
            for name, spec in splits.items()
            if spec
        },
    }
    if tokenizers:
        facts["tokenizers"] = [
            hashlib.sha256(tokenizer.to_bytes()).hexdigest() for tokenizer in tokenizers
        ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    recipe: Recipe,
    folder: Path | None = None,
    notify: Notify | None = None,
    tokenizers: Tokenizers | None = None,
) -> Prepared:
    """The prepared corpus of a recipe: opened where it is there, made where it is not.

    Args:
        recipe: its `[data]` and `[tokenizer]` are used.
        folder: where to; by default `data.prepared`, else what is there of this
            fingerprint below `prepared/`, else `prepared/NAME-FINGERPRINT`.
        notify: called with a stage's name and the number of pairs it has done.
        tokenizers: the source's and the target's of another model; by default they are trained.

    Raises:
        DataError: the text cannot be used, or the folder holds something else.
        RecipeError: the tokenizer cannot be made as asked.
    """
    if tokenizers and (same := _prepared_alike(recipe, folder, tokenizers)):
        return same
    wanted = fingerprint(recipe, tokenizers)
    folder = folder or _default_folder(recipe, wanted)
    if folder.exists():
        return _open_same(folder, wanted)
    # Everything is written beside the folder, and renamed as a whole when it is complete.
    # A process number would not do: in a container every run has the same one.
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        notify = notify or (lambda _stage, _pairs: None)
        _write(recipe, partial, wanted, tokenizers or _train_tokenizers(recipe, notify), notify)
        partial.rename(folder)
    except OSError as error:
        if folder.exists():  # somebody else has prepared it in the meantime
            return _open_same(folder, wanted)
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_prepared(folder)


def _prepared_alike(recipe: Recipe, folder: Path | None, tokenizers: Tokenizers) -> Prepared | None:
    """What was prepared by this recipe with tokenizers of its own, where these are the same."""
    wanted = fingerprint(recipe)
    folder = folder or _default_folder(recipe, wanted)
    if not (folder / MANIFEST).exists():
        return None
    found = open_prepared(folder)
    ours = [found.source_tokenizer.to_bytes(), found.target_tokenizer.to_bytes()]
    same = found.manifest["fingerprint"] == wanted and ours == [
        tokenizer.to_bytes() for tokenizer in tokenizers
    ]
    return found if same else None


def _default_folder(recipe: Recipe, wanted: str) -> Path:
    if recipe.data.prepared:
        return Path(recipe.data.prepared)
    # A recipe of another name may have prepared the same: the arms of an ablation share a corpus.
    there = sorted(Path("prepared").glob(f"*-{wanted}"))
    return there[0] if there else Path("prepared") / f"{recipe.name}-{wanted}"


def _open_same(folder: Path, wanted: str) -> Prepared:
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; prepare into a folder (--out or data.prepared)")
    found = open_prepared(folder)
    if found.manifest["fingerprint"] != wanted:
        raise DataError(
            f"{folder} was prepared from other text, or with another [data], [tokenizer] or "
            "training.start_from\n"
            "prepare into another folder (--out or data.prepared), or remove this one"
        )
    return found


def _write(
    recipe: Recipe, folder: Path, wanted: str, tokenizers: Tokenizers, notify: Notify
) -> None:
    for side, tokenizer in zip(SIDES, tokenizers, strict=True):
        _write_file(folder / f"{side}.tokenizer", tokenizer.to_bytes())
    pairs = read_pairs(recipe.data.train)
    splits = {"train": _pack(folder, "train", pairs, tokenizers, recipe.data.max_length, notify)}
    if recipe.data.validation:
        validation = list(read_pairs(recipe.data.validation))
        splits["validation"] = _pack(
            folder, "validation", iter(validation), tokenizers, None, notify
        )
        references = "".join(f"{target}\n" for _, target in validation)
        _write_file(folder / REFERENCES, references.encode())
    manifest = {
        "format": FORMAT,
        "s2s": __version__,
        "name": recipe.name,
        "fingerprint": wanted,
        "data": recipe.data.model_dump(mode="json"),
        "contents": {
            split: contents(spec)
            for split, spec in (
                ("train", recipe.data.train),
                ("validation", recipe.data.validation),
            )
            if spec
        },
        "tokenizers": {
            side: {"recipe": spec.model_dump(), "size": tokenizer.size}
            for side, tokenizer, spec in zip(SIDES, tokenizers, recipe.tokenizer.sides, strict=True)
        },
        "splits": splits,
    }
    _write_file(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _train_tokenizers(recipe: Recipe, notify: Notify) -> Tokenizers:
    """The tokenizer of each side."""
    notify("training the tokenizer", 0)
    match recipe.tokenizer:
        case SharedTokenizer(model=spec):
            both = _sampled(itertools.chain.from_iterable(_text(recipe)), spec, 2)
            shared = train(both, spec)
            return shared, shared
        case SeparateTokenizers(source=source, target=target):
            sources, targets = (
                train(_sampled((pair[side] for pair in _text(recipe)), spec, 1), spec)
                for side, spec in enumerate((source, target))
            )
            return sources, targets
        case _:
            assert_never(recipe.tokenizer)


def _text(recipe: Recipe) -> Iterator[Pair]:
    """The pairs that count, of which there has to be one."""
    pairs = (pair for pair in read_pairs(recipe.data.train) if not is_blank(pair))
    first = next(pairs, None)
    if first is None:
        raise DataError(
            f"no training pairs in {_named(recipe)}: every line is blank, or there is none"
        )
    return itertools.chain([first], pairs)


def _named(recipe: Recipe) -> str:
    spec = recipe.data.train.model_dump()
    return " and ".join(spec[key] for key in ("source", "target", "path", "dataset") if key in spec)


def _sampled(lines: Iterable[str], spec: SentencePiece | Words, sides: int) -> Iterable[str]:
    """At most `spec.sample` lines a side, drawn from all of them with a fixed seed, in order."""
    if isinstance(spec, Words):  # counting words needs no sample
        return lines
    size = spec.sample * sides
    generator = random.Random(1)  # noqa: S311 - a sample, not a secret
    kept: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        if number < size:
            kept.append((number, line))
        elif (place := generator.randrange(number + 1)) < size:
            kept[place] = (number, line)
    return [line for _, line in sorted(kept)]


def _pack(
    folder: Path,
    split: str,
    pairs: Iterator[Pair],
    tokenizers: Tokenizers,
    max_length: MaxLength | None,
    notify: Notify,
) -> dict[str, Any]:
    """Encodes and writes a split; returns its part of the manifest.

    Pairs are dropped from the training split only (`max_length` given): a validation score
    must count every line.
    """
    read = 0
    dropped: Counter[str] = Counter()
    lengths: tuple[list[int], list[int]] = ([], [])
    unknown = [0, 0]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(PackedWriter(folder, f"{split}.{side}", tokenizer.size))
            for side, tokenizer in zip(SIDES, tokenizers, strict=True)
        ]
        while chunk := list(itertools.islice(pairs, CHUNK)):
            read += len(chunk)
            if max_length:
                full = [pair for pair in chunk if not is_blank(pair)]
                dropped["blank"] += len(chunk) - len(full)
                chunk = full
            encoded = [
                tokenizer.encode([pair[side] for pair in chunk])
                for side, tokenizer in enumerate(tokenizers)
            ]
            if max_length:
                rows = [
                    _fault(source, target, max_length)
                    for source, target in zip(*encoded, strict=True)
                ]
                dropped.update(fault for fault in rows if fault)
                encoded = [
                    [ids for ids, fault in zip(side, rows, strict=True) if not fault]
                    for side in encoded
                ]
            for side, sentences in enumerate(encoded):
                writers[side].write(sentences)
                lengths[side].extend(len(ids) for ids in sentences)
                unknown[side] += sum(ids.count(UNKNOWN) for ids in sentences)
            notify(f"encoding {split}", read)
    if not lengths[0]:
        raise DataError(f"no pairs are left in the {split} data: {read:,} read, {dict(dropped)}")
    return {
        "read": read,
        "kept": len(lengths[0]),
        "dropped": {reason: count for reason, count in dropped.items() if count},
        **{side: _side_report(lengths[index], unknown[index]) for index, side in enumerate(SIDES)},
    }


def _fault(source: list[int], target: list[int], limits: MaxLength) -> str | None:
    if not source or not target:
        return "no tokens"
    if limits.source and len(source) > limits.source:
        return f"source over {limits.source} tokens"
    if limits.target and len(target) > limits.target:
        return f"target over {limits.target} tokens"
    return None


def _side_report(lengths: list[int], unknown: int) -> dict[str, Any]:
    tokens = sum(lengths)
    return {
        "tokens": tokens,
        "unknown": unknown,
        "length_mean": round(tokens / len(lengths), 2),
        "length_median": int(numpy.median(lengths)),
        "length_99": int(numpy.percentile(lengths, 99)),
        "length_max": max(lengths),
    }


def report(prepared: Prepared) -> list[str]:
    """What there is to know about a prepared corpus, in lines for a person."""
    lines = []
    for split, facts in prepared.manifest["splits"].items():
        dropped = "; ".join(f"{count:,} {reason}" for reason, count in facts["dropped"].items())
        lines.append(
            f"{split}: {facts['read']:,} pairs read, {facts['kept']:,} kept"
            + (f" (dropped: {dropped})" if dropped else "")
        )
        for side in SIDES:
            part = facts[side]
            share = 100 * part["unknown"] / max(1, part["tokens"])
            lines.append(
                f"  {side}: {part['tokens']:,} tokens, {share:.2f} % unknown; length mean "
                f"{part['length_mean']:.1f}, median {part['length_median']}, 99 % up to "
                f"{part['length_99']}, longest {part['length_max']}"
            )
    for side, facts in prepared.manifest["tokenizers"].items():
        asked, reached = facts["recipe"]["vocabulary"], facts["size"]
        below = "" if reached == asked else f" (asked: {asked:,}; the text gives no more)"
        lines.append(f"{side} vocabulary: {facts['recipe']['kind']}, {reached:,}{below}")
    return lines
