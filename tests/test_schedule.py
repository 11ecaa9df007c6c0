"""The learning rate of the papers, at the update where each of its steps falls."""

import pytest

from s2s_cli.core.recipe.schema import ConstantSchedule, HalvingSchedule
from s2s_cli.core.schedule import learning_rate

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
