"""What updates learn from: the batches of a plan, epoch after epoch, cut and on the device."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy
import torch

from s2s_cli.core.batches import Batch, BatchPlan, Epoch, Indices, make_batch
from s2s_cli.core.recipe import Recipe
from s2s_cli.core.translator import first_word

AHEAD = 2  # batches, where a thread of the processor makes them while a GPU computes
THREAD = "s2s-batches"


@dataclass(frozen=True)
class Update:
    """What one update learns from.

    parts: of its batch, on the device; epoch and batch: their numbers; batches: in that epoch.
    """

    parts: list[Batch]
    epoch: int
    batch: int
    batches: int


class Feed:
    """The updates from a batch of an epoch on, without end.

    They are a function of the plan: the same come wherever a feed begins, thread or none. `ahead`
    is how many a thread makes before they are asked for; with 0 there is no thread, and each is
    made when it is asked for: on a CPU a thread would take its time from the model.

    batches: in the epoch in which the feed begins; closed: whether it has ended.

    Example:
        with contextlib.closing(Feed(plan, recipe, torch.device("cpu"))) as feed:
            for update in feed:
                ...
    """

    def __init__(
        self,
        plan: BatchPlan,
        recipe: Recipe,
        device: torch.device,
        *,
        epoch: int = 0,
        batch: int = 0,
        ahead: int = 0,
    ) -> None:
        first = plan.epoch(epoch)
        self.batches = len(first)
        self.closed = False
        self._device = device
        self._ahead = ahead
        # The thread knows this alone and not the feed, and ends when nobody knows the feed.
        self._made = _updates(plan, recipe, first, epoch, batch, pinned=device.type == "cuda")
        self._thread = ThreadPoolExecutor(1, THREAD)  # begins with the first update asked for
        self._coming: deque[Future[Update]] = deque()

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        """The next update. What went wrong in the thread is raised here."""
        if self.closed:
            raise StopIteration
        update = self._from_thread() if self._ahead else next(self._made)
        return replace(update, parts=[part.to(self._device) for part in update.parts])

    def _from_thread(self) -> Update:
        while len(self._coming) <= self._ahead:
            self._coming.append(self._thread.submit(next, self._made))
        return self._coming.popleft().result()

    def close(self) -> None:
        """Ends the thread, if there is one, and forgets what it has made."""
        self.closed = True
        self._thread.shutdown(cancel_futures=True)
        self._coming.clear()
        self._made.close()


def _updates(
    plan: BatchPlan, recipe: Recipe, batches: Epoch, epoch: int, batch: int, *, pinned: bool
) -> Generator[Update, None, None]:
    """The updates in the processor's memory; `batches` are those of `epoch`."""
    start, reverse = first_word(recipe), recipe.model.reverse_source
    while True:
        for number in range(batch, len(batches)):
            parts = [
                make_batch(plan.pairs, rows, reverse=reverse, start=start)
                for rows in _parts(batches[number], recipe.batches.parts)
            ]
            if pinned:
                parts = [part.pin_memory() for part in parts]
            yield Update(parts, epoch, number, len(batches))
        epoch, batch = epoch + 1, 0
        del batches  # before the next are made: there is room for one epoch alone
        batches = plan.epoch(epoch)


def _parts(rows: Indices, count: int) -> list[Indices]:
    """A batch in `count` parts, or one a pair where it has fewer."""
    return [part for part in numpy.array_split(rows, count) if len(part)]
