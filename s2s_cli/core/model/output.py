"""From features to probabilities: the softmax layer and its loss.

# N words, F features, V vocabulary
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.model.embedding import TiedEmbedding


class Softmax(nn.Linear):
    """One logit a word."""

    def loss(self, features: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The summed loss of `targets` [N], features [N, F], as `summed_loss`."""
        return summed_loss(self(features), targets, smoothing)


class TiedSoftmax(nn.Module):
    """One logit a word, by a table of word vectors (Press & Wolf 2017)."""

    def __init__(self, owner: nn.Embedding | TiedEmbedding) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, which torch does not look into
        self.bias = nn.Parameter(torch.zeros(len(owner.weight)))

    @property
    def weight(self) -> Tensor:
        """The table, [V, F]."""
        return self._owner[0].weight

    def forward(self, features: Tensor) -> Tensor:
        """features: [.., F] -> logits [.., V]"""
        return functional.linear(features, self.weight, self.bias)

    def loss(self, features: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The summed loss of `targets` [N], features [N, F], as `summed_loss`."""
        return summed_loss(self(features), targets, smoothing)


class AdaptiveSoftmax(nn.Module):
    """torch's adaptive softmax (Grave et al. 2017)."""

    def __init__(
        self, features: int, vocabulary: int, cutoffs: Sequence[int], reduction: float
    ) -> None:
        super().__init__()
        self.layers = nn.AdaptiveLogSoftmaxWithLoss(
            features, vocabulary, list(cutoffs), div_value=reduction, head_bias=True
        )

    def forward(self, features: Tensor) -> Tensor:
        """features: [.., F] -> log-probabilities [.., V]"""
        with self._in_full(features):
            flat: Tensor = self.layers.log_prob(self._cast(features).flatten(0, -2))
        return flat.view(*features.shape[:-1], -1)

    def loss(self, features: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The summed loss of `targets` [N], features [N, F], in fp32.

        Raises:
            ValueError: a smoothing, which would need the words that this never writes out.
        """
        if smoothing:
            raise ValueError("an adaptive softmax has no label smoothing")
        with self._in_full(features):
            found: Tensor = self.layers(self._cast(features), targets).output
        return -found.float().sum()

    def _in_full(self, features: Tensor) -> torch.autocast:
        """The precision of the weights: log-probabilities are never taken in a lower one."""
        return torch.autocast(features.device.type, enabled=False)

    def _cast(self, features: Tensor) -> Tensor:
        return features.to(self.layers.head.weight.dtype)


Output = Softmax | TiedSoftmax | AdaptiveSoftmax


def summed_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The negative log-likelihood of `targets` [N] under `logits` [N, V], summed, in fp32.

    smoothing: the share of the target's probability that is spread over all V words (Szegedy et
    al. 2016, section 7).
    """
    return functional.cross_entropy(
        logits.float(), targets, reduction="sum", label_smoothing=smoothing
    )
