"""The reader of the source.

# B batch, S source steps, E embedding, L layers, H hidden
"""

from dataclasses import dataclass

from torch import Tensor, nn

from s2s_cli.core.batches import SourceBatch
from s2s_cli.core.model.recurrent import Recurrent, RecurrentState


@dataclass(frozen=True)
class Encoded:
    """All that a decoder may know of the source. state: every layer's, after the last word."""

    state: RecurrentState


class Encoder(nn.Module):
    """Word vectors and a stack of recurrent layers (Sutskever et al. 2014, section 2)."""

    def __init__(
        self, *, vocabulary: int, embedding: int, recurrent: Recurrent, embedding_dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.recurrent = recurrent

    def forward(self, source: SourceBatch) -> Encoded:
        """The source, read to its end."""
        vectors: Tensor = self.embedding_dropout(self.embedding(source.words))  # [S, B, E]
        return Encoded(self.recurrent.last_state(vectors, source.lengths))
