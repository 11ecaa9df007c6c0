"""Updates recorded for a shape and replayed: the same as without, by a tape in a graph's place.

Like a graph, a tape repeats operations on the very memory they used, with the numbers they were
given, and none of the Python between them.
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s2s_cli.core.batches import Batch, make_batch
from s2s_cli.core.events import Progress, Started
from s2s_cli.core.model import Exposure, Seq2Seq, build, loss
from s2s_cli.core.prepared import PackedPairs, PackedText, Prepared
from s2s_cli.core.recipe import load, schema
from s2s_cli.core.tokenizer import BOS
from s2s_cli.core.trainer import Trainer, graphs, loop
from s2s_cli.core.trainer.graphs import MEETINGS, Buffers, Work
from s2s_cli.core.trainer.learner import Learner

CPU = torch.device("cpu")
VOCABULARY = 23
UPDATES = 16
SIZES = [(4, 5), (7, 3), (4, 5), (2, 6)]  # longest source and target, EOS not counted
RULES = {
    "sgd": {"kind": "sgd", "lr": 0.5},
    "momentum": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "adam": {"kind": "adam", "lr": 0.01},
    "adamw": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
}
READ_OPTIMIZER: TypeAdapter[Any] = TypeAdapter(schema.Optimizer)


# --- a tape ----------------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """Writes down operations. All of their tensors stay, so that each has memory of its own.

    host: memory that a GPU's processor would have at hand; to read another number is to wait.
    """

    def __init__(self, host: Sequence[Tensor]) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.host = {memory(tensor) for tensor in host}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tensors((args, kwargs))
        known = bool(given) and all(memory(tensor) in self.host for tensor in given)
        if torch.Tag.data_dependent_output in function.tags and not known:
            raise RuntimeError(f"{function} waits for the device")
        found = function(*args, **kwargs)
        if known:
            self.host |= {memory(tensor) for tensor in tensors(found)}
        self.operations.append((function, args, kwargs, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, found in self.operations:
            before = {memory(tensor) for tensor in tensors((args, kwargs))}
            for old, new in zip(tensors(found), tensors(function(*args, **kwargs)), strict=True):
                if memory(old) not in before:  # else it was written in place, or is a view
                    old.copy_(new)


def tensors(nested: Any) -> list[Tensor]:
    """All dense tensors, those of which a sparse one is made too."""
    parts: list[Tensor] = []
    for each in tree_leaves(nested):
        if isinstance(each, Tensor):
            parts += [each._indices(), each._values()] if each.is_sparse else [each]
    return parts


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Tapes:
    """Records on tapes; what was done while it recorded is undone, for a graph does nothing then.

    host: lengths of sources, which stay on the processor.
    """

    def __init__(self) -> None:
        self.learner: Learner
        self.host: list[Tensor] = []
        self.rehearsed = self.recorded = self.replayed = 0
        self.error = ""

    def rehearse(self, work: Work) -> None:
        self.rehearsed += 1
        work()

    def record(self, work: Work) -> Work:
        optimizer = self.learner.optimizer
        # As torch's Adam wants it where a graph is recorded.
        assert all(group.get("capturable", True) for group in optimizer.param_groups)
        kept = [*self.learner.model.parameters(), *tensors(list(optimizer.state.values()))]
        saved = [tensor.detach().clone() for tensor in kept]
        generator = torch.get_rng_state()
        with Tape(self.host) as tape:
            work()
        with torch.no_grad():
            for tensor, values in zip(kept, saved, strict=True):
                tensor.copy_(values)
        torch.set_rng_state(generator)
        if self.error:
            raise RuntimeError(self.error)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay


# --- what learns -----------------------------------------------------------------------------


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Tapes:
    """A recorder; losses are of a few words at a time, chunks of 7 words in slices of 3."""
    made = Tapes()
    of_shape = Buffers.of_shape

    def remembered(batch: Batch, kind: torch.dtype) -> Buffers:
        buffers = of_shape(batch, kind)
        made.host.append(buffers.batch.source.lengths)
        return buffers

    monkeypatch.setattr(Buffers, "of_shape", remembered)
    monkeypatch.setitem(loss.CHUNK, "cpu", 7 * VOCABULARY + 5)
    monkeypatch.setattr(loss, "SLICE", 3)
    return made


def model_of(kind: torch.dtype = torch.float64, tie: str = "none", **changes: Any) -> Seq2Seq:
    side = {"layers": 1, "embedding": 8, "hidden": 8, "dropout": 0.0}
    recipe = {
        "tie": tie,
        "encoder": {**side, **changes.get("encoder", {})},
        "decoder": {**side, "kind": "plain", **changes.get("decoder", {})},
    }
    torch.manual_seed(5)
    vocabularies = {"source_vocabulary": VOCABULARY, "target_vocabulary": VOCABULARY}
    return build(schema.Model.model_validate(recipe), **vocabularies).to(kind)


def learner_of(
    model: Seq2Seq, rule: str = "sgd", recorder: Tapes | None = None, **settings: Any
) -> Learner:
    keys = {"epochs": 1, "clip": 0.2, "cuda_graphs": recorder is not None, **settings}
    spec = READ_OPTIMIZER.validate_python(RULES[rule])
    learner = Learner(model, spec, schema.Training.model_validate(keys), CPU, recorder)
    if recorder:
        recorder.learner = learner
    return learner


def batch_of(source: int, target: int, seed: int, shortest: int | None = None) -> Batch:
    """Six pairs; the sources of one length, unless there is a shortest, targets up to theirs."""
    random = numpy.random.default_rng(seed)
    lengths = [source, *random.integers(shortest or source, source + 1, 5)]
    sources = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
    lengths = [target, *random.integers(1, target + 1, 5)]
    targets = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
    pairs = PackedPairs(PackedText.pack(sources), PackedText.pack(targets))
    return make_batch(pairs, numpy.arange(6), reverse=True, start=BOS)


def batches(count: int = UPDATES) -> list[Batch]:
    """Of three shapes, one of them twice as often; how many words count differs in each."""
    return [batch_of(*SIZES[number % len(SIZES)], seed=number) for number in range(count)]


def learned(learner: Learner, made: Sequence[Batch]) -> list[tuple[float, float]]:
    """Losses and norms, all read at the end: an update must leave those before it alone."""
    learner.model.train()
    torch.manual_seed(8)
    found = [
        learner.learn([batch], 6 + number % 3, 0.3 * 0.95**number)
        for number, batch in enumerate(made)
    ]
    return [(float(total), float(norm)) for total, norm in found]


def assert_same(ours: Learner, theirs: Learner, made: Sequence[Batch]) -> None:
    before = [weights.detach().clone() for weights in ours.model.parameters()]
    numpy.testing.assert_allclose(learned(ours, made), learned(theirs, made), rtol=1e-6)
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    for (mine, weights), first in zip(pairs, before, strict=True):
        moved = (weights - first).abs().max()
        assert (mine - weights).abs().max() <= 1e-9 * moved


# --- the same updates ------------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["none", "softmax"])
@pytest.mark.parametrize("rule", RULES)
def test_replays_are_the_updates_as_they_are_written(rule: str, tie: str, tapes: Tapes) -> None:
    """With rates, divisors and words that change, some updates clipped, and smoothing."""
    model = model_of(tie=tie)
    twin = copy.deepcopy(model)
    plain = learner_of(twin, rule, label_smoothing=0.1)
    taped = learner_of(model, rule, tapes, label_smoothing=0.1)
    assert_same(taped, plain, batches())
    assert (tapes.rehearsed, tapes.recorded) == (3, 3)
    assert tapes.replayed == UPDATES - 3 * MEETINGS
    # A checkpoint keeps the optimiser's numbers as text.
    kept = taped.optimizer.state_dict()["param_groups"]
    assert kept == plain.optimizer.state_dict()["param_groups"]


def test_a_replay_draws_its_dropout_anew(tapes: Tapes) -> None:
    side = {"dropout": 0.3, "embedding_dropout": 0.3, "layers": 2}
    model = model_of(encoder=side, decoder={**side, "output_dropout": 0.3})
    plain = learner_of(copy.deepcopy(model))
    assert_same(learner_of(model, recorder=tapes), plain, batches())
    # The same batch twice, at no rate: only the masks differ.
    taped, batch = tapes.learner, batches()[0]
    losses = {float(taped.learn([batch], 6, 0.0)[0]) for _ in range(4)}
    assert len(losses) == 4


DECODERS = {
    "peeky": {"kind": "peeky", "bridge": "tanh", "context": "tanh"},
    "luong": {"kind": "attention", "attention": {"kind": "general", "local_window": 2}},
    "location": {"kind": "attention", "attention": {"kind": "location", "longest": 5}},
    "feeding": {
        "kind": "attention",
        "attention": {"kind": "additive", "size": 8, "coverage": True},
        "input_feeding": True,
        "readout": {"kind": "tanh", "size": 8},
    },
    "bahdanau": {
        "kind": "attention",
        "cell": "gru-cho",
        "attention": {"kind": "additive", "size": 8},
        "query": "previous",
        "bridge": "first-backward",
        "readout": {"kind": "maxout", "size": 8, "state": "previous", "word": True},
    },
    "rnmt-plus": {
        "kind": "attention",
        "cell": "lstm-layer-norm",
        "layers": 2,
        "attention": {"kind": "multi-head", "size": 8, "heads": 4},
        "query": "bottom",
        "residual_from": 2,
        "bridge": "zero",
    },
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_model_waits_for_its_device(decoder: str, tapes: Tapes) -> None:
    """Nor keeps a number of the batch that was recorded."""
    keys = {"bridge": "linear", **DECODERS[decoder]}
    cell = {"cell": keys.get("cell", "lstm"), "layers": keys.get("layers", 1)}
    model = model_of(encoder={**cell, "bidirectional": True}, decoder=keys)
    plain = learner_of(copy.deepcopy(model))
    assert_same(learner_of(model, recorder=tapes), plain, [batch_of(4, 5, n) for n in range(7)])
    assert tapes.replayed == 7 - MEETINGS


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_has_no_loss_and_no_gradient(smoothing: float, tapes: Tapes) -> None:
    del tapes  # several chunks
    torch.manual_seed(2)
    counted = torch.rand(20) < 0.6
    ids = torch.randint(0, VOCABULARY, (20,))
    found = []
    for rows, targets in (
        (slice(None), torch.stack([ids, counted.long()])),
        (counted, ids[counted]),
    ):
        torch.manual_seed(3)
        parts = [torch.randn(shape, dtype=torch.float64) for shape in ((20, 4), (23, 4), (23,))]
        features, weight, bias = (part.requires_grad_() for part in parts)
        total = loss.full_loss(features[rows], weight, bias, targets, smoothing)
        found.append([total, *torch.autograd.grad(total, [features, weight, bias])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not found[0][1][~counted].any()


# --- which updates ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["two parts", "its own words", "lengths", "evaluation"])
def test_what_is_not_for_a_graph_is_learned_as_written(how: str, tapes: Tapes) -> None:
    learner = learner_of(model_of(), recorder=tapes)
    learner.model.train(how != "evaluation")
    parts = [batch_of(4, 5, 1, shortest=2 if how == "lengths" else None)]
    parts *= 2 if how == "two parts" else 1
    exposure = Exposure(0.5, "token", "argmax") if how == "its own words" else None
    before = [weights.detach().clone() for weights in learner.model.parameters()]
    for _ in range(2 * MEETINGS):
        learner.learn(parts, 6, 0.1, exposure)
    assert tapes.rehearsed == tapes.recorded == 0
    after = learner.model.parameters()
    assert not all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_shape_is_recorded_when_it_is_frequent(tapes: Tapes) -> None:
    learner = learner_of(model_of(), recorder=tapes)
    told = []
    for number in range(MEETINGS + 2):
        for target in (3, 4):
            learned(learner, [batch_of(4, target, number)])
            told.append((tapes.rehearsed, tapes.recorded, tapes.replayed))
    first = 2 * (MEETINGS - 1)
    assert told[:first] == [(0, 0, 0)] * first
    assert told[first:] == [(1, 1, 0), (2, 2, 0), (2, 2, 1), (2, 2, 2), (2, 2, 3), (2, 2, 4)]


def test_there_are_not_too_many_graphs(tapes: Tapes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    plain = learner_of(model_of())
    assert_same(learner_of(model_of(), recorder=tapes), plain, batches())
    assert tapes.recorded == 2
    assert tapes.replayed > 0


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_recording_that_fails_is_told_and_harms_nothing(rule: str, tapes: Tapes) -> None:
    plain = learner_of(model_of(), rule)
    ours = learner_of(model_of(), rule, tapes)
    half = 12
    made = batches(half)
    learned(plain, made[:half]), learned(ours, made[:half])
    assert tapes.recorded == 3
    tapes.error = "operation not permitted when stream is capturing\nCUDA kernel errors might"
    made += [batch_of(3, 3, number) for number in range(MEETINGS + 1)] + batches(4)
    replayed = None
    found = []
    notes = []
    for batch in made[half:]:
        found += learned(ours, [batch])
        notes += ours.take_notes()
        if tapes.rehearsed == 4 and replayed is None:
            replayed = tapes.replayed
            assert all(weights.grad is None for weights in ours.model.parameters())
    expected = [learned(plain, [batch])[0] for batch in made[half:]]
    numpy.testing.assert_allclose(found, expected, rtol=1e-6)
    (note,) = notes
    assert note.startswith("no CUDA graphs from here on")
    assert tapes.replayed == replayed  # nor are the earlier ones
    assert ours.techniques[-1] == (
        "off: CUDA graphs (operation not permitted when stream is capturing)"
    )
    for mine, weights in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, weights, rtol=1e-8, atol=1e-10)
    states = [learner.optimizer.state_dict()["param_groups"] for learner in (ours, plain)]
    assert states[0] == states[1]


# --- a training ------------------------------------------------------------------------------


def test_techniques_tell_of_graphs(tapes: Tapes) -> None:
    assert (
        learner_of(model_of(), recorder=tapes).techniques[-1] == "CUDA graphs: of frequent shapes"
    )
    unasked = learner_of(model_of(), recorder=tapes, cuda_graphs=False)
    assert not any("CUDA" in line for line in unasked.techniques)
    without = learner_of(model_of(), cuda_graphs=True)
    assert without.techniques[-1] == "off: CUDA graphs (they need a CUDA device)"


@pytest.mark.parametrize("why", ["adagrad", "fp16", "adaptive"])
def test_what_no_graph_can_hold(why: str) -> None:
    softmax = {"softmax": {"kind": "adaptive", "cutoffs": (5, 12), "reduction": 1.5}}
    model = model_of(decoder=softmax if why == "adaptive" else {})
    kind = "adagrad" if why == "adagrad" else "sgd"
    spec = READ_OPTIMIZER.validate_python({"kind": kind, "lr": 0.1})
    precision = "fp16" if why == "fp16" else "fp32"
    settings = schema.Training.model_validate({"precision": precision})
    assert why in graphs.obstacle(model, spec, settings, "cuda")
    assert not graphs.obstacle(
        model_of(), READ_OPTIMIZER.validate_python(RULES["adam"]), schema.Training(), "cuda"
    )


def test_a_training_with_graphs_is_the_same_and_goes_on_without(
    recipe_file: Path,
    prepared: Prepared,
    tmp_path: Path,
    tapes: Tapes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From its checkpoint, in the middle; dropout is on."""

    def trained(folder: str, *changes: str) -> tuple[list[float], tuple[str, ...]]:
        settings = ["evaluation.metrics=[]", "training.log_every=1", "batches.size=2", *changes]
        trainer = Trainer(load(str(recipe_file), settings), prepared, tmp_path / folder, CPU)
        tapes.learner = trainer._learner
        events = list(trainer.train())
        losses = [event.loss for event in events if isinstance(event, Progress)]
        (told,) = (event.techniques for event in events if isinstance(event, Started))
        return losses, told

    monkeypatch.setattr(graphs, "MEETINGS", 2)
    expected, _ = trained("plain", "training.epochs=3.0")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Learner", partial(Learner, recorder=tapes))
        patch.setattr(torch.backends.mkldnn, "enabled", False)  # its layers hide what they keep
        first, told = trained("graphs", "training.epochs=2.0", "training.cuda_graphs=true")
    assert tapes.replayed > 0
    assert "CUDA graphs: of frequent shapes" in told
    then, _ = trained("graphs", "training.epochs=3.0")
    assert first + then == pytest.approx(expected, rel=1e-3)
