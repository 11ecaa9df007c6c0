"""Reading of sentences of all lengths, each as if it had been read alone.

Padding never enters a state: the source is padded on the left and its rows fall in length, so
that going forward each row joins the batch at its own first word, and going backward each leaves
it there. That takes one call of a layer for each different length, most often few, and is about
twice as fast as packed sequences, which it equals to rounding.

# B batch, S steps, I input, H hidden; parts of a state are [.., B, H]
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from s2s_cli.core.model.cells import Parts


class Runs(Protocol):
    """A layer, or a stack of them, from a state of zeros on."""

    def run(self, inputs: Tensor, parts: Parts) -> tuple[Tensor, Parts]:
        """inputs: [s, b, I] -> outputs [s, b, H] and the parts after the last step."""
        ...

    def zeros(self, rows: int, like: Tensor) -> Parts:
        """The parts of a state of zeros."""
        ...


def read_forward(runs: Runs, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Parts]:
    """First word to last.

    Args:
        runs: what reads.
        inputs: [S, B, I], padded on the left.
        lengths: [B] on the CPU, falling, the first of them S.

    Returns:
        Outputs [S, B, H], zero at padding, and the state after each row's last word.
    """
    if lengths[-1] == lengths[0]:
        return runs.run(inputs, runs.zeros(len(lengths), inputs))
    parts = runs.zeros(0, inputs)
    outputs = []
    for first, last, rows in _segments(lengths):
        fresh = runs.zeros(rows - parts[0].shape[-2], inputs)
        parts = tuple(torch.cat(pair, dim=-2) for pair in zip(parts, fresh, strict=True))
        found, parts = runs.run(inputs[first:last, :rows].contiguous(), parts)
        outputs.append(_padded(found, len(lengths)))
    return torch.cat(outputs), parts


def read_backward(runs: Runs, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Parts]:
    """Last word to first. As `read_forward`; the state is that after each row's first word."""
    running = runs.zeros(len(lengths), inputs)
    if lengths[-1] == lengths[0]:
        found, running = runs.run(inputs.flip(0), running)
        return found.flip(0), running
    ended: list[Parts] = []  # of rows that were left behind, the shortest first
    outputs = []
    for first, last, rows in reversed(list(_segments(lengths))):
        ended.append(tuple(part[..., rows:, :] for part in running))
        running = tuple(part[..., :rows, :].contiguous() for part in running)
        found, running = runs.run(inputs[first:last, :rows].flip(0), running)
        outputs.append(_padded(found.flip(0), len(lengths)))
    ended.append(running)
    return torch.cat(outputs[::-1]), tuple(
        torch.cat(pieces, dim=-2) for pieces in zip(*ended[::-1], strict=True)
    )


def real_words(lengths: Tensor, inputs: Tensor) -> Tensor:
    """[B, S], True where the words of `inputs` [S, B, ..] stand and not their padding."""
    steps = torch.arange(len(inputs), device=inputs.device)
    starts = len(inputs) - lengths.to(inputs.device, non_blocking=True)
    return steps >= starts[:, None]


def _padded(outputs: Tensor, rows: int) -> Tensor:
    """Zeros for the rows that are missing."""
    missing = rows - outputs.shape[1]
    return functional.pad(outputs, (0, 0, 0, missing)) if missing else outputs


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
