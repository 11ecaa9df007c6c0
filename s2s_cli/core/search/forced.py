"""What a scorer gives to translations that are there already: the search's own steps, led by them.

# R pairs of a batch, T words of the longest target, EOS counted
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from s2s_cli.core.batches import LARGEST_BATCH, Indices, by_length
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.search.candidates import survey
from s2s_cli.core.search.scorers import Scorer
from s2s_cli.core.tokenizer import EOS

Words = Sequence[int]


@torch.inference_mode()
def forced_scores(
    scorer: Scorer[Any],
    sources: Sequence[Words],
    targets: Sequence[Words],
    *,
    first_word: int,
    batch_size: int,
    longest: int,
) -> list[list[float]]:
    """The natural log-probability of each word of each target and of its EOS, in that order.

    Args:
        scorer: gives the next word's scores.
        sources: ids without EOS.
        targets: ids without EOS, one target a source.
        first_word: what the decoder reads first.
        batch_size: pairs that go together.
        longest: words of a source beyond which its pair goes alone, because all sources of a
            batch take as much memory as its longest.
    """
    found: list[list[float]] = [[] for _ in sources]
    for places in _batches(sources, targets, batch_size, longest):
        # Several translations of a source share what the encoder reads.
        different = list(dict.fromkeys(tuple(sources[place]) for place in places))
        row_of = {source: row for row, source in enumerate(different)}
        # A scorer wants its sources in falling length, the loop below its targets: so that the
        # rows that end are always the last.
        places.sort(key=lambda place: -len(targets[place]))
        rows = [row_of[tuple(sources[place])] for place in places]
        state = scorer.start(PackedText.pack(different))
        state = state.select(torch.tensor(rows, device=scorer.device))
        gained = _led(scorer, state, [targets[place] for place in places], first_word).tolist()
        for row, place in enumerate(places):
            found[place] = [of_step[row] for of_step in gained[: len(targets[place]) + 1]]
    return found


def _led(scorer: Scorer[Any], state: Any, targets: Sequence[Words], first_word: int) -> Tensor:
    """The log-probability of each word of `targets`, which come in falling length. [T, R]"""
    device = scorer.device
    lengths = numpy.array([len(target) for target in targets])
    padded = numpy.full((lengths[0] + 1, len(targets)), EOS)
    for row, target in enumerate(targets):
        padded[: len(target), row] = target
    words = torch.from_numpy(padded).to(device)
    gained = torch.zeros(words.shape, device=device)
    read = torch.full((len(targets),), first_word, device=device)
    for step, wanted in enumerate(words):
        live = int((lengths >= step).sum())
        if live < len(read):
            state = state.select(torch.arange(live, device=device))
        logits, state = scorer.step(read[:live], state)
        told = logits.gather(1, wanted[:live, None])[:, 0] - survey(logits)[1]
        gained[step, :live] = told
        read = wanted[:live]
    return gained


def _batches(
    sources: Sequence[Words], targets: Sequence[Words], size: int, longest: int
) -> Iterator[list[int]]:
    """Places of pairs that go together, in falling length of their sources, then of targets."""
    lengths: list[Indices] = [
        numpy.array([-len(words) for words in side], numpy.int64) for side in (targets, sources)
    ]
    order = numpy.lexsort(lengths).tolist()
    alone = int((lengths[1] < -longest).sum())
    yield from ([place] for place in order[:alone])
    ordered = [sources[place] for place in order[alone:]]  # which sorting leaves as they are
    for places in by_length(ordered, size, LARGEST_BATCH):
        yield [order[alone + place] for place in places]
