"""What search asks of a model: `start` and `step`, and `select` of the state between them.

A trained model, an ensemble of them and a test's table of probabilities are the same to it.

# R rows of a search, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy
import torch
from torch import Tensor

from s2s_cli.core.batches import source_batch
from s2s_cli.core.device import autocast
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.prepared import PackedText


class State(Protocol):
    """What a scorer remembers of each row."""

    def select(self, rows: Tensor) -> Self:
        """The state of these rows, in this order, repeats allowed. rows: [R']"""
        ...


S = TypeVar("S", bound=State)


class Scorer(Protocol[S]):
    """Scores the next word of each row."""

    @property
    def device(self) -> torch.device:
        """Where `step` wants its words and leaves its scores."""
        ...

    def start(self, sources: PackedText) -> S:
        """The state before the first word, a row a source; sources come in falling length."""
        ...

    def step(self, words: Tensor, state: S) -> tuple[Tensor, S]:
        """Reads a word a row, [R]; gives unnormalised log-probabilities of the next, [R, V]."""
        ...


class ModelScorer:
    """One model, with the direction in which it reads."""

    def __init__(self, model: Seq2Seq, *, reverse: bool, precision: str = "fp32") -> None:
        self.model = model
        self._reverse = reverse
        self._precision = precision

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def start(self, sources: PackedText) -> Any:
        """Encodes the sources."""
        batch = source_batch(sources, numpy.arange(len(sources)), self._reverse)
        with autocast(self.device, self._precision):
            return self.model.start(batch.to(self.device))

    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of the decoder."""
        with autocast(self.device, self._precision):
            return self.model.step(words, state)


@dataclass(frozen=True)
class EnsembleState:
    """The states of the members."""

    members: tuple[Any, ...]

    def select(self, rows: Tensor) -> "EnsembleState":
        """These rows of every member."""
        return EnsembleState(tuple(member.select(rows) for member in self.members))


class Ensemble:
    """Several models of the same target vocabulary: the mean of their probabilities."""

    def __init__(self, members: Sequence[Scorer[Any]]) -> None:
        self.members = tuple(members)

    @property
    def device(self) -> torch.device:
        """The first member's; all have to be on one."""
        return self.members[0].device

    def start(self, sources: PackedText) -> EnsembleState:
        """Starts every member."""
        return EnsembleState(tuple(member.start(sources) for member in self.members))

    def step(self, words: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """log(1/M * sum of the members' probabilities) of the next word, [R, V]."""
        steps = [
            member.step(words, part)
            for member, part in zip(self.members, state.members, strict=True)
        ]
        scores = torch.stack([logits.log_softmax(-1) for logits, _ in steps])
        mean = scores.logsumexp(0) - torch.tensor(float(len(steps))).log()
        return mean, EnsembleState(tuple(part for _, part in steps))
