"""The training loop: the paper's arithmetic, and runs that may be stopped or killed at any moment.

Runs are compared to the last bit: what a killed run leaves, gone on with, must be what an
undisturbed run makes.
"""

import contextlib
import copy
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import NO_DROPOUT
from torch import Tensor

from s2s_cli.core import checkpoint
from s2s_cli.core.batches import Batch, BatchPlan
from s2s_cli.core.checkpoint import load_model, load_tensors, read_header
from s2s_cli.core.errors import DivergedError, ModelError
from s2s_cli.core.events import Event, Finished, Log, Progress, Started, Validated
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.prepared import PackedPairs, PackedText, Prepared, prepare
from s2s_cli.core.recipe import Recipe, load, parse
from s2s_cli.core.tokenizer import BOS, EOS
from s2s_cli.core.trainer import Trainer, feed, loop, validation

CPU = torch.device("cpu")
UPDATES = 8  # an epoch of the tiny corpus

# Checkpoints, validations and reports that fall together here and apart there; it ends in the
# middle of an epoch.
BUSY = [
    "training.epochs=2.5",
    "training.save_every=5",
    "training.validate_every=7",
    "training.log_every=3",
]
MODELS = ("best.safetensors", "last.safetensors")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here is a process, not the machine: the files need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def train(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    *,
    stop_after: int = 0,
    abandon_after: int = 0,
) -> list[Event]:
    """Trains with a log, as the command does.

    stop_after: updates after which to ask for an end; abandon_after: events after which the
    process "dies": nothing of it runs any more.
    """
    trainer = Trainer(recipe, prepared, folder, CPU)
    looks = itertools.count(1)
    events = []
    with contextlib.closing(Log(folder / "log.jsonl", trainer.place.update)) as log:
        for event in trainer.train(lambda: next(looks) == stop_after):
            log.write(event)
            events.append(event)
            if len(events) == abandon_after:
                break
    return events


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def history(folder: Path, *kinds: str) -> list[dict[str, object]]:
    """The events of the log, by default all but beginnings and interruptions, without times."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    for event in events:
        event.pop("seconds", None)
        event.pop("words_per_second", None)
    return [
        event
        for event in events
        if event["event"] in (kinds or ("progress", "validated", "finished"))
        and event.get("reason") != "stopped"
    ]


def assert_same_run(folder: Path, other: Path) -> None:
    """The same models and the same state, to the last bit."""
    for name in MODELS:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    ours, our_header = load_tensors(folder / checkpoint.STATE)
    theirs, their_header = load_tensors(other / checkpoint.STATE)
    for header in (our_header, their_header):
        del header["place"]["seconds"]
    assert our_header == their_header
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def nll(model: Seq2Seq, source: Sequence[int], target: Sequence[int], start: int) -> Tensor:
    """-log p(target, EOS | source as it is read), on the sentence alone."""
    vectors = model.encoder.embedding(torch.tensor([*source, EOS])[:, None])
    _, state = model.encoder.recurrent.cells(vectors)
    fed = model.decoder.embedding(torch.tensor([start, *target])[:, None])
    features, _ = model.decoder.recurrent.cells(fed, state)
    gained = model.decoder.output(features[:, 0]).log_softmax(-1)
    return -gained.gather(1, torch.tensor([*target, EOS])[:, None]).sum()


def pair_of(pairs: PackedPairs, row: int) -> tuple[list[int], list[int]]:
    return pairs.source[row], pairs.target[row]


# --- the arithmetic of an update -------------------------------------------------------------


@pytest.mark.parametrize("start", ["eos", "bos"])
@pytest.mark.parametrize("clip", [5.0, 1.0, 0.2, 0.0])
@pytest.mark.parametrize("loss_per", ["sentence", "word"])
def test_updates_are_the_paper_s(
    recipe_file: Path, prepared: Prepared, tmp_path: Path, loss_per: str, clip: float, start: str
) -> None:
    """Sutskever et al. 2014, section 3.4, written out: g = d(sum of losses / 128); s = ||g||;
    g <- 5 g / s where s > 5; a plain step. The rate is halved after a quarter of an epoch.
    """
    changes = [
        *NO_DROPOUT,
        f"model.decoder.start={start}",
        f"training.loss_per={loss_per}",
        f"training.clip={clip}",
        "training.log_every=1",
        "training.max_updates=4",
        "model.initialization.range=0.5",
        'schedule={kind="halving", start=0.25, every=0.125}',
    ]
    recipe = load(str(recipe_file), changes)
    trainer = Trainer(recipe, prepared, tmp_path / "run", CPU)
    model = copy.deepcopy(trainer.model).double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    parameters = list(model.parameters())
    first = {"eos": EOS, "bos": BOS}[start]

    batches = BatchPlan(prepared.train, "sentences", 8, 3, recipe.training.seed).epoch(0)
    expected = []
    for batch, rate in zip(batches, (0.7, 0.7, 0.35, 0.175), strict=False):
        pairs = [pair_of(prepared.train, row) for row in batch.tolist()]
        loss = sum(nll(model, source[::-1], target, first) for source, target in pairs)
        words = sum(len(target) + 1 for _, target in pairs)
        share = len(pairs) if loss_per == "sentence" else words
        gradient = torch.autograd.grad(loss / share, parameters)
        norm = math.sqrt(sum(float((part**2).sum()) for part in gradient))
        # torch adds the 1e-6, which for the paper's 5 is nothing.
        factor = clip / (norm + 1e-6) if clip and norm > clip else 1.0
        with torch.no_grad():
            for parameter, part in zip(parameters, gradient, strict=True):
                parameter.sub_(rate * factor * part)
        longest = max(len(target) + 1 for _, target in pairs)
        expected.append(
            {
                "loss": loss.item() / words,
                "norm": norm,
                "learning_rate": rate,
                "padding": 1 - words / (longest * len(pairs)),
            }
        )

    progress = [event for event in trainer.train() if isinstance(event, Progress)]
    assert len(progress) == len(expected) == 4
    for event, facts in zip(progress, expected, strict=True):
        for name, value in facts.items():
            assert getattr(event, name) == pytest.approx(value, rel=1e-5), (event.update, name)
    for ours, theirs, old in zip(trainer.model.parameters(), parameters, before, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-7)
        assert (theirs - old).abs().max() > 1e-4
    # With these limits the gradient is cut at none of the updates, at some, at all.
    if loss_per == "sentence":
        cut = sum(facts["norm"] > clip > 0 for facts in expected)
        assert cut in {5.0: {0}, 1.0: {1, 2, 3}, 0.2: {4}, 0.0: {0}}[clip]


def test_clipping_cuts_the_whole_gradient_once(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """However steep the loss, a step is as long as rate * clip."""
    changes = [*NO_DROPOUT, "training.clip=0.01", "training.max_updates=1"]
    trainer = Trainer(load(str(recipe_file), changes), prepared, tmp_path / "run", CPU)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    list(trainer.train())
    steps = [
        parameter.detach() - old
        for parameter, old in zip(trainer.model.parameters(), before, strict=True)
    ]
    length = torch.cat([step.flatten() for step in steps]).double().norm()
    assert float(length) == pytest.approx(0.7 * 0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("epochs", "updates"), [(0.5, 25), (1.1, 55), (1.36, 68), (1.37, 69), (1.38, 69)]
)
def test_a_fraction_of_an_epoch_is_as_many_updates(
    recipe_file: Path, tmp_path: Path, epochs: float, updates: int
) -> None:
    """In binary 1 + 18 / 50 is less than 1.36, and 1.1 * 50 is more than 55."""
    changes = ["data.train.limit=50", "batches.size=1", f"training.epochs={epochs}"]
    recipe = load(str(recipe_file), changes)
    started, *_, finished = Trainer(
        recipe, prepare(recipe, tmp_path / "prepared"), tmp_path / "run", CPU
    ).train()
    assert isinstance(started, Started)
    assert (started.batches, started.updates) == (50, updates)
    assert finished.update == updates


def test_no_update_more_than_asked(recipe_file: Path, prepared: Prepared, tmp_path: Path) -> None:
    limited = load(str(recipe_file), [*BUSY, "training.max_updates=11"])
    events = train(limited, prepared, tmp_path / "run")
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert (events[0].updates, events[-1].update, events[-1].reason) == (11, 11, "updates")
    assert events[-1].epoch == 1 + 3 / UPDATES
    # Where it ended it looked and saved; without the limit it goes on as if it had never ended.
    assert isinstance(events[-2], Validated)
    assert events[-2].update == 11
    assert read_header(tmp_path / "run" / "last.safetensors")["results"]["update"] == 11
    unlimited = load(str(recipe_file), BUSY)
    train(unlimited, prepared, tmp_path / "run")
    train(unlimited, prepared, tmp_path / "whole")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (
        tmp_path / "whole" / "last.safetensors"
    ).read_bytes()


def test_how_often_one_looks_changes_nothing(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    often = ["training.validate_every=1", "training.save_every=1", "training.log_every=1"]
    train(load(str(recipe_file)), prepared, tmp_path / "seldom")
    train(load(str(recipe_file), often), prepared, tmp_path / "often")
    ours, _ = load_tensors(tmp_path / "seldom" / checkpoint.STATE)
    theirs, _ = load_tensors(tmp_path / "often" / checkpoint.STATE)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_speed_and_time_are_of_updates_alone(
    recipe_file: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that updates (2 s), validations (100 s) and checkpoints (5000 s) move."""
    now = 0.0
    words: list[int] = []

    def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slowed(*arguments: Any, **options: Any) -> Any:
            nonlocal now
            now += seconds
            result = function(*arguments, **options)
            if isinstance(result, Batch):
                words.append(result.words)
            return result

        return slowed

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(feed, "make_batch", slow(feed.make_batch, 2.0))
    monkeypatch.setattr(validation, "perplexity", slow(validation.perplexity, 100.0))
    monkeypatch.setattr(checkpoint, "save_file", slow(checkpoint.save_file, 5000.0))
    recipe = load(str(recipe_file), BUSY)
    events = train(recipe, prepared, tmp_path / "run", stop_after=9)
    events += train(recipe, prepared, tmp_path / "run")
    told = 0
    for event in events:
        if isinstance(event, Progress):
            speed = sum(words[told : event.update]) / (2.0 * (event.update - told))
            assert event.words_per_second == pytest.approx(speed, rel=1e-9), event.update
            told = event.update
    assert told == len(words) == 20
    assert isinstance(events[-1], Finished)
    assert events[-1].seconds == 2.0 * 20
    assert all(event.seconds >= 100 for event in events if isinstance(event, Validated))


def test_another_seed_is_another_model(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    for folder, seed in {"one": 1, "again": 1, "other": 2}.items():
        train(load(str(recipe_file), [f"training.seed={seed}"]), prepared, tmp_path / folder)
    one, again, other = (
        load_tensors(tmp_path / folder / "last.safetensors")[0]
        for folder in ("one", "again", "other")
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name]), name
        assert torch.equal(tensor, other[name]) == name.endswith(".tokenizer"), name


# --- validation ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("reverse", ["true", "false"])
@pytest.mark.parametrize("start", ["eos", "bos"])
def test_perplexity_is_over_all_words_of_the_corpus(
    model: Seq2Seq, recipe_file: Path, prepared: Prepared, size: int, reverse: str, start: str
) -> None:
    """exp(total / words, EOS counted): not a mean over batches or sentences."""
    assert prepared.validation
    changes = [
        f"search.batch_size={size}",
        f"model.reverse_source={reverse}",
        f"model.decoder.start={start}",
    ]
    total, words, means = 0.0, 0, []
    for row in range(len(prepared.validation)):
        source, target = pair_of(prepared.validation, row)
        first = {"eos": EOS, "bos": BOS}[start]
        lost = nll(model, source[::-1] if reverse == "true" else source, target, first).item()
        total, words = total + lost, words + len(target) + 1
        means.append(lost / (len(target) + 1))
    expected = math.exp(total / words)
    found = validation.perplexity(model, prepared.validation, load(str(recipe_file), changes))
    assert found == pytest.approx(expected, rel=1e-5)
    mean_of_means = math.exp(sum(means) / len(means))
    assert abs(mean_of_means - expected) > 1e-3 * expected  # a hundred times what is tolerated


def test_what_is_reported_is_true_of_the_best_model(
    recipe: Recipe, prepared: Prepared, tmp_path: Path
) -> None:
    """Measured again from the file, with dropout off."""
    events = train(recipe, prepared, tmp_path / "run")
    best = [event for event in events if isinstance(event, Validated) and event.improved][-1]
    loaded = load_model(tmp_path / "run" / "best.safetensors", CPU)
    assert prepared.validation
    again = validation.perplexity(loaded.model, prepared.validation, recipe)
    assert again == pytest.approx(best.perplexity, rel=1e-6)
    results = {"update": best.update, "epoch": best.epoch, "perplexity": best.perplexity}
    results |= best.scores
    found = loaded.header["results"]
    assert {key: found[key] for key in results} == results
    assert found["data"] == prepared.manifest["fingerprint"]
    assert isinstance(events[-1], Finished)
    assert events[-1].best == {key: results[key] for key in results if key != "epoch"}
    assert set(best.scores) == {"exact", "chrf"}
    assert [reference for _, reference in best.examples] == prepared.validation_references[:3]


def test_the_last_model_tells_of_its_own_validation_only(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    recipe = load(str(recipe_file), BUSY)
    for more, update, validated in ((7, 7, True), (1, 8, False), (100, 20, True)):
        events = train(recipe, prepared, tmp_path / "run", stop_after=more)
        results = read_header(tmp_path / "run" / "last.safetensors")["results"]
        assert results["update"] == update
        assert ("perplexity" in results) == validated
        if validated:
            *_, last = [event for event in events if isinstance(event, Validated)]
            assert results["perplexity"] == last.perplexity


def test_blank_lines_of_the_validation_text_count(
    recipe_file: Path, corpus: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(corpus, tmp_path / "corpus")
    (copied / "validation.source").write_bytes(b"one two\n\n  \nthree\n")
    (copied / "validation.target").write_bytes(b"deux un\n\nun\ntrois\n")
    recipe = load(str(copied / recipe_file.name))
    prepared = prepare(recipe, tmp_path / "prepared")
    events = train(recipe, prepared, tmp_path / "run")
    validated = [event for event in events if isinstance(event, Validated)]
    assert len(validated) == 3
    assert [event.examples[1] for event in validated] == [("", "")] * 3
    assert [event.examples[2] for event in validated] == [("", "un")] * 3
    best = load_model(tmp_path / "run" / "best.safetensors", CPU).model
    assert prepared.validation
    pairs = [pair_of(prepared.validation, row) for row in range(4)]
    assert [source for source, _ in pairs][1:3] == [[], []]
    total = sum(nll(best, source[::-1], target, EOS).item() for source, target in pairs)
    words = sum(len(target) + 1 for _, target in pairs)
    lowest = min(event.perplexity for event in validated)
    assert lowest == pytest.approx(math.exp(total / words), rel=1e-5)


def test_a_validation_text_of_blank_lines_only(
    model: Seq2Seq, recipe: Recipe, prepared: Prepared
) -> None:
    sources = PackedText.pack([[], []])
    found = validation.translations(model, sources, prepared.target_tokenizer, recipe)
    assert found == ["", ""]


def test_validation_translations_stand_at_their_lines(
    model: Seq2Seq, recipe: Recipe, prepared: Prepared
) -> None:
    def translated(*sources: list[int]) -> list[str]:
        packed = PackedText.pack(sources)
        return validation.translations(model, packed, prepared.target_tokenizer, recipe)

    sources = [[], [5, 4], [], [3, 9, 8, 7, 6], [10]]
    found = translated(*sources)
    assert found == [translated(source)[0] for source in sources]
    assert [bool(text) for text in found] == [bool(source) for source in sources]
    assert len(set(found)) == 4


def test_without_validation_data(recipe: Recipe, tmp_path: Path) -> None:
    raw = recipe.model_dump(mode="json", exclude_none=True)
    del raw["data"]["validation"]
    bare = parse(raw, "here")
    prepared = prepare(bare, tmp_path / "prepared")
    events = train(bare, prepared, tmp_path / "run")
    assert not [event for event in events if isinstance(event, Validated)]
    assert isinstance(events[-1], Finished)
    assert (events[-1].update, events[-1].best) == (3 * UPDATES, {})
    assert not (tmp_path / "run" / "best.safetensors").exists()
    last = load_model(tmp_path / "run" / "last.safetensors", CPU)
    assert last.header["results"]["update"] == 3 * UPDATES


SCRIPT = {
    "perplexity": [5.0, 4.0, 3.0, 3.0],
    "exact": [10.0, 30.0, 20.0, 30.0],
    "wer": [50.0, 40.0, 60.0, 20.0],
}


@pytest.mark.parametrize(("select", "best"), [("perplexity", 3), ("exact", 2), ("wer", 4)])
def test_the_best_model_is_best_at_what_was_selected(
    recipe_file: Path,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    select: str,
    best: int,
) -> None:
    """Of equals the first; error rates and perplexity are better where they are smaller."""
    places = itertools.count()

    def scripted(_hypotheses: list[str], _references: list[str], _: Recipe) -> dict[str, float]:
        place = next(places)
        return {name: SCRIPT[name][place] for name in ("exact", "wer")}

    perplexities = iter(SCRIPT["perplexity"])
    monkeypatch.setattr(validation, "scores", scripted)
    monkeypatch.setattr(validation, "perplexity", lambda *_: next(perplexities))
    changes = [
        "training.epochs=2.0",
        "training.validate_every=4",
        'evaluation.metrics=["exact", "wer"]',
        f"evaluation.select={select}",
    ]
    trainer = Trainer(load(str(recipe_file), changes), prepared, tmp_path / "run", CPU)
    improved, weights, waited = [], [], 0
    for event in trainer.train():
        if isinstance(event, Validated):
            improved.append(event.improved)
            weights.append(copy.deepcopy(trainer.model.state_dict()))
            waited = 0 if event.improved else waited + 1
            assert event.waiting == waited
        finished = event
    values = SCRIPT[select]
    better = max if select == "exact" else min
    assert improved == [
        not values[:place] or better(values[: place + 1]) != better(values[:place])
        for place in range(4)
    ]
    loaded = load_model(tmp_path / "run" / "best.safetensors", CPU)
    assert loaded.header["results"]["update"] == 4 * best
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, weights[best - 1][name]), name
    assert isinstance(finished, Finished)
    facts = {name: scores[best - 1] for name, scores in SCRIPT.items()}
    assert finished.best == {"update": 4 * best, **facts}


def test_patience_ends_a_training_that_learns_nothing(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    stuck = [
        "optimizer.lr=1e-30",
        "training.validate_every=3",
        "training.save_every=4",  # which is not due where the patience ends
        "training.epochs=50.0",
    ]
    recipe = load(str(recipe_file), [*stuck, "training.patience=2"])
    events = train(recipe, prepared, tmp_path / "run")
    validated = [event for event in events if isinstance(event, Validated)]
    assert [(event.improved, event.waiting) for event in validated] == [
        (True, 0),
        (False, 1),
        (False, 2),
    ]
    assert isinstance(events[-1], Finished)
    assert (events[-1].update, events[-1].reason) == (9, "patience")
    # Started again it stays ended; with more patience it goes on.
    _, *rest = train(recipe, prepared, tmp_path / "run")
    assert [type(event) for event in rest] == [Finished]
    longer = load(str(recipe_file), [*stuck, "training.patience=3"])
    events = train(longer, prepared, tmp_path / "run")
    assert (events[0].update, events[-1].update) == (9, 12)


# --- interrupted and resumed -----------------------------------------------------------------

KINDS = {
    "sgd": [],
    "momentum": ["optimizer.momentum=0.9", "optimizer.lr=0.1"],
    "adam": ['optimizer={kind="adam", lr=0.01}'],
    "adamw": ['optimizer={kind="adamw", lr=0.01, weight_decay=0.1}'],
    "tokens": ["batches.unit=tokens", "batches.size=40"],
    "gru": [
        "model.encoder.cell=gru",
        "model.decoder.cell=gru",
        'schedule={kind="halving", start=1.0, every=0.5}',
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_is_the_same_run(
    recipe_file: Path, prepared: Prepared, tmp_path: Path, kind: str
) -> None:
    """Asked to stop in the middle of an epoch, dropout on, again and again."""
    recipe = load(str(recipe_file), [*BUSY, *KINDS[kind]])
    train(recipe, prepared, tmp_path / "whole")
    updates, stops = 0, []
    for more in (3, 1, 5, 3):  # after 3, 4, 9 and 12 updates
        events = train(recipe, prepared, tmp_path / "parts", stop_after=more)
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        assert events[0].update == updates
        updates += more
        assert (events[-1].update, events[-1].reason) == (updates, "stopped")
        stops.append(updates)
    events = train(recipe, prepared, tmp_path / "parts")
    assert events[0].update == 12
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    for kinds in (("validated",), ("finished",)):
        whole, parts = (history(tmp_path / name, *kinds) for name in ("whole", "parts"))
        assert whole == parts
    # A stop reports what it has done; all else is reported as in the undisturbed run, except
    # where a report follows a stop and tells of fewer updates.
    whole, parts = (history(tmp_path / name, "progress") for name in ("whole", "parts"))
    assert {event["update"] for event in parts} == {event["update"] for event in whole} | {*stops}
    told = {event["update"]: event for event in parts}
    assert [event["update"] for event in parts] == sorted(told)
    assert len([event for event in whole if told[event["update"]] == event]) >= len(whole) - 2


def test_a_stop_where_a_report_was_due_leaves_no_trace(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    recipe = load(str(recipe_file), BUSY)
    train(recipe, prepared, tmp_path / "whole")
    for more in (6, 8):  # a report is due after 6, a validation after 14
        train(recipe, prepared, tmp_path / "parts", stop_after=more)
    train(recipe, prepared, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
    assert [event["update"] for event in history(tmp_path / "parts", "started")] == [0, 6, 14]


def test_killed_after_any_event_and_resumed_is_the_same_run(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """The log tells each event once, in order, whatever was lost and done again."""
    recipe = load(str(recipe_file), [*BUSY, *KINDS["adam"]])
    whole = train(recipe, prepared, tmp_path / "whole")
    expected = history(tmp_path / "whole")
    lost = []
    for place in range(1, len(whole)):
        folder = tmp_path / str(place)
        died = train(recipe, prepared, folder, abandon_after=place)
        resumed = train(recipe, prepared, folder)
        assert resumed[0].update in (0, 5, 10, 15, 20)
        lost.append(died[-1].update - resumed[0].update)
        assert_same_run(tmp_path / "whole", folder)
        assert history(folder) == expected
    assert max(lost) == 5  # even what was about to be saved may be lost
    assert min(lost) == 0


class Killed(BaseException):
    """Stands for a SIGKILL: nobody handles it."""


def test_killed_while_it_writes_any_file(
    recipe_file: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Best, last and state are written one after the other; death may come between them."""
    recipe = load(str(recipe_file), BUSY)
    save_file = checkpoint.save_file
    count = itertools.count()
    die_at = -1

    def dying(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        if next(count) == die_at:
            half = path.read_bytes()[: path.stat().st_size // 2]
            path.write_bytes(half)
            path.with_name(f"{path.name}-left").write_bytes(half)  # a kill leaves it there
            raise Killed

    monkeypatch.setattr(checkpoint, "save_file", dying)
    train(recipe, prepared, tmp_path / "whole")
    writes = next(count)
    assert writes >= 1 + 2 * 4  # one validation at least is the best so far; four saves
    for place in range(writes):
        count, die_at = itertools.count(), place
        with pytest.raises(Killed):
            train(recipe, prepared, tmp_path / str(place))
        assert next(count) == place + 1
        die_at = -1
        for name in MODELS:  # what can be read is whole
            if (tmp_path / str(place) / name).exists():
                load_model(tmp_path / str(place) / name, CPU)
        train(recipe, prepared, tmp_path / str(place))
        assert_same_run(tmp_path / "whole", tmp_path / str(place))
        assert history(tmp_path / str(place)) == history(tmp_path / "whole")


def test_a_checkpoint_waits_until_its_events_were_taken(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """Or a kill between the two would leave a gap in the log."""
    recipe = load(str(recipe_file), BUSY)
    for event in Trainer(recipe, prepared, tmp_path / "run", CPU).train():
        state = tmp_path / "run" / checkpoint.STATE
        if state.exists() and not isinstance(event, Started | Finished):
            assert read_header(state)["place"]["update"] < event.update


def test_a_torn_line_of_the_log_is_cut_off(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    recipe = load(str(recipe_file), BUSY)
    train(recipe, prepared, tmp_path / "whole")
    train(recipe, prepared, tmp_path / "run", stop_after=6)
    with open(tmp_path / "run" / "log.jsonl", "ab") as log:
        log.write(b'{"event": "progress", "upd')
    train(recipe, prepared, tmp_path / "run")
    assert history(tmp_path / "run") == history(tmp_path / "whole")


def test_a_finished_run_has_nothing_to_do(
    recipe: Recipe, prepared: Prepared, tmp_path: Path
) -> None:
    *_, finished = train(recipe, prepared, tmp_path / "run")
    before = files_in(tmp_path / "run")
    started, *rest = Trainer(recipe, prepared, tmp_path / "run", CPU).train()
    assert isinstance(started, Started)
    assert rest == [finished]
    assert started.update == finished.update == 3 * UPDATES
    assert files_in(tmp_path / "run") == before


def test_more_epochs_go_on_from_the_end(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    short = load(str(recipe_file), ["training.epochs=2.0"])
    longer = load(str(recipe_file), ["training.epochs=4.0"])
    train(short, prepared, tmp_path / "run")
    events = train(longer, prepared, tmp_path / "run")
    assert (events[0].update, events[-1].update) == (2 * UPDATES, 4 * UPDATES)
    assert load(str(tmp_path / "run" / "recipe.toml")) == longer
    train(longer, prepared, tmp_path / "whole")
    assert_same_run_but_for_the_recipe(tmp_path / "run", tmp_path / "whole")
    assert history(tmp_path / "run", "progress", "validated") == history(
        tmp_path / "whole", "progress", "validated"
    )


def assert_same_run_but_for_the_recipe(folder: Path, other: Path) -> None:
    """As `assert_same_run`, where the best model may have been saved by a shorter recipe."""
    for name in (*MODELS, checkpoint.STATE):
        ours, theirs = load_tensors(folder / name)[0], load_tensors(other / name)[0]
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), (name, key)


# --- whose run it is -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("optimizer.lr=0.5", "optimizer.lr"),
        ("training.seed=2", "training.seed"),
        ("training.loss_per=word", "training.loss_per"),
        ("training.clip=1.0", "training.clip"),
        ("batches.size=4", "batches.size"),
        ("model.reverse_source=false", "model.reverse_source"),
        ("model.encoder.embedding=9", "model.encoder.embedding"),
        ("evaluation.select=exact", "evaluation.select"),
        ('optimizer={kind="adam", lr=0.7}', "optimizer.kind"),
        ("data.max_length.source=50", "data.max_length.source"),
    ],
)
def test_another_recipe_s_run_is_left_alone(
    recipe_file: Path, prepared: Prepared, tmp_path: Path, change: str, key: str
) -> None:
    recipe = load(str(recipe_file), ["training.max_updates=2"])
    train(recipe, prepared, tmp_path / "run")
    before = files_in(tmp_path / "run")
    other = load(str(recipe_file), ["training.max_updates=3", change])
    with pytest.raises(ModelError) as caught:
        Trainer(other, prepared, tmp_path / "run", CPU)
    different = str(caught.value).splitlines()[0].partition("different: ")[2].split(", ")
    assert key in different
    assert "training.max_updates" not in different
    assert str(tmp_path / "run") in str(caught.value)
    assert files_in(tmp_path / "run") == before


def test_what_training_never_reads_may_change(
    recipe_file: Path, corpus: Path, tmp_path: Path
) -> None:
    """Also where the text lies, as long as it is the same."""
    recipe = load(str(recipe_file))
    train(recipe, prepare(recipe, tmp_path / "one"), tmp_path / "run", stop_after=5)
    moved = shutil.copytree(corpus, tmp_path / "moved")
    changes = ["name=other", "search.beam_size=7", "training.log_every=1", "training.patience=9"]
    again = load(str(moved / recipe_file.name), changes)
    events = train(again, prepare(again, tmp_path / "two"), tmp_path / "run")
    assert (events[0].update, events[-1].update) == (5, 3 * UPDATES)


@pytest.mark.parametrize("changes", [[], ["training.epochs=9.0"]])
def test_other_text_in_the_same_files_is_refused(
    recipe_file: Path, corpus: Path, tmp_path: Path, changes: list[str]
) -> None:
    copied = shutil.copytree(corpus, tmp_path / "corpus")
    recipe = load(str(copied / recipe_file.name))
    train(recipe, prepare(recipe, tmp_path / "one"), tmp_path / "run", stop_after=5)
    before = files_in(tmp_path / "run")
    for side in ("source", "target"):
        with open(copied / f"train.{side}", "ab") as text:
            text.write(b"one\n")
    other = load(str(copied / recipe_file.name), changes)
    with pytest.raises(ModelError, match="other text") as caught:
        Trainer(other, prepare(other, tmp_path / "two"), tmp_path / "run", CPU)
    assert str(tmp_path / "run") in str(caught.value)
    assert files_in(tmp_path / "run") == before


def test_a_damaged_state_is_refused(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    train(recipe, prepared, tmp_path / "run", stop_after=5)
    state = tmp_path / "run" / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-100])
    before = files_in(tmp_path / "run")
    with pytest.raises(ModelError, match="damaged"):
        Trainer(recipe, prepared, tmp_path / "run", CPU)
    assert files_in(tmp_path / "run") == before


def test_a_folder_of_something_else_is_refused(
    recipe: Recipe, prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("Dear mother", encoding="utf-8")
    for folder in (tmp_path / "letters", tmp_path / "letters" / "mother.txt"):
        with pytest.raises(ModelError, match="--run"):
            Trainer(recipe, prepared, folder, CPU)
    assert files_in(tmp_path / "letters") == {"mother.txt": b"Dear mother"}


def test_an_empty_folder_is_taken(recipe: Recipe, prepared: Prepared, tmp_path: Path) -> None:
    """Also one in which the first start was killed before it had its recipe."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.toml.k1ll3d").touch()
    train(recipe, prepared, tmp_path / "run", stop_after=1)
    assert (tmp_path / "run" / "last.safetensors").exists()


# --- what is not a number --------------------------------------------------------------------


def spoil_weights(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.model.decoder.output.bias[3] = float("nan")


def spoil_gradients(trainer: Trainer) -> None:
    """As an overflow would: the loss is still finite, the step is not."""
    trainer.model.decoder.output.bias.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize("save_every", [6, 7])
@pytest.mark.parametrize("spoil", [spoil_weights, spoil_gradients])
def test_a_loss_that_is_not_finite_ends_the_training(
    recipe_file: Path,
    prepared: Prepared,
    tmp_path: Path,
    spoil: Callable[[Trainer], None],
    save_every: int,
) -> None:
    """And the last checkpoint stays, though the next was due at that very update."""
    changes = [f"training.save_every={save_every}", "training.log_every=1", "training.epochs=9.0"]
    recipe = load(str(recipe_file), changes)
    trainer = Trainer(recipe, prepared, tmp_path / "run", CPU)
    events: Iterator[Event] = trainer.train()
    for event in events:
        if isinstance(event, Progress) and event.update == 2 * save_every - 1:
            break
    before = files_in(tmp_path / "run")
    assert read_header(tmp_path / "run" / "last.safetensors")["results"]["update"] == save_every
    spoil(trainer)
    with pytest.raises(DivergedError, match="last checkpoint") as caught:
        list(events)
    assert caught.value.exit_code == 3
    assert f"update {2 * save_every}" in str(caught.value)
    assert files_in(tmp_path / "run") == before
    # The run can go on from there.
    assert Trainer(recipe, prepared, tmp_path / "run", CPU).place.update == save_every


def test_a_rate_that_is_far_too_large_ends_with_a_message(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    changes = ["optimizer.lr=1e39", "training.clip=0.0", "training.log_every=4"]
    with pytest.raises(DivergedError, match=r"learning rate 1e\+39") as caught:
        train(load(str(recipe_file), changes), prepared, tmp_path / "run")
    assert "optimizer.lr" in str(caught.value)
    assert not (tmp_path / "run" / "last.safetensors").exists()


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_bf16_is_close_to_fp32_and_keeps_fp32_weights(
    recipe_file: Path, prepared: Prepared, tmp_path: Path, cell: str
) -> None:
    changes = [
        *NO_DROPOUT,
        f"model.encoder.cell={cell}",
        f"model.decoder.cell={cell}",
        "training.log_every=1",
        "training.epochs=2.0",
        "optimizer.lr=0.2",
    ]
    curves, perplexities = {}, {}
    for precision in ("fp32", "bf16"):
        recipe = load(str(recipe_file), [*changes, f"training.precision={precision}"])
        events = train(recipe, prepared, tmp_path / precision)
        progress = [event for event in events if isinstance(event, Progress)]
        curves[precision] = [(event.loss, event.norm) for event in progress]
        perplexities[precision] = [e.perplexity for e in events if isinstance(e, Validated)]
        assert isinstance(events[0], Started)
        assert events[0].precision == precision
    assert curves["bf16"][0] != curves["fp32"][0]
    assert perplexities["bf16"] == pytest.approx(perplexities["fp32"], rel=0.01)
    for (loss, norm), (other_loss, other_norm) in zip(*curves.values(), strict=True):
        assert other_loss == pytest.approx(loss, rel=0.01)
        assert other_norm == pytest.approx(norm, rel=0.1)
    tensors, _ = load_tensors(tmp_path / "bf16" / "last.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if name.startswith("model.")} == {
        torch.float32
    }


def test_bf16_is_resumed_to_the_last_bit(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    recipe = load(str(recipe_file), [*BUSY, "training.precision=bf16"])
    train(recipe, prepared, tmp_path / "whole")
    train(recipe, prepared, tmp_path / "parts", stop_after=6)
    train(recipe, prepared, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
