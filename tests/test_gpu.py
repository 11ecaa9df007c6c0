"""What only a CUDA device can show. Run with `make gpu-check`."""

from pathlib import Path

import numpy
import pytest
import torch
from conftest import NO_DROPOUT

from s2s_cli.core.batches import make_batch
from s2s_cli.core.device import autocast
from s2s_cli.core.events import Finished, Noted, Progress, Started
from s2s_cli.core.metrics import evaluate
from s2s_cli.core.model import Exposure, build
from s2s_cli.core.model.cells import FusedLayer, LayerNormLstm, PeepholeLstm, ResetBeforeGru
from s2s_cli.core.model.reading import read_backward, read_forward
from s2s_cli.core.model.recurrent import Recurrent
from s2s_cli.core.prepared import PackedPairs, PackedText, prepare
from s2s_cli.core.recipe import Recipe, load, recipe_folder
from s2s_cli.core.recipe.schema import Model
from s2s_cli.core.trainer import Trainer, graphs
from s2s_cli.core.trainer.learner import Learner
from s2s_cli.core.translator import Translator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")
CELLS = {
    "lstm": lambda inputs, hidden: FusedLayer(torch.nn.LSTM(inputs, hidden)),
    "gru": lambda inputs, hidden: FusedLayer(torch.nn.GRU(inputs, hidden)),
    "tanh": lambda inputs, hidden: FusedLayer(torch.nn.RNN(inputs, hidden)),
    "peephole": PeepholeLstm,
    "layer-norm": LayerNormLstm,
    "cho": lambda inputs, hidden: ResetBeforeGru(inputs, hidden, z_keeps=True),
}
QUICKSTART_BLEU = 41.0


def small(*changes: str) -> Recipe:
    sizes = [
        f"model.{side}.{key}=96"
        for side in ("encoder", "decoder")
        for key in ("embedding", "hidden")
    ]
    return load("quickstart", [*sizes, "training.log_every=5", *changes])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("cells", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_reading_equals_packed_sequences(cells: type[torch.nn.RNNBase]) -> None:
    torch.manual_seed(1)
    stack = Recurrent(cells(32, 48, 3)).to(CUDA)
    lengths = torch.tensor([9, 9, 7, 4, 4, 1])
    natural = [torch.randn(length, 32, device=CUDA) for length in lengths.tolist()]
    padded = torch.stack(
        [torch.cat([part.new_full((9 - len(part), 32), 7.0), part]) for part in natural], dim=1
    )
    packed = torch.nn.utils.rnn.pack_sequence(natural)
    packed_outputs, expected = stack.cells(packed)
    expected = expected if isinstance(expected, tuple) else (expected,)
    outputs, state = stack.read(padded, lengths)
    for ours, theirs in zip(state, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    tops = torch.nn.utils.rnn.unpack_sequence(packed_outputs)
    for row, theirs in enumerate(tops):
        start = len(padded) - len(theirs)
        torch.testing.assert_close(outputs[start:, row], theirs, rtol=1e-4, atol=1e-5)
        assert not outputs[:start, row].any()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_in_bf16_follow_fp32(cell: str, backward: bool) -> None:
    """Under autocast the words' vectors, and the first state, may be of either type."""
    torch.manual_seed(1)
    layer = CELLS[cell](16, 24).to(CUDA)
    lengths = torch.tensor([9, 7, 7, 1])
    inputs = torch.randn(9, 4, 16, device=CUDA)
    read = read_backward if backward else read_forward
    exact = read(layer, inputs, lengths)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast(CUDA.type, torch.bfloat16):
            outputs, state = read(layer, inputs.to(dtype), lengths)
        for ours, theirs in zip((outputs, *state), (exact[0], *exact[1]), strict=True):
            torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)
        layer.zero_grad()
        outputs.float().sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())


DECODERS = {
    "plain": {"kind": "plain", "bridge": "linear"},
    "peeky": {"kind": "peeky", "bridge": "tanh", "context": "tanh"},
    "luong": {"kind": "attention", "attention": {"kind": "general", "local_window": 2}},
    "location": {"kind": "attention", "attention": {"kind": "location", "longest": 5}},
    "feeding": {
        "kind": "attention",
        "attention": {"kind": "additive", "size": 16, "coverage": True},
        "input_feeding": True,
        "readout": {"kind": "tanh", "size": 16},
    },
    "bahdanau": {
        "kind": "attention",
        "attention": {"kind": "additive", "size": 16},
        "query": "previous",
        "bridge": "first-backward",
        "readout": {"kind": "maxout", "size": 16, "state": "previous", "word": True},
    },
    "rnmt-plus": {
        "kind": "attention",
        "attention": {"kind": "multi-head", "size": 16, "heads": 4},
        "query": "bottom",
        "residual_from": 2,
        "bridge": "zero",
    },
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("cell", ["lstm", "lstm-peephole", "lstm-layer-norm", "gru", "gru-cho"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_variants_equal_the_cpus(decoder: str, cell: str, precision: str) -> None:
    side = {"cell": cell, "layers": 2, "embedding": 16, "hidden": 16}
    table = Model.model_validate(
        {
            "encoder": {**side, "bidirectional": True},
            "decoder": {"bridge": "linear", **side, **DECODERS[decoder]},
        }
    )
    torch.manual_seed(1)
    model = build(table, source_vocabulary=12, target_vocabulary=12)
    pairs = PackedPairs(
        PackedText.pack([[5, 6, 7], [4, 5, 6, 7, 8], [9], [3, 3, 4, 8]]),
        PackedText.pack([[4, 5], [9, 8, 7, 6, 5, 4], [3, 3, 3], [6]]),
    )
    batch = make_batch(pairs, numpy.arange(4), reverse=False, start=2)
    exposure = Exposure(0.5, "token", "argmax")
    expected = model(batch)
    model.to(CUDA)
    for chosen in (None, exposure):
        model.zero_grad()
        with autocast(CUDA, precision):
            found = model(batch.to(CUDA), exposure=chosen)
        found.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        if chosen is None:
            tolerance = 1e-4 if precision == "fp32" else 0.03
            torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=0)


def test_fp16_learns_with_a_scaled_loss(folder: Path) -> None:
    recipe = small("training.max_updates=60", "training.precision=fp16", "optimizer.lr=0.005")
    trainer = Trainer(recipe, prepare(recipe), folder / "fp16", CUDA)
    losses = [event.loss for event in trainer.train() if isinstance(event, Progress)]
    assert losses[-1] < 0.8 * losses[0]


def test_losses_equal_the_cpus(folder: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        recipe = small("training.max_updates=20", *NO_DROPOUT)
        trainer = Trainer(recipe, prepare(recipe), folder / device, torch.device(device))
        losses[device] = [e.loss for e in trainer.train() if isinstance(e, Progress)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_bf16_losses_follow_fp32(folder: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = small("training.max_updates=100", f"training.precision={precision}", *NO_DROPOUT)
        trainer = Trainer(recipe, prepare(recipe), folder / precision, CUDA)
        losses[precision] = [e.loss for e in trainer.train() if isinstance(e, Progress)]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)


def test_translations_equal_the_cpus(folder: Path) -> None:
    recipe = small("training.max_updates=60")
    list(Trainer(recipe, prepare(recipe), folder / "run", CUDA).train())
    lines = (recipe_folder() / "data/tatoeba-en-fr/dev.en").read_text().splitlines()[:100]
    texts = [
        Translator.load(folder / "run", device=device).translate(lines)
        for device in ("cpu", "cuda")
    ]
    same = sum(ours == theirs for ours, theirs in zip(*texts, strict=True))
    assert same >= 98  # a near tie may fall the other way


def test_goes_on_after_an_interruption(folder: Path) -> None:
    recipe = small("training.max_updates=12", "training.save_every=4")
    corpus = prepare(recipe)
    whole = Trainer(recipe, corpus, folder / "whole", CUDA)
    list(whole.train())
    list(Trainer(recipe, corpus, folder / "parts", CUDA).train(iter([0, 0, 0, 0, 1]).__next__))
    parts = Trainer(recipe, corpus, folder / "parts", CUDA)
    assert parts.place.update == 5
    list(parts.train())
    for ours, theirs in zip(
        whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_flagship_takes_updates_in_bf16() -> None:
    """The paper's model at its full size: forward and backward of a batch of 128 x 30."""
    recipe = load("sutskever2014/wmt14-en-fr")
    torch.manual_seed(1)
    with CUDA:
        model = build(recipe.model, source_vocabulary=160_000, target_vocabulary=80_000)
    words = torch.randint(3, 80_000, (128, 29)).tolist()
    pairs = PackedPairs(PackedText.pack(words), PackedText.pack(words))
    batch = make_batch(pairs, numpy.arange(128), reverse=True, start=2).to(CUDA)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7, fused=True)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(batch)
        (loss / 128).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(float(loss.detach()) / batch.words)
    print(
        f"flagship losses {losses[0]:.3f} -> {losses[-1]:.3f}, "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )
    assert losses[-1] < losses[0]


# Many batches of few shapes, so that most updates are replays.
GRAPHED = ["training.max_updates=60", "training.log_every=1", "batches.size=16", "batches.pool=200"]
OPTIMIZERS = {
    "sgd": ["optimizer.kind=sgd", "optimizer.lr=0.5"],
    "momentum": ["optimizer.kind=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9"],
    "adam": ["optimizer.kind=adam", "optimizer.lr=0.001"],
}


class Counted(graphs.CudaGraphs):
    """Counts what it is asked for. A graph's replay says that it happens."""

    recorded = replayed = 0

    def record(self, work: graphs.Work) -> graphs.Work:
        replay = super().record(work)
        Counted.recorded += 1

        def counted() -> None:
            Counted.replayed += 1
            replay()

        return counted


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr("s2s_cli.core.trainer.learner.CudaGraphs", Counted)
    monkeypatch.setattr(graphs, "MEETINGS", 2)
    monkeypatch.setattr(Counted, "recorded", 0)
    monkeypatch.setattr(Counted, "replayed", 0)
    return Counted


def graphed_losses(folder: Path, graphed: bool, *changes: str) -> tuple[list[float], list[float]]:
    """Losses and norms of 60 updates. No recording may fail."""
    recipe = small(*GRAPHED, f"training.cuda_graphs={str(graphed).lower()}", *changes)
    events = list(Trainer(recipe, prepare(recipe), folder / f"graphs-{graphed}", CUDA).train())
    (started,) = (event for event in events if isinstance(event, Started))
    assert any("CUDA graphs" in line for line in started.techniques) == graphed
    assert not any(isinstance(event, Noted) for event in events)
    told = [event for event in events if isinstance(event, Progress)]
    return [event.loss for event in told], [event.norm for event in told]


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.03)])
def test_graphs_give_the_updates_without(
    rule: str, precision: str, tolerance: float, folder: Path, counted: type[Counted]
) -> None:
    changes = [*OPTIMIZERS[rule], f"training.precision={precision}", *NO_DROPOUT]
    expected = graphed_losses(folder, False, *changes)
    found = graphed_losses(folder, True, *changes)
    assert counted.replayed >= 10
    assert 0 < counted.recorded <= graphs.GRAPHS
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)


def test_graphs_learn_with_dropout(
    folder: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And there are no more of them than allowed."""
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    losses, _ = graphed_losses(folder, True, "training.max_updates=200", *OPTIMIZERS["adam"])
    assert counted.recorded == 2
    assert counted.replayed > 0
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_a_replay_draws_its_dropout_anew(where: str) -> None:
    """Between two layers, which is the kernel's own dropout, and on words' vectors."""
    for key in ("dropout", "embedding_dropout"):
        dropped = f"model.{where}.{key}=0.5"
        layers = [f"model.{side}.layers=2" for side in ("encoder", "decoder")]
        changes = ["model.encoder.bidirectional=false", *layers, *NO_DROPOUT, dropped]
        recipe = small("training.cuda_graphs=true", *changes)
        model = build(recipe.model, source_vocabulary=30, target_vocabulary=30).to(CUDA).train()
        learner = Learner(model, recipe.optimizer, recipe.training, CUDA)
        pairs = PackedPairs(*(PackedText.pack([[5, 6, 7, 8]] * 8) for _ in range(2)))
        batch = make_batch(pairs, numpy.arange(8), reverse=False, start=2).to(CUDA)
        # At no rate nothing but the masks differs.
        losses = [float(learner.learn([batch], 8, 0.0)[0]) for _ in range(graphs.MEETINGS + 5)]
        assert len(set(losses[graphs.MEETINGS :])) == 5, key


def test_an_update_after_a_failed_recording_is_harmed_by_nothing() -> None:
    """A recording that waits for the device breaks off; dropout goes on outside of it."""
    recorder = graphs.CudaGraphs(CUDA)
    numbers = torch.ones(100, device=CUDA)
    here, generator = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    with pytest.raises(RuntimeError):
        recorder.record(lambda: print(float(torch.nn.functional.dropout(numbers).sum())))
    assert torch.cuda.current_stream() == here
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    assert torch.nn.functional.dropout(numbers).sum() > 0
    replay = graphs.CudaGraphs(CUDA).record(lambda: numbers.add_(1))
    assert float(numbers.sum()) == 100
    replay()
    assert float(numbers.sum()) == 200


def test_quickstart_in_bf16_reaches_the_cpus_bleu(folder: Path) -> None:
    recipe = load("quickstart", ["training.precision=bf16"])
    *_, finished = Trainer(recipe, prepare(recipe), folder / "run", CUDA).train()
    test = recipe_folder() / "data/tatoeba-en-fr"
    lines = (test / "test.en").read_text(encoding="utf-8").split("\n")[:-1]
    references = (test / "test.fr").read_text(encoding="utf-8").split("\n")[:-1]
    hypotheses = Translator.load(folder / "run", device="cuda").translate(lines)
    (score,) = evaluate(hypotheses, [references], ["bleu"])
    assert isinstance(finished, Finished)
    print(f"quickstart on CUDA in bf16: {score}, {finished.seconds:.0f} s of training")
    assert score.value >= QUICKSTART_BLEU
