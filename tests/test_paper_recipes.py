"""The recipes of papers: sizes, settings and schedules against the numbers that the papers give."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from s2s_cli.core.events import Progress
from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.prepared import prepare
from s2s_cli.core.recipe import Recipe, load, packaged, recipe_folder
from s2s_cli.core.recipe.schema import Curriculum, SharedTokenizer, TextFiles, TsvFile
from s2s_cli.core.schedule import learning_rate, truth_ratio
from s2s_cli.core.trainer import Trainer
from s2s_cli.core.translator import Translator

PAPERS = [name for name in packaged() if "/" in name]
SMALL = [name for name in PAPERS if "small" in name]
LARGE = [name for name in PAPERS if "small" not in name]

# A small sibling of each kind of network.
DISTINCT = [
    "sutskever2014/small",
    "cho2014/small",
    "bahdanau2015/rnnenc-small",
    "bahdanau2015/rnnsearch-small",
    "luong2015/small-base",
    "luong2015/small-global",
    "luong2015/small-feed",
    "luong2015/small-local-p",
    "bengio2015/small-inverse-sigmoid",
    "platanios2019/small-root-length",
    "vinyals2015/helpdesk-small",
    "vinyals2015/opensubtitles-small",
    "press2017/small-tied",
    "press2017/small-three-way",
    "rnmt-plus/small",
    "course-ko-en/small",
]


@cache
def shape(name: str) -> Seq2Seq:
    """A recipe's model without its numbers, for vocabularies as large as they may get."""
    recipe = load(name)
    source, target = recipe.tokenizer.sides
    with torch.device("meta"):
        return build(
            recipe.model,
            source_vocabulary=source.vocabulary,
            target_vocabulary=target.vocabulary,
        )


# --- sizes -----------------------------------------------------------------------------------


def lstm(inputs: int, hidden: int) -> int:
    """torch's: four gates, each of two matrices and two biases."""
    return 4 * hidden * (inputs + hidden + 2)


def gru(inputs: int, hidden: int) -> int:
    """Cho's and Bahdanau's: three gates, each of two matrices and a bias."""
    return 3 * hidden * (inputs + hidden + 1)


def normalised(inputs: int, hidden: int) -> int:
    """An LSTM with a scale and a shift for each number of a gate in place of biases."""
    return 4 * hidden * (inputs + hidden) + 2 * 4 * hidden


# Vectors of both sides + encoder + decoder + what joins them + softmax with a bias a word.
LUONG = 2 * 50_000 * 1000 + 4 * lstm(1000, 1000) + 4 * lstm(1000, 1000) + 50_000 * 1001
LUONG_GLOBAL = LUONG + 1000 * 51 + 2000 * 1000  # W_a for 50 words and </s>, W_c
LUONG_FEED = LUONG_GLOBAL + 4 * 1000 * 1000  # the first layer's gates read 1000 numbers more
PRESS_TABLE = 80_000 * 500
PRESS = (
    2 * gru(500, 1000)
    + gru(500 + 2000, 1000)
    + 1000 * 1000
    + (1000 * 1000 + 2000 * 1000 + 1000)
    + (1000 + 500 + 2000) * 2 * 500
    + 80_000
)
RNMT_PLUS = (
    2 * 32_000 * 1024
    + 2 * normalised(1024, 1024)
    + 5 * 2 * normalised(2048, 1024)
    + 8 * normalised(1024 + 2048, 1024)  # words or the layer below, and the context
    + (1024 * 1024 + 2048 * 1024 + 2048 * 2048 + 1024)  # query, keys, values, a v of 256 a head
    + 32_000 * (1024 + 2048 + 1)
)

SIZES = {
    # 160M + 80M of vectors, 64M of recurrent weights, 80M of softmax: "384M parameters".
    "sutskever2014/wmt14-en-fr": 160_000 * 1000
    + 80_000 * 1000
    + 2 * 4 * lstm(1000, 1000)
    + 80_000 * 1001,
    # Both matrices V of appendix A (context, first state); the maxout reads h, y and c.
    "cho2014/wmt14-en-fr": 2 * 15_000 * 100
    + gru(100, 1000)
    + gru(100 + 1000, 1000)
    + 1000 * 1000
    + 1000 * 1000
    + (1000 + 100 + 1000) * 2 * 500
    + 15_000 * 501,
    # W_s; W_a, U_a and v_a; U_o, V_o and C_o.
    "bahdanau2015/rnnsearch-50": 2 * 30_000 * 620
    + 2 * gru(620, 1000)
    + gru(620 + 2000, 1000)
    + 1000 * 1000
    + (1000 * 1000 + 1000 * 2000 + 1000)
    + (1000 + 620 + 2000) * 2 * 500
    + 30_000 * 501,
    "bahdanau2015/rnnenc-50": 2 * 30_000 * 620
    + gru(620, 1000)
    + gru(620 + 1000, 1000)
    + 1000 * 1000
    + (1000 + 620 + 1000) * 2 * 500
    + 30_000 * 501,
    "luong2015/wmt14-en-de-base": LUONG,
    "luong2015/wmt14-en-de-reverse": LUONG,
    "luong2015/wmt14-en-de-dropout": LUONG,
    "luong2015/wmt14-en-de-global": LUONG_GLOBAL,
    "luong2015/wmt14-en-de-feed": LUONG_FEED,
    # W_a of a general score in place of that of places; W_p and v_p.
    "luong2015/wmt14-en-de-local-p": LUONG_FEED - 1000 * 51 + 1000**2 + 1000**2 + 1000,
    "bengio2015/wmt14-en-de-inverse-sigmoid": 2 * 32_000 * 512
    + 2 * lstm(512, 512)
    + (2 * 512 * 512 + 512)
    + 1024 * 512
    + 32_000 * 513,
    "platanios2019/wmt14-en-de-plain": 2 * 32_000 * 512
    + 2 * 2 * lstm(512, 256)
    + 2 * lstm(512, 512)
    + 512 * 512
    + 1024 * 512
    + 32_000 * 513,
    "vinyals2015/helpdesk": 2 * 20_000 * 1024 + 2 * lstm(1024, 1024) + 20_000 * 1025,
    "vinyals2015/opensubtitles": 2 * 100_000 * 2048
    + 2 * (lstm(2048, 4096) + lstm(4096, 4096))
    + 4096 * 2048
    + 100_000 * 2049,
    "press2017/wmt14-en-fr-untied": 3 * PRESS_TABLE + PRESS,
    "press2017/wmt14-en-fr-tied": 2 * PRESS_TABLE + PRESS,
    "press2017/wmt14-en-fr-three-way": PRESS_TABLE + PRESS,
    "rnmt-plus/wmt14-en-de": RNMT_PLUS,
    "rnmt-plus/wmt14-en-fr": RNMT_PLUS,
    "course-ko-en/ai-hub": 2 * 20_000 * 256 + 2 * (lstm(256, 512) + lstm(512, 512)) + 20_000 * 513,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_papers_sizes(name: str) -> None:
    assert shape(name).parameter_count() == SIZES[name]


def test_sutskever_has_384_million_parameters() -> None:
    assert round(shape("sutskever2014/wmt14-en-fr").parameter_count() / 1e6) == 384


def test_three_way_tying_takes_more_than_half_away() -> None:
    untied, tied = (
        shape(f"press2017/wmt14-en-fr-{name}").parameter_count() for name in ("untied", "three-way")
    )
    assert tied < untied / 2


@pytest.mark.parametrize("name", PAPERS)
def test_model_can_be_built(name: str) -> None:
    recipe, model = load(name), shape(name)
    assert model.encoder.embedding.embedding_dim == recipe.model.encoder.embedding
    assert model.decoder.recurrent.hidden == recipe.model.decoder.hidden
    assert model.decoder.recurrent.layers == recipe.model.decoder.layers


@pytest.mark.parametrize("name", LARGE)
def test_what_differs_is_told(name: str) -> None:
    recipe = load(name)
    assert recipe.differs
    assert all(line.strip().endswith(".") for line in recipe.differs)
    assert "\n" not in recipe.about


# --- settings --------------------------------------------------------------------------------

SGD = {"optimizer.kind": "sgd", "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0}
ADADELTA = {
    "optimizer.kind": "adadelta",
    "optimizer.lr": 1.0,
    "optimizer.rho": 0.95,
    "optimizer.epsilon": 1e-6,
    "training.clip": 1.0,
    "model.initialization.kind": "normal",
    "model.initialization.std": 0.01,
    "model.initialization.recurrent": "orthogonal",
    "model.decoder.readout.kind": "maxout",
    "model.decoder.readout.size": 500,
    "model.decoder.readout.word": True,
}
RNNENC = {
    **ADADELTA,
    "batches.size": 80,
    "batches.pool": 20,
    "model.decoder.kind": "peeky",
    "model.decoder.context_to": "both",
    "model.decoder.bridge": "tanh",
    "model.decoder.readout.state": "previous",
    "model.encoder.bidirectional": False,
}
RNNSEARCH = {
    **ADADELTA,
    "batches.size": 80,
    "batches.pool": 20,
    "model.initialization.attention_std": 0.001,
    "model.encoder.cell": "gru-bahdanau",
    "model.encoder.bidirectional": True,
    "model.decoder.cell": "gru-bahdanau",
    "model.decoder.bridge": "first-backward",
    "model.decoder.query": "previous",
    "model.decoder.attention.kind": "additive",
    "model.decoder.attention.size": 1000,
    "model.decoder.readout.state": "previous",
}
SUTSKEVER = {
    **SGD,
    "optimizer.lr": 0.7,
    "batches.unit": "sentences",
    "batches.size": 128,
    "training.loss_per": "sentence",
    "training.clip": 5.0,
    "training.epochs": 7.5,
    "training.label_smoothing": 0.0,
    "model.initialization.kind": "uniform",
    "model.initialization.range": 0.08,
    "model.initialization.forget_bias": 0.0,
    "model.decoder.start": "eos",
    "model.decoder.bridge": "copy",
    "model.encoder.dropout": 0.0,
    "model.decoder.output_dropout": 0.0,
    "model.tie": "none",
    "search.beam_size": 12,
    "search.length_penalty": 0.0,
    "data.train.sample": 12_000_000,
}
LUONG_ALL = {
    **SGD,
    "optimizer.lr": 1.0,
    "batches.size": 128,
    "training.loss_per": "sentence",
    "training.clip": 5.0,
    "model.initialization.range": 0.1,
    "data.max_length": {"source": 50, "target": 50},
}
LUONG_DROPOUT = {
    **LUONG_ALL,
    "model.reverse_source": True,
    "training.epochs": 12.0,
    **{
        f"model.{side}": 0.2
        for side in (
            "encoder.dropout",
            "encoder.embedding_dropout",
            "decoder.dropout",
            "decoder.embedding_dropout",
            "decoder.output_dropout",
        )
    },
}
RNMT = {
    "optimizer.kind": "adam",
    "training.label_smoothing": 0.1,
    "model.encoder.bidirectional": True,
    "model.encoder.residual_from": 3,
    "model.decoder.residual_from": 3,
    "model.decoder.query": "bottom",
    "model.decoder.attention": {"kind": "multi-head", "size": 1024, "heads": 4},
    "model.decoder.readout.kind": "linear",
}

SETTINGS = {
    "sutskever2014/wmt14-en-fr": {**SUTSKEVER, "model.reverse_source": True},
    "sutskever2014/wmt14-en-fr-forward": {**SUTSKEVER, "model.reverse_source": False},
    **{
        f"sutskever2014/wmt14-en-fr-member-{number}": {
            **SUTSKEVER,
            "model.reverse_source": True,
            "training.seed": number,
        }
        for number in (2, 3, 4, 5)
    },
    "cho2014/wmt14-en-fr": {
        **ADADELTA,
        "batches.size": 64,
        "model.encoder.cell": "gru-cho",
        "model.decoder.cell": "gru-cho",
        "model.decoder.kind": "peeky",
        "model.decoder.context_to": "both",
        "model.decoder.context": "tanh",
        "model.decoder.bridge": "tanh",
        "model.decoder.readout.state": "current",
    },
    "bahdanau2015/rnnenc-30": {**RNNENC, "data.max_length": {"source": 30, "target": 30}},
    "bahdanau2015/rnnenc-50": {**RNNENC, "data.max_length": {"source": 50, "target": 50}},
    "bahdanau2015/rnnsearch-30": {**RNNSEARCH, "data.max_length": {"source": 30, "target": 30}},
    "bahdanau2015/rnnsearch-50": {**RNNSEARCH, "data.max_length": {"source": 50, "target": 50}},
    "luong2015/wmt14-en-de-base": {
        **LUONG_ALL,
        "model.reverse_source": False,
        "training.epochs": 10.0,
        "model.encoder.dropout": 0.0,
        "model.decoder.kind": "plain",
    },
    "luong2015/wmt14-en-de-reverse": {
        **LUONG_ALL,
        "model.reverse_source": True,
        "training.epochs": 10.0,
        "model.encoder.dropout": 0.0,
        "model.decoder.kind": "plain",
    },
    "luong2015/wmt14-en-de-dropout": {**LUONG_DROPOUT, "model.decoder.kind": "plain"},
    "luong2015/wmt14-en-de-global": {
        **LUONG_DROPOUT,
        "model.decoder.attention": {"kind": "location", "longest": 51},
        "model.decoder.query": "current",
        "model.decoder.input_feeding": False,
        "model.decoder.readout.kind": "tanh",
    },
    "luong2015/wmt14-en-de-feed": {
        **LUONG_DROPOUT,
        "model.decoder.attention.kind": "location",
        "model.decoder.input_feeding": True,
        "model.decoder.readout.kind": "tanh",
    },
    "luong2015/wmt14-en-de-local-p": {
        **LUONG_DROPOUT,
        "model.decoder.attention": {"kind": "general", "local_window": 10},
        "model.decoder.input_feeding": True,
        "model.decoder.readout.kind": "tanh",
    },
    "vinyals2015/helpdesk": {
        "optimizer.kind": "sgd",
        "model.decoder.kind": "plain",
        "training.clip": 5.0,
    },
    "vinyals2015/opensubtitles": {
        "optimizer.kind": "adagrad",
        "model.decoder.kind": "plain",
        "model.decoder.readout.kind": "linear",
    },
    "press2017/wmt14-en-fr-untied": {"model.tie": "none"},
    "press2017/wmt14-en-fr-tied": {"model.tie": "softmax"},
    "press2017/wmt14-en-fr-three-way": {"model.tie": "three-way"},
    "rnmt-plus/wmt14-en-de": {
        **RNMT,
        "model.encoder.dropout": 0.3,
        "batches": {"size": 16 * 128, "parts": 16},
        "optimizer.weight_decay": 1e-5,
    },
    "rnmt-plus/wmt14-en-fr": {
        **RNMT,
        "model.encoder.dropout": 0.2,
        "batches": {"size": 32 * 128, "parts": 32},
        "optimizer.weight_decay": 0.0,
    },
    "course-ko-en/ai-hub": {
        "tokenizer.kind": "separate",
        "optimizer.kind": "adam",
        "optimizer.lr": 0.001,
        "model.encoder.dropout": 0.5,
        "model.decoder.dropout": 0.5,
        "model.decoder.kind": "plain",
        "training.teacher_forcing.kind": "linear",
        "training.teacher_forcing.per": "epoch",
    },
}


def setting(recipe: Recipe, key: str) -> object:
    """The value of a dotted key; a table is a dictionary."""
    value: object = recipe.model_dump()
    for part in key.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_the_papers(name: str) -> None:
    recipe = load(name)
    for key, value in SETTINGS[name].items():
        found = setting(recipe, key)
        if isinstance(value, dict) and isinstance(found, dict):
            found = {inner: found[inner] for inner in value}
        assert found == value, key


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        (
            "sutskever2014/wmt14-en-fr",
            {
                0.0: 0.7,
                4.999: 0.7,
                5.0: 0.35,
                5.499: 0.35,
                5.5: 0.175,
                6.0: 0.0875,
                6.5: 0.04375,
                7.0: 0.021875,
                7.499: 0.021875,
            },
        ),
        (
            "luong2015/wmt14-en-de-reverse",
            {0.0: 1.0, 4.999: 1.0, 5.0: 1 / 2, 6.0: 1 / 4, 9.999: 1 / 32},
        ),
        (
            "luong2015/wmt14-en-de-local-p",
            {0.0: 1.0, 7.999: 1.0, 8.0: 1 / 2, 9.0: 1 / 4, 11.999: 1 / 16},
        ),
        ("bahdanau2015/rnnsearch-50", {0.0: 1.0, 4.999: 1.0}),
    ],
)
def test_rates_by_epoch(name: str, rates: dict[float, float]) -> None:
    recipe = load(name)
    for epoch, rate in rates.items():
        found = learning_rate(recipe.schedule, recipe.optimizer.lr, epoch)
        assert found == pytest.approx(rate, rel=1e-12), epoch


@pytest.mark.parametrize(
    ("name", "replicas", "start", "end"),
    [
        ("rnmt-plus/wmt14-en-de", 16, 400_000, 1_200_000),
        ("rnmt-plus/wmt14-en-fr", 32, 1_200_000, 3_600_000),
    ],
)
def test_rates_of_rnmt_plus(name: str, replicas: int, start: int, end: int) -> None:
    recipe = load(name)
    for update in range(0, end // replicas + 5000, 500):
        rise = 1 + update * (replicas - 1) / (replicas * 500)
        # From n down to a half, in a straight line of logarithms between start / n and end / n.
        done = (replicas * update - start) / (end - start)
        fall = replicas * (2 * replicas) ** -done
        expected = 1e-4 * max(min(rise, replicas, fall), 0.5)
        found = learning_rate(recipe.schedule, recipe.optimizer.lr, 0.0, update)
        assert found == pytest.approx(expected, rel=1e-9), update


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("bengio2015/wmt14-en-de-inverse-sigmoid", 10_000 * math.log(10_000)),
        ("bengio2015/wmt14-en-de-linear", 0.5 / 6e-6),
        ("bengio2015/wmt14-en-de-exponential", math.log(2) / -math.log(0.9999925)),
    ],
)
def test_true_words_fall_to_a_half_where_the_recipe_says(name: str, half: float) -> None:
    recipe = load(name)
    forcing = recipe.training.teacher_forcing
    assert truth_ratio(forcing, epoch=0.0, update=0) == pytest.approx(1.0, abs=1e-4)
    assert truth_ratio(forcing, epoch=0.0, update=round(half)) == pytest.approx(0.5, abs=1e-4)
    assert forcing.coin == "token"
    told = f"{round(half / 1000)},000"
    assert any(told in line for line in recipe.differs)


def test_course_gives_true_words_less_with_each_epoch() -> None:
    forcing = load("course-ko-en/ai-hub").training.teacher_forcing
    ratios = [truth_ratio(forcing, epoch=epoch, update=1) for epoch in (0.0, 0.9, 1.0, 2.5, 9.0)]
    assert ratios == pytest.approx([1.0, 1.0, 0.9, 0.8, 0.5])


def test_curricula_begin_with_a_hundredth() -> None:
    assert load("platanios2019/wmt14-en-de-plain").batches.curriculum is None
    for competence in ("root", "linear"):
        for difficulty in ("length", "rarity"):
            recipe = load(f"platanios2019/wmt14-en-de-{competence}-{difficulty}")
            assert recipe.batches.curriculum == Curriculum(
                difficulty=difficulty, competence=competence, start=0.01, updates=50_000
            )


@pytest.mark.parametrize(
    "family", ["sutskever2014/wmt14-en-fr", "sutskever2014/small"], ids=["paper", "small"]
)
def test_members_of_an_ensemble_share_text_and_vocabulary(family: str) -> None:
    members = [load(name) for name in PAPERS if name == family or f"{family}-member" in name]
    assert len(members) > 1
    first = members[0]
    for other in members[1:]:
        assert (other.data, other.tokenizer) == (first.data, first.tokenizer)
        assert (other.model, other.optimizer) == (first.model, first.optimizer)
    seeds = [member.training.seed for member in members]
    assert seeds == list(range(1, len(members) + 1))


def test_what_is_your_own_is_read_from_tsv() -> None:
    for name in ("vinyals2015/helpdesk", "vinyals2015/opensubtitles", "course-ko-en/ai-hub"):
        data = load(name).data
        assert isinstance(data.train, TsvFile)
        assert (data.train.source_column, data.train.target_column) == (1, 2)
        assert isinstance(data.validation, TsvFile)
        # It is another person's to pass on: nothing of it lies here.
        assert not Path(data.train.path).exists()


# --- small siblings --------------------------------------------------------------------------


def test_every_family_and_kind_of_network_has_a_small_sibling() -> None:
    assert set(DISTINCT) <= set(SMALL)
    families = {name.partition("/")[0] for name in PAPERS}
    assert families == {name.partition("/")[0] for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_small_siblings_need_only_what_is_shipped(name: str) -> None:
    recipe = load(name)
    shipped = (recipe_folder() / "data").resolve()
    for corpus in (recipe.data.train, recipe.data.validation):
        assert isinstance(corpus, TextFiles)
        for path in (Path(corpus.source).resolve(), Path(corpus.target).resolve()):
            assert path.is_file()
            assert path.is_relative_to(shipped)
    assert shape(name).parameter_count() < 5_000_000
    assert recipe.training.precision == "fp32"
    assert recipe.differs[0].startswith("A small sibling")


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("sutskever2014/small", "sutskever2014/wmt14-en-fr"),
        ("cho2014/small", "cho2014/wmt14-en-fr"),
        ("bahdanau2015/rnnenc-small", "bahdanau2015/rnnenc-50"),
        ("bahdanau2015/rnnsearch-small", "bahdanau2015/rnnsearch-50"),
        ("luong2015/small-base", "luong2015/wmt14-en-de-dropout"),
        ("luong2015/small-global", "luong2015/wmt14-en-de-global"),
        ("luong2015/small-feed", "luong2015/wmt14-en-de-feed"),
        ("luong2015/small-local-p", "luong2015/wmt14-en-de-local-p"),
        ("vinyals2015/opensubtitles-small", "vinyals2015/opensubtitles"),
        ("press2017/small-tied", "press2017/wmt14-en-fr-tied"),
        ("press2017/small-three-way", "press2017/wmt14-en-fr-three-way"),
        ("rnmt-plus/small", "rnmt-plus/wmt14-en-de"),
        ("course-ko-en/small", "course-ko-en/ai-hub"),
    ],
)
def test_small_siblings_have_the_same_kinds_of_parts(small: str, large: str) -> None:
    """Sizes apart, a small network is the paper's: what is chosen by name is the same."""
    chosen = [
        *("reverse_source", "tie", "encoder.cell", "encoder.bidirectional"),
        *("encoder.residual_from", "decoder.kind", "decoder.cell", "decoder.bridge"),
        *("decoder.start", "decoder.residual_from", "decoder.readout.kind"),
        *("decoder.readout.state", "decoder.readout.word"),
    ]
    ours, theirs = load(small), load(large)
    decoder = theirs.model.decoder.model_dump()
    only_some = ("query", "input_feeding", "context", "context_to")
    chosen += [f"decoder.{key}" for key in only_some if key in decoder]
    if "attention" in decoder:
        chosen.append("decoder.attention.kind")
    for key in chosen:
        assert setting(ours, f"model.{key}") == setting(theirs, f"model.{key}"), key


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_siblings_begin_to_learn(name: str, tmp_path: Path) -> None:
    vocabulary = "tokenizer.model.vocabulary=400"
    recipe = load(name)
    if not isinstance(recipe.tokenizer, SharedTokenizer):
        vocabulary = "tokenizer.source.vocabulary=1000"  # Korean has about that many letters
    changes = [
        *("training.max_updates=50", "training.log_every=1", "batches.size=8"),
        *("data.train.limit=1000", "data.validation.limit=10", "evaluation.beam_size=1"),
        vocabulary,
    ]
    recipe = load(name, changes)
    prepared = prepare(recipe, tmp_path / "prepared")
    trainer = Trainer(recipe, prepared, tmp_path / "run", torch.device("cpu"))
    losses = [event.loss for event in trainer.train() if isinstance(event, Progress)]
    assert len(losses) == 50
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])  # more than chance does
    translator = Translator.load(tmp_path / "run", device="cpu")
    lines = ["I am here.", "", "Where is my book?"]
    found = translator.translate(lines)
    assert len(found) == len(lines)
    assert found[1] == ""
