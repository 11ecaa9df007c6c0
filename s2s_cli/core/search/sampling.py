"""Translations drawn by chance, word by word.

# R rows, V vocabulary
"""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import Sampling
from s2s_cli.core.search.greedy import greedy_search
from s2s_cli.core.search.ranking import Hypothesis
from s2s_cli.core.search.rules import NEVER
from s2s_cli.core.search.scorers import Scorer
from s2s_cli.core.search.task import Task


def sample_search(
    scorer: Scorer[Any],
    sources: PackedText,
    task: Task,
    *,
    settings: Sampling,
    numbers: Sequence[Sequence[int]],
    samples: int,
) -> list[list[Hypothesis]]:
    """`samples` translations of each source, in the order of their drawing.

    A translation's chance depends on the seed, its source's `numbers` and the sample's alone: it
    is the same in any batch, and sample i is the same however many are drawn. Log-probabilities
    are the model's own, whatever the temperature.
    """
    longest = max(task.max_lengths) + 1
    # A generator's first numbers are the same however many are asked for.
    draws = [
        numpy.random.default_rng([settings.seed, *number, sample]).random(longest)
        for number in numbers
        for sample in range(samples)
    ]
    chances = torch.from_numpy(numpy.stack(draws))  # [R, longest]

    def choose(logits: Tensor, _maxima: Tensor, rows: Tensor, step: int) -> Tensor:
        kept = likely(logits / settings.temperature, settings.top_k, settings.top_p)
        return drawn(kept, chances[rows, step].to(logits.device))

    return greedy_search(scorer, sources, task, choose=choose, copies=samples)


def likely(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """`logits` [R, V] with -inf for all but the likeliest words.

    Of the `top_k` likeliest (0: of all), the fewest that together have the probability `top_p`
    among them (Holtzman et al. 2020, section 3.1).
    """
    if 0 < top_k < logits.shape[1]:
        values, words = logits.topk(top_k, -1)
        logits = torch.full_like(logits, NEVER).scatter(1, words, values)
    if top_p < 1:
        values, words = logits.sort(-1, descending=True)
        shares = values.double().softmax(-1)
        # A word stays as long as those before it do not suffice: the first one always does.
        values = values.masked_fill(shares.cumsum(-1) - shares >= top_p, NEVER)
        logits = torch.empty_like(logits).scatter(1, words, values)
    return logits


def drawn(logits: Tensor, chances: Tensor) -> Tensor:
    """The word, [R], in whose share of the probability each chance of [0, 1) falls.

    Words stand in the order of their ids, which rounding does not change.
    """
    sums = logits.double().softmax(-1).cumsum(-1)  # [R, V]
    # A chance next to 1 must not come to stand behind the last word that has any share.
    goals = (chances * sums[:, -1]).minimum(sums[:, -1] * (1 - 1e-12))
    return torch.searchsorted(sums, goals[:, None], right=True)[:, 0]
