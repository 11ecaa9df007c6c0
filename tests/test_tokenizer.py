"""Tokenizers: counts made by hand, round trips, and bytes that restore them."""

import json
import random
from collections import Counter
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2s_cli.core.errors import ModelError, RecipeError
from s2s_cli.core.recipe.schema import SentencePiece, Words
from s2s_cli.core.tokenizer import BOS, EOS, SPECIAL_SYMBOLS, UNKNOWN, Tokenizer, restore, train

# A busy machine is no mistake.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Kind = Literal["unigram", "bpe", "char"]
KINDS: tuple[Kind, ...] = ("unigram", "bpe", "char")

ALPHABET = "abcdeéñß.,?!'-"
WORDS = st.text(ALPHABET, min_size=1, max_size=6)
SENTENCES = st.lists(WORDS, max_size=8).map(" ".join)

FRENCH = (
    "L'homme n'est pas venu aujourd'hui, n'est-ce pas ?",
    "« Bonjour ! », dit-il.",
    "Où est la bibliothèque, s'il vous plaît ?",
    "C'est 3,5 % de plus qu'hier.",
)
ENGLISH = (
    "I don't know what you're talking about.",
    'He said: "It\'s 3.5%!"',
    "Isn't a < b & c > d the well-known case?",
    "Dr. Smith's dog can't swim, can it?",
)


def words(vocabulary: int = 1000) -> Words:
    return Words(kind="words", vocabulary=vocabulary)


def sentence_piece(kind: Kind, vocabulary: int) -> SentencePiece:
    return SentencePiece(kind=kind, vocabulary=vocabulary)


def text(lines: int) -> list[str]:
    """Made-up sentences of made-up words, each letter of the alphabet among them."""
    draw = random.Random(1)
    lexicon = ["".join(draw.choices(ALPHABET, k=draw.randint(1, 6))) for _ in range(60)]
    made = [" ".join(draw.choices(lexicon, k=draw.randint(1, 8))) for _ in range(lines)]
    return [*made, ALPHABET]


@pytest.fixture(scope="module", params=KINDS)
def subwords(request: pytest.FixtureRequest) -> tuple[SentencePiece, Tokenizer]:
    spec = sentence_piece(request.param, 120)
    return spec, train(text(300), spec)


# --- words -----------------------------------------------------------------------------------


def test_more_frequent_words_come_first_and_ties_by_code_point() -> None:
    tokenizer = train(["b a c", "b é Z c", "b"], words())
    assert tokenizer.pieces(range(tokenizer.size)) == [
        *SPECIAL_SYMBOLS,
        *("b", "c"),
        *("Z", "a", "é"),
    ]


@PATIENT
@given(st.lists(SENTENCES, min_size=1), st.integers(4, 20))
def test_the_vocabulary_is_the_head_of_the_count(lines: list[str], vocabulary: int) -> None:
    counts = Counter(word for line in lines for word in line.split(" ") if word)
    ranked = sorted(counts, key=lambda word: (-counts[word], [ord(letter) for letter in word]))
    kept = ranked[: max(0, vocabulary - 3)]
    tokenizer = train(lines, words(vocabulary))
    assert tokenizer.pieces(range(3, tokenizer.size)) == kept
    expected = [
        [kept.index(word) + 3 if word in kept else UNKNOWN for word in line.split(" ") if word]
        for line in lines
    ]
    assert tokenizer.encode(lines) == expected


def test_an_unknown_word_is_one_unknown_each() -> None:
    tokenizer = train(["a b"], words())
    assert tokenizer.encode(["a x b y y"]) == [[3, UNKNOWN, 4, UNKNOWN, UNKNOWN]]
    assert tokenizer.decode([[3, UNKNOWN, 4]]) == ["a <unk> b"]


def test_a_symbol_written_in_the_text_is_a_word_like_any_other() -> None:
    line = "<s> a </s> <unk> </s>"
    knowing = train([line], words())
    (ids,) = knowing.encode([line])
    assert min(ids) > EOS
    assert knowing.decode([ids]) == [line]
    assert train(["a"], words()).encode([line]) == [[UNKNOWN, 3, UNKNOWN, UNKNOWN, UNKNOWN]]


def test_blank_lines_have_no_words() -> None:
    tokenizer = train(["", "a", " \t ", "\u3000"], words())
    assert tokenizer.size == 4
    assert tokenizer.encode(["", "  ", "\t", "\u3000"]) == [[], [], [], []]
    assert tokenizer.decode([[]]) == [""]
    assert tokenizer.encode([]) == []


@PATIENT
@given(st.lists(SENTENCES, min_size=1))
def test_known_words_come_back(lines: list[str]) -> None:
    tokenizer = train(lines, words())
    assert tokenizer.decode(tokenizer.encode(lines)) == lines


@pytest.mark.parametrize(("language", "lines"), [("fr", FRENCH), ("en", ENGLISH)])
def test_moses_round_trip(language: str, lines: tuple[str, ...]) -> None:
    spec = Words(kind="words", vocabulary=1000, pretokenizer="moses", language=language)
    tokenizer = train(lines, spec)
    encoded = tokenizer.encode(lines)
    assert tokenizer.decode(encoded) == list(lines)
    again = restore(tokenizer.to_bytes(), spec)
    assert again.encode(lines) == encoded
    assert again.decode(encoded) == list(lines)


def test_moses_parts_punctuation_by_its_language_and_escapes_nothing() -> None:
    line = "l'eau & <b>, dit-il."

    def split(language: str) -> list[str]:
        spec = Words(kind="words", vocabulary=100, pretokenizer="moses", language=language)
        tokenizer = train([line], spec)
        return tokenizer.pieces(tokenizer.encode([line])[0])

    assert split("fr") == ["l'", "eau", "&", "<", "b", ">", ",", "dit-il", "."]
    assert split("en") == ["l", "'eau", "&", "<", "b", ">", ",", "dit-il", "."]


@pytest.mark.parametrize(
    "data", [b"", b"5", b"null", b'{"a": 1}', b"[1]", b'["a"', b"\xff", b'"text"', b'["a", null]']
)
def test_damaged_words_are_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError, match="the words tokenizer inside is damaged"):
        restore(data, words())


def test_words_are_saved_as_they_are() -> None:
    assert json.loads(train(["é b"], words()).to_bytes()) == ["b", "é"]


# --- SentencePiece ---------------------------------------------------------------------------


@PATIENT
@given(line=SENTENCES)
def test_text_of_known_letters_comes_back(
    subwords: tuple[SentencePiece, Tokenizer], line: str
) -> None:
    _, tokenizer = subwords
    (ids,) = tokenizer.encode([line])
    assert UNKNOWN not in ids
    assert tokenizer.decode([ids]) == [line]
    assert "".join(tokenizer.pieces(ids)).replace("▁", " ").removeprefix(" ") == line


def test_special_ids(subwords: tuple[SentencePiece, Tokenizer]) -> None:
    _, tokenizer = subwords
    assert (UNKNOWN, BOS, EOS) == (0, 1, 2)
    assert tokenizer.pieces([UNKNOWN, BOS, EOS]) == ["<unk>", "<s>", "</s>"]
    assert train(["a"], words()).pieces([UNKNOWN, BOS, EOS]) == ["<unk>", "<s>", "</s>"]


def test_text_never_becomes_a_control_symbol(subwords: tuple[SentencePiece, Tokenizer]) -> None:
    _, tokenizer = subwords
    (ids,) = tokenizer.encode(["<s> a </s> <unk> b<s></s>"])
    assert {BOS, EOS} & set(ids) == set()
    knowing = train(["< / s u n k >"], sentence_piece("char", 50))
    (symbols,) = knowing.encode(["<s></s><unk>"])
    assert min(symbols) > EOS
    assert knowing.decode([symbols]) == ["<s></s><unk>"]


def test_the_kind_makes_the_pieces() -> None:
    lines = text(300)
    made = {kind: train(lines, sentence_piece(kind, 120)) for kind in KINDS}
    assert made["bpe"].size == 120
    letters = set("".join(lines).replace(" ", "▁"))
    assert set(made["char"].pieces(range(3, made["char"].size))) == letters
    tokens = {kind: sum(map(len, made[kind].encode(lines))) for kind in KINDS}
    assert tokens["bpe"] < tokens["char"]
    assert tokens["unigram"] < tokens["char"]
    pieces = {tuple(tokenizer.pieces(range(tokenizer.size))) for tokenizer in made.values()}
    assert len(pieces) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_reached_may_be_below_the_size_asked(kind: Kind) -> None:
    lines = ["ab ba", "aab"]
    tokenizer = train(lines, sentence_piece(kind, 5000))
    assert 3 + len("ab ") <= tokenizer.size < 40
    assert tokenizer.decode(tokenizer.encode(lines)) == lines
    assert len(tokenizer.pieces(range(tokenizer.size))) == len(
        set(tokenizer.pieces(range(tokenizer.size)))
    )


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_too_small_for_the_letters_is_a_recipe_error(kind: Kind) -> None:
    with pytest.raises(RecipeError) as caught:
        train(text(10), sentence_piece(kind, 5))
    message = str(caught.value)
    assert f"cannot make a {kind} vocabulary of 5" in message
    assert "change `vocabulary` in the recipe's [tokenizer]" in message


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_text_without_a_letter_is_a_recipe_error(lines: list[str]) -> None:
    with pytest.raises(RecipeError, match="SentencePiece cannot make a bpe vocabulary"):
        train(lines, sentence_piece("bpe", 100))


def test_restored_it_is_the_same(subwords: tuple[SentencePiece, Tokenizer]) -> None:
    spec, tokenizer = subwords
    again = restore(tokenizer.to_bytes(), spec)
    lines = text(20)
    assert again.to_bytes() == tokenizer.to_bytes()
    assert again.size == tokenizer.size
    assert again.encode(lines) == tokenizer.encode(lines)
    assert again.pieces(range(again.size)) == tokenizer.pieces(range(tokenizer.size))


def test_trained_twice_it_is_the_same(subwords: tuple[SentencePiece, Tokenizer]) -> None:
    spec, tokenizer = subwords
    assert train(iter(text(300)), spec).to_bytes() == tokenizer.to_bytes()


def test_damaged_models_are_a_model_error(subwords: tuple[SentencePiece, Tokenizer]) -> None:
    spec, tokenizer = subwords
    whole = tokenizer.to_bytes()
    for data in (b"", b"nonsense", whole[:10], whole[: len(whole) // 2], whole[:-1]):
        with pytest.raises(ModelError, match=f"the {spec.kind} tokenizer inside is damaged"):
            restore(data, spec)


def test_normalization_is_the_recipes() -> None:
    lines = ["ﬁne Å", "fine Å"]
    as_is = SentencePiece(kind="char", vocabulary=50, normalization="identity")
    folded = SentencePiece(kind="char", vocabulary=50, normalization="nfkc")
    kept, changed = train(lines, as_is), train(lines, folded)
    assert kept.decode(kept.encode(lines)) == lines
    assert changed.decode(changed.encode(lines)) == ["fine Å", "fine Å"]


def test_character_coverage_leaves_rare_letters_unknown() -> None:
    lines = [*["aaaa bbbb"] * 50, "é"]
    part = SentencePiece(kind="char", vocabulary=50, character_coverage=0.99)
    assert train(lines, part).encode(["aé"])[0][-1] == UNKNOWN
    assert UNKNOWN not in train(lines, sentence_piece("char", 50)).encode(["aé"])[0]
