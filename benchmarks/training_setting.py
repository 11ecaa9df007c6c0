"""What the benchmark trains: sizes, recipes and text, the same for all programs.

# B sentences of a batch
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from s2s_cli.core.batches import BatchPlan, Indices
from s2s_cli.core.prepared import PackedPairs, PackedText, fingerprint, open_prepared, prepare
from s2s_cli.core.prepared.packed import PackedWriter, id_type
from s2s_cli.core.recipe import Recipe, load

SMALL = """
[data.train]
kind = "text"
source = "{source}"
target = "{target}"

[tokenizer]
kind = "shared"

[tokenizer.model]
kind = "{tokenizer}"
vocabulary = 8000

[batches]
size = 128

[model.encoder]
layers = 2
embedding = 512
hidden = 512
dropout = 0.2
embedding_dropout = 0.2

[model.decoder]
{decoder}
layers = 2
embedding = 512
hidden = 512
dropout = 0.2
embedding_dropout = 0.2
output_dropout = 0.2
{attention}
[optimizer]
kind = "adam"
lr = 0.001

[schedule]
kind = "constant"

[training]
loss_per = "word"
clip = 1.0
precision = "{precision}"
"""

# The decoder's own keys, and its tables.
READOUT = '[model.decoder.readout]\nkind = "tanh"\nsize = 512\n'
GENERAL = f'[model.decoder.attention]\nkind = "general"\n{READOUT}'
ADDITIVE = f'[model.decoder.attention]\nkind = "additive"\nsize = 512\n{READOUT}'
DECODERS = {
    "plain": ('kind = "plain"', ""),
    "attention": ('kind = "attention"', GENERAL),
    "feeding": ('kind = "attention"\ninput_feeding = true', GENERAL),
    "additive": ('kind = "attention"\nquery = "previous"', ADDITIVE),
}
PAPER = "sutskever2014/wmt14-en-fr"
PAPER_VOCABULARIES = (160_000, 80_000)
PAPER_PAIRS = 256_000


@dataclass(frozen=True)
class Setting:
    """All that a program needs to know; it goes to another process.

    recipe: a file, or the name of a packaged one; corpus: the folder of the packed ids; updates:
    batches of a round.
    """

    size: str
    decoder: str
    precision: str
    device: str
    threads: int
    updates: int
    recipe: str
    corpus: Path

    def load(self) -> Recipe:
        """The recipe, in this precision."""
        return load(self.recipe, [f"training.precision={self.precision}"])

    def corpus_opened(self) -> "Corpus":
        """The text, its ids memory-mapped."""
        if self.size == "small":
            prepared = open_prepared(self.corpus)
            sizes = (prepared.source_tokenizer.size, prepared.target_tokenizer.size)
            return Corpus(prepared.train, *sizes)
        return open_synthetic(self.corpus)


@dataclass(frozen=True)
class Corpus:
    """Pairs, and how many words there are on each side."""

    pairs: PackedPairs
    source_vocabulary: int
    target_vocabulary: int

    def plan(self, recipe: Recipe) -> BatchPlan:
        """Which pairs come together, as in a training."""
        spec = recipe.batches
        return BatchPlan(self.pairs, spec.unit, spec.size, spec.pool, recipe.training.seed)

    def batches(self, recipe: Recipe, count: int) -> list[Indices]:
        """The first batches of the first epoch."""
        epoch = self.plan(recipe).epoch(0)
        return [epoch[number] for number in range(min(count, len(epoch)))]


def setting_of(options: Any, decoder: str, precision: str) -> Setting | None:
    """A setting, its text prepared; None where there is no text, which is said."""
    if options.size == "paper":
        recipe, corpus = PAPER, options.out / "synthetic"
        if not (corpus / "complete").exists():
            write_synthetic(corpus)
    else:
        found = small_recipe(options, decoder, precision)
        if found is None:
            return None
        recipe = found
        loaded = load(recipe)
        corpus = options.out / f"prepared-{fingerprint(loaded)}"
        prepare(loaded, corpus)
    return Setting(
        size=options.size,
        decoder=decoder,
        precision=precision,
        device=options.device,
        threads=options.threads,
        updates=options.updates or (20 if options.size == "small" else 5),
        recipe=recipe,
        corpus=corpus,
    )


def small_recipe(options: Any, decoder: str, precision: str) -> str | None:
    """The small model's recipe, written down: its path. None where its text is not there."""
    segmented = options.peers / "data/bpe" if options.peers else None
    files = [(segmented or options.data) / f"train.{side}" for side in ("en", "fr")]
    if not segmented:
        files = [file.with_name(f"{file.name}.gz") for file in files]
    missing = [file for file in files if not file.exists()]
    if missing:
        print(f"skipped: there is no {missing[0]}; name your own text with --data")
        return None
    own, tables = DECODERS[decoder]
    tokenizer = "words" if segmented else "bpe"
    path: Path = options.out / "recipes" / f"{decoder}-{precision}-{tokenizer}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = SMALL.format(
        source=files[0].resolve(),
        target=files[1].resolve(),
        tokenizer=tokenizer,
        decoder=own,
        attention=tables,
        precision=precision,
    )
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- synthetic text --------------------------------------------------------------------------


def write_synthetic(folder: Path) -> None:
    """Pairs with lengths as in WMT'14 and words as rare as in Zipf's law, without meaning."""
    folder.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(0)
    first = random.normal(size=PAPER_PAIRS)
    second = 0.93 * first + numpy.sqrt(1 - 0.93**2) * random.normal(size=PAPER_PAIRS)
    sides = (("source", 3.05, first), ("target", 3.12, second))
    for (name, mean, normal), vocabulary in zip(sides, PAPER_VOCABULARIES, strict=True):
        lengths = numpy.clip(numpy.exp(mean + 0.62 * normal).round(), 1, 100).astype(int)
        ends = numpy.cumsum(lengths)
        shares = numpy.cumsum(1 / (numpy.arange(vocabulary - 3) + 2.7))
        words = 3 + numpy.searchsorted(shares / shares[-1], random.random(ends[-1]))
        with PackedWriter(folder, f"train.{name}", vocabulary) as writer:
            writer.write(numpy.split(words, ends[:-1]))
    (folder / "complete").write_text(json.dumps({"pairs": PAPER_PAIRS}), encoding="utf-8")


def open_synthetic(folder: Path) -> Corpus:
    """The synthetic pairs, memory-mapped as a prepared corpus would be."""
    sides = [
        PackedText(
            numpy.memmap(folder / f"train.{name}.ids", id_type(vocabulary), mode="r"),
            numpy.memmap(folder / f"train.{name}.offsets", numpy.int64, mode="r"),
        )
        for name, vocabulary in zip(("source", "target"), PAPER_VOCABULARIES, strict=True)
    ]
    return Corpus(PackedPairs(*sides), *PAPER_VOCABULARIES)
