"""From packed ids to the padded matrices of an update.

# B sentences of a batch, S longest source, T longest target; EOS counted in both

The source is reversed here and nowhere else: before padding, EOS last. Rows stand in the order of
falling source length and the source is padded on the left, so that every row ends at the last
step; the encoder needs both (see `core.model.recurrent`).
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy
import numpy.typing
import torch
from torch import Tensor

from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe.schema import Curriculum
from s2s_cli.core.tokenizer import EOS

Indices = numpy.typing.NDArray[numpy.int64]
SmallIndices = numpy.typing.NDArray[numpy.unsignedinteger[Any]]
Shares = numpy.typing.NDArray[numpy.float64]

CURRICULUM_POOL = 20  # batches, at most, that share a competence and are sorted together
CHUNK = 1 << 18  # sentences that are counted at a time
# Words of the padded sources that a search reads together: what it remembers of each takes memory.
LARGEST_BATCH = 1 << 15


@dataclass(frozen=True)
class SourceBatch:
    """Sources for the encoder.

    words: [S, B] ids, padded on the left with EOS; lengths: [B] on the CPU, EOS counted, falling.
    """

    words: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> "SourceBatch":
        """The same, its words on `device`."""
        return SourceBatch(self.words.to(device, non_blocking=True), self.lengths)

    def pin_memory(self) -> "SourceBatch":
        """The same, in memory from which a GPU copies by itself."""
        return SourceBatch(self.words.pin_memory(), self.lengths.pin_memory())


@dataclass(frozen=True)
class Batch:
    """Pairs for an update.

    source: the encoder's side; inputs: [T, B], what the decoder reads, its start symbol first;
    targets: [N], the real words that it should say, EOS included; places: [N], where they stand
    in a flattened [T, B], the rest of which is padding.
    """

    source: SourceBatch
    inputs: Tensor
    targets: Tensor
    places: Tensor

    @property
    def sentences(self) -> int:
        """Pairs in the batch."""
        return len(self.source.lengths)

    @property
    def words(self) -> int:
        """Real target tokens, EOS counted."""
        return len(self.targets)

    def to(self, device: torch.device) -> "Batch":
        """The same, its matrices on `device`."""
        return Batch(
            self.source.to(device),
            self.inputs.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.places.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """The same, in memory from which a GPU copies by itself."""
        return Batch(
            self.source.pin_memory(),
            self.inputs.pin_memory(),
            self.targets.pin_memory(),
            self.places.pin_memory(),
        )


def source_batch(text: PackedText, rows: Indices, reverse: bool) -> SourceBatch:
    """The sources of `rows`, which must come in the order of falling length.

    `reverse` turns each sentence's words round; EOS stays last in either case (Sutskever et al.
    2014, section 3.3: "c b a <EOS>").
    """
    lengths = text.lengths_of(rows)
    steps = int(lengths.max()) + 1
    # Place p of a row's last `length` places before EOS holds its word p - (steps - 1 - length).
    place = numpy.arange(steps - 1)[:, None] - (steps - 1 - lengths)[None, :]
    real = place >= 0
    word = (lengths - 1)[None, :] - place if reverse else place
    words = numpy.full((steps, len(rows)), EOS, dtype=numpy.int64)
    words[:-1][real] = text.ids[(text.offsets[rows][None, :] + word)[real]]
    return SourceBatch(torch.from_numpy(words), torch.from_numpy(lengths + 1))


def make_batch(pairs: PackedPairs, rows: Indices, *, reverse: bool, start: int) -> Batch:
    """The pairs at `rows`, sorted by falling source length.

    Args:
        pairs: the corpus.
        rows: [B] places in it.
        reverse: whether the source's words come last to first.
        start: the id that the decoder reads first, BOS or EOS.
    """
    rows = rows[numpy.argsort(-pairs.source.lengths_of(rows), kind="stable")]
    lengths = pairs.target.lengths_of(rows)
    steps = int(lengths.max()) + 1
    place = numpy.arange(steps)[:, None]
    words = numpy.full((steps, len(rows)), EOS, dtype=numpy.int64)
    inside = place < lengths[None, :]
    words[inside] = pairs.target.ids[(pairs.target.offsets[rows][None, :] + place)[inside]]
    inputs = numpy.empty_like(words)
    inputs[0] = start
    inputs[1:] = words[:-1]
    places = numpy.flatnonzero(place <= lengths[None, :])
    return Batch(
        source=source_batch(pairs.source, rows, reverse),
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(words.ravel()[places]),
        places=torch.from_numpy(places),
    )


def competence(curriculum: Curriculum, update: int) -> float:
    """c(t), the share of pairs that may be drawn (Platanios et al. 2019)."""
    start = curriculum.start
    if update >= curriculum.updates:
        return 1.0  # which the quotients below may miss by a rounding
    match curriculum.competence:
        case "linear":
            return update * (1 - start) / curriculum.updates + start
        case "root":
            return math.sqrt(update * (1 - start**2) / curriculum.updates + start**2)
        case _:
            assert_never(curriculum.competence)


@dataclass(frozen=True)
class Epoch:
    """The batches of an epoch, in their order, in about 4 bytes a pair.

    order: [pairs], places in the corpus, in the smallest type that holds them; bounds:
    [batches, 2], where in `order` a batch begins and ends.
    """

    order: SmallIndices
    bounds: Indices

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, number: int) -> Indices:
        """The places of a batch's pairs. [B]"""
        first, end = self.bounds[number]
        return self.order[first:end].astype(numpy.int64)


@dataclass(frozen=True)
class BatchPlan:
    """Which pairs come together in which update.

    In each epoch the corpus is shuffled, cut into pools of `pool` batches, each pool sorted by
    source and target length and cut into batches, and the batches shuffled again (Sutskever et al.
    2014, section 3.4: sentences of a minibatch roughly of the same length). A plan is a function
    of (seed, epoch) alone, so a batch's number is all that resuming has to remember.

    With a curriculum the pairs of an update are drawn from those easy enough, until all are.

    unit: `sentences` or `tokens`; size: of a batch, in units. A batch of tokens holds as many
    pairs as fit when the longer side, EOS counted, is padded to the longest of the batch.
    """

    pairs: PackedPairs
    unit: str
    size: int
    pool: int
    seed: int
    curriculum: Curriculum | None = None

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch.

        With a curriculum that has not come to its end an epoch has as many batches, drawn from the
        pairs that are easy enough.
        """
        generator = numpy.random.default_rng((self.seed, number))
        order = numpy.arange(len(self.pairs), dtype=self._type)
        generator.shuffle(order)
        pool = self.pool * self._sentences
        # Slices are views: the pools are sorted where they stand.
        pools = range(0, len(order), pool)
        bounds = numpy.concatenate([self._sort(order[at : at + pool]) + at for at in pools])
        bounds = bounds[generator.permutation(len(bounds))]
        first = number * len(bounds)
        if self.curriculum is None or competence(self.curriculum, first) >= 1:
            return Epoch(order, bounds)
        return self._easy_first(self.curriculum, generator, first, len(bounds))

    def _easy_first(
        self, curriculum: Curriculum, generator: numpy.random.Generator, first: int, count: int
    ) -> Epoch:
        """The batches of updates `first` to `first + count` of a curriculum."""
        ranking, shares = self._difficulty
        drawn: list[SmallIndices] = []
        bounds: list[Indices] = []
        done = pairs = 0
        while done < count:
            level = competence(curriculum, first + done)
            # At least a batch's worth: c0 may be less than that.
            easy = max(
                int(numpy.searchsorted(shares, level, side="right")),
                min(self.size, len(self.pairs)),
            )
            # No pair twice: sorted by length, a batch would be made of copies of a few.
            number = min(self.pool, CURRICULUM_POOL, count - done, max(1, easy // self.size))
            wanted = min(number * self.size, easy)
            rows = ranking[generator.choice(easy, wanted, replace=False)]
            found = self._sort(rows) + pairs
            drawn.append(rows)
            bounds.append(found[generator.permutation(len(found))])
            pairs += len(rows)
            done += number
        return Epoch(numpy.concatenate(drawn), numpy.concatenate(bounds))

    @functools.cached_property
    def _difficulty(self) -> tuple[SmallIndices, Shares]:
        """The pairs from easy to hard, and for each the share of pairs that are not harder.

        Platanios et al. 2019, section 3.1.
        """
        source = self.pairs.source
        if self.curriculum and self.curriculum.difficulty == "rarity":
            numbers = _rarities(source)
        else:
            numbers = source.lengths.astype(numpy.float64)
        ranking = numpy.argsort(numbers, kind="stable")
        ranked = numbers[ranking]
        shares = numpy.searchsorted(ranked, ranked, side="right") / len(ranked)
        return ranking.astype(self._type), shares

    @property
    def _type(self) -> numpy.dtype[Any]:
        """The smallest type that holds the number of pairs."""
        return numpy.min_scalar_type(len(self.pairs))

    @functools.cached_property
    def _sentences(self) -> int:
        """Pairs in a batch; where batches are counted in tokens, about as many."""
        if self.unit == "sentences":
            return self.size
        count, total = len(self.pairs), 0
        for start in range(0, count, CHUNK):
            total += int(self._longer(numpy.arange(start, min(start + CHUNK, count))).sum())
        return max(1, round(self.size / (total / count + 1)))

    def _longer(self, rows: Indices | SmallIndices) -> Indices:
        """Tokens of the longer side of each pair, EOS not counted. [rows]"""
        source, target = self.pairs.source, self.pairs.target
        return numpy.maximum(source.lengths_of(rows), target.lengths_of(rows))

    def _sort(self, rows: SmallIndices) -> Indices:
        """Sorts a pool by source length, then target length, in place; its batches' bounds.

        Of one source length the targets rise, of the next they fall: a batch that has pairs of
        both has targets of like length all the same.
        """
        source, target = (side.lengths_of(rows) for side in (self.pairs.source, self.pairs.target))
        turning = numpy.where(source % 2, target.max() - target, target)
        # Numbers of one or two bytes are sorted without comparing them, six times as fast.
        keys = (turning, source)
        small = [lengths.astype(numpy.min_scalar_type(lengths.max())) for lengths in keys]
        rows[:] = rows[numpy.lexsort(small)]
        starts = self._starts(rows)
        return numpy.stack((starts, numpy.append(starts[1:], len(rows))), axis=1)

    def _starts(self, rows: SmallIndices) -> Indices:
        """Where the batches of a sorted pool begin."""
        if self.unit == "sentences":
            return numpy.arange(0, len(rows), self.size)
        lengths = self._longer(rows) + 1
        starts = []
        first = 0
        while first < len(rows):
            starts.append(first)
            # More pairs would be too large even if the first were the longest.
            near = lengths[first : first + self.size // int(lengths[first]) + 1]
            cells = numpy.maximum.accumulate(near) * numpy.arange(1, len(near) + 1)
            first += max(1, int(numpy.searchsorted(cells, self.size, side="right")))
        return numpy.array(starts)


def _rarities(text: PackedText) -> Shares:
    """The negative log-probability of each sentence's words by their frequencies. [sentences]"""
    firsts = range(0, len(text), CHUNK)
    chunks = [text.offsets[first : first + CHUNK + 1] for first in firsts]
    words = 1 + int(text.ids.max())
    counts = sum(
        numpy.bincount(text.ids[offsets[0] : offsets[-1]], minlength=words) for offsets in chunks
    )
    rarity = -numpy.log(numpy.maximum(counts, 1) / len(text.ids))
    found = []
    for offsets in chunks:
        sums = numpy.cumsum(rarity[text.ids[offsets[0] : offsets[-1]]])
        found.append(numpy.diff(numpy.concatenate([[0.0], sums])[offsets - offsets[0]]))
    return numpy.concatenate(found)


def by_length(
    sources: Sequence[Sequence[int]], size: int, words: int | None = None
) -> Iterator[Indices]:
    """Places of `sources` in batches of at most `size`, the longest sentences first.

    words: that a padded batch holds at most, EOS counted, but for a single sentence.
    """
    lengths = [len(ids) for ids in sources]
    order = numpy.argsort([-length for length in lengths], kind="stable")
    start = 0
    while start < len(order):
        fit = size if words is None else words // (lengths[order[start]] + 1)
        end = start + max(1, min(size, fit))
        yield order[start:end]
        start = end
