"""Readers of the source: each sentence as if it had been read alone.

# B batch, S source steps, L layers, E embedding, H hidden, C outputs: H, or 2 H in two directions
"""

from collections.abc import Callable, Sequence

import numpy
import pytest
import torch
from torch import Tensor, nn

from s2s_cli.core.batches import SourceBatch, source_batch
from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.model.cells import (
    FusedLayer,
    Layer,
    LayerNormLstm,
    Parts,
    PeepholeLstm,
    ResetBeforeGru,
)
from s2s_cli.core.model.dropout import Dropout
from s2s_cli.core.model.encoder import BothWays, ReadingStack
from s2s_cli.core.model.reading import read_backward, read_forward
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import Model
from s2s_cli.core.tokenizer import EOS

NEARLY_ONE = 0.9999999  # a dropout that leaves nothing
INPUTS, HIDDEN = 5, 4
SENTENCES = [[4, 5, 6, 7, 8], [3, 3, 4, 8], [5, 6, 7], [7, 8, 4], [9], []]

LENGTHS = {
    "equal": [4, 4, 4],
    "different": [7, 5, 4, 2, 1],
    "repeated": [6, 6, 3, 3, 3, 1, 1],
    "one": [5],
    "ones": [1, 1],
}

CELLS: dict[str, Callable[[int, int], Layer]] = {
    "lstm": lambda inputs, hidden: FusedLayer(nn.LSTM(inputs, hidden)),
    "gru": lambda inputs, hidden: FusedLayer(nn.GRU(inputs, hidden)),
    "tanh": lambda inputs, hidden: FusedLayer(nn.RNN(inputs, hidden)),
    "peephole": PeepholeLstm,
    "layer-norm": LayerNormLstm,
    "cho": lambda inputs, hidden: ResetBeforeGru(inputs, hidden, z_keeps=True),
    "bahdanau": lambda inputs, hidden: ResetBeforeGru(inputs, hidden, z_keeps=False),
}


def drawn(layer: nn.Module) -> nn.Module:
    """Large biases, those of a forget gate about 3: whatever leaks from padding shows, and stays.

    They are those of all second quarters, which do not hurt other cells.
    """
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            biased = "bias" in name
            parameter.normal_(0.0, 2.0 if biased else 0.5)
            if biased and "bias_hh" not in name:
                quarter = len(parameter) // 4
                parameter[quarter : 2 * quarter] += 3.0
    return layer


def left_padded(sentences: Sequence[Tensor], garbage: float = 100.0) -> Tensor:
    """[S, B, n], the longest first; what stands in the padding must not count."""
    steps = len(sentences[0])
    padded = [
        torch.cat([garbage * torch.randn(steps - len(s), *s.shape[1:]).to(s), s]) for s in sentences
    ]
    return torch.stack(padded, 1)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Within a share of the largest number."""
    assert found.shape == expected.shape, what
    # One step from a state of zeros gives recurrent weights no gradient.
    scale = expected.abs().max().item() or 1.0
    assert (found - expected).abs().max().item() <= tolerance * scale, what


def alone(layer: Layer, sentence: Tensor, *, backward: bool) -> tuple[Tensor, Parts]:
    """Outputs [s, H] and the last state [H] of one sentence, [s, I]."""
    turned = sentence.flip(0) if backward else sentence
    outputs, after = layer.run(turned[:, None], layer.zeros(1, sentence))
    outputs = outputs.squeeze(1)
    return outputs.flip(0) if backward else outputs, tuple(part.squeeze(0) for part in after)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_reading_together_equals_reading_alone(
    cell: str, backward: bool, lengths: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(3)
    layer = drawn(CELLS[cell](INPUTS, HIDDEN)).to(dtype)
    assert isinstance(layer, Layer)
    sentences = [torch.randn(length, INPUTS).to(dtype).requires_grad_() for length in lengths]
    inputs = left_padded([sentence.detach() for sentence in sentences]).requires_grad_()
    outputs, state = (read_backward if backward else read_forward)(
        layer, inputs, torch.tensor(lengths)
    )
    oracle = [alone(layer, sentence, backward=backward) for sentence in sentences]
    states = [torch.stack(part) for part in zip(*(after for _, after in oracle), strict=True)]

    assert outputs.shape == (max(lengths), len(lengths), HIDDEN)
    moved = nn.utils.rnn.pad_sequence([outputs[-n:, row] for row, n in enumerate(lengths)])
    expected = nn.utils.rnn.pad_sequence([found for found, _ in oracle])
    assert_close(moved, expected, tolerance, "outputs")
    for row, length in enumerate(lengths):
        assert not outputs[:-length, row].any()
    assert len(state) == layer.parts
    for ours, theirs in zip(state, states, strict=True):
        assert_close(ours, theirs, tolerance, "state")

    weights = [torch.randn_like(part) for part in (expected, *states)]
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def gradients(values: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        loss = sum((v * w).sum() for v, w in zip(values, weights, strict=True))
        return torch.autograd.grad(loss, [*parameters, *inputs])

    *ours, to_inputs = gradients((moved, *state), [inputs])
    theirs = gradients((expected, *states), sentences)
    for name, one, other in zip(names, ours, theirs, strict=False):
        assert_close(one, other, tolerance, name)
    to_sentences = theirs[len(names) :]
    largest = max(gradient.abs().max().item() for gradient in to_sentences)
    for row, length in enumerate(lengths):
        difference = to_inputs[-length:, row] - to_sentences[row]
        assert difference.abs().max().item() <= tolerance * largest
        assert not to_inputs[:-length, row].any()


# --- whole encoders --------------------------------------------------------------------------


def model_of(**changes: object) -> Seq2Seq:
    """A model whose encoder is as asked for, its parameters all far from zero."""
    encoder = {"layers": 2, "embedding": INPUTS, "hidden": HIDDEN, **changes}
    decoder = {"kind": "plain", "layers": 1, "embedding": 3, "hidden": 3, "bridge": "tanh"}
    torch.manual_seed(7)
    table = Model.model_validate({"encoder": encoder, "decoder": decoder})
    model = build(table, source_vocabulary=10, target_vocabulary=10)
    drawn(model)
    return model.double().eval()


def source_of(sentences: Sequence[Sequence[int]] = SENTENCES) -> SourceBatch:
    return source_batch(PackedText.pack(sentences), numpy.arange(len(sentences)), False)


TORCH_S = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", TORCH_S)
def test_two_directions_equal_torch_s(cell: str, layers: int) -> None:
    """Outputs, states and gradients of torch's own stack with the same weights."""
    model = model_of(cell=cell, layers=layers, bidirectional=True)
    stack = model.encoder.recurrent
    theirs = TORCH_S[cell](INPUTS, HIDDEN, layers, bidirectional=True).double()
    twins = [
        (f"stack.{layer}.{side}.cells.{name}_l0", f"{name}_l{layer}{ending}")
        for layer in range(layers)
        for side, ending in (("onward", ""), ("backward", "_reverse"))
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    ours_by_name, theirs_by_name = dict(stack.named_parameters()), dict(theirs.named_parameters())
    assert {one for one, _ in twins} == ours_by_name.keys()
    with torch.no_grad():
        for one, other in twins:
            theirs_by_name[other].copy_(ours_by_name[one])

    lengths = torch.tensor([6, 4, 4, 1])
    sentences = [torch.randn(length, INPUTS).double() for length in lengths.tolist()]
    outputs, state = stack.read(left_padded(sentences), lengths)
    packed = nn.utils.rnn.pack_sequence(sentences)
    found, oracle = theirs(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(found)
    oracle = oracle if cell == "lstm" else (oracle,)
    # torch has [L * 2, B, H], the directions of a layer one after the other.
    oracle = [torch.cat([part[0::2], part[1::2]], -1) for part in oracle]
    moved = nn.utils.rnn.pad_sequence([outputs[-n:, row] for row, n in enumerate(lengths.tolist())])
    values, oracles = (moved, *state), (expected, *oracle)
    for one, other in zip(values, oracles, strict=True):
        assert_close(one, other, 1e-9)

    weights = [torch.randn_like(part) for part in oracles]
    for tensors in (values, oracles):
        sum((v * w).sum() for v, w in zip(tensors, weights, strict=True)).backward()
    for one, other in twins:
        assert_close(ours_by_name[one].grad, theirs_by_name[other].grad, 1e-9, one)


def stack_alone(stack: ReadingStack, sentence: Tensor) -> tuple[Tensor, list[Parts]]:
    """Outputs [s, C] and each layer's last state of one sentence, residuals by their equation."""
    inputs, states = sentence, []
    for number, layer in enumerate(stack.stack, 1):
        if isinstance(layer, BothWays):
            one, after = alone(layer.onward, inputs, backward=False)
            other, before = alone(layer.backward, inputs, backward=True)
            outputs = torch.cat([one, other], -1)
            states.append(tuple(torch.cat(b, -1) for b in zip(after, before, strict=True)))
        else:
            outputs, after = alone(layer, inputs, backward=False)
            states.append(after)
        residual = stack.residual_from > 0 and number >= stack.residual_from
        inputs = inputs + outputs if residual else outputs
    return inputs, states


@pytest.mark.parametrize("residual_from", [0, 1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "lstm-layer-norm", "gru-cho"])
def test_encoded_is_what_each_sentence_gives_alone(
    cell: str, bidirectional: bool, residual_from: int
) -> None:
    """A stack of three, residual from a layer on, and all that a decoder may know of it."""
    width = HIDDEN * (2 if bidirectional else 1)
    model = model_of(
        cell=cell,
        layers=3,
        bidirectional=bidirectional,
        residual_from=residual_from,
        embedding=width if residual_from == 1 else INPUTS,
    )
    stack = model.encoder.recurrent
    encoded = model.encoder(source_of())
    steps, rows = 6, len(SENTENCES)
    assert encoded.outputs.shape == (rows, steps, width)
    assert all(part.shape == (3, rows, width) for part in encoded.state)
    assert len(encoded.state) == (1 if cell.startswith("gru") else 2)
    assert torch.equal(encoded.summary, encoded.state[0][-1])
    for row, words in enumerate(SENTENCES):
        length = len(words) + 1
        assert encoded.real[row].tolist() == [False] * (steps - length) + [True] * length
        sentence = model.encoder.embedding(torch.tensor([*words, EOS]))
        if isinstance(stack, ReadingStack):
            outputs, states = stack_alone(stack, sentence)
        else:
            found, after = stack.cells(sentence)
            outputs = found
            states = list(zip(*(after if cell == "lstm" else (after,)), strict=True))
        assert_close(encoded.outputs[row, -length:], outputs, 1e-9, f"outputs {row}")
        assert not encoded.outputs[row, :-length].any(), row
        for layer, parts in enumerate(states):
            for one, other in zip(encoded.state, parts, strict=True):
                assert_close(one[layer, row], other, 1e-9, f"state {row} {layer}")


def test_the_summary_is_the_state_at_each_direction_s_end() -> None:
    encoded = model_of(bidirectional=True).encoder(source_of())
    for row, words in enumerate(SENTENCES):
        onward, backward = encoded.summary[row].split(HIDDEN)
        torch.testing.assert_close(onward, encoded.outputs[row, -1, :HIDDEN])
        first = -(len(words) + 1)
        torch.testing.assert_close(backward, encoded.outputs[row, first, HIDDEN:])


# --- dropout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_acts_between_the_layers_only(bidirectional: bool, variational: bool) -> None:
    """A dropout of nearly one shows where it stands: what is above knows nothing of the words."""
    model = model_of(
        cell="lstm-peephole",
        bidirectional=bidirectional,
        dropout=NEARLY_ONE,
        variational=variational,
    ).train()
    source = source_of([[5, 6, 7], [7, 3, 9], [4, 4, 8]])
    encoded = model.encoder(source)

    def spread(numbers: Tensor) -> float:
        """How far the sentences lie apart, which are the first dimension."""
        return (numbers - numbers[:1]).abs().max().item()

    hidden = encoded.state[0]
    assert spread(hidden[0]) > 0.1  # the first layer sees its input...
    assert spread(hidden[1]) < 1e-5  # ...the second nothing of it...
    assert spread(encoded.outputs) < 1e-5
    assert encoded.outputs.abs().min() > 0  # ...and its own output is whole
    encoded = model.eval().encoder(source)
    assert spread(encoded.state[0][1]) > 0.01


def masks_of(model: Seq2Seq, source: SourceBatch) -> list[Tensor]:
    """What the encoder's dropouts multiplied their input by, from the words up: [S, B, n]."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        seen.append((result / given[0]).detach())

    dropouts = [module for module in model.encoder.modules() if isinstance(module, Dropout)]
    hooks = [dropout.register_forward_hook(keep) for dropout in dropouts]
    model.encoder(source)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_variational_mask_is_drawn_once_a_sentence(
    bidirectional: bool, variational: bool
) -> None:
    model = model_of(
        cell="gru-bahdanau",
        layers=3,
        embedding=30,
        hidden=30,
        bidirectional=bidirectional,
        dropout=0.25,
        embedding_dropout=0.25,
        variational=variational,
    )
    source = source_of([[3 + (row + step) % 7 for step in range(5)] for row in range(20)])
    for mask in masks_of(model, source):
        torch.testing.assert_close(mask, torch.ones_like(mask))  # not in evaluation
    model.train()
    masks, others = masks_of(model, source), masks_of(model, source)
    width = 60 if bidirectional else 30
    assert [mask.shape[-1] for mask in masks] == [30, width, width]
    for mask, other in zip(masks, others, strict=True):
        kept = mask > 0
        torch.testing.assert_close(
            mask, kept.double() / 0.75
        )  # what is left makes up for what is lost
        drawings = mask[0].numel() * (1 if variational else len(mask))
        assert abs(kept.double().mean() - 0.75) < 5 * (0.75 * 0.25 / drawings) ** 0.5
        same_at_all_steps = torch.equal(kept, kept[:1].expand_as(kept))
        assert same_at_all_steps == variational
        for row in range(1, 20):  # each sentence has its own
            assert not torch.equal(kept[:, row], kept[:, row - 1])
        assert not torch.equal(kept, other > 0)  # and each update, too
    assert not torch.equal(masks[1], masks[2])


def test_a_variational_dropout_silences_the_same_numbers_of_every_word() -> None:
    """The fused single layer, where only the words have a dropout."""
    model = model_of(layers=1, embedding_dropout=0.5, variational=True).train()
    with torch.no_grad():
        model.encoder.embedding.weight.fill_(1.0)
    seen: list[Tensor] = []
    recurrent = model.encoder.recurrent
    read = recurrent.read
    recurrent.read = lambda inputs, lengths: (seen.append(inputs), read(inputs, lengths))[1]
    model.encoder(source_of())
    (inputs,) = seen
    assert torch.equal(inputs, inputs[:1].expand_as(inputs))
    assert set(inputs.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(inputs[0], inputs[0, :1].expand_as(inputs[0]))
