"""Batches against a builder in plain Python, and the plan of an epoch against its promises."""

import itertools
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import pytest
import torch
from conftest import place_in_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2s_cli.core import batches as module
from s2s_cli.core.batches import BatchPlan, Epoch, Indices, by_length, make_batch, source_batch
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.tokenizer import BOS, EOS

# A busy machine is no mistake.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SENTENCE = st.lists(st.integers(3, 30), max_size=6)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=9)
Pair = tuple[list[int], list[int]]


def packed(pairs: Sequence[Pair]) -> PackedPairs:
    sources, targets = zip(*pairs, strict=True)
    return PackedPairs(PackedText.pack(sources), PackedText.pack(targets))


@dataclass
class Expected:
    """A batch as lists: `source[step][row]`, `inputs[step][row]`."""

    source: list[list[int]]
    lengths: list[int]
    inputs: list[list[int]]
    targets: list[int]
    places: list[int]


def expected(pairs: Sequence[Pair], rows: Sequence[int], reverse: bool, start: int) -> Expected:
    """What the docstrings promise, one cell at a time."""
    chosen = sorted((pairs[row] for row in rows), key=lambda pair: -len(pair[0]))
    sources = [(words[::-1] if reverse else words) + [EOS] for words, _ in chosen]
    longest = max(map(len, sources))
    left = [[EOS] * (longest - len(words)) + words for words in sources]
    said = [[*words, EOS] for _, words in chosen]
    steps = max(map(len, said))
    read = [[start] + words + [EOS] * (steps - len(words)) for words in said]
    batch = Expected(
        source=[[row[step] for row in left] for step in range(longest)],
        lengths=[len(words) for words in sources],
        inputs=[[row[step] for row in read] for step in range(steps)],
        targets=[],
        places=[],
    )
    for step in range(steps):
        for row, words in enumerate(said):
            if step < len(words):
                batch.targets.append(words[step])
                batch.places.append(step * len(said) + row)
    return batch


@PATIENT
@given(data=st.data(), pairs=PAIRS, reverse=st.booleans(), start=st.sampled_from([BOS, EOS]))
def test_a_batch_is_what_its_docstring_says(
    data: st.DataObject, pairs: list[Pair], reverse: bool, start: int
) -> None:
    places = range(len(pairs))
    rows = data.draw(st.lists(st.sampled_from(places), min_size=1, unique=True))
    want = expected(pairs, rows, reverse, start)
    batch = make_batch(packed(pairs), numpy.array(rows), reverse=reverse, start=start)
    assert batch.source.words.tolist() == want.source
    assert batch.source.lengths.tolist() == want.lengths
    assert batch.inputs.tolist() == want.inputs
    assert batch.targets.tolist() == want.targets
    assert batch.places.tolist() == want.places
    assert batch.words == sum(len(pairs[row][1]) + 1 for row in rows)
    assert batch.sentences == len(rows)
    tensors = (batch.source.words, batch.source.lengths, batch.inputs, batch.targets, batch.places)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


def test_the_source_is_reversed_once_before_padding_eos_last() -> None:
    pairs = packed([([11, 12], [5]), ([21, 22, 23], [6])])
    turned = make_batch(pairs, numpy.array([0, 1]), reverse=True, start=BOS)
    natural = make_batch(pairs, numpy.array([0, 1]), reverse=False, start=BOS)
    assert turned.source.words.T.tolist() == [[23, 22, 21, EOS], [EOS, 12, 11, EOS]]
    assert natural.source.words.T.tolist() == [[21, 22, 23, EOS], [EOS, 11, 12, EOS]]
    assert turned.inputs.tolist() == natural.inputs.tolist() == [[BOS, BOS], [6, 5]]


def test_ids_of_any_width_become_words() -> None:
    ids = numpy.array([65_535, 40_000], numpy.uint16)
    text = PackedText(ids, numpy.array([0, 2], numpy.int64))
    batch = source_batch(text, numpy.array([0]), reverse=True)
    assert batch.words.flatten().tolist() == [40_000, 65_535, EOS]


def test_the_corpus_is_left_as_it_was() -> None:
    pairs = packed([([1, 2, 3], [4, 5]), ([6], [7])])
    pairs.source.ids.flags.writeable = False
    pairs.target.ids.flags.writeable = False
    batch = make_batch(pairs, numpy.array([1, 0]), reverse=True, start=BOS)
    batch.source.words.fill_(9)
    batch.targets.fill_(9)
    assert [pairs.source[0], pairs.source[1]] == [[1, 2, 3], [6]]
    assert [pairs.target[0], pairs.target[1]] == [[4, 5], [7]]


# --- the plan of an epoch --------------------------------------------------------------------


def corpus(count: int, longest: int = 50) -> PackedPairs:
    """Pairs of all lengths, the target about as long as the source."""
    draw = random.Random(count)
    made = []
    for _ in range(count):
        length = draw.randint(1, longest)
        made.append(([7] * length, [8] * max(1, length + draw.randint(-2, 2))))
    return packed(made)


def plan(pairs: PackedPairs, unit: str, size: int, pool: int = 20, seed: int = 1) -> BatchPlan:
    return BatchPlan(pairs, unit, size, pool, seed)


def as_lists(batches: Epoch | list[Indices]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def flat(batches: Epoch) -> list[int]:
    return list(itertools.chain.from_iterable(as_lists(batches)))


def in_order(made: BatchPlan, epoch: int) -> list[list[int]]:
    """The batches of an epoch as the docstring of a plan has them, pair by pair."""
    generator = numpy.random.default_rng((made.seed, epoch))
    pairs, size = made.pairs, made.size
    lengths = [(len(pairs.source[row]), len(pairs.target[row])) for row in range(len(pairs))]
    order = generator.permutation(len(pairs)).tolist()
    sentences = size
    if made.unit == "tokens":
        mean = sum(map(max, lengths)) / len(pairs) + 1
        sentences = max(1, round(size / mean))
    batches: list[list[int]] = []
    for start in range(0, len(pairs), made.pool * sentences):
        longest = 0
        batches.append([])
        pool = order[start : start + made.pool * sentences]
        for row in sorted(pool, key=lambda row: place_in_pool(*lengths[row])):
            longest = max(longest, max(lengths[row]) + 1)
            units = len(batches[-1]) + 1
            if batches[-1] and (longest * units if made.unit == "tokens" else units) > size:
                batches.append([])
                longest = max(lengths[row]) + 1
            batches[-1].append(row)
    return [batches[place] for place in generator.permutation(len(batches))]


def of_lengths(sources: Sequence[int], targets: Sequence[int]) -> PackedPairs:
    """Pairs of so many words, all of them the same."""
    sides = []
    for lengths in (sources, targets):
        offsets = numpy.concatenate([[0], numpy.cumsum(lengths)])
        sides.append(PackedText(numpy.full(offsets[-1], 7, numpy.uint16), offsets))
    return PackedPairs(*sides)


# A byte holds 255, two bytes 65,535: places in a corpus are kept in as few as hold them all.
@pytest.mark.parametrize("count", [1, 2, 254, 255, 256, 257, 1000, 65_535, 65_536, 65_537])
@pytest.mark.parametrize(("unit", "size"), [("sentences", 7), ("tokens", 900)])
def test_the_order_is_the_plain_algorithms(
    count: int, unit: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays so: a run that goes on, or a paper's that is done again, meets the same batches."""
    monkeypatch.setattr(module, "CHUNK", 300)
    draw = numpy.random.default_rng(count)
    sides = draw.integers(0, 60 if count > 2000 else 400, (2, count))
    pairs = of_lengths(*sides)
    for pool, epoch in [(40, 3)] if count > 2000 else itertools.product((1, 3, 1000), range(3)):
        made = plan(pairs, unit, size, pool, seed=count)
        assert as_lists(made.epoch(epoch)) == in_order(made, epoch)


@settings(PATIENT, max_examples=50)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 300)), min_size=1),
    unit=st.sampled_from(["sentences", "tokens"]),
    size=st.integers(1, 2000),
    pool=st.integers(1, 9),
)
def test_the_order_is_the_plain_algorithms_for_any_lengths(
    lengths: list[tuple[int, int]], unit: str, size: int, pool: int
) -> None:
    made = plan(of_lengths(*zip(*lengths, strict=True)), unit, size, pool)
    assert as_lists(made.epoch(0)) == in_order(made, 0)


@pytest.mark.parametrize(("unit", "size"), [("sentences", 100), ("tokens", 1100)])
def test_an_epoch_holds_four_bytes_a_pair(
    unit: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more than one and a half times as many while it is made."""
    monkeypatch.setattr(module, "CHUNK", 1000)
    count = 200_000
    pairs = of_lengths(*numpy.random.default_rng(1).integers(1, 20, (2, count)))
    made = plan(pairs, unit, size)
    tracemalloc.start()
    try:
        epoch = made.epoch(0)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(flat(epoch)) == count
    assert 4 * count < held < 4.5 * count
    assert most < 6 * count


UNITS = [("sentences", 16), ("sentences", 1), ("sentences", 5000), ("tokens", 400), ("tokens", 1)]


@pytest.mark.parametrize(("unit", "size"), UNITS)
@pytest.mark.parametrize("pool", [1, 3, 1000])
def test_every_pair_comes_once_an_epoch(unit: str, size: int, pool: int) -> None:
    made = plan(corpus(777), unit, size, pool)
    for epoch in range(3):
        assert sorted(flat(made.epoch(epoch))) == list(range(777))


@settings(PATIENT, max_examples=50)
@given(
    pairs=PAIRS,
    unit=st.sampled_from(["sentences", "tokens"]),
    size=st.integers(1, 12),
    pool=st.integers(1, 4),
    epoch=st.integers(0, 5),
)
def test_every_pair_comes_once_in_any_small_corpus(
    pairs: list[Pair], unit: str, size: int, pool: int, epoch: int
) -> None:
    batches = plan(packed(pairs), unit, size, pool).epoch(epoch)
    assert sorted(flat(batches)) == list(range(len(pairs)))
    assert all(len(batch) for batch in batches)


def test_batches_of_sentences_are_full() -> None:
    sizes = [len(batch) for batch in plan(corpus(777), "sentences", 16).epoch(0)]
    # Two pools of 20 batches, and 137 pairs left: 8 batches and one of 9.
    assert sorted(sizes) == [9] + [16] * 48


@pytest.mark.parametrize(("unit", "size"), [("sentences", 16), ("tokens", 400)])
def test_the_order_is_a_function_of_seed_and_epoch(unit: str, size: int) -> None:
    pairs = corpus(777)
    first = as_lists(plan(pairs, unit, size).epoch(3))
    # In any order of asking, and from another object: a resumed run asks for its epoch alone.
    other = plan(corpus(777), unit, size)
    other.epoch(7)
    assert as_lists(other.epoch(3)) == first
    epochs = [as_lists(other.epoch(number)) for number in range(4)]
    epochs.append(as_lists(plan(pairs, unit, size, seed=2).epoch(3)))
    assert epochs[3] == first
    # Not only the order of the batches differs: other pairs come together.
    together = [frozenset(map(frozenset, epoch)) for epoch in epochs]
    assert len(set(together)) == 5


def real_share(pairs: PackedPairs, batches: Epoch | list[Indices]) -> float:
    """Real source tokens, EOS counted, among the cells of the padded matrices."""
    lengths = [pairs.source.lengths[batch] + 1 for batch in batches]
    cells = sum(int(each.max()) * len(each) for each in lengths)
    return sum(int(each.sum()) for each in lengths) / cells


def test_pairs_of_a_length_come_together() -> None:
    pairs = corpus(4000)
    unsorted = numpy.array_split(numpy.random.default_rng(1).permutation(4000), 125)
    assert real_share(pairs, unsorted) < 0.6
    assert real_share(pairs, plan(pairs, "sentences", 32, pool=50).epoch(0)) > 0.95
    assert real_share(pairs, plan(pairs, "tokens", 800, pool=50).epoch(0)) > 0.95


def test_only_a_pool_is_sorted_and_its_batches_come_mixed() -> None:
    pairs = corpus(4000)
    alone = plan(pairs, "sentences", 32, pool=1).epoch(0)
    assert real_share(pairs, alone) < 0.6
    means = [pairs.source.lengths[batch].mean() for batch in plan(pairs, "sentences", 32).epoch(0)]
    rising = sum(left < right for left, right in itertools.pairwise(means))
    assert 0.4 < rising / len(means) < 0.6
    assert abs(numpy.mean(means[:60]) - numpy.mean(means[60:])) < 6


def test_of_one_source_length_the_targets_are_sorted_too() -> None:
    draw = random.Random(1)
    pairs = packed([([7] * 5, [8] * draw.randint(1, 40)) for _ in range(640)])
    spreads = [
        int(numpy.ptp(pairs.target.lengths[batch]))
        for batch in plan(pairs, "sentences", 32, pool=20).epoch(0)
    ]
    assert max(spreads) <= 4


def test_targets_are_alike_where_two_source_lengths_meet() -> None:
    """Batches of 32 out of 48 pairs a source length, of which each second has two lengths."""
    draw = random.Random(2)
    pairs = packed(
        [([7] * source, [8] * draw.randint(1, 40)) for source in range(1, 21) for _ in range(48)]
    )
    made = plan(pairs, "sentences", 32, pool=30).epoch(0)
    mixed = [batch for batch in made if numpy.ptp(pairs.source.lengths[batch])]
    assert mixed
    # A third of a length's targets on either side: they lie in the same third of all lengths.
    assert max(int(numpy.ptp(pairs.target.lengths[batch])) for batch in mixed) <= 24


@pytest.mark.parametrize("size", [1, 20, 53, 400])
def test_a_batch_of_tokens_never_exceeds_its_size(size: int) -> None:
    pairs = corpus(999)
    longest = numpy.maximum(pairs.source.lengths, pairs.target.lengths) + 1
    for batch in plan(pairs, "tokens", size, pool=7).epoch(0):
        assert len(batch) == 1 or int(longest[batch].max()) * len(batch) <= size


@pytest.mark.parametrize(("source", "target"), [(7, 3), (3, 7)])
def test_a_batch_of_tokens_is_as_large_as_fits(source: int, target: int) -> None:
    pairs = packed([([9] * source, [9] * target)] * 40)
    # The longer side has 8 tokens with its EOS: 4 pairs fill 32 exactly, and 39 hold no fifth.
    for size in (32, 39):
        sizes = [len(batch) for batch in plan(pairs, "tokens", size, pool=100).epoch(0)]
        assert sizes == [4] * 10


def test_one_long_pair_does_not_make_the_next_batches_small() -> None:
    pairs = packed([([9], [9] * 30)] + [([9] * 3, [9] * 3)] * 40)
    sizes = [len(batch) for batch in plan(pairs, "tokens", 40, pool=100).epoch(0)]
    assert sorted(sizes) == [1, 10, 10, 10, 10]


# --- for the search --------------------------------------------------------------------------


@PATIENT
@given(sources=st.lists(SENTENCE, max_size=20), size=st.integers(1, 7))
def test_by_length_takes_the_longest_first(sources: list[list[int]], size: int) -> None:
    batches = as_lists(list(by_length(sources, size)))
    order = [place for batch in batches for place in batch]
    assert order == sorted(range(len(sources)), key=lambda place: -len(sources[place]))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(1 <= len(batch) <= size for batch in batches)


@PATIENT
@given(sources=st.lists(SENTENCE, max_size=20), size=st.integers(1, 7), words=st.integers(1, 30))
def test_by_length_holds_no_more_words_than_it_may(
    sources: list[list[int]], size: int, words: int
) -> None:
    batches = as_lists(list(by_length(sources, size, words)))
    assert [place for batch in batches for place in batch] == [
        place for batch in as_lists(list(by_length(sources, 1))) for place in batch
    ]
    for batch, after in itertools.pairwise([*batches, []]):
        padded = (len(sources[batch[0]]) + 1) * len(batch)
        assert len(batch) == 1 or padded <= words
        # And no fewer than it may.
        full = padded + len(sources[batch[0]]) + 1 > words
        assert full or len(batch) == size or not after
