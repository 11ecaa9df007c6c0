"""The writers of the target, all of one shape: `start(encoded)`, `forward(words, state)`.

# B batch, T target steps, E embedding, H hidden, V vocabulary
"""

from torch import Tensor, nn

from s2s_cli.core.model.encoder import Encoded
from s2s_cli.core.model.recurrent import Recurrent, RecurrentState


class PlainDecoder(nn.Module):
    """Knows the source through its first state alone (Sutskever et al. 2014, section 2).

    Nothing that it computes at one step depends on its own output at another, so the whole
    target goes through the fused kernel in one call.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        embedding: int,
        recurrent: Recurrent,
        embedding_dropout: float,
        output_dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.recurrent = recurrent
        self.output_dropout = nn.Dropout(output_dropout)
        self.output = nn.Linear(recurrent.cells.hidden_size, vocabulary)

    def start(self, encoded: Encoded) -> RecurrentState:
        """The state before the first word: every layer takes over its twin's h and c unchanged."""
        return encoded.state

    def forward(self, words: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Reads `words` [T, B]; features [T, B, H] for the output layer, and the state after."""
        vectors = self.embedding_dropout(self.embedding(words))
        features, state = self.recurrent(vectors, state)
        return self.output_dropout(features), state
