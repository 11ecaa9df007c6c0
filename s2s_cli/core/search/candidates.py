"""The best few of very many numbers, without sorting them.

The words of a row are cut into groups. The best C words stand in the C groups of the highest
maxima, and only these are looked through.

# R rows, V vocabulary, n sentences, k rows of a sentence, C candidates, Q groups looked through,
# G groups of a row, M words of a group
"""

import math

import torch
from torch import Tensor

from s2s_cli.core.search.rules import NEVER

# Words of a group lie so far apart: the maxima of so many groups are taken side by side. Words
# beyond the last whole round are groups of their own.
STRIDE = 128
# Rows that are looked at together on a CPU: a few MB, which stay in its cache.
SLICE = 128
LOG2_E = math.log2(math.e)


def survey(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima of the groups, [R, G], and the log of the sum of exponentials, [R] in float64."""
    if logits.device.type != "cpu":
        return group_maxima(logits), logits.logsumexp(-1).double()
    maxima, normalizers = [], []
    for first in range(0, len(logits), SLICE):
        part = logits[first : first + SLICE]
        maxima.append(group_maxima(part))
        # torch takes four times as long for exp as for exp2. The exponents are rounded: to some
        # 1e-7 of the largest logit.
        best = maxima[-1].amax(-1, keepdim=True)
        shifts = (best * LOG2_E).ceil_()
        sums = torch.add(-shifts, part, alpha=LOG2_E).exp2_().sum(-1, keepdim=True)
        # No word is likelier than certain.
        normalizers.append(((sums.double().log2() + shifts) / LOG2_E).maximum(best.double()))
    return torch.cat(maxima), torch.cat(normalizers).squeeze(1)


def likeliest(values: Tensor, maxima: Tensor) -> Tensor:
    """As `argmax` over the last dimension, but for ties: [R, V], and its groups' maxima -> [R]"""
    rows = torch.arange(len(values), device=values.device)
    found, words = _words_of_groups(values, rows, maxima.argmax(-1))
    return words.gather(1, found.argmax(-1, keepdim=True)).squeeze(1)


def best_words(
    values: Tensor, maxima: Tensor, scores: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of all words of all of a sentence's rows: (values, rows, words), each [n, C].

    Best first, and as many as there are, `count` at most. Rows are numbers from 0 to k - 1. The
    values found have the type of the scores.

    Args:
        values: [n * k, V].
        maxima: [n * k, G], of their groups.
        scores: [n, k], added to the values of their rows.
        count: C.
    """
    sentences, width = scores.shape
    groups = maxima.shape[1]
    # Against a sentence's best row, so that what is small beside a long sentence's score counts.
    against = (scores - scores.amax(1, keepdim=True)).view(-1, 1).to(maxima.dtype)
    ranked = (maxima + against).view(sentences, -1)
    places = ranked.topk(min(count, ranked.shape[1]), -1, sorted=False).indices
    parents = places // groups  # [n, C]
    first = torch.arange(0, len(values), width, device=values.device)[:, None]
    found, words = _words_of_groups(
        values, (first + parents).flatten(), (places % groups).flatten()
    )
    members = words.shape[1]
    found = (found.view(*parents.shape, members) + scores.gather(1, parents)[..., None]).flatten(1)
    best, places = found.topk(min(count, found.shape[1]), -1)
    return best, parents.gather(1, places // members), words.view(sentences, -1).gather(1, places)


def only_word(values: Tensor, rows: Tensor, word: int) -> Tensor:
    """`values` [R, V] with -inf for all words but one in the rows that are True in `rows`, [R]."""
    found = values.masked_fill(rows[:, None], NEVER)
    found[rows, word] = values[rows, word]
    return found


def group_maxima(values: Tensor) -> Tensor:
    """The largest number of each group, [R, G]."""
    rounds = values.shape[1] // STRIDE
    if rounds < 2:
        return values
    whole = values[:, : rounds * STRIDE].view(len(values), rounds, STRIDE)
    return torch.cat([whole.amax(1), values[:, rounds * STRIDE :]], 1)


def _words_of_groups(values: Tensor, rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers and the words of groups, [Q, M]; -inf where a group has no more words.

    rows, groups: [Q]
    """
    rounds = values.shape[1] // STRIDE
    if rounds < 2:
        return values[rows, groups][:, None], groups[:, None]
    places = torch.arange(rounds, device=values.device)
    groups = groups[:, None]
    alone = groups >= STRIDE
    words = torch.where(alone, groups + (rounds - 1) * STRIDE, groups + STRIDE * places)
    return values[rows[:, None], words].masked_fill(alone & (places > 0), NEVER), words
