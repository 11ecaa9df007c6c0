"""From the decoder's state to the features that the softmax reads.

# T steps, B batch, H hidden, E embedding, C context, F features
"""

import torch
from torch import Tensor, nn


class Maxout(nn.Module):
    """The larger of each two of 2 F sums (Bahdanau et al. 2015, appendix A.2.2)."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * features, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[.., inputs] -> [.., F]"""
        sums: Tensor = self.linear(inputs)
        return sums.view(*sums.shape[:-1], -1, 2).amax(-1)


class Readout(nn.Module):
    """A state, the previous word's vector where it is asked for, and the context if there is one.

    reads_previous: the state before the step in place of that after it; reads_word: whether the
    word's vector is read.
    """

    def __init__(
        self, transform: nn.Module, *, features: int, reads_previous: bool, reads_word: bool
    ) -> None:
        super().__init__()
        self.transform = transform
        self.features = features
        self.reads_previous = reads_previous
        self.reads_word = reads_word

    def forward(
        self, after: Tensor, before: Tensor, vectors: Tensor, context: Tensor | None
    ) -> Tensor:
        """Features [.., F].

        Args:
            after: the last layer's state after the step, [.., H].
            before: that before the step, [.., H].
            vectors: of the words that were read, [.., E].
            context: [.., C].
        """
        parts = [before if self.reads_previous else after]
        if self.reads_word:
            parts.append(vectors)
        if context is not None:
            parts.append(context)
        features: Tensor = self.transform(torch.cat(parts, -1) if len(parts) > 1 else parts[0])
        return features
