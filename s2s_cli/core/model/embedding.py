"""Word vectors: a table, one of low rank, or one that is another module's.

# V vocabulary, E embedding, R rank
"""

from torch import Tensor, nn
from torch.nn import functional


class FactoredEmbedding(nn.Module):
    """A table of R numbers a word, times a matrix (Cho et al. 2014, section 4.1, R = 100)."""

    def __init__(self, vocabulary: int, rank: int, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, rank)
        self.matrix = nn.Linear(rank, size, bias=False)

    @property
    def embedding_dim(self) -> int:
        """E."""
        return self.matrix.out_features

    @property
    def weight(self) -> Tensor:
        """The whole table, [V, E]."""
        return self.table.weight @ self.matrix.weight.T

    def forward(self, words: Tensor) -> Tensor:
        """words: [..] ids -> [.., E]"""
        vectors: Tensor = self.matrix(self.table(words))
        return vectors


class TiedEmbedding(nn.Module):
    """Another module's table, which is neither counted nor saved again (Press & Wolf 2017)."""

    def __init__(self, owner: nn.Embedding) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, which torch does not look into

    @property
    def owner(self) -> nn.Embedding:
        """The module whose table it is."""
        return self._owner[0]

    @property
    def embedding_dim(self) -> int:
        """E."""
        return self.owner.embedding_dim

    @property
    def weight(self) -> Tensor:
        """The owner's table, [V, E]."""
        return self.owner.weight

    def forward(self, words: Tensor) -> Tensor:
        """words: [..] ids -> [.., E]"""
        return functional.embedding(words, self.weight)


Embedding = nn.Embedding | FactoredEmbedding | TiedEmbedding
