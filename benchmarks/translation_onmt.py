"""The weights of a model of s2s as a checkpoint of OpenNMT-py 3.5.1."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

UNLIKELY = -1e9  # the logit of padding, which s2s does not have
PADDING = 1  # its id
SYMBOLS = ["<unk>", "<blank>", "<s>", "</s>"]


def write_checkpoint(
    plain: nn.Module, words: tuple[list[str], list[str]], first_word: str, path: Path
) -> None:
    """A checkpoint for `onmt_translate`.

    Args:
        plain: the straightforward program's model without attention.
        words: of both sides in the order of their ids, the three special symbols not among them.
        first_word: what the decoder reads first.
        path: where to.
    """
    weights = {name: value.cpu() for name, value in plain.state_dict().items()}
    tables = "embeddings.make_embedding.emb_luts.0.weight"
    model = {
        f"encoder.{tables}": with_padding(weights.pop("source_embedding.weight"), 0.0),
        f"decoder.{tables}": with_padding(weights.pop("target_embedding.weight"), 0.0),
    }
    generator = {
        "weight": with_padding(weights.pop("output.weight"), 0.0),
        "bias": with_padding(weights.pop("output.bias"), UNLIKELY),
    }
    for name, value in weights.items():  # encoder.weight_ih_l0 and so on
        side, _, rest = name.partition(".")
        model[f"{side}.rnn.{rest}"] = value
    source, target = ([*SYMBOLS, *side] for side in words)
    vocabularies = {
        "src": source,
        "tgt": target,
        "data_task": "seq2seq",
        "decoder_start_token": first_word,
    }
    lstm = plain.decoder
    options = argparse.Namespace(
        model_task="seq2seq",
        model_type="text",
        encoder_type="rnn",
        decoder_type="rnn",
        rnn_type="LSTM",
        layers=lstm.num_layers,
        hidden_size=lstm.hidden_size,
        word_vec_size=lstm.input_size,
        global_attention="none",
        input_feed=0,
        dropout=[0.0],
        bridge=False,
        # Asked for, though they are a training's.
        optim="adam",
        freeze_word_vecs_enc=False,
        freeze_word_vecs_dec=False,
        gpu_ranks=[],
        world_size=1,
        train_from="",
        update_vocab=False,
    )
    whole = {"model": model, "generator": generator, "vocab": vocabularies, "opt": options}
    torch.save(whole, path)


def with_padding(rows: Tensor, value: float) -> Tensor:
    """A table with a row of this value for padding."""
    row = torch.full_like(rows[:1], value)
    return torch.cat([rows[:PADDING], row, rows[PADDING:]])


def source_line(words: list[str], reverse: bool) -> str:
    """A source as the encoder of s2s reads it, its end symbol last."""
    return " ".join([*(reversed(words) if reverse else words), "</s>"])
