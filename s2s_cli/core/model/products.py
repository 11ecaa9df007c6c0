"""Products with a matrix that stays the same, for search on a CPU.

A matrix is put once into the order in which the processor reads it; torch does that anew at every
product, or multiplies in a slower way. Products come in three precisions, all of them with fp32
inputs and outputs, and no row's result depends on the others.

# R rows, I inputs, O outputs
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Product(Protocol):
    """inputs [.., I], fp32 -> outputs [.., O], fp32, the bias added."""

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """The product."""
        ...


def pack(weight: Tensor, bias: Tensor | None, precision: str, *, states: bool = False) -> Product:
    """The product with `weight` [O, I] and `bias` [O], in fp32, bf16 or int8.

    states: whether inputs are mostly outputs of recurrent layers, of which some are near 1.
    """
    weight = weight.detach()
    if bias is not None:
        bias = bias.detach()
    match precision:
        case "fp32":
            return FloatProduct(weight, bias, torch.float32)
        case "bf16":
            return FloatProduct(weight, bias, torch.bfloat16)
        case "int8":
            return IntegerProduct(weight, bias, states=states)
        case _:
            raise ValueError(precision)


# What oneDNN orders a matrix for. Another number of rows is about as fast.
ROWS = 64
LARGEST = 127  # of 8 bits
# Up to so many rows, multiples of so many.
STEPS = ((16, 1), (512, 16), (4096, 64), (math.inf, 512))


def in_steps(rows: Tensor) -> Tensor:
    """`rows` [R, n] and some of zeros behind them, so that there are few different numbers of rows.

    oneDNN writes a program for each, which takes a millisecond or more, and keeps half a megabyte.
    """
    count = len(rows)
    step = next(step for most, step in STEPS if count <= most)
    missing = -count % step
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows


class FloatProduct:
    """By oneDNN, whose fp32 is exact, where torch lends it; else by torch's linear layer."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: torch.dtype) -> None:
        self._kind = kind
        self._bias = None if bias is None else bias.to(kind)
        self._ordered = lends_onednn(kind)
        weight = weight.to(kind)
        if self._ordered:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self._weight = weight

    def __call__(self, inputs: Tensor) -> Tensor:
        """The product of `inputs`: [.., I] -> [.., O]"""
        inputs = inputs.to(self._kind)
        if not self._ordered:
            return functional.linear(inputs, self._weight, self._bias).float()
        flat = inputs.reshape(-1, inputs.shape[-1])
        linear = torch.ops.mkldnn._linear_pointwise
        found: Tensor = linear(in_steps(flat), self._weight, self._bias, "none", [], "")
        return found[: len(flat)].float().view(*inputs.shape[:-1], -1)


@functools.cache
def lends_onednn(kind: torch.dtype) -> bool:
    """Whether torch's operators of ordered matrices are there and do what they should.

    They are not part of its documented interface, and refuse bf16 on older processors.
    """
    inputs = torch.linspace(-1, 1, 6).view(2, 3).to(kind)
    weight = torch.linspace(-2, 1, 12).view(4, 3).to(kind)
    bias = torch.linspace(0, 1, 4).to(kind)
    try:
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        found = torch.ops.mkldnn._linear_pointwise(inputs, ordered, bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    error = 1e-6 if kind == torch.float32 else 0.02
    expected = functional.linear(inputs.float(), weight.float(), bias.float())
    return found.dtype == kind and bool(torch.allclose(found.float(), expected, atol=error))


class IntegerProduct:
    """8-bit integers: a scale for each row of the inputs and for each of the weights.

    Inputs are divided by a power of two that takes the largest of their row to between 1/2 and 1,
    states by 1 at least, so that there most often is nothing to do. One scale for all rows, as
    torch's dynamic quantisation has it, would let a row change its neighbours.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, states: bool = False) -> None:
        self._states = states
        weight = weight.float()
        self._scales = weight.abs().amax(1).clamp_min(1e-12) / LARGEST
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.float()
        integers = (weight / self._scales[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(integers, [ROWS, weight.shape[1]])
        # Older processors add two products of 8 bits in 16, where 254 * 127 * 2 finds no place.
        self._levels = LARGEST if capabilities().get("avx512_vnni") else LARGEST // 2
        self._middle = torch.tensor(self._levels + 0.5)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The product of `inputs`: [.., I] -> [.., O]"""
        flat = inputs.flatten(0, -2)
        levels, scales = self._levels, None
        low, high = torch.aminmax(flat)
        if not (self._states and low >= -1 and high <= 1):
            peaks = flat.abs().amax(1, keepdim=True)
            scales = torch.exp2(peaks.log2().ceil_()).masked_fill_(peaks == 0, 1)
            if self._states:
                scales.clamp_(min=1)
            flat = flat / scales
        # Half a level more: what follows is cut off.
        shifted = torch.add(self._middle, flat, alpha=levels)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            in_steps(shifted.to(torch.uint8)),
            1 / levels,
            levels,
            self._packed,
            self._scales,
            self._zeros,
            self._bias,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        found = found[: len(flat)]
        if scales is not None:
            found = found.mul_(scales).add_((1 - scales) * self._bias)  # which was scaled, too
        return found.view(*inputs.shape[:-1], -1)


def capabilities() -> Mapping[str, Any]:
    """What torch tells of the processor; nothing before torch 2.11."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return {}
    return torch.cpu.get_capabilities()


@functools.cache
def multiplies_integers() -> bool:
    """Whether torch's operators of 8-bit integers are there and do what they should.

    They are not part of its documented interface.
    """
    inputs, weight = torch.linspace(-1, 1, 32).view(2, 16), torch.linspace(-2, 1, 64).view(4, 16)
    try:
        found = IntegerProduct(weight, None)(inputs)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(found, inputs @ weight.T, atol=0.2))
