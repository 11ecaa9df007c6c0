"""Scheduled sampling: in training the decoder reads the true previous word, or its own.

# B batch, T target steps
"""

from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from s2s_cli.core.model.decoder import Decoder


@dataclass(frozen=True)
class Exposure:
    """How much truth a decoder is shown (Bengio et al. 2015, section 2.4).

    ratio: probability of the true previous word; coin: for what a coin is thrown; own: how the
    model's own word is chosen.
    """

    ratio: float
    coin: Literal["token", "sequence", "batch"]
    own: Literal["argmax", "sample"]


def forced_features(
    decoder: Decoder[Any, Any], inputs: Tensor, state: Any, exposure: Exposure
) -> Tensor:
    """The features [T, B, F] of a decoder that reads a word at a time, true or its own.

    No gradient goes through the choice of a word. The coins come from torch's CPU generator.

    Args:
        decoder: any.
        inputs: [T, B], the true words; the first of them, the start symbol, is always read.
        state: before the first word.
        exposure: how often, and what instead.
    """
    truth = _coins(inputs.shape, exposure).to(inputs.device)
    words = inputs[0]
    features = []
    for step in range(len(inputs)):
        found, state = decoder(words.unsqueeze(0), state)
        features.append(found)
        if step + 1 < len(inputs):
            own = _own_words(decoder, found.squeeze(0), exposure)
            words = torch.where(truth[step + 1], inputs[step + 1], own)
    return torch.cat(features)


def _coins(shape: torch.Size, exposure: Exposure) -> Tensor:
    """[T, B], True where the truth is shown."""
    steps, rows = shape
    match exposure.coin:
        case "token":
            drawn = torch.rand(steps, rows)
        case "sequence":
            drawn = torch.rand(1, rows)
        case "batch":
            drawn = torch.rand(1, 1)
        case _:
            assert_never(exposure.coin)
    return (drawn < exposure.ratio).expand(steps, rows)


def _own_words(decoder: Decoder[Any, Any], features: Tensor, exposure: Exposure) -> Tensor:
    """The words [B] that the model itself would say next."""
    # Not under no_grad: autocast would keep its copy of the softmax's matrix without a gradient,
    # and the loss would use that copy.
    logits: Tensor = decoder.output(features.detach()).float().detach()
    match exposure.own:
        case "argmax":
            return logits.argmax(-1)
        case "sample":
            return torch.multinomial(logits.softmax(-1), 1).squeeze(-1)
        case _:
            assert_never(exposure.own)
