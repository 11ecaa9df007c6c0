"""Dropout as it is drawn on a CPU, alone and between the layers of torch's kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2s_cli.core.model import cells, recurrent
from s2s_cli.core.model.cells import run_fused, run_layer_by_layer
from s2s_cli.core.model.dropout import Dropout, dropped
from s2s_cli.core.model.recurrent import Recurrent

KINDS = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_share_is_zero_and_the_rest_larger(share: float, kind: torch.dtype) -> None:
    torch.manual_seed(1)
    ones = torch.ones(101, 333, dtype=kind)
    found = dropped(ones, share)
    assert found.dtype == kind
    larger = torch.tensor(1 / (1 - share), dtype=kind)
    torch.testing.assert_close(found.unique(), torch.stack([torch.zeros_like(larger), larger]))
    count = ones.numel()
    # Five standard deviations of a binomial count.
    assert abs(float((found == 0).sum()) - share * count) < 5 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("places", [(0, 1), (1, 2)])
def test_neighbours_are_dropped_apart(places: tuple[int, int]) -> None:
    """Two numbers share a draw; both dropped is as often as chance has it."""
    torch.manual_seed(2)
    pairs = (dropped(torch.ones(40_000, 4), 0.3) == 0)[:, places].all(1).sum()
    assert abs(float(pairs) - 0.09 * 40_000) < 5 * (40_000 * 0.09 * 0.91) ** 0.5


def test_shares_near_both_ends() -> None:
    numbers = torch.randn(999)
    assert torch.equal(dropped(numbers, 0.0), numbers)
    assert torch.equal(dropped(numbers, 1e-12), numbers)
    assert not dropped(numbers, 1 - 1e-12).any()
    assert dropped(torch.empty(0, 3), 0.5).shape == (0, 3)


def test_the_generator_decides_and_every_call_draws() -> None:
    numbers = torch.randn(7, 11)
    torch.manual_seed(3)
    first, second = dropped(numbers, 0.5), dropped(numbers, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropped(numbers, 0.5), first)
    assert not torch.equal(first, second)


def test_the_gradient_has_the_same_mask() -> None:
    numbers = torch.randn(5, 6).requires_grad_()
    found = dropped(numbers, 0.4)
    (gradient,) = torch.autograd.grad(found.sum(), numbers)
    torch.testing.assert_close(gradient * numbers, found)


def test_only_training_drops() -> None:
    numbers = torch.ones(50, 50)
    dropout = Dropout(0.5)
    assert not torch.equal(dropout(numbers), numbers)
    assert torch.equal(dropout.eval()(numbers), numbers)


STACKS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}


def drawn(name: str, **options: Any) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(4)
    stack = STACKS[name](5, 6, 3, **options).double()
    parts = tuple(torch.randn(3, 4, 6).double() for _ in range(2 if name == "lstm" else 1))
    return stack, torch.randn(7, 4, 5).double(), parts


@pytest.mark.parametrize("name", STACKS)
def test_layer_by_layer_is_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, states and all gradients, where nothing is dropped."""
    monkeypatch.setattr(cells, "dropped", lambda numbers, _: numbers)
    stack, inputs, parts = drawn(name)
    found = []
    for run in (run_layer_by_layer, run_fused):
        outputs, after = run(stack, inputs, parts)
        loss = outputs.square().sum() + sum(part.sum() for part in after)
        found.append((outputs, after, torch.autograd.grad(loss, stack.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STACKS)
def test_all_layers_but_the_first_read_what_is_left(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every output dropped an upper layer reads zeros; the first one reads the words."""
    stack, inputs, parts = drawn(name, dropout=0.25)
    shares = []

    def all_dropped(numbers: Tensor, share: float) -> Tensor:
        shares.append(share)
        return torch.zeros_like(numbers)

    monkeypatch.setattr(cells, "dropped", all_dropped)
    _, after = Recurrent(stack).train().run(inputs, parts)
    assert shares == [0.25, 0.25]
    _, kept = run_fused(stack.eval(), inputs, parts)
    torch.testing.assert_close([part[0] for part in after], [part[0] for part in kept])
    assert not torch.allclose(after[0][1:], kept[0][1:])


def test_without_dropout_the_kernel_runs_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "run_layer_by_layer", lambda *_: 1 / 0)
    stack, inputs, parts = drawn("lstm")
    Recurrent(stack).train().run(inputs, parts)
    stack, inputs, parts = drawn("lstm", dropout=0.5)
    Recurrent(stack).eval().run(inputs, parts)
    with pytest.raises(ZeroDivisionError):
        Recurrent(stack).train().run(inputs, parts)
