"""Where the time of an update goes, how little it could be, and what data and memory cost.

# B sentences, S source steps, T target steps, E embedding, H hidden, F features, V vocabulary
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from training_programs import Ours, run_round, wait
from training_setting import Setting

from s2s_cli.core.device import autocast, find_device
from s2s_cli.core.recipe.schema import AttentionDecoder, Model

PARTS = ("data", "encoder", "decoder", "loss", "clip and optimiser")
EXACT = 1e-5  # products that are off by more, relatively, are not fp32


# --- parts of an update ----------------------------------------------------------------------


def split(program: Ours, rounds: int) -> list[dict[str, float]]:
    """Seconds of each part in a round over the batches, of the whole, and of the rest.

    The graph is cut between the parts, and each goes forward and backward by itself, with the
    gradients that the next one has left; they are real updates.
    """
    found = []
    for number in range(rounds + 1):
        spent = dict.fromkeys(PARTS, 0.0)
        for rows in program.batches:
            for part, seconds in in_parts(program, rows):
                spent[part] += seconds
        spent["whole"] = run_round(program)["seconds"]
        spent["rest"] = spent["whole"] - sum(spent[part] for part in PARTS)
        if number:  # the first is a warm-up
            found.append(spent)
    return found


def in_parts(program: Ours, rows: Any) -> Iterator[tuple[str, float]]:
    """An update, part by part: names and seconds."""
    model, device = program.model, program.device
    decoder, settings = model.decoder, program.recipe.training
    clock = Clock(device)

    batch = program.batch(rows)
    count = program.divisor(batch)
    yield "data", clock.lap()

    program.learner.optimizer.zero_grad(set_to_none=True)
    clock.lap()
    with autocast(device, settings.precision):
        encoded = model.encoder(batch.source)
    yield "encoder", clock.lap()

    leaves = cut(encoded)
    clock.lap()
    with autocast(device, settings.precision):
        features, _ = decoder(batch.inputs, decoder.start(leaves))
    yield "decoder", clock.lap()

    read = features.detach().requires_grad_()
    clock.lap()
    with autocast(device, settings.precision):
        real = read.flatten(0, 1).index_select(0, batch.places)
        loss = decoder.output.loss(real, batch.targets, settings.label_smoothing)
    (loss / count).backward()
    yield "loss", clock.lap()

    features.backward(read.grad)
    yield "decoder", clock.lap()

    pairs = [
        (whole, leaf.grad)
        for whole, leaf in zip(tensors(encoded), tensors(leaves), strict=True)
        if leaf.grad is not None
    ]
    clock.lap()
    torch.autograd.backward([whole for whole, _ in pairs], [gradient for _, gradient in pairs])
    yield "encoder", clock.lap()

    program.learner._descend(program.recipe.optimizer.lr)
    yield "clip and optimiser", clock.lap()


class Clock:
    """Seconds since it was asked last; a GPU is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        wait(device)
        self._last = time.perf_counter()

    def lap(self) -> float:
        wait(self._device)
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def cut(encoded: Any) -> Any:
    """The same numbers, without where they come from."""

    def leaf(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(leaf(part) for part in value)
        if isinstance(value, Tensor) and value.requires_grad:
            return value.detach().requires_grad_()
        return value

    fields = {field.name: getattr(encoded, field.name) for field in dataclasses.fields(encoded)}
    return dataclasses.replace(encoded, **{name: leaf(value) for name, value in fields.items()})


def tensors(encoded: Any) -> list[Tensor]:
    """All that has, or could have, a gradient."""
    values = [getattr(encoded, field.name) for field in dataclasses.fields(encoded)]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else [value])]
    return [part for part in flat if isinstance(part, Tensor) and part.is_floating_point()]


# --- the floor -------------------------------------------------------------------------------


def multiply_adds(program: Ours) -> dict[str, int]:
    """Multiplications and additions, in pairs, of all products of a round, forward alone.

    Of real words only: what padding costs is no part of what has to be computed.
    """
    lengths = [program.lengths(rows) for rows in program.batches]
    source, target = program.words
    both = sum(int((one * other).sum()) for one, other in lengths)
    return products(program.recipe.model, source, target, both, program.corpus.target_vocabulary)


def products(model: Model, source: int, target: int, both: int, vocabulary: int) -> dict[str, int]:
    """The same from counts: words of either side, and the sum of S T over all pairs."""
    encoder, decoder = model.encoder, model.decoder
    width, hidden = encoder.width, decoder.hidden
    features = decoder.readout.size or hidden
    fed = attention = 0
    if isinstance(decoder, AttentionDecoder):
        kind = decoder.attention.kind
        if kind == "general":
            attention = source * width * hidden + both * hidden
        elif kind == "additive":
            size = decoder.attention.size
            attention = (source * width + target * hidden) * size + both * size
        else:
            raise ValueError(f"there is no formula for attention {kind}")
        attention += both * width + target * (hidden + width) * features
        if decoder.query == "previous":
            fed = width
        elif decoder.input_feeding:
            fed = features
    return {
        "encoder": source * lstm(encoder.embedding, encoder.hidden, encoder.layers),
        "decoder": target * lstm(decoder.embedding + fed, hidden, decoder.layers) + attention,
        "loss": target * features * vocabulary,
    }


def lstm(inputs: int, hidden: int, layers: int) -> int:
    """Multiply-adds of a step of a stack of LSTM layers: input and recurrent products."""
    return 4 * hidden * sum((hidden if layer else inputs) + hidden for layer in range(layers))


def fill(program: Ours) -> dict[str, dict[str, float]]:
    """The share of real words in the matrices of a round's batches, and of a whole epoch's."""
    epoch = program.corpus.plan(program.recipe).epoch(0)
    chosen = {"round": program.batches, "epoch": [epoch[number] for number in range(len(epoch))]}
    shares = {}
    for name, batches in chosen.items():
        real, padded = [0, 0], [0, 0]
        for rows in batches:
            for side, lengths in enumerate(program.lengths(rows)):
                real[side] += int(lengths.sum())
                padded[side] += int(lengths.max()) * len(rows)
        shares[name] = {"source": real[0] / padded[0], "target": real[1] / padded[1]}
    return shares


def peaks(setting: Setting, shapes: dict[str, tuple[int, int, int]]) -> dict[str, float]:
    """Multiply-adds a second of matrix products, the best of torch's ways, in fp32 or bf16.

    In a process of its own. On a CPU, fp32 products are also tried by oneDNN, and counted where
    they are fp32's to rounding.
    """
    device = find_device(setting.device)
    kind = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    tries_onednn = device.type == "cpu" and kind == torch.float32
    found = {}
    for name, (rows, inner, columns) in shapes.items():
        one = torch.randn(rows, inner, device=device).to(kind)
        other = torch.randn(columns, inner, device=device).to(kind)
        room = torch.empty(rows, columns, device=device, dtype=kind)
        expected = one @ other.T
        rates = []
        for onednn in (False, True) if tries_onednn else (False,):
            with onednn_products() if onednn else contextlib.nullcontext():
                seconds = fastest(
                    lambda a=one, b=other.T, out=room: torch.mm(a, b, out=out), device
                )
                if float((room - expected).norm() / expected.norm()) < EXACT:
                    rates.append(rows * inner * columns / seconds)
        found[name] = max(rates)
    return found


@contextlib.contextmanager
def onednn_products() -> Iterator[None]:
    """Lets oneDNN compute fp32 products, in bf16 where it likes to."""
    matmul = torch.backends.mkldnn.matmul
    stock, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = stock


def fastest(work: Callable[[], object], device: torch.device, seconds: float = 0.4) -> float:
    """Seconds of the fastest of some calls."""
    best = float("inf")
    with torch.no_grad():
        work()
        ends = time.perf_counter() + seconds
        while best == float("inf") or time.perf_counter() < ends:
            wait(device)
            started = time.perf_counter()
            work()
            wait(device)
            best = min(best, time.perf_counter() - started)
    return best


def shapes(program: Ours) -> dict[str, tuple[int, int, int]]:
    """Of the largest products of the model on a mean batch: rows, inner numbers, columns."""
    decoder = program.recipe.model.decoder
    sentences = round(statistics.mean(len(rows) for rows in program.batches))
    words = round(program.words[1] / len(program.batches))
    features = decoder.readout.size or decoder.hidden
    return {
        "for comparison": (2048, 2048, 2048),
        "softmax": (words, features, program.corpus.target_vocabulary),
        "gates, all inputs": (words, decoder.embedding, 4 * decoder.hidden),
        "gates, a step": (sentences, decoder.hidden, 4 * decoder.hidden),
    }


def floor(program: Ours) -> dict[str, Any]:
    """All that the floor is computed from, but the machine's own speed."""
    return {
        "multiply-adds": multiply_adds(program),
        "shapes": shapes(program),
        "real words": fill(program),
    }


# --- data ------------------------------------------------------------------------------------


def data(program: Ours, rounds: int) -> list[float]:
    """Seconds that all batches of a round take to be made."""
    found = []
    for _ in range(rounds + 1):
        clock = Clock(program.device)
        for rows in program.batches:
            program.batch(rows)
        found.append(clock.lap())
    return found[1:]
