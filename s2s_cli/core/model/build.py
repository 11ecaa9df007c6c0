"""From the recipe's `[model]` to a network: the only file of the models that sees a recipe."""

from typing import Literal, assert_never

from torch import nn

from s2s_cli.core.model import initialization
from s2s_cli.core.model.decoder import PlainDecoder
from s2s_cli.core.model.encoder import Encoder
from s2s_cli.core.model.recurrent import Recurrent
from s2s_cli.core.model.seq2seq import Seq2Seq
from s2s_cli.core.recipe import schema


def build(recipe: schema.Model, *, source_vocabulary: int, target_vocabulary: int) -> Seq2Seq:
    """A fresh model, its start values drawn from torch's global generator.

    Args:
        recipe: the `[model]` table.
        source_vocabulary: ids that the encoder knows.
        target_vocabulary: ids that the decoder reads and writes.
    """
    model = Seq2Seq(
        Encoder(
            vocabulary=source_vocabulary,
            embedding=recipe.encoder.embedding,
            recurrent=_recurrent(recipe.encoder),
            embedding_dropout=recipe.encoder.embedding_dropout,
        ),
        PlainDecoder(
            vocabulary=target_vocabulary,
            embedding=recipe.decoder.embedding,
            recurrent=_recurrent(recipe.decoder),
            embedding_dropout=recipe.decoder.embedding_dropout,
            output_dropout=recipe.decoder.output_dropout,
        ),
    )
    match recipe.initialization:
        case schema.UniformInitialization(range=half_width):
            initialization.uniform(model, half_width)
        case schema.TorchInitialization(forget_bias=value):
            if value:
                initialization.forget_bias(model, value)
        case _:
            assert_never(recipe.initialization)
    return model


def _recurrent(side: schema.Encoder | schema.PlainDecoder) -> Recurrent:
    cell: Literal["lstm", "gru", "tanh"] = side.cell
    # A single layer has nothing between its layers; torch warns of a dropout there.
    dropout = side.dropout if side.layers > 1 else 0.0
    match cell:
        case "lstm":
            return Recurrent(nn.LSTM(side.embedding, side.hidden, side.layers, dropout=dropout))
        case "gru":
            return Recurrent(nn.GRU(side.embedding, side.hidden, side.layers, dropout=dropout))
        case "tanh":
            return Recurrent(nn.RNN(side.embedding, side.hidden, side.layers, dropout=dropout))
        case _:
            assert_never(cell)
