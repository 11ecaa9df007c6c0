"""Which words may follow: prefixes, forbidden words, repeated n-grams, and how soon it may end.

# n sentences of the batch, R rows of the search, t words so far, V vocabulary, P longest prefix
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NEVER = float("-inf")
FREE = -1  # stands where no word is forced


class Rules:
    """What hypotheses may say next. It blocks words and changes no probability of the others."""

    def __init__(
        self,
        *,
        eos: int,
        least: Sequence[int],
        prefixes: Sequence[Sequence[int]] = (),
        forbidden: Sequence[int] = (),
        ngram: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """The rules for a batch.

        Args:
            eos: ends a translation.
            least: for each sentence the words of a translation at least, EOS not counted.
            prefixes: for each sentence the words that it begins with, or nothing for all; they
                are said whatever the other rules are.
            forbidden: words that are never said.
            ngram: no so many words in a row twice, those of the prefix counted; 0: no such rule.
            device: where logits are.
        """
        self._eos = eos
        self._least = torch.tensor(least, device=device)
        self._forbidden = torch.tensor(forbidden, dtype=torch.long, device=device)
        self._ngram = ngram
        longest = max(map(len, prefixes), default=0)
        self._longest = max(longest, *least)  # steps after which no length decides any more
        self._forced = torch.tensor(
            [[*words, *[FREE] * (longest - len(words))] for words in prefixes],
            dtype=torch.long,
            device=device,
        ).reshape(len(prefixes), longest)  # [n, P]

    def allowed(self, logits: Tensor, sentences: Tensor, history: Tensor) -> Tensor:
        """`logits` with -inf for what may not follow.

        Where the rules leave a row nothing at all to say, it may end.

        Args:
            logits: [R, V].
            sentences: [R], the sentence of each row.
            history: [R, t], what each row has said.
        """
        steps = history.shape[1]
        over = steps >= self._longest
        if over and not (len(self._forbidden) or self._ngram):
            return logits
        found = logits.index_fill(1, self._forbidden, NEVER)
        if 0 < self._ngram <= steps:
            self._block_repeats(found, history)
        found[self._least[sentences] > steps, self._eos] = NEVER
        stuck = found.amax(-1) == NEVER
        found[stuck, self._eos] = logits[stuck, self._eos]
        if steps < self._forced.shape[1]:
            forced = self._forced[sentences, steps]
            rows = (forced != FREE).nonzero()[:, 0]
            found[rows] = NEVER
            found[rows, forced[rows]] = logits[rows, forced[rows]]
        return found

    def _block_repeats(self, found: Tensor, history: Tensor) -> None:
        """Blocks what would complete an n-gram that a row has said before."""
        grams = history.unfold(1, self._ngram, 1)  # [R, places, n]
        last = history[:, history.shape[1] - self._ngram + 1 :]
        same = (grams[..., :-1] == last[:, None]).all(-1)
        rows, places = same.nonzero(as_tuple=True)
        found[rows, grams[rows, places, -1]] = NEVER
