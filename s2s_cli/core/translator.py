"""From raw text to raw text: what `s2s translate` does, for Python."""

import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from s2s_cli.core.checkpoint import ModelFile, check_vocabularies, find_model, load_model
from s2s_cli.core.device import NO_BF16, find_device, usable_precision
from s2s_cli.core.errors import ModelError
from s2s_cli.core.recipe.schema import Recipe, Search
from s2s_cli.core.search import Ensemble, Hypothesis, ModelScorer, Scorer, search_all
from s2s_cli.core.tokenizer import BOS, EOS

# All that some program takes for the end of a line (as str.splitlines does): no line of the
# output may hold one.
LINE_BREAKS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class Translation:
    """A translation of a line.

    log_probability and score as in `Hypothesis`, summed over the parts of an over-long line;
    pieces: the target tokenizer's pieces, EOS not among them.
    """

    text: str
    score: float
    log_probability: float
    pieces: tuple[str, ...]


BLANK = Translation("", 0.0, 0.0, ())


def first_word(recipe: Recipe) -> int:
    """The id that the decoder of this recipe reads first."""
    return EOS if recipe.model.decoder.start == "eos" else BOS


class Translator:
    """Translates lines with a model, or with several as an ensemble.

    A `Trainer` changes how all of its process multiplies (`core.device.accelerate`): beside one,
    scores may differ in their last bits from those of a process that only translates.

    Example:
        translator = Translator.load("runs/quickstart")
        translator.translate(["Hello.", "How are you?"])
    """

    def __init__(
        self,
        members: Sequence[ModelFile],
        settings: Search | None = None,
        precision: str = "fp32",
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        """A translator of loaded models; `settings` default to the first recipe's `[search]`.

        Raises:
            ModelError: members whose target vocabularies or first words differ.
        """
        first = members[0]
        for other in members[1:]:
            _check_fits(first, other)
        self.settings = settings or first.recipe.search
        self._members = members
        self._warn = warn
        if usable_precision(first.model.device, precision) != precision:
            warn(NO_BF16)
        scorers = [
            ModelScorer(
                member.model, reverse=member.recipe.model.reverse_source, precision=precision
            )
            for member in members
        ]
        self._scorer: Scorer[Any] = scorers[0] if len(scorers) == 1 else Ensemble(scorers)

    @classmethod
    def load(cls, *paths: str | Path, device: str = "auto", precision: str = "fp32") -> Self:
        """A translator from model files or run folders; several make an ensemble.

        Raises:
            ModelError: a file is missing or damaged, or the members do not fit each other.
            DeviceError: the device is not there.
        """
        place = find_device(device)
        return cls([load_model(find_model(str(path)), place) for path in paths], None, precision)

    def translate(self, lines: Iterable[str]) -> list[str]:
        """The best translation of each line, in order; blank for blank."""
        return [best[0].text for best in self.n_best(list(lines), 1)]

    def n_best(
        self, lines: Sequence[str], count: int, first_number: int = 1
    ) -> list[list[Translation]]:
        """The `count` best translations of each line, best first.

        A blank line, or one of which the tokenizer leaves nothing, has the one translation "".
        A source of more than `search.max_source` pieces is cut there, translated in parts, and
        joined by spaces, with a warning that names the line, counted from `first_number`.
        """
        encoded = self._encode(lines)
        parts: list[list[int]] = []
        spans: list[range] = []
        for number, ids in enumerate(encoded, first_number):
            longest = self.settings.max_source
            cuts = [ids[i : i + longest] for i in range(0, len(ids), longest)]
            if len(cuts) > 1:
                self._warn(
                    f"line {number} has {len(ids):,} pieces, more than search.max_source = "
                    f"{longest:,}: it is translated in {len(cuts)} parts"
                )
            spans.append(range(len(parts), len(parts) + len(cuts)))
            parts.extend(cuts)
        found = search_all(
            self._scorer,
            parts,
            self.settings,
            first_word=first_word(self._members[0].recipe),
            n_best=count,
        )
        texts = iter(self._decode([hypothesis for best in found for hypothesis in best]))
        translated = [list(itertools.islice(texts, len(best))) for best in found]
        return [_joined([translated[part] for part in span]) for span in spans]

    def _encode(self, lines: Sequence[str]) -> list[list[int]]:
        texts = [line if line.strip() else "" for line in lines]
        return self._members[0].source_tokenizer.encode(texts)

    def _decode(self, hypotheses: Sequence[Hypothesis]) -> Iterator[Translation]:
        tokenizer = self._members[0].target_tokenizer
        texts = tokenizer.decode([hypothesis.words for hypothesis in hypotheses])
        for hypothesis, text in zip(hypotheses, texts, strict=True):
            yield Translation(
                LINE_BREAKS.sub(" ", text),
                hypothesis.score,
                hypothesis.log_probability,
                tuple(tokenizer.pieces(hypothesis.words)),
            )


def _joined(parts: Sequence[Sequence[Translation]]) -> list[Translation]:
    """The translations of a line from those of its parts, best with best."""
    if not parts:
        return [BLANK]
    if len(parts) == 1:
        return list(parts[0])
    return [
        Translation(
            " ".join(part.text for part in ranked if part.text),
            sum(part.score for part in ranked),
            sum(part.log_probability for part in ranked),
            tuple(piece for part in ranked for piece in part.pieces),
        )
        for ranked in zip(*parts, strict=False)
    ]


def _check_fits(first: ModelFile, other: ModelFile) -> None:
    check_vocabularies(first, other, "an ensemble")
    if first_word(first.recipe) != first_word(other.recipe):
        raise ModelError(
            f"{first.path} and {other.path} start from different symbols (model.decoder.start)"
        )
