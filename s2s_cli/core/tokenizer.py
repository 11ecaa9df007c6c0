"""From raw text to numbers and back. The only door to sentencepiece and sacremoses.

Every tokenizer gives the same numbers to the three special symbols; a vocabulary's size counts
them. There is no symbol for padding: lengths tell where a sentence ends.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, assert_never

from s2s_cli.core.errors import ModelError, RecipeError
from s2s_cli.core.recipe.schema import SentencePiece, Words

UNKNOWN, BOS, EOS = 0, 1, 2
SPECIAL_SYMBOLS = ("<unk>", "<s>", "</s>")
SPACE = "\u2581"  # in SentencePiece's pieces


class Tokenizer(Protocol):
    """Raw text in, raw text out."""

    @property
    def size(self) -> int:
        """Entries of the vocabulary, the special symbols counted."""
        ...

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without BOS and EOS."""
        ...

    def decode(self, sentences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each sequence of ids."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries for these ids."""
        ...

    def surfaces(self, line: str) -> list[str]:
        """The text behind each id of a line, without spaces; for `<unk>` what was not known."""
        ...

    def fill(self, ids: Sequence[int], texts: Mapping[int, str]) -> str:
        """The text of ids, with these texts at their places, at each of which `<unk>` stands."""
        ...

    def to_bytes(self) -> bytes:
        """All that `restore` needs."""
        ...


class SentencePieceTokenizer:
    """Subwords or characters by SentencePiece (Kudo & Richardson 2018)."""

    def __init__(self, model: bytes) -> None:
        import sentencepiece  # here, so that a mistaken recipe need not wait for it

        if not model:  # sentencepiece takes this for "no model yet" and does not complain
            raise ValueError("it is empty")
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(cls, lines: Iterable[str], spec: SentencePiece) -> Self:
        """A tokenizer trained on `lines`. Its size may stay below `spec.vocabulary`.

        Raises:
            RecipeError: the vocabulary asked for is too small for the text's characters.
        """
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type=spec.kind,
                vocab_size=spec.vocabulary,
                hard_vocab_limit=False,
                character_coverage=spec.character_coverage,
                normalization_rule_name=spec.normalization,
                unk_id=UNKNOWN,
                bos_id=BOS,
                eos_id=EOS,
                pad_id=-1,
                max_sentence_length=1 << 20,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2] or str(error)
            raise RecipeError(
                f"SentencePiece cannot make a {spec.kind} vocabulary of {spec.vocabulary} from "
                f"this text: {reason}\nchange `vocabulary` in the recipe's [tokenizer]"
            ) from None
        return cls(model.getvalue())

    @property
    def size(self) -> int:
        """Entries of the vocabulary, the special symbols counted."""
        return int(self._processor.get_piece_size())

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without BOS and EOS."""
        encoded: list[list[int]] = self._processor.encode(list(lines))
        return encoded

    def decode(self, sentences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each sequence of ids."""
        return [self._processor.decode(list(ids)) for ids in sentences]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries for these ids."""
        return [self._processor.id_to_piece(int(i)) for i in ids]

    def surfaces(self, line: str) -> list[str]:
        """The text behind each id of a line, without spaces; for `<unk>` what was not known."""
        pieces: list[str] = self._processor.encode(line, out_type=str)
        return [piece.replace(SPACE, "") for piece in pieces]

    def fill(self, ids: Sequence[int], texts: Mapping[int, str]) -> str:
        """The text of ids, with these texts at their places, at each of which `<unk>` stands."""
        # What the first ids say is what the text of all begins with.
        ends = [len(text) for text in self.decode([ids[:end] for end in range(len(ids) + 1)])]
        whole = self.decode([ids])[0]
        parts = [whole[ends[i] : ends[i + 1]] for i in range(len(ids))]
        return "".join(texts.get(place, part) for place, part in enumerate(parts))

    def to_bytes(self) -> bytes:
        """SentencePiece's own serialised model."""
        return self._model


class WordTokenizer:
    """Words parted by white space, the rarer ones `<unk>`, joined by single spaces again.

    With `moses` the text goes through Moses' tokenizer first, without its escaping of XML
    characters, and through its detokenizer on the way out.
    """

    def __init__(self, words: Sequence[str], pretokenizer: str, language: str) -> None:
        self._words = [*SPECIAL_SYMBOLS, *words]
        self._ids = {word: index for index, word in enumerate(words, len(SPECIAL_SYMBOLS))}
        self._pretokenizer = pretokenizer
        self._language = language

    @classmethod
    def train(cls, lines: Iterable[str], spec: Words) -> Self:
        """The most frequent words of `lines`; of equally frequent ones the first by code point."""
        splitter = cls((), spec.pretokenizer, spec.language)
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(splitter.split(line))
        room = max(0, spec.vocabulary - len(SPECIAL_SYMBOLS))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[:room], spec.pretokenizer, spec.language)

    @classmethod
    def restore(cls, data: bytes, spec: Words) -> Self:
        """The tokenizer that gave `data` with `to_bytes`.

        Raises:
            ValueError: the bytes are not a list of words in JSON.
        """
        words = json.loads(data)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("it is not a list of words")
        return cls(words, spec.pretokenizer, spec.language)

    @cached_property
    def _moses(self) -> tuple[Any, Any]:
        """Moses' tokenizer and detokenizer; few need them, and they are slow to import."""
        import sacremoses

        language = self._language
        return sacremoses.MosesTokenizer(language), sacremoses.MosesDetokenizer(language)

    @property
    def size(self) -> int:
        """Entries of the vocabulary, the special symbols counted."""
        return len(self._words)

    def split(self, line: str) -> list[str]:
        """The words of a line, known or not."""
        if self._pretokenizer == "moses":
            return list(self._moses[0].tokenize(line, escape=False))
        return line.split()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without BOS and EOS; one `<unk>` for each unknown word."""
        return [[self._ids.get(word, UNKNOWN) for word in self.split(line)] for line in lines]

    def decode(self, sentences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each sequence of ids."""
        return [self._joined(self.pieces(ids)) for ids in sentences]

    def _joined(self, words: Sequence[str]) -> str:
        """The text of words."""
        if self._pretokenizer == "moses":
            return str(self._moses[1].detokenize(words, unescape=False))
        return " ".join(words)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries for these ids."""
        return [self._words[i] for i in ids]

    def surfaces(self, line: str) -> list[str]:
        """The words of a line."""
        return self.split(line)

    def fill(self, ids: Sequence[int], texts: Mapping[int, str]) -> str:
        """The text of ids, with these texts at their places, at each of which `<unk>` stands."""
        return self._joined([texts.get(place, word) for place, word in enumerate(self.pieces(ids))])

    def to_bytes(self) -> bytes:
        """The words as JSON."""
        return json.dumps(self._words[len(SPECIAL_SYMBOLS) :], ensure_ascii=False).encode()


def train(lines: Iterable[str], spec: SentencePiece | Words) -> Tokenizer:
    """A tokenizer as `spec` asks, trained on raw lines."""
    match spec:
        case SentencePiece():
            return SentencePieceTokenizer.train(lines, spec)
        case Words():
            return WordTokenizer.train(lines, spec)
        case _:
            assert_never(spec)


def restore(data: bytes, spec: SentencePiece | Words) -> Tokenizer:
    """The tokenizer that gave `data` with `to_bytes`.

    Raises:
        ModelError: the bytes are damaged.
    """
    try:
        match spec:
            case SentencePiece():
                return SentencePieceTokenizer(data)
            case Words():
                return WordTokenizer.restore(data, spec)
            case _:
                assert_never(spec)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the {spec.kind} tokenizer inside is damaged: {error}") from None
