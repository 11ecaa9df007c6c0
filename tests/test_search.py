"""The search against exhaustive search, and against a beam that never stops early.

The scorer is a table of probabilities that depend on the source and on all words so far, so
nothing that mixes up rows, sentences or histories can go unseen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import Tensor

from s2s_cli.core.errors import ModelError
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import Search
from s2s_cli.core.search import (
    Ensemble,
    Hypothesis,
    ModelScorer,
    Ranking,
    Task,
    beam_search,
    candidates,
    greedy_search,
    search_all,
)
from s2s_cli.core.tokenizer import BOS, EOS

VOCABULARY = 5
START = BOS

Words = tuple[int, ...]
Logits = Callable[[Words, Words], Sequence[float]]


def random_table(seed: int, spread: float = 1.5) -> Logits:
    """Normal logits, drawn anew for each source and prefix; their mean must not count."""

    def logits(source: Words, prefix: Words) -> Sequence[float]:
        drawn = numpy.random.default_rng([seed, *source, 99, *prefix])
        offset = drawn.normal(scale=5)
        return list(spread * drawn.normal(size=VOCABULARY) + offset)

    return logits


@dataclass(frozen=True)
class TableState:
    """The source of each row, and the words that it has read."""

    rows: tuple[tuple[Words, Words], ...]

    def select(self, rows: Tensor) -> "TableState":
        return TableState(tuple(self.rows[row] for row in rows.tolist()))


class TableScorer:
    """Gives the logits of a table."""

    device = torch.device("cpu")

    def __init__(self, logits: Logits) -> None:
        self._logits = logits
        self.widths: list[int] = []

    def start(self, sources: PackedText) -> TableState:
        return TableState(tuple((tuple(sources[row]), ()) for row in range(len(sources))))

    def step(self, words: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        assert len(words) == len(state.rows)
        self.widths.append(len(words))
        rows = tuple(
            (source, (*read, word))
            for (source, read), word in zip(state.rows, words.tolist(), strict=True)
        )
        for _, read in rows:
            assert read[0] == START
        logits = [self._logits(source, read[1:]) for source, read in rows]
        return torch.tensor(logits, dtype=torch.float32), TableState(rows)


def log_probabilities(logits: Sequence[float]) -> list[float]:
    """The log-softmax, in float64."""
    total = math.log(sum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def gnmt(words: int, alpha: float) -> float:
    """GNMT's length penalty for a translation of so many words and EOS."""
    return math.pow(5 + words + 1, alpha) / math.pow(5 + 1, alpha)


def ranked(finished: list[tuple[Words, float]], alpha: float) -> list[Hypothesis]:
    hypotheses = [
        Hypothesis(words, total, total / gnmt(len(words), alpha)) for words, total in finished
    ]
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


def exhaustive(logits: Logits, source: Words, longest: int, alpha: float) -> list[Hypothesis]:
    """All translations of at most `longest` words."""
    finished: list[tuple[Words, float]] = []
    alive: list[tuple[Words, float]] = [((), 0.0)]
    while alive:
        prefix, total = alive.pop()
        for word, gained in enumerate(log_probabilities(logits(source, prefix))):
            if word == EOS:
                finished.append((prefix, total + gained))
            elif len(prefix) < longest:
                alive.append(((*prefix, word), total + gained))
    return ranked(finished, alpha)


def patient_beam(
    logits: Logits, source: Words, longest: int, alpha: float, beam: int
) -> list[Hypothesis]:
    """The beam of Sutskever et al. 2014 without any early stop: all that it ever finishes.

    EOS among the best `beam` ways to go on finishes a hypothesis; the best `beam` others live on.
    """
    finished: list[tuple[Words, float]] = []
    alive: list[tuple[Words, float]] = [((), 0.0)]
    for length in range(longest + 1):
        ways = [
            ((*prefix, word), total + gained)
            for prefix, total in alive
            for word, gained in enumerate(log_probabilities(logits(source, prefix)))
            if length < longest or word == EOS
        ]
        ways.sort(key=lambda way: -way[1])
        finished += [(words[:-1], total) for words, total in ways[:beam] if words[-1] == EOS]
        alive = [way for way in ways if way[0][-1] != EOS][:beam]
    return ranked(finished, alpha)


# Sources in falling length, and how long each one's translation may be.
SOURCES: list[Words] = [(7, 3, 9), (4, 4), (8, 5), (6,), ()]
LONGEST = [3, 4, 1, 2, 0]


def search(
    scorer: TableScorer | Ensemble,
    beam: int,
    *,
    n_best: int = 1,
    alpha: float = 0.0,
    sources: Sequence[Words] = SOURCES,
    longest: Sequence[int] = LONGEST,
) -> list[list[Hypothesis]]:
    return beam_search(
        scorer,
        PackedText.pack(sources),
        Task(longest, START, EOS, Ranking(alpha)),
        beam_size=beam,
        n_best=n_best,
    )


def greedy(
    scorer: TableScorer | Ensemble,
    alpha: float = 0.0,
    sources: Sequence[Words] = SOURCES,
    longest: Sequence[int] = LONGEST,
) -> list[list[Hypothesis]]:
    return greedy_search(
        scorer,
        PackedText.pack(sources),
        Task(longest, START, EOS, Ranking(alpha)),
    )


def assert_same(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    """The same words in the same order, scores equal to rounding."""
    assert [best.words for best in found] == [best.words for best in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-5, abs=1e-5)
        assert one.score == pytest.approx(other.score, rel=1e-5, abs=1e-5)


# --- what is found ---------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [candidates.STRIDE, 2])  # words one by one, and in groups
@pytest.mark.parametrize("alpha", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_equals_exhaustive_search(
    seed: int, alpha: float, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "STRIDE", stride)
    table = random_table(seed)
    # No more than 4**4 hypotheses of 4 words: nothing is ever pruned.
    found = search(TableScorer(table), 300, n_best=25, alpha=alpha)
    for hypotheses, source, longest in zip(found, SOURCES, LONGEST, strict=True):
        everything = exhaustive(table, source, longest, alpha)
        assert len(everything) == sum(4**length for length in range(longest + 1))
        assert_same(hypotheses, everything[:25])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("beam", [1, 2, 3, 5])
def test_stopping_by_bound_loses_nothing(beam: int, alpha: float, seed: int) -> None:
    """What a narrow beam finds is what the same beam finds that goes on to the very end."""
    table = random_table(seed, spread=1.0)
    longest = [7, 5, 6, 4, 0]
    for n_best in range(1, beam + 1):
        found = search(TableScorer(table), beam, n_best=n_best, alpha=alpha, longest=longest)
        for hypotheses, source, limit in zip(found, SOURCES, longest, strict=True):
            expected = patient_beam(table, source, limit, alpha, beam)[:n_best]
            assert_same(hypotheses, expected)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_takes_the_likeliest_word_at_each_step(seed: int) -> None:
    table = random_table(seed)
    for alpha in (0.0, 1.0):
        found = greedy(TableScorer(table), alpha)
        for (best,), source, longest in zip(found, SOURCES, LONGEST, strict=True):
            words: Words = ()
            total = 0.0
            while True:
                gained = log_probabilities(table(source, words))
                word = EOS if len(words) == longest else gained.index(max(gained))
                total += gained[word]
                if word == EOS:
                    break
                words = (*words, word)
            assert_same([best], ranked([(words, total)], alpha))


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_of_one_is_greedy(seed: int) -> None:
    longest = [9, 8, 7, 6, 5]
    table = random_table(seed)
    by_beam = search(TableScorer(table), 1, longest=longest)
    for one, other in zip(by_beam, greedy(TableScorer(table), longest=longest), strict=True):
        assert_same(one, other)


def test_finished_translations_do_not_narrow_the_beam() -> None:
    """ "a" ends at once and well; the best of all is found only by a beam that stays two wide."""
    a, b = 3, 4
    likely = {
        (): {a: 0.5, b: 0.4, EOS: 0.06},
        (a,): {EOS: 0.5, a: 0.3, b: 0.1},
        (b,): {a: 0.9, EOS: 0.05, b: 0.03},
        (b, a): {EOS: 0.9, a: 0.05, b: 0.03},
    }

    def logits(source: Words, prefix: Words) -> Sequence[float]:
        some = likely.get(prefix, {EOS: 0.5, a: 0.2, b: 0.2})
        rest = (1 - sum(some.values())) / (VOCABULARY - len(some))
        return [math.log(some.get(word, rest)) for word in range(VOCABULARY)]

    # After "a </s>" (0.25) has finished beside "b a" (0.36), "a a" (0.15) lives on too.
    scorer = TableScorer(logits)
    first, second = search(scorer, 2, n_best=2, sources=[(3,)], longest=[5])[0]
    assert first.words == (b, a)
    assert first.log_probability == pytest.approx(math.log(0.4 * 0.9 * 0.9), rel=1e-5)
    assert second.words == (a,)
    assert scorer.widths == [1, 2, 2]
    # One that is content with the first to finish would say "a".
    assert greedy(TableScorer(logits), sources=[(3,)], longest=[5])[0][0].words == (a,)


def test_a_sentence_stops_as_soon_as_nothing_can_beat_its_best() -> None:
    def logits(source: Words, prefix: Words) -> Sequence[float]:
        wants_to_end = len(prefix) == len(source)
        return [0.0, 0.0, 9.0 if wants_to_end else -9.0, 0.0, 0.0]

    scorer = TableScorer(logits)
    search(scorer, 3, sources=[(5, 5, 5), (5,)], longest=[100, 100])
    # One row a sentence at first, then three; the shorter is done after two steps.
    assert scorer.widths == [2, 6, 3, 3]


# --- what must not matter --------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_other_sentences_are_inert(seed: int, beam: int) -> None:
    """Sentences end at different steps and leave the batch; the others must not notice."""
    table = random_table(seed)
    longest = [3, 9, 0, 6, 7]
    together = search(TableScorer(table), beam, n_best=beam, longest=longest)
    greedily = greedy(TableScorer(table), longest=longest)
    for row, (source, limit) in enumerate(zip(SOURCES, longest, strict=True)):
        alone = search(TableScorer(table), beam, n_best=beam, sources=[source], longest=[limit])
        assert_same(together[row], alone[0])
        assert_same(greedily[row], greedy(TableScorer(table), 0.0, [source], [limit])[0])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("beam", [2, 4, 50])
def test_n_best_are_distinct_sorted_and_as_many_as_asked(beam: int, alpha: float) -> None:
    found = search(TableScorer(random_table(1)), beam, n_best=beam, alpha=alpha)
    for hypotheses, longest in zip(found, LONGEST, strict=True):
        space = sum(4**length for length in range(longest + 1))
        assert len(hypotheses) == beam if space > 4 * beam else 0 < len(hypotheses) <= beam
        assert len({hypothesis.words for hypothesis in hypotheses}) == len(hypotheses)
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert all(EOS not in hypothesis.words for hypothesis in hypotheses)


@pytest.mark.parametrize("beam", [0, 2, 4])  # 0: greedy
def test_a_translation_ends_at_its_maximum_length(beam: int) -> None:
    def logits(source: Words, prefix: Words) -> Sequence[float]:
        return [0.0, 0.0, -20.0, 1.0, 0.0]  # never wants to end

    scorer = TableScorer(logits)
    found = search(scorer, beam) if beam else greedy(scorer)
    step = log_probabilities(logits((), ()))
    for (best,), longest in zip(found, LONGEST, strict=True):
        assert best.words == (3,) * longest
        expected = longest * step[3] + step[EOS]  # the forced EOS is paid for
        assert best.log_probability == pytest.approx(expected, rel=1e-5)


# --- real models -----------------------------------------------------------------------------

SENTENCES = [[5, 4, 9], [], [3, 3, 7, 8, 5, 12], [8], [4, 12], [6, 7, 4, 3, 5], [10, 11], [9, 9, 4]]


def scored(model: Seq2Seq, source: Sequence[int], words: Sequence[int], reverse: bool) -> float:
    """log p(words, EOS | source), teacher-forced on the sentence alone."""
    read = [*(source[::-1] if reverse else source), EOS]
    vectors = model.encoder.embedding(torch.tensor(read)[:, None])
    _, state = model.encoder.recurrent.cells(vectors)
    fed = model.decoder.embedding(torch.tensor([EOS, *words])[:, None])
    features, _ = model.decoder.recurrent.cells(fed, state)
    gained = model.decoder.output(features[:, 0]).log_softmax(-1)
    return gained.gather(1, torch.tensor([*words, EOS])[:, None]).sum().item()


def found_by(
    scorer: ModelScorer | Ensemble, beam: int, *, size: int = 3, n_best: int = 1
) -> list[list[Hypothesis]]:
    settings = Search(beam_size=beam, batch_size=size, max_length_ratio=0.5)
    return search_all(scorer, SENTENCES, settings, first_word=EOS, n_best=n_best)


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("beam", [1, 3])
def test_score_of_a_translation_is_its_teacher_forced_score(
    model: Seq2Seq, beam: int, reverse: bool
) -> None:
    found = found_by(ModelScorer(model, reverse=reverse), beam, n_best=beam)
    for source, hypotheses in zip(SENTENCES, found, strict=True):
        assert len(hypotheses) == beam
        for hypothesis in hypotheses:
            expected = scored(model, source, hypothesis.words, reverse)
            assert hypothesis.log_probability == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # The model has something to say, and says different things.
    assert len({hypotheses[0].words for hypotheses in found}) > 3
    assert len({len(hypotheses[0].words) for hypotheses in found}) > 2


@pytest.mark.parametrize("beam", [1, 3])
def test_batch_size_is_inert_and_the_order_comes_back(model: Seq2Seq, beam: int) -> None:
    scorer = ModelScorer(model, reverse=True)
    alone = found_by(scorer, beam, size=1, n_best=beam)
    for size in (2, 3, 64):
        for one, other in zip(found_by(scorer, beam, size=size, n_best=beam), alone, strict=True):
            assert_same(one, other)
    for source, (best, *_) in zip(SENTENCES, alone, strict=True):
        assert len(best.words) <= 0.5 * len(source) + 10
        expected = scored(model, source, best.words, True)
        assert best.log_probability == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_search_all_of_nothing_is_nothing(model: Seq2Seq) -> None:
    settings = Search(beam_size=2)
    assert search_all(ModelScorer(model, reverse=True), [], settings, first_word=EOS) == []


@pytest.mark.parametrize("beam", [1, 3])
def test_an_ensemble_of_one_is_the_model(model: Seq2Seq, beam: int) -> None:
    scorer = ModelScorer(model, reverse=True)
    alone = found_by(scorer, beam, n_best=beam)
    for one, other in zip(found_by(Ensemble([scorer]), beam, n_best=beam), alone, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("members", [2, 3])
def test_an_ensemble_is_the_mean_of_probabilities(members: int) -> None:
    """Of probabilities: the means of logits and of log-probabilities would be others."""
    tables = [random_table(seed) for seed in range(members)]

    def mean(source: Words, prefix: Words) -> Sequence[float]:
        each = [log_probabilities(table(source, prefix)) for table in tables]
        return [
            math.log(sum(math.exp(value) for value in values) / members)
            for values in zip(*each, strict=True)
        ]

    ensemble = Ensemble([TableScorer(table) for table in tables])
    found = search(ensemble, 300, n_best=10)
    for hypotheses, source, longest in zip(found, SOURCES, LONGEST, strict=True):
        assert_same(hypotheses, exhaustive(mean, source, longest, 0.0)[:10])
    for one, other in zip(greedy(ensemble), greedy(TableScorer(mean)), strict=True):
        assert_same(one, other)
    # What the ensemble's step gives are log-probabilities, whatever its members' are.
    state = ensemble.start(PackedText.pack(SOURCES))
    logits, _ = ensemble.step(torch.full((len(SOURCES),), START), state)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(len(SOURCES)))


def test_members_of_an_ensemble_may_read_in_different_directions(model: Seq2Seq) -> None:
    ensemble = Ensemble([ModelScorer(model, reverse=True), ModelScorer(model, reverse=False)])
    source = SENTENCES[2]
    logits, _ = ensemble.step(torch.tensor([EOS]), ensemble.start(PackedText.pack([source])))

    def first_word(reverse: bool) -> Tensor:
        scorer = ModelScorer(model, reverse=reverse)
        ours, _ = scorer.step(torch.tensor([EOS]), scorer.start(PackedText.pack([source])))
        return ours.softmax(-1)

    expected = (first_word(True) + first_word(False)) / 2
    assert not torch.allclose(first_word(True), first_word(False), atol=1e-3)
    torch.testing.assert_close(logits.exp(), expected)


# --- what need not be known -------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 3])
def test_without_log_probabilities_the_words_are_the_same(beam: int) -> None:
    table = random_table(3)
    settings = Search(beam_size=beam)
    asked, unasked = (
        search_all(TableScorer(table), SOURCES, settings, first_word=BOS, log_probabilities=wanted)
        for wanted in (True, False)
    )
    assert [best[0].words for best in unasked] == [best[0].words for best in asked]
    assert all(math.isfinite(best[0].score) for best in asked)
    # Only a greedy search can do without.
    assert all(math.isnan(best[0].score) == (beam == 1) for best in unasked)


def test_scores_that_are_no_numbers_are_told_of() -> None:
    scorer = TableScorer(lambda _source, _prefix: [math.nan] * VOCABULARY)
    with pytest.raises(ModelError, match="not numbers"):
        search_all(scorer, SOURCES, Search(beam_size=3), first_word=BOS)
