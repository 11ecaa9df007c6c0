"""Easy pairs first (Platanios et al. 2019): what may be drawn at an update, and that it is."""

import itertools
import math
import random
from collections import Counter
from typing import Any

import numpy
import pytest
from conftest import place_in_pool

from s2s_cli.core.batches import CURRICULUM_POOL, BatchPlan, competence
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe.schema import Curriculum

SIZE = 8
PAIRS = 500
EPOCH = 63  # batches: 500 / 8, rounded up


def curriculum(**changes: Any) -> Curriculum:
    keys = {"difficulty": "length", "start": 0.1, "updates": 100, **changes}
    return Curriculum.model_validate(keys)


def corpus(count: int = PAIRS) -> PackedPairs:
    """Sources of up to 20 words, of which a few are frequent."""
    draw = random.Random(1)
    words, shares = range(3, 40), [1 / (rank + 1) for rank in range(37)]
    sources = [draw.choices(words, shares, k=draw.randint(1, 20)) for _ in range(count)]
    return PackedPairs(
        PackedText.pack(sources), PackedText.pack([source[:3] for source in sources])
    )


POOL = 5


def plan(pairs: PackedPairs, spec: Curriculum | None, seed: int = 1, size: int = SIZE) -> BatchPlan:
    return BatchPlan(pairs, "sentences", size, POOL, seed, spec)


def batches(made: BatchPlan, epoch: int) -> list[list[int]]:
    return [batch.tolist() for batch in made.epoch(epoch)]


def shares_not_harder(pairs: PackedPairs, difficulty: str) -> list[float]:
    """The empirical distribution function at each pair, counted pair by pair."""
    sources = [pairs.source[row] for row in range(len(pairs))]
    counts = Counter(itertools.chain.from_iterable(sources))
    total = sum(counts.values())
    found = [
        float(len(source))
        if difficulty == "length"
        else -sum(math.log(counts[word] / total) for word in source)
        for source in sources
    ]
    # Sums of the same words in another order are the same difficulty.
    return [sum(other <= own + 1e-9 for other in found) / len(found) for own in found]


# --- competence ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.01, 0.3, 1.0])
def test_competence_is_the_papers(start: float) -> None:
    """c(t) = min(1, t (1 - c0) / T + c0), and min(1, sqrt(t (1 - c0^2) / T + c0^2))."""
    for update in (0, 1, 33, 50, 99, 100, 101, 10**9):
        line = update * (1 - start) / 100 + start
        root = math.sqrt(update * (1 - start**2) / 100 + start**2)
        for name, expected in (("linear", line), ("root", root)):
            found = competence(curriculum(start=start, competence=name), update)
            assert found == pytest.approx(min(1.0, expected), rel=1e-12), (name, update)
    assert curriculum().competence == "root"


@pytest.mark.parametrize("name", ["linear", "root"])
def test_competence_is_whole_from_its_last_update_on(name: str) -> None:
    """Not a rounding less: the hardest pair of all would be missing."""
    for percent, updates in itertools.product(range(1, 101), (1, 7, 49, 93, 6500)):
        spec = curriculum(competence=name, start=percent / 100, updates=updates)
        assert competence(spec, updates) == competence(spec, updates + 1) == 1.0
        assert competence(spec, 0) == pytest.approx(percent / 100)
        if percent < 100:
            assert competence(spec, updates - 1) < 1.0


# --- what is drawn ---------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", ["length", "rarity"])
@pytest.mark.parametrize("name", ["linear", "root"])
def test_no_pair_is_harder_than_the_competence(difficulty: str, name: str) -> None:
    pairs = corpus()
    share = shares_not_harder(pairs, difficulty)
    spec = curriculum(difficulty=difficulty, competence=name, updates=150)
    made = plan(pairs, spec)
    for epoch in range(3):
        drawn = batches(made, epoch)
        for number, batch in enumerate(drawn):
            level = competence(spec, epoch * EPOCH + number)
            assert max(share[row] for row in batch) <= level + 1e-12, (epoch, number)
        # Nor is anything left out that was easy enough when the batches were put together.
        for end in range(CURRICULUM_POOL, EPOCH, 7):
            level = competence(spec, epoch * EPOCH + end - CURRICULUM_POOL)
            latest = itertools.chain.from_iterable(drawn[max(0, end - 20) : end + 20])
            assert max(share[row] for row in latest) > 0.85 * level, (epoch, end)


def in_order(made: BatchPlan, epoch: int) -> list[list[int]]:
    """The batches of an epoch as the docstrings have them, pair by pair."""
    spec, pairs, size = made.curriculum, made.pairs, made.size
    assert spec
    generator = numpy.random.default_rng((made.seed, epoch))
    count = math.ceil(len(pairs) / size)
    generator.permutation(len(pairs))  # the two shuffles of an epoch without a curriculum
    generator.permutation(count)
    share = shares_not_harder(pairs, spec.difficulty)
    drawn: list[list[int]] = []
    while len(drawn) < count:
        level = competence(spec, epoch * count + len(drawn))
        ranking = sorted(range(len(pairs)), key=share.__getitem__)
        easy = [row for row in ranking if share[row] <= level]
        if len(easy) < size:
            easy = ranking[:size]
        number = min(made.pool, CURRICULUM_POOL, count - len(drawn), max(1, len(easy) // size))
        wanted = min(number * size, len(easy))
        rows = [easy[place] for place in generator.choice(len(easy), wanted, replace=False)]
        rows.sort(key=lambda row: place_in_pool(len(pairs.source[row]), len(pairs.target[row])))
        cut = [rows[start : start + size] for start in range(0, len(rows), size)]
        drawn += [cut[place] for place in generator.permutation(len(cut))]
    return drawn


# Sums of rarities may differ by a rounding, and which of two equal pairs comes first with them.
@pytest.mark.parametrize("count", [3, 255, 256, 300])
@pytest.mark.parametrize("pool", [2, 1000])
def test_the_order_is_the_plain_algorithms(count: int, pool: int) -> None:
    spec = curriculum(start=0.01, updates=10**4)
    made = BatchPlan(corpus(count), "sentences", SIZE, pool, 2, spec)
    for epoch in (0, 5):
        assert batches(made, epoch) == in_order(made, epoch)


def test_the_easy_pairs_are_drawn_without_putting_one_back() -> None:
    pairs = corpus()
    share = shares_not_harder(pairs, "length")
    spec = curriculum(start=0.2, updates=10**6)
    easy = {row for row in range(PAIRS) if share[row] <= 0.2}
    drawn = batches(plan(pairs, spec), 0)
    # As many batches as there are easy pairs for, and no more than a pool has, share a draw.
    draw = min(len(easy) // SIZE, POOL)
    assert 2 < draw < CURRICULUM_POOL
    for start in range(0, EPOCH, draw):
        rows = list(itertools.chain.from_iterable(drawn[start : start + draw]))
        assert len(rows) == len(set(rows))
    assert set(itertools.chain.from_iterable(drawn)) == easy


def test_where_less_than_a_batch_is_easy_the_easiest_come() -> None:
    pairs = PackedPairs(*[PackedText.pack([[5] * (row + 1) for row in range(100)])] * 2)
    made = plan(pairs, curriculum(start=0.01, updates=10**6))
    for batch in batches(made, 0):
        assert sorted(batch) == list(range(SIZE))
    # And where there is less than a batch in all, all of it.
    few = PackedPairs(*[PackedText.pack([[5], [5, 6], [7, 8, 9]])] * 2)
    drawn = batches(plan(few, curriculum(start=0.01)), 0)
    assert [sorted(batch) for batch in drawn] == [[0, 1, 2]]


def test_from_its_last_update_on_all_pairs_are_met() -> None:
    pairs = corpus()
    spec = curriculum(updates=EPOCH + 20)
    made, without = plan(pairs, spec), plan(pairs, None)
    for epoch in (2, 3, 50):
        assert batches(made, epoch) == batches(without, epoch)
        assert sorted(itertools.chain.from_iterable(batches(made, epoch))) == list(range(PAIRS))
    # In the epoch in which it ends, the batches from there on are drawn from all pairs.
    hardest = max(range(PAIRS), key=shares_not_harder(pairs, "length").__getitem__)
    length = pairs.source.lengths[hardest]
    rest = list(itertools.chain.from_iterable(batches(made, 1)[20:]))
    assert max(pairs.source.lengths[rest]) == length
    assert len(set(rest)) > 0.5 * PAIRS


@pytest.mark.parametrize("changes", [{"start": 1.0}, {"updates": 1}])
def test_a_curriculum_that_is_over_changes_nothing(changes: dict[str, Any]) -> None:
    pairs = corpus()
    first = 0 if "start" in changes else 1
    made, without = plan(pairs, curriculum(**changes)), plan(pairs, None)
    for epoch in range(first, 3):
        assert batches(made, epoch) == batches(without, epoch)


@pytest.mark.parametrize("count", [PAIRS, 496, 161, 7])
def test_an_epoch_has_as_many_batches_as_without(count: int) -> None:
    pairs = corpus(count)
    for difficulty in ("length", "rarity"):
        made, without = plan(pairs, curriculum(difficulty=difficulty)), plan(pairs, None)
        for epoch in range(3):
            assert len(made.epoch(epoch)) == len(without.epoch(epoch))
            assert {len(batch) for batch in made.epoch(epoch)} <= {SIZE, count % SIZE}


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    spec = curriculum(updates=1000)
    one, other = plan(corpus(), spec), plan(corpus(), spec)
    other.epoch(5)
    third = batches(one, 3)
    assert batches(other, 3) == third
    drawn = [batches(one, epoch) for epoch in range(3)]
    drawn += [third, batches(plan(corpus(), spec, seed=2), 3)]
    assert len({str(each) for each in drawn}) == 5


def test_pairs_of_a_length_come_together() -> None:
    pairs = corpus()
    made = plan(pairs, curriculum(start=0.9, updates=10**6))
    drawn = [pairs.source.lengths[batch] for batch in batches(made, 0)]
    anyhow = numpy.random.default_rng(1).permutation(numpy.concatenate(drawn))
    spread = sum(int(numpy.ptp(lengths)) for lengths in drawn)
    assert 4 * spread < sum(int(numpy.ptp(part)) for part in numpy.array_split(anyhow, EPOCH))
    # The batches of a group come mixed: an update of short sentences may follow one of long ones.
    means = [lengths.mean() for lengths in drawn]
    rising = sum(left < right for left, right in itertools.pairwise(means))
    assert 0.3 < rising / EPOCH < 0.7
