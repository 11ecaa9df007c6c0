"""What updates learn from: the plan's batches from any place on, made in a thread or not."""

import contextlib
import gc
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from s2s_cli.core.batches import Batch, BatchPlan, make_batch
from s2s_cli.core.events import Finished
from s2s_cli.core.prepared import Prepared
from s2s_cli.core.recipe import Recipe, load
from s2s_cli.core.tokenizer import EOS
from s2s_cli.core.trainer import Trainer, feed, loop
from s2s_cli.core.trainer.feed import THREAD, Feed, Update

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PATIENCE = 60.0  # seconds, after which a machine is not slow: something hangs
TOKENS = 30  # in a batch
DEPTHS = pytest.mark.parametrize("ahead", [0, 1, 2, 40])


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """By any test, however it ends what it began."""
    yield
    if threads():
        gc.collect()  # a failed test's frames hold feeds in circles
    for thread in threads():
        thread.join(PATIENCE)
    assert not threads()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


@pytest.fixture
def plan(prepared: Prepared) -> BatchPlan:
    """Batches of tokens, of which one epoch has more than another."""
    return BatchPlan(prepared.train, "tokens", TOKENS, 3, 1)


def tensors(batch: Batch) -> list[Tensor]:
    source = batch.source
    return [source.words, source.lengths, batch.inputs, batch.targets, batch.places]


def listed(update: Update) -> list[Any]:
    """All that an update tells, to compare."""
    parts = [[each.tolist() for each in tensors(part)] for part in update.parts]
    return [update.epoch, update.batch, update.batches, parts]


def some(made: Feed, count: int) -> list[list[Any]]:
    with contextlib.closing(made):
        return [listed(update) for update in itertools.islice(made, count)]


# --- which batches come ----------------------------------------------------------------------


@DEPTHS
@pytest.mark.parametrize("parts", [1, 3])
def test_the_plans_batches_come_epoch_after_epoch(
    plan: BatchPlan, recipe_file: Path, ahead: int, parts: int
) -> None:
    recipe = load(str(recipe_file), [f"batches.parts={parts}"])
    expected = []
    for epoch in range(3):
        batches = plan.epoch(epoch)
        for number in range(len(batches)):
            # As equal as can be, the larger ones first; a pair is not cut.
            cut = numpy.array_split(batches[number], min(parts, len(batches[number])))
            made = [make_batch(plan.pairs, rows, reverse=True, start=EOS) for rows in cut]
            expected.append(listed(Update(made, epoch, number, len(batches))))
    assert len({batches for _, _, batches, _ in expected}) > 1
    assert len({len(made) for *_, made in expected}) == parts
    assert some(Feed(plan, recipe, CPU, ahead=ahead), len(expected)) == expected


@DEPTHS
def test_a_feed_may_begin_anywhere(plan: BatchPlan, recipe: Recipe, ahead: int) -> None:
    whole = some(Feed(plan, recipe, CPU), 60)
    for place in (0, 1, 7, len(plan.epoch(0)) - 1, len(plan.epoch(0)), 40):
        epoch, batch, batches, _ = whole[place]
        begun = Feed(plan, recipe, CPU, epoch=epoch, batch=batch, ahead=ahead)
        assert begun.batches == batches
        assert some(begun, 60 - place) == whole[place:]


# --- when and where they are made ------------------------------------------------------------


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> "SimpleQueue[threading.Thread]":
    """The thread in which each batch is made, as they are."""
    queue: SimpleQueue[threading.Thread] = SimpleQueue()

    def spy(*arguments: Any, **options: Any) -> Batch:
        queue.put(threading.current_thread())
        return make_batch(*arguments, **options)

    monkeypatch.setattr(feed, "make_batch", spy)
    return queue


def test_without_a_thread_a_batch_is_made_when_it_is_asked_for(
    plan: BatchPlan, recipe: Recipe, makers: "SimpleQueue[threading.Thread]"
) -> None:
    made = Feed(plan, recipe, CPU)
    assert makers.empty()
    for _ in range(5):
        next(made)
        assert makers.get_nowait() is threading.main_thread()
        assert makers.empty()


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_thread_makes_so_many_ahead(
    plan: BatchPlan, recipe: Recipe, makers: "SimpleQueue[threading.Thread]", ahead: int
) -> None:
    made = Feed(plan, recipe, CPU, ahead=ahead)
    assert not threads()  # before anything is asked for
    next(made)
    (thread,) = threads()
    # These come by themselves; one more would come in time for the end of the thread.
    for _ in range(1 + ahead):
        assert makers.get(timeout=PATIENCE) is thread
    next(made)
    assert makers.get(timeout=PATIENCE) is thread
    made.close()
    assert makers.empty()


@pytest.mark.parametrize(("device", "ahead"), [(CPU, 0), (CPU, 2), (CUDA, 0), (CUDA, 2)])
def test_for_a_gpu_memory_is_pinned_and_copied_by_whoever_computes(
    plan: BatchPlan,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    ahead: int,
) -> None:
    """By stand-ins that note what happens to a batch: there may be no GPU here."""
    found: dict[int, list[Any]] = {}

    def pin(batch: Batch) -> Batch:
        found[id(batch)] = [batch, "pinned", threading.current_thread()]
        return batch

    def move(batch: Batch, to: torch.device) -> Batch:
        found.setdefault(id(batch), [batch]).extend([to, threading.current_thread()])
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pin)
    monkeypatch.setattr(Batch, "to", move)
    with contextlib.closing(Feed(plan, recipe, device, ahead=ahead)) as made:
        updates = list(itertools.islice(made, 4))
        maker = threads()[0] if ahead else threading.main_thread()
        pinned = ["pinned", maker] if device.type == "cuda" else []
        for update in updates:
            (batch,) = update.parts
            assert found[id(batch)] == [batch, *pinned, device, threading.main_thread()]


def test_all_of_a_batch_is_pinned(
    plan: BatchPlan, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch,) = next(Feed(plan, recipe, CPU)).parts
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1000)
    for before, after in zip(tensors(batch), tensors(batch.pin_memory()), strict=True):
        assert torch.equal(before + 1000, after)


# --- how it ends -----------------------------------------------------------------------------


@DEPTHS
def test_a_mistake_is_raised_where_its_batch_is_asked_for(
    plan: BatchPlan, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    made = itertools.count(1)

    def fails(*arguments: Any, **options: Any) -> Batch:
        if next(made) == 4:
            raise OSError("the disk is gone")
        return make_batch(*arguments, **options)

    monkeypatch.setattr(feed, "make_batch", fails)
    broken = Feed(plan, recipe, CPU, ahead=ahead)
    assert [next(broken).batch for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(broken)


@DEPTHS
def test_a_closed_feed_has_no_thread_and_no_update(
    plan: BatchPlan, recipe: Recipe, ahead: int
) -> None:
    used, unused = (Feed(plan, recipe, CPU, ahead=ahead) for _ in range(2))
    next(used)
    assert len(threads()) == (1 if ahead else 0)
    for made in (used, unused):
        assert not made.closed
        made.close()
        made.close()
        assert made.closed
        assert not threads()
        assert list(made) == []


def test_a_feed_that_nobody_has_any_more_has_no_thread(plan: BatchPlan, recipe: Recipe) -> None:
    made = Feed(plan, recipe, CPU, ahead=2)
    next(made)
    (thread,) = threads()
    gc.disable()  # nothing holds the feed in a circle
    try:
        del made
        thread.join(PATIENCE)
    finally:
        gc.enable()
    assert not thread.is_alive()


def test_a_program_ends_though_a_feed_is_open(recipe_file: Path, prepared: Prepared) -> None:
    program = f"""
from pathlib import Path
import torch
from s2s_cli.core.batches import BatchPlan
from s2s_cli.core.prepared import open_prepared
from s2s_cli.core.recipe import load
from s2s_cli.core.trainer.feed import Feed
plan = BatchPlan(open_prepared(Path({str(prepared.folder)!r})).train, "sentences", 8, 3, 1)
feed = Feed(plan, load({str(recipe_file)!r}), torch.device("cpu"), ahead=2)
print(next(feed).batches)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "8\n", "")


# --- in a training ---------------------------------------------------------------------------


@pytest.fixture(params=[0, 2])
def start(
    request: pytest.FixtureRequest,
    recipe_file: Path,
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Trainer]:
    """Makes a trainer in a folder of a name, its batches made in a thread or not."""

    def opened(*arguments: Any, **options: Any) -> Feed:
        return Feed(*arguments, **{**options, "ahead": request.param})

    monkeypatch.setattr(loop, "Feed", opened)
    changes = ["batches.unit=tokens", f"batches.size={TOKENS}", "training.epochs=2"]
    recipe = load(str(recipe_file), changes)
    return lambda name: Trainer(recipe, prepared, tmp_path / name, CPU)


def weights(trainer: Trainer) -> list[list[float]]:
    return [each.flatten().tolist() for each in trainer.model.parameters()]


def test_a_trainer_may_train_again_and_leaves_no_thread(
    start: Callable[[str], Trainer], plan: BatchPlan
) -> None:
    start("never trained")
    assert not threads()
    whole = start("whole")
    *_, finished = whole.train()
    assert isinstance(finished, Finished)
    assert (finished.update, finished.epoch) == (sum(len(plan.epoch(n)) for n in range(2)), 2.0)
    assert len({len(plan.epoch(number)) for number in range(2)}) == 2
    assert not threads()
    # Stopped, left in the middle, and gone on with, in the same object: nothing comes twice and
    # nothing is left out.
    parts = start("parts")
    list(parts.train(lambda: parts.place.update == 3))
    assert not threads()
    for event in parts.train():
        if event.update == 6:
            break
    del event
    assert (parts.place.update, threads()) == (6, [])
    *_, again = parts.train()
    assert (again.update, again.epoch) == (finished.update, finished.epoch)
    assert weights(parts) == weights(whole)
    assert not threads()


def test_an_update_that_failed_is_made_again(
    start: Callable[[str], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start("whole")
    list(whole.train())
    failing = start("failing")
    with monkeypatch.context() as patched:
        learn = failing._learner.learn

        def fails(*arguments: Any) -> Any:
            if failing.place.update == 4:
                raise MemoryError
            return learn(*arguments)

        patched.setattr(failing._learner, "learn", fails)
        with pytest.raises(MemoryError):
            list(failing.train())
    assert not threads()
    list(failing.train())
    assert weights(failing) == weights(whole)
