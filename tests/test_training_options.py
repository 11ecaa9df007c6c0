"""What a recipe may ask of training beyond the paper's loop: each option against its arithmetic."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import NO_DROPOUT
from torch import Tensor

from s2s_cli.core import checkpoint
from s2s_cli.core.batches import Batch, BatchPlan, make_batch
from s2s_cli.core.checkpoint import KEPT, load_model, load_tensors
from s2s_cli.core.errors import DataError, DeviceError, ModelError, RecipeError, S2SError
from s2s_cli.core.events import Event, Progress, Started, Validated
from s2s_cli.core.model import Exposure, Seq2Seq
from s2s_cli.core.prepared import Prepared, prepare
from s2s_cli.core.recipe import load
from s2s_cli.core.tokenizer import EOS
from s2s_cli.core.trainer import Trainer, feed, validation
from s2s_cli.core.trainer.start import check_start, load_start, other_tokenizers

CPU = torch.device("cpu")
UPDATES = 8  # an epoch of the tiny corpus
EACH = ["training.log_every=1"]

Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def start(recipe_file: Path, prepared: Prepared, tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a trainer of the tiny recipe, changed, in a folder of that name.

    Nothing is translated in validation, which takes longer than all the rest.
    """

    def made(changes: Sequence[str], folder: str = "run") -> Trainer:
        recipe = load(str(recipe_file), ["evaluation.metrics=[]", *changes])
        return Trainer(recipe, prepared, tmp_path / folder, CPU)

    return made


Start = Callable[..., Trainer]


def weights_of(model: Seq2Seq) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def of_type(events: Sequence[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def updates_of(trainer: Trainer) -> Iterator[tuple[Progress, Weights, Weights]]:
    """After each update: what was told, the gradient that was stepped along, and the weights."""
    for event in trainer.train():
        if isinstance(event, Progress):
            named = trainer.model.named_parameters()
            gradient = {name: each.grad.clone() for name, each in named if each.grad is not None}
            yield event, gradient, weights_of(trainer.model)


def assert_close(found: Weights, expected: Weights, rtol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor.double(), expected[name].double(), rtol=rtol, atol=rtol / 100, msg=name
        )


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def saved_model(trainer: Trainer, name: str = checkpoint.LAST) -> Weights:
    return weights_of(load_model(trainer.folder / name, CPU).model)


# --- update rules ----------------------------------------------------------------------------
# Each as its paper has it, with torch's place of the small number: from gradient, weight, what is
# remembered and the number of the update to the new weight.

Memory = dict[str, Tensor]


def momentum(g: Tensor, w: Tensor, memory: Memory, _: int) -> Tensor:
    g = g + 0.01 * w
    memory["b"] = 0.9 * memory["b"] + g if "b" in memory else g
    return w - 0.1 * memory["b"]


def adagrad(g: Tensor, w: Tensor, memory: Memory, _: int) -> Tensor:
    """Duchi et al. 2011."""
    g = g + 0.01 * w
    memory["sum"] = memory.get("sum", torch.full_like(g, 0.1)) + g**2
    return w - 0.05 * g / (memory["sum"].sqrt() + 1e-6)


def adadelta(g: Tensor, w: Tensor, memory: Memory, _: int) -> Tensor:
    """Zeiler 2012, algorithm 1."""
    g = g + 0.01 * w
    zero = torch.zeros_like(g)
    memory["g2"] = 0.9 * memory.get("g2", zero) + 0.1 * g**2
    step = (memory.get("x2", zero) + 1e-5).sqrt() / (memory["g2"] + 1e-5).sqrt() * g
    memory["x2"] = 0.9 * memory.get("x2", zero) + 0.1 * step**2
    return w - 0.8 * step


def adam_step(g: Tensor, memory: Memory, number: int) -> Tensor:
    """Kingma & Ba 2015, algorithm 1."""
    zero = torch.zeros_like(g)
    memory["m"] = 0.8 * memory.get("m", zero) + 0.2 * g
    memory["v"] = 0.95 * memory.get("v", zero) + 0.05 * g**2
    mean, square = memory["m"] / (1 - 0.8**number), memory["v"] / (1 - 0.95**number)
    return 0.02 * mean / (square.sqrt() + 1e-5)


def adam(g: Tensor, w: Tensor, memory: Memory, number: int) -> Tensor:
    return w - adam_step(g + 0.01 * w, memory, number)


def adamw(g: Tensor, w: Tensor, memory: Memory, number: int) -> Tensor:
    """Loshchilov & Hutter 2019: the weights decay apart from the gradient."""
    return w - 0.02 * 0.01 * w - adam_step(g, memory, number)


ADAM = "lr=0.02, beta1=0.8, beta2=0.95, epsilon=1e-5, weight_decay=0.01}"
RULES = {
    'kind="sgd", lr=0.1, momentum=0.9, weight_decay=0.01}': momentum,
    'kind="adagrad", lr=0.05, initial=0.1, epsilon=1e-6, weight_decay=0.01}': adagrad,
    'kind="adadelta", lr=0.8, rho=0.9, epsilon=1e-5, weight_decay=0.01}': adadelta,
    f'kind="adam", {ADAM}': adam,
    f'kind="adamw", {ADAM}': adamw,
}


@pytest.mark.parametrize("keys", RULES, ids=[rule.__name__ for rule in RULES.values()])
def test_an_update_follows_its_rule(start: Start, keys: str) -> None:
    trainer = start([*EACH, f"optimizer={{{keys}", "training.max_updates=4"])
    weights = weights_of(trainer.model)
    memories: dict[str, Memory] = {name: {} for name in weights}
    for event, gradient, found in updates_of(trainer):
        expected = {
            name: RULES[keys](
                gradient[name].double(), weight.double(), memories[name], event.update
            )
            for name, weight in weights.items()
        }
        assert_close(found, expected)
        assert all((found[name] - weights[name]).abs().max() > 1e-5 for name in found)
        weights = found
    assert event.update == 4


@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        (
            '{kind="inverse-sqrt", warmup=4}',
            lambda done: min((done + 1) / 4, (4 / (done + 1)) ** 0.5),
        ),
        (
            '{kind="exponential", warmup=2, first=0.5, start=4, end=8, last=0.1}',
            lambda done: 0.5 + done / 4 if done < 2 else 0.1 ** min(max((done - 4) / 4, 0), 1),
        ),
    ],
)
def test_the_rate_follows_the_updates_done(
    start: Start, schedule: str, rate: Callable[[int], float]
) -> None:
    trainer = start([*EACH, f"schedule={schedule}", "training.max_updates=11"])
    rates = [event.learning_rate for event, *_ in updates_of(trainer)]
    assert rates == pytest.approx([0.7 * rate(done) for done in range(11)], rel=1e-12)


def test_a_plateau_counts_validations_without_a_better_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [5.0, 6.0, 6.0, 6.0, 6.0, 4.0, 5.0, 5.0, 5.0]
    stalled = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]  # before each update
    script = iter(values)
    monkeypatch.setattr(validation, "perplexity", lambda *_: next(script))
    trainer = start(
        [
            *EACH,
            'schedule={kind="plateau", factor=0.3, wait=2}',
            "training.validate_every=1",
            "training.max_updates=9",
        ]
    )
    rates = [event.learning_rate for event, *_ in updates_of(trainer)]
    assert rates == pytest.approx([0.7 * 0.3**count for count in stalled[:9]], rel=1e-12)
    assert trainer.place.stalled == stalled[9]


# --- the loss --------------------------------------------------------------------------------


def test_smoothing_is_of_training_alone(start: Start, prepared: Prepared) -> None:
    """(1 - s) times the loss, and s times the mean over all words; no word of it in validation."""
    still = [*EACH, *NO_DROPOUT, "optimizer.lr=1e-30", "training.max_updates=1"]
    plain = start([*still], "plain")
    smooth = start([*still, "training.label_smoothing=0.3"], "smooth")
    (rows, *_) = BatchPlan(prepared.train, "sentences", 8, 3, 1).epoch(0)
    batch = make_batch(prepared.train, rows, reverse=True, start=EOS)
    with torch.no_grad():
        state = smooth.model.start(batch.source)
        features, _ = smooth.model.decoder(batch.inputs, state)
        gained = smooth.model.decoder.output(features).log_softmax(-1).flatten(0, 1)[batch.places]
    right = -gained.gather(1, batch.targets[:, None]).mean()
    anything = -gained.mean(1).mean()
    events = list(smooth.train())
    (progress,), (validated,) = of_type(events, Progress), of_type(events, Validated)
    expected = float(0.7 * right + 0.3 * anything)
    assert progress.loss == pytest.approx(expected, rel=1e-5)
    assert abs(expected - float(right)) > 1e-3
    (without,) = of_type(list(plain.train()), Validated)
    assert validated.perplexity == without.perplexity


@pytest.mark.parametrize("loss_per", ["sentence", "word"])
@pytest.mark.parametrize(
    ("unit", "most"),
    [(["batches.size=8"], 8), (["batches.unit=tokens", "batches.size=40"], 100)],
)
def test_a_batch_in_parts_is_the_same_update(
    start: Start, loss_per: str, unit: list[str], most: int
) -> None:
    """Also where a batch has fewer pairs than there should be parts."""
    common = [
        *EACH,
        *NO_DROPOUT,
        *unit,
        f"training.loss_per={loss_per}",
        "training.epochs=1.0",
        "model.initialization.range=0.3",
        "training.clip=1.0",
    ]
    whole = list(updates_of(start(common, "whole")))
    for parts in (3, most):
        found = list(updates_of(start([*common, f"batches.parts={parts}"], str(parts))))
        assert len(found) == len(whole) >= UPDATES
        assert_close(found[-1][2], whole[-1][2], rtol=1e-4)
        for (one, *_), (other, *_) in zip(found, whole, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
            assert one.norm == pytest.approx(other.norm, rel=1e-4)


def exposures(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[Exposure | None]:
    """What the model is shown at each update."""
    seen = []
    forward = Seq2Seq.forward

    def spy(self: Seq2Seq, batch: Batch, **options: Any) -> Tensor:
        if self.training:
            seen.append(options["exposure"])
        return forward(self, batch, **options)

    monkeypatch.setattr(Seq2Seq, "forward", spy)
    list(trainer.train())
    return seen


@pytest.mark.parametrize(
    ("forcing", "ratio"),
    [
        ('kind="linear", fall=0.2, least=0.3', lambda i: max(0.3, 1 - 0.2 * i)),
        ('kind="linear", fall=0.2, per="epoch"', lambda i: 1 - 0.2 * (i // UPDATES)),
        ('kind="exponential", k=0.5', lambda i: 0.5**i),
        ('kind="inverse-sigmoid", k=2.0', lambda i: 2 / (2 + math.exp(i / 2))),
        ('kind="constant", ratio=0.25', lambda _: 0.25),
        ('kind="constant"', lambda _: 1.0),
    ],
)
def test_how_much_truth_the_decoder_is_shown(
    start: Start, monkeypatch: pytest.MonkeyPatch, forcing: str, ratio: Callable[[int], float]
) -> None:
    keys = f'training.teacher_forcing={{{forcing}, coin="sequence", own="sample"}}'
    seen = exposures(start([keys, "training.epochs=2.5"]), monkeypatch)
    assert len(seen) == 20
    for update, exposure in enumerate(seen):
        expected = ratio(update)
        if expected == 1.0:
            assert exposure is None  # all words at once
        else:
            assert exposure == Exposure(pytest.approx(expected, rel=1e-9), "sequence", "sample")


def test_fp16_needs_another_device(start: Start) -> None:
    with pytest.raises(DeviceError, match="fp16 needs a CUDA device"):
        start(["training.precision=fp16"])


# --- what is kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ['kind="adam", lr=0.01', 'kind="sgd", lr=0.5'])
def test_the_moving_average_is_measured_and_kept(
    start: Start, prepared: Prepared, optimizer: str
) -> None:
    """a <- d a + (1 - d) w after each update, beginning with the first update's w."""
    rule = f"optimizer={{{optimizer}}}"  # plain SGD has gradients by rows
    changes = [*EACH, "training.epochs=1.5", "training.validate_every=4", rule]
    trainer = start([*changes, "training.moving_average=0.75"])
    average: Weights = {}
    by_update: dict[int, Weights] = {}
    events = []
    for event in trainer.train():
        events.append(event)
        if isinstance(event, Progress):
            now = {name: each.double() for name, each in weights_of(trainer.model).items()}
            average = {
                name: 0.75 * average[name] + 0.25 * weight if average else weight
                for name, weight in now.items()
            }
            by_update[event.update] = average
    assert len(by_update) == 12
    assert_close(saved_model(trainer), average)
    best = [event for event in of_type(events, Validated) if event.improved][-1]
    assert_close(saved_model(trainer, checkpoint.BEST), by_update[best.update])
    loaded = load_model(trainer.folder / checkpoint.BEST, CPU).model
    assert prepared.validation
    again = validation.perplexity(loaded, prepared.validation, trainer.recipe)
    assert again == pytest.approx(best.perplexity, rel=1e-6)
    # What is trained knows nothing of it.
    without = start(changes, "without")
    list(without.train())
    assert_equal(weights_of(trainer.model), weights_of(without.model))


KEPT_VALUES = {
    "perplexity": [5.0, 3.0, 4.0, 3.0, 2.0, 9.0],
    "exact": [10.0, 30.0, 20.0, 30.0, 5.0, 40.0],
    "wer": [50.0, 40.0, 60.0, 40.0, 70.0, 10.0],
}


@pytest.mark.parametrize("select", KEPT_VALUES)
def test_the_best_few_are_kept(start: Start, monkeypatch: pytest.MonkeyPatch, select: str) -> None:
    """Of equals the oldest; error rates and perplexity are better where they are smaller."""
    places = itertools.count()

    def scripted(*_: Any) -> dict[str, float]:
        place = next(places)
        return {name: KEPT_VALUES[name][place] for name in ("exact", "wer")}

    perplexities = iter(KEPT_VALUES["perplexity"])
    monkeypatch.setattr(validation, "scores", scripted)
    monkeypatch.setattr(validation, "perplexity", lambda *_: next(perplexities))
    trainer = start(
        [
            "training.keep_best=2",
            "training.validate_every=2",
            "training.max_updates=12",
            'evaluation.metrics=["exact", "wer"]',
            f"evaluation.select={select}",
        ]
    )
    folder = trainer.folder / KEPT
    folder.mkdir()
    (folder / "update-00000099.safetensors").write_bytes(b"of updates that were undone")
    weights: dict[int, Weights] = {}
    sign = -1 if select == "exact" else 1
    for event in trainer.train():
        if not isinstance(event, Validated):
            continue
        weights[event.update] = weights_of(trainer.model)
        values = KEPT_VALUES[select][: len(weights)]
        ranked = sorted(
            zip(values, weights, strict=True), key=lambda each: (sign * each[0], each[1])
        )
        best = {update for _, update in ranked[:2]}
        names = {f"update-{update:08}.safetensors" for update in best}
        assert {path.name for path in folder.iterdir()} == names
    for update in best:
        assert_equal(
            saved_model(trainer, f"{KEPT}/update-{update:08}.safetensors"), weights[update]
        )
    assert len(weights) == 6


def test_none_but_the_best_is_kept_unasked(start: Start) -> None:
    trainer = start([])
    list(trainer.train())
    assert not (trainer.folder / KEPT).exists()


# --- where it begins -------------------------------------------------------------------------


def rows_met(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The pairs of each update."""
    met: list[list[int]] = []
    with monkeypatch.context() as patched:

        def spy(pairs: Any, rows: Any, **options: Any) -> Batch:
            met.append(rows.tolist())
            return make_batch(pairs, rows, **options)

        patched.setattr(feed, "make_batch", spy)
        list(trainer.train())
    return met


def test_order_and_start_values_have_a_seed_each(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, met = {}, {}
    for seed, order in ((1, None), (1, 1), (1, 2), (2, 2), (2, None)):
        changes = ["training.max_updates=3", f"training.seed={seed}"] + (
            [f"training.order_seed={order}"] if order else []
        )
        trainer = start(changes, f"{seed}-{order}")
        weights[seed, order] = weights_of(trainer.model)
        met[seed, order] = rows_met(trainer, monkeypatch)
    for one, other in itertools.combinations(weights, 2):
        same = all(torch.equal(weights[one][name], weights[other][name]) for name in weights[one])
        assert same == (one[0] == other[0])
        assert (met[one] == met[other]) == ((one[1] or one[0]) == (other[1] or other[0]))


BASE = ['optimizer={kind="sgd", lr=0.7, momentum=0.9}']


@pytest.fixture(scope="module")
def base(recipe_file: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last model of a finished run."""
    folder = tmp_path_factory.mktemp("base") / "run"
    list(Trainer(load(str(recipe_file), BASE), prepared, folder, CPU).train())
    return folder / checkpoint.LAST


def test_fine_tuning_begins_with_another_models_weights(
    recipe_file: Path, prepared: Prepared, base: Path, tmp_path: Path
) -> None:
    changes = [
        *BASE,
        *EACH,
        f"training.start_from={base}",
        "data.train.limit=9",  # of which other tokenizers would be made
        "batches.size=4",
        "model.encoder.dropout=0.4",
        "model.decoder.output_dropout=0.0",
        'model.initialization={kind="torch"}',
    ]
    recipe = load(str(recipe_file), changes)
    tokenizers = other_tokenizers(recipe)
    assert tokenizers
    data = prepare(recipe, tmp_path / "prepared", tokenizers=tokenizers)
    assert data.source_tokenizer.to_bytes() == prepared.source_tokenizer.to_bytes()
    assert data.target_tokenizer.to_bytes() == prepared.target_tokenizer.to_bytes()
    own = prepare(recipe, tmp_path / "own")
    assert own.source_tokenizer.to_bytes() != prepared.source_tokenizer.to_bytes()
    assert own.manifest["fingerprint"] != data.manifest["fingerprint"]

    trainer = Trainer(recipe, data, tmp_path / "run", CPU)
    before = weights_of(load_model(base, CPU).model)
    assert_equal(weights_of(trainer.model), before)
    (started, *_) = trainer.train()
    assert isinstance(started, Started)
    assert (started.update, started.notes) == (0, (f"starting from {base}",))

    again = Trainer(recipe, data, tmp_path / "again", CPU)
    _, gradient, found = next(updates_of(again))
    # The first step remembers no others.
    assert_close(found, {name: before[name] - 0.7 * gradient[name] for name in before})
    # Gone on with, it does not begin anew.
    done = weights_of(trainer.model)
    longer = load(str(recipe_file), [*changes, "training.epochs=4.0"])
    gone_on = Trainer(longer, data, tmp_path / "run", CPU)
    assert_equal(weights_of(gone_on.model), done)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.encoder.hidden=13", "model.encoder.hidden = 13 here, 12 there"),
        ("model.encoder.variational=true", "model.encoder.variational = True here, False there"),
        ("model.decoder.start=bos", "model.decoder.start = 'bos' here, 'eos' there"),
        ("model.reverse_source=false", "model.reverse_source = False here, True there"),
        ("tokenizer.source.vocabulary=30", "tokenizer.source.vocabulary = 30 here, 40 there"),
        (
            'model.decoder.readout={kind="tanh", size=12}',
            "model.decoder.readout.kind = 'tanh' here",
        ),
    ],
)
def test_fine_tuning_refuses_another_model(
    recipe_file: Path, prepared: Prepared, base: Path, tmp_path: Path, change: str, told: str
) -> None:
    more = ["model.decoder.hidden=13"] if "hidden" in change else []
    recipe = load(str(recipe_file), [f"training.start_from={base}", change, *more])
    for refusing in (load_start, lambda each: Trainer(each, prepared, tmp_path / "run", CPU)):
        with pytest.raises(RecipeError) as caught:
            refusing(recipe)
        assert told in str(caught.value)
        assert str(base) in str(caught.value)


def test_fine_tuning_refuses_text_in_other_words(
    recipe_file: Path, base: Path, tmp_path: Path
) -> None:
    recipe = load(str(recipe_file), [f"training.start_from={base}", "data.train.limit=9"])
    own = prepare(recipe, tmp_path / "own")
    with pytest.raises(ModelError, match="was not prepared with the tokenizers of"):
        Trainer(recipe, own, tmp_path / "run", CPU)


def test_fine_tuning_shares_a_corpus_of_the_same_tokenizers(
    recipe_file: Path, prepared: Prepared, base: Path
) -> None:
    """The first run's own corpus will do where the text and the tokenizers are the same."""
    recipe = load(str(recipe_file), [f"training.start_from={base}"])
    found = prepare(recipe, prepared.folder, tokenizers=other_tokenizers(recipe))
    assert found.folder == prepared.folder


def test_a_fine_tuned_run_goes_on_when_its_start_is_gone(
    recipe_file: Path, prepared: Prepared, base: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(base.read_bytes())
    changes = [*BASE, f"training.start_from={start}"]
    folder = tmp_path / "run"
    recipe = load(str(recipe_file), [*changes, "training.epochs=1.0"])
    data = prepare(recipe, tmp_path / "own", tokenizers=other_tokenizers(recipe, folder))
    list(Trainer(recipe, data, folder, CPU).train())
    start.unlink()
    recipe = load(str(recipe_file), [*changes, "training.epochs=2.0"])
    found = other_tokenizers(recipe, folder)
    assert found
    assert found[0].to_bytes() == data.source_tokenizer.to_bytes()
    assert prepare(recipe, tmp_path / "own", tokenizers=found).folder == data.folder
    trainer = Trainer(recipe, data, folder, CPU)
    assert trainer.place.epoch == 1
    with pytest.raises(ModelError):
        other_tokenizers(recipe, tmp_path / "another")


def test_a_run_does_not_go_on_with_another_beginning(
    recipe_file: Path, prepared: Prepared, base: Path, tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(f"one {' '.join(['1'] * 10)}\n", encoding="utf-8")
    for name, change in {
        "vectors": f'model.encoder.vectors={{path="{vectors}"}}',
        "start_from": f"training.start_from={base}",
    }.items():
        folder = tmp_path / name
        list(Trainer(load(str(recipe_file), [*BASE, change]), prepared, folder, CPU).train())
        other = change.replace(str(tmp_path), str(tmp_path / "x")).replace(str(base), "elsewhere")
        with pytest.raises(ModelError, match=f"another recipe; different: .*{name}"):
            Trainer(load(str(recipe_file), [*BASE, other]), prepared, folder, CPU)


def test_a_run_goes_on_when_its_vectors_are_gone(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    vectors, folder = tmp_path / "vectors.txt", tmp_path / "run"
    changes = [f'model.encoder.vectors={{path="{vectors}"}}', "training.epochs=1.0"]
    recipe = load(str(recipe_file), changes)
    with pytest.raises(DataError, match="no file of word vectors"):
        check_start(recipe, CPU, folder)
    vectors.write_text(f"one {' '.join(['1'] * 10)}\n", encoding="utf-8")
    check_start(recipe, CPU, folder)
    list(Trainer(recipe, prepared, folder, CPU).train())
    vectors.unlink()
    check_start(recipe, CPU, folder)
    assert Trainer(recipe, prepared, folder, CPU).place.epoch == 1


@pytest.mark.parametrize(
    "change",
    [
        'model.encoder.vectors={path="gone.txt"}',
        "training.start_from=gone",
        "training.precision=fp16",
        'model.decoder.softmax={kind="adaptive", cutoffs=[100], reduction=1.1}',
    ],
)
def test_a_start_that_fails_leaves_the_folder_to_the_mended_recipe(
    recipe_file: Path, prepared: Prepared, tmp_path: Path, change: str
) -> None:
    with pytest.raises(S2SError):
        Trainer(load(str(recipe_file), [change]), prepared, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()
    Trainer(load(str(recipe_file)), prepared, tmp_path / "run", CPU)


def words_of(prepared: Prepared, side: str) -> list[str]:
    tokenizer = getattr(prepared, f"{side}_tokenizer")
    return tokenizer.pieces(range(tokenizer.size))


def test_word_vectors_fill_their_rows_and_stay_where_frozen(
    start: Start, prepared: Prepared, tmp_path: Path
) -> None:
    numbers = numpy.random.default_rng(1).normal(size=(3, 10)).round(3)
    source = tmp_path / "source.txt"
    source.write_text(
        "".join(
            f"{word} {' '.join(map(str, row))}\n"
            for word, row in zip(("one", "nobody", "three"), numbers, strict=True)
        ),
        encoding="utf-8",
    )
    target = tmp_path / "target.txt"
    target.write_text(f"1 11\nun {' '.join(['0.5'] * 11)}\n", encoding="utf-8")
    changes = [
        f'model.encoder.vectors={{path="{source}", frozen=true}}',
        f'model.decoder.vectors={{path="{target}"}}',
        "training.moving_average=0.5",
        "optimizer.weight_decay=0.01",
    ]
    trainer = start(changes)
    plain = weights_of(start([], "plain").model)
    begun = weights_of(trainer.model)
    expected = {name: weight.clone() for name, weight in plain.items()}
    sources, targets = words_of(prepared, "source"), words_of(prepared, "target")
    rows = expected["encoder.embedding.weight"]
    rows[sources.index("one")] = torch.from_numpy(numbers[0])
    rows[sources.index("three")] = torch.from_numpy(numbers[2])
    expected["decoder.embedding.weight"][targets.index("un")] = 0.5
    assert_equal(begun, expected)

    started, *_ = trainer.train()
    assert isinstance(started, Started)
    ours, theirs = started.notes
    assert ours.startswith(f"source vectors: 2 of {len(sources)} entries found in {source}")
    assert theirs.startswith(f"target vectors: 1 of {len(targets)} entries found in {target}")
    for kept in (weights_of(trainer.model), saved_model(trainer)):
        for name, weight in kept.items():
            frozen = name == "encoder.embedding.weight"
            assert torch.equal(weight, begun[name]) == frozen, name


# --- all at once, interrupted ----------------------------------------------------------------

EVERYTHING = [
    "training.epochs=2.25",
    "training.log_every=2",
    "training.validate_every=3",
    "training.save_every=5",
    "training.moving_average=0.8",
    "training.keep_best=3",
    "training.label_smoothing=0.1",
    "training.order_seed=5",
    'training.teacher_forcing={kind="linear", fall=0.05, least=0.4, coin="token", own="sample"}',
    'schedule={kind="plateau", factor=0.5, wait=1}',
    'batches.curriculum={difficulty="rarity", start=0.3, updates=10}',
    "batches.parts=2",
    "model.encoder.variational=true",
    "model.decoder.variational=true",
    'evaluation.metrics=["exact"]',
    "evaluation.select=exact",  # which stays at nothing for long
]
OPTIMIZERS = {
    "momentum": 'optimizer={kind="sgd", lr=0.3, momentum=0.9}',
    "adadelta": 'optimizer={kind="adadelta", weight_decay=0.001}',
    "adagrad": 'optimizer={kind="adagrad", lr=0.1, initial=0.01}',
}


def what_is_left(folder: Path) -> dict[str, Any]:
    """All files of a run, the state's clock aside."""
    left: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.safetensors")
        if path.name != checkpoint.STATE
    }
    tensors, header = load_tensors(folder / checkpoint.STATE)
    del header["place"]["seconds"]
    left["header"] = json.dumps(header)
    return left | {name: (each.dtype, each.tolist()) for name, each in tensors.items()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_with_all_options_stopped_and_resumed_is_the_same_run(
    start: Start, tmp_path: Path, kind: str
) -> None:
    changes = [*EVERYTHING, OPTIMIZERS[kind]]
    events = list(start(changes, "whole").train())
    rates = {event.learning_rate for event in of_type(events, Progress)}
    assert len(rates) > 2  # it stalled on both sides of some stop
    whole = what_is_left(tmp_path / "whole")
    assert sum(name.startswith(KEPT) for name in whole) == 3
    for stops in ((1, 8, 9), (4, 13)):
        folder = "-".join(map(str, stops))
        for stop in stops:
            trainer = start(changes, folder)
            list(trainer.train(lambda made=trainer, stop=stop: made.place.update == stop))
            assert trainer.place.update == stop
        list(start(changes, folder).train())
        assert what_is_left(tmp_path / folder) == whole
