"""What a search finds, and by which score it ranks what it has found."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A finished translation.

    words: ids without EOS; log_probability: natural log, EOS included, by the whole of the model's
    distribution, whatever the search forbade; score: what the search ranks by. Where they were
    asked for: word_scores, [T + 1], the natural log of each word and of EOS; attention,
    [T + 1, S + 1], what each of them attended to of the S source words in their natural order and
    the source's EOS.
    """

    words: tuple[int, ...]
    log_probability: float
    score: float
    word_scores: tuple[float, ...] | None = None
    attention: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Ranking:
    """The score of a finished translation (Wu et al. 2016, equation 14).

    log-probability / divisor + beta * coverage, where the coverage is a sum of logs, 0 at most.
    With `average` the divisor is the number of words, EOS counted; else GNMT's length penalty.
    Only what is finished is ranked so; live hypotheses of one length compete by log-probability.
    """

    length_penalty: float = 0.0
    average: bool = False
    coverage_penalty: float = 0.0

    def divisor(self, length: int) -> float:
        """What divides the log-probability of `length` words, EOS counted; it never falls.

        GNMT's is 1 where its alpha is 0.
        """
        if self.average:
            return float(length)
        return float(((5 + length) / 6) ** self.length_penalty)

    def score(self, log_probability: float, length: int, coverage: float) -> float:
        """The score of a translation of `length` words, EOS counted."""
        return log_probability / self.divisor(length) + self.coverage_penalty * coverage
