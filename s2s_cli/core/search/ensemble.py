"""Several models as one scorer.

# R rows of a search, V vocabulary, S source words
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import EnsembleMean
from s2s_cli.core.search.candidates import survey
from s2s_cli.core.search.scorers import Scorer


def _log_probabilities(logits: Tensor) -> Tensor:
    """As `log_softmax` over the last dimension, [R, V]."""
    return logits - survey(logits)[1][:, None].to(logits.dtype)


@dataclass(frozen=True)
class EnsembleState:
    """The states of the members."""

    members: tuple[Any, ...]

    def select(self, rows: Tensor) -> "EnsembleState":
        """These rows of every member."""
        return EnsembleState(tuple(member.select(rows) for member in self.members))


class Ensemble:
    """Several models of one target vocabulary and one first word, otherwise of any kind."""

    def __init__(
        self, members: Sequence[Scorer[Any]], mean: EnsembleMean = "probabilities"
    ) -> None:
        self.members = tuple(members)
        self._mean = mean

    @property
    def device(self) -> torch.device:
        """The first member's; all have to be on one."""
        return self.members[0].device

    def start(self, sources: PackedText) -> EnsembleState:
        """Starts every member."""
        return EnsembleState(tuple(member.start(sources) for member in self.members))

    def step(self, words: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """The log of the mean of the members' probabilities of the next word, [R, V], or the mean.

        That of logits is not normalised. The mean of log-probabilities differs from it by a
        constant a row, which the normalisation of any logits takes away.
        """
        steps = [
            member.step(words, part)
            for member, part in zip(self.members, state.members, strict=True)
        ]
        after = EnsembleState(tuple(part for _, part in steps))
        match self._mean:
            case "probabilities":
                scores = torch.stack([_log_probabilities(logits) for logits, _ in steps])
                return scores.logsumexp(0) - math.log(len(steps)), after
            case "log-probabilities" | "logits":
                return torch.stack([logits for logits, _ in steps]).mean(0), after
            case _:
                assert_never(self._mean)

    def attention(self, state: EnsembleState) -> Tensor | None:
        """The mean of the weights of those members that have attention; None where none has."""
        found = [
            member.attention(part) for member, part in zip(self.members, state.members, strict=True)
        ]
        weights = [each for each in found if each is not None]
        return torch.stack(weights).mean(0) if weights else None

    def restrict(self, words: Sequence[int], first_word: int) -> "Ensemble":
        """The same members, each among these words alone."""
        members = [member.restrict(words, first_word) for member in self.members]
        return Ensemble(members, self._mean)
