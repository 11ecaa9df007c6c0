"""Attention against the papers' equations, word by word in float64.

# B sentences, T queries, S longest source, H query, C an encoder's output
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2s_cli.core.model.attention import AdditiveScore, Source
from s2s_cli.core.model.bridge import Encoded
from s2s_cli.core.model.build import build
from s2s_cli.core.recipe.schema import Model

LENGTHS = [6, 4, 4, 1]
QUERIES, HIDDEN = 3, 6
LONGEST = 3  # places that a location score has weights for

SCORES: dict[str, dict[str, Any]] = {
    "dot": {"kind": "dot"},
    "general": {"kind": "general"},
    "concat": {"kind": "concat"},
    "additive": {"kind": "additive", "size": 5},
    "concat-coverage": {"kind": "concat", "coverage": True},
    "additive-coverage": {"kind": "additive", "size": 5, "coverage": True},
    "multi-head": {"kind": "multi-head", "size": 6, "heads": 2},
    "one-head": {"kind": "multi-head", "size": 5, "heads": 1},
    "location": {"kind": "location", "longest": LONGEST},
    "dot-local": {"kind": "dot", "local_window": 1},
    "general-local": {"kind": "general", "local_window": 2},
    "concat-local": {"kind": "concat", "local_window": 3},
    "additive-local": {"kind": "additive", "size": 5, "local_window": 2},
    "coverage-local": {"kind": "additive", "size": 5, "local_window": 2, "coverage": True},
}
COVERS = [name for name, table in SCORES.items() if table.get("coverage")]
every_score = pytest.mark.parametrize("table", SCORES.values(), ids=SCORES)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are taken in fp32, which would hide a wrong term: here that is float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def attention_of(table: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    """The attention of a model that was built of a recipe, its weights far from zero."""
    one_way = table["kind"] == "dot"  # which needs outputs as wide as the queries
    encoder = {"layers": 1, "embedding": 3, "hidden": 6 if one_way else 4}
    decoder = {
        "kind": "attention",
        "query": "previous",
        "attention": table,
        "layers": 1,
        "embedding": 3,
        "hidden": HIDDEN,
        "bridge": "zero",
    }
    recipe = Model.model_validate(
        {"encoder": {**encoder, "bidirectional": not one_way}, "decoder": decoder}
    )
    torch.manual_seed(11)
    attention = build(recipe, source_vocabulary=5, target_vocabulary=5).decoder.attention
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    return attention.to(dtype)


def sources(table: dict[str, Any], dtype: torch.dtype = torch.float64) -> Encoded:
    """Outputs with large numbers in the padding, which must not count."""
    torch.manual_seed(12)
    width, steps = 6 if table["kind"] == "dot" else 8, max(LENGTHS)
    outputs = torch.randn(len(LENGTHS), steps, width)
    real = torch.arange(steps) >= steps - torch.tensor(LENGTHS)[:, None]
    outputs = torch.where(real[..., None], outputs, 100 * outputs).to(dtype)
    return Encoded((), outputs.new_zeros(len(LENGTHS), width), outputs, real)


def queries_of(dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(13)
    return torch.randn(QUERIES, len(LENGTHS), HIDDEN).to(dtype)


def attend(attention: Any, encoded: Encoded, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts [T, B, C] and weights [B, T, S]; one by one where a query depends on the last."""
    source = attention.prepare(encoded)
    if source.coverage is None:
        found: tuple[Tensor, Tensor] = attention(queries, source)
        return found
    contexts, weights = [], []
    for query in queries:
        weights.append(attention(query[None], source)[1])
        context, source = attention.step(query, source)
        contexts.append(context)
    return torch.stack(contexts), torch.cat(weights, 1)


# --- the equations ---------------------------------------------------------------------------


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


def score(
    module: nn.Module, kind: str, h: Tensor, s: Tensor, place: int, covered: Tensor
) -> Tensor | None:
    """Of the word with the output s at a place, for the state h; None: it has no weight."""
    match kind:
        case "dot":
            return h @ s
        case "general":
            return h @ module.matrix.weight @ s
        case "location":
            weight = module.places.weight
            return weight[place] @ h if place < len(weight) else None
        case "concat" | "additive":
            joined = torch.cat([module.query.weight, module.key.weight], 1)  # W, or [W_a, U_a]
            sums = joined @ torch.cat([h, s])
            if module.covers:
                sums = sums + module.cover.weight[:, 0] * covered
            return module.vector.weight[0] @ torch.tanh(sums)
    raise AssertionError(kind)


def weights_by_hand(
    attention: Any, kind: str, h: Tensor, words: list[Tensor], covered: list[Tensor]
) -> list[Tensor]:
    zero = h.new_zeros(())
    places = list(range(len(words)))
    factors = [zero + 1 for _ in words]
    if attention.window is not None:
        half = attention.window.half_width
        v, w = attention.window.vector.weight[0], attention.window.matrix.weight
        p = len(words) / (1 + (-(v @ torch.tanh(w @ h))).exp())
        places = [place for place in places if p - half <= place <= p + half]
        sigma = half / 2
        factors = [(-((place - p) ** 2) / (2 * sigma**2)).exp() for place, _ in enumerate(words)]
    scores = {
        place: found
        for place in places
        if (found := score(attention.score, kind, h, words[place], place, covered[place]))
        is not None
    }
    normal = dict(zip(scores, softmax(list(scores.values())), strict=True))
    return [normal.get(place, zero) * factor for place, factor in enumerate(factors)]


def by_hand(
    attention: Any, kind: str, words: list[Tensor], queries: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """One sentence: contexts [T, C] and weights [T, S]."""
    covered = [queries[0].new_zeros(()) for _ in words]
    contexts, all_weights = [], []
    for h in queries:
        weights = weights_by_hand(attention, kind, h, words, covered)
        covered = [before + now for before, now in zip(covered, weights, strict=True)]
        contexts.append(sum(a * s for a, s in zip(weights, words, strict=True)))
        all_weights.append(torch.stack(weights))
    return torch.stack(contexts), torch.stack(all_weights)


def heads_by_hand(
    attention: Any, words: list[Tensor], queries: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Each head by itself, with its rows of each matrix; their contexts side by side."""
    matrices = (attention.query.weight, attention.key.weight, attention.value.weight)
    shares = [matrix.chunk(attention.heads) for matrix in matrices]
    contexts, all_weights = [], []
    for h in queries:
        heads, weights = [], []
        for w, u, o, v in zip(*shares, attention.vectors, strict=True):
            alone = softmax([v @ torch.tanh(w @ h + u @ s) for s in words])
            heads.append(sum(a * (o @ s) for a, s in zip(alone, words, strict=True)))
            weights.append(torch.stack(alone))
        contexts.append(torch.cat(heads))
        all_weights.append(sum(weights) / len(weights))
    return torch.stack(contexts), torch.stack(all_weights)


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype, message: str) -> None:
    """To 1e-9 in float64 and 1e-5 in float32, of the largest number."""
    scale = float(theirs.detach().abs().max()) or 1.0
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    difference = float((ours - theirs).detach().abs().max()) / scale
    assert difference < tolerance, (message, difference)


def check_equations(table: dict[str, Any], dtype: torch.dtype) -> None:
    """Contexts, weights, and the gradients of parameters, queries and outputs."""
    attention = attention_of(table, dtype)
    exact_attention = attention_of(table)
    exact_attention.load_state_dict({k: v.double() for k, v in attention.state_dict().items()})
    encoded, queries = sources(table, dtype), queries_of(dtype).requires_grad_()
    encoded.outputs.requires_grad_()
    contexts, weights = attend(attention, encoded, queries)

    leaves = [encoded.outputs.detach().double(), queries.detach().double()]
    values, asked = (leaf.requires_grad_() for leaf in leaves)
    torch.manual_seed(14)  # a loss that everything enters
    to_contexts, to_weights = torch.randn(contexts.shape).double(), torch.randn(weights.shape)
    steps = max(LENGTHS)
    expected_loss = asked.new_zeros(())
    for row, length in enumerate(LENGTHS):
        words, hs = list(values[row, steps - length :]), list(asked[:, row])
        if table["kind"] == "multi-head":
            by_word, by_weight = heads_by_hand(exact_attention, words, hs)
        else:
            by_word, by_weight = by_hand(exact_attention, table["kind"], words, hs)
        close(contexts[:, row], by_word, dtype, "contexts")
        close(weights[row, :, steps - length :], by_weight, dtype, "weights")
        assert not weights[row, :, : steps - length].any()
        expected_loss = expected_loss + (by_word * to_contexts[:, row]).sum()
        expected_loss = expected_loss + (by_weight * to_weights[row, :, steps - length :]).sum()
    # Weights of a coverage's last query are read here, too.
    loss = (contexts * to_contexts).sum() + (weights * to_weights).sum()
    names = [*dict(attention.named_parameters()), "outputs", "queries"]
    ours = torch.autograd.grad(loss, [*attention.parameters(), encoded.outputs, queries])
    theirs = torch.autograd.grad(expected_loss, [*exact_attention.parameters(), values, asked])
    for name, one, other in zip(names, ours, theirs, strict=True):
        close(one, other, dtype, name)
    assert not ours[-2][~encoded.real].any()  # padding gets no gradient


@every_score
def test_attention_follows_its_equations(table: dict[str, Any], exact: None) -> None:
    check_equations(table, torch.float64)


@every_score
def test_attention_follows_its_equations_in_float32(table: dict[str, Any]) -> None:
    check_equations(table, torch.float32)


# --- what holds for all ----------------------------------------------------------------------


@every_score
def test_a_query_alone_equals_one_among_others(table: dict[str, Any], exact: None) -> None:
    """Alone in time, by `step`, and alone in the batch, without padding."""
    attention, encoded, queries = attention_of(table), sources(table), queries_of()
    contexts, weights = attend(attention, encoded, queries)
    source = attention.prepare(encoded)
    for query, expected in zip(queries, contexts, strict=True):
        context, source = attention.step(query, source)
        close(context, expected, torch.float64, "alone in time")
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = Encoded(
            (),
            encoded.summary[one],
            encoded.outputs[one, -length:],
            encoded.real[one, -length:],
        )
        context, weight = attend(attention, alone, queries[:, one])
        close(context, contexts[:, one], torch.float64, "alone in the batch")
        close(weight, weights[one, :, -length:], torch.float64, "alone in the batch")


@every_score
def test_weights_sum_to_one_over_real_words(table: dict[str, Any], exact: None) -> None:
    attention, encoded, queries = attention_of(table), sources(table), queries_of()
    source = attention.prepare(encoded)
    _, weights = attention(queries, source)
    assert not weights.masked_select(~encoded.real[:, None].expand_as(weights)).any()
    if table.get("local_window"):
        inside, factors = attention.window(queries.transpose(0, 1), source)
        assert not weights.masked_select(~inside).any()
        assert not (inside & encoded.real[:, None]).all()  # some words are outside
        assert (weights.sum(-1) < 1).all()
        weights = weights / factors
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


@pytest.mark.parametrize("name", COVERS)
def test_coverage_is_the_sum_of_the_weights_before(name: str, exact: None) -> None:
    attention, encoded = attention_of(SCORES[name]), sources(SCORES[name])
    source = attention.prepare(encoded)
    assert not source.coverage.any()
    total = torch.zeros(encoded.real.shape).double()
    for query in queries_of():
        total = total + attention(query[None], source)[1].squeeze(1)
        _, source = attention.step(query, source)
        torch.testing.assert_close(source.coverage, total)


@pytest.mark.parametrize("name", COVERS)
def test_sources_are_selected_with_their_coverage(name: str) -> None:
    attention, encoded, queries = (attention_of(SCORES[name]), sources(SCORES[name]), queries_of())
    _, source = attention.step(queries[0], attention.prepare(encoded))
    rows = torch.tensor([2, 0, 0, 3, 1])
    contexts, after = attention.step(queries[1], source)
    chosen, chosen_after = attention.step(queries[1][rows], source.select(rows))
    torch.testing.assert_close(chosen, contexts[rows])
    torch.testing.assert_close(chosen_after.coverage, after.coverage[rows])


def test_positions_count_real_words_from_zero_in_the_order_of_reading() -> None:
    real = sources(SCORES["dot"]).real
    source = Source(real.double(), real.double(), real)
    assert source.lengths().tolist() == LENGTHS
    for row, length in zip(source.positions().tolist(), LENGTHS, strict=True):
        assert row[-length:] == list(range(length))
        assert all(position < 0 for position in row[:-length])


def test_a_location_has_no_weight_beyond_the_longest() -> None:
    attention, encoded = attention_of(SCORES["location"]), sources(SCORES["location"])
    _, weights = attention(queries_of(), attention.prepare(encoded))
    for row, length in enumerate(LENGTHS):
        words = weights[row, :, max(LENGTHS) - length :]
        assert (words[:, :LONGEST] > 0).all()
        assert not words[:, LONGEST:].any()


def test_a_location_does_not_depend_on_what_stands_there() -> None:
    attention, encoded = attention_of(SCORES["location"]), sources(SCORES["location"])
    others = replace(encoded, outputs=encoded.outputs.flip(0))
    queries = queries_of()
    _, one = attention(queries, attention.prepare(encoded))
    _, other = attention(queries, attention.prepare(others))
    assert torch.equal(one, other)


@pytest.mark.parametrize("sign", [-1e4, 1e4])
def test_a_window_always_holds_a_word(sign: float) -> None:
    """Also where the sigmoid has come to its ends, before the first word and after the last."""
    attention = attention_of({"kind": "general", "local_window": 1}, torch.float32)
    encoded = sources(SCORES["general"], torch.float32)
    with torch.no_grad():
        attention.window.matrix.weight.copy_(torch.eye(HIDDEN))
        attention.window.vector.weight.fill_(sign)
    queries = torch.ones(1, len(LENGTHS), HIDDEN)
    contexts, weights = attention(queries, attention.prepare(encoded))
    assert contexts.isfinite().all()
    factor = 1.0 if sign < 0 else math.exp(-2.0)  # p = 0, or S, one after the last word
    for row, length in enumerate(LENGTHS):
        words = weights[row, 0, max(LENGTHS) - length :]
        place = 0 if sign < 0 else length - 1
        if sign < 0 and length > 1:  # the second word is inside, too
            rest = words[1] / math.exp(-2.0)
            torch.testing.assert_close(words[0] + rest, torch.tensor(1.0))
            assert not words[2:].any()
        else:
            torch.testing.assert_close(words[place], torch.tensor(factor))


@every_score
def test_weights_are_fp32_in_bf16(table: dict[str, Any]) -> None:
    attention = attention_of(table, torch.bfloat16)
    encoded, queries = sources(table, torch.bfloat16), queries_of(torch.bfloat16)
    contexts, weights = attend(attention, encoded, queries)
    assert contexts.dtype == torch.bfloat16
    assert weights.dtype == torch.float32


def tanh_of(numbers: Tensor) -> Tensor:
    """By an additive score whose matrices are 1 and whose keys are 0. numbers: [N]"""
    score = AdditiveScore(1, 1, 1, covers=False).to(numbers.dtype)
    nothing = numbers.new_zeros(1, 1, 1)
    with torch.no_grad():
        score.query.weight.fill_(1.0)
        score.vector.weight.fill_(1.0)
    found: Tensor = score(numbers[None, :, None], Source(nothing, nothing, nothing[0] == 0))
    return found.flatten()


def test_a_tanh_of_many_numbers_is_off_by_rounding_alone() -> None:
    sizes = torch.logspace(-6, 1.5, 500)
    numbers = torch.cat([-sizes, torch.zeros(1), sizes]).requires_grad_()
    expected = torch.tanh(numbers.detach().double())
    found = tanh_of(numbers)
    assert (found - expected).abs().max() < 2e-7
    assert found[500] == 0
    (slope,) = torch.autograd.grad(found.sum(), numbers)
    assert (slope - (1 - expected**2)).abs().max() < 4e-7
    # In half precision that way would lose half of the digits.
    half = numbers.detach().bfloat16()
    assert torch.equal(tanh_of(half), torch.tanh(half))


@pytest.mark.parametrize("kind", ["dot", "general", "additive"])
def test_outputs_are_put_in_order_once(kind: str) -> None:
    """An encoder gives them time first; each step would copy them to multiply them."""
    table = SCORES[kind]
    encoded = sources(table)
    time_first = encoded.outputs.transpose(0, 1).contiguous()
    source = attention_of(table).prepare(replace(encoded, outputs=time_first.transpose(0, 1)))
    assert source.values.is_contiguous()
    assert source.keys.is_contiguous()
    assert torch.equal(source.values, encoded.outputs)
