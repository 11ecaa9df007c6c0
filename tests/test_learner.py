"""One update, done in shorter ways: what comes out is what plain torch computes.

The plain way, written out here: all logits at once, dense gradients of word vectors, torch's
clipping and torch's optimisers.
"""

import copy
import itertools
from typing import Any

import numpy
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.batches import Batch, make_batch
from s2s_cli.core.model import Exposure, Seq2Seq, build, loss
from s2s_cli.core.model.embedding import FactoredEmbedding
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe import schema
from s2s_cli.core.tokenizer import BOS
from s2s_cli.core.trainer.learner import Learner, RowGradient

CPU = torch.device("cpu")
VOCABULARY = 23
UPDATES = 50
CLIP = 0.18  # about the median of the norms
RULES = {
    "sgd": {"kind": "sgd", "lr": 0.5},
    "momentum": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "decay": {"kind": "sgd", "lr": 0.3, "weight_decay": 0.01},
    "adam": {"kind": "adam", "lr": 0.01},
}
PLAIN_RULES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
READ_OPTIMIZER: TypeAdapter[Any] = TypeAdapter(schema.Optimizer)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of a few words at a time: chunks of 6 words in slices of 3."""
    monkeypatch.setitem(loss.CHUNK, "cpu", 7 * VOCABULARY + 5)
    monkeypatch.setattr(loss, "SLICE", 3)


def model_of(kind: torch.dtype, tie: str = "none", **changes: Any) -> Seq2Seq:
    side = {"layers": 1, "embedding": 6, "hidden": 6}
    recipe = {
        "tie": tie,
        "encoder": {**side, **changes.get("encoder", {})},
        "decoder": {**side, "kind": "plain", **changes.get("decoder", {})},
    }
    torch.manual_seed(5)
    model = build(
        schema.Model.model_validate(recipe),
        source_vocabulary=VOCABULARY,
        target_vocabulary=VOCABULARY,
    )
    return model.to(kind)


def batches(count: int) -> list[Batch]:
    """Batches in which most words come more than once."""
    random = numpy.random.default_rng(6)
    made = []
    for _ in range(count):
        sides = [
            [random.integers(3, VOCABULARY, random.integers(1, 8)).tolist() for _ in range(9)]
            for _ in range(2)
        ]
        pairs = PackedPairs(*(PackedText.pack(side) for side in sides))
        made.append(make_batch(pairs, numpy.arange(len(pairs)), reverse=True, start=BOS))
    return made


def plain_loss(model: Seq2Seq, batch: Batch, smoothing: float) -> Tensor:
    features, _ = model.decoder(batch.inputs, model.decoder.start(model.encoder(batch.source)))
    logits = model.decoder.output(features).flatten(0, 1)[batch.places]
    return functional.cross_entropy(
        logits, batch.targets, reduction="sum", label_smoothing=smoothing
    )


def plain_optimizer(model: Seq2Seq, keys: dict[str, Any]) -> torch.optim.Optimizer:
    rule = PLAIN_RULES[keys["kind"]]
    return rule(model.parameters(), **{key: keys[key] for key in keys if key != "kind"})


def training(**keys: Any) -> schema.Training:
    return schema.Training.model_validate({"epochs": 1, **keys})


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("tie", ["none", "softmax", "three-way"])
@pytest.mark.parametrize("rule", RULES)
def test_fifty_updates_are_those_of_plain_torch(
    rule: str, tie: str, kind: torch.dtype, tolerance: float
) -> None:
    """Repeated words, ties, clipping now and then, smoothing, and a batch in two parts."""
    ours = model_of(kind, tie)
    theirs = copy.deepcopy(ours)
    before = {name: weights.clone() for name, weights in ours.named_parameters()}
    settings = training(clip=CLIP, label_smoothing=0.1)
    learner = Learner(ours, READ_OPTIMIZER.validate_python(RULES[rule]), settings, CPU)
    optimizer = plain_optimizer(theirs, RULES[rule])
    clipped = 0
    made = batches(UPDATES + 1)
    for number, parts in enumerate(itertools.pairwise(made)):
        rate = RULES[rule]["lr"] * 0.97**number
        count = sum(part.words for part in parts)
        found, norm = learner.learn(parts, count, rate)
        optimizer.zero_grad()
        expected = torch.stack([plain_loss(theirs, part, 0.1) for part in parts]).sum()
        (expected / count).backward()
        full = nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        clipped += bool(full > CLIP)
        torch.testing.assert_close(norm, full, rtol=tolerance, atol=0.0)
        torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=0.0)
    assert 0 < clipped < UPDATES  # both kinds of updates were met
    for (name, mine), weights in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Relative to how far the weights have gone: what is compared is fifty updates.
        moved = (weights - before[name]).abs().max()
        assert (mine - weights).abs().max() <= tolerance * moved, name


ROWS, CLIPPING = "gradients of word vectors by rows", "clipping within the learning rate"
BOTH = f"{ROWS}: encoder.embedding.weight, decoder.embedding.weight"
ONE = f"{ROWS}: encoder.embedding.weight"


def off(technique: str, reason: str) -> str:
    return f"off: {technique} ({reason})"


@pytest.mark.parametrize(
    ("rule", "tie", "clip", "told"),
    [
        ("sgd", "none", 5.0, [BOTH, CLIPPING]),
        ("sgd", "none", 0.0, [BOTH, off(CLIPPING, "there is none")]),
        ("sgd", "softmax", 5.0, [ONE, CLIPPING]),
        (
            "sgd",
            "three-way",
            5.0,
            [off(ROWS, "frozen, or tied and used elsewhere"), CLIPPING],
        ),
        (
            "momentum",
            "none",
            5.0,
            [off(ROWS, "not with momentum"), off(CLIPPING, "not with momentum")],
        ),
        (
            "decay",
            "none",
            5.0,
            [off(ROWS, "not with weight_decay"), off(CLIPPING, "not with weight_decay")],
        ),
        ("adam", "none", 5.0, [off(ROWS, "not with adam"), off(CLIPPING, "not with adam")]),
    ],
)
def test_techniques_apply_where_they_change_nothing(
    rule: str, tie: str, clip: float, told: list[str]
) -> None:
    """Momentum and decay move rows of words that were not seen; a tied table has more users."""
    model = model_of(torch.float32, tie)
    learner = Learner(model, READ_OPTIMIZER.validate_python(RULES[rule]), training(clip=clip), CPU)
    assert learner.techniques == told


def test_a_scaled_loss_is_torch_s_part_alone() -> None:
    """An update that overflows is left out by torch's scaler, which knows its optimisers alone."""
    spec = READ_OPTIMIZER.validate_python(RULES["sgd"])
    # The scaler wants a CUDA device, and warns where there is none.
    with pytest.warns(UserWarning, match="CUDA"):
        scaled = Learner(
            model_of(torch.float32), spec, training(precision="fp16"), torch.device("cuda")
        )
    assert scaled.techniques == [off(ROWS, "not with fp16"), off(CLIPPING, "not with fp16")]


def test_only_tables_that_are_looked_up_have_rows() -> None:
    def tables(tie: str = "none", **changes: Any) -> tuple[Seq2Seq, list[nn.Embedding]]:
        model = model_of(torch.float32, tie, **changes)
        return model, model.looked_up()

    model, found = tables()
    assert found == [model.encoder.embedding, model.decoder.embedding]
    model, found = tables("softmax")
    assert found == [model.encoder.embedding]
    assert tables("three-way")[1] == []
    model, found = tables(encoder={"embedding_rank": 3})
    assert isinstance(model.encoder.embedding, FactoredEmbedding)
    assert found == [model.encoder.embedding.table, model.decoder.embedding]


def test_rows_are_a_dense_gradient_s_rows() -> None:
    """Words that come again are summed; what is left over adds nothing to row 0."""
    torch.manual_seed(7)
    sparse = nn.Embedding(9, 4, sparse=True).double()
    dense = copy.deepcopy(sparse)
    dense.sparse = False
    words = torch.tensor([[3, 3, 8], [1, 3, 8], [5, 1, 1]])
    outer = torch.randn(3, 3, 4).double()
    for table in (sparse, dense):
        table(words).backward(outer)
    gradient = RowGradient.taken_from(sparse.weight)
    assert gradient is not None
    assert sparse.weight.grad is None
    assert gradient.ids.tolist() == [1, 3, 5, 8, 0, 0, 0, 0, 0]
    torch.testing.assert_close(gradient.rows[:4], dense.weight.grad[[1, 3, 5, 8]])
    assert not gradient.rows[4:].any()
    expected = dense.weight.detach() - 0.3 * dense.weight.grad
    gradient.descend(torch.tensor(0.3).double())
    torch.testing.assert_close(sparse.weight.detach(), expected)


@pytest.mark.parametrize("coin", ["token", "sequence"])
def test_rows_of_words_that_the_model_chose(coin: Any) -> None:
    """With scheduled sampling a table has a gradient of each step, summed over all."""
    ours = model_of(torch.float64)
    theirs = copy.deepcopy(ours)
    learner = Learner(ours, READ_OPTIMIZER.validate_python(RULES["sgd"]), training(clip=CLIP), CPU)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    exposure = Exposure(0.4, coin, "argmax")
    for number, batch in enumerate(batches(5)):
        torch.manual_seed(number)
        learner.learn([batch], batch.words, 0.5, exposure)
        torch.manual_seed(number)
        optimizer.zero_grad()
        (theirs(batch, exposure=exposure) / batch.words).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        optimizer.step()
    for (name, mine), weights in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, weights, rtol=1e-9, atol=1e-12, msg=name)


def test_a_loss_gives_its_gradients_once() -> None:
    """They are scaled where they stand: a second time they would be scaled twice."""
    weight = torch.randn(VOCABULARY, 6, requires_grad=True)
    found = loss.full_loss(torch.randn(8, 6), weight, torch.zeros(VOCABULARY), torch.arange(8), 0.0)
    (2 * found).backward(retain_graph=True)
    first = weight.grad
    assert first is not None
    kept = first.clone()
    with pytest.raises(RuntimeError, match="given away"):
        found.backward()
    assert torch.equal(first, kept)


def test_a_table_without_a_gradient_has_no_rows() -> None:
    assert RowGradient.taken_from(nn.Embedding(3, 2).weight) is None


def test_frozen_vectors_stay() -> None:
    model = model_of(torch.float32)
    model.encoder.embedding.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    learner = Learner(model, READ_OPTIMIZER.validate_python(RULES["sgd"]), training(), CPU)
    (batch,) = batches(1)
    learner.learn([batch], batch.words, 0.5)
    after = model.state_dict()
    assert torch.equal(after["encoder.embedding.weight"], before["encoder.embedding.weight"])
    assert not torch.equal(after["decoder.embedding.weight"], before["decoder.embedding.weight"])


def test_measuring_takes_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation costs one product of the softmax, not three, and keeps nothing."""
    model = model_of(torch.float32)
    (batch,) = batches(1)
    expected = float(model(batch).detach())
    monkeypatch.setattr(torch, "mm", lambda *_, **__: 1 / 0)
    with torch.no_grad():
        assert float(model(batch)) == expected
    with torch.inference_mode():
        assert float(model(batch)) == expected
    with pytest.raises(ZeroDivisionError):
        model(batch)


def test_bf16_gradients_are_as_good_as_autocast_s() -> None:
    """Also of words that are nearly certain, where p - 1 is small beside p."""
    torch.manual_seed(8)
    features = (2 * torch.randn(60, 6)).requires_grad_()
    weight = (2 * torch.randn(VOCABULARY, 6)).requires_grad_()
    bias = torch.zeros(VOCABULARY).requires_grad_()
    inputs = (features, weight, bias)
    targets = (features @ weight.T).argmax(-1)

    def stock() -> Tensor:
        logits = functional.linear(*inputs)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")

    exact = torch.autograd.grad(stock(), inputs)
    errors = []
    for found in (stock, lambda: loss.full_loss(*inputs, targets, 0.0)):
        with torch.autocast("cpu", torch.bfloat16):
            value = found()
        gradients = torch.autograd.grad(value, inputs)
        errors.append(
            [float((a - b).norm() / b.norm()) for a, b in zip(gradients, exact, strict=True)]
        )
    theirs, ours = errors
    assert all(mine < 1.2 * other + 1e-4 for mine, other in zip(ours, theirs, strict=True)), errors
