"""Scheduled sampling: whose words the decoder reads, and what they do to the gradients.

# B sentences, T target steps, F features, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from s2s_cli.core.batches import Batch, make_batch
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.model.build import build
from s2s_cli.core.model.exposure import Exposure, forced_features
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe.schema import Model
from s2s_cli.core.tokenizer import BOS

VOCABULARY = 10
SENTENCES = [[5, 6, 7], [4, 5, 6, 7, 8], [9], [3, 3, 4, 8], [], [7, 8, 4]]
TRANSLATIONS = [[4, 5], [9, 8, 7, 6, 5, 4], [3, 3, 3], [6], [5], [8, 4, 4, 3]]

GENERAL = {"kind": "attention", "attention": {"kind": "general"}}
DECODERS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain"},
    "peeky": {"kind": "peeky"},
    "current": {**GENERAL, "query": "current"},
    "feeding": {
        **GENERAL,
        "query": "current",
        "input_feeding": True,
        "readout": {"kind": "tanh", "size": 5},
    },
    "previous": {**GENERAL, "query": "previous"},
    "bottom": {**GENERAL, "query": "bottom"},
    "adaptive": {
        "kind": "plain",
        "softmax": {"kind": "adaptive", "cutoffs": (4,), "reduction": 2.0},
    },
}
every_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


def model_of(decoder: dict[str, Any], **changes: Any) -> Seq2Seq:
    side = {"layers": 2, "embedding": 5, "hidden": 6}
    recipe = Model.model_validate({"encoder": side, "decoder": {**side, **decoder, **changes}})
    torch.manual_seed(31)
    model = build(recipe, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.double()


def batch_of(
    sources: Sequence[Sequence[int]] = SENTENCES, targets: Sequence[Sequence[int]] = TRANSLATIONS
) -> Batch:
    pairs = PackedPairs(PackedText.pack(sources), PackedText.pack(targets))
    return make_batch(pairs, numpy.arange(len(pairs)), reverse=False, start=BOS)


def same_loss_and_gradients(model: Seq2Seq, one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(one, parameters)
    theirs = torch.autograd.grad(other, parameters)
    for name, found, expected in zip(names, ours, theirs, strict=True):
        tolerance = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance, msg=name)


def words_read(model: Seq2Seq, batch: Batch, exposure: Exposure) -> tuple[Tensor, Tensor]:
    """The loss, and the words [T, B] that the decoder has read."""
    read: list[Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    loss = model(batch, exposure=exposure)
    hook.remove()
    return loss, torch.cat(read)


@pytest.mark.parametrize("own", ["argmax", "sample"])
@every_decoder
def test_all_truth_equals_teacher_forcing(decoder: dict[str, Any], own: Any) -> None:
    model, batch = model_of(decoder), batch_of()
    same_loss_and_gradients(model, model(batch, exposure=Exposure(1.0, "token", own)), model(batch))


def test_all_truth_equals_teacher_forcing_under_variational_dropout() -> None:
    dropouts = {"embedding_dropout": 0.3, "dropout": 0.3, "output_dropout": 0.3}
    model, batch = model_of(DECODERS["feeding"], variational=True, **dropouts), batch_of()
    losses = []
    for exposure in (None, Exposure(1.0, "token", "argmax")):
        torch.manual_seed(32)  # the masks are drawn first
        losses.append(model(batch, exposure=exposure))
    same_loss_and_gradients(model, *losses)
    assert abs((losses[0] - model(batch)).item()) > 1e-3


@every_decoder
def test_no_truth_is_greedy_search(decoder: dict[str, Any]) -> None:
    """Each sentence reads its start symbol and then the words that greedy search says."""
    model, batch = model_of(decoder), batch_of()
    loss, read = words_read(model, batch, Exposure(0.0, "token", "argmax"))
    words, state, expected = batch.inputs[0], model.start(batch.source), []
    for _ in batch.inputs:
        expected.append(words)
        logits, state = model.step(words, state)
        words = logits.argmax(-1)
    assert torch.equal(read, torch.stack(expected))
    assert (read[1:] != batch.inputs[1:]).any()
    # The truth is still what is to be said.
    same_loss_and_gradients(model, loss, model(replace(batch, inputs=read)))


@pytest.mark.parametrize("own", ["argmax", "sample"])
@every_decoder
def test_no_gradient_goes_through_the_choice(decoder: dict[str, Any], own: Any) -> None:
    """The gradients are those of a decoder that is given the chosen words as if they were true."""
    model, batch = model_of(decoder), batch_of()
    torch.manual_seed(33)
    loss, read = words_read(model, batch, Exposure(0.5, "token", own))
    assert torch.equal(read[0], batch.inputs[0])
    share = (read[1:] == batch.inputs[1:]).double().mean()
    assert 0.2 < share < 0.95
    same_loss_and_gradients(model, loss, model(replace(batch, inputs=read)))


# --- coins and choices, seen by a decoder that notes what it reads ----------------------------

TRUE, OWN = 1, 0


class Noting(nn.Module):
    """Says after every word what `probabilities` [V] say, and keeps the words it has read."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities, dtype=torch.float64).log()
        self.read: list[Tensor] = []

    def forward(self, words: Tensor, state: int) -> tuple[Tensor, int]:
        assert state == len(self.read)  # the state is handed on
        self.read.append(words.squeeze(0))
        return words.unsqueeze(-1), state + 1

    def output(self, features: Tensor) -> Tensor:
        return self.logits.expand(*features.shape[:-1], -1)


def truth_shown(exposure: Exposure, steps: int, rows: int) -> Tensor:
    """[T, B], 1 where the decoder has read the truth, which is never what it says itself."""
    decoder: Any = Noting([0.9, 0.1])
    inputs = torch.full((steps, rows), TRUE)
    features = forced_features(decoder, inputs, 0, exposure)
    read = torch.stack(decoder.read)
    assert torch.equal(features, read[..., None])  # the features of what was read
    assert (read[0] == TRUE).all()
    return read[1:].double()


def near(found: float, expected: float, count: int, spread: float = 1.0) -> bool:
    """Within five standard errors of a mean of `count` numbers."""
    return abs(found - expected) < 5 * spread / count**0.5


def agreement(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_a_coin_for_each_token(ratio: float) -> None:
    torch.manual_seed(34)
    shown = truth_shown(Exposure(ratio, "token", "argmax"), 41, 500)
    assert near(float(shown.mean()), ratio, shown.numel())
    chance = ratio**2 + (1 - ratio) ** 2  # no coin knows of the one before or beside it
    assert near(agreement(shown[1:], shown[:-1]), chance, shown.numel())
    assert near(agreement(shown[:, 1:], shown[:, :-1]), chance, shown.numel())
    again = truth_shown(Exposure(ratio, "token", "argmax"), 41, 500)
    assert near(agreement(shown, again), chance, shown.numel())


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_a_coin_for_each_sentence(ratio: float) -> None:
    torch.manual_seed(35)
    shown = truth_shown(Exposure(ratio, "sequence", "argmax"), 6, 8000)
    assert torch.equal(shown, shown[:1].expand_as(shown))
    assert near(float(shown[0].mean()), ratio, 8000)
    chance = ratio**2 + (1 - ratio) ** 2
    assert near(agreement(shown[0, 1:], shown[0, :-1]), chance, 8000)


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_a_coin_for_each_batch(ratio: float) -> None:
    torch.manual_seed(36)
    coins = []
    for _ in range(500):
        shown = truth_shown(Exposure(ratio, "batch", "argmax"), 3, 4)
        assert torch.equal(shown, shown[:1, :1].expand_as(shown))
        coins.append(float(shown[0, 0]))
    assert near(sum(coins) / len(coins), ratio, len(coins), (ratio * (1 - ratio)) ** 0.5)


@pytest.mark.parametrize("coin", ["token", "sequence", "batch"])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_ratio_of_zero_or_one_leaves_nothing_to_chance(coin: Any, ratio: float) -> None:
    for _ in range(20):
        assert (truth_shown(Exposure(ratio, coin, "argmax"), 5, 50) == ratio).all()


def test_own_words_are_drawn_from_the_softmax() -> None:
    probabilities = [0.05, 0.5, 0.15, 0.3]
    decoder: Any = Noting(probabilities)
    torch.manual_seed(37)
    inputs = torch.zeros(11, 4000, dtype=torch.long)
    forced_features(decoder, inputs, 0, Exposure(0.0, "token", "sample"))
    drawn = torch.stack(decoder.read[1:])
    for word, share in enumerate(probabilities):
        found = float((drawn == word).double().mean())
        assert near(found, share, drawn.numel(), (share * (1 - share)) ** 0.5), word
    # Each word is drawn anew.
    chance = sum(share**2 for share in probabilities)
    assert near(agreement(drawn[1:], drawn[:-1]), chance, drawn.numel())
    assert near(agreement(drawn[:, 1:], drawn[:, :-1]), chance, drawn.numel())


def test_argmax_takes_the_likeliest_word() -> None:
    decoder: Any = Noting([0.2, 0.3, 0.26, 0.24])
    inputs = torch.zeros(4, 50, dtype=torch.long)
    forced_features(decoder, inputs, 0, Exposure(0.0, "token", "argmax"))
    assert (torch.stack(decoder.read[1:]) == 1).all()
