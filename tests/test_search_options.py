"""What `[search]` can ask for, against exhaustive search over tables and equations written out."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import LEXICON, wide_model
from pydantic import TypeAdapter
from test_search import START, Logits, TableScorer, TableState, log_probabilities, random_table
from torch import Tensor

from s2s_cli.app import app
from s2s_cli.commands.translation_formats import FORMATS
from s2s_cli.core.batches import source_batch
from s2s_cli.core.checkpoint import ModelFile, load_model, save_model
from s2s_cli.core.errors import DataError, ModelError, RecipeError
from s2s_cli.core.model import build
from s2s_cli.core.prepared import PackedText, Prepared
from s2s_cli.core.recipe import load, override
from s2s_cli.core.recipe.schema import Recipe, Search, SentencePiece
from s2s_cli.core.search import Ensemble, Hypothesis, Scorer, corpus, search_all
from s2s_cli.core.search.alignment import copies, joined, links
from s2s_cli.core.search.sampling import drawn, likely
from s2s_cli.core.search.scorers import Shortlisted
from s2s_cli.core.tokenizer import EOS, UNKNOWN, train
from s2s_cli.core.translator import Translation, Translator

Words = tuple[int, ...]
# Not in the order of their lengths. Of a translation of S words: S / 2 + 1 words at most.
SOURCES: list[Words] = [(8,), (7, 3, 9, 6), (), (4, 4), (8, 5, 3), (6, 3, 3, 4)]


def attended(source: Words, read: Words) -> list[float]:
    """The attention to each word of the source and to its EOS, drawn anew for each prefix."""
    drawn = numpy.random.default_rng([7, *source, 99, *read])
    return list(drawn.dirichlet([0.3] * (len(source) + 1)))


class AttendingScorer(TableScorer):
    """A table that also attends, as a model would."""

    def start(self, sources: PackedText) -> TableState:
        self._longest = int(sources.lengths.max()) + 1
        return super().start(sources)

    def attention(self, state: TableState) -> Tensor:
        rows = [attended(source, read) for source, read in state.rows]
        return torch.tensor([[*row, *[0.0] * (self._longest - len(row))] for row in rows])

    def restrict(self, words: Sequence[int], first_word: int) -> Shortlisted:
        return Shortlisted(self, words, first_word)


class FirstWordScorer(AttendingScorer):
    """One that attends to the first word alone."""

    def attention(self, state: TableState) -> Tensor:
        return torch.eye(self._longest)[[0] * len(state.rows)]


class BlindScorer(AttendingScorer):
    """One without attention."""

    def attention(self, state: TableState) -> None:
        return None


@pytest.fixture(autouse=True)
def short_translations(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all of them can be written out."""
    monkeypatch.setattr(corpus, "SPARE_LENGTH", 1)


# --- the oracle ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What a search is asked for: keys of [search], a prefix for all, a shortlist."""

    keys: dict[str, Any]
    prefix: Words = ()
    shortlist: Words | None = None

    def settings(self, **changes: Any) -> Search:
        found = {"max_length_ratio": 0.5, "batch_size": 4, **self.keys, **changes}
        return Search.model_validate(found)

    def search(self, scorer: Scorer[Any], n_best: int = 1, **changes: Any) -> Any:
        return search_all(
            scorer,
            SOURCES,
            self.settings(**changes),
            first_word=START,
            n_best=n_best,
            prefixes=[self.prefix] * len(SOURCES) if self.prefix else None,
            shortlist=self.shortlist,
        )

    def longest(self, source: Words) -> int:
        return max(int(len(source) * 0.5) + 1, len(self.prefix))

    def gains(self, table: Logits, source: Words, words: Words) -> dict[int, float]:
        """The log-probability of each word that the scorer knows."""
        logits = table(source, words)
        names = range(len(logits)) if self.shortlist is None else self.shortlist
        return dict(zip(names, log_probabilities([logits[word] for word in names]), strict=True))

    def holds(self, source: Words, words: Words, ended: bool) -> bool:
        """Whether a translation may be so, or begin so."""
        settings, begun = self.settings(), len(self.prefix)
        if words[:begun] != self.prefix[: len(words)]:
            return False
        shortest = max(begun, settings.min_length_ratio * len(source))
        if ended and len(words) < shortest:
            return False
        if settings.unk == "forbid" and UNKNOWN in words[begun:]:
            return False
        size = settings.no_repeat_ngram
        grams = [words[i : i + size] for i in range(len(words) - size + 1)] if size else []
        # Only what the prefix itself repeats is forgiven.
        return not any(grams[i] in grams[:i] for i in range(max(0, begun - size + 1), len(grams)))

    def score(self, source: Words, words: Words, total: float) -> float:
        """GNMT's equation 14."""
        settings = self.settings()
        length = len(words) + 1
        if settings.length_normalization == "average":
            divisor = float(length)
        else:
            divisor = (5 + length) ** settings.length_penalty / 6**settings.length_penalty
        paid = [attended(source, (START, *words[:step])) for step in range(length)]
        covered = [min(sum(step[word] for step in paid), 1.0) for word in range(len(source))]
        coverage = sum(math.log(max(share, 1e-6)) for share in covered)
        return total / divisor + settings.coverage_penalty * coverage

    def finished(self, source: Words, words: Words, gained: Sequence[float]) -> Hypothesis:
        total = math.fsum(gained)
        return Hypothesis(words, total, self.score(source, words, total), tuple(gained))

    def everything(self, table: Logits, source: Words, beam: int | None = None) -> list[Hypothesis]:
        """All translations, best first; with a beam all that it finishes if it never stops.

        EOS among the best `beam` ways to go on finishes a hypothesis; the best others live on.
        """
        done: list[Hypothesis] = []
        alive: list[tuple[Words, tuple[float, ...]]] = [((), ())]
        for length in range(self.longest(source) + 1):
            ways = [
                ((*words, word), (*gained, value))
                for words, gained in alive
                for word, value in self.gains(table, source, words).items()
                if (self.holds(source, words, ended=True) if word == EOS else True)
                and (word == EOS or self.holds(source, (*words, word), ended=False))
                and (word == EOS or length < self.longest(source))
            ]
            ways.sort(key=lambda way: -sum(way[1]))
            ends = [way for way in ways[:beam] if way[0][-1] == EOS]
            done += [self.finished(source, words[:-1], gained) for words, gained in ends]
            alive = [way for way in ways if way[0][-1] != EOS][:beam]
        return sorted(done, key=lambda one: -one.score)


def assert_same(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    """The same translations in the same order, all numbers equal to rounding."""
    assert [one.words for one in found] == [one.words for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-5, abs=1e-5)
        assert one.score == pytest.approx(other.score, rel=1e-5, abs=1e-5)
        if one.word_scores is not None and other.word_scores is not None:
            assert one.word_scores == pytest.approx(other.word_scores, rel=1e-4, abs=1e-5)


ALONE = {
    "average": Wish({"length_normalization": "average"}),
    "coverage": Wish({"coverage_penalty": 0.7}),
    "least": Wish({"min_length_ratio": 0.45}),
    "no-word-twice": Wish({"no_repeat_ngram": 1}),
    "no-pair-twice": Wish({"no_repeat_ngram": 2}),
    "no-unknown": Wish({"unk": "forbid"}),
    "prefix": Wish({}, prefix=(4, 3)),
    "shortlist": Wish({}, shortlist=(4, EOS, 1)),
    "word-scores": Wish({"word_scores": True}),
}
TOGETHER = {
    "gnmt": Wish({"length_penalty": 0.9, "coverage_penalty": 0.3, "min_length_ratio": 0.5}),
    "average-covered": Wish({"length_normalization": "average", "coverage_penalty": 0.2}),
    "prefix-rules": Wish(
        {"unk": "forbid", "no_repeat_ngram": 1, "min_length_ratio": 0.5, "word_scores": True},
        prefix=(0, 3, 3),
    ),
    "short-prefix": Wish(
        {"length_normalization": "average", "no_repeat_ngram": 2, "word_scores": True},
        prefix=(3,),
        shortlist=(EOS, 0, 3),
    ),
}
WISHES = ALONE | TOGETHER


@pytest.mark.parametrize("name", WISHES)
def test_a_wide_beam_equals_exhaustive_search(name: str) -> None:
    wish = WISHES[name]
    has_changed = name == "word-scores"
    for seed in range(3):
        table = random_table(seed)
        found = wish.search(AttendingScorer(table), 100, beam_size=200)
        for source, best, usual in zip(
            SOURCES, found, Wish({}).search(TableScorer(table), 100, beam_size=200), strict=True
        ):
            expected = wish.everything(table, source)
            assert_same(best, expected)
            has_changed |= [one.words for one in best] != [one.words for one in usual]
            asked = wish.settings().word_scores
            assert all((one.word_scores is not None) == asked for one in best)
    assert has_changed


@pytest.mark.parametrize("beam", [2, 3])
@pytest.mark.parametrize("name", WISHES)
def test_stopping_by_bound_loses_nothing(
    name: str, beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow beam finds what the same beam does that goes on to the very end."""
    wish = WISHES[name]
    monkeypatch.setattr(corpus, "SPARE_LENGTH", 4)
    monkeypatch.setattr(Wish, "longest", lambda self, source: len(source) // 2 + 4)
    for seed in range(4):
        table = random_table(seed, spread=1.0)
        for n_best in (1, beam):
            found = wish.search(AttendingScorer(table), n_best, beam_size=beam)
            for source, best in zip(SOURCES, found, strict=True):
                assert_same(best, wish.everything(table, source, beam)[:n_best])


@pytest.mark.parametrize("name", WISHES)
def test_greedy_takes_the_likeliest_of_what_may_follow(name: str) -> None:
    wish = WISHES[name]
    table = random_table(5)
    found = wish.search(AttendingScorer(table), beam_size=1)
    for source, (best,) in zip(SOURCES, found, strict=True):
        words: Words = ()
        gained: list[float] = []
        while EOS not in words:
            ways = {
                word: value
                for word, value in wish.gains(table, source, words).items()
                if (word == EOS and wish.holds(source, words, ended=True))
                or (
                    word != EOS
                    and len(words) < wish.longest(source)
                    and wish.holds(source, (*words, word), ended=False)
                )
            }
            word = max(ways, key=lambda word: ways[word])
            words, gained = (*words, word), [*gained, ways[word]]
        assert_same([best], [wish.finished(source, words[:-1], gained)])


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_rules_that_forbid_nothing_change_nothing(beam: int) -> None:
    """To the last bit: the path with rules is the path without."""
    scorer = AttendingScorer(random_table(3))
    idle = Wish({"no_repeat_ngram": 99, "coverage_penalty": 0.0, "alignment": True})
    usual = Wish({}).search(scorer, beam, beam_size=beam)
    for found, expected in zip(idle.search(scorer, beam, beam_size=beam), usual, strict=True):
        assert [replace(one, attention=None) for one in found] == expected


@pytest.mark.parametrize("beam", [1, 3])
def test_where_nothing_is_left_to_say_it_ends(beam: int) -> None:
    """Every word has been said, and none may be twice, but the translation is too short."""
    wish = Wish(
        {"no_repeat_ngram": 1, "min_length_ratio": 9.0, "max_length_ratio": 9.0},
        shortlist=(EOS, 3, 4),
    )
    for source, (best, *_) in zip(
        SOURCES, wish.search(AttendingScorer(random_table(1)), beam_size=beam), strict=True
    ):
        assert sorted(best.words) == ([3, 4] if source else sorted(best.words))


def test_other_sentences_are_inert() -> None:
    wish = TOGETHER["prefix-rules"]
    scorer = AttendingScorer(random_table(2))
    for beam in (1, 3):
        alone = wish.search(scorer, beam, beam_size=beam, batch_size=1)
        for size in (2, 64):
            together = wish.search(scorer, beam, beam_size=beam, batch_size=size)
            for one, other in zip(together, alone, strict=True):
                assert_same(one, other)


def test_each_sentence_has_its_own_prefix() -> None:
    table = random_table(4)
    prefixes: list[Words] = [(3,), (), (4, 4), (3, 0), (), (1,)]
    for beam in (1, 2):
        settings = Wish({}).settings(beam_size=beam)
        found = search_all(
            TableScorer(table), SOURCES, settings, first_word=START, prefixes=prefixes
        )
        for source, prefix, best in zip(SOURCES, prefixes, found, strict=True):
            assert best[0].words[: len(prefix)] == prefix
            words = (*best[0].words, EOS)
            gained = [Wish({}).gains(table, source, words[:i])[w] for i, w in enumerate(words)]
            assert best[0].log_probability == pytest.approx(math.fsum(gained), rel=1e-5)


# --- what is written down --------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{"beam_size": 3}, {"beam_size": 1}, {"sampling": {}}])
def test_attention_and_word_scores_are_those_of_the_path(keys: dict[str, Any]) -> None:
    wish = Wish({"alignment": True, "word_scores": True, **keys})
    table = random_table(6)
    count = keys.get("beam_size", 3)
    for source, best in zip(SOURCES, wish.search(AttendingScorer(table), count), strict=True):
        assert len(best) == count or not source
        for one in best:
            words = (*one.words, EOS)
            read = [(START, *words[:step]) for step in range(len(words))]
            expected = torch.tensor([attended(source, each) for each in read])
            torch.testing.assert_close(one.attention, expected)
            gained = [
                wish.gains(table, source, each[1:])[w] for each, w in zip(read, words, strict=True)
            ]
            assert one.word_scores == pytest.approx(gained, rel=1e-4, abs=1e-5)
            assert one.log_probability == pytest.approx(math.fsum(gained), rel=1e-5)


@pytest.mark.parametrize("keys", [{"alignment": True}, {"unk": "replace"}, {"coverage_penalty": 1}])
def test_what_needs_attention_says_so_where_there_is_none(
    keys: dict[str, Any], recipe: Recipe
) -> None:
    table = random_table(0)
    with pytest.raises(ModelError, match="attention"):
        Wish(keys).search(BlindScorer(table))
    with pytest.raises(ModelError, match="attention"):
        Wish(keys).search(Ensemble([BlindScorer(table), BlindScorer(table)]))
    (key,) = keys
    with pytest.raises(RecipeError, match=rf"search\.{key}.*attention.*'plain'"):
        override(recipe, [f"search.{key}={json.dumps(keys[key])}"], "search")


def test_links_and_copies_take_the_source_word_with_most_attention() -> None:
    attention = torch.tensor(
        [[0.1, 0.3, 0.2, 0.4], [0.0, 0.1, 0.2, 0.7], [0.5, 0.4, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    # EOS, though weighed most, is no word; nor is a mere space any text to copy.
    assert links(attention) == ((1, 0), (2, 1), (0, 2))
    words = [UNKNOWN, 5, UNKNOWN]
    assert copies(words, attention, ["a", "b", "c"]) == {0: "b", 2: "a"}
    assert copies(words, attention, ["", "", "c"]) == {0: "c", 2: "c"}
    assert copies(words, attention, ["", "", ""]) == {}
    whole = joined([attention, attention[:2, 1:]])
    assert whole.shape == (6, 7)
    assert torch.equal(whole[:4, :4], attention)
    assert torch.equal(whole[4:, 4:], attention[:2, 1:])
    assert whole[:4, 4:].abs().sum() + whole[4:, :4].abs().sum() == 0


# --- ensembles -------------------------------------------------------------------------------

Mean = Callable[[Sequence[float]], float]
MEANS: dict[str, Mean] = {
    "probabilities": lambda logs: math.log(sum(map(math.exp, logs)) / len(logs)),
    "log-probabilities": lambda logs: sum(logs) / len(logs),
    "logits": lambda logs: sum(logs) / len(logs),
}


@pytest.mark.parametrize("kind", MEANS)
def test_an_ensemble_is_the_mean_that_was_asked_for(kind: Any) -> None:
    """Of two and of three; the mean of logits, once normalised, is that of log-probabilities."""
    for members in (2, 3):
        tables = [random_table(seed, spread=1.0 + seed) for seed in range(members)]

        def mean(source: Words, prefix: Words) -> Sequence[float]:
            each = [table(source, prefix) for table in tables]  # noqa: B023
            if kind != "logits":
                each = [log_probabilities(logits) for logits in each]
            return [MEANS[kind](values) for values in zip(*each, strict=True)]

        scorer = Ensemble([AttendingScorer(table) for table in tables], kind)
        wish = Wish({"word_scores": True, "coverage_penalty": 0.3})
        for source, best in zip(SOURCES, wish.search(scorer, 12, beam_size=200), strict=True):
            assert_same(best, wish.everything(mean, source)[:12])


def test_an_ensemble_of_unlike_members_attends_with_those_that_do() -> None:
    """And a shortlist is each member's."""
    one, other = AttendingScorer(random_table(0)), BlindScorer(random_table(1))
    twice = Ensemble([Ensemble([one, other]), FirstWordScorer(random_table(2))])
    sources = PackedText.pack([(7, 3, 9)])
    _, state = twice.step(torch.tensor([START]), twice.start(sources))
    first, *others = attended((7, 3, 9), (START,))
    expected = torch.tensor([[first + 1, *others]]) / 2
    torch.testing.assert_close(twice.attention(state), expected)
    assert Ensemble([other]).attention(Ensemble([other]).start(sources)) is None
    tables = [random_table(0), random_table(1)]
    short = Ensemble([one, other]).restrict([EOS, 3], START)
    logits, _ = short.step(torch.tensor([2]), short.start(sources))  # 2 is the first word here
    each = [log_probabilities([table((7, 3, 9), ())[w] for w in (EOS, 3)]) for table in tables]
    shares = [sum(map(math.exp, values)) / 2 for values in zip(*each, strict=True)]
    assert logits[0].softmax(-1).tolist() == pytest.approx(shares, rel=1e-5)


# --- sampling --------------------------------------------------------------------------------


def samples(size: int, count: int, **keys: Any) -> list[list[Hypothesis]]:
    wish = Wish({"sampling": keys, "word_scores": True})
    return list(wish.search(AttendingScorer(random_table(8)), count, batch_size=size))


def test_a_sample_depends_on_seed_line_and_number_alone() -> None:
    alone = samples(1, 6)
    for size in (2, 64):
        for one, other in zip(samples(size, 6), alone, strict=True):
            assert_same(one, other)
    fewer = samples(64, 2)
    for one, other in zip(fewer, alone, strict=True):
        assert_same(one, other[:2])
    assert len({one.words for one in alone[1]}) > 3
    assert [[one.words for one in each] for each in samples(1, 6, seed=2)] != [
        [one.words for one in each] for each in alone
    ]
    # The same sentence in other lines is another draw; a line's number is what counts.
    settings = Wish({"sampling": {}}).settings()
    table = random_table(8)
    twice = search_all(TableScorer(table), [SOURCES[1]] * 9, settings, first_word=START)
    assert len({best[0].words for best in twice}) > 3
    moved = search_all(TableScorer(table), [SOURCES[1]], settings, first_word=START, numbers=[(5,)])
    assert moved[0][0].words == twice[5][0].words


def test_samples_follow_the_model_and_are_scored_by_it() -> None:
    """Temperature changes what is drawn, and no log-probability."""
    table = random_table(9)
    wish = Wish({"sampling": {"temperature": 2.0}, "length_penalty": 0.5})
    for source, drawn_ in zip(SOURCES, wish.search(AttendingScorer(table), 5), strict=True):
        known = {one.words: one for one in wish.everything(table, source)}
        assert_same(drawn_, [known[one.words] for one in drawn_])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 5, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.6), (2.0, 3, 0.7)],
)
def test_words_are_drawn_as_often_as_they_are_likely(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = [1.0, -0.5, 0.3, 2.0, -3.0, 0.9]
    shares = {i: math.exp(value / temperature) for i, value in enumerate(logits)}
    ranked = sorted(shares, key=lambda word: -shares[word])[: top_k or None]
    total = sum(shares[word] for word in ranked)
    kept: list[int] = []
    while ranked and sum(shares[word] for word in kept) / total < top_p:
        kept.append(ranked.pop(0))
    total = sum(shares[word] for word in kept)
    count = 20_000
    chances = torch.from_numpy(numpy.random.default_rng(1).random(count))
    rows = torch.tensor([logits]).expand(count, -1) / temperature
    found = Counter(drawn(likely(rows, top_k, top_p), chances).tolist())
    assert set(found) <= set(kept)
    for word in kept:
        share = shares[word] / total
        assert abs(found[word] / count - share) < 4 * math.sqrt(share * (1 - share) / count)


def test_the_largest_and_smallest_chance_draw_a_word_that_may_be() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]] * 2)
    chances = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert drawn(logits, chances).tolist() == [1, 2]


@pytest.mark.parametrize("keys", [{"temperature": 0.001}, {"top_k": 1}, {"top_p": 1e-6}])
def test_samples_of_what_is_likeliest_are_greedy(keys: dict[str, float]) -> None:
    scorer = AttendingScorer(random_table(3))
    greedy = Wish({}).search(scorer, beam_size=1)
    for best, (expected,) in zip(Wish({"sampling": keys}).search(scorer, 3), greedy, strict=True):
        assert_same(best, [expected] * 3)


def test_samples_keep_the_rules() -> None:
    wish = replace(TOGETHER["prefix-rules"], keys=TOGETHER["prefix-rules"].keys | {"sampling": {}})
    table = random_table(2)
    for source, best in zip(SOURCES, wish.search(AttendingScorer(table), 8), strict=True):
        known = {one.words: one for one in wish.everything(table, source)}
        assert_same(best, [known[one.words] for one in best])


# --- mistakes in a recipe --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["min_length_ratio=3.0"], "search.min_length_ratio = 3 is above"),
        (["length_normalization=average", "length_penalty=1.0"], "search.length_penalty = 1 is"),
        (["sampling.top_p=0.0"], "search.sampling.top_p = 0.0: should be greater than 0"),
        (["sampling.heat=1.0"], "search.sampling.heat"),
        (["unk=copy"], '"copy": one of keep, forbid, replace'),
        (["ensemble=mean"], "one of probabilities, log-probabilities, logits"),
    ],
)
def test_mistakes_are_told(recipe: Recipe, changes: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as told:
        override(recipe, [f"search.{each}" for each in changes], "search")
    assert said in str(told.value)


# --- text ------------------------------------------------------------------------------------

LINES = ["one two three", "", "ten zwölf", "seven seven two nine five", "four  漢字 six"]
ATTENDING = [
    "model.decoder.kind=attention",
    "model.decoder.layers=2",
    "model.decoder.embedding=11",
    "model.decoder.hidden=12",
    "model.decoder.start=eos",
    'model.decoder.attention={kind="dot"}',
]


@pytest.fixture(scope="module")
def attending(
    tmp_path_factory: pytest.TempPathFactory, recipe_file: Path, prepared: Prepared
) -> Path:
    """A model file that attends and says `<unk>` now and then; its weights are wide."""
    recipe = load(str(recipe_file), ATTENDING)
    source, target = prepared.source_tokenizer, prepared.target_tokenizer
    model = wide_model(recipe, (source, target), 11)
    with torch.no_grad():
        model.decoder.output.bias[UNKNOWN] += 4.0
    path = tmp_path_factory.mktemp("attending") / "attending.safetensors"
    save_model(path, model, recipe, (source, target), {"update": 1})
    return path


Make = Callable[..., Translator]


@pytest.fixture
def make(attending: Path) -> Make:
    loaded = load_model(attending, torch.device("cpu"))

    def translator(*changes: str, members: Sequence[ModelFile] = (loaded,)) -> Translator:
        changed = override(loaded.recipe, [f"search.{each}" for each in changes], "search")
        return Translator(members, changed.search, warn=lambda _message: None)

    return translator


def test_attention_is_told_in_the_order_of_the_text(attending: Path, make: Make) -> None:
    """The model reads the source in reverse, and other lines of the batch are longer."""
    loaded = load_model(attending, torch.device("cpu"))
    assert loaded.recipe.model.reverse_source
    found = make("alignment=true").n_best(LINES, 2)
    for line, best in zip(LINES, found, strict=True):
        ids = loaded.source_tokenizer.encode([line])[0]
        for one in best if line else ():
            words = loaded.target_tokenizer.encode([" ".join(one.pieces)])[0]
            text = PackedText.pack([ids[::-1]])
            decoder = loaded.model.decoder
            with torch.inference_mode():
                state = loaded.model.start(source_batch(text, numpy.array([0]), reverse=False))
                vectors = decoder.embedding(torch.tensor([[EOS], *([w] for w in words)]))
                outputs, _ = decoder.recurrent(vectors, state.recurrent)
                weights = decoder.attention(outputs, state.source)[1][0]
            expected = torch.cat([weights[:, :-1].flip(1), weights[:, -1:]], dim=1)
            assert one.attention is not None
            torch.testing.assert_close(one.attention, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_pieces_are_filled_with_what_was_unknown(kind: str) -> None:
    """Of SentencePiece: spaces stay as the pieces around have them."""
    text = ["the cat sat on the mat", "a dog and a cat"]
    checker: TypeAdapter[SentencePiece] = TypeAdapter(SentencePiece)
    tokenizer = train(text, checker.validate_python({"kind": kind, "vocabulary": 40}))
    for line in [*text, "the 漢字 cat", "漢字x the", "cat漢字", "a <s> ZZ", "漢字", ""]:
        (ids,) = tokenizer.encode([line])
        surfaces = tokenizer.surfaces(line)
        assert len(surfaces) == len(ids)
        assert "".join(surfaces) == line.replace(" ", "")
        assert tokenizer.fill(ids, {}) == tokenizer.decode([ids])[0]
        unknown = {place: surfaces[place] for place, word in enumerate(ids) if word == UNKNOWN}
        assert tokenizer.fill(ids, unknown) == line


def test_unknown_words_are_kept_forbidden_or_copied(make: Make) -> None:
    kept = make("alignment=true").n_best(LINES, 3)
    replaced = make("unk=replace").n_best(LINES, 3)
    copied = 0
    for line, best, others in zip(LINES, kept, replaced, strict=True):
        source = line.split()
        for one, other in zip(best, others, strict=True):
            assert (one.pieces, one.score) == (other.pieces, other.score)
            assert (other.alignment, other.attention) == (None, None)
            assert one.text == " ".join(one.pieces)
            by_target = {target: source[place] for place, target in one.alignment or ()}
            expected = [
                by_target[number] if piece == "<unk>" else piece
                for number, piece in enumerate(one.pieces)
            ]
            assert other.text == " ".join(expected)
            copied += one.text != other.text
    assert copied > 4
    without = make("unk=forbid").n_best(LINES, 3)
    assert not any("<unk>" in one.pieces for best in without for one in best)


def test_a_prefix_is_said_first_whatever_its_words_are(make: Make) -> None:
    """A line's own replaces that of all; an unknown word of it is shown as it was given."""
    translator = make("prefix=sept quatre", "word_scores=true")
    own = ["", "un", " ", "huit inconnu", "dix"]
    found = translator.translate(LINES, own)
    assert found[1] == ""
    for text, begun in zip(found, ["sept quatre", "", "sept quatre", *own[3:]], strict=True):
        assert f"{text} ".startswith(f"{begun} ".lstrip())
    best = translator.n_best(LINES, 1, prefixes=own)[3][0]
    assert best.pieces[:2] == ("huit", "<unk>")
    assert sum(best.word_log_probabilities or ()) == pytest.approx(best.log_probability, rel=1e-5)
    free = make().n_best(LINES, 1)[3][0]
    assert best.log_probability < free.log_probability


def test_of_a_line_in_parts_the_first_has_the_prefix(make: Make) -> None:
    line = "one two three four five six seven"
    whole = make("max_source=3", "prefix=dix dix", "alignment=true", "word_scores=true")
    (best,) = whole.n_best([line], 1)[0]
    first = make("prefix=dix dix", "alignment=true", "word_scores=true")
    rest = make("alignment=true", "word_scores=true")
    parts = [
        first.n_best(["one two three"], 1)[0][0],
        *(rest.n_best([part], 1)[0][0] for part in ("four five six", "seven")),
    ]
    assert best.text == " ".join(part.text for part in parts)
    assert best.pieces == tuple(itertools.chain.from_iterable(part.pieces for part in parts))
    gained = list(itertools.chain.from_iterable(p.word_log_probabilities or () for p in parts))
    assert best.word_log_probabilities == pytest.approx(gained, rel=1e-4, abs=1e-5)
    assert best.log_probability == pytest.approx(math.fsum(gained), rel=1e-5)
    shifts = [(0, 0), (3, len(parts[0].pieces)), (6, len(parts[0].pieces + parts[1].pieces))]
    assert list(best.alignment or ()) == [
        (i + down, j + right)
        for part, (down, right) in zip(parts, shifts, strict=True)
        for i, j in part.alignment or ()
    ]
    assert best.attention is not None
    assert best.attention.shape == (len(best.pieces) + 3, 7 + 3)
    assert best.source_pieces == tuple(line.split())


def test_a_line_in_parts_copies_its_own_words(make: Make) -> None:
    line = "one zwei three four fünf six seven"
    cuts = [" ".join(line.split()[i : i + 2]) for i in range(0, 7, 2)]
    rest = make("unk=replace").translate(cuts)
    for prefix in ([], ["oui", "non", "si", "mais", "ou"]):  # none of which the model knows
        begun = f"prefix={' '.join(prefix)}"
        found = make("max_source=2", "unk=replace", begun).translate([line])[0].split()
        first = make("unk=replace", begun).translate(cuts[:1])
        assert found == " ".join([*first, *rest[1:]]).split()
        assert found[: len(prefix)] == prefix
        if not prefix:
            assert len(set(found) & set(line.split())) > 1
    assert set(" ".join(rest[1:]).split()) & set(line.split())


def test_samples_of_a_line_do_not_know_its_neighbours(make: Make) -> None:
    translator = make("sampling={temperature=1.5, seed=5}", "max_source=2")
    together = translator.n_best(LINES, 3)
    assert len({one.text for one in together[3]}) > 1
    for number, line in enumerate(LINES, 1):
        alone = translator.n_best([line], 3, number)[0]
        assert [one.text for one in alone] == [one.text for one in together[number - 1]]


def test_a_shortlist_names_the_only_pieces(make: Make, tmp_path: Path) -> None:
    (tmp_path / "few").write_text("neuf\nun\n\nquatre\nun\n", encoding="utf-8")
    found = make(f"shortlist={tmp_path}/few").n_best(LINES, 3)
    said = {piece for best in found for one in best for piece in one.pieces}
    assert said <= {"neuf", "un", "quatre"}
    assert len(said) > 1
    free = make().n_best(LINES, 1)
    assert found[0][0].log_probability != pytest.approx(free[0][0].log_probability, abs=1e-3)
    with pytest.raises(DataError, match=r"line 7: .*shortlist: 'huit'"):
        make(f"shortlist={tmp_path}/few").n_best(["one"], 1, 7, ["huit"])
    (tmp_path / "bad").write_text("sept\nseven\neight\nnine\nten\n", encoding="utf-8")
    with pytest.raises(DataError) as told:
        make(f"shortlist={tmp_path}/bad")
    for part in ("bad", "4 in all", "'seven' (line 2)", "'nine' (line 4)", "..."):
        assert part in str(told.value)
    (tmp_path / "none").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="names no piece"):
        make(f"shortlist={tmp_path}/none")
    (tmp_path / "none").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="names no piece"):
        make(f"shortlist={tmp_path}/none")
    assert "'ten'" not in str(told.value)
    with pytest.raises(DataError, match="nowhere"):
        make(f"shortlist={tmp_path}/nowhere")


def test_members_may_be_of_different_kinds(
    make: Make, attending: Path, recipe: Recipe, prepared: Prepared, model: Any, tmp_path: Path
) -> None:
    """A plain model beside one that attends: the latter alone tells of attention."""
    save_model(
        tmp_path / "plain",
        model,
        recipe,
        (prepared.source_tokenizer, prepared.target_tokenizer),
        {"update": 1},
    )
    members = [load_model(path, torch.device("cpu")) for path in (attending, tmp_path / "plain")]
    both = make("alignment=true", members=members)
    assert both.how["models"] == 2
    best = both.n_best(LINES[:1], 1)[0][0]
    assert best.attention is not None
    torch.testing.assert_close(best.attention.sum(-1), torch.ones(len(best.pieces) + 1))
    means = [
        make(f"ensemble={kind}", members=members).n_best(LINES, 1)[0][0].log_probability
        for kind in MEANS
    ]
    assert means[1] == pytest.approx(means[2], rel=1e-5)
    assert means[0] != pytest.approx(means[1], abs=1e-3)
    with pytest.raises(ModelError, match=r"search\.alignment.*attention"):
        Translator([members[1]], both.settings)


# --- the command -----------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(attending: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`s2s translate` of LINES, or of others, with keys of [search]; code, stdout, stderr."""

    def translate(
        *keys: str, options: Sequence[str] = (), lines: Sequence[str] = LINES
    ) -> tuple[int, str, str]:
        (tmp_path / "in").write_bytes("".join(f"{line}\n" for line in lines).encode())
        sets = [word for key in keys for word in ("--set", f"search.{key}")]
        with pytest.raises(SystemExit) as ended:
            app(["translate", "-m", str(attending), "-i", str(tmp_path / "in"), *sets, *options])
        assert isinstance(ended.value.code, int)
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return translate


def test_jsonl_tells_what_was_asked_for(run: Run) -> None:
    options = ["--format", "jsonl", "--n-best", "2"]
    code, out, err = run(
        "alignment=true", "word_scores=true", "length_penalty=0.5", options=options
    )
    assert (code, err) == (0, "")
    for line, told in zip(LINES, map(json.loads, out.splitlines()), strict=True):
        assert told["search"] == {"beam_size": 3, "length_penalty": 0.5}
        pieces = [piece if piece in LEXICON else "<unk>" for piece in line.split()]
        assert told["source_pieces"] == pieces
        for one in told["translations"]:
            words = len(one["pieces"])
            gained = one["word_log_probabilities"]
            assert sum(gained) == pytest.approx(one["log_probability"], abs=1e-4)
            assert len(gained) == len(one["attention"]) == (words + 1 if line else 0)
            assert all(len(row) == len(line.split()) + 1 for row in one["attention"])
            assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in one["attention"])
            best = [max(range(len(row) - 1), key=row.__getitem__) for row in one["attention"]]
            assert one["alignment"].split() == [f"{i}-{j}" for j, i in enumerate(best[:words])]
    assert set(json.loads(out.splitlines()[0])["translations"][0]) == {
        *("text", "score", "log_probability", "pieces"),
        *("word_log_probabilities", "alignment", "attention"),
    }
    _, out, _ = run(options=options)
    assert "source_pieces" not in json.loads(out.splitlines()[0])
    assert set(json.loads(out.splitlines()[0])["translations"][0]) == {
        *("text", "score", "log_probability", "pieces")
    }


def test_jsonl_names_the_ensemble_and_the_sampling(run: Run, attending: Path) -> None:
    options = ["--format", "jsonl", "-m", str(attending), "--n-best", "7"]
    code, out, _ = run("sampling.top_k=2", "ensemble=logits", options=options)
    assert code == 0
    told = json.loads(out.splitlines()[0])
    sampling = {"temperature": 1.0, "top_k": 2, "top_p": 1.0, "seed": 1}
    assert told["search"] == {"sampling": sampling, "models": 2, "ensemble": "logits"}
    assert len(told["translations"]) == 7  # more than the beam, which is not used


def test_tsv_and_moses_have_fields_for_what_was_asked_for(run: Run) -> None:
    keys = ["alignment=true", "word_scores=true"]
    options = ["--n-best", "2", "--format"]
    told = [json.loads(line) for line in run(*keys, options=[*options, "jsonl"])[1].splitlines()]
    every = [(one, each) for one in told for each in one["translations"]]
    rows = run(*keys, options=[*options, "tsv"])[1].splitlines()
    for row, (_, one) in zip(rows, every, strict=True):
        _, _, _, text, scores, alignment = row.split("\t")
        assert (text, alignment) == (one["text"], one["alignment"])
        gained = one["word_log_probabilities"]
        assert [float(score) for score in scores.split()] == pytest.approx(gained, abs=1e-5)
    rows = run(*keys, options=[*options, "moses"])[1].splitlines()
    for row, (whole, one) in zip(rows, every, strict=True):
        number, text, feature, _, alignment = (field.strip() for field in row.split("|||"))
        assert (int(number) + 1, text) == (whole["line"], one["text"])
        assert alignment == one["alignment"]
        # As Moses' readers part it: names end in `=`, and one with `_` would be a sparse feature.
        name, value = feature.split()
        assert name == "s2s="
        assert float(value) == pytest.approx(one["log_probability"], abs=1e-5)


def test_a_bar_in_a_text_does_not_end_a_field_of_moses() -> None:
    row = FORMATS["moses"](1, "", [Translation("a ||| b", -1.0, -1.0, ())], None)
    assert row == "0 ||| a &#124;&#124;&#124; b ||| s2s= -1.000000 ||| -1.000000\n"


def test_the_second_column_is_what_a_translation_begins_with(run: Run) -> None:
    lines = ["one two\thuit", "one two", "\thuit", "three\tdix un\tignored", "four\t"]
    options = ["--input-format", "tsv", "--format", "jsonl"]
    code, out, err = run("prefix=six", options=options, lines=lines)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["source"] for one in found] == ["one two", "one two", "", "three", "four"]
    texts = [one["translations"][0]["text"] for one in found]
    for text, begun in zip(texts, ["huit", "six", "", "dix un", "six"], strict=True):
        assert f"{text} ".startswith(f"{begun} ".lstrip())
    assert texts[2] == ""
    # Without the option a tab is a space like others.
    _, plain, _ = run(lines=["one two\thuit", "one two huit"])
    first, second = plain.splitlines()
    assert first == second


def test_mistakes_of_use_are_told(run: Run, tmp_path: Path) -> None:
    for keys, said in (
        (["unk=forbidden"], 'search.unk = "forbidden"'),
        ([f"shortlist={tmp_path}/none"], "none"),
        (["sampling.seed=-1"], "search.sampling.seed"),
    ):
        code, out, err = run(*keys)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert said in err
    assert run(options=["--n-best", "4", "--format", "tsv"])[0] == 1
    assert run(options=["--set", "model.hidden=4"])[0] == 1


def test_members_come_in_any_order(
    attending: Path, run: Run, recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """What needs attention is there if any member has it."""
    recipe = load(str(recipe_file))
    sides = (prepared.source_tokenizer, prepared.target_tokenizer)
    model = build(recipe.model, source_vocabulary=sides[0].size, target_vocabulary=sides[1].size)
    plain = tmp_path / "plain.safetensors"
    save_model(plain, model, recipe, sides, {"update": 0, "epoch": 0.0})
    after = run("alignment=true", options=["-m", str(plain), "--format", "tsv"])
    command = ["translate", "-m", str(plain), "-m", str(attending), "--format", "tsv"]
    with pytest.raises(SystemExit) as ended:
        app([*command, "--set", "search.alignment=true", "-i", str(tmp_path / "in")])
    assert (ended.value.code, after[0]) == (0, 0)
    with pytest.raises(SystemExit) as ended:
        app([*command[:3], "--set", "search.alignment=true", "-i", str(tmp_path / "in")])
    assert ended.value.code == 1


def test_the_precision_is_told(run: Run) -> None:
    for options, told in (([], None), (["--precision", "int8"], "int8")):
        code, out, _ = run(options=["--format", "jsonl", *options])
        assert code == 0
        assert json.loads(out.split("\n")[0])["search"].get("precision") == told
