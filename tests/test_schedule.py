"""The learning rate of the papers, at the update where each of its steps falls.

And how much truth the decoder sees.
"""

import itertools
import math

import pytest

from s2s_cli.core.recipe.schema import (
    ConstantForcing,
    ConstantSchedule,
    ExponentialForcing,
    ExponentialSchedule,
    HalvingSchedule,
    InverseSigmoidForcing,
    InverseSqrtSchedule,
    LinearForcing,
    PlateauSchedule,
    TeacherForcing,
)
from s2s_cli.core.schedule import learning_rate, truth_ratio

SUTSKEVER = HalvingSchedule(kind="halving", start=5.0, every=0.5)
LUONG = HalvingSchedule(kind="halving", start=5.0, every=1.0)
UPDATES = 93_750  # an epoch of 12 million pairs, 128 in a batch


def rate(schedule: HalvingSchedule, base: float, update: int, updates: int = UPDATES) -> float:
    """The rate of the update after `update` others, `updates` of them an epoch."""
    return learning_rate(schedule, base, update / updates)


def test_sutskever_halves_every_half_epoch_from_five_on() -> None:
    half = UPDATES // 2
    expected = {
        0: 0.7,
        1: 0.7,
        2 * half: 0.7,
        10 * half - 1: 0.7,
        10 * half: 0.35,
        11 * half - 1: 0.35,
        11 * half: 0.175,
        12 * half - 1: 0.175,
        12 * half: 0.0875,
        13 * half: 0.04375,
        14 * half - 1: 0.04375,
        14 * half: 0.021875,
        15 * half - 1: 0.021875,  # the last update of seven and a half epochs
    }
    for update, value in expected.items():
        assert rate(SUTSKEVER, 0.7, update) == pytest.approx(value, rel=1e-12), update


@pytest.mark.parametrize("updates", [2, 6, 10, 14, 98, 1_234])
def test_each_half_epoch_has_the_same_number_of_updates(updates: int) -> None:
    """Whatever the quotient of two whole numbers is in binary, no step comes one update late."""
    rates = [rate(SUTSKEVER, 0.7, number, updates) for number in range(5 * updates, 8 * updates)]
    half = updates // 2
    for number, value in enumerate(rates):
        assert value == pytest.approx(0.35 * 0.5 ** (number // half), rel=1e-12)


@pytest.mark.parametrize("updates", [10, 30, 70, 1_010])
def test_a_step_of_a_tenth_of_an_epoch(updates: int) -> None:
    """A tenth has no finite binary form."""
    schedule = HalvingSchedule(kind="halving", start=5.3, every=0.1)
    tenth = updates // 10
    for number in range(5 * updates, 8 * updates):
        steps = max(0, number // tenth - 52)
        found = rate(schedule, 1.0, number, updates)
        assert found == pytest.approx(0.5**steps, rel=1e-12), number


def test_luong_halves_every_epoch_after_five() -> None:
    epochs = [rate(LUONG, 1.0, epoch * UPDATES) for epoch in range(10)]
    assert epochs == [1, 1, 1, 1, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    for epoch, value in enumerate(epochs):
        for update in (epoch * UPDATES + 1, (epoch + 1) * UPDATES - 1):
            assert rate(LUONG, 1.0, update) == value


def test_halving_from_the_very_start() -> None:
    schedule = HalvingSchedule(kind="halving", start=0.0, every=1.0)
    assert [learning_rate(schedule, 1.0, epoch) for epoch in (0.0, 0.9, 1.0)] == [0.5, 0.5, 0.25]


def test_a_constant_rate_stays() -> None:
    schedule = ConstantSchedule(kind="constant")
    assert {learning_rate(schedule, 0.7, epoch) for epoch in (0.0, 0.3, 5.0, 100.5)} == {0.7}


# --- by updates ------------------------------------------------------------------------------


def test_a_plateau_lowers_the_rate_once_for_each_time_it_stalled() -> None:
    schedule = PlateauSchedule(kind="plateau", factor=0.3, wait=2)
    for update in (0, 10_000):  # whenever that was
        rates = [learning_rate(schedule, 0.7, 3.5, update, stalled) for stalled in range(4)]
        assert rates == pytest.approx([0.7, 0.7 * 0.3, 0.7 * 0.09, 0.7 * 0.027], rel=1e-12)


@pytest.mark.parametrize("warmup", [1, 4, 4000])
def test_the_inverse_square_root_is_that_of_vaswani(warmup: int) -> None:
    """lr = factor min(u^-0.5, u warmup^-1.5), u from 1, the factor such that it peaks at `base`."""
    schedule = InverseSqrtSchedule(kind="inverse-sqrt", warmup=warmup)
    for done in (0, 1, 2, 3, 4, 3998, 3999, 4000, 15_999, 10**9):
        number = done + 1
        expected = 0.002 * warmup**0.5 * min(number**-0.5, number * warmup**-1.5)
        assert learning_rate(schedule, 0.002, 0.0, done) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(schedule, 0.002, 0.0, warmup - 1) == pytest.approx(0.002, rel=1e-12)


def test_exponential_rises_stays_falls_and_stays() -> None:
    schedule = ExponentialSchedule(
        kind="exponential", warmup=500, first=0.2, start=6000, end=9000, last=0.01
    )
    expected = {
        0: 0.2,  # a line from a fifth...
        1: 0.2 + 0.8 / 500,
        250: 0.6,
        499: 0.2 + 0.8 * 499 / 500,
        500: 1.0,  # ...to the whole
        5999: 1.0,
        6000: 1.0,
        6001: 0.01 ** (1 / 3000),
        7000: 0.01 ** (1 / 3),
        7500: 0.1,  # half-way, the geometric mean
        8999: 0.01 ** (2999 / 3000),
        9000: 0.01,
        10**9: 0.01,
    }
    for update, share in expected.items():
        found = learning_rate(schedule, 0.002, 99.0, update)
        assert found == pytest.approx(0.002 * share, rel=1e-12), update
    falling = [learning_rate(schedule, 0.002, 0.0, update) for update in range(6000, 9001)]
    factors = {round(new / old, 12) for old, new in itertools.pairwise(falling)}
    assert len(factors) == 1  # the same factor each update


def test_an_exponential_fall_without_a_warm_up_or_a_plateau() -> None:
    schedule = ExponentialSchedule(kind="exponential", start=0, end=2, last=0.25)
    rates = [learning_rate(schedule, 1.0, 0.0, update) for update in range(4)]
    assert rates == pytest.approx([1.0, 0.5, 0.25, 0.25], rel=1e-12)


# --- how much truth the decoder sees ---------------------------------------------------------

# Bengio et al. 2015, section 2.4: k, c, epsilon and i in their names.
LINEAR = {"first": 0.9, "fall": 0.004, "least": 0.2}
FORCINGS = {
    "linear": (LinearForcing, LINEAR, lambda i: max(0.2, 0.9 - 0.004 * i)),
    "exponential": (ExponentialForcing, {"k": 0.99}, lambda i: 0.99**i),
    "inverse-sigmoid": (
        InverseSigmoidForcing,
        {"k": 20.0},
        lambda i: 20 / (20 + math.e ** (i / 20)),
    ),
}


@pytest.mark.parametrize("per", ["update", "epoch"])
@pytest.mark.parametrize("kind", FORCINGS)
def test_truth_falls_by_the_papers_formula(kind: str, per: str) -> None:
    table, keys, formula = FORCINGS[kind]
    spec: TeacherForcing = table(kind=kind, per=per, **keys)
    for count in (0, 1, 2, 59, 60, 61, 175, 176, 1000):
        if per == "update":
            found = {truth_ratio(spec, epoch=epoch, update=count) for epoch in (0.0, 7.3)}
        else:  # whole epochs, whatever their quotient is in binary
            epochs = (count, count + 0.5, count + 0.999, count - 1e-12)
            found = {truth_ratio(spec, epoch=epoch, update=12_345) for epoch in epochs}
        (ratio,) = found
        assert ratio == pytest.approx(formula(count), rel=1e-12), count
    assert truth_ratio(spec, epoch=0.99, update=0) == pytest.approx(formula(0), rel=1e-12)


def test_a_constant_share_of_truth_stays() -> None:
    for ratio in (0.0, 0.3, 1.0):
        spec = ConstantForcing(kind="constant", ratio=ratio)
        assert {truth_ratio(spec, epoch=each, update=9 * each) for each in (0, 5, 10**9)} == {ratio}


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        (LinearForcing(kind="linear", fall=1e300, least=0.25), 0.25),
        (LinearForcing(kind="linear", fall=1e-9), 0.0),
        (ExponentialForcing(kind="exponential", k=1e-300), 0.0),
        (ExponentialForcing(kind="exponential", k=0.999), 0.0),
        (InverseSigmoidForcing(kind="inverse-sigmoid", k=1.0), 0.0),
        (InverseSigmoidForcing(kind="inverse-sigmoid", k=1e6), 0.0),
    ],
)
def test_the_longest_training_overflows_nothing(spec: TeacherForcing, limit: float) -> None:
    assert truth_ratio(spec, epoch=0.0, update=10**9) == pytest.approx(limit, abs=1e-12)
    # And a ratio is a probability at any time.
    for update in (0, 1, 10, 10**3, 10**6):
        assert 0 <= truth_ratio(spec, epoch=0.0, update=update) <= 1
