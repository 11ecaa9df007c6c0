"""The learning rate over time."""

import math
from typing import assert_never

from s2s_cli.core.recipe.schema import ConstantSchedule, HalvingSchedule


def learning_rate(spec: ConstantSchedule | HalvingSchedule, base: float, epoch: float) -> float:
    """The learning rate of the update that begins after `epoch` epochs, fractions included.

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
        case _:
            assert_never(spec)
