"""A stack of recurrent layers: its state, and its exact last state for sentences of all lengths.

# B batch, S source steps, T target steps, L layers, E input, H hidden
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RecurrentState:
    """The state of every layer: (h, c) of an LSTM, (h,) of other cells, each [L, B, H]."""

    tensors: tuple[Tensor, ...]

    def select(self, rows: Tensor) -> "RecurrentState":
        """The states of these rows of the batch, in this order, repeats allowed. rows: [R]"""
        return RecurrentState(tuple(part.index_select(1, rows) for part in self.tensors))


class Recurrent(nn.Module):
    """torch's stacked cells behind one shape, time first."""

    def __init__(self, cells: nn.LSTM | nn.GRU | nn.RNN) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, inputs: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """inputs: [T, B, E] -> outputs of the last layer [T, B, H] and the state after step T."""
        if isinstance(self.cells, nn.LSTM):
            hidden, memory = state.tensors
            outputs, after = self.cells(inputs, (hidden, memory))
            return outputs, RecurrentState(after)
        outputs, hidden = self.cells(inputs, *state.tensors)
        return outputs, RecurrentState((hidden,))

    def zero_state(self, rows: int, like: Tensor) -> RecurrentState:
        """Zeros for `rows` sentences."""
        shape = (self.cells.num_layers, rows, self.cells.hidden_size)
        parts = 2 if isinstance(self.cells, nn.LSTM) else 1
        return RecurrentState(tuple(like.new_zeros(shape) for _ in range(parts)))

    def last_state(self, inputs: Tensor, lengths: Tensor) -> RecurrentState:
        """The state after each row's last input, as if every row had been run alone.

        Padding never enters a state: each row joins the batch at its own first word. Sorted by
        length that takes one call of the fused kernel for each different length, most often few,
        and is about twice as fast as packed sequences, which it equals to rounding.

        Args:
            inputs: [S, B, E], padded on the left.
            lengths: [B] on the CPU, falling, the first of them S.
        """
        state = self.zero_state(0, inputs)
        for first, last, rows in _segments(lengths):
            fresh = self.zero_state(rows - state.tensors[0].shape[1], inputs)
            joined = zip(state.tensors, fresh.tensors, strict=True)
            state = RecurrentState(tuple(torch.cat(parts, dim=1) for parts in joined))
            _, state = self(inputs[first:last, :rows].contiguous(), state)
        return state


def _segments(lengths: Tensor) -> Iterator[tuple[int, int, int]]:
    """(first step, step after the last, rows that run) of each stretch in which no row joins."""
    steps = int(lengths[0])
    starts = [steps - length for length in lengths.tolist()]
    cuts = [*sorted(set(starts)), steps]
    rows = 0
    for first, last in itertools.pairwise(cuts):
        while rows < len(starts) and starts[rows] <= first:
            rows += 1
        yield first, last, rows
