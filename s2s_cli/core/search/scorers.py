"""What search asks of a model: `start` and `step`, and `select` of the state between them.

A trained model, an ensemble of them and a test's table of probabilities are the same to it.

# R rows of a search, V vocabulary, W words of a shortlist
# S words of the batch's longest source, its EOS among them
"""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import numpy
import torch
from torch import Tensor

from s2s_cli.core.batches import source_batch
from s2s_cli.core.device import autocast, usable_precision
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.model.decoder import AttentionState
from s2s_cli.core.model.output import AdaptiveSoftmax
from s2s_cli.core.model.packing import packed, with_output
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

    def attention(self, state: S) -> Tensor | None:
        """What the last step attended to, [R, S] in fp32; None where there is no attention.

        Source words stand in their natural order, EOS behind a row's last one, zeros behind it.
        """
        ...

    def restrict(self, words: Sequence[int], first_word: int) -> "Scorer[Any]":
        """The same scorer among these words alone, W of them, EOS included.

        There word i is `words[i]`, both read and scored; number W is `first_word`, which is read
        and never said. Probabilities are among the W.
        """
        ...


class ModelScorer:
    """One model, with the direction in which it reads; on a CPU, a packed copy of it."""

    def __init__(self, model: Seq2Seq, *, reverse: bool, precision: str = "fp32") -> None:
        precision = usable_precision(model.device, precision)
        self.model = packed(model, precision) if model.device.type == "cpu" else model
        self._whole = model
        self._narrow: tuple[list[int], ModelScorer] | None = None  # the latest shortlist's
        self._reverse = reverse
        self._precision = precision

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    @torch.inference_mode()
    def start(self, sources: PackedText) -> Any:
        """Encodes the sources."""
        batch = source_batch(sources, numpy.arange(len(sources)), self._reverse)
        with self._products():
            return self.model.start(batch.to(self.device))

    @torch.inference_mode()
    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of the decoder."""
        with self._products():
            return self.model.step(words, state)

    def _products(self) -> contextlib.AbstractContextManager[None]:
        """Packed ones have their precision already."""
        if self.device.type == "cpu":
            return contextlib.nullcontext()
        return autocast(self.device, self._precision)

    def attention(self, state: Any) -> Tensor | None:
        """By the order in which the model read the source: the other way round, EOS last."""
        if not isinstance(state, AttentionState) or state.source.weights is None:
            return None
        weights, source = state.source.weights, state.source
        longest = weights.shape[1]
        lengths = source.lengths().repeat_interleave(source.rows)[:, None]
        words = torch.arange(longest, device=weights.device).expand_as(weights)
        read = (
            torch.where(words < lengths - 1, lengths - 2 - words, words) if self._reverse else words
        )
        found = weights.gather(1, (longest - lengths + read).clamp(0, longest - 1))
        return found.masked_fill(words >= lengths, 0)

    def restrict(self, words: Sequence[int], first_word: int) -> "Shortlisted":
        """This model among these words alone; where it can, no others' logits are computed."""
        output = self._whole.decoder.output
        if self.device.type != "cpu" or isinstance(output, AdaptiveSoftmax):
            return Shortlisted(self, words, first_word)
        if self._narrow is None or self._narrow[0] != list(words):  # packing takes its time
            narrow = copy.copy(self)
            narrow.model = with_output(self.model, self._whole, self._precision, words)
            self._narrow = list(words), narrow
        return Shortlisted(self._narrow[1], words, first_word, all_logits=False)


class Shortlisted:
    """Another scorer, among a few words of its vocabulary: see `Scorer.restrict`.

    all_logits: whether the other gives those of all words, and not of these alone.
    """

    def __init__(
        self,
        scorer: Scorer[Any],
        words: Sequence[int],
        first_word: int,
        *,
        all_logits: bool = True,
    ) -> None:
        self._scorer = scorer
        self._all_logits = all_logits
        self._words = torch.tensor(words, device=scorer.device)
        self._read = torch.tensor([*words, first_word], device=scorer.device)

    @property
    def device(self) -> torch.device:
        """The other's."""
        return self._scorer.device

    def start(self, sources: PackedText) -> Any:
        """The other's start."""
        return self._scorer.start(sources)

    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Reads words of the shortlist, [R]; gives their logits, [R, W]."""
        logits, state = self._scorer.step(self._read[words], state)
        return logits.index_select(1, self._words) if self._all_logits else logits, state

    def attention(self, state: Any) -> Tensor | None:
        """The other's."""
        return self._scorer.attention(state)

    def restrict(self, words: Sequence[int], first_word: int) -> Scorer[Any]:
        """A shorter list: `words` and `first_word` are numbers of this one."""
        read = self._read.tolist()
        return self._scorer.restrict([read[word] for word in words], read[first_word])
