"""Options that make no sense together are refused by name; all others build a model that works."""

from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2s_cli.core.batches import Batch, make_batch
from s2s_cli.core.errors import RecipeError
from s2s_cli.core.model import Exposure, build
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe import Recipe, parse

Raw = dict[str, Any]

VOCABULARY = 12
CELLS = ["lstm", "gru", "tanh", "lstm-peephole", "lstm-layer-norm", "gru-cho", "gru-bahdanau"]
SIZES = st.sampled_from([4, 4, 4, 8, 6])  # mostly alike, so that many combinations are accepted
SHARES = st.sampled_from([0.0, 0.0, 0.3])


def a_recipe(**changes: Any) -> Raw:
    """A complete recipe of four numbers a layer; a key of `changes` is a path, `__` for a dot."""
    side = {"layers": 1, "embedding": 4, "hidden": 4}
    raw: Raw = {
        "name": "tiny",
        "data": {
            "train": {"kind": "text", "source": "a", "target": "b"},
            "validation": {"kind": "text", "source": "c", "target": "d"},
        },
        "tokenizer": {"kind": "shared", "model": {"kind": "words", "vocabulary": VOCABULARY}},
        "model": {"encoder": dict(side), "decoder": {"kind": "plain", **side}},
        "optimizer": {"kind": "sgd", "lr": 0.5},
    }
    for path, value in changes.items():
        *tables, key = path.split("__")
        table = raw
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value
    return raw


# --- any combination -------------------------------------------------------------------------


def options(**given: st.SearchStrategy[Any]) -> st.SearchStrategy[Raw]:
    """Tables that have each of these keys, or leave it out."""
    return st.fixed_dictionaries({}, optional=given)


def kinds(tables: dict[str, Raw]) -> st.SearchStrategy[Raw]:
    """A table of one of these kinds, with its keys drawn."""
    return st.one_of(
        st.fixed_dictionaries({"kind": st.just(kind), **keys}) for kind, keys in tables.items()
    )


SIDE = {
    "cell": st.sampled_from(CELLS),
    "layers": st.sampled_from([1, 2, 2]),
    "hidden": SIZES,
    "embedding": SIZES,
    "embedding_rank": st.sampled_from([0, 0, 0, 2]),
    "residual_from": st.sampled_from([0, 0, 1, 2, 3]),
    "dropout": SHARES,
    "embedding_dropout": SHARES,
    "variational": st.booleans(),
    "vectors": st.builds(lambda frozen: {"path": "vectors.txt", "frozen": frozen}, st.booleans()),
}
WINDOW = {"local_window": st.sampled_from([0, 1, 3])}
COVERED = {**WINDOW, "coverage": st.booleans()}
ATTENTION = kinds(
    {
        "dot": WINDOW,
        "general": WINDOW,
        "concat": COVERED,
        "additive": {"size": SIZES, **COVERED},
        "multi-head": {"size": SIZES, "heads": st.sampled_from([1, 2, 4, 3])},
        "location": {"longest": st.sampled_from([1, 3, 9])},
    }
)
READING = {"state": st.sampled_from(["current", "previous"]), "word": st.booleans()}
READOUT = kinds(
    {
        "linear": {"size": st.sampled_from([0, 0, 4, 5]), **READING},
        "tanh": {"size": st.sampled_from([4, 4, 5]), **READING},
        "maxout": {"size": st.sampled_from([4, 4, 5]), **READING},
    }
)
CUTOFFS = st.sampled_from([[5], [3, 8], [8, 3], [VOCABULARY - 1], [VOCABULARY], [4, 4]])
SOFTMAX = kinds(
    {"full": {}, "adaptive": {"cutoffs": CUTOFFS, "reduction": st.sampled_from([1.5, 2.0, 4.0])}}
)
WRITING = {
    **SIDE,
    "start": st.sampled_from(["bos", "eos"]),
    "bridge": st.sampled_from(["copy", "last", "tanh", "first-backward", "linear", "zero"]),
    "output_dropout": SHARES,
    "readout": READOUT,
    "softmax": SOFTMAX,
}
OWN = {
    "plain": {},
    "peeky": {
        "context_to": st.sampled_from(["cell", "readout", "both"]),
        "context": st.sampled_from(["state", "tanh"]),
    },
    "attention": {
        "attention": ATTENTION,
        "query": st.sampled_from(["current", "previous", "bottom"]),
        "input_feeding": st.booleans(),
    },
}
NEEDED = {"layers": 2, "hidden": 4, "embedding": 4}
DECODER = st.one_of(
    st.builds(
        lambda kind, keys, own: {**NEEDED, "kind": kind, **keys, **own},
        st.just(kind),
        options(**WRITING),
        st.fixed_dictionaries(own),
    )
    for kind, own in OWN.items()
)
ENCODER = st.builds(lambda keys: {**NEEDED, **keys}, options(bidirectional=st.booleans(), **SIDE))
MORE = options(
    recurrent=st.sampled_from(["same", "orthogonal"]), forget_bias=st.sampled_from([0.0, 1.0])
)
INITIALIZATION = st.builds(
    lambda kind, more: {**kind, **more},
    kinds(
        {
            "uniform": {"range": st.just(0.5)},
            "normal": {"std": st.just(0.5), "attention_std": st.sampled_from([0.0, 0.1])},
            "xavier": {},
            "torch": {},
        }
    ),
    MORE,
)
MODEL = st.fixed_dictionaries(
    {
        "encoder": ENCODER,
        "decoder": DECODER,
        "tie": st.sampled_from(["none", "none", "softmax", "three-way"]),
    },
    optional={"initialization": INITIALIZATION, "reverse_source": st.booleans()},
)


def a_batch() -> Batch:
    """Sentences of different lengths, one of them of no words."""
    pairs = PackedPairs(
        PackedText.pack([[5, 6, 7], [4, 5, 6, 7, 8], [9], []]),
        PackedText.pack([[4, 5], [9, 8, 7, 6], [11, 3, 3], [6]]),
    )
    return make_batch(pairs, numpy.arange(4), reverse=False, start=1)


def assert_it_works(recipe: Recipe) -> None:
    """A finite loss, of which every parameter knows; word by word the same as all at once."""
    torch.manual_seed(1)
    model = build(recipe.model, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY)
    batch = a_batch()
    for exposure in (None, Exposure(0.5, "token", "sample")):
        model.zero_grad(set_to_none=True)
        loss = model.train()(batch, exposure=exposure)
        assert loss.isfinite()
        assert loss > 0
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} is never used"
                assert parameter.grad.isfinite().all(), name
    model.eval()
    with torch.inference_mode():
        state = first = model.start(batch.source)
        features, _ = model.decoder(batch.inputs, first)
        whole = model.decoder.output(features)
        steps = []
        for words in batch.inputs:
            logits, state = model.step(words, state)
            steps.append(logits)
    torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
@given(table=MODEL)
def test_a_combination_is_refused_or_works(table: Raw) -> None:
    """Nothing in between: no error of torch, no parameter that nothing reads."""
    try:
        recipe = parse(a_recipe(model=table), "here")
    except RecipeError:
        return
    softmax = recipe.model.decoder.softmax
    if softmax.kind == "adaptive" and softmax.cutoffs[-1] >= VOCABULARY:
        with pytest.raises(RecipeError, match="below"):
            assert_it_works(recipe)
        return
    assert_it_works(recipe)


# --- one by one ------------------------------------------------------------------------------

BOTH = {"model__encoder__bidirectional": True}
ATTENDING = {
    "model__decoder__kind": "attention",
    "model__decoder__attention": {"kind": "general"},
}
FEEDING = {
    **ATTENDING,
    "model__decoder__input_feeding": True,
    "model__decoder__readout": {"kind": "tanh", "size": 4},
}
PREVIOUS = {"kind": "tanh", "size": 4, "state": "previous", "word": True}
ADAPTIVE = {"kind": "adaptive", "cutoffs": [5], "reduction": 2.0}
FALLING = {"kind": "exponential", "warmup": 2, "start": 4, "end": 8, "last": 0.1}
EASY_FIRST = {"difficulty": "length", "updates": 9}
FROZEN = {"path": "vectors.txt", "frozen": True}
SEPARATE = {
    "kind": "separate",
    "source": {"kind": "words", "vocabulary": VOCABULARY},
    "target": {"kind": "words", "vocabulary": VOCABULARY},
}

# What is wrong, the words that have to be told of it (keys, and what would work), and the change
# that mends it.
MISTAKES: dict[str, tuple[Raw, list[str], Raw]] = {
    "copy, two directions": (
        BOTH,
        ["model.encoder.bidirectional = true", "model.decoder.bridge = 'copy'", "tanh", "linear"],
        {"model__decoder__bridge": "linear"},
    ),
    "copy, other layers": (
        {"model__encoder__layers": 2},
        ["model.encoder.layers = 2", "model.decoder.layers = 1", "bridge = 'copy'", "linear"],
        {"model__decoder__layers": 2},
    ),
    "copy, other sizes": (
        {"model__encoder__hidden": 6},
        ["model.encoder.hidden = 6", "model.decoder.hidden = 4", "bridge = 'copy'", "tanh"],
        {"model__decoder__bridge": "tanh"},
    ),
    "last, other sizes": (
        {"model__encoder__hidden": 6, "model__decoder__bridge": "last"},
        ["model.encoder.hidden = 6 and", "model.decoder.hidden = 4", "bridge = 'last'", "linear"],
        {"model__decoder__hidden": 6},
    ),
    "last, two directions": (
        {**BOTH, "model__decoder__bridge": "last"},
        ["model.encoder.hidden = 4, twice as bidirectional,", "model.decoder.hidden = 4", "linear"],
        {"model__decoder__hidden": 8},
    ),
    "first-backward, one direction": (
        {"model__decoder__bridge": "first-backward", "model__decoder__kind": "peeky"},
        ["bridge = 'first-backward'", "model.encoder.bidirectional = false", "make it true"],
        BOTH,
    ),
    "first-backward, and no other view of the source": (
        {**BOTH, "model__decoder__bridge": "first-backward"},
        ["bridge = 'first-backward'", "model.decoder.kind = 'plain'", "tanh or linear"],
        {"model__decoder__kind": "peeky"},
    ),
    "a rise without a warm-up": (
        {"schedule": {"kind": "exponential", "first": 0.5, "start": 2, "end": 4, "last": 0.5}},
        ["schedule.first = 0.5", "schedule.warmup = 0", "first = 0.0"],
        {"schedule": {"kind": "exponential", "start": 2, "end": 4, "last": 0.5}},
    ),
    "cutoffs beyond the words": (
        {"model__decoder__softmax": {**ADAPTIVE, "cutoffs": [3, VOCABULARY]}},
        ["model.decoder.softmax.cutoffs = [3, 12]", "vocabulary = 12", "below"],
        {"model__decoder__softmax": {**ADAPTIVE, "cutoffs": [3, VOCABULARY - 1]}},
    ),
    "more parts than pairs": (
        {"batches": {"parts": 9, "size": 8}},
        ["batches.parts = 9", "batches.size = 8", "one a pair"],
        {"batches": {"parts": 8, "size": 8}},
    ),
    "a rank that is none": (
        {"model__encoder__embedding_rank": 4},
        ["model.encoder.embedding_rank = 4", "model.encoder.embedding = 4", "less, or 0"],
        {"model__encoder__embedding_rank": 3},
    ),
    "vectors for a model that has some": (
        {"model__encoder__vectors": {"path": "v"}, "training": {"start_from": "m"}},
        ["training.start_from", "model.encoder.vectors", "leave one of them out"],
        {"training": {}},
    ),
    "a coin a part": (
        {
            "batches": {"parts": 2},
            "training": {"teacher_forcing": {"kind": "constant", "ratio": 0.5, "coin": "batch"}},
        },
        ["batches.parts = 2", "training.teacher_forcing.coin = 'batch'", "parts = 1"],
        {"batches": {"parts": 1}},
    ),
    "the backward half of a mixture": (
        {
            **BOTH,
            "model__decoder__bridge": "first-backward",
            "model__decoder__kind": "peeky",
            "model__decoder__context": "tanh",
        },
        ["bridge = 'first-backward'", "model.decoder.context = 'tanh'", "context = 'state'"],
        {"model__decoder__context": "state"},
    ),
    "a forget bias without a forget gate": (
        {
            "model__encoder__cell": "gru",
            "model__decoder__cell": "gru",
            "model__initialization": {"kind": "torch", "forget_bias": 1.0},
        },
        ["forget_bias = 1", "model.encoder.cell = 'gru'", "model.decoder.cell = 'gru'", "0.0"],
        {"model__initialization": {"kind": "torch", "forget_bias": 0.0}},
    ),
    "a spread of no matrices": (
        {"model__initialization": {"kind": "normal", "std": 0.1, "attention_std": 0.001}},
        ["attention_std = 0.001", "model.decoder.attention.kind additive", "0.0"],
        {"model__initialization": {"kind": "normal", "std": 0.1}},
    ),
    "patience for nothing": (
        {"data__validation": None, "training": {"patience": 2}},
        ["training.patience = 2", "data.validation", "patience = 0"],
        {"training": {"patience": 0}},
    ),
    "the best of nothing": (
        {"data__validation": None, "training": {"keep_best": 2}},
        ["training.keep_best = 2", "data.validation", "keep_best = 0"],
        {"training": {"keep_best": 0}},
    ),
    "nothing of the source": (
        {"model__decoder__bridge": "zero"},
        ["bridge = 'zero'", "model.decoder.kind = 'plain'", "peeky or attention"],
        {"model__decoder__kind": "peeky"},
    ),
    **{
        f"{bridge}, a memory from none": (
            {"model__encoder__cell": "gru", "model__decoder__bridge": bridge},
            ["model.encoder.cell = 'gru'", "model.decoder.cell = 'lstm'", f"'{bridge}'", "tanh"],
            {"model__decoder__bridge": "tanh"},
        )
        for bridge in ("copy", "last", "linear")
    },
    "a memory for none": (
        {"model__encoder__cell": "lstm-peephole", "model__decoder__cell": "gru-cho"},
        ["model.encoder.cell = 'lstm-peephole'", "model.decoder.cell = 'gru-cho'", "tanh"],
        {"model__decoder__cell": "lstm-layer-norm"},
    ),
    **{
        f"residual above the last layer, {side}": (
            {f"model__{side}__residual_from": 2},
            [f"model.{side}.residual_from = 2", f"model.{side}.layers = 1"],
            {"model__encoder__layers": 2, "model__decoder__layers": 2},
        )
        for side in ("encoder", "decoder")
    },
    **{
        f"residual around other sizes, {side}": (
            {f"model__{side}__residual_from": 1, f"model__{side}__embedding": 6},
            [
                f"model.{side}.residual_from = 1",
                f"model.{side}.embedding = 6",
                f"model.{side}.hidden = 4",
                "start from 2",
            ],
            {f"model__{side}__embedding": 4},
        )
        for side in ("encoder", "decoder")
    },
    "residual around two directions": (
        {**BOTH, "model__decoder__bridge": "linear", "model__encoder__residual_from": 1},
        ["model.encoder.residual_from = 1", "vectors of 4 and outputs of 8"],
        {"model__encoder__embedding": 8},
    ),
    "previous state of a residual": (
        {"model__decoder__residual_from": 1, "model__decoder__readout": PREVIOUS},
        ["readout.state = 'previous'", "model.decoder.residual_from = 1", "residual_from = 0"],
        {"model__decoder__residual_from": 0},
    ),
    "previous state without a word": (
        {"model__decoder__readout": {"kind": "linear", "state": "previous"}},
        ["readout.state = 'previous'", "readout.word = false", "word = true"],
        {"model__decoder__readout": {"kind": "linear", "state": "previous", "word": True}},
    ),
    "cutoffs that fall": (
        {"model__decoder__softmax": {**ADAPTIVE, "cutoffs": [8, 3]}},
        ["model.decoder.softmax.cutoffs = [8, 3] should rise"],
        {"model__decoder__softmax": {**ADAPTIVE, "cutoffs": [3, 8]}},
    ),
    "cutoffs twice": (
        {"model__decoder__softmax": {**ADAPTIVE, "cutoffs": [3, 3]}},
        ["model.decoder.softmax.cutoffs = [3, 3] should rise"],
        {"model__decoder__softmax": ADAPTIVE},
    ),
    "a cluster of no features": (
        {"model__decoder__softmax": {**ADAPTIVE, "reduction": 4.5}},
        ["softmax.reduction = 4.5", "of the 4 features", "softmax.cutoffs", "smaller reduction"],
        {"model__decoder__softmax": {**ADAPTIVE, "reduction": 4.0}},
    ),
    "tied, other widths": (
        {"model__tie": "softmax", "model__decoder__embedding": 6},
        ["model.tie = 'softmax'", "model.decoder.embedding = 6", "reads 4", "size = 6"],
        {"model__decoder__readout": {"kind": "linear", "size": 6}},
    ),
    "tied, another readout": (
        {"model__tie": "softmax", "model__decoder__readout": {"kind": "tanh", "size": 5}},
        ["model.tie = 'softmax'", "model.decoder.embedding = 4", "(model.decoder.readout.size)"],
        {"model__decoder__readout": {"kind": "tanh", "size": 4}},
    ),
    "tied, with a context": (
        {**ATTENDING, "model__tie": "softmax"},
        ["model.tie = 'softmax'", "model.decoder.embedding = 4", "reads 8", "size = 4"],
        {"model__decoder__readout": {"kind": "linear", "size": 4}},
    ),
    "one table, other widths": (
        {"model__tie": "three-way", "model__encoder__embedding": 6},
        ["'three-way'", "model.encoder.embedding = 6", "model.decoder.embedding = 4", "equal"],
        {"model__encoder__embedding": 4},
    ),
    "tied and adaptive": (
        {"model__tie": "softmax", "model__decoder__softmax": ADAPTIVE},
        ["model.tie = 'softmax'", "model.decoder.softmax.kind = 'full'", "'adaptive'"],
        {"model__tie": "none"},
    ),
    "tied and of low rank": (
        {"model__tie": "softmax", "model__decoder__embedding_rank": 2},
        ["model.tie = 'softmax'", "model.decoder.embedding_rank = 2", "0 would work"],
        {"model__decoder__embedding_rank": 0},
    ),
    "one table of low rank": (
        {"model__tie": "three-way", "model__encoder__embedding_rank": 2},
        ["model.tie = 'three-way'", "model.encoder.embedding_rank = 2", "0 would work"],
        {"model__tie": "softmax"},
    ),
    "tied and frozen": (
        {"model__tie": "softmax", "model__decoder__vectors": FROZEN},
        ["model.tie = 'softmax'", "model.decoder.vectors.frozen = true", "frozen = false"],
        {"model__decoder__vectors": {"path": "vectors.txt"}},
    ),
    "one table, the encoder's vectors": (
        {"model__tie": "three-way", "model__encoder__vectors": {"path": "vectors.txt"}},
        ["model.tie = 'three-way'", "model.decoder.vectors; move them there"],
        {"model__tie": "softmax"},
    ),
    **{
        f"vectors of low rank, {side}": (
            {
                f"model__{side}__vectors": {"path": "vectors.txt"},
                f"model__{side}__embedding_rank": 2,
            },
            [f"model.{side}.vectors", f"model.{side}.embedding_rank = 2", "0 would work"],
            {f"model__{side}__embedding_rank": 0},
        )
        for side in ("encoder", "decoder")
    },
    "dot of other widths": (
        {
            **ATTENDING,
            **BOTH,
            "model__decoder__bridge": "linear",
            "model__decoder__attention": {"kind": "dot"},
        },
        ["attention.kind = 'dot'", "outputs of 8", "model.decoder.hidden = 4", "general"],
        {"model__decoder__attention": {"kind": "general"}},
    ),
    "heads that do not divide the sums": (
        {**ATTENDING, "model__decoder__attention": {"kind": "multi-head", "size": 6, "heads": 4}},
        ["model.decoder.attention.heads = 4 does not divide size = 6"],
        {"model__decoder__attention": {"kind": "multi-head", "size": 8, "heads": 4}},
    ),
    "heads that do not divide the outputs": (
        {**ATTENDING, "model__decoder__attention": {"kind": "multi-head", "size": 6, "heads": 3}},
        ["model.decoder.attention.heads = 3 does not divide the encoder's width = 4"],
        {"model__decoder__attention": {"kind": "multi-head", "size": 6, "heads": 2}},
    ),
    **{
        f"fed twice, {query}": (
            {**FEEDING, "model__decoder__query": query},
            ["model.decoder.input_feeding = true", f"query = '{query}'", "query = 'current'"],
            {"model__decoder__input_feeding": False},
        )
        for query in ("previous", "bottom")
    },
    "nothing to feed": (
        {**FEEDING, "model__decoder__readout": {"kind": "linear"}},
        ["model.decoder.input_feeding = true", "readout.kind = 'linear'", "tanh", "maxout"],
        {"model__decoder__readout": {"kind": "linear", "size": 4}},
    ),
    **{
        f"coverage of {kind} without a loop": (
            {**ATTENDING, "model__decoder__attention": {"kind": kind, "coverage": True, **size}},
            ["attention.coverage = true", "model.decoder.query = 'current'", "query = 'previous'"],
            {"model__decoder__query": "bottom"},
        )
        for kind, size in {"concat": {}, "additive": {"size": 5}}.items()
    },
    "a curriculum of tokens": (
        {"batches__unit": "tokens", "batches__curriculum": EASY_FIRST},
        ["batches.curriculum", "batches.unit = 'tokens'", "'sentences' would work"],
        {"batches__unit": "sentences"},
    ),
    "a fall before the warm-up's end": (
        {"schedule": {**FALLING, "warmup": 5}},
        ["schedule.warmup = 5", "schedule.start = 4", "schedule.end = 8", "warmup <= start < end"],
        {"schedule": {**FALLING, "warmup": 4}},
    ),
    "a fall of no updates": (
        {"schedule": {**FALLING, "end": 4}},
        ["schedule.start = 4", "schedule.end = 4", "warmup <= start < end"],
        {"schedule": {**FALLING, "end": 5}},
    ),
    "a plateau of nothing": (
        {"schedule": {"kind": "plateau"}, "data__validation": None},
        ["schedule.kind = 'plateau'", "data.validation", "another schedule"],
        {"data__validation": {"kind": "text", "source": "c", "target": "d"}},
    ),
    "selected, not measured": (
        {"evaluation": {"select": "ter"}},
        ["evaluation.select = 'ter'", "evaluation.metrics = ['bleu']", "perplexity"],
        {"evaluation": {"select": "ter", "metrics": ["bleu", "ter"]}},
    ),
    "one table for two vocabularies": (
        {"model__tie": "three-way", "tokenizer": SEPARATE},
        ["model.tie = 'three-way'", "tokenizer.kind = 'separate'", "tie = 'softmax'"],
        {"model__tie": "softmax"},
    ),
    "smooth and adaptive": (
        {"training__label_smoothing": 0.1, "model__decoder__softmax": ADAPTIVE},
        ["training.label_smoothing", "softmax.kind = 'adaptive'", "softmax.kind = 'full'"],
        {"training__label_smoothing": 0.0},
    ),
    "truth that rises": (
        {"training__teacher_forcing": {"kind": "linear", "fall": 0.1, "first": 0.5, "least": 0.6}},
        ["teacher_forcing.first = 0.5", "teacher_forcing.least = 0.6", "least <= first"],
        {"training__teacher_forcing": {"kind": "linear", "fall": 0.1, "first": 0.5, "least": 0.5}},
    ),
}


def told(raw: Raw) -> list[str]:
    """The lines of a recipe's mistakes, whose number the headline has to know."""
    with pytest.raises(RecipeError) as caught:
        parse(raw, "here")
    first, *lines = str(caught.value).splitlines()
    count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    assert first == f"{count} in recipe here:"
    return lines


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_both_keys_and_what_would_work(name: str) -> None:
    changes, words, mended = MISTAKES[name]
    (line,) = told(a_recipe(**changes))
    for word in words:
        assert word in line
    parse(a_recipe(**{**changes, **mended}), "here")


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        (
            {
                **BOTH,
                "model__tie": "three-way",
                "model__encoder__embedding": 6,
                "model__decoder__embedding_rank": 2,
            },
            [
                "model.encoder.bidirectional",
                "model.encoder.embedding",
                "model.decoder.embedding_rank",
            ],
        ),
        (
            {"model__encoder__cell": "gru", "schedule": {**FALLING, "end": 1}, "batches__size": 0},
            ["model.encoder.cell", "schedule.end", "batches.size"],
        ),
        (
            {
                "model__tie": "three-way",
                "tokenizer": SEPARATE,
                "schedule": {"kind": "plateau"},
                "data__validation": None,
            },
            ["tokenizer.kind", "data.validation"],
        ),
    ],
)
def test_several_mistakes_are_told_at_once(changes: Raw, paths: list[str]) -> None:
    lines = told(a_recipe(**changes))
    assert len(lines) == len(paths)
    for path in paths:
        assert sum(path in line for line in lines) == 1, path


@pytest.mark.parametrize(
    ("changes", "key", "kinds"),
    [
        (
            {"model__decoder__attention": {"kind": "dot", "local_window": 2}},
            "attention",
            "attention",
        ),
        ({"model__decoder__query": "previous"}, "query", "attention"),
        ({"model__decoder__input_feeding": True}, "input_feeding", "attention"),
        ({"model__decoder__context_to": "cell"}, "context_to", "peeky"),
        (
            {**ATTENDING, "model__decoder__attention": {"kind": "dot", "coverage": True}},
            "attention.coverage",
            "concat, additive",
        ),
        (
            {**ATTENDING, "model__decoder__attention": {"kind": "location", "local_window": 2}},
            "attention.local_window",
            "dot, general, concat, additive",
        ),
        (
            {"model__decoder__softmax": {"kind": "full", "cutoffs": [3]}},
            "softmax.cutoffs",
            "adaptive",
        ),
    ],
)
def test_another_kind_s_key_is_told_as_such(changes: Raw, key: str, kinds: str) -> None:
    lines = told(a_recipe(**changes))
    (line,) = [line for line in lines if f"model.decoder.{key}" in line]
    assert f"only kind {kinds}" in line


def test_a_cutoff_beyond_the_vocabulary_is_told_where_that_is_known() -> None:
    """The text may give fewer words than the recipe asks for."""
    recipe = parse(a_recipe(model__decoder__softmax={**ADAPTIVE, "cutoffs": [3, 11]}), "here")
    with pytest.raises(RecipeError, match=r"softmax.cutoffs = \[3, 11\].*11 entries"):
        build(recipe.model, source_vocabulary=99, target_vocabulary=11)
    build(recipe.model, source_vocabulary=99, target_vocabulary=12)
