"""A search over many sources: sorted by length, cut into batches, the order restored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from s2s_cli.core.batches import LARGEST_BATCH, by_length
from s2s_cli.core.errors import ModelError
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import Search
from s2s_cli.core.search.beam import beam_search
from s2s_cli.core.search.greedy import greedy_search
from s2s_cli.core.search.notes import Wanted
from s2s_cli.core.search.ranking import Hypothesis, Ranking
from s2s_cli.core.search.rules import Rules
from s2s_cli.core.search.sampling import sample_search
from s2s_cli.core.search.scorers import Scorer
from s2s_cli.core.search.task import Task
from s2s_cli.core.tokenizer import EOS, UNKNOWN

SPARE_LENGTH = 10
ROWS = 1024  # of a batch, where the recipe leaves that open: products are at full speed with them
Words = Sequence[int]


@dataclass(frozen=True)
class Symbols:
    """The words that mean something to a search; `unknown` is () where it cannot be said."""

    first: int
    eos: int
    unknown: tuple[int, ...]


def search_all(
    scorer: Scorer[Any],
    sources: Sequence[Words],
    settings: Search,
    *,
    first_word: int,
    n_best: int = 1,
    prefixes: Sequence[Words] | None = None,
    numbers: Sequence[Words] | None = None,
    shortlist: Words | None = None,
    log_probabilities: bool = True,
) -> list[list[Hypothesis]]:
    """The best translations of each source, best first, in the order of `sources`.

    A beam of 1 is the greedy search, whatever ranks. With `settings.sampling` the translations are
    samples, in the order of their drawing.

    Args:
        scorer: gives the next word's scores.
        sources: ids, without EOS.
        settings: what to look for; its `prefix` and `shortlist`, which are text, are not read.
        first_word: what the decoder reads first.
        n_best: translations of each source.
        prefixes: for each source the words that its translation begins with.
        numbers: for each source what tells its chances from others'; by default its place.
        shortlist: the only words that may be said, EOS and all of the prefixes among them.
        log_probabilities: False where those and the scores need not be numbers.
    """
    symbols = Symbols(first_word, EOS, (UNKNOWN,))
    begun: Sequence[Words] = [()] * len(sources) if prefixes is None else prefixes
    if shortlist is not None:
        scorer = scorer.restrict(shortlist, first_word)
        number = {word: place for place, word in enumerate(shortlist)}
        unknown = (number[UNKNOWN],) if UNKNOWN in number else ()
        symbols = Symbols(len(shortlist), number[EOS], unknown)
        begun = [[number[word] for word in words] for words in begun]
    found: list[list[Hypothesis]] = [[] for _ in sources]
    for places in by_length(sources, sentences_together(settings, n_best), LARGEST_BATCH):
        batch = PackedText.pack([sources[place] for place in places])
        task = _task(
            settings,
            batch,
            [begun[place] for place in places],
            symbols,
            scorer.device,
            log_probabilities=log_probabilities or settings.word_scores,
        )
        if settings.sampling is not None:
            results = sample_search(
                scorer,
                batch,
                task,
                settings=settings.sampling,
                numbers=[numbers[place] if numbers else (int(place),) for place in places],
                samples=n_best,
            )
        elif settings.beam_size == 1:
            results = greedy_search(scorer, batch, task)
        else:
            results = beam_search(scorer, batch, task, beam_size=settings.beam_size, n_best=n_best)
        if not all(results):
            raise ModelError("the model's scores are not numbers: its weights are damaged")
        for place, result in zip(places, results, strict=True):
            found[place] = result
    if shortlist is None:
        return found
    return [
        [replace(one, words=tuple(shortlist[word] for word in one.words)) for one in best]
        for best in found
    ]


def sentences_together(settings: Search, n_best: int = 1) -> int:
    """Sentences that are searched together."""
    rows = settings.beam_size if settings.sampling is None else n_best
    return settings.batch_size or max(1, ROWS // rows)


def _task(
    settings: Search,
    sources: PackedText,
    prefixes: Sequence[Words],
    symbols: Symbols,
    device: torch.device,
    *,
    log_probabilities: bool,
) -> Task:
    """What is looked for in a batch."""
    lengths = sources.lengths.tolist()
    # A prefix is said whatever its length.
    most = [
        max(int(settings.max_length_ratio * length) + SPARE_LENGTH, len(words))
        for length, words in zip(lengths, prefixes, strict=True)
    ]
    # 1.1 * 10 is a little more than 11.
    least = [math.ceil(settings.min_length_ratio * length - 1e-9) for length in lengths]
    forbidden = symbols.unknown if settings.unk == "forbid" else ()
    rules = None
    if any(least) or any(prefixes) or forbidden or settings.no_repeat_ngram:
        rules = Rules(
            eos=symbols.eos,
            least=least,
            prefixes=prefixes,
            forbidden=forbidden,
            ngram=settings.no_repeat_ngram,
            device=device,
        )
    return Task(
        max_lengths=most,
        first_word=symbols.first,
        eos=symbols.eos,
        ranking=Ranking(
            settings.length_penalty,
            settings.length_normalization == "average",
            settings.coverage_penalty,
        ),
        rules=rules,
        wanted=Wanted(
            log_probabilities=log_probabilities,
            word_scores=settings.word_scores,
            attention=settings.alignment or settings.unk == "replace",
            coverage=settings.coverage_penalty > 0,
        ),
    )
