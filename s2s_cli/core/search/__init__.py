"""The search for translations. It knows ids and scores; it knows nothing of text."""

from s2s_cli.core.search.beam import Hypothesis, beam_search, greedy_search
from s2s_cli.core.search.corpus import search_all
from s2s_cli.core.search.scorers import Ensemble, ModelScorer, Scorer, State

__all__ = [
    "Ensemble",
    "Hypothesis",
    "ModelScorer",
    "Scorer",
    "State",
    "beam_search",
    "greedy_search",
    "search_all",
]
