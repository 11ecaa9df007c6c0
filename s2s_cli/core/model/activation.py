"""Activations that torch computes slowly on a CPU."""

import torch
from torch import Tensor


def tanh_(numbers: Tensor) -> Tensor:
    """The tanh of `numbers`, which are overwritten, perhaps with something else.

    On a CPU torch's own takes ten times as long as its sigmoid, and it is 2 sigmoid(2 x) - 1; that
    is off by 2e-7 at most in fp32, but by too much in half precision.
    """
    if numbers.device.type != "cpu" or torch.finfo(numbers.dtype).bits < 32:
        return numbers.tanh_()
    shares = numbers.mul_(2).sigmoid_()
    doubled = shares.mul(2) if shares.requires_grad else shares.mul_(2)  # autograd keeps the shares
    return doubled.sub_(1)
