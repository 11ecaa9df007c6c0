"""Every variant, and every pair of variants that the schema allows, learns to copy. `make slow`.

A covering array: few runs in which each allowed pair of variants meets at least once.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from s2s_cli.core.batches import make_batch
from s2s_cli.core.errors import RecipeError
from s2s_cli.core.events import Validated
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.prepared import Prepared, prepare
from s2s_cli.core.recipe import Recipe, parse
from s2s_cli.core.tokenizer import BOS
from s2s_cli.core.trainer import Trainer

MOST_RUNS = 40
STEPS = 200_000  # of the search for the runs, at most; it takes about a tenth of them
NOWHERE = Path("nowhere")
SYMBOLS, LONGEST = "abcd", 3

Choice = Mapping[str, str]
Change = dict[str, Any]


def both(**keys: Any) -> Change:
    return {
        f"{side}.{key}": value for side in ("encoder", "decoder") for key, value in keys.items()
    }


def attention(kind: str, **keys: Any) -> Change:
    return {"decoder.attention": {"kind": kind, **keys}}


# What can be chosen, and the keys below [model] (or elsewhere, from the root: `/table.key`).
FACTORS: dict[str, dict[str, Change]] = {
    "context": {
        "plain": {"decoder.kind": "plain"},
        "peeky": {"decoder.kind": "peeky"},
        "current": {"decoder.kind": "attention"},
        "feeding": {"decoder.kind": "attention", "decoder.input_feeding": True},
        "previous": {"decoder.kind": "attention", "decoder.query": "previous"},
        "bottom": {"decoder.kind": "attention", "decoder.query": "bottom"},
    },
    "bridge": {
        name: {"decoder.bridge": name} for name in ("copy", "last", "tanh", "linear", "zero")
    },
    "encoder cell": {
        name: {"encoder.cell": name}
        for name in ("lstm", "lstm-peephole", "lstm-layer-norm", "gru", "gru-cho", "tanh")
    },
    "decoder cell": {
        name: {"decoder.cell": name}
        for name in ("lstm", "lstm-peephole", "lstm-layer-norm", "gru", "gru-bahdanau", "tanh")
    },
    "score": {
        "none": {},
        "dot": attention("dot"),
        "general": attention("general"),
        "additive": attention("additive", size=32),
        "multi-head": attention("multi-head", size=32, heads=4),
        "location": attention("location", longest=5),
    },
    "readout": {
        "state": {"decoder.readout": {"kind": "linear"}},
        "linear": {"decoder.readout": {"kind": "linear", "size": 48}},
        "tanh": {"decoder.readout": {"kind": "tanh", "size": 48}},
        "maxout": {"decoder.readout": {"kind": "maxout", "size": 48}},
    },
    "readout's word": {"no": {}, "yes": {"decoder.readout.word": True}},
    "directions": {"one": {}, "both": {"encoder.bidirectional": True, "encoder.hidden": 24}},
    "layers": {
        "1": both(layers=1),
        "2": both(layers=2),
        "2, residual": both(layers=2, residual_from=2),
    },
    "reverse": {"no": {"reverse_source": False}, "yes": {"reverse_source": True}},
    "tie": {name: {"tie": name} for name in ("none", "softmax", "three-way")},
    "vectors": {"full": {}, "factored": both(embedding_rank=16)},
    "softmax": {
        "full": {},
        "adaptive": {"decoder.softmax": {"kind": "adaptive", "cutoffs": [5], "reduction": 2.0}},
    },
    "dropout": {
        "none": {},
        "each step": both(dropout=0.05, embedding_dropout=0.02),
        "variational": both(dropout=0.05, embedding_dropout=0.02, variational=True),
    },
    "start values": {
        "torch": {"initialization": {"kind": "torch"}},
        "uniform": {"initialization": {"kind": "uniform", "range": 0.15}},
        "normal": {"initialization": {"kind": "normal", "std": 0.15, "forget_bias": 1.0}},
        "xavier": {"initialization": {"kind": "xavier", "recurrent": "orthogonal"}},
    },
    "optimizer": {
        "sgd": {"/optimizer": {"kind": "sgd", "lr": 0.3, "momentum": 0.9}},
        "adagrad": {"/optimizer": {"kind": "adagrad", "lr": 0.05}},
        "adadelta": {"/optimizer": {"kind": "adadelta", "lr": 5.0}},
        "adam": {"/optimizer": {"kind": "adam", "lr": 0.005}},
    },
    "schedule": {
        "constant": {},
        "halving": {"/schedule": {"kind": "halving", "start": 400.0, "every": 100.0}},
        "plateau": {"/schedule": {"kind": "plateau", "wait": 6}},
        "inverse-sqrt": {"/schedule": {"kind": "inverse-sqrt", "warmup": 200}},
        "exponential": {
            "/schedule": {
                "kind": "exponential",
                "warmup": 50,
                "start": 800,
                "end": 2000,
                "last": 0.3,
            }
        },
    },
    "forcing": {
        "all": {},
        "linear": {"/training.teacher_forcing": {"kind": "linear", "fall": 0.0001, "least": 0.8}},
        "exponential": {
            "/training.teacher_forcing": {"kind": "exponential", "k": 0.9999, "coin": "sequence"}
        },
        "inverse sigmoid": {
            "/training.teacher_forcing": {
                "kind": "inverse-sigmoid",
                "k": 500.0,
                "coin": "batch",
                "own": "sample",
            }
        },
    },
    "curriculum": {
        "none": {},
        "length": {
            "/batches.curriculum": {"difficulty": "length", "competence": "root", "updates": 200}
        },
        "rarity": {
            "/batches.curriculum": {"difficulty": "rarity", "competence": "linear", "updates": 200}
        },
    },
    "smoothing": {"no": {}, "yes": {"/training.label_smoothing": 0.05}},
    "average": {"no": {}, "yes": {"/training.moving_average": 0.95}},
    "parts": {"1": {}, "3": {"/batches.parts": 3}},
}
# What makes no class of its own: (levels that it belongs to, keys). Each is in some run.
OPTIONS: dict[str, tuple[Choice, Change]] = {
    "context to the cell alone": ({"context": "peeky"}, {"decoder.context_to": "cell"}),
    "context to the readout alone": ({"context": "peeky"}, {"decoder.context_to": "readout"}),
    "context by tanh": ({"context": "peeky"}, {"decoder.context": "tanh"}),
    "local-p": ({}, {"decoder.attention.local_window": 3}),
    "concat": ({"score": "additive"}, attention("concat")),
    "coverage": ({"score": "additive"}, {"decoder.attention.coverage": True}),
    "backward alone": ({"bridge": "tanh"}, {"decoder.bridge": "first-backward"}),
    "state before": ({}, {"decoder.readout.state": "previous"}),
    "AdamW": ({"optimizer": "adam"}, {"/optimizer.kind": "adamw"}),
    "weight decay": ({}, {"/optimizer.weight_decay": 1e-5}),
    "another order": ({}, {"/training.order_seed": 5}),
}
NAMES = list(FACTORS)


def base(folder: Path) -> dict[str, Any]:
    return {
        "name": "variant",
        "data": {
            split: {
                "kind": "text",
                "source": str(folder / "all.text"),
                "target": str(folder / "all.text"),
            }
            for split in ("train", "validation")
        },
        "tokenizer": {"kind": "shared", "model": {"kind": "words", "vocabulary": 20}},
        "batches": {"size": 42},
        "model": {
            "encoder": {"embedding": 48, "hidden": 48},
            "decoder": {"embedding": 48, "hidden": 48},
        },
        "training": {"clip": 1.0, "loss_per": "word", "epochs": 1500.0, "validate_every": 50},
        "evaluation": {"metrics": ["exact"], "select": "exact"},
    }


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.removeprefix("/").split(".")
    for table in tables if key.startswith("/") else ["model", *tables]:
        raw = raw.setdefault(table, {})
    raw[last] = dict(value) if isinstance(value, dict) else value


def recipe_of(
    choice: Choice, folder: Path, options: Mapping[str, Change] | None = None
) -> Recipe | None:
    """The recipe of a choice and of options; None where the schema refuses it."""
    raw = base(folder)
    changes = [FACTORS[name][choice[name]] for name in NAMES] + list((options or {}).values())
    for change in changes:
        for key, value in change.items():
            put(raw, key, value)
    try:
        return parse(raw, "a variant")
    except RecipeError:
        return None


def pairs_of(choice: Choice) -> set[tuple[str, str]]:
    """All pairs of variants that meet in a choice; a cell counts the same on both sides."""
    variants = {
        f"{'cell' if name.endswith('cell') else name}: {level}" for name, level in choice.items()
    }
    return set(itertools.combinations(sorted(variants), 2))


ATTENDING = ("current", "feeding", "previous", "bottom")
CANDIDATES = 200


def drawn(generator: random.Random, fixed: Choice) -> dict[str, str]:
    """Random levels around `fixed`, a score where there is attention and none elsewhere."""
    choice = {name: generator.choice(list(levels)) for name, levels in FACTORS.items()} | fixed
    if "score" not in fixed:
        scores = list(FACTORS["score"])
        attends = choice["context"] in ATTENDING
        choice["score"] = generator.choice(scores[1:]) if attends else scores[0]
    elif "context" not in fixed:
        attends = fixed["score"] != "none"
        choice["context"] = generator.choice(ATTENDING if attends else ("plain", "peeky"))
    return choice


def is_allowed(choice: Choice) -> bool:
    attends = choice["context"] in ATTENDING
    return (choice["score"] != "none") == attends and recipe_of(choice, NOWHERE) is not None


def allowed(generator: random.Random, fixed: Choice, tries: int = 300) -> dict[str, str] | None:
    """A random choice with the levels of `fixed` that the schema allows."""
    choices = (drawn(generator, fixed) for _ in range(tries))
    return next((choice for choice in choices if is_allowed(choice)), None)


def rows() -> Iterator[Choice]:
    """Levels that the runs begin with: all pairs of three factors with many levels."""
    bridges, schedules = list(FACTORS["bridge"]), list(FACTORS["schedule"])
    contexts: list[Choice] = [{"score": score} for score in list(FACTORS["score"])[1:]]
    contexts += [{"context": "plain"}, {"context": "peeky"}]
    for row, context in enumerate(contexts):
        for column, bridge in enumerate(bridges):
            schedule = schedules[(row + column) % len(schedules)]
            yield {**context, "bridge": bridge, "schedule": schedule}


@cache
def pairs_allowed() -> dict[tuple[str, str], Choice]:
    """Every pair of variants that some choice allows, with the levels that make it."""
    generator = random.Random(3)
    levels = [(name, level) for name in NAMES for level in FACTORS[name]]
    found: dict[tuple[str, str], Choice] = {}
    for one, other in itertools.combinations(levels, 2):
        fixed = dict([one, other])
        if len(fixed) == 2 and allowed(generator, fixed):
            for pair in pairs_of(fixed):
                found.setdefault(pair, fixed)
    return found


def begun(generator: random.Random) -> list[dict[str, str]]:
    """Runs, each the one of many that brings the most pairs that no other has."""
    left = set(pairs_allowed())
    beginnings = list(rows())
    runs: list[dict[str, str]] = []
    while len(runs) < MOST_RUNS:
        fixed: Choice = beginnings.pop(0) if beginnings else {}
        if not allowed(generator, fixed):  # a plain decoder with a bridge of zeros
            continue
        best: dict[str, str] = {}
        gain = -1
        for _ in range(CANDIDATES):
            choice = allowed(generator, fixed, 20)
            if choice and (new := len(pairs_of(choice) & left)) > gain:
                best, gain = choice, new
        runs.append(best)
        left -= pairs_of(best)
    return runs


@cache
def covering_array() -> tuple[dict[str, str], ...]:
    """Runs in which each allowed pair of variants meets at least once, by simulated annealing."""
    generator = random.Random(5)
    runs = begun(generator)
    pairs = pairs_allowed()
    meets = Counter(pair for run in runs for pair in pairs_of(run))
    missing = {pair: None for pair in pairs if not meets[pair]}  # a set in a fixed order
    for step in range(STEPS):
        if not missing:
            break
        run = generator.randrange(MOST_RUNS)
        old = runs[run]
        if generator.random() < 0.7:
            wish = pairs[next(iter(missing))]
            new = repaired(generator, {**old, **wish}, wish)
        else:
            name = generator.choice(NAMES)
            new = {**old, name: generator.choice(list(FACTORS[name]))}
        lost = pairs_of(old) - pairs_of(new)
        won = pairs_of(new) - pairs_of(old)
        cost = sum(meets[pair] == 1 and pair in pairs for pair in lost) - sum(
            not meets[pair] and pair in pairs for pair in won
        )
        heat = max(0.12, 0.6 * (1 - step / 20_000))
        if cost > 0 and generator.random() >= math.exp(-cost / heat):
            continue
        if new == old or not is_allowed(new):
            continue
        runs[run] = new
        meets.subtract(lost)
        meets.update(won)
        missing |= {pair: None for pair in sorted(lost) if pair in pairs and not meets[pair]}
        for pair in won:
            missing.pop(pair, None)
    return tuple(runs)


def repaired(generator: random.Random, choice: Choice, fixed: Choice) -> dict[str, str]:
    """The choice with a score where there is attention and none elsewhere, around `fixed`."""
    new = dict(choice)
    attends = new["context"] in ATTENDING
    if attends == (new["score"] == "none"):
        if "score" in fixed:
            new["context"] = generator.choice(("plain", "peeky") if attends else ATTENDING)
        else:
            scores = list(FACTORS["score"])
            new["score"] = generator.choice(scores[1:]) if attends else scores[0]
    return new


# --- learning --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All strings of up to three symbols. That they can be learned is the question here."""
    folder = tmp_path_factory.mktemp("copy")
    strings = [
        " ".join(symbols)
        for length in range(1, LONGEST + 1)
        for symbols in itertools.product(SYMBOLS, repeat=length)
    ]
    (folder / "all.text").write_text("".join(f"{line}\n" for line in strings))
    return folder


@pytest.mark.slow
def test_the_runs_hold_every_pair() -> None:
    runs = covering_array()
    assert len(runs) <= MOST_RUNS
    assert all(is_allowed(run) for run in runs)
    met = set().union(*(pairs_of(run) for run in runs))
    assert not pairs_allowed().keys() - met
    for name, levels in FACTORS.items():
        assert {run[name] for run in runs} == set(levels)


def learned(recipe: Recipe, prepared: Prepared, folder: Path) -> tuple[float, Seq2Seq]:
    """The best share of strings copied exactly, training until nearly all are."""
    trainer = Trainer(recipe, prepared, folder, torch.device("cpu"))
    best = 0.0
    for event in trainer.train():
        if isinstance(event, Validated):
            best = max(best, event.scores["exact"])
            if best >= 99:
                break
    return best, trainer.model.eval()


def step_equals_whole(model: Seq2Seq, prepared: Prepared, recipe: Recipe) -> None:
    pairs = prepared.train
    batch = make_batch(
        pairs, numpy.arange(len(pairs)), reverse=recipe.model.reverse_source, start=BOS
    )
    with torch.no_grad():
        state = model.start(batch.source)
        whole = model.decoder.output(model.decoder(batch.inputs, state)[0])
        for words, expected in zip(batch.inputs, whole, strict=True):
            logits, state = model.step(words, state)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def with_options(choice: Choice, index: int, folder: Path) -> tuple[Recipe, set[str]]:
    """The recipe of a run with all options that the schema lets it have, and their names.

    Some exclude each other: each run begins with another one.
    """
    taken: dict[str, Change] = {}
    recipe = recipe_of(choice, folder)
    assert recipe is not None
    names = list(OPTIONS)
    for name in names[index % len(names) :] + names[: index % len(names)]:
        levels, change = OPTIONS[name]
        if any(choice[factor] != level for factor, level in levels.items()):
            continue
        if changed := recipe_of(choice, folder, {**taken, name: change}):
            taken[name] = change
            recipe = changed
    return recipe, set(taken)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(MOST_RUNS))
def test_variant_learns_to_copy(index: int, folder: Path, tmp_path: Path) -> None:
    choice = covering_array()[index]
    recipe, options = with_options(choice, index, folder)
    print({**choice, "options": options})
    prepared = prepare(recipe, folder / "prepared")
    best, model = learned(recipe, prepared, tmp_path / "run")
    assert best >= 99
    step_equals_whole(model, prepared, recipe)


@pytest.mark.slow
def test_every_option_is_in_some_run() -> None:
    runs = enumerate(covering_array())
    taken = set().union(*(with_options(run, index, NOWHERE)[1] for index, run in runs))
    assert taken == set(OPTIONS)
