"""Attention: at each step of the decoder a weighted sum of the encoder's outputs.

A query may be a single step's state or those of all steps at once.

# B batch, T queries, S source words, Q query, C encoder's outputs, A numbers in a score's sum,
# R rows of a search, which are as many to a sentence and stand together
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from s2s_cli.core.model.activation import tanh_
from s2s_cli.core.model.bridge import Encoded


@dataclass(frozen=True)
class Source:
    """What a decoder attends to.

    values: [B, S, C]; keys: what a score makes of them, once a sentence; real: [B, S], where words
    stand; coverage: [R, S], the attention each word has had so far, where a score reads it;
    weights: [R, S], the attention of the latest step; rows: to a sentence, R / B.
    """

    values: Tensor
    keys: Tensor
    real: Tensor
    coverage: Tensor | None = None
    weights: Tensor | None = None
    rows: int = 1

    def select(self, rows: Tensor) -> "Source":
        """The sources of these rows."""
        sentences = rows // self.rows
        coverage, weights = (
            None if each is None else each.index_select(0, rows)
            for each in (self.coverage, self.weights)
        )
        count = 1
        # The hypotheses of a sentence share what it is; a GPU would have to be waited for.
        if coverage is None and rows.device.type == "cpu":
            found, counts = torch.unique_consecutive(sentences, return_counts=True)
            if len(found) and bool((counts == counts[0]).all()):
                sentences, count = found, int(counts[0])
            if len(sentences) == len(self.real) and bool((sentences.diff() == 1).all()):
                return Source(self.values, self.keys, self.real, coverage, weights, count)
        return Source(
            self.values.index_select(0, sentences),
            self.keys.index_select(0, sentences),
            self.real.index_select(0, sentences),
            coverage,
            weights,
            count,
        )

    def by_sentence(self, queries: Tensor) -> Tensor:
        """queries: [T, R, Q] -> [B, T * rows, Q]"""
        steps, _, width = queries.shape
        apart = queries.reshape(steps, len(self.real), self.rows, width)
        return apart.transpose(0, 1).flatten(1, 2)

    def by_step(self, found: Tensor) -> Tensor:
        """Back: [B, T * rows, n] -> [T, R, n]"""
        sentences, queries, width = found.shape
        apart = found.reshape(sentences, queries // self.rows, self.rows, width)
        return apart.transpose(0, 1).flatten(1, 2)

    def seen(self, weights: Tensor) -> "Source":
        """After queries that had these weights, [B, T * rows, S]."""
        return replace(self, weights=self.by_step(weights)[-1])

    def positions(self) -> Tensor:
        """The number of each word in the order of reading, from 0; negative at padding. [B, S]"""
        steps = self.real.shape[1]
        return torch.arange(steps, device=self.real.device) - (steps - self.lengths()[:, None])

    def lengths(self) -> Tensor:
        """Words of each source, [B]."""
        return self.real.sum(1)


# --- scores ----------------------------------------------------------------------------------


class DotScore(nn.Module):
    """h^T s (Luong et al. 2015, section 3.1)."""

    covers = False

    def keys(self, values: Tensor) -> Tensor:
        """What queries meet: the outputs as they are."""
        return values

    def forward(self, queries: Tensor, source: Source) -> Tensor:
        """queries: [B, T, Q] -> scores [B, T, S]"""
        return queries.to(source.keys.dtype) @ source.keys.transpose(1, 2)


class GeneralScore(DotScore):
    """h^T W s (Luong et al. 2015, section 3.1): a dot with W s."""

    def __init__(self, query: int, width: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(width, query, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """W s, [B, S, Q]."""
        keys: Tensor = self.matrix(values)
        return keys


class AdditiveScore(nn.Module):
    """v^T tanh(W h + U s) (Bahdanau et al. 2015, appendix A.1.2).

    With A = Q it is Luong's concat, v^T tanh([W U] [h; s]). With `covers` the sum has a third
    term, a vector times the coverage so far (Tu et al. 2016, See et al. 2017, equation 11).
    """

    def __init__(self, query: int, width: int, size: int, *, covers: bool) -> None:
        super().__init__()
        self.query = nn.Linear(query, size, bias=False)
        self.key = nn.Linear(width, size, bias=False)
        self.vector = nn.Linear(size, 1, bias=False)
        self.covers = covers
        self.cover = nn.Linear(1, size, bias=False) if covers else None

    def keys(self, values: Tensor) -> Tensor:
        """U s, [B, S, A]."""
        keys: Tensor = self.key(values)
        return keys

    def forward(self, queries: Tensor, source: Source) -> Tensor:
        """queries: [B, T, Q] -> scores [B, T, S]"""
        keys = source.keys
        if self.cover is not None and source.coverage is not None:
            keys = keys + self.cover(source.coverage.to(keys.dtype).unsqueeze(-1))
        sums = tanh_(self.query(queries).unsqueeze(2) + keys.unsqueeze(1))  # [B, T, S, A]
        scores: Tensor = self.vector(sums)
        return scores.squeeze(-1)


class LocationScore(nn.Module):
    """W h: a weight for each place of the source, in the order of reading (Luong et al. 2015)."""

    covers = False

    def __init__(self, query: int, longest: int) -> None:
        super().__init__()
        self.places = nn.Linear(query, longest, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """None: what stands at a place does not matter."""
        return values[..., :0]

    def forward(self, queries: Tensor, source: Source) -> Tensor:
        """queries: [B, T, Q] -> scores [B, T, S]; -inf beyond the places that have a weight."""
        scores: Tensor = self.places(queries)
        positions = source.positions()
        known = positions.clamp(0, scores.shape[-1] - 1)
        found = scores.gather(-1, known.unsqueeze(1).expand(-1, scores.shape[1], -1))
        return found.masked_fill((positions >= scores.shape[-1]).unsqueeze(1), -torch.inf)


Score = DotScore | AdditiveScore | LocationScore


# --- attention -------------------------------------------------------------------------------


class LocalWindow(nn.Module):
    """local-p: a window around a predicted place (Luong et al. 2015, section 3.2).

    p = L sigmoid(v^T tanh(W h)) for a source of L words; words within D of p are scored, and
    their weights multiplied by exp(-(s - p)^2 / (2 (D / 2)^2)), s counted from 0.
    """

    def __init__(self, query: int, half_width: int) -> None:
        super().__init__()
        self.half_width = half_width
        self.matrix = nn.Linear(query, query, bias=False)
        self.vector = nn.Linear(query, 1, bias=False)

    def forward(self, queries: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """queries: [B, T, Q] -> which words are inside, and the weights' factors, [B, T, S]."""
        place = torch.sigmoid(self.vector(torch.tanh(self.matrix(queries))).float())
        place = place * source.lengths()[:, None, None]
        distance = source.positions().unsqueeze(1) - place
        factors = torch.exp(-2 * (distance / self.half_width) ** 2)
        return distance.abs() <= self.half_width, factors


class Attention(nn.Module):
    """One context a query, by one score of the words."""

    def __init__(self, score: Score, window: LocalWindow | None = None) -> None:
        super().__init__()
        self.score = score
        self.window = window

    def prepare(self, encoded: Encoded) -> Source:
        """What all queries share."""
        # A product of each step would put them in order anew, and that takes longer than itself.
        values = encoded.outputs.contiguous()
        coverage = values.new_zeros(encoded.real.shape) if self.score.covers else None
        return Source(values, self.score.keys(values), encoded.real, coverage)

    def forward(self, queries: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """queries: [T, R, Q] -> contexts [T, R, C] and weights [B, T * rows, S].

        The weights are taken in fp32, whatever the precision of the model.
        """
        queries = source.by_sentence(queries)
        scores = self.score(queries, source).float()
        inside, factors = source.real.unsqueeze(1), None
        if self.window is not None:
            near, factors = self.window(queries, source)
            inside = inside & near
        weights = scores.masked_fill(~inside, -torch.inf).softmax(-1)
        if factors is not None:
            weights = weights * factors
        contexts = weights.to(source.values.dtype) @ source.values
        return source.by_step(contexts), weights

    def step(self, query: Tensor, source: Source) -> tuple[Tensor, Source]:
        """One query, [R, Q]: its context [R, C], and the source as the next step finds it."""
        contexts, weights = self(query.unsqueeze(0), source)
        if source.coverage is not None:
            source = replace(source, coverage=source.coverage + weights.squeeze(1))
        return contexts.squeeze(0), source.seen(weights)


class MultiHeadAttention(nn.Module):
    """Additive attention by several heads (Chen et al. 2018, section 3.1).

    A head has its share of the A numbers in the sum, its own v, and its share of a linear
    projection of the outputs; the heads' contexts stand side by side.
    """

    def __init__(self, query: int, width: int, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query, size, bias=False)
        self.key = nn.Linear(width, size, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.vectors = nn.Parameter(torch.empty(heads, size // heads))
        nn.init.uniform_(self.vectors, -((size // heads) ** -0.5), (size // heads) ** -0.5)

    def prepare(self, encoded: Encoded) -> Source:
        """What all queries share."""
        outputs = encoded.outputs
        return Source(self.value(outputs), self.key(outputs), encoded.real)

    def forward(self, queries: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """queries: [T, R, Q] -> contexts [T, R, C], weights [B, T * rows, S], the heads' mean."""
        asked = self._by_head(self.query(source.by_sentence(queries))).unsqueeze(2)
        keys = self._by_head(source.keys).unsqueeze(1)
        scores = (tanh_(asked + keys) * self.vectors).sum(-1).float()  # [B, T, S, heads]
        scores = scores.masked_fill(~source.real[:, None, :, None], -torch.inf)
        weights = scores.softmax(2)
        values = self._by_head(source.values)  # [B, S, heads, c]
        contexts = torch.einsum("btsn,bsnc->btnc", weights.to(values.dtype), values)
        return source.by_step(contexts.flatten(2)), weights.mean(-1)

    def _by_head(self, numbers: Tensor) -> Tensor:
        """[B, s, A] -> [B, s, heads, A / heads]"""
        return numbers.reshape(*numbers.shape[:2], self.heads, -1)

    def step(self, query: Tensor, source: Source) -> tuple[Tensor, Source]:
        """One query, [R, Q]: its context [R, C], and the source with the attention paid."""
        contexts, weights = self(query.unsqueeze(0), source)
        return contexts.squeeze(0), source.seen(weights)
