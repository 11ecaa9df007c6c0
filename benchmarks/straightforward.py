"""The opponent: an encoder-decoder as a good engineer writes it with torch's own modules.

Whole sequences where they are known, packed sources, full logits, torch's cross entropy, clipping
and optimiser with their defaults. Nothing of s2s is used, nor any of its techniques.

# B sentences, S source steps, T target steps, E embedding, H hidden, F features, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

PADDING = -100  # a target that `cross_entropy` leaves out
END = 2  # any word would do in the source and the decoder's inputs, where nobody looks at padding

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    source_vocabulary: int
    target_vocabulary: int
    layers: int
    embedding: int
    hidden: int
    features: int
    dropout: float


@dataclass(frozen=True)
class PaddedBatch:
    """Pairs, padded on the right, in the order of falling source length.

    source: [S, B]; lengths: [B] of the sources, on the CPU; inputs, targets: [T, B].
    """

    source: Tensor
    lengths: Tensor
    inputs: Tensor
    targets: Tensor
    words: int

    @classmethod
    def of(cls, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], start: int):
        """Sentences that end with the end symbol."""
        order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))
        read = [torch.tensor(sources[place]) for place in order]
        said = [torch.tensor(targets[place]) for place in order]
        seen = [torch.tensor([start, *targets[place][:-1]]) for place in order]
        return cls(
            pad_sequence(read, padding_value=END),
            torch.tensor([len(each) for each in read]),
            pad_sequence(seen, padding_value=END),
            pad_sequence(said, padding_value=PADDING),
            sum(len(each) for each in said),
        )

    def pinned(self) -> "PaddedBatch":
        """The same, in memory that a GPU reads by itself."""
        return PaddedBatch(
            self.source.pin_memory(),
            self.lengths,
            self.inputs.pin_memory(),
            self.targets.pin_memory(),
            self.words,
        )

    def to(self, device: torch.device) -> "PaddedBatch":
        """The same, on a device."""
        return PaddedBatch(
            self.source.to(device, non_blocking=True),
            self.lengths,
            self.inputs.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.words,
        )


# --- models ----------------------------------------------------------------------------------


class Reader(nn.Module):
    """What all four models have: tables, the encoder, the softmax, and the loss."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.source_embedding = nn.Embedding(sizes.source_vocabulary, sizes.embedding)
        self.target_embedding = nn.Embedding(sizes.target_vocabulary, sizes.embedding)
        self.encoder = nn.LSTM(sizes.embedding, sizes.hidden, sizes.layers, dropout=sizes.dropout)
        self.output = nn.Linear(sizes.features, sizes.target_vocabulary)
        self.dropout = nn.Dropout(sizes.dropout)

    def read(self, batch: PaddedBatch) -> tuple[nn.utils.rnn.PackedSequence, State]:
        """The encoder's outputs, packed, and its last state."""
        vectors = self.dropout(self.source_embedding(batch.source))
        return self.encoder(pack_padded_sequence(vectors, batch.lengths))

    def vectors(self, batch: PaddedBatch) -> Tensor:
        """Of the words that the decoder reads. [T, B, E]"""
        return self.dropout(self.target_embedding(batch.inputs))

    def features(self, batch: PaddedBatch) -> Tensor:
        """What the softmax reads at all steps. [T, B, F]"""
        raise NotImplementedError

    def forward(self, batch: PaddedBatch) -> Tensor:
        """The summed loss of the batch."""
        logits = self.output(self.dropout(self.features(batch)))
        return functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=PADDING, reduction="sum"
        )


class Plain(Reader):
    """No attention."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.decoder = nn.LSTM(sizes.embedding, sizes.hidden, sizes.layers, dropout=sizes.dropout)

    def features(self, batch: PaddedBatch) -> Tensor:
        """One call of the decoder's LSTM."""
        _, state = self.read(batch)
        outputs, _ = self.decoder(self.vectors(batch), state)
        return outputs


def attended(scores: Tensor, values: Tensor, real: Tensor) -> Tensor:
    """scores: [B, T, S], values: [B, S, H], real: [B, S] -> contexts [B, T, H]"""
    weights = scores.masked_fill(~real.unsqueeze(1), float("-inf")).softmax(-1)
    return torch.bmm(weights.to(values.dtype), values)


class Attending(Reader):
    """What the models with attention share."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.key = nn.Linear(sizes.hidden, sizes.hidden, bias=False)
        self.readout = nn.Linear(2 * sizes.hidden, sizes.features, bias=False)

    def values(self, batch: PaddedBatch) -> tuple[Tensor, Tensor, State]:
        """The encoder's outputs [B, S, H], where words stand [B, S], and the last state."""
        packed, state = self.read(batch)
        outputs, _ = pad_packed_sequence(packed, batch_first=True)
        steps = torch.arange(outputs.shape[1], device=outputs.device)
        real = steps < batch.lengths.to(outputs.device, non_blocking=True)[:, None]
        return outputs, real, state


class Attention(Attending):
    """Luong's general attention, all steps at once."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.decoder = nn.LSTM(sizes.embedding, sizes.hidden, sizes.layers, dropout=sizes.dropout)

    def features(self, batch: PaddedBatch) -> Tensor:
        """One call of the decoder's LSTM, one product of all scores."""
        values, real, state = self.values(batch)
        outputs, _ = self.decoder(self.vectors(batch), state)
        queries = outputs.transpose(0, 1)
        scores = torch.bmm(queries, self.key(values).transpose(1, 2))
        contexts = attended(scores, values, real).transpose(0, 1)
        return torch.tanh(self.readout(torch.cat([outputs, contexts], -1)))


class Stepping(Attending):
    """Decoders that go step by step through a cell a layer."""

    def __init__(self, sizes: Sizes, fed: int) -> None:
        super().__init__(sizes)
        inputs = [sizes.embedding + fed, *[sizes.hidden] * (sizes.layers - 1)]
        self.cells = nn.ModuleList(nn.LSTMCell(width, sizes.hidden) for width in inputs)

    def step(self, given: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """All layers, once."""
        after = []
        for number, (cell, state) in enumerate(zip(self.cells, states, strict=True)):
            after.append(cell(self.dropout(given) if number else given, state))
            given = after[-1][0]
        return given, after

    @staticmethod
    def layers(state: State) -> list[State]:
        """The state of each layer."""
        return list(zip(*(part.unbind(0) for part in state), strict=True))


class Feeding(Stepping):
    """Luong's general attention with input feeding."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, sizes.features)

    def features(self, batch: PaddedBatch) -> Tensor:
        """A loop over the target."""
        values, real, state = self.values(batch)
        keys, states = self.key(values).transpose(1, 2), self.layers(state)
        vectors = self.vectors(batch)
        fed = vectors.new_zeros(vectors.shape[1], self.sizes.features)
        features = []
        for vector in vectors:
            output, states = self.step(torch.cat([vector, fed], -1), states)
            scores = torch.bmm(output.unsqueeze(1).to(keys.dtype), keys)
            context = attended(scores, values, real).squeeze(1)
            fed = torch.tanh(self.readout(torch.cat([output, context], -1)))
            features.append(fed)
        return torch.stack(features)


class Additive(Stepping):
    """Bahdanau's additive attention; the state before a step asks."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, sizes.hidden)
        self.query = nn.Linear(sizes.hidden, sizes.hidden, bias=False)
        self.vector = nn.Linear(sizes.hidden, 1, bias=False)

    def features(self, batch: PaddedBatch) -> Tensor:
        """A loop over the target; the readout comes after it."""
        values, real, state = self.values(batch)
        keys, states = self.key(values), self.layers(state)
        outputs, contexts = [], []
        for vector in self.vectors(batch):
            query = self.query(states[-1][0]).unsqueeze(1)
            scores = self.vector(torch.tanh(query + keys)).transpose(1, 2)
            context = attended(scores, values, real).squeeze(1)
            output, states = self.step(torch.cat([vector, context], -1), states)
            outputs.append(output)
            contexts.append(context)
        read = torch.cat([torch.stack(outputs), torch.stack(contexts)], -1)
        return torch.tanh(self.readout(read))


MODELS = {"plain": Plain, "attention": Attention, "feeding": Feeding, "additive": Additive}


# --- an update -------------------------------------------------------------------------------


@dataclass
class Updates:
    """What an update needs beside a batch.

    per: `word` or `sentence`, what the summed loss is divided by; bf16: whether under autocast.
    """

    model: Reader
    optimizer: torch.optim.Optimizer
    per: str
    clip: float
    bf16: bool

    def learn(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """The summed loss, and the gradient's norm before it is clipped."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(batch.source.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.model(batch)
        count = batch.words if self.per == "word" else batch.source.shape[1]
        (loss / count).backward()
        norm = clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach(), norm
