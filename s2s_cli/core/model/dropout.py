"""Dropout with a mask for each step, or one for the whole sentence.

# B batch, T steps, n numbers
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 1 << 32  # values of a lot


@dataclass(frozen=True)
class Masks:
    """A decoder's masks that stay the same over time, each [B, n], None where there is none.

    words: on the words' vectors; layers: below each layer but the first; features: before the
    softmax.
    """

    words: Tensor | None = None
    layers: tuple[Tensor | None, ...] = ()
    features: Tensor | None = None

    def between(self, index: int) -> Tensor | None:
        """The mask below the layer at `index`, counted from 0."""
        return self.layers[index - 1] if self.layers else None

    def select(self, rows: Tensor) -> "Masks":
        """Those of these rows."""
        return Masks(
            _rows(self.words, rows),
            tuple(_rows(mask, rows) for mask in self.layers),
            _rows(self.features, rows),
        )


NO_MASKS = Masks()


def _rows(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if mask is None else mask.index_select(0, rows)


class Dropout(nn.Module):
    """Dropout; with `variational` one mask a sentence (Gal & Ghahramani 2016, section 4)."""

    def __init__(self, share: float, *, variational: bool = False) -> None:
        super().__init__()
        self.share = share
        self.variational = variational

    def mask(self, like: Tensor, width: int) -> Tensor | None:
        """A mask [B, width] for the sentences of `like` [.., B, n]; None where none is needed."""
        if not (self.training and self.variational and self.share):
            return None
        return dropped(like.new_ones(like.shape[-2], width), self.share)

    def forward(self, numbers: Tensor, mask: Tensor | None = None) -> Tensor:
        """`numbers` [.., B, n], some of them zero and the others larger, in training."""
        if mask is not None:
            return numbers * mask
        return dropped(numbers, self.share) if self.training and self.share else numbers


def dropped(numbers: Tensor, share: float) -> Tensor:
    """`numbers`, so large a share of them zero and the others larger, drawn anew each time.

    On a CPU a draw of 64 bits from torch's generator decides over two numbers; torch's own
    dropout takes three times as long there.
    """
    if numbers.device.type != "cpu":
        return functional.dropout(numbers, share)
    least = min(round(share * STEPS), STEPS - 1)
    draws = torch.empty(-(-numbers.numel() // 2), dtype=torch.int64).random_(-(2**63), None)
    lots = draws.view(torch.int32)[: numbers.numel()].view(numbers.shape)  # even in all its values
    mask = (lots >= least - STEPS // 2).to(numbers.dtype).mul_(STEPS / (STEPS - least))
    return numbers * mask
