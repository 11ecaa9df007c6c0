"""One path a row: the likeliest word at each step, or any other choice of a single one.

# R rows, V vocabulary, t words so far
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s2s_cli.core.prepared import PackedText
from s2s_cli.core.search.candidates import group_maxima, likeliest, survey
from s2s_cli.core.search.notes import Notes
from s2s_cli.core.search.ranking import Hypothesis
from s2s_cli.core.search.scorers import Scorer
from s2s_cli.core.search.task import Task

# From logits [R, V], blocked words at -inf, the maxima of their groups, the rows' numbers [R] and
# t: a word a row, [R].
Choice = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _likeliest(values: Tensor, maxima: Tensor, _rows: Tensor, _step: int) -> Tensor:
    return likeliest(values, maxima)


@torch.inference_mode()
def greedy_search(
    scorer: Scorer[Any],
    sources: PackedText,
    task: Task,
    *,
    choose: Choice = _likeliest,
    copies: int = 1,
) -> list[list[Hypothesis]]:
    """The likeliest word at each step: a list of one translation for each source.

    Where no log-probabilities are wanted, theirs are not numbers: a greedy search does without.

    Args:
        scorer: gives the next word's scores.
        sources: in the order of falling length.
        task: what to look for; its ranking decides nothing here.
        choose: takes a word a row; the rows of a source stand together.
        copies: translations of each source, in the order of its rows.
    """
    device = scorer.device
    eos, rules = task.eos, task.rules
    found: list[list[Hypothesis]] = [[] for _ in task.max_lengths]
    state = scorer.start(sources)
    rows = torch.arange(len(sources) * copies)
    if copies > 1:
        state = state.select((rows // copies).to(device))
    limits = torch.tensor(task.max_lengths).repeat_interleave(copies)
    notes = Notes(task.wanted, scorer, sources, copies)
    words = torch.full((len(rows),), task.first_word, device=device)
    history = torch.empty((len(rows), 0), dtype=torch.long)
    totals = torch.zeros(len(rows), dtype=torch.float64)
    nothing = torch.full((len(rows),), torch.nan, device=device)  # in a normaliser's place
    finished: list[tuple[int, Hypothesis]] = []
    while len(rows):
        logits, state = scorer.step(words, state)
        if task.wanted.log_probabilities:
            maxima, normalizers = survey(logits)
        else:
            maxima, normalizers = group_maxima(logits), nothing[: len(rows)]
        notes.read(logits, normalizers, state)
        steps = history.shape[1]
        allowed = logits
        if rules is not None:
            allowed = rules.allowed(logits, (rows // copies).to(device), history.to(device))
        if allowed is not logits:
            maxima = group_maxima(allowed)
        words = choose(allowed, maxima, rows, steps)
        words[(limits <= steps).to(device)] = eos
        totals += (logits.gather(1, words[:, None])[:, 0] - normalizers).cpu()
        chosen = words.cpu()
        ended = chosen == eos
        on = None
        if ended.any():
            on = (~ended).nonzero()[:, 0]
            for place in ended.nonzero()[:, 0].tolist():
                path = tuple(history[place].tolist())
                noted = notes.finished(place, eos)
                one = task.hypothesis(path, float(totals[place]), noted)
                finished.append((int(rows[place]), one))
            rows, limits, totals = rows[on], limits[on], totals[on]
            history, chosen = history[on], chosen[on]
            state, words = state.select(on.to(device)), words[on.to(device)]
        notes.select(on, words)
        history = torch.cat([history, chosen[:, None]], dim=1)
    for row, one in sorted(finished, key=lambda pair: pair[0]):
        found[row // copies].append(one)
    return found
