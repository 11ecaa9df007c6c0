"""From raw text to raw text: what `s2s translate` does, for Python."""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from s2s_cli.core.checkpoint import ModelFile, check_vocabularies, find_model, load_model
from s2s_cli.core.corpus import read_lines
from s2s_cli.core.device import NO_BF16, find_device, usable_precision
from s2s_cli.core.errors import DataError, ModelError
from s2s_cli.core.recipe.schema import AttentionDecoder, Recipe, Search
from s2s_cli.core.search import (
    Ensemble,
    Hypothesis,
    ModelScorer,
    Scorer,
    forced_scores,
    search_all,
)
from s2s_cli.core.search.corpus import ROWS
from s2s_cli.core.tokenizer import BOS, EOS
from s2s_cli.core.translator.translation import (
    Pieces,
    Scored,
    Texts,
    Translation,
    blank,
    joined,
)


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
            ModelError: members whose vocabularies or first words differ, or none that has the
                attention that the settings need.
            DataError: the file of `search.shortlist` cannot be read, or has unknown pieces.
        """
        first = members[0]
        for other in members[1:]:
            _check_fits(first, other)
        self.settings = settings or first.recipe.search
        if not any(isinstance(one.recipe.model.decoder, AttentionDecoder) for one in members):
            for asked in self.settings.needs_attention:
                raise ModelError(
                    f"{asked} needs attention, which {first.path} does not have\n"
                    "leave it out, or take a model with attention"
                )
        self._members = members
        self._warn = warn
        self._precision = precision
        if usable_precision(first.model.device, precision) != precision:
            warn(NO_BF16)
        scorers = [
            ModelScorer(
                member.model, reverse=member.recipe.model.reverse_source, precision=precision
            )
            for member in members
        ]
        self._scorer: Scorer[Any] = scorers[0]
        if len(scorers) > 1:
            self._scorer = Ensemble(scorers, self.settings.ensemble)
        self._shortlist: list[int] | None = None
        if self.settings.shortlist is not None:
            self._shortlist = self._read_shortlist(self.settings.shortlist)

    @classmethod
    def load(cls, *paths: str | Path, device: str = "auto", precision: str = "fp32") -> Self:
        """A translator from model files or run folders; several make an ensemble.

        Raises:
            ModelError: a file is missing or damaged, or the members do not fit each other.
            DeviceError: the device is not there.
        """
        place = find_device(device)
        return cls([load_model(find_model(str(path)), place) for path in paths], None, precision)

    @property
    def how(self) -> dict[str, Any]:
        """What the result depends on: keys of `[search]` unlike their defaults, beam, precision."""
        chosen = self.settings.model_dump(mode="json", exclude_defaults=True)
        for silent in ("batch_size", "ensemble", "word_scores", "alignment"):
            chosen.pop(silent, None)
        if self.settings.sampling is None:
            chosen["beam_size"] = self.settings.beam_size
        else:
            chosen.pop("beam_size", None)
            chosen["sampling"] = self.settings.sampling.model_dump(mode="json")
        if self._precision != "fp32":
            chosen["precision"] = self._precision
        if len(self._members) > 1:
            chosen |= {"models": len(self._members), "ensemble": self.settings.ensemble}
        return chosen

    def translate(self, lines: Iterable[str], prefixes: Sequence[str] | None = None) -> list[str]:
        """The best translation of each line, in order; blank for blank."""
        found = self.n_best(list(lines), 1, prefixes=prefixes, scores=False)
        return [best[0].text for best in found]

    def n_best(
        self,
        lines: Sequence[str],
        count: int,
        first_number: int = 1,
        prefixes: Sequence[str] | None = None,
        *,
        scores: bool = True,
    ) -> list[list[Translation]]:
        """The `count` best translations of each line, best first; samples as they are drawn.

        A blank line, or one of which the tokenizer leaves nothing, has the one translation "".
        A source of more than `search.max_source` pieces is cut there, translated in parts, and
        joined by spaces, with a warning that names the line, counted from `first_number`.
        `prefixes` tell what each line's translation, or the first part of it, begins with; a blank
        one stands for `search.prefix`. Without `scores` these need not be numbers, which saves a
        greedy search some time.

        Raises:
            DataError: a prefix with a piece that is not on the shortlist.
        """
        encoded = self._encode(lines)
        begun = [""] * len(lines) if prefixes is None else prefixes
        begun = [each if each.strip() else self.settings.prefix for each in begun]
        begun_ids = self._members[0].target_tokenizer.encode(
            [each if each.strip() else "" for each in begun]
        )
        parts: list[list[int]] = []
        starts: list[list[int]] = []
        numbers: list[tuple[int, int]] = []
        spans: list[range] = []
        for number, (ids, start) in enumerate(zip(encoded, begun_ids, strict=True), first_number):
            self._check_listed(number, start)
            longest = self.settings.max_source
            cuts = [ids[i : i + longest] for i in range(0, len(ids), longest)]
            if len(cuts) > 1:
                self._warn(
                    f"line {number} has {len(ids):,} pieces, more than search.max_source = "
                    f"{longest:,}: it is translated in {len(cuts)} parts"
                )
            spans.append(range(len(parts), len(parts) + len(cuts)))
            parts += cuts
            numbers += [(number, part) for part in range(len(cuts))]
            starts += [start, *[[] for _ in cuts[1:]]][: len(cuts)]
        found = search_all(
            self._scorer,
            parts,
            self.settings,
            first_word=first_word(self._members[0].recipe),
            n_best=count,
            prefixes=starts,
            numbers=numbers,
            shortlist=self._shortlist,
            log_probabilities=scores,
        )
        return [
            self._translations(line, start, [found[part] for part in span])
            for line, start, span in zip(lines, begun, spans, strict=True)
        ]

    def score(
        self,
        sources: Sequence[str],
        targets: Sequence[str | Pieces],
        numbers: Sequence[int] | None = None,
    ) -> list[Scored]:
        """How likely each target is as the translation of its source, by the search's own steps.

        A target is text, or pieces as in `Translation`. A pair blank on both sides has no words
        at all, as the translation of a blank line; a blank target is EOS alone; of a blank source
        the encoder reads EOS alone. A source of more than `search.max_source` pieces is read whole
        and by itself, with a warning that names its line by `numbers`, from 1 by default.
        Probabilities are among the whole vocabulary, whatever the shortlist.

        Raises:
            DataError: a piece that a translation cannot have.
        """
        if numbers is None:
            numbers = range(1, len(sources) + 1)
        encoded = self._encode(sources)
        words = self._target_ids(targets, numbers)
        longest = self.settings.max_source
        over = {
            number: len(ids)
            for number, ids in zip(numbers, encoded, strict=True)
            if len(ids) > longest
        }
        for number, length in over.items():
            self._warn(
                f"line {number} has {length:,} pieces, more than search.max_source = {longest:,}: "
                "it is scored whole, where a translation would be made in parts"
            )
        real = [place for place in range(len(words)) if encoded[place] or words[place]]
        found = forced_scores(
            self._scorer,
            [encoded[place] for place in real],
            [words[place] for place in real],
            first_word=first_word(self._members[0].recipe),
            batch_size=self.settings.batch_size or ROWS,
            longest=longest,
        )
        scored = [Scored((), ())] * len(words)
        tokenizer = self._members[0].target_tokenizer
        for place, gained in zip(real, found, strict=True):
            scored[place] = Scored(tuple(tokenizer.pieces(words[place])), tuple(gained))
        return scored

    def _target_ids(
        self, targets: Sequence[str | Pieces], numbers: Sequence[int]
    ) -> list[list[int]]:
        """The ids of text and of pieces."""
        encoded = self._members[0].target_tokenizer.encode(
            [target if isinstance(target, str) and target.strip() else "" for target in targets]
        )
        for place, target in enumerate(targets):
            if isinstance(target, str):
                continue
            ids = [self._target_places.get(piece, EOS) for piece in target]
            if EOS in ids:
                raise DataError(
                    f"line {numbers[place]}: {target[ids.index(EOS)]!r} is no piece of the target "
                    "vocabulary, or its EOS, which is counted by itself"
                )
            encoded[place] = ids
        return encoded

    @functools.cached_property
    def _target_places(self) -> dict[str, int]:
        """The id of each piece of the target vocabulary; of equal ones the first."""
        tokenizer = self._members[0].target_tokenizer
        pieces = tokenizer.pieces(range(tokenizer.size))
        return {piece: number for number, piece in reversed(list(enumerate(pieces)))}

    def _encode(self, lines: Sequence[str]) -> list[list[int]]:
        texts = [line if line.strip() else "" for line in lines]
        return self._members[0].source_tokenizer.encode(texts)

    def _read_shortlist(self, path: str) -> list[int]:
        """The ids of the pieces in a file, one a line, and EOS."""
        known, found, strange = self._target_places, {EOS}, []
        for number, piece in enumerate(read_lines(path), 1):
            if piece in known:
                found.add(known[piece])
            elif piece:
                strange.append(f"{piece!r} (line {number})")
        if len(found) == 1 and not strange:
            raise DataError(f"search.shortlist = {path} names no piece: nothing could be said")
        if strange:
            raise DataError(
                f"search.shortlist = {path}: no pieces of the target vocabulary, {len(strange):,} "
                f"in all: {', '.join(strange[:3])}{', ...' if strange[3:] else ''}\n"
                "pieces are as `s2s translate --format jsonl` shows them"
            )
        return sorted(found)

    def _check_listed(self, number: int, prefix: Sequence[int]) -> None:
        """Raises DataError where a prefix cannot be said."""
        strange = set(prefix).difference(prefix if self._shortlist is None else self._shortlist)
        if strange:
            pieces = self._members[0].target_tokenizer.pieces(sorted(strange))
            raise DataError(
                f"line {number}: its prefix has pieces that are not on the shortlist: "
                f"{', '.join(map(repr, pieces[:3]))}\nadd them to {self.settings.shortlist}"
            )

    def _translations(
        self, line: str, prefix: str, parts: Sequence[Sequence[Hypothesis]]
    ) -> list[Translation]:
        """The translations of a line from those of its parts, best with best."""
        if not parts:
            return [blank(self.settings)]
        texts = Texts(self._members[0], self.settings, line, prefix)
        first = 0
        translated = []
        for number, best in enumerate(parts):
            translated.append([texts.translation(one, first, number == 0) for one in best])
            first += self.settings.max_source
        return joined(translated)


def _check_fits(first: ModelFile, other: ModelFile) -> None:
    check_vocabularies(first, other, "an ensemble")
    if first_word(first.recipe) != first_word(other.recipe):
        raise ModelError(
            f"{first.path} and {other.path} start from different symbols (model.decoder.start)"
        )
