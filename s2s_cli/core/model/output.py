"""From features to probabilities: the softmax layer and its loss.

# N words, F features, V vocabulary
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.model.embedding import TiedEmbedding
from s2s_cli.core.model.loss import full_loss


class Softmax(nn.Linear):
    """One logit a word."""

    def loss(self, features: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The summed loss of `targets` [N], features [N, F], as `full_loss`."""
        return full_loss(features, self.weight, self.bias, targets, smoothing)


class TiedSoftmax(nn.Module):
    """One logit a word, by a table of word vectors (Press & Wolf 2017)."""

    def __init__(self, owner: nn.Embedding | TiedEmbedding) -> None:
        super().__init__()
        # In a tuple, which torch does not look into; the module that has the table.
        self._owner = (owner.owner if isinstance(owner, TiedEmbedding) else owner,)
        self.bias = nn.Parameter(torch.zeros(len(owner.weight)))

    @property
    def owner(self) -> nn.Embedding:
        """The module whose table it is."""
        return self._owner[0]

    @property
    def weight(self) -> Tensor:
        """The table, [V, F]."""
        return self.owner.weight

    def forward(self, features: Tensor) -> Tensor:
        """features: [.., F] -> logits [.., V]"""
        return functional.linear(features, self.weight, self.bias)

    def loss(self, features: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The summed loss of `targets` [N], features [N, F], as `full_loss`."""
        return full_loss(features, self.weight, self.bias, targets, smoothing)


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
