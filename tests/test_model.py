"""The networks against their equations and against torch's packed sequences.

# B batch, S source steps, T target steps, L layers, E embedding, H hidden, V vocabulary
"""

from collections.abc import Sequence

import numpy
import pytest
import torch
from torch import Tensor, nn

from s2s_cli.core.batches import Batch, make_batch, source_batch
from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.model.recurrent import Recurrent, RecurrentState
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe import load
from s2s_cli.core.recipe.schema import Model
from s2s_cli.core.tokenizer import BOS, EOS

CELLS = ["lstm", "gru", "tanh"]
NEARLY_ONE = 0.9999999  # a dropout that leaves nothing

SENTENCES = [[5, 6, 7], [4, 5, 6, 7, 8], [9], [3, 3, 4, 8], [], [7, 8, 4]]
TRANSLATIONS = [[4, 5], [9, 8, 7, 6, 5, 4], [3, 3, 3], [6], [5], [8, 4, 4, 3]]


def network(cell: str, layers: int, inputs: int = 5, hidden: int = 6) -> Recurrent:
    """Cells with large biases and a forget bias of 3: whatever leaks from padding shows."""
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}
    cells = kinds[cell](inputs, hidden, layers)
    with torch.no_grad():
        for name, parameter in cells.named_parameters():
            parameter.normal_(0.0, 2.0 if name.startswith("bias") else 0.5)
            if cell == "lstm" and name.startswith("bias_ih"):
                parameter[hidden : 2 * hidden] += 3.0
    return Recurrent(cells)


def model_table(cell: str = "lstm", layers: int = 2, **changes: object) -> Model:
    """A `[model]` table; `changes` are of its encoder and decoder, or the table's own."""
    stack = {"cell": cell, "layers": layers, "hidden": 6}
    own = {key: changes.pop(key) for key in ("initialization", "reverse_source") if key in changes}
    encoder = {**stack, "embedding": 5, **changes.pop("encoder", {})}  # type: ignore[dict-item]
    decoder = {
        **stack,
        "kind": "plain",
        "embedding": 4,
        **changes.pop("decoder", {}),  # type: ignore[dict-item]
    }
    assert not changes
    return Model.model_validate({"encoder": encoder, "decoder": decoder, **own})


def wide(table: Model, vocabulary: int = 10) -> Seq2Seq:
    """A model whose parameters are all far from zero, biases included."""
    torch.manual_seed(7)
    model = build(table, source_vocabulary=vocabulary, target_vocabulary=vocabulary + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0)
    return model.eval()


def batch_of(
    sources: Sequence[Sequence[int]] = SENTENCES,
    targets: Sequence[Sequence[int]] = TRANSLATIONS,
    *,
    reverse: bool = False,
    start: int = EOS,
) -> Batch:
    pairs = PackedPairs(PackedText.pack(sources), PackedText.pack(targets))
    return make_batch(pairs, numpy.arange(len(pairs)), reverse=reverse, start=start)


# --- the equations ---------------------------------------------------------------------------


def lstm_step(x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """An LSTM without peepholes, its gates in torch's order: input, forget, cell, output."""
    from_input, from_hidden, one_bias, other_bias = weights
    gates = from_input @ x + from_hidden @ h + one_bias + other_bias
    i, f, g, o = gates.split(len(h))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(x: Tensor, h: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A GRU as cuDNN has it: the reset gate acts after the product; z is the share kept."""
    from_input, from_hidden, input_bias, hidden_bias = weights
    input_r, input_z, input_n = (from_input @ x + input_bias).split(len(h))
    hidden_r, hidden_z, hidden_n = (from_hidden @ h + hidden_bias).split(len(h))
    r, z = torch.sigmoid(input_r + hidden_r), torch.sigmoid(input_z + hidden_z)
    return ((1 - z) * torch.tanh(input_n + r * hidden_n) + z * h,)


def tanh_step(x: Tensor, h: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    from_input, from_hidden, one_bias, other_bias = weights
    return (torch.tanh(from_input @ x + from_hidden @ h + one_bias + other_bias),)


STEPS = {"lstm": lstm_step, "gru": gru_step, "tanh": tanh_step}


def run_by_hand(
    cell: str, cells: nn.RNNBase, inputs: Sequence[Tensor], states: list[tuple[Tensor, ...]]
) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
    """One sentence, one step after another. Outputs of the last layer, and all layers' states."""
    outputs = []
    for vector in inputs:
        x = vector
        for layer in range(cells.num_layers):
            weights = [
                cells.get_parameter(f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            states[layer] = STEPS[cell](x, *states[layer], weights)
            x = states[layer][0]
        outputs.append(x)
    return outputs, states


def score_by_hand(
    model: Seq2Seq, cell: str, source: Sequence[int], target: Sequence[int], start: int
) -> Tensor:
    """-log p(target, EOS | source): the whole model on one sentence, `source` as it is read."""
    cells = model.encoder.recurrent.cells
    parts = 2 if cell == "lstm" else 1
    zeros = [(torch.zeros(6, dtype=torch.float64),) * parts for _ in range(cells.num_layers)]
    read = [model.encoder.embedding.weight[word] for word in [*source, EOS]]
    _, states = run_by_hand(cell, cells, read, zeros)
    fed = [model.decoder.embedding.weight[word] for word in [start, *target]]
    outputs, _ = run_by_hand(cell, model.decoder.recurrent.cells, fed, states)
    output = model.decoder.output
    total = torch.zeros((), dtype=torch.float64)
    for features, word in zip(outputs, [*target, EOS], strict=True):
        logits = output.weight @ features + output.bias
        total = total - (logits[word] - logits.exp().sum().log())
    return total


@pytest.mark.parametrize("cell", CELLS)
def test_cells_follow_their_equations(cell: str) -> None:
    model = wide(model_table(cell, layers=3)).double()
    words = [3, 9, 4, 4, 6]
    parts = 2 if cell == "lstm" else 1
    state = RecurrentState(tuple(torch.randn(3, 1, 6).double() for _ in range(parts)))
    features, after = model.decoder(torch.tensor(words)[:, None], state)
    states = [tuple(part[layer, 0] for part in state.tensors) for layer in range(3)]
    vectors = [model.decoder.embedding.weight[word] for word in words]
    outputs, states = run_by_hand(cell, model.decoder.recurrent.cells, vectors, states)
    torch.testing.assert_close(features[:, 0], torch.stack(outputs), rtol=1e-9, atol=1e-12)
    assert len(after.tensors) == parts
    for part, found in enumerate(after.tensors):
        expected = torch.stack([layer[part] for layer in states])
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", [EOS, BOS])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_loss_is_the_sum_over_all_words_and_eos(cell: str, reverse: bool, start: int) -> None:
    model = wide(model_table(cell)).double()
    expected = sum(
        score_by_hand(model, cell, source[::-1] if reverse else source, target, start)
        for source, target in zip(SENTENCES, TRANSLATIONS, strict=True)
    )
    # The loss is taken in fp32 whatever the model's precision.
    loss = model(batch_of(reverse=reverse, start=start))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


# --- reading against packed sequences --------------------------------------------------------

LENGTHS = {
    "equal": [4, 4, 4],
    "different": [7, 5, 4, 2, 1],
    "repeated": [6, 6, 3, 3, 3, 1, 1],
    "one": [5],
    "ones": [1, 1],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_reading_equals_packed_sequences(
    cell: str, layers: int, lengths: list[int], dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    recurrent = network(cell, layers).to(dtype)
    steps, rows = max(lengths), len(lengths)
    left = 100 * torch.randn(steps, rows, 5).to(dtype)  # what stands in the padding must not count
    right = 100 * torch.randn(steps, rows, 5).to(dtype)
    for row, length in enumerate(lengths):
        left[steps - length :, row] = right[:length, row] = torch.randn(length, 5).to(dtype)
    left.requires_grad_()
    right.requires_grad_()

    outputs, state = recurrent.read(left, torch.tensor(lengths))
    packed = nn.utils.rnn.pack_padded_sequence(right, torch.tensor(lengths))
    packed_outputs, oracle = recurrent.cells(packed)
    packed_outputs, _ = nn.utils.rnn.pad_packed_sequence(packed_outputs)
    oracle = oracle if cell == "lstm" else (oracle,)

    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    close = {"rtol": tolerance, "atol": tolerance}
    assert len(state) == len(oracle)
    for ours, theirs in zip(state, oracle, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    # Outputs, moved from the right to the left: at padding both are zero.
    moved = nn.utils.rnn.pad_sequence([outputs[-n:, row] for row, n in enumerate(lengths)])
    torch.testing.assert_close(moved, packed_outputs, **close)
    for row, length in enumerate(lengths):
        assert not outputs[: steps - length, row].any()

    # A loss that all of the state and all outputs enter.
    weights = [torch.randn_like(part) for part in (packed_outputs, *oracle)]
    parameters = list(recurrent.parameters())

    def gradients(parts: tuple[Tensor, ...], inputs: Tensor) -> list[Tensor]:
        loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        return list(torch.autograd.grad(loss, [*parameters, inputs]))

    *ours, to_left = gradients((moved, *state), left)
    *theirs, to_right = gradients((packed_outputs, *oracle), right)
    for (name, _), one, other in zip(recurrent.named_parameters(), ours, theirs, strict=True):
        # One step from a state of zeros gives the recurrent weights no gradient.
        scale = float(other.abs().max()) or 1.0
        torch.testing.assert_close(one / scale, other / scale, **close, msg=name)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(to_left[steps - length :, row], to_right[:length, row], **close)
        assert not to_left[: steps - length, row].any()


# --- padding, order, steps -------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_padding_and_neighbours_are_inert(cell: str) -> None:
    """A sentence's loss and gradient are the same alone as among longer ones."""
    model = wide(model_table(cell))
    together = model(batch_of())
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(together, parameters)
    alone = [model(batch_of([s], [t])) for s, t in zip(SENTENCES, TRANSLATIONS, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=0)
    for one, other in zip(
        gradients, torch.autograd.grad(torch.stack(alone).sum(), parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_order_in_the_batch_is_inert() -> None:
    model = wide(model_table())
    one = model(batch_of())
    other = model(batch_of(SENTENCES[::-1], TRANSLATIONS[::-1]))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
    crossed = model(batch_of(SENTENCES, TRANSLATIONS[::-1]))  # other pairs are something else
    assert abs(crossed.item() - one.item()) > 0.1


@pytest.mark.parametrize("cell", CELLS)
def test_step_by_step_equals_the_whole_sequence(cell: str) -> None:
    model = wide(model_table(cell, layers=3))
    batch = batch_of()
    first = model.start(batch.source)
    features, last = model.decoder(batch.inputs, first)
    whole = model.decoder.output(features)
    state, steps = first, []
    for words in batch.inputs:
        logits, state = model.step(words, state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps), whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(state.tensors, last.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_select_takes_rows_in_order_with_repeats() -> None:
    model = wide(model_table())
    batch = batch_of()
    state = model.start(batch.source)
    rows = torch.tensor([4, 0, 0, 2])
    words = torch.tensor([3, 4, 5, 6, 7, 8])
    logits, after = model.step(words, state)
    chosen, chosen_after = model.step(words[rows], state.select(rows))
    torch.testing.assert_close(chosen, logits[rows], rtol=1e-5, atol=1e-5)
    for one, other in zip(chosen_after.tensors, after.select(rows).tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_every_layer_hands_over_its_whole_state(cell: str) -> None:
    """The decoder starts from h and c of every layer, as packed sequences give them, unchanged."""
    model = wide(model_table(cell, layers=3))
    pairs = PackedText.pack(sorted(SENTENCES, key=len, reverse=True))
    source = source_batch(pairs, numpy.arange(len(pairs)), False)
    state = model.start(source).tensors
    right = torch.full((int(source.lengths[0]), len(pairs)), EOS)
    for row in range(len(pairs)):
        right[: source.lengths[row] - 1, row] = torch.tensor(pairs[row], dtype=torch.long)
    vectors = model.encoder.embedding(right)
    packed = nn.utils.rnn.pack_padded_sequence(vectors, source.lengths)
    _, oracle = model.encoder.recurrent.cells(packed)
    oracle = oracle if cell == "lstm" else (oracle,)
    assert len(state) == len(oracle)
    for ours, theirs in zip(state, oracle, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # And the next word depends on each of them.
    words = torch.full((len(pairs),), EOS)
    logits, _ = model.step(words, RecurrentState(state))
    for part in range(len(state)):
        for layer in range(3):
            changed = [tensor.clone() for tensor in state]
            changed[part][layer] += 0.5
            others, _ = model.step(words, RecurrentState(tuple(changed)))
            assert (others - logits).abs().max() > 1e-3, (part, layer)


def test_logits_and_loss_are_fp32_in_bf16() -> None:
    model = wide(model_table())
    batch = batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model.step(batch.inputs[0], model.start(batch.source))
        loss = model(batch)
    assert logits.dtype == loss.dtype == torch.float32
    exact = model(batch)
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
    model.bfloat16()
    logits, _ = model.step(batch.inputs[0], model.start(batch.source))
    loss = model(batch)
    assert logits.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)


# --- dropout ---------------------------------------------------------------------------------
# A dropout of nearly one shows where it stands: what depends on the dropped numbers falls silent.


def states_and_logits(model: Seq2Seq, batch: Batch) -> tuple[RecurrentState, Tensor]:
    """Encoder states, and logits at all steps."""
    state = model.start(batch.source)
    features, _ = model.decoder(batch.inputs, state)
    return state, model.decoder.output(features)


@pytest.mark.parametrize("layers", [1, 2])
def test_encoder_embedding_dropout_silences_the_source(layers: int) -> None:
    table = model_table(layers=layers, encoder={"embedding_dropout": NEARLY_ONE})
    model = wide(table).train()
    words = [[5, 6, 7], [7, 3, 9]]
    state, _ = states_and_logits(model, batch_of(words, TRANSLATIONS[:2]))
    for part in state.tensors:
        assert torch.equal(part[:, 0], part[:, 1])  # no word is seen...
        assert part.abs().max() > 0.01  # ...but the cells ran
    model.eval()
    state, _ = states_and_logits(model, batch_of(words, TRANSLATIONS[:2]))
    assert not torch.equal(state.tensors[0][:, 0], state.tensors[0][:, 1])


def test_decoder_embedding_dropout_silences_the_previous_words() -> None:
    table = model_table(decoder={"embedding_dropout": NEARLY_ONE})
    model = wide(table).train()
    one, other = batch_of([[5, 6]], [[3, 4, 5]]), batch_of([[5, 6]], [[8, 9, 9]])
    state, logits = states_and_logits(model, one)
    assert torch.equal(logits, states_and_logits(model, other)[1])
    assert not torch.equal(logits[0], logits[1])  # the state moves on, and is the source's
    _, elsewhere = states_and_logits(model, batch_of([[9, 3, 4]], [[3, 4, 5]]))
    assert (logits - elsewhere).abs().max() > 1e-3
    model.eval()
    quiet, logits = states_and_logits(model, one)
    assert torch.equal(quiet.tensors[0], state.tensors[0])  # the encoder has none of it
    assert not torch.equal(logits, states_and_logits(model, other)[1])


def test_output_dropout_silences_the_last_features_but_not_the_state() -> None:
    model = wide(model_table(decoder={"output_dropout": NEARLY_ONE})).train()
    batch = batch_of()
    state, logits = states_and_logits(model, batch)
    assert torch.equal(logits, model.decoder.output.bias.expand_as(logits))
    _, after = model.decoder(batch.inputs, state)
    model.eval()
    quiet, logits = states_and_logits(model, batch)
    assert not torch.equal(logits[0], logits[1])
    _, quiet_after = model.decoder(batch.inputs, quiet)
    for one, other in zip(after.tensors, quiet_after.tensors, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_dropout_acts_between_the_layers_only(side: str, cell: str) -> None:
    table = model_table(cell, layers=2, **{side: {"dropout": NEARLY_ONE}})
    model = wide(table).train()
    stack = getattr(model, side).recurrent
    rows = 3
    inputs = torch.randn(4, rows, stack.cells.input_size)
    outputs, after = stack.run(inputs, stack.zeros(rows, inputs))
    hidden = after[0]

    def spread(layer: int) -> float:
        """How far the rows' states lie apart."""
        return (hidden[layer] - hidden[layer, :1]).abs().max().item()

    assert spread(0) > 0.1  # the first layer sees its input...
    assert spread(1) < 1e-5  # ...the second nothing of it...
    assert torch.equal(outputs[-1], hidden[1])
    assert outputs.abs().max() > 0.01  # ...and its own output is whole
    model.eval()
    _, (hidden, *_) = stack.run(inputs, stack.zeros(rows, inputs))
    assert spread(1) > 0.1


def test_a_single_layer_takes_a_dropout_without_a_word() -> None:
    """torch would warn of it, and warnings are errors here."""
    table = model_table(layers=1, encoder={"dropout": 0.5}, decoder={"dropout": 0.5})
    model = wide(table).train()
    batch = batch_of()
    assert torch.equal(model(batch), model(batch))


# --- the paper's model -----------------------------------------------------------------------


def test_the_flagship_has_the_paper_s_384_million_parameters() -> None:
    recipe = load("sutskever2014/wmt14-en-fr")
    with torch.device("meta"):
        model = build(recipe.model, source_vocabulary=160_000, target_vocabulary=80_000)
    assert model.parameter_count() == 384_144_000
    assert model.decoder.output.bias.numel() == 80_000
    # torch has two biases a gate, the paper one: 8 layers of 4 x 1000 gates.
    second = sum(p.numel() for name, p in model.named_parameters() if ".bias_hh_" in name)
    assert model.parameter_count() - second == 384_112_000
    assert recipe.model.reverse_source
    assert recipe.model.decoder.start == "eos"
    for side in (model.encoder, model.decoder):
        assert side.embedding.embedding_dim == side.recurrent.cells.hidden_size == 1000
        assert side.recurrent.cells.num_layers == 4
