"""From the recipe's `[model]` to a network: the only file of the models that sees a recipe."""

from typing import Any, assert_never

from torch import nn

from s2s_cli.core.errors import RecipeError
from s2s_cli.core.model import initialization
from s2s_cli.core.model.attention import (
    AdditiveScore,
    Attention,
    DotScore,
    GeneralScore,
    LocalWindow,
    LocationScore,
    MultiHeadAttention,
)
from s2s_cli.core.model.bridge import CopyBridge, LastBridge, LinearBridge, TanhBridge, ZeroBridge
from s2s_cli.core.model.cells import (
    FusedLayer,
    Layer,
    LayerNormLstm,
    PeepholeLstm,
    ResetBeforeGru,
)
from s2s_cli.core.model.decoder import (
    AttentionDecoder,
    Bridge,
    Decoder,
    DecoderParts,
    PeekyDecoder,
    PlainDecoder,
)
from s2s_cli.core.model.dropout import Dropout
from s2s_cli.core.model.embedding import Embedding, FactoredEmbedding, TiedEmbedding
from s2s_cli.core.model.encoder import BothWays, Encoder, ReadingStack
from s2s_cli.core.model.looping import (
    BottomQueryDecoder,
    FeedingDecoder,
    PreviousQueryDecoder,
)
from s2s_cli.core.model.output import AdaptiveSoftmax, Output, Softmax, TiedSoftmax
from s2s_cli.core.model.readout import Maxout, Readout
from s2s_cli.core.model.recurrent import LayerStack, Recurrent
from s2s_cli.core.model.seq2seq import Seq2Seq
from s2s_cli.core.recipe import schema
from s2s_cli.core.recipe.schema.combinations import features, readout_inputs

FUSED = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}


def build(recipe: schema.Model, *, source_vocabulary: int, target_vocabulary: int) -> Seq2Seq:
    """A fresh model, its start values drawn from torch's global generator.

    Args:
        recipe: the `[model]` table.
        source_vocabulary: ids that the encoder knows.
        target_vocabulary: ids that the decoder reads and writes.

    Raises:
        RecipeError: an adaptive softmax's cutoffs that are not below the vocabulary.
    """
    encoder = Encoder(
        embedding=_embedding(recipe.encoder, source_vocabulary),
        recurrent=_reader(recipe.encoder),
        embedding_dropout=_dropout(recipe.encoder, recipe.encoder.embedding_dropout),
    )
    model = Seq2Seq(encoder, _decoder(recipe, encoder.embedding, target_vocabulary))
    if model.device.type != "meta":
        _initialize(model, recipe.initialization)
    for side, module in ((recipe.encoder, model.encoder), (recipe.decoder, model.decoder)):
        if side.vectors and side.vectors.frozen:
            module.embedding.requires_grad_(False)
    return model


# --- layers ----------------------------------------------------------------------------------


def _layer(cell: schema.CellName, inputs: int, hidden: int) -> Layer:
    match cell:
        case "lstm" | "gru" | "tanh":
            return FusedLayer(FUSED[cell](inputs, hidden))
        case "lstm-peephole":
            return PeepholeLstm(inputs, hidden)
        case "lstm-layer-norm":
            return LayerNormLstm(inputs, hidden)
        case "gru-cho":
            return ResetBeforeGru(inputs, hidden, z_keeps=True)
        case "gru-bahdanau":
            return ResetBeforeGru(inputs, hidden, z_keeps=False)
        case _:
            assert_never(cell)


def _fused(side: schema.Encoder | schema.Decoder, inputs: int) -> Recurrent | None:
    """All layers in one kernel, where torch has one that does what is asked for."""
    one_by_one = side.residual_from or (side.variational and side.layers > 1)
    if side.cell not in FUSED or one_by_one:
        return None
    # A single layer has nothing between its layers; torch warns of a dropout there.
    dropout = side.dropout if side.layers > 1 else 0.0
    return Recurrent(FUSED[side.cell](inputs, side.hidden, side.layers, dropout=dropout))


def _reader(side: schema.Encoder) -> Recurrent | ReadingStack:
    if not side.bidirectional and (fused := _fused(side, side.embedding)):
        return fused

    def layer(inputs: int) -> Layer | BothWays:
        onward = _layer(side.cell, inputs, side.hidden)
        if not side.bidirectional:
            return onward
        return BothWays(onward, _layer(side.cell, inputs, side.hidden))

    inputs = [side.embedding, *[side.width] * (side.layers - 1)]
    return ReadingStack(
        [layer(width) for width in inputs],
        residual_from=side.residual_from,
        dropout=_dropout(side, side.dropout),
    )


def _layers(side: schema.Decoder, context: int) -> Recurrent | LayerStack:
    """Layers that need not loop; the first reads so many numbers of a context beside the words."""
    return _fused(side, side.embedding + context) or _stack(side, context, 0)


def _stack(side: schema.Decoder, context_to_first: int, context_to_others: int) -> LayerStack:
    """Layers that read, beside words or the layer below, so many numbers of a context."""
    first = side.embedding + context_to_first
    inputs = [first, *[side.hidden + context_to_others] * (side.layers - 1)]
    return LayerStack(
        [_layer(side.cell, width, side.hidden) for width in inputs],
        residual_from=side.residual_from,
        dropout=_dropout(side, side.dropout),
    )


def _dropout(side: schema.Encoder | schema.Decoder, share: float) -> Dropout:
    return Dropout(share, variational=side.variational)


# --- both ends of a decoder ------------------------------------------------------------------


def _embedding(side: schema.Encoder | schema.Decoder, vocabulary: int) -> Embedding:
    if side.embedding_rank:
        return FactoredEmbedding(vocabulary, side.embedding_rank, side.embedding)
    return nn.Embedding(vocabulary, side.embedding)


def _tied(owner: Embedding, vocabulary: int) -> TiedEmbedding:
    """A view of the encoder's table for the decoder."""
    if not isinstance(owner, nn.Embedding) or owner.num_embeddings != vocabulary:
        raise ValueError("a three-way tie needs one whole table for one vocabulary")
    return TiedEmbedding(owner)


def _output(recipe: schema.Model, embedding: Embedding, width: int, vocabulary: int) -> Output:
    if recipe.tie != "none":
        if isinstance(embedding, FactoredEmbedding):
            raise ValueError("a tied softmax needs a whole table")  # the schema sees to it
        return TiedSoftmax(embedding)
    softmax = recipe.decoder.softmax
    match softmax:
        case schema.FullSoftmax():
            return Softmax(width, vocabulary)
        case schema.AdaptiveSoftmax(cutoffs=cutoffs, reduction=reduction):
            if cutoffs[-1] >= vocabulary:
                raise RecipeError(
                    f"model.decoder.softmax.cutoffs = {list(cutoffs)}, but the target's vocabulary "
                    f"has {vocabulary:,} entries; all cutoffs should be below that"
                )
            return AdaptiveSoftmax(width, vocabulary, cutoffs, reduction)
        case _:
            assert_never(softmax)


def _readout(decoder: schema.Decoder, context: int) -> Readout:
    table = decoder.readout
    inputs, size = readout_inputs(decoder, context), features(decoder, context)
    transform: nn.Module
    match table:
        case schema.LinearReadout(size=0):
            transform = nn.Identity()
        case schema.LinearReadout():
            transform = nn.Linear(inputs, size, bias=False)
        case schema.TanhReadout():
            transform = nn.Sequential(nn.Linear(inputs, size, bias=False), nn.Tanh())
        case schema.MaxoutReadout():
            transform = Maxout(inputs, size)
        case _:
            assert_never(table)
    return Readout(
        transform,
        features=size,
        reads_previous=table.state == "previous",
        reads_word=table.word,
    )


def _bridge(encoder: schema.Encoder, decoder: schema.Decoder) -> Bridge:
    layers, hidden = decoder.layers, decoder.hidden
    parts = 2 if decoder.cell.startswith("lstm") else 1
    match decoder.bridge:
        case "copy":
            return CopyBridge()
        case "last":
            return LastBridge(layers)
        case "tanh":
            return TanhBridge(encoder.width, layers, hidden, parts, backward_only=False)
        case "first-backward":
            return TanhBridge(encoder.width, layers, hidden, parts, backward_only=True)
        case "linear":
            return LinearBridge(encoder.width, layers, hidden, parts)
        case "zero":
            return ZeroBridge(layers, hidden, parts)
        case _:
            assert_never(decoder.bridge)


# --- decoders --------------------------------------------------------------------------------


def _decoder(recipe: schema.Model, owner: Embedding, vocabulary: int) -> Decoder[Any, Any]:
    encoder, decoder = recipe.encoder, recipe.decoder
    three_way = recipe.tie == "three-way"
    embedding = _tied(owner, vocabulary) if three_way else _embedding(decoder, vocabulary)
    readout = _readout(decoder, encoder.width)
    parts = DecoderParts(
        embedding=embedding,
        bridge=_bridge(encoder, decoder),
        readout=readout,
        output=_output(recipe, embedding, readout.features, vocabulary),
        embedding_dropout=_dropout(decoder, decoder.embedding_dropout),
        output_dropout=_dropout(decoder, decoder.output_dropout),
    )

    match decoder:
        case schema.PlainDecoder():
            return PlainDecoder(parts, _layers(decoder, 0))
        case schema.PeekyDecoder(context_to=to, context=context):
            width = encoder.width
            return PeekyDecoder(
                parts,
                _layers(decoder, 0 if to == "readout" else width),
                to_cell=to != "readout",
                to_readout=to != "cell",
                summary=nn.Linear(width, width, bias=False) if context == "tanh" else None,
            )
        case schema.AttentionDecoder():
            return _attending(encoder, decoder, parts)
        case _:
            assert_never(decoder)


def _attending(
    encoder: schema.Encoder, decoder: schema.AttentionDecoder, parts: DecoderParts
) -> Decoder[Any, Any]:
    width, attention = encoder.width, _attention(encoder, decoder)
    match decoder.query:
        case "current" if decoder.input_feeding:
            return FeedingDecoder(parts, _stack(decoder, parts.readout.features, 0), attention)
        case "current":
            return AttentionDecoder(parts, _layers(decoder, 0), attention)
        case "previous":
            return PreviousQueryDecoder(parts, _stack(decoder, width, 0), attention)
        case "bottom":
            return BottomQueryDecoder(parts, _stack(decoder, width, width), attention)
        case _:
            assert_never(decoder.query)


def _attention(
    encoder: schema.Encoder, decoder: schema.AttentionDecoder
) -> Attention | MultiHeadAttention:
    query, width = decoder.hidden, encoder.width
    table = decoder.attention

    def local(half_width: int) -> LocalWindow | None:
        return LocalWindow(query, half_width) if half_width else None

    match table:
        case schema.DotAttention(local_window=window):
            return Attention(DotScore(), local(window))
        case schema.GeneralAttention(local_window=window):
            return Attention(GeneralScore(query, width), local(window))
        case schema.ConcatAttention(local_window=window, coverage=covers):
            return Attention(AdditiveScore(query, width, query, covers=covers), local(window))
        case schema.AdditiveAttention(size=size, local_window=window, coverage=covers):
            return Attention(AdditiveScore(query, width, size, covers=covers), local(window))
        case schema.MultiHeadAttention(size=size, heads=heads):
            return MultiHeadAttention(query, width, size, heads)
        case schema.LocationAttention(longest=longest):
            return Attention(LocationScore(query, longest))
        case _:
            assert_never(table)


def _initialize(model: Seq2Seq, values: schema.StartValues) -> None:
    match values:
        case schema.UniformInitialization(range=half_width):
            initialization.uniform(model, half_width)
        case schema.NormalInitialization(std=std, attention_std=attention_std):
            initialization.normal(model, std, attention_std)
        case schema.XavierInitialization():
            initialization.xavier(model)
        case schema.TorchInitialization():
            pass
        case _:
            assert_never(values)
    if values.recurrent == "orthogonal":
        initialization.orthogonal_recurrent(model)
    if values.forget_bias:
        initialization.forget_bias(model, values.forget_bias)
