"""What changes while a model trains: the learning rate, and how much truth the decoder sees."""

import math
from typing import assert_never

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
    Schedule,
    TeacherForcing,
)


def learning_rate(
    spec: Schedule, base: float, epoch: float, update: int = 0, stalled: int = 0
) -> float:
    """The learning rate of the next update.

    Args:
        spec: the `[schedule]` table.
        base: `optimizer.lr`.
        epoch: epochs done, fractions included.
        update: updates done.
        stalled: how often validations have stalled so far (see `PlateauSchedule`).

    Halving (Sutskever et al. 2014, section 3.4): `base` until epoch `start`, half of it from
    there on, and half again after each further `every` epochs.
    """
    match spec:
        case ConstantSchedule():
            return base
        case HalvingSchedule(start=start, every=every):
            if epoch < start:
                return base
            # An epoch's fraction is a quotient of whole numbers: 5.5 may come as 5.4999999999.
            return base * 0.5 ** (1 + math.floor((epoch - start) / every + 1e-9))
        case PlateauSchedule(factor=factor):
            return base * factor**stalled
        case InverseSqrtSchedule(warmup=warmup):
            number = update + 1
            return base * min(number / warmup, math.sqrt(warmup / number))
        case ExponentialSchedule(warmup=warmup, first=first, start=start, end=end, last=last):
            if update < warmup:
                return base * (first + (1 - first) * update / warmup)
            fallen = min(max((update - start) / (end - start), 0.0), 1.0)
            return float(base * last**fallen)
        case _:
            assert_never(spec)


def truth_ratio(spec: TeacherForcing, *, epoch: float, update: int) -> float:
    """The probability that the decoder reads the true previous word in the next update.

    Bengio et al. 2015, section 2.4. epoch and update: done so far.
    """
    match spec:
        case ConstantForcing(ratio=ratio):
            return ratio
        case LinearForcing(first=first, fall=fall, least=least, per=per):
            return max(least, first - fall * _count(per, epoch, update))
        case ExponentialForcing(k=k, per=per):
            return float(k ** _count(per, epoch, update))
        case InverseSigmoidForcing(k=k, per=per):
            # exp overflows at 710, where the ratio has long been nothing.
            return k / (k + math.exp(min(_count(per, epoch, update) / k, 700.0)))
        case _:
            assert_never(spec)


def _count(per: str, epoch: float, update: int) -> int:
    return math.floor(epoch + 1e-9) if per == "epoch" else update
