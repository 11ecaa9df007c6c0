"""From what the encoder read to the decoder's first state.

# B batch, L layers, H hidden, C the encoder's outputs, both directions
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2s_cli.core.model.cells import Parts


@dataclass(frozen=True)
class Encoded:
    """All that a decoder may know of the source.

    state: every layer's after its last word, (h, c) or (h,), each [L, B, C]; both directions side
    by side, the forward one first; summary: [B, C], of the last layer: h; outputs: [B, S, C], the
    last layer's h at each word, zero at padding, where a decoder asks for it; real: [B, S], where
    words stand.
    """

    state: Parts
    summary: Tensor
    outputs: Tensor
    real: Tensor


class CopyBridge(nn.Module):
    """Every layer takes over its twin's h and c unchanged (Sutskever et al. 2014, section 2)."""

    def forward(self, encoded: Encoded) -> Parts:
        """Parts of the decoder's state, each [L, B, H]."""
        return encoded.state


class LastBridge(nn.Module):
    """Every layer takes over the last layer's state."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, encoded: Encoded) -> Parts:
        """Parts of the decoder's state, each [L, B, H]."""
        return tuple(part[-1:].repeat(self.layers, 1, 1) for part in encoded.state)


class ZeroBridge(nn.Module):
    """Zeros."""

    def __init__(self, layers: int, hidden: int, parts: int) -> None:
        super().__init__()
        self.layers, self.hidden, self.parts = layers, hidden, parts

    def forward(self, encoded: Encoded) -> Parts:
        """Parts of the decoder's state, each [L, B, H]."""
        shape = (self.layers, len(encoded.summary), self.hidden)
        return tuple(encoded.summary.new_zeros(shape) for _ in range(self.parts))


class TanhBridge(nn.Module):
    """tanh(V c) of the summary c, a memory zero (Cho et al. 2014, appendix A).

    backward_only: of its second half, the state that the backward direction has at the first word
    (Bahdanau et al. 2015, appendix A.2.2).
    """

    def __init__(
        self, width: int, layers: int, hidden: int, parts: int, *, backward_only: bool
    ) -> None:
        super().__init__()
        self.layers, self.hidden, self.parts = layers, hidden, parts
        self.backward_only = backward_only
        inputs = width // 2 if backward_only else width
        self.linear = nn.Linear(inputs, layers * hidden, bias=False)

    def forward(self, encoded: Encoded) -> Parts:
        """Parts of the decoder's state, each [L, B, H]."""
        summary = encoded.summary
        if self.backward_only:
            summary = summary[:, summary.shape[1] // 2 :]
        hidden = _by_layer(torch.tanh(self.linear(summary)), self.layers)
        return hidden, *(torch.zeros_like(hidden) for _ in range(self.parts - 1))


class LinearBridge(nn.Module):
    """A linear layer for each part of the state, from the encoder's last layer's."""

    def __init__(self, width: int, layers: int, hidden: int, parts: int) -> None:
        super().__init__()
        self.layers = layers
        self.linears = nn.ModuleList(nn.Linear(width, layers * hidden) for _ in range(parts))

    def forward(self, encoded: Encoded) -> Parts:
        """Parts of the decoder's state, each [L, B, H]."""
        given = (encoded.summary, *(part[-1] for part in encoded.state[1:]))
        pairs = zip(self.linears, given, strict=True)
        return tuple(_by_layer(linear(part), self.layers) for linear, part in pairs)


def _by_layer(numbers: Tensor, layers: int) -> Tensor:
    """[B, L * H] -> [L, B, H]"""
    return numbers.view(len(numbers), layers, -1).transpose(0, 1).contiguous()
