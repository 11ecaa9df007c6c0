"""A model's copy for search on a CPU: the same equations, its matrices packed.

A kernel over a whole sequence orders its weights anew at each call, which is most of a single
step's time. Here layers are stepped one by one; the first layer's share of a word is looked up
where a table of all words finds place.

# V vocabulary, E embedding, G gates' numbers of the first layer
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.model.activation import tanh_
from s2s_cli.core.model.cells import CONSTANT, INPUT, FusedLayer, Layer
from s2s_cli.core.model.decoder import Decoder, PeekyDecoder
from s2s_cli.core.model.dropout import Dropout
from s2s_cli.core.model.encoder import ReadingStack
from s2s_cli.core.model.output import AdaptiveSoftmax
from s2s_cli.core.model.products import Product, pack
from s2s_cli.core.model.recurrent import LayerStack, Recurrent
from s2s_cli.core.model.seq2seq import Seq2Seq

LARGEST_TABLE = 1 << 25  # numbers, 134 MB


class PackedLinear(nn.Module):
    """A linear layer."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, precision: str, *, states: bool = False
    ) -> None:
        """As `pack`."""
        super().__init__()
        self.product = pack(weight, bias, precision, states=states)

    def forward(self, inputs: Tensor) -> Tensor:
        """[.., I] -> [.., O]"""
        return self.product(inputs)


class FastTanh(nn.Module):
    """The tanh of fresh numbers."""

    def forward(self, numbers: Tensor) -> Tensor:
        """They are overwritten."""
        return tanh_(numbers)


class GateTable(nn.Module):
    """What the first layer makes of a word, [V, G], found when a word is met for the first time.

    A table that is filled at once would take longer than the translation of some lines.
    """

    def __init__(self, embedding: nn.Module, words: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self._embedding = embedding
        self._product = pack(weight, bias, "fp32")
        self._table = torch.empty(words, len(weight))
        self._known = torch.zeros(words, dtype=torch.bool)
        self.embedding_dim = len(weight)

    def forward(self, words: Tensor) -> Tensor:
        """words: [..] ids -> [.., G]"""
        known = self._known[words]
        if not known.all():
            fresh = torch.unique(words[~known])
            self._table[fresh] = self._product(self._embedding(fresh))
            self._known[fresh] = True
        return functional.embedding(words, self._table)


class TableAndRest:
    """The product of the first layer's input, of which the word's share has been looked up.

    rest: the product of the numbers behind it; None where it has been taken already.
    """

    def __init__(self, gates: int, rest: Product | None) -> None:
        self._gates = gates
        self._rest = rest

    def __call__(self, inputs: Tensor) -> Tensor:
        """[.., G + others] -> [.., G]"""
        if inputs.shape[-1] == self._gates:
            return inputs
        looked_up, others = inputs[..., : self._gates], inputs[..., self._gates :]
        return looked_up + (others if self._rest is None else self._rest(others))


@torch.no_grad()
def packed(model: Seq2Seq, precision: str) -> Seq2Seq:
    """The model with packed products in fp32, bf16 or int8; it shares what is not packed.

    What bridges encoder and decoder stays as it is. The copy cannot be trained, and its decoder
    reads one word at a time.
    """
    reader = _reader(model.encoder.recurrent, precision)
    encoder = _with(model.encoder, {"recurrent": reader})
    decoder: Decoder[Any, Any] = model.decoder
    embedding, layers = _decoder_layers(decoder, precision)
    children = {
        name: _packed(child, precision)
        for name, child in decoder.named_children()
        if name not in ("embedding", "bridge", "recurrent", "output")
    }
    children["output"] = _output(decoder, precision)
    decoder = _with(decoder, {**children, "embedding": embedding, "recurrent": layers})
    fresh: Seq2Seq = _with(model, {"encoder": encoder, "decoder": decoder})
    return fresh


@torch.no_grad()
def with_output(copied: Seq2Seq, model: Seq2Seq, precision: str, words: Sequence[int]) -> Seq2Seq:
    """A packed copy of the model that gives the logits of these words alone, in their order.

    The softmax must not be an adaptive one.
    """
    output = _output(model.decoder, precision, list(words))
    decoder = _with(copied.decoder, {"output": output})
    fresh: Seq2Seq = _with(copied, {"decoder": decoder})
    return fresh


def _output(
    decoder: Decoder[Any, Any], precision: str, words: list[int] | None = None
) -> nn.Module:
    """The softmax, of some words only where they are given."""
    match decoder.output:
        case AdaptiveSoftmax():
            return decoder.output
        case output:
            states = isinstance(decoder.readout.transform, nn.Identity | nn.Sequential)  # or a tanh
            chosen = slice(None) if words is None else words
            weight, bias = output.weight[chosen], output.bias[chosen]
            return PackedLinear(weight, bias, precision, states=states)


def _with(module: nn.Module, children: dict[str, nn.Module]) -> Any:
    """A copy of a module with other children of these names."""
    fresh = copy.copy(module)
    fresh._modules = {**module._modules, **children}
    return fresh


def _packed(module: nn.Module, precision: str) -> nn.Module:
    """A copy of a module that is no decoder's layer, and of all in it."""
    match module:
        case Layer():
            return _stepped(module, precision)
        case nn.Linear():
            return PackedLinear(module.weight, module.bias, precision)
        case nn.Tanh():
            return FastTanh()
        case _:
            children = {n: _packed(child, precision) for n, child in module.named_children()}
            fresh: nn.Module = _with(module, children)
            return fresh


def _reader(reader: Recurrent | ReadingStack, precision: str) -> nn.Module:
    """The encoder's layers."""
    if not isinstance(reader, Recurrent):
        return _packed(reader, precision)
    first, *upper = _single(reader)
    layers = [_stepped(first, precision), *(_upper(layer, precision) for layer in upper)]
    return ReadingStack(layers, residual_from=0, dropout=Dropout(0.0))


def _single(layers: Recurrent | LayerStack) -> list[Layer]:
    if isinstance(layers, Recurrent):
        return [FusedLayer(layers.cells, index) for index in range(layers.layers)]
    return [layers[index] for index in range(layers.layers)]


def _stepped(layer: Layer, precision: str, input_: Product | None = None) -> Layer:
    """A layer with packed products, and the given one of its input if there is one."""
    fresh = copy.copy(layer)
    if input_ is None:
        input_ = pack(layer.input_weight(), layer.input_bias(), precision)
    fresh.products = {INPUT: input_}
    for name, (weight, bias) in layer.matrices().items():
        fresh.products[name] = pack(weight, bias, precision, states=True)
    return fresh


def _upper(layer: Layer, precision: str) -> Layer:
    """One that reads another's outputs."""
    product = pack(layer.input_weight(), layer.input_bias(), precision, states=True)
    return _stepped(layer, precision, product)


def _decoder_layers(decoder: Decoder[Any, Any], precision: str) -> tuple[nn.Module, LayerStack]:
    """What gives the first layer its words, and the layers."""
    given = decoder.recurrent
    first, *upper = _single(given)
    residual_from = given.residual_from if isinstance(given, LayerStack) else 0
    embedding, input_, constant = decoder.embedding, None, None
    table: nn.Module = embedding
    weight = first.input_weight()
    fits = len(embedding.weight) * len(weight) <= LARGEST_TABLE
    # Where the vectors themselves are read by something else, too, there must be vectors.
    if fits and residual_from != 1 and not decoder.readout.reads_word:
        vector = embedding.embedding_dim
        words, others = weight[:, :vector], weight[:, vector:]
        count = len(embedding.weight)
        table = GateTable(embedding, count, words.contiguous(), first.input_bias())
        product = pack(others, None, precision) if others.shape[1] else None
        if isinstance(decoder, PeekyDecoder):
            constant, product = product, None
        input_ = TableAndRest(len(weight), product)
    layers = [_stepped(first, precision, input_), *(_upper(each, precision) for each in upper)]
    if constant is not None:
        layers[0].products[CONSTANT] = constant
    return table, LayerStack(layers, residual_from=residual_from)
