"""Every decoder against its equations, one sentence and one step at a time in float64.

# B sentences, T target steps, E embedding, H hidden, C context, F features, V vocabulary
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.batches import Batch, make_batch
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.model.bridge import Encoded
from s2s_cli.core.model.build import build
from s2s_cli.core.model.cells import FusedLayer
from s2s_cli.core.model.dropout import NO_MASKS, Masks
from s2s_cli.core.model.readout import Maxout
from s2s_cli.core.model.recurrent import Recurrent
from s2s_cli.core.prepared import PackedPairs, PackedText
from s2s_cli.core.recipe.schema import Model
from s2s_cli.core.tokenizer import BOS

VOCABULARY = 10
SENTENCES = [[5, 6, 7], [4, 5, 6, 7, 8], [9], [3, 3, 4, 8], [], [7, 8, 4]]
TRANSLATIONS = [[4, 5], [9, 8, 7, 6, 5, 4], [3, 3, 3], [6], [5], [8, 4, 4, 3]]

ADDITIVE = {"kind": "additive", "size": 3}
COVERAGE = {**ADDITIVE, "coverage": True}
TANH = {"kind": "tanh", "size": 4}


def asking(query: str, **changes: object) -> dict[str, Any]:
    return {"kind": "attention", "attention": ADDITIVE, "query": query, **changes}


DECODERS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain"},
    "peeky-cell": {"kind": "peeky", "context_to": "cell"},
    "peeky-readout": {"kind": "peeky", "context_to": "readout"},
    "peeky-both": {"kind": "peeky", "context_to": "both"},
    "peeky-tanh": {"kind": "peeky", "context": "tanh"},
    "current": asking("current"),
    "feeding": asking("current", input_feeding=True),
    "feeding-coverage": asking("current", input_feeding=True, attention=COVERAGE),
    "previous": asking("previous"),
    "previous-coverage": asking("previous", attention=COVERAGE),
    "bottom": asking("bottom"),
    "bottom-coverage": asking("bottom", attention=COVERAGE),
}

PREVIOUS = {"state": "previous", "word": True}  # what the schema asks for
READOUTS: dict[str, dict[str, Any]] = {
    f"{kind}{size}-{reads_name}": {"kind": kind, "size": size, **reads}
    for kind, size in (("linear", 0), ("linear", 4), ("tanh", 4), ("maxout", 4))
    for reads_name, reads in (("state", {}), ("word", {"word": True}), ("previous", PREVIOUS))
}
CELLS = ["lstm", "lstm-peephole", "lstm-layer-norm", "gru", "gru-cho", "gru-bahdanau", "tanh"]

every_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and loss are taken in fp32, which would hide a wrong term: here in float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def table(decoder: dict[str, Any], cell: str = "lstm", **changes: Any) -> Model:
    """A `[model]` table: two directions, two layers and a linear bridge, but for the `changes`."""
    # With input feeding the schema wants a readout of its own.
    readout = TANH if decoder.get("input_feeding") else {"kind": "linear"}
    stack = {"cell": cell, "layers": 2, "embedding": 5, "hidden": 5}
    side = {**stack, "bridge": "linear", "readout": readout, **decoder, **changes}
    encoder = {**stack, "layers": 1, "hidden": 3, "bidirectional": True}
    return Model.model_validate({"encoder": encoder, "decoder": side})


def model_of(recipe: Model) -> Seq2Seq:
    """A model whose parameters are far from zero; LSTMs forget little, so that a leak shows."""
    torch.manual_seed(21)
    model = build(recipe, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.7)
            if "lstm" in recipe.decoder.cell and name.rpartition(".")[2].startswith("bias_ih"):
                gate = len(parameter) // 4
                parameter[gate : 2 * gate] += 3.0
    return model.double().eval()


def batch_of(
    sources: Sequence[Sequence[int]] = SENTENCES, targets: Sequence[Sequence[int]] = TRANSLATIONS
) -> Batch:
    pairs = PackedPairs(PackedText.pack(sources), PackedText.pack(targets))
    return make_batch(pairs, numpy.arange(len(pairs)), reverse=False, start=BOS)


def close(ours: Any, theirs: Any, name: str = "") -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10, msg=lambda m: f"{name}: {m}")


def same_gradients(one: Tensor, other: Tensor, model: nn.Module) -> None:
    """Of all parameters; those that are not used have none in both."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(one, parameters, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(other, parameters, allow_unused=True, retain_graph=True)
    used = 0
    for name, found, expected, like in zip(names, ours, theirs, parameters, strict=True):
        zero = torch.zeros_like(like)
        close(zero if found is None else found, zero if expected is None else expected, name)
        used += expected is not None
    assert used > len(names) // 2


# --- the equations ---------------------------------------------------------------------------

States = list[tuple[Tensor, ...]]


def cell_step(recurrent: Any, index: int, cell: str) -> Callable[..., tuple[Tensor, ...]]:
    """One layer's step for a single sentence: x [I], its state, each [H]."""
    if isinstance(recurrent, Recurrent):
        cells, layer = recurrent.cells, index
    else:
        cells, layer = recurrent[index], 0
        cells = cells.cells if isinstance(cells, FusedLayer) else cells

    def lstm(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        w, u = (
            cells.get_parameter(f"weight_ih_l{layer}"),
            cells.get_parameter(f"weight_hh_l{layer}"),
        )
        b, d = cells.get_parameter(f"bias_ih_l{layer}"), cells.get_parameter(f"bias_hh_l{layer}")
        i, f, g, o = (w @ x + u @ h + b + d).split(len(h))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def gru(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """The reset acts before the product; the papers differ in what z is the share of."""
        (w_r, w_z, w), (u_r, u_z), (b_r, b_z, b) = (
            parameter.split(len(h)) for parameter in (cells.weight_ih, cells.weight_hh, cells.bias)
        )
        u = cells.weight_hn
        r, z = torch.sigmoid(w_r @ x + u_r @ h + b_r), torch.sigmoid(w_z @ x + u_z @ h + b_z)
        new = torch.tanh(w @ x + u @ (r * h) + b)
        return (z * h + (1 - z) * new if cell == "gru-cho" else (1 - z) * h + z * new,)

    return lstm if cell == "lstm" else gru


def readout_by_hand(readout: Any, side: Any, parts: list[Tensor]) -> Tensor:
    inputs = torch.cat(parts)
    match side.readout.kind, side.readout.size:
        case "linear", 0:
            return inputs
        case "linear", _:
            return readout.transform.weight @ inputs
        case "tanh", _:
            return torch.tanh(readout.transform[0].weight @ inputs)
        case "maxout", size:
            assert isinstance(readout.transform, Maxout)
            sums = readout.transform.linear.weight @ inputs
            pairs = [(sums[2 * place], sums[2 * place + 1]) for place in range(size)]
            return torch.stack([torch.maximum(one, other) for one, other in pairs])
    raise AssertionError(side.readout)


class Asked:
    """Additive attention to one sentence's outputs, which remembers its coverage."""

    def __init__(self, score: Any, words: Tensor) -> None:
        self.score, self.words = score, words
        self.covered = [words.new_zeros(())] * len(words)

    def __call__(self, query: Tensor) -> Tensor:
        score, scores = self.score, []
        for word, covered in zip(self.words, self.covered, strict=True):
            sums = score.query.weight @ query + score.key.weight @ word
            if score.covers:
                sums = sums + score.cover.weight[:, 0] * covered
            scores.append(score.vector.weight[0] @ torch.tanh(sums))
        total = sum(one.exp() for one in scores)
        weights = [one.exp() / total for one in scores]
        self.covered = [a + b for a, b in zip(self.covered, weights, strict=True)]
        return sum(a * word for a, word in zip(weights, self.words, strict=True))


def logits_by_hand(
    model: Seq2Seq, recipe: Model, encoded: Encoded, words: Sequence[int], masks: Masks = NO_MASKS
) -> Tensor:
    """The logits [T, V] of one sentence; masks: factors of numbers, the same at all steps."""
    parts, side = model.decoder, recipe.decoder
    attends = side.kind == "attention"
    query = side.query if attends else None
    feeding = attends and side.input_feeding
    layers = [cell_step(parts.recurrent, index, side.cell) for index in range(side.layers)]
    context = None
    if side.kind == "peeky":
        context = encoded.summary[0]
        if side.context == "tanh":
            context = torch.tanh(parts.summary.weight @ context)
            encoded = replace(encoded, summary=context[None])  # from which the bridge starts
    state: States = [
        tuple(part[index, 0] for part in parts.bridge(encoded)) for index in range(side.layers)
    ]
    attend = Asked(parts.attention.score, encoded.outputs[0]) if attends else None
    fed = encoded.outputs.new_zeros(parts.readout.features if feeding else encoded.outputs.shape[2])
    logits = []

    def dropped(numbers: Tensor, mask: Tensor | None) -> Tensor:
        return numbers if mask is None else numbers * mask[0]

    for word in words:
        vector = dropped(parts.embedding.weight[word], masks.words)
        before, inputs = state[-1][0], [vector]
        if query == "previous":
            context = attend(before)
            inputs.append(context)
        elif feeding or query == "bottom":
            inputs.append(fed)
        elif side.kind == "peeky" and side.context_to != "readout":
            inputs.append(context)
        x = torch.cat(inputs)
        for index, layer in enumerate(layers):
            given = x  # a residual adds what has not been dropped
            if index:
                given = dropped(x, masks.between(index))
                given = torch.cat([given, context]) if query == "bottom" else given
            state[index] = layer(given, *state[index])
            residual = 0 < side.residual_from <= index + 1
            x = state[index][0] + x[: side.hidden] if residual else state[index][0]
            if not index and query == "bottom":
                fed = context = attend(state[0][0])
        if query == "current":
            context = attend(x)
        read = [before if side.readout.state == "previous" else x]
        read += [vector] if side.readout.word else []
        to_cell_alone = side.kind == "peeky" and side.context_to == "cell"
        read += [] if context is None or to_cell_alone else [context]
        features = readout_by_hand(parts.readout, side, read)
        fed = features if feeding else fed
        logits.append(parts.output.weight @ dropped(features, masks.features) + parts.output.bias)
    return torch.stack(logits)


WORDS = [BOS, 9, 4, 4, 6]


def check_equations(recipe: Model, sources: Sequence[Sequence[int]] = ([7, 3, 8],)) -> None:
    model = model_of(recipe)
    for source in sources:
        encoded = model.encoder(batch_of([source], [[]]).source)
        features, _ = model.decoder(torch.tensor(WORDS)[:, None], model.decoder.start(encoded))
        ours = model.decoder.output(features)[:, 0]
        theirs = logits_by_hand(model, recipe, encoded, WORDS)
        close(ours, theirs)
        weights = torch.randn_like(theirs)  # a loss that every logit enters
        same_gradients((ours * weights).sum(), (theirs * weights).sum(), model)


@pytest.mark.parametrize(
    ("cell", "layers"), [("lstm", 1), ("lstm", 3), ("gru-cho", 2), ("gru-bahdanau", 1)]
)
@every_decoder
def test_decoders_follow_their_equations(decoder: dict[str, Any], cell: str, layers: int) -> None:
    check_equations(table(decoder, cell, layers=layers), ([7, 3, 3, 8], []))


@pytest.mark.parametrize(
    ("decoder", "readout"),
    [
        pytest.param(decoder, readout, id=f"{name}-{reads}")
        for name, decoder in DECODERS.items()
        for reads, readout in READOUTS.items()
        # With input feeding the schema wants one that is not linear.
        if not (decoder.get("input_feeding") and readout["kind"] == "linear")
        and "coverage" not in name  # of which a readout sees nothing
    ],
)
def test_readouts_follow_their_equations(decoder: dict[str, Any], readout: dict[str, Any]) -> None:
    check_equations(table(decoder, layers=1, readout=readout))


@pytest.mark.parametrize("first", [1, 2])
@every_decoder
def test_residuals_follow_their_equations(decoder: dict[str, Any], first: int) -> None:
    check_equations(table(decoder, residual_from=first, layers=3))


@pytest.mark.parametrize("tanh", [True, False])
def test_a_fixed_context_makes_bahdanau_s_decoder_that_of_cho(tanh: bool) -> None:
    """With the same readout, first state and sense of z, as 1409.0473's section on it says.

    z is the share of the new state in one paper and of the old one in the other, and
    sigmoid(-a) = 1 - sigmoid(a). The context is fixed where all outputs are the same.
    """
    same = {"layers": 1, "readout": {"kind": "maxout", "size": 4, **PREVIOUS}, "bridge": "tanh"}
    bahdanau = model_of(table(DECODERS["previous"], "gru-bahdanau", **same))
    cho = model_of(table(DECODERS["peeky-tanh" if tanh else "peeky-both"], "gru-cho", **same))
    weights = {
        name: value.clone()
        for name, value in bahdanau.decoder.state_dict().items()
        if not name.startswith("attention.")
    }
    for name, value in weights.items():
        if name.startswith("recurrent."):
            value[5:10] *= -1  # the second of three gates
    found = cho.decoder.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys == (["summary.weight"] if tanh else [])

    torch.manual_seed(22)
    summary = torch.randn(3, 6).double()
    context = torch.tanh(summary @ cho.decoder.summary.weight.T) if tanh else summary
    real = torch.arange(4) >= torch.tensor([0, 1, 3])[:, None]
    outputs = context[:, None] * real[..., None]
    fixed = Encoded((context[None],), context, outputs, real)
    words = torch.randint(VOCABULARY, (6, 3))
    logits = []
    for model, encoded in ((bahdanau, fixed), (cho, replace(fixed, summary=summary))):
        features, _ = model.decoder(words, model.decoder.start(encoded))
        logits.append(model.decoder.output(features))
    close(logits[0], logits[1])
    assert (logits[0][0] - logits[0][1]).abs().min() > 1e-3  # and the steps differ


# --- what holds for all ----------------------------------------------------------------------


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state."""
    if isinstance(state, Tensor):
        return [state]
    parts: list[Any] = []
    if is_dataclass(state):
        parts = [getattr(state, field.name) for field in fields(state)]
    elif isinstance(state, tuple):
        parts = list(state)
    return [tensor for part in parts for tensor in tensors(part)]


def same_state(one: Any, other: Any) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert len(ours) == len(theirs) > 0
    for mine, yours in zip(ours, theirs, strict=True):
        close(mine, yours)


def check_steps(model: Seq2Seq) -> None:
    """A word at a time, two at a time, and all words at once are the same."""
    batch = batch_of()
    first = model.start(batch.source)
    whole, last = model.decoder(batch.inputs, first)
    for size in (1, 2):
        state, pieces = first, []
        for words in batch.inputs.split(size):
            features, state = model.decoder(words, state)
            pieces.append(features)
        close(torch.cat(pieces), whole)
        same_state(state, last)


@pytest.mark.parametrize("cell", CELLS)
@every_decoder
def test_step_by_step_equals_the_whole_sequence(decoder: dict[str, Any], cell: str) -> None:
    check_steps(model_of(table(decoder, cell)))


@every_decoder
def test_select_takes_rows_in_order_with_repeats(decoder: dict[str, Any]) -> None:
    dropouts = {"embedding_dropout": 0.4, "dropout": 0.4, "output_dropout": 0.4}
    model = model_of(table(decoder, variational=True, **dropouts)).train()  # masks are chosen, too
    batch = batch_of()
    rows = torch.tensor([4, 0, 0, 2, 5, 1, 3])
    _, state = model.decoder(batch.inputs[:2], model.start(batch.source))
    features, after = model.decoder(batch.inputs[2:], state)
    chosen, chosen_after = model.decoder(batch.inputs[2:, rows], state.select(rows))
    close(chosen, features[:, rows])
    same_state(chosen_after, after.select(rows))
    assert not torch.equal(features[:, 4], features[:, 0])


@pytest.mark.parametrize("cell", ["lstm", "gru-bahdanau"])
@every_decoder
def test_padding_and_neighbours_are_inert(decoder: dict[str, Any], cell: str) -> None:
    model = model_of(table(decoder, cell))
    alone = [model(batch_of([s], [t])) for s, t in zip(SENTENCES, TRANSLATIONS, strict=True)]
    together, apart = model(batch_of()), torch.stack(alone).sum()
    close(together, apart)
    same_gradients(together, apart, model)


# --- dropout ---------------------------------------------------------------------------------

DROPOUTS = {"embedding_dropout": 0.3, "dropout": 0.5, "output_dropout": 0.4}


@pytest.mark.parametrize("residual_from", [0, 1])
@every_decoder
def test_variational_masks_are_the_same_at_all_steps(
    decoder: dict[str, Any], residual_from: int
) -> None:
    """And stand on words' vectors, between layers and before the softmax, fed or not."""
    recipe = table(decoder, layers=3, variational=True, residual_from=residual_from, **DROPOUTS)
    model = model_of(recipe).train()
    check_steps(model)
    encoded = model.encoder(batch_of([[7, 3, 3, 8]], [[]]).source)
    state = model.decoder.start(encoded)
    masks = getattr(state, "recurrent", state).masks
    assert len(masks.layers) == 2
    features, _ = model.decoder(torch.tensor(WORDS)[:, None], state)
    close(
        model.decoder.output(features)[:, 0], logits_by_hand(model, recipe, encoded, WORDS, masks)
    )
    model.eval()
    assert model.decoder.first(encoded).masks == Masks(layers=(None, None))


def test_variational_masks_drop_their_share_of_each_sentence_anew() -> None:
    model = model_of(table(DECODERS["plain"], variational=True, **DROPOUTS)).train()
    batch = batch_of([[5]] * 2000, [[5]] * 2000)
    torch.manual_seed(23)
    masks = model.start(batch.source).masks
    again = model.start(batch.source).masks
    found = zip(
        (masks.words, masks.layers[0], masks.features),
        (again.words, again.layers[0], again.features),
        DROPOUTS.values(),
        strict=True,
    )
    for mask, other, share in found:
        kept = mask != 0
        close(mask, kept.double() / (1 - share))
        count = mask.numel()
        error = (share * (1 - share) / count) ** 0.5
        assert abs(float((~kept).double().mean()) - share) < 5 * error
        # Sentences, numbers and starts know nothing of each other: they agree as chance has it.
        chance = share**2 + (1 - share) ** 2
        for one in (kept.roll(1, 0), kept.roll(1, 1), other != 0):
            assert abs(float((one == kept).double().mean()) - chance) < 5 * (0.25 / count) ** 0.5


@every_decoder
def test_other_dropouts_draw_for_each_step(decoder: dict[str, Any]) -> None:
    """Where they stand, seen by numbers that are zero."""
    model = model_of(table(decoder, **{**DROPOUTS, "dropout": 0.0})).train()
    batch = batch_of([[5, 6]], [[4] * 11])
    state = model.start(batch.source)
    torch.manual_seed(24)
    features, _ = model.decoder(batch.inputs, state)
    masks = getattr(state, "recurrent", state).masks
    assert masks.words is masks.features is None
    vectors = model.decoder.vectors(batch.inputs[1:], masks)
    for numbers in (features, vectors):
        zero = numbers[:, 0] == 0
        assert 0.1 < zero.double().mean() < 0.7
        assert len({tuple(row) for row in zero.tolist()}) > 3


@every_decoder
def test_dropout_between_layers_leaves_the_first_layer_alone(decoder: dict[str, Any]) -> None:
    """A dropout that leaves nothing: upper layers know no word, but the first layer does."""
    for variational in (False, True):
        recipe = table(decoder, dropout=0.9999999, variational=variational)
        model = model_of(recipe).train()
        batch = batch_of([[5, 6]], [[4, 5, 6]])
        encoded = model.encoder(batch.source)
        start = model.decoder.start(encoded)
        _, one = model.decoder(batch.inputs[:1], start)
        _, other = model.decoder(batch.inputs[:1] + 3, start)
        hidden = [getattr(state, "recurrent", state).tensors[0] for state in (one, other)]
        lower, upper = (hidden[0] - hidden[1]).abs().amax((1, 2))
        assert lower > 1e-3
        if recipe.decoder.kind != "attention" or recipe.decoder.query != "bottom":
            assert upper < 1e-9  # with `bottom` the context tells of the first layer's state
        else:
            assert upper > 1e-6


def test_what_is_fed_has_not_been_dropped() -> None:
    """Nothing reaches the softmax, but the steps still see each other's readout."""
    model = model_of(table(DECODERS["feeding"], output_dropout=0.9999999)).train()
    batch = batch_of()
    features, state = model.decoder(batch.inputs[:1], model.start(batch.source))
    assert not features.any()
    assert state.fed.abs().min() > 1e-6
    blind = replace(state, fed=functional.dropout(state.fed, 1.0))
    _, after = model.decoder(batch.inputs[1:2], state)
    _, other = model.decoder(batch.inputs[1:2], blind)
    assert (after.fed - other.fed).abs().max() > 1e-3
