"""The search for translations. It knows ids and scores; it knows nothing of text."""

from s2s_cli.core.search.beam import beam_search
from s2s_cli.core.search.corpus import search_all, sentences_together
from s2s_cli.core.search.ensemble import Ensemble
from s2s_cli.core.search.forced import forced_scores
from s2s_cli.core.search.greedy import greedy_search
from s2s_cli.core.search.notes import Wanted
from s2s_cli.core.search.ranking import Hypothesis, Ranking
from s2s_cli.core.search.rules import Rules
from s2s_cli.core.search.sampling import sample_search
from s2s_cli.core.search.scorers import ModelScorer, Scorer, State
from s2s_cli.core.search.task import Task

__all__ = [
    "Ensemble",
    "Hypothesis",
    "ModelScorer",
    "Ranking",
    "Rules",
    "Scorer",
    "State",
    "Task",
    "Wanted",
    "beam_search",
    "forced_scores",
    "greedy_search",
    "sample_search",
    "search_all",
    "sentences_together",
]
