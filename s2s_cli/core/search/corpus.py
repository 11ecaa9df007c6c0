"""A search over many sources: sorted by length, cut into batches, the order restored."""

from collections.abc import Sequence
from typing import Any

from s2s_cli.core.batches import by_length
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import Search
from s2s_cli.core.search.beam import Hypothesis, beam_search, greedy_search
from s2s_cli.core.search.scorers import Scorer
from s2s_cli.core.tokenizer import EOS

SPARE_LENGTH = 10


def search_all(
    scorer: Scorer[Any],
    sources: Sequence[Sequence[int]],
    settings: Search,
    *,
    first_word: int,
    n_best: int = 1,
) -> list[list[Hypothesis]]:
    """The best translations of each source, best first, in the order of `sources`.

    A beam of 1 is the greedy search, whatever the length penalty.
    """
    found: list[list[Hypothesis]] = [[] for _ in sources]
    for places in by_length(sources, settings.batch_size):
        batch = PackedText.pack([sources[place] for place in places])
        limits = [
            int(settings.max_length_ratio * length) + SPARE_LENGTH
            for length in batch.lengths.tolist()
        ]
        if settings.beam_size == 1:
            results = greedy_search(
                scorer,
                batch,
                max_lengths=limits,
                first_word=first_word,
                eos=EOS,
                length_penalty=settings.length_penalty,
            )
        else:
            results = beam_search(
                scorer,
                batch,
                beam_size=settings.beam_size,
                max_lengths=limits,
                first_word=first_word,
                eos=EOS,
                n_best=n_best,
                length_penalty=settings.length_penalty,
            )
        for place, result in zip(places, results, strict=True):
            found[place] = result
    return found
