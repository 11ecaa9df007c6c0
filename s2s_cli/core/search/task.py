"""What every search over a batch is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from s2s_cli.core.search.notes import Noted, Wanted
from s2s_cli.core.search.ranking import Hypothesis, Ranking
from s2s_cli.core.search.rules import Rules


@dataclass(frozen=True)
class Task:
    """What a translation is, what it may be, and what is to be known of it.

    max_lengths: for each source the words of a translation at most, EOS not counted; first_word:
    what the decoder reads first; eos: what ends a translation; ranking: gives the scores; rules:
    what may follow, None: anything; wanted: what is written down beside the words.
    """

    max_lengths: Sequence[int]
    first_word: int
    eos: int
    ranking: Ranking = field(default_factory=Ranking)
    rules: Rules | None = None
    wanted: Wanted = field(default_factory=Wanted)

    def hypothesis(
        self, words: tuple[int, ...], log_probability: float, noted: Noted
    ) -> Hypothesis:
        """A finished translation, with its score."""
        score = self.ranking.score(log_probability, len(words) + 1, noted.coverage)
        return Hypothesis(words, log_probability, score, noted.word_scores, noted.attention)
