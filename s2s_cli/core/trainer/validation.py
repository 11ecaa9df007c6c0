"""What is measured on the validation pairs."""

import math

import numpy
import torch

from s2s_cli.core import metrics
from s2s_cli.core.batches import make_batch
from s2s_cli.core.device import autocast
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe import Recipe
from s2s_cli.core.recipe.schema import Selection
from s2s_cli.core.search import ModelScorer, search_all
from s2s_cli.core.tokenizer import Tokenizer
from s2s_cli.core.translator import first_word

BATCH = 64  # pairs measured together


@torch.inference_mode()
def perplexity(model: Seq2Seq, pairs: PackedPairs, recipe: Recipe) -> float:
    """exp(total negative log-likelihood / target words, EOS counted), teacher-forced.

    One quotient over the whole corpus, not a mean over batches.
    """
    total, words = 0.0, 0
    order = numpy.lexsort((pairs.target.lengths, pairs.source.lengths))
    for start in range(0, len(order), BATCH):
        batch = make_batch(
            pairs,
            order[start : start + BATCH],
            reverse=recipe.model.reverse_source,
            start=first_word(recipe),
        )
        with autocast(model.device, recipe.training.precision):
            total += float(model(batch.to(model.device)))
        words += batch.words
    # A model that knows nothing yet may exceed what exp can hold.
    return math.exp(min(total / words, 700.0))


def translations(
    model: Seq2Seq, sources: PackedText, tokenizer: Tokenizer, recipe: Recipe
) -> list[str]:
    """The sources, translated to text; blank for blank. `tokenizer` is the target's."""
    scorer = ModelScorer(
        model, reverse=recipe.model.reverse_source, precision=recipe.training.precision
    )
    places = [place for place in range(len(sources)) if len(sources[place])]
    found = search_all(
        scorer,
        [sources[place] for place in places],
        # What the model thinks best; no chance, nothing beside the words.
        recipe.search.model_copy(
            update={
                "beam_size": recipe.evaluation.beam_size,
                "sampling": None,
                "word_scores": False,
                "alignment": False,
                "unk": "keep" if recipe.search.unk == "replace" else recipe.search.unk,
            }
        ),
        first_word=first_word(recipe),
        log_probabilities=False,
    )
    texts = tokenizer.decode([best[0].words for best in found])
    lines = [""] * len(sources)
    for place, text in zip(places, texts, strict=True):
        lines[place] = text
    return lines


def scores(hypotheses: list[str], references: list[str], recipe: Recipe) -> dict[str, float]:
    """The recipe's `evaluation.metrics` by name."""
    names = recipe.evaluation.metrics
    if not names:
        return {}
    found = metrics.evaluate(hypotheses, [references], names)
    return {name: score.value for name, score in zip(names, found, strict=True)}


def is_better(new: dict[str, float], best: dict[str, float], select: Selection) -> bool:
    """Whether a model with the scores `new` is better than the best so far, at `select`."""
    if not best:
        return True
    if higher_is_better(select):
        return new[select] > best[select]
    return new[select] < best[select]


def higher_is_better(select: Selection) -> bool:
    """Whether a greater value of the measure is a better one."""
    return select != "perplexity" and metrics.higher_is_better(select)
