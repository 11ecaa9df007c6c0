"""Start values of all parameters of a model, as a recipe asks for them.

# H hidden, V vocabulary, E embedding
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.recipe.schema import Model

GATES = {
    "lstm": 4,
    "lstm-peephole": 4,
    "lstm-layer-norm": 4,
    "gru": 3,
    "gru-cho": 3,
    "gru-bahdanau": 3,
    "tanh": 1,
}
LSTMS = [cell for cell in GATES if cell.startswith("lstm")]
HIDDEN = 32
ADDITIVE = {"kind": "additive", "size": 48}


def drawn(
    initialization: dict[str, object],
    cell: str = "lstm",
    *,
    bidirectional: bool = True,
    attention: dict[str, object] = ADDITIVE,
    seed: int = 1,
) -> Seq2Seq:
    """Two layers a side, of all kinds of parameters."""
    torch.manual_seed(seed)
    stack = {"cell": cell, "layers": 2, "hidden": HIDDEN}
    encoder = {**stack, "embedding": 24, "bidirectional": bidirectional}
    decoder = {
        **stack,
        "kind": "attention",
        "embedding": 40,
        "bridge": "linear",
        "attention": attention,
        "readout": {"kind": "maxout", "size": 20},
    }
    table = Model.model_validate(
        {"encoder": encoder, "decoder": decoder, "initialization": initialization}
    )
    return build(table, source_vocabulary=300, target_vocabulary=400)


def is_vector(name: str, parameter: Tensor) -> bool:
    """A bias, or diagonal matrices."""
    return parameter.dim() == 1 or name.endswith("peepholes")


def gate_matrices(model: Seq2Seq, cell: str) -> Iterator[tuple[str, Tensor]]:
    """All matrices, those of recurrent layers gate by gate."""
    for name, parameter in model.named_parameters():
        if is_vector(name, parameter):
            continue
        rows = HIDDEN if "weight_ih" in name or "weight_h" in name else len(parameter)
        for gate, matrix in enumerate(parameter.detach().split(rows)):
            yield f"{name}, gate {gate}", matrix


def assert_uniform(values: Tensor, half_width: float, name: str) -> None:
    """Mean and spread of a uniform distribution, within five standard errors."""
    values = values.detach().double().flatten()
    count = len(values)
    assert abs(values.mean()) < 5 * half_width / math.sqrt(3 * count), name
    square = float((values**2).mean()) / (half_width**2 / 3)
    assert abs(square - 1) < 5 * math.sqrt(4 / 5 / count), name
    assert values.abs().max() <= half_width * (1 + 1e-6), name
    assert values.abs().max() > half_width * (1 - 10 / count), name


def assert_normal(values: Tensor, std: float, name: str) -> None:
    """Mean, spread and fourth moment of a normal distribution, within five standard errors."""
    values = values.detach().double().flatten() / std
    count = len(values)
    assert abs(values.mean()) < 5 / math.sqrt(count), name
    assert abs(float((values**2).mean()) - 1) < 5 * math.sqrt(2 / count), name
    assert abs(float((values**4).mean()) - 3) < 5 * math.sqrt(96 / count), name


# --- every kind ------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", GATES)
def test_uniform_reaches_every_parameter(cell: str) -> None:
    model = drawn({"kind": "uniform", "range": 0.08}, cell)
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        if name.endswith("scale"):  # of a layer norm, which the paper does not have
            assert (values == 1).all()
            continue
        assert values.abs().max() <= 0.08
        assert_uniform(values, 0.08, name)
        # No two halves alike: gates are drawn one by one.
        assert not torch.equal(*values[: len(values) // 2 * 2].view(2, -1)), name


def assert_vectors_rest(model: Seq2Seq) -> None:
    """Biases and peepholes zero, scales of a layer norm one."""
    vectors = [(n, p) for n, p in model.named_parameters() if is_vector(n, p)]
    assert vectors
    for name, parameter in vectors:
        expected = torch.ones_like if name.endswith("scale") else torch.zeros_like
        assert torch.equal(parameter, expected(parameter)), name


@pytest.mark.parametrize("cell", GATES)
def test_normal_draws_matrices_and_leaves_biases_zero(cell: str) -> None:
    model = drawn({"kind": "normal", "std": 0.01}, cell)
    for name, matrix in gate_matrices(model, cell):
        assert_normal(matrix, 0.01, name)
    assert_vectors_rest(model)


@pytest.mark.parametrize(
    ("attention", "small", "zero"),
    [
        (ADDITIVE, {"score.query", "score.key"}, {"score.vector.weight"}),
        ({"kind": "concat"}, {"score.query", "score.key"}, {"score.vector.weight"}),
        ({"kind": "multi-head", "size": 48, "heads": 4}, {"query", "key"}, {"vectors"}),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else "",
)
def test_attention_has_a_spread_of_its_own(
    attention: dict[str, object], small: set[str], zero: set[str]
) -> None:
    """Bahdanau et al. 2015, appendix B.1: W_a and U_a from N(0, 0.001^2), v_a zero."""
    table = {"kind": "normal", "std": 0.01, "attention_std": 0.001}
    model = drawn(table, "gru-bahdanau", attention=attention)
    stem = "decoder.attention."
    names = {name for name, _ in model.named_parameters()}
    assert {f"{stem}{name}.weight" for name in small} | {stem + name for name in zero} <= names
    for name, matrix in gate_matrices(model, "gru-bahdanau"):
        bare = name.split(",")[0].removeprefix(stem)
        if bare in zero:
            assert not matrix.any()
        else:
            assert_normal(matrix, 0.001 if bare.removesuffix(".weight") in small else 0.01, name)
    assert_vectors_rest(model)
    usual = drawn({"kind": "normal", "std": 0.01}, "gru-bahdanau", attention=attention)
    for name, matrix in gate_matrices(usual, "gru-bahdanau"):
        assert_normal(matrix, 0.01, name)


@pytest.mark.parametrize("cell", GATES)
def test_xavier_bounds_each_gate_s_matrix(cell: str) -> None:
    """Glorot & Bengio 2010, equation 16: +-sqrt(6 / (inputs + outputs))."""
    model = drawn({"kind": "xavier"}, cell)
    for name, matrix in gate_matrices(model, cell):
        assert_uniform(matrix, math.sqrt(6 / sum(matrix.shape)), name)
    assert_vectors_rest(model)


def test_torch_s_values_are_those_of_its_layers() -> None:
    model = drawn({"kind": "torch"}, "lstm-peephole")
    for name, parameter in model.encoder.recurrent.named_parameters():
        assert_uniform(parameter, HIDDEN**-0.5, name)  # as nn.LSTM has it
    for name, parameter in drawn({"kind": "torch"}, "lstm-layer-norm").named_parameters():
        if name.startswith("encoder.recurrent") and parameter.dim() == 1:
            assert (parameter == (1.0 if name.endswith("scale") else 0.0)).all(), name
    assert_normal(model.encoder.embedding.weight, 1.0, "nn.Embedding")


def test_start_values_come_from_torch_s_generator() -> None:
    def together(seed: int) -> Tensor:
        model = drawn({"kind": "uniform", "range": 0.5}, seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(together(1), together(1))
    assert not torch.equal(together(1), together(2))


# --- on top ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"kind": "xavier"}, {"kind": "torch"}], ids=["xavier", "torch"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", GATES)
def test_orthogonal_rotates_each_gate(
    cell: str, bidirectional: bool, kind: dict[str, object]
) -> None:
    """Q^T Q = I for each gate's recurrent matrix; all else is as without it."""
    usual = drawn(kind, cell, bidirectional=bidirectional).state_dict()
    model = drawn({**kind, "recurrent": "orthogonal"}, cell, bidirectional=bidirectional)
    rotations = []
    for name, parameter in model.state_dict().items():
        if "weight_h" in name:
            rotations.extend(parameter.split(HIDDEN))
        else:
            assert torch.equal(parameter, usual[name]), name
    layers = (2 if not bidirectional else 4) + 2
    assert len(rotations) == layers * GATES[cell]
    for matrix in rotations:
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(HIDDEN), rtol=0, atol=1e-5)
    assert len({tuple(matrix.flatten().tolist()) for matrix in rotations}) == len(rotations)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", LSTMS)
def test_forget_bias_is_added_to_the_forget_gates_alone(cell: str, bidirectional: bool) -> None:
    """torch adds its two biases: together they rise by 3 at the forget gate, and nowhere else."""

    def parameters(forget_bias: float) -> dict[str, Tensor]:
        table = {"kind": "torch", "forget_bias": forget_bias}
        found = drawn(table, cell, bidirectional=bidirectional).state_dict()
        for name in [name for name in found if "bias_ih" in name]:
            found[name] = found[name] + found.pop(name.replace("bias_ih", "bias_hh"))
        return found

    plain, biased = parameters(0.0), parameters(3.0)
    risen = 0
    for name, value in plain.items():
        if ".recurrent." in name and "bias" in name:
            expected = torch.zeros(4 * HIDDEN)
            expected[HIDDEN : 2 * HIDDEN] = 3.0  # the second quarter
            torch.testing.assert_close(biased[name] - value, expected, rtol=1e-5, atol=1e-5)
            risen += 1
        else:
            assert torch.equal(value, biased[name]), name
    assert risen == (2 if not bidirectional else 4) + 2
