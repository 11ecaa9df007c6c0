"""The decoder's first state against each bridge's equation, a sentence and a layer at a time.

# B batch, L layers, H hidden, C the encoder's outputs, both directions
"""

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor

from s2s_cli.core.batches import source_batch
from s2s_cli.core.model import build
from s2s_cli.core.model.bridge import Encoded
from s2s_cli.core.model.cells import Parts
from s2s_cli.core.model.decoder import Decoder
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import Model

LAYERS, HIDDEN = 3, 4
SENTENCES = [[4, 5, 6, 7], [3, 8, 3], [5], []]

# Of a decoder's weights, and the parts of the encoder's states [L, C], what layer `number` begins
# with.
Equation = Callable[[Decoder, list[Tensor], int], list[Tensor]]


def rows_of(weight: Tensor, number: int) -> Tensor:
    """A layer's share of a matrix or a bias for all layers."""
    return weight[number * HIDDEN : (number + 1) * HIDDEN]


def tanh_of(decoder: Decoder, numbers: Tensor, number: int, parts: int) -> list[Tensor]:
    """h = tanh(V c); a memory is zero."""
    hidden = torch.tanh(rows_of(decoder.bridge.linear.weight, number) @ numbers)
    return [hidden, torch.zeros_like(hidden)][:parts]


def linear(decoder: Decoder, states: list[Tensor], number: int) -> list[Tensor]:
    """h = W h' + b and c = V c' + d, from the encoder's last layer."""
    return [
        rows_of(layer.weight, number) @ part[-1] + rows_of(layer.bias, number)
        for layer, part in zip(decoder.bridge.linears, states, strict=True)
    ]


def first_backward(decoder: Decoder, states: list[Tensor], number: int) -> list[Tensor]:
    """Bahdanau et al. 2015: tanh(W h) of the backward state at the first word."""
    return tanh_of(decoder, states[0][-1].chunk(2)[1], number, len(states))


EQUATIONS: dict[str, Equation] = {
    "copy": lambda _, states, number: [part[number] for part in states],
    "last": lambda _, states, number: [part[-1] for part in states],
    "tanh": lambda decoder, states, number: tanh_of(decoder, states[0][-1], number, len(states)),
    "first-backward": first_backward,
    "linear": linear,
    "zero": lambda _, states, number: [torch.zeros(HIDDEN).double()] * len(states),
}


def bridged(bridge: str, cell: str, bidirectional: bool) -> tuple[Decoder, Encoded, Parts]:
    """A decoder with weights far from zero, what its encoder read, and its first state."""
    torch.manual_seed(5)
    taken_over = bridge in ("copy", "last")
    encoder = {
        "cell": cell,
        "layers": LAYERS if bridge == "copy" else 2,
        "embedding": 5,
        "hidden": (HIDDEN // 2 if bidirectional else HIDDEN) if taken_over else 6,
        "bidirectional": bidirectional,
    }
    decoder = {
        "kind": "peeky",
        "cell": cell,
        "layers": LAYERS,
        "embedding": 3,
        "hidden": HIDDEN,
        "bridge": bridge,
    }
    table = Model.model_validate({"encoder": encoder, "decoder": decoder})
    model = build(table, source_vocabulary=10, target_vocabulary=10).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.7)
    text = PackedText.pack(SENTENCES)
    encoded = model.encoder(source_batch(text, numpy.arange(len(text)), False))
    return model.decoder, encoded, model.decoder.start(encoded).recurrent.tensors


@pytest.mark.parametrize("cell", ["lstm", "lstm-peephole", "gru", "gru-cho", "tanh"])
@pytest.mark.parametrize(
    ("bridge", "bidirectional"),
    [
        ("copy", False),
        ("last", False),
        ("last", True),
        ("tanh", False),
        ("tanh", True),
        ("first-backward", True),
        ("linear", False),
        ("linear", True),
        ("zero", False),
        ("zero", True),
    ],
)
def test_a_bridge_follows_its_equation(bridge: str, bidirectional: bool, cell: str) -> None:
    decoder, encoded, found = bridged(bridge, cell, bidirectional)
    assert len(found) == len(encoded.state) == (2 if cell.startswith("lstm") else 1)
    for part in found:
        assert part.shape == (LAYERS, len(SENTENCES), HIDDEN)
        assert part.is_contiguous()  # as cuDNN wants it
    for row in range(len(SENTENCES)):
        states = [part[:, row] for part in encoded.state]
        for number in range(LAYERS):
            expected = EQUATIONS[bridge](decoder, states, number)
            for part, numbers in zip(found, expected, strict=True):
                torch.testing.assert_close(part[number, row], numbers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bridge", EQUATIONS)
def test_a_bridge_has_the_weights_of_its_equation_alone(bridge: str) -> None:
    """All of them learn, none has a bias that its paper has not."""
    decoder, encoded, found = bridged(bridge, "lstm", bridge == "first-backward")
    width = encoded.summary.shape[1]
    per_part = {"tanh": [width], "first-backward": [width // 2], "linear": [width + 1] * 2}
    parameters = list(decoder.bridge.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    assert count == LAYERS * HIDDEN * sum(per_part.get(bridge, []))
    if parameters:
        for gradient in torch.autograd.grad(sum(part.sum() for part in found), parameters):
            assert gradient.all()
