"""What a translator gives: the text of what a search has found, and scores of what is there."""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from s2s_cli.core.checkpoint import ModelFile
from s2s_cli.core.recipe.schema import Search
from s2s_cli.core.search import Hypothesis
from s2s_cli.core.search.alignment import Links, copies, links
from s2s_cli.core.search.alignment import joined as joined_attention
from s2s_cli.core.tokenizer import UNKNOWN

# All that some program takes for the end of a line (as str.splitlines does): no line of the
# output may hold one.
LINE_BREAKS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")

Pieces = tuple[str, ...] | list[str]


@dataclass(frozen=True)
class Translation:
    """A translation of a line.

    log_probability and score as in `Hypothesis`, summed over the parts of an over-long line;
    pieces: the target tokenizer's pieces, EOS not among them. Where the search was asked for them:
    word_log_probabilities, of each piece and of EOS, of which each part of an over-long line has
    one; source_pieces, the source tokenizer's; alignment, (source piece, target piece) from 0 in
    their natural orders; attention, a row for each piece and EOS, as word_log_probabilities, over
    the source's pieces and its EOS.
    """

    text: str
    score: float
    log_probability: float
    pieces: tuple[str, ...]
    word_log_probabilities: tuple[float, ...] | None = None
    source_pieces: tuple[str, ...] | None = None
    alignment: Links | None = None
    attention: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Scored:
    """How likely a translation is that was there already.

    pieces: the target tokenizer's, EOS not among them; word_log_probabilities: the natural log of
    the probability of each, and of EOS, after those before it.
    """

    pieces: tuple[str, ...]
    word_log_probabilities: tuple[float, ...]

    @property
    def log_probability(self) -> float:
        """Of the whole, EOS included."""
        return math.fsum(self.word_log_probabilities)


def blank(settings: Search) -> Translation:
    """The translation of a blank line."""
    return Translation(
        "",
        0.0,
        0.0,
        (),
        () if settings.word_scores else None,
        () if settings.alignment else None,
        () if settings.alignment else None,
        torch.zeros(0, 0) if settings.alignment else None,
    )


class Texts:
    """The text of a line's hypotheses, with what stands where a model says `<unk>`."""

    def __init__(self, model: ModelFile, settings: Search, line: str, prefix: str) -> None:
        self._model = model
        self._settings = settings
        self._line = line
        self._prefix = prefix

    @functools.cached_property
    def _begun(self) -> list[str]:
        """What each piece of the prefix stands for."""
        return self._model.target_tokenizer.surfaces(self._prefix) if self._prefix.strip() else []

    @functools.cached_property
    def _read(self) -> list[str]:
        """What each piece of the source stands for."""
        return self._model.source_tokenizer.surfaces(self._line)

    @functools.cached_property
    def _source_pieces(self) -> tuple[str, ...]:
        tokenizer = self._model.source_tokenizer
        return tuple(tokenizer.pieces(tokenizer.encode([self._line])[0]))

    def translation(self, one: Hypothesis, first: int, is_begun: bool) -> Translation:
        """Of a part of the line that begins at its piece `first`, and perhaps with the prefix."""
        tokenizer = self._model.target_tokenizer
        texts: dict[int, str] = {}
        if UNKNOWN in one.words:
            if self._settings.unk == "replace" and one.attention is not None:
                read = self._read[first : first + one.attention.shape[1] - 1]
                texts = copies(one.words, one.attention, read)
            if is_begun:
                begun = enumerate(zip(self._begun, one.words, strict=False))
                texts |= {place: text for place, (text, word) in begun if word == UNKNOWN}
        text = tokenizer.fill(one.words, texts) if texts else tokenizer.decode([one.words])[0]
        found = Translation(
            LINE_BREAKS.sub(" ", text),
            one.score,
            one.log_probability,
            tuple(tokenizer.pieces(one.words)),
            one.word_scores,
        )
        if one.attention is None or not self._settings.alignment:
            return found
        return replace(
            found,
            source_pieces=self._source_pieces[first : first + one.attention.shape[1] - 1],
            alignment=links(one.attention),
            attention=one.attention,
        )


def joined(parts: Sequence[Sequence[Translation]]) -> list[Translation]:
    """The translations of a line from those of its parts, best with best."""
    if len(parts) == 1:
        return list(parts[0])
    return [_joined_one(ranked) for ranked in zip(*parts, strict=False)]


def _joined_one(parts: Sequence[Translation]) -> Translation:
    """A translation from those of its parts."""
    gained = [part.word_log_probabilities for part in parts]
    attentions = [part.attention for part in parts if part.attention is not None]
    alignment: list[tuple[int, int]] = []
    source = target = 0
    for part in parts:
        alignment += [(source + i, target + j) for i, j in part.alignment or ()]
        source += 0 if part.attention is None else part.attention.shape[1] - 1
        target += len(part.pieces)
    return Translation(
        " ".join(part.text for part in parts if part.text),
        sum(part.score for part in parts),
        sum(part.log_probability for part in parts),
        tuple(piece for part in parts for piece in part.pieces),
        None if None in gained else tuple(value for each in gained for value in each or ()),
        tuple(piece for part in parts for piece in part.source_pieces or ())
        if attentions
        else None,
        tuple(alignment) if attentions else None,
        joined_attention(attentions) if attentions else None,
    )
