"""What a search writes down of each hypothesis beside its words, where somebody asks for it.

# R rows of the search, t steps so far, S the longest source of the batch and its EOS, V vocabulary
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2s_cli.core.errors import ModelError
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.search.scorers import Scorer

# A source word without any attention, as outside of a local window, would be infinitely bad.
LEAST_ATTENTION = 1e-6


@dataclass(frozen=True)
class Wanted:
    """What is to be written down.

    log_probabilities: False where a search that can do without them may; word scores need them.
    """

    log_probabilities: bool = True
    word_scores: bool = False
    attention: bool = False
    coverage: bool = False

    @property
    def anything(self) -> bool:
        """Whether there is anything to do."""
        return self.word_scores or self.weights

    @property
    def weights(self) -> bool:
        """Whether attention is needed."""
        return self.attention or self.coverage


@dataclass(frozen=True)
class Noted:
    """The notes on a finished translation, as in `Hypothesis`; coverage as in `Ranking`."""

    word_scores: tuple[float, ...] | None = None
    attention: Tensor | None = None
    coverage: float = 0.0


class Notes:
    """Notes on the rows of a search, which go along with them: `read`, then `select`, each step."""

    def __init__(
        self, wanted: Wanted, scorer: Scorer[Any], sources: PackedText, copies: int = 1
    ) -> None:
        """Each source begins as `copies` rows."""
        self._wanted = wanted
        self._scorer = scorer
        device = scorer.device
        lengths = torch.from_numpy(sources.lengths).to(device)
        rows = len(lengths) * copies
        self._lengths = lengths.repeat_interleave(copies)
        self._gained = torch.zeros((rows, 0), device=device)  # [R, t]
        longest = int(sources.lengths.max()) + 1
        self._attention = torch.zeros((rows, 0, longest), device=device)  # [R, t, S]
        self._covered = torch.zeros((rows, longest), device=device)  # [R, S], summed over steps
        self._scores = torch.zeros((rows, 0), device=device)  # [R, V], of the step just made

    def read(self, logits: Tensor, normalizers: Tensor, state: Any) -> None:
        """After a step: its logits, [R, V], their normalisers, [R], and the scorer's state.

        Raises:
            ModelError: attention is wanted, and the scorer has none.
        """
        if self._wanted.word_scores:
            self._scores = (logits - normalizers[:, None]).float()
        if self._wanted.weights:
            weights = self._scorer.attention(state)
            if weights is None:
                raise ModelError("this model has no attention, which the search was asked for")
            if self._wanted.coverage:
                self._covered = self._covered + weights
            if self._wanted.attention:
                self._attention = torch.cat([self._attention, weights[:, None]], dim=1)

    def finished(self, row: int, eos: int) -> Noted:
        """The notes on a row that ends at this step."""
        scores = attention = None
        coverage = 0.0
        if self._wanted.word_scores:
            scores = (*self._gained[row].tolist(), float(self._scores[row, eos]))
        if self._wanted.attention:
            attention = self._attention[row, :, : int(self._lengths[row]) + 1].cpu()
        if self._wanted.coverage:
            covered = self._covered[row, : int(self._lengths[row])].clamp(LEAST_ATTENTION, 1.0)
            coverage = float(covered.log().sum())
        return Noted(scores, attention, coverage)

    def select(self, rows: Tensor | None, words: Tensor) -> None:
        """The rows that go on, [R'], None for all, and the word by which each does, [R']."""
        if not self._wanted.anything:
            return
        if rows is None:
            rows = torch.arange(len(words))
        rows = rows.to(words.device)
        if self._wanted.weights:
            self._lengths = self._lengths[rows]
        if self._wanted.word_scores:
            gained = self._scores[rows, words]
            self._gained = torch.cat([self._gained[rows], gained[:, None]], dim=1)
        if self._wanted.attention:
            self._attention = self._attention[rows]
        if self._wanted.coverage:
            self._covered = self._covered[rows]
