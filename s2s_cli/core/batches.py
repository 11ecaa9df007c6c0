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
from typing import assert_never

import numpy
import numpy.typing
import torch
from torch import Tensor

from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe.schema import Curriculum
from s2s_cli.core.tokenizer import EOS

Indices = numpy.typing.NDArray[numpy.int64]
Shares = numpy.typing.NDArray[numpy.float64]

CURRICULUM_POOL = 20  # batches, at most, that share a competence and are sorted together


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


def source_batch(text: PackedText, rows: Indices, reverse: bool) -> SourceBatch:
    """The sources of `rows`, which must come in the order of falling length.

    `reverse` turns each sentence's words round; EOS stays last in either case (Sutskever et al.
    2014, section 3.3: "c b a <EOS>").
    """
    lengths = text.lengths[rows]
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
    rows = rows[numpy.argsort(-pairs.source.lengths[rows], kind="stable")]
    lengths = pairs.target.lengths[rows]
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
class BatchPlan:
    """Which pairs come together in which update.

    In each epoch the corpus is shuffled, cut into pools of `pool` batches, each pool sorted by
    (source, target) length and cut into batches, and the batches shuffled again (Sutskever et al.
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

    def epoch(self, number: int) -> list[Indices]:
        """The batches of an epoch, each the places of its pairs.

        With a curriculum that has not come to its end an epoch has as many batches, drawn from the
        pairs that are easy enough.
        """
        generator = numpy.random.default_rng((self.seed, number))
        order = generator.permutation(len(self.pairs))
        pool = self.pool * self._sentences()
        batches: list[Indices] = []
        for start in range(0, len(order), pool):
            batches.extend(self._sorted(order[start : start + pool]))
        batches = [batches[place] for place in generator.permutation(len(batches))]
        first = number * len(batches)
        if self.curriculum is None or competence(self.curriculum, first) >= 1:
            return batches
        return list(self._easy_first(self.curriculum, generator, first, len(batches)))

    def _easy_first(
        self, curriculum: Curriculum, generator: numpy.random.Generator, first: int, count: int
    ) -> Iterator[Indices]:
        """The batches of updates `first` to `first + count` of a curriculum."""
        done = 0
        while done < count:
            level = competence(curriculum, first + done)
            # At least a batch's worth: c0 may be less than that.
            easy = numpy.flatnonzero(self._difficulty <= level)
            if len(easy) < self.size:
                easy = numpy.argsort(self._difficulty, kind="stable")[: self.size]
            # No pair twice: sorted by length, a batch would be made of copies of a few.
            number = min(self.pool, CURRICULUM_POOL, count - done, max(1, len(easy) // self.size))
            batches = list(self._sorted(generator.permutation(easy)[: number * self.size]))
            yield from (batches[place] for place in generator.permutation(len(batches)))
            done += number

    @functools.cached_property
    def _difficulty(self) -> Shares:
        """For each pair the share of pairs that are not harder (Platanios et al. 2019, 3.1)."""
        source = self.pairs.source
        numbers = source.lengths.astype(numpy.float64)
        if self.curriculum and self.curriculum.difficulty == "rarity":
            counts = numpy.bincount(source.ids)
            rarity = -numpy.log(numpy.maximum(counts, 1) / len(source.ids))
            sums = numpy.concatenate([[0.0], numpy.cumsum(rarity[source.ids])])
            numbers = numpy.diff(sums[source.offsets])
        return numpy.searchsorted(numpy.sort(numbers), numbers, side="right") / len(numbers)

    def _sorted(self, rows: Indices) -> Iterator[Indices]:
        """A pool's batches, by (source, target) length."""
        sources, targets = self.pairs.source.lengths, self.pairs.target.lengths
        rows = rows[numpy.lexsort((targets[rows], sources[rows]))]
        return self._cut(rows, numpy.maximum(sources[rows], targets[rows]) + 1)

    def _sentences(self) -> int:
        if self.unit == "sentences":
            return self.size
        mean = numpy.maximum(self.pairs.source.lengths, self.pairs.target.lengths).mean() + 1
        return max(1, round(self.size / float(mean)))

    def _cut(self, rows: Indices, lengths: Indices) -> Iterator[Indices]:
        if self.unit == "sentences":
            yield from (rows[i : i + self.size] for i in range(0, len(rows), self.size))
            return
        first, longest = 0, 0
        for place, length in enumerate(lengths.tolist()):
            longest = max(longest, length)
            if place > first and longest * (place - first + 1) > self.size:
                yield rows[first:place]
                first, longest = place, length
        yield rows[first:]


def by_length(sources: Sequence[Sequence[int]], size: int) -> Iterator[Indices]:
    """Places of `sources` in batches of at most `size`, the longest sentences first."""
    order = numpy.argsort([-len(ids) for ids in sources], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
