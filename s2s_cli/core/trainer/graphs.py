"""Updates of frequent shapes, recorded once and replayed: CUDA graphs.

A GPU that has little to compute waits for the processor, which launches each of an update's
kernels by itself; a graph launches all of them at once. It repeats addresses and numbers as they
were, so what differs between two batches of a shape stands in buffers: their words, how many of
them count, the learning rate.

# S longest source, T longest target, B sentences of a batch
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from s2s_cli.core.batches import Batch, SourceBatch
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.model.output import AdaptiveSoftmax
from s2s_cli.core.recipe.schema import Adam, Optimizer, Sgd, Training

MEETINGS = 3  # of a shape until it is recorded
GRAPHS = 64  # at most; they share their memory, but each takes some of the driver's

Work = Callable[[], None]
Step = Callable[[Sequence[Batch], Tensor, Tensor], tuple[Tensor, Tensor]]
Shape = tuple[int, int, int]


class Recorder(Protocol):
    """Records what a device is told to do. What is replayed must find its tensors in place."""

    def rehearse(self, work: Work) -> None:
        """Does it, as it will be recorded: libraries prepare themselves at their first call."""
        ...

    def record(self, work: Work) -> Work:
        """What does it again, each time it is called; it is not done now.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        ...


class CudaGraphs:
    """All that is asked of torch's CUDA graphs, on one device and in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def rehearse(self, work: Work) -> None:
        """Does it in the stream that is recorded later."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            work()
        here.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """A graph's replay.

        Raises:
            RuntimeError: something in it waits for the device, or there is no memory for it.
        """
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            before = generator.clone_state()
            graph = torch.cuda.CUDAGraph()
            try:
                # Not "global": the thread that makes batches may pin memory meanwhile.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    work()
            except BaseException:
                # Where a recording breaks off, torch stays in its stream, and the generator waits
                # for the recording's end: the next dropout would fail.
                torch.cuda.set_stream(here)
                generator.graphsafe_set_state(before)
                raise
        return graph.replay


@dataclass(frozen=True)
class Buffers:
    """What the graph of a shape reads and writes, outside of the graphs' memory.

    batch: its targets are those of all T * B places, with a 1 below those that count, as
    `full_loss` has it; count: what the loss is divided by; rate: the learning rate; loss and norm:
    the update's. The latter four are [].
    """

    batch: Batch
    count: Tensor
    rate: Tensor
    loss: Tensor
    norm: Tensor

    @classmethod
    def of_shape(cls, batch: Batch, kind: torch.dtype) -> "Buffers":
        """For batches of this one's shape and lengths and weights of a kind."""
        inputs, lengths = batch.inputs, batch.source.lengths.clone()
        if inputs.is_cuda:
            lengths = lengths.pin_memory()  # else a graph could not copy them
        padded = Batch(
            source=SourceBatch(torch.zeros_like(batch.source.words), lengths),
            inputs=torch.zeros_like(inputs),
            targets=inputs.new_zeros(2, inputs.numel()),
            places=torch.arange(inputs.numel(), device=inputs.device),
        )
        return cls(padded, *torch.zeros(4, dtype=kind, device=inputs.device).unbind())

    def fill(self, batch: Batch, count: int, rate: float) -> None:
        """Puts a batch into them. Nothing here waits for a GPU."""
        self.batch.source.words.copy_(batch.source.words)
        self.batch.inputs.copy_(batch.inputs)
        ids, counted = self.batch.targets.zero_()
        ids.index_copy_(0, batch.places, batch.targets)
        counted.index_fill_(0, batch.places, 1)
        self.count.fill_(count)
        self.rate.fill_(rate)


class GraphedUpdates:
    """Replays the updates of frequent shapes, as many as there is room for.

    A shape is (S, T, B), of batches whose sources are all of one length, so that the encoder reads
    them in one call. When it has been met `MEETINGS` times that update is a rehearsal: the padded
    batch is learned from, a kernel at a time. Then it is recorded, and replayed from there on.

    failure: why a shape could not be recorded, and none should be any more; "" while all could.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
        """step: an update by parts, a count and a rate; it gives the loss and the norm."""
        self.failure = ""
        self._step = step
        self._optimizer = optimizer
        self._recorder = recorder
        self._kind: torch.dtype = optimizer.param_groups[0]["params"][0].dtype
        self._met: Counter[Shape] = Counter()
        self._replays: dict[Shape, tuple[Buffers, Work]] = {}

    def learn(self, batch: Batch, count: int, rate: float) -> tuple[Tensor, Tensor] | None:
        """The update's loss and norm; None, and nothing done, where the batch is not for a graph.

        The optimiser's own learning rate may be a buffer afterwards.
        """
        lengths = batch.source.lengths
        if lengths[0] != lengths[-1]:
            return None
        shape = (len(batch.source.words), *batch.inputs.shape)
        if shape not in self._replays:
            return self._rehearse(shape, batch, count, rate)
        buffers, replay = self._replays[shape]
        buffers.fill(batch, count, rate)
        replay()
        return buffers.loss.clone(), buffers.norm.clone()

    def _rehearse(
        self, shape: Shape, batch: Batch, count: int, rate: float
    ) -> tuple[Tensor, Tensor] | None:
        """Learns from a shape that has become frequent, and records it."""
        if len(self._replays) >= GRAPHS:
            return None
        self._met[shape] += 1
        if self._met[shape] < MEETINGS:
            return None
        buffers = Buffers.of_shape(batch, self._kind)

        def update() -> None:
            loss, norm = self._step([buffers.batch], buffers.count, buffers.rate)
            buffers.loss.copy_(loss)
            buffers.norm.copy_(norm)

        buffers.fill(batch, count, rate)
        self._recorder.rehearse(update)
        found = buffers.loss.clone(), buffers.norm.clone()
        try:
            self._replays[shape] = buffers, self._record(update)
        except RuntimeError as error:
            self._give_up(error)
        return found

    def _record(self, update: Work) -> Work:
        """Records an update, of which no gradient stays: it would keep the graphs' memory."""
        groups = [group for group in self._optimizer.param_groups if "capturable" in group]
        for group in groups:  # Adam refuses to be recorded without, and asks for nothing else
            group["capturable"] = True
        try:
            return self._recorder.record(update)
        finally:
            for group in groups:
                group["capturable"] = False
            self._optimizer.zero_grad(set_to_none=True)

    def _give_up(self, error: RuntimeError) -> None:
        """Forgets all graphs: one that broke off may have left the others' memory in disorder."""
        self._replays.clear()
        self.failure = str(error).split("\n", 1)[0] or type(error).__name__


def obstacle(model: Seq2Seq, spec: Optimizer, settings: Training, device: str) -> str:
    """What stands in the way of graphs in a whole training; "" where nothing does."""
    if device != "cuda":
        return "they need a CUDA device"
    if settings.precision == "fp16":
        return "fp16 leaves updates out"
    if not isinstance(spec, Sgd | Adam):
        return f"{spec.kind} counts its steps on the processor"
    if isinstance(model.decoder.output, AdaptiveSoftmax):
        return "an adaptive softmax sorts words by their values"
    return ""
