"""Greedy and beam search over any scorer.

# n sentences still searched, K beam, k live hypotheses a sentence, C candidates, t words so far
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2s_cli.core.prepared import PackedText
from s2s_cli.core.search.scorers import Scorer

NEVER = float("-inf")


@dataclass(frozen=True)
class Hypothesis:
    """A finished translation.

    words: ids without EOS; log_probability: natural log, EOS included; score: what the search
    ranks by, the log-probability divided by the length penalty.
    """

    words: tuple[int, ...]
    log_probability: float
    score: float


def penalty(length: int, alpha: float) -> float:
    """GNMT's length penalty (Wu et al. 2016, equation 14). `length` counts EOS; alpha 0 is 1."""
    return float(((5 + length) / 6) ** alpha)


@torch.inference_mode()
def greedy_search(
    scorer: Scorer[Any],
    sources: PackedText,
    *,
    max_lengths: Sequence[int],
    first_word: int,
    eos: int,
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """The likeliest word at each step. Arguments and result as of `beam_search`, a list of one."""
    device = scorer.device
    found: list[list[Hypothesis]] = [[] for _ in max_lengths]
    state = scorer.start(sources)
    sentences = torch.arange(len(max_lengths))
    limits = torch.tensor(max_lengths)
    words = torch.full((len(max_lengths),), first_word, device=device)
    history = torch.empty((len(max_lengths), 0), dtype=torch.long)
    totals = torch.zeros(len(max_lengths))
    while len(sentences):
        logits, state = scorer.step(words, state)
        words = logits.argmax(-1)
        words[(limits <= history.shape[1]).to(device)] = eos
        gained = logits.gather(1, words[:, None])[:, 0] - logits.logsumexp(-1)
        totals = totals + gained.cpu()
        chosen = words.cpu()
        ended = chosen == eos
        if ended.any():
            for row in ended.nonzero()[:, 0].tolist():
                total = float(totals[row])
                score = total / penalty(history.shape[1] + 1, length_penalty)
                path = tuple(history[row].tolist())
                found[int(sentences[row])].append(Hypothesis(path, total, score))
            rows = (~ended).nonzero()[:, 0]
            sentences, limits, totals = sentences[rows], limits[rows], totals[rows]
            history, chosen = history[rows], chosen[rows]
            state, words = state.select(rows.to(device)), words[rows.to(device)]
        history = torch.cat([history, chosen[:, None]], dim=1)
    return found


@torch.inference_mode()
def beam_search(
    scorer: Scorer[Any],
    sources: PackedText,
    *,
    beam_size: int,
    max_lengths: Sequence[int],
    first_word: int,
    eos: int,
    n_best: int = 1,
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """The best finished translations of each source, best first.

    Left to right over log-probabilities: a hypothesis that emits EOS leaves the beam for the
    finished ones (Sutskever et al. 2014, section 3.2). A sentence is done when no live hypothesis
    can still beat the n-th best finished one; log-probabilities only fall, so the bound is exact.
    A hypothesis at its maximum length must end there.

    Args:
        scorer: gives the next word's scores.
        sources: in the order of falling length.
        beam_size: hypotheses that stay alive after each step.
        max_lengths: for each source the words of a translation at most, EOS not counted.
        first_word: what the decoder reads first.
        eos: ends a translation.
        n_best: translations wanted of each source, at most `beam_size`; fewer where the space of
            translations is smaller.
        length_penalty: GNMT's alpha.
    """
    device = scorer.device
    found: list[list[Hypothesis]] = [[] for _ in max_lengths]
    state = scorer.start(sources)
    sentences = list(range(len(max_lengths)))
    limits = torch.tensor(max_lengths, device=device)
    caps = torch.tensor([penalty(limit + 1, length_penalty) for limit in max_lengths]).to(device)
    goals = torch.full((len(sentences),), NEVER, device=device)  # n-th best finished score so far
    scores = torch.zeros((len(sentences), 1), device=device)  # [n, k], one hypothesis at first
    words = torch.full((len(sentences), 1), first_word, device=device)
    history = torch.empty((len(sentences), 1, 0), dtype=torch.long, device=device)  # [n, k, t]
    while sentences:
        logits, state = scorer.step(words.flatten(), state)
        width = scores.shape[1]
        must_end = limits <= history.shape[2]
        values, parents, nexts = _candidates(logits, scores, must_end, 2 * beam_size, eos)
        # EOS among the best K ends a hypothesis; the best K others live on.
        ending = (nexts == eos) & (values > NEVER)
        ending[:, beam_size:] = False
        if ending.any():
            length = history.shape[2] + 1
            for row, rank in ending.nonzero().tolist():
                value = float(values[row, rank])
                path = tuple(history[row, parents[row, rank]].tolist())
                best = found[sentences[row]]
                best.append(Hypothesis(path, value, value / penalty(length, length_penalty)))
                best.sort(key=lambda hypothesis: -hypothesis.score)
                del best[n_best:]
                if len(best) == n_best:
                    goals[row] = best[-1].score
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
        state = state.select((rows[:, None] * width + parents).flatten())
    return found


def _candidates(
    logits: Tensor, scores: Tensor, must_end: Tensor, count: int, eos: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(values, parents, words), each [n, C], best first: how each sentence's hypotheses may go on.

    The best `count` of a row's logits hold all that can be among the best of its sentence, so
    the log-softmax of the whole vocabulary is never written out.
    logits: [n * k, V]; scores: [n, k]; must_end: [n], whether only EOS may follow.
    """
    sentences = len(scores)
    normalizers = logits.logsumexp(-1, keepdim=True)
    if must_end.any():
        only_eos = torch.full_like(logits[:1], NEVER)
        only_eos[:, eos] = 0.0
        logits = torch.where(
            must_end.repeat_interleave(scores.shape[1])[:, None], logits + only_eos, logits
        )
    values, words = logits.topk(min(count, logits.shape[1]), -1)
    values = (values - normalizers + scores.flatten()[:, None]).view(sentences, -1)
    values, places = values.topk(min(count, values.shape[1]), -1)
    parents = places // words.shape[1]
    return values, parents, words.view(sentences, -1).gather(1, places)
