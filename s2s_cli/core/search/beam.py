"""Beam search over any scorer.

# n sentences still searched, K beam, k live hypotheses a sentence, t words so far
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from s2s_cli.core.prepared import PackedText
from s2s_cli.core.search.candidates import best_words, group_maxima, only_word, survey
from s2s_cli.core.search.notes import Notes
from s2s_cli.core.search.ranking import Hypothesis, Ranking
from s2s_cli.core.search.rules import NEVER
from s2s_cli.core.search.scorers import Scorer
from s2s_cli.core.search.task import Task


@torch.inference_mode()
def beam_search(
    scorer: Scorer[Any],
    sources: PackedText,
    task: Task,
    *,
    beam_size: int,
    n_best: int = 1,
) -> list[list[Hypothesis]]:
    """The best finished translations of each source, best first.

    Left to right over log-probabilities: a hypothesis that emits EOS leaves the beam for the
    finished ones (Sutskever et al. 2014, section 3.2). A sentence is done when no live hypothesis
    can still beat the n-th best finished one. That bound is exact: log-probabilities only fall, no
    divisor is larger than that of the longest translation, and a coverage is 0 at most.
    A hypothesis at its maximum length must end there.

    Args:
        scorer: gives the next word's scores.
        sources: in the order of falling length.
        task: what to look for.
        beam_size: hypotheses that stay alive after each step.
        n_best: translations wanted of each source, at most `beam_size`; fewer where the space of
            translations is smaller.
    """
    device = scorer.device
    eos, rules = task.eos, task.rules
    finished = Finished(task.ranking, len(sources), n_best)
    state = scorer.start(sources)
    notes = Notes(task.wanted, scorer, sources)
    sentences = list(range(len(sources)))
    limits = torch.tensor(task.max_lengths, device=device)
    wide = torch.float64  # because many small numbers are added
    caps = torch.tensor(
        [task.ranking.divisor(limit + 1) for limit in task.max_lengths], dtype=wide
    ).to(device)
    # The n-th best finished score so far.
    goals = torch.full((len(sentences),), NEVER, dtype=wide, device=device)
    # [n, k], one hypothesis at first.
    scores = torch.zeros((len(sentences), 1), dtype=wide, device=device)
    words = torch.full((len(sentences), 1), task.first_word, device=device)
    history = torch.empty((len(sentences), 1, 0), dtype=torch.long, device=device)  # [n, k, t]
    while sentences:
        logits, state = scorer.step(words.flatten(), state)
        maxima, normalizers = survey(logits)
        notes.read(logits, normalizers, state)
        width = scores.shape[1]
        allowed = logits
        if rules is not None:
            of = torch.tensor(sentences, device=device).repeat_interleave(width)
            allowed = rules.allowed(allowed, of, history.flatten(0, 1))
        must_end = (limits <= history.shape[2]).repeat_interleave(width)
        if must_end.any():
            allowed = only_word(allowed, must_end, eos)
        if allowed is not logits:
            maxima = group_maxima(allowed)
        so_far = scores - normalizers.view(scores.shape)
        values, parents, nexts = best_words(allowed, maxima, so_far, 2 * beam_size)
        # EOS among the best K ends a hypothesis; the best K others live on.
        ending = (nexts == eos) & (values > NEVER)
        ending[:, beam_size:] = False
        for row, parent, value in _listed(ending, parents, values):
            if finished.may_take(sentences[row], value, history.shape[2] + 1):
                path = tuple(history[row, parent].tolist())
                noted = notes.finished(row * width + parent, eos)
                found = task.hypothesis(path, value, noted)
                goals[row] = finished.take(sentences[row], found)
        scores, order = values.masked_fill(nexts == eos, NEVER).topk(
            min(beam_size, values.shape[1]), -1
        )
        parents, words = parents.gather(1, order), nexts.gather(1, order)
        live = scores[:, 0] / caps > goals
        rows = live.nonzero()[:, 0]
        if len(rows) < len(sentences):
            sentences = [sentences[row] for row in rows.tolist()]
            limits, caps, goals = limits[rows], caps[rows], goals[rows]
            scores, parents, words = scores[rows], parents[rows], words[rows]
        history = history[rows[:, None], parents]
        history = torch.cat([history, words[:, :, None]], dim=2)
        origins = (rows[:, None] * width + parents).flatten()
        state = state.select(origins)
        notes.select(origins, words.flatten())
    return finished.best


class Finished:
    """The best few finished translations of each sentence. best: best first."""

    def __init__(self, ranking: Ranking, sentences: int, count: int) -> None:
        self.best: list[list[Hypothesis]] = [[] for _ in range(sentences)]
        self._ranking = ranking
        self._count = count

    def may_take(self, sentence: int, log_probability: float, length: int) -> bool:
        """Whether one of so many words, EOS counted, might be among them."""
        best = self.best[sentence]
        most = self._ranking.score(log_probability, length, 0.0)  # no coverage is above 0
        return len(best) < self._count or most > best[-1].score

    def take(self, sentence: int, found: Hypothesis) -> float:
        """Takes it, if it is among them; the score that a better one has to exceed."""
        best = self.best[sentence]
        best.append(found)
        best.sort(key=lambda hypothesis: -hypothesis.score)
        del best[self._count :]
        return best[-1].score if len(best) == self._count else NEVER


def _listed(ending: Tensor, parents: Tensor, values: Tensor) -> Iterator[tuple[int, int, float]]:
    """(row, parent, value) of the candidates that are True in `ending`, all [n, C]."""
    rows, ranks = ending.nonzero(as_tuple=True)
    chosen = (parents[rows, ranks].tolist(), values[rows, ranks].tolist())
    return zip(rows.tolist(), *chosen, strict=True)
