"""Each recurrent cell against its paper's equations, one sentence and one step at a time.

# B batch, T steps, I input, H hidden, G gates' numbers
"""

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from s2s_cli.core.model.cells import (
    FusedLayer,
    Layer,
    LayerNormLstm,
    Parts,
    PeepholeLstm,
    ResetBeforeGru,
)

INPUTS, HIDDEN, STEPS, ROWS = 5, 4, 6, 3
sigmoid, tanh = torch.sigmoid, torch.tanh

Weights = Mapping[str, Tensor]


# --- the equations: x [I], states [H] --------------------------------------------------------


def lstm(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> Parts:
    """torch's documentation: input, forget, cell and output gates, two biases each."""
    bias = (w["cells.bias_ih_l0"] + w["cells.bias_hh_l0"]).chunk(4)
    x_i, x_f, x_g, x_o = w["cells.weight_ih_l0"].chunk(4)
    h_i, h_f, h_g, h_o = w["cells.weight_hh_l0"].chunk(4)
    i = sigmoid(x_i @ x + h_i @ h + bias[0])
    f = sigmoid(x_f @ x + h_f @ h + bias[1])
    g = tanh(x_g @ x + h_g @ h + bias[2])
    o = sigmoid(x_o @ x + h_o @ h + bias[3])
    c = f * c + i * g
    return o * tanh(c), c


def gru(w: Weights, x: Tensor, h: Tensor) -> Parts:
    """torch's documentation: the reset gate acts after the product; z is the share kept."""
    x_r, x_z, x_n = w["cells.weight_ih_l0"].chunk(3)
    h_r, h_z, h_n = w["cells.weight_hh_l0"].chunk(3)
    a_r, a_z, a_n = w["cells.bias_ih_l0"].chunk(3)
    b_r, b_z, b_n = w["cells.bias_hh_l0"].chunk(3)
    r = sigmoid(x_r @ x + a_r + h_r @ h + b_r)
    z = sigmoid(x_z @ x + a_z + h_z @ h + b_z)
    n = tanh(x_n @ x + a_n + r * (h_n @ h + b_n))
    return ((1 - z) * n + z * h,)


def elman(w: Weights, x: Tensor, h: Tensor) -> Parts:
    """torch's documentation."""
    from_x = w["cells.weight_ih_l0"] @ x + w["cells.bias_ih_l0"]
    return (tanh(from_x + w["cells.weight_hh_l0"] @ h + w["cells.bias_hh_l0"]),)


def graves(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> Parts:
    """Graves 2013, equations 7 to 11; from memory to gates the matrices are diagonal."""
    w_xi, w_xf, w_xc, w_xo = w["weight_ih"].chunk(4)
    w_hi, w_hf, w_hc, w_ho = w["weight_hh"].chunk(4)
    b_i, b_f, b_c, b_o = w["bias"].chunk(4)
    w_ci, w_cf, w_co = (torch.diag(numbers) for numbers in w["peepholes"])
    i = sigmoid(w_xi @ x + w_hi @ h + w_ci @ c + b_i)
    f = sigmoid(w_xf @ x + w_hf @ h + w_cf @ c + b_f)
    c = f * c + i * tanh(w_xc @ x + w_hc @ h + b_c)
    o = sigmoid(w_xo @ x + w_ho @ h + w_co @ c + b_o)
    return o * tanh(c), c


def normalised_lstm(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> Parts:
    """Each gate's sum normalised over its H numbers, scaled and shifted (Ba et al. 2016)."""
    gates = []
    for w_x, w_h, scale, shift in zip(
        *(w[name].chunk(4) for name in ("weight_ih", "weight_hh", "scale", "bias")), strict=True
    ):
        sums = w_x @ x + w_h @ h
        mean = sums.sum() / HIDDEN
        variance = ((sums - mean) ** 2).sum() / HIDDEN
        gates.append(scale * (sums - mean) / (variance + 1e-5).sqrt() + shift)
    c = sigmoid(gates[1]) * c + sigmoid(gates[0]) * tanh(gates[2])
    return sigmoid(gates[3]) * tanh(c), c


def reset_before(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The update gate and the candidate of both papers' GRU."""
    w_r, w_z, w_n = w["weight_ih"].chunk(3)
    (u_r, u_z), u_n = w["weight_hh"].chunk(2), w["weight_hn"]
    b_r, b_z, b_n = w["bias"].chunk(3)
    r = sigmoid(w_r @ x + u_r @ h + b_r)
    z = sigmoid(w_z @ x + u_z @ h + b_z)
    return z, tanh(w_n @ x + u_n @ (r * h) + b_n)


def cho(w: Weights, x: Tensor, h: Tensor) -> Parts:
    """Cho et al. 2014, equations 5 to 8."""
    z, candidate = reset_before(w, x, h)
    return (z * h + (1 - z) * candidate,)


def bahdanau(w: Weights, x: Tensor, h: Tensor) -> Parts:
    """Bahdanau et al. 2015, appendix A.1.1."""
    z, candidate = reset_before(w, x, h)
    return ((1 - z) * h + z * candidate,)


Cell = tuple[Callable[[], Layer], Callable[..., Parts], int, int]
CELLS: dict[str, Cell] = {  # a layer, its equations, parts of a state, gates
    "lstm": (lambda: FusedLayer(nn.LSTM(INPUTS, HIDDEN)), lstm, 2, 4),
    "gru": (lambda: FusedLayer(nn.GRU(INPUTS, HIDDEN)), gru, 1, 3),
    "tanh": (lambda: FusedLayer(nn.RNN(INPUTS, HIDDEN)), elman, 1, 1),
    "peephole": (lambda: PeepholeLstm(INPUTS, HIDDEN), graves, 2, 4),
    "layer-norm": (lambda: LayerNormLstm(INPUTS, HIDDEN), normalised_lstm, 2, 4),
    "cho": (lambda: ResetBeforeGru(INPUTS, HIDDEN, z_keeps=True), cho, 1, 3),
    "bahdanau": (lambda: ResetBeforeGru(INPUTS, HIDDEN, z_keeps=False), bahdanau, 1, 3),
}
every_cell = pytest.mark.parametrize("name", CELLS)


def drawn(name: str) -> tuple[Layer, Tensor, Parts]:
    """A layer in float64, inputs [T, B, I] and a first state, all of them far from zero."""
    torch.manual_seed(2)
    make, _, parts, _ = CELLS[name]
    layer = make().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.8)
    inputs = torch.randn(STEPS, ROWS, INPUTS).double()
    return layer, inputs, tuple(torch.randn(ROWS, HIDDEN).double() for _ in range(parts))


def by_equations(name: str, layer: Layer, inputs: Tensor, parts: Parts) -> tuple[Tensor, Parts]:
    """What `run` should give, a sentence and a step at a time."""
    weights = dict(layer.named_parameters())
    outputs, after = [], []
    for row in range(ROWS):
        state = tuple(part[row] for part in parts)
        for x in inputs[:, row]:
            state = CELLS[name][1](weights, x, *state)
            outputs.append(state[0])
        after.append(state)
    by_row = torch.stack(outputs).view(ROWS, STEPS, HIDDEN)
    return by_row.transpose(0, 1), tuple(torch.stack(part) for part in zip(*after, strict=True))


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Within a share of the largest number."""
    scale = expected.abs().max().item()
    assert scale > 0, what
    assert found.shape == expected.shape, what
    assert (found - expected).abs().max().item() <= tolerance * scale, what


def by_steps(layer: Layer, inputs: Tensor, parts: Parts) -> tuple[Tensor, Parts]:
    """What `run` should give, by `step`."""
    outputs = []
    for given in inputs:
        parts = layer.step(layer.project(given), parts)
        outputs.append(parts[0])
    return torch.stack(outputs), parts


@pytest.mark.parametrize("way", ["run", "step"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@every_cell
def test_a_cell_follows_its_equations(
    name: str, dtype: torch.dtype, tolerance: float, way: str
) -> None:
    """Outputs, the last state, and all gradients, over the whole sequence and step by step."""
    exact, inputs, parts = drawn(name)
    layer = copy.deepcopy(exact).to(dtype)
    weights = [torch.randn(STEPS, ROWS, HIDDEN).double(), *(torch.randn_like(p) for p in parts)]

    def found(
        read: Callable[[Tensor, Parts], tuple[Tensor, Parts]], of: Layer, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Values and gradients by name."""
        given = [tensor.to(dtype).requires_grad_() for tensor in (inputs, *parts)]
        outputs, after = read(given[0], tuple(given[1:]))
        values = (outputs, *after)
        loss = sum((v * w.to(dtype)).sum() for v, w in zip(values, weights, strict=True))
        parameters = dict(of.named_parameters())
        to = torch.autograd.grad(loss, [*given, *parameters.values()])
        names = [f"state {number}" for number in range(len(parts))]
        return dict(zip(["outputs", *names], values, strict=True)) | {
            f"to {name}": gradient
            for name, gradient in zip(["inputs", *names, *parameters], to, strict=True)
        }

    def ours(inputs: Tensor, parts: Parts) -> tuple[Tensor, Parts]:
        return layer.run(inputs, parts) if way == "run" else by_steps(layer, inputs, parts)

    result = found(ours, layer, dtype)
    oracle = found(lambda x, s: by_equations(name, exact, x, s), exact, torch.float64)
    assert result.keys() == oracle.keys()
    for what, expected in oracle.items():
        assert result[what].dtype == dtype
        assert_close(result[what].double(), expected, tolerance, what)


@pytest.mark.parametrize("steps", [1, STEPS])
@every_cell
def test_parts_of_an_input_are_projected_apart(name: str, steps: int) -> None:
    """And give the gradients of the whole, to the input and to the weights."""
    layer, inputs, _ = drawn(name)
    inputs = inputs[:steps].requires_grad_()
    whole = layer.project(inputs)
    assert whole.shape == (steps, ROWS, CELLS[name][3] * HIDDEN)
    assert_close(layer.project(inputs[-1, 1]), whole[-1, 1], 1e-9)
    outer, given = torch.randn_like(whole), [inputs, layer.input_weight()]
    expected = torch.autograd.grad(whole, given, outer)
    for known in range(1, INPUTS):
        project = layer.beside(inputs[..., :known])
        parts = torch.stack([project(step, inputs[step, :, known:]) for step in range(steps)])
        assert_close(parts, whole, 1e-9)
        for found, gradient in zip(torch.autograd.grad(parts, given, outer), expected, strict=True):
            assert_close(found, gradient, 1e-9)


@every_cell
def test_a_cell_tells_its_shape(name: str) -> None:
    layer, inputs, _ = drawn(name)
    _, _, parts, gates = CELLS[name]
    assert (layer.hidden, layer.parts) == (HIDDEN, parts)
    assert layer.input_bias().shape == (gates * HIDDEN,)
    assert layer.input_weight().shape == (gates * HIDDEN, INPUTS)
    assert layer.input_bias().shape == (gates * HIDDEN,)
    zeros = layer.zeros(2, inputs)
    assert len(zeros) == parts
    for zero in zeros:
        assert torch.equal(zero, torch.zeros(2, HIDDEN).double())


@pytest.mark.parametrize("way", ["run", "step"])
@every_cell
def test_bf16_stays_near_fp32(name: str, way: str) -> None:
    """Under autocast, where an input or a state may be of either type."""
    layer, inputs, parts = drawn(name)
    layer.float()
    read = layer.run if way == "run" else lambda x, s: by_steps(layer, x, s)
    expected, _ = read(inputs.float(), tuple(part.float() for part in parts))
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = read(inputs.to(dtype), tuple(part.to(dtype) for part in parts))
        assert_close(found.float(), expected, 0.05)
