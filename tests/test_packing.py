"""A model's packed copy for search: in fp32 the model itself, in lower precisions near it.

# R rows of a search, V vocabulary
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from s2s_cli.core.batches import SourceBatch, source_batch
from s2s_cli.core.model import Seq2Seq, build, packing, products
from s2s_cli.core.model.cells import CONSTANT
from s2s_cli.core.model.embedding import FactoredEmbedding
from s2s_cli.core.model.packing import packed
from s2s_cli.core.model.products import IntegerProduct, pack
from s2s_cli.core.prepared import PackedText
from s2s_cli.core.recipe.schema import Model

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 40
SENTENCES = [[4, 5, 6, 7, 8], [3, 3, 4, 8], [5, 6, 7], [7, 8, 4], [9], []]
CELLS = ["lstm", "lstm-peephole", "lstm-layer-norm", "gru", "gru-cho", "gru-bahdanau", "tanh"]
ADDITIVE = {"kind": "additive", "size": 16}
TANH = {"kind": "tanh", "size": 32}
WORD = {"kind": "maxout", "size": 32, "word": True}


def asking(query: str, **changes: object) -> dict[str, Any]:
    return {"kind": "attention", "attention": ADDITIVE, "query": query, "readout": TANH, **changes}


DECODERS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain"},
    "peeky-cell": {"kind": "peeky", "context_to": "cell"},
    "peeky-both": {"kind": "peeky", "context_to": "both", "readout": WORD},
    "peeky-table": {"kind": "peeky", "context_to": "both", "readout": TANH},
    "general": asking("current", attention={"kind": "general"}),
    "local": asking("current", attention={"kind": "general", "local_window": 2}),
    "location": asking("current", attention={"kind": "location", "longest": 4}),
    "feeding": asking("current", input_feeding=True),
    "coverage": asking("previous", attention={**ADDITIVE, "coverage": True}),
    "previous": asking("previous", readout=WORD),
    "heads": asking("bottom", attention={"kind": "multi-head", "size": 16, "heads": 2}),
}
every_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


def model_of(
    decoder: dict[str, Any],
    cell: str = "lstm",
    encoder: dict[str, Any] | None = None,
    tie: str = "none",
    **changes: Any,
) -> Seq2Seq:
    """Two layers a side; parameters are far from zero."""
    stack = {"cell": cell, "layers": 2, "embedding": 32, "hidden": 32}
    bridge = {"bridge": "linear"}
    recipe = {
        "tie": tie,
        "encoder": {**stack, "hidden": 16, "bidirectional": True, **(encoder or {})},
        "decoder": {**stack, **bridge, **decoder, **changes},
    }
    torch.manual_seed(3)
    model = build(
        Model.model_validate(recipe), source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


def source() -> SourceBatch:
    return source_batch(PackedText.pack(SENTENCES), torch.arange(len(SENTENCES)).numpy(), True)


@torch.inference_mode()
def searched(model: Seq2Seq, beam: int = 3, steps: int = 4) -> Tensor:
    """Logits of all steps of a search that widens, mixes its hypotheses and drops sentences."""
    generator = torch.Generator().manual_seed(7)
    state = model.start(source())
    sentences, width = list(range(len(SENTENCES))), 1
    found = []
    for step in range(steps):
        words = torch.randint(VOCABULARY, (len(sentences) * width,), generator=generator)
        logits, state = model.step(words, state)
        found.append(logits.flatten())
        kept = [place for place in range(len(sentences)) if step < 2 or place != step]
        rows = [
            place * width + int(torch.randint(width, (), generator=generator))
            for place in kept
            for _ in range(beam)
        ]
        sentences, width = [sentences[place] for place in kept], beam
        state = state.select(torch.tensor(rows))
    return torch.cat(found)


@pytest.mark.parametrize("cell", CELLS)
@every_decoder
def test_in_fp32_it_is_the_model(decoder: dict[str, Any], cell: str) -> None:
    model = model_of(decoder, cell)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    torch.testing.assert_close(
        searched(packed(model, "fp32")), searched(model), rtol=1e-4, atol=1e-5
    )
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, before[name])


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.02), ("int8", 0.04)])
@every_decoder
def test_lower_precisions_are_near(decoder: dict[str, Any], precision: str, error: float) -> None:
    model = model_of(decoder)
    found, exact = searched(packed(model, precision)), searched(model)
    assert 1e-5 < float((found - exact).norm() / exact.norm()) < error


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_kernels_of_several_layers_are_stepped(cell: str, precision: str) -> None:
    """An encoder and a decoder of torch's own stacks."""
    one_way = {"bidirectional": False, "hidden": 32, "layers": 3}
    model = model_of({"kind": "plain", "bridge": "copy", "layers": 3}, cell, one_way)
    found, exact = searched(packed(model, precision)), searched(model)
    error = {"fp32": 1e-6, "bf16": 0.02, "int8": 0.04}[precision]
    assert float((found - exact).norm() / exact.norm()) < error


@pytest.mark.parametrize("tie", ["softmax", "three-way"])
def test_a_tied_softmax(tie: str) -> None:
    model = model_of({"kind": "plain"}, tie=tie)
    torch.testing.assert_close(
        searched(packed(model, "fp32")), searched(model), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"softmax": {"kind": "adaptive", "cutoffs": (10, 20)}},
        {"embedding_rank": 4},
        {"residual_from": 1},
        {"residual_from": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_unusual_parts(changes: dict[str, Any]) -> None:
    model = model_of({"kind": "plain"}, **changes)
    torch.testing.assert_close(
        searched(packed(model, "fp32")), searched(model), rtol=1e-4, atol=1e-5
    )


# --- words' shares of the first layer, and what hypotheses share --------------------------------


@every_decoder
def test_without_a_table_it_is_the_same(
    decoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(decoder)
    tabled = packed(model, "fp32")
    monkeypatch.setattr(packing, "LARGEST_TABLE", VOCABULARY * 4 * 32 - 1)
    plain = packed(model, "fp32")
    assert plain.decoder.embedding is model.decoder.embedding
    reads_word = decoder.get("readout") is WORD
    assert (tabled.decoder.embedding is model.decoder.embedding) == reads_word
    peeks = decoder["kind"] == "peeky" and not reads_word
    assert (CONSTANT in tabled.decoder.recurrent[0].products) == peeks
    torch.testing.assert_close(searched(tabled), searched(plain), rtol=1e-4, atol=1e-5)


def test_the_hypotheses_of_a_sentence_share_its_source() -> None:
    model = packed(model_of(DECODERS["general"]), "fp32")
    with torch.inference_mode():
        first = model.start(source())
        rows = torch.arange(len(SENTENCES)).repeat_interleave(3)
        wide = first.select(rows)
        assert wide.source.values is first.source.values
        assert len(wide.select(torch.tensor([3, 3, 5])).source.values) == 1
        turned = torch.tensor([1, 0, 2, 3, 4, 5])
        assert torch.equal(first.select(turned).source.values, first.source.values[turned])
        uneven = wide.select(torch.tensor([3, 3, 5, 0]))
        assert torch.equal(uneven.source.values, first.source.values[[1, 1, 1, 0]])


# --- products ----------------------------------------------------------------------------------


def numbers(rows: int, columns: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return size * (2 * torch.rand(rows, columns, generator=generator) - 1)


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("levels", [127, 63])
def test_integers_follow_their_equation(
    levels: int, states: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of the inputs by its own scale, each output by that of its weights."""
    capabilities = {"avx512_vnni": levels == 127}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    weight, bias = numbers(24, 48, 0.3), numbers(1, 24)[0]
    inputs = (
        numbers(9, 48) * torch.tensor([1.0, 0.9, 0.3, 7.0, 1e-3, 0.0, 100.0, 0.51, 0.5])[:, None]
    )
    product = IntegerProduct(weight, bias, states=states)
    scales = weight.abs().amax(1) / 127
    integers = (weight / scales[:, None]).round()
    inputs = torch.cat([inputs, -inputs.abs()])
    halves = torch.cat([product(half) for half in inputs.chunk(2)])
    for row, found in zip(inputs, halves, strict=True):
        peak = float(row.abs().max())
        step = 1.0
        while peak and not step / 2 < peak <= step:
            step *= 2 if peak > step else 0.5
        step = max(1.0, step) if states else step
        given = (row.double() / step * levels + 0.5).floor()
        expected = (integers.double() @ given.double()) * step / levels * scales + bias
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 * max(1, step))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_row_does_not_change_its_neighbours(precision: str) -> None:
    product = pack(numbers(64, 48), numbers(1, 64)[0], precision)
    rows = numbers(5, 48)
    beside = torch.cat([rows, 50 * rows, torch.zeros(1, 48)])
    tolerance = 0 if precision == "int8" else 1e-5
    torch.testing.assert_close(product(beside)[:5], product(rows), rtol=0, atol=tolerance)
    steps = product(rows.view(5, 1, 48).expand(5, 2, 48))
    torch.testing.assert_close(steps[:, 1], product(rows), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_without_onednn_s_operators(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, inputs = numbers(24, 48), numbers(1, 24)[0], numbers(5, 48)
    expected = pack(weight, bias, kind)(inputs)
    monkeypatch.setattr(products, "lends_onednn", lambda _: False)
    found = pack(weight, bias, kind)(inputs)
    error = 1e-6 if kind == "fp32" else 0.02
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < error
    assert float((found - functional.linear(inputs, weight, bias)).norm() / found.norm()) < error


PROBES = {
    "fp32": (products.lends_onednn, [torch.float32], ("mkldnn", "_linear_pointwise")),
    "bf16": (products.lends_onednn, [torch.bfloat16], ("mkldnn", "_linear_pointwise")),
    "int8": (products.multiplies_integers, [], ("onednn", "qlinear_pointwise")),
}


@pytest.mark.parametrize("name", PROBES)
def test_operators_that_are_gone_or_changed_are_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, given, (library, operator) = PROBES[name]
    probe: Any = cached.__wrapped__
    assert probe(*given)
    for changed in (lambda *_: torch.zeros(2, 4), lambda: None):
        with monkeypatch.context() as patched:
            patched.setattr(getattr(torch.ops, library), operator, changed)
            assert not probe(*given)


def test_a_processor_without_ordered_bf16_multiplies_another_way() -> None:
    """Older ones refuse to order its matrices, not to multiply them."""
    program = (
        "import torch; from s2s_cli.core.model.products import lends_onednn, pack\n"
        "found = pack(torch.ones(4, 8), None, 'bf16')(torch.ones(2, 8))\n"
        "print(lends_onednn(torch.float32), lends_onednn(torch.bfloat16), found[0, 0].item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[2] == "8.0"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("rows", [1, 16, 17, 200, 513, 4100])
def test_products_of_any_number_of_rows(rows: int, precision: str) -> None:
    weight, bias, inputs = numbers(8, 16), numbers(1, 8)[0], numbers(rows, 16)
    found = pack(weight, bias, precision)(inputs)
    assert found.shape == (rows, 8)
    torch.testing.assert_close(
        found,
        functional.linear(inputs, weight, bias),
        rtol=0,
        atol=1e-5 if precision == "fp32" else 0.1,
    )


def test_there_are_few_different_numbers_of_rows() -> None:
    padded = {rows: len(products.in_steps(torch.ones(rows, 1))) for rows in range(1, 4097)}
    assert len(set(padded.values())) == 16 + 31 + 56
    assert all(0 <= size - rows < max(16, rows / 7) for rows, size in padded.items())


def test_only_known_precisions() -> None:
    with pytest.raises(ValueError, match="fp64"):
        pack(numbers(2, 2), None, "fp64")


def test_a_table_of_low_rank_is_multiplied_out() -> None:
    model = model_of({"kind": "plain"}, embedding_rank=4)
    assert isinstance(model.decoder.embedding, FactoredEmbedding)
    table = packed(model, "fp32").decoder.embedding
    first = model.decoder.recurrent.cells
    expected = functional.linear(
        model.decoder.embedding.weight, first.weight_ih_l0, first.bias_ih_l0 + first.bias_hh_l0
    )
    for words in ([3], [3, 3, 7], [7, 0, 39, 3], range(VOCABULARY)):
        chosen = torch.tensor(words)
        with torch.inference_mode():
            found = table(chosen[None])[0]
        torch.testing.assert_close(found, expected[chosen], rtol=1e-5, atol=1e-5)
