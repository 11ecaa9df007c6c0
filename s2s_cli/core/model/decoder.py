"""Writers of the target that need not loop: the whole target goes through each layer in one call.

All decoders have one shape: `start(encoded)` gives the state before the first word, and
`forward(words, state)` reads words, all of them in training and one in search, and gives features
for `output`, the softmax.

# B batch, T target steps, E embedding, H hidden, C context, F features
"""

import abc
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from s2s_cli.core.model.attention import Attention, MultiHeadAttention, Source
from s2s_cli.core.model.bridge import Encoded
from s2s_cli.core.model.cells import Parts
from s2s_cli.core.model.dropout import Dropout, Masks
from s2s_cli.core.model.embedding import Embedding
from s2s_cli.core.model.output import Output
from s2s_cli.core.model.readout import Readout
from s2s_cli.core.model.recurrent import LayerStack, Recurrent, RecurrentState


class State(Protocol):
    """What a decoder remembers of each row."""

    def select(self, rows: Tensor) -> Self:
        """The state of these rows, in this order, repeats allowed. rows: [R]"""
        ...


class Bridge(Protocol):
    """Gives the parts of the decoder's first state, each [L, B, H]."""

    def __call__(self, encoded: Encoded, /) -> Parts:
        """From what the encoder read."""
        ...


S = TypeVar("S", bound=State)
R = TypeVar("R", bound=Recurrent | LayerStack)


@dataclass(frozen=True)
class DecoderParts:
    """What all decoders are put together from, beside their layers."""

    embedding: Embedding
    bridge: Bridge
    readout: Readout
    output: Output
    embedding_dropout: Dropout
    output_dropout: Dropout


class Decoder(nn.Module, abc.ABC, Generic[S, R]):
    """What all decoders have: word vectors, layers, a first state, a readout and a softmax."""

    def __init__(self, parts: DecoderParts, recurrent: R) -> None:
        super().__init__()
        self.embedding = parts.embedding
        self.recurrent = recurrent
        self.bridge = parts.bridge
        self.readout = parts.readout
        self.output = parts.output
        self.embedding_dropout = parts.embedding_dropout
        self.output_dropout = parts.output_dropout

    @abc.abstractmethod
    def start(self, encoded: Encoded) -> S:
        """The state before the first word."""

    @abc.abstractmethod
    def forward(self, words: Tensor, state: S) -> tuple[Tensor, S]:
        """Reads `words` [T, B]; features [T, B, F] for the softmax, and the state after."""

    def first(self, encoded: Encoded) -> RecurrentState:
        """The layers' first state, and the masks of dropouts that stay the same over time."""
        like = encoded.summary
        masks = Masks(
            self.embedding_dropout.mask(like, self.embedding.embedding_dim),
            self.recurrent.masks(like),
            self.output_dropout.mask(like, self.readout.features),
        )
        # A state that a bridge has made in the precision of autocast would stay in it step by step.
        kind = next(self.recurrent.parameters()).dtype
        return RecurrentState(tuple(part.to(kind) for part in self.bridge(encoded)), masks)

    def vectors(self, words: Tensor, masks: Masks) -> Tensor:
        """The vectors of `words` [T, B], some of their numbers dropped: [T, B, E]"""
        vectors: Tensor = self.embedding_dropout(self.embedding(words), masks.words)
        return vectors

    def dropped(self, features: Tensor, masks: Masks) -> Tensor:
        """The features, some of them dropped."""
        dropped: Tensor = self.output_dropout(features, masks.features)
        return dropped

    def read_out(
        self, outputs: Tensor, state: RecurrentState, vectors: Tensor, contexts: Tensor | None
    ) -> Tensor:
        """The features [T, B, F] of all steps, some of them dropped.

        Args:
            outputs: of the last layer, [T, B, H].
            state: before the first of these steps.
            vectors: of the words read, [T, B, E].
            contexts: [T, B, C].
        """
        before = outputs
        if self.readout.reads_previous:
            before = torch.cat([state.top[None].to(outputs.dtype), outputs[:-1]])
        return self.dropped(self.readout(outputs, before, vectors, contexts), state.masks)


class PlainDecoder(Decoder[RecurrentState, Recurrent | LayerStack]):
    """Knows the source through its first state alone (Sutskever et al. 2014, section 2)."""

    def start(self, encoded: Encoded) -> RecurrentState:
        """The state before the first word."""
        return self.first(encoded)

    def forward(self, words: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Reads `words` [T, B]; features [T, B, F] for the softmax, and the state after."""
        vectors = self.vectors(words, state.masks)
        outputs, after = self.recurrent(vectors, state)
        return self.read_out(outputs, state, vectors, None), after


@dataclass(frozen=True)
class PeekyState:
    """The layers' state, and what stays as it is: [B, C], or [B, 0] where nothing is read.

    read: what the readout reads of the context; heard: what the first layer does.
    """

    recurrent: RecurrentState
    read: Tensor
    heard: Tensor

    def select(self, rows: Tensor) -> "PeekyState":
        """The states of these rows."""
        read, heard = self.read.index_select(0, rows), self.heard.index_select(0, rows)
        return PeekyState(self.recurrent.select(rows), read, heard)


class PeekyDecoder(Decoder[PeekyState, Recurrent | LayerStack]):
    """Sees a summary of the source at every step (Cho et al. 2014, section 2.2).

    summary: the matrix V of the context tanh(V h); without it the context is the encoder's last
    state itself.
    """

    def __init__(
        self,
        parts: DecoderParts,
        recurrent: Recurrent | LayerStack,
        *,
        to_cell: bool,
        to_readout: bool,
        summary: nn.Linear | None,
    ) -> None:
        super().__init__(parts, recurrent)
        self.to_cell, self.to_readout = to_cell, to_readout
        self.summary = summary

    def start(self, encoded: Encoded) -> PeekyState:
        """The state before the first word."""
        if self.summary is not None:
            encoded = replace(encoded, summary=torch.tanh(self.summary(encoded.summary)))
        context = encoded.summary
        nothing = context[:, :0]
        heard = self.recurrent.of_constant(context) if self.to_cell else nothing
        return PeekyState(self.first(encoded), context if self.to_readout else nothing, heard)

    def forward(self, words: Tensor, state: PeekyState) -> tuple[Tensor, PeekyState]:
        """Reads `words` [T, B]; features [T, B, F] for the softmax, and the state after."""
        vectors = self.vectors(words, state.recurrent.masks)
        heard, read = (each.expand(len(words), -1, -1) for each in (state.heard, state.read))
        inputs = torch.cat([vectors, heard], -1) if self.to_cell else vectors
        outputs, after = self.recurrent(inputs, state.recurrent)
        contexts = read if self.to_readout else None
        features = self.read_out(outputs, state.recurrent, vectors, contexts)
        return features, replace(state, recurrent=after)


@dataclass(frozen=True)
class AttentionState:
    """The layers' state, the source, and what goes to the next step's input.

    fed: features [B, F], a context [B, C], or nothing [B, 0].
    """

    recurrent: RecurrentState
    source: Source
    fed: Tensor

    def select(self, rows: Tensor) -> "AttentionState":
        """The states of these rows."""
        return AttentionState(
            self.recurrent.select(rows), self.source.select(rows), self.fed.index_select(0, rows)
        )


class AttendingDecoder(Decoder[AttentionState, R]):
    """What all decoders with attention share."""

    def __init__(
        self, parts: DecoderParts, recurrent: R, attention: Attention | MultiHeadAttention
    ) -> None:
        super().__init__(parts, recurrent)
        self.attention = attention

    def fed_at_first(self, encoded: Encoded) -> Tensor:
        """What goes to the first step's input: nothing."""
        return encoded.summary[:, :0]

    def start(self, encoded: Encoded) -> AttentionState:
        """The state before the first word."""
        source = self.attention.prepare(encoded)
        return AttentionState(self.first(encoded), source, self.fed_at_first(encoded))


class AttentionDecoder(AttendingDecoder[Recurrent | LayerStack]):
    """The state after a step asks, and nothing of the context comes back to the layers.

    Luong et al. 2015, section 3.1, without input feeding.
    """

    def forward(self, words: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Reads `words` [T, B]; features [T, B, F] for the softmax, and the state after."""
        vectors = self.vectors(words, state.recurrent.masks)
        outputs, after = self.recurrent(vectors, state.recurrent)
        contexts, weights = self.attention(outputs, state.source)
        features = self.read_out(outputs, state.recurrent, vectors, contexts)
        return features, replace(state, recurrent=after, source=state.source.seen(weights))
