"""The readers of the source.

# B batch, S source steps, E embedding, L layers, H hidden, C outputs: H, or 2 H in two directions
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s2s_cli.core.batches import SourceBatch
from s2s_cli.core.model.bridge import Encoded
from s2s_cli.core.model.cells import Layer, Parts
from s2s_cli.core.model.dropout import Dropout
from s2s_cli.core.model.embedding import Embedding
from s2s_cli.core.model.reading import read_backward, read_forward, real_words
from s2s_cli.core.model.recurrent import Recurrent


class BothWays(nn.Module):
    """Two layers, one for each direction, their outputs side by side, the forward one's first."""

    def __init__(self, onward: Layer, backward: Layer) -> None:
        super().__init__()
        self.onward = onward
        self.backward = backward

    def read(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Parts]:
        """As `read_forward`; the backward state is that after each row's first word."""
        right, after = read_forward(self.onward, inputs, lengths)
        left, before = read_backward(self.backward, inputs, lengths)
        states = zip(after, before, strict=True)
        return torch.cat([right, left], -1), tuple(torch.cat(both, -1) for both in states)


class ReadingStack(nn.Module):
    """Layers one by one, of one direction or both: for what no fused kernel has.

    residual_from: the first layer, counted from 1, whose input is added to its output, as it
    was before dropout; 0: none.
    """

    def __init__(
        self, layers: Sequence[Layer | BothWays], *, residual_from: int, dropout: Dropout
    ) -> None:
        super().__init__()
        self.stack = nn.ModuleList(layers)
        self.residual_from = residual_from
        self.dropout = dropout

    def read(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Parts]:
        """All layers, one after another. As `read_forward`; parts of a state are [L, B, C]."""
        states = []
        if self.residual_from == 1:  # else padding would come through to the outputs
            inputs = inputs * real_words(lengths, inputs).T.unsqueeze(-1)
        for number, layer in enumerate(self.stack, 1):
            given = inputs
            if number > 1:
                given = self.dropout(inputs, self.dropout.mask(inputs, inputs.shape[-1]))
            match layer:
                case BothWays():
                    outputs, parts = layer.read(given, lengths)
                case Layer():
                    outputs, parts = read_forward(layer, given, lengths)
                case _:
                    raise TypeError(layer)
            states.append(parts)
            inputs = outputs + inputs if 0 < self.residual_from <= number else outputs
        return inputs, tuple(torch.stack(part) for part in zip(*states, strict=True))


class Encoder(nn.Module):
    """Word vectors and a stack of recurrent layers (Sutskever et al. 2014, section 2).

    In two directions, Bahdanau et al. 2015, section 3.2.
    """

    def __init__(
        self,
        *,
        embedding: Embedding,
        recurrent: Recurrent | ReadingStack,
        embedding_dropout: Dropout,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.embedding_dropout = embedding_dropout
        self.recurrent = recurrent

    def forward(self, source: SourceBatch) -> Encoded:
        """The source, read to its end."""
        vectors: Tensor = self.embedding(source.words)  # [S, B, E]
        mask = self.embedding_dropout.mask(vectors, vectors.shape[-1])
        vectors = self.embedding_dropout(vectors, mask)
        outputs, state = self.recurrent.read(vectors, source.lengths)
        return Encoded(
            state=state,
            summary=state[0][-1],
            outputs=outputs.transpose(0, 1),
            real=real_words(source.lengths, vectors),
        )
