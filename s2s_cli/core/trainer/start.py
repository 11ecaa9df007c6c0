"""What a training begins with: another model's weights, or word vectors made elsewhere."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from s2s_cli.core.checkpoint import LAST, STATE, ModelFile, find_model, load_model
from s2s_cli.core.device import usable_precision
from s2s_cli.core.errors import DataError, ModelError, RecipeError
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.model.embedding import TiedEmbedding
from s2s_cli.core.model.vectors import load_vectors
from s2s_cli.core.prepared import Prepared, Tokenizers
from s2s_cli.core.recipe import Recipe
from s2s_cli.core.tokenizer import Tokenizer

# What may differ between a model and the one that it is fine-tuned from: what has no weights.
FREE = {"dropout", "embedding_dropout", "output_dropout", "initialization", "vectors"}


def load_start(recipe: Recipe) -> ModelFile | None:
    """The model that `training.start_from` names; None where it names none.

    Raises:
        ModelError: there is no such model.
        RecipeError: its `[model]` or `[tokenizer]` is another.
    """
    if recipe.training.start_from is None:
        return None
    found = load_model(find_model(recipe.training.start_from), torch.device("cpu"))
    for table in ("tokenizer", "model"):
        ours, theirs = (
            getattr(each, table).model_dump(mode="json") for each in (recipe, found.recipe)
        )
        if different := list(_differences(table, ours, theirs)):
            raise RecipeError(
                f"training.start_from = {found.path} has another [{table}]:\n  "
                + "\n  ".join(different)
                + "\nmake them equal (`s2s info MODEL --recipe` prints the model's recipe)"
            )
    return found


def _differences(path: str, ours: Any, theirs: Any) -> list[str]:
    if ours == theirs or path.rpartition(".")[2] in FREE:
        return []
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [f"{path} = {ours!r} here, {theirs!r} there"]
    if ours.get("kind") != theirs.get("kind"):  # whose keys are others, too
        ours, theirs = {"kind": ours.get("kind")}, {"kind": theirs.get("kind")}
    return [
        line
        for key in {**ours, **theirs}
        for line in _differences(f"{path}.{key}", ours.get(key), theirs.get(key))
    ]


def check_start(recipe: Recipe, device: torch.device, folder: Path) -> None:
    """Looks for what a training begins with, before text is prepared for it.

    folder: of the run, which once it has begun needs no more vectors.

    Raises:
        DeviceError: the precision is not there.
        DataError: a file of word vectors is not there.
    """
    usable_precision(device, recipe.training.precision)
    if (folder / STATE).exists():
        return
    for side in (recipe.model.encoder, recipe.model.decoder):
        if side.vectors and not Path(side.vectors.path).is_file():
            raise DataError(f"there is no file of word vectors {side.vectors.path}")


def other_tokenizers(recipe: Recipe, folder: Path | None = None) -> Tokenizers | None:
    """The tokenizers of the model that `training.start_from` names; None where it names none.

    folder: of a run, which once it has begun has them itself.

    Raises:
        ModelError: there is no such model.
        RecipeError: its `[model]` or `[tokenizer]` is another.
    """
    if recipe.training.start_from is None:
        return None
    if folder and (folder / LAST).exists():
        start: ModelFile | None = load_model(folder / LAST, torch.device("cpu"))
    else:
        start = load_start(recipe)
    return (start.source_tokenizer, start.target_tokenizer) if start else None


def begin(model: Seq2Seq, recipe: Recipe, prepared: Prepared) -> list[str]:
    """Gives a fresh model the weights or vectors that its recipe names; notes on them.

    Raises:
        ModelError: there is no such model.
        DataError: a file of vectors cannot be read, or its vectors have another width.
        RecipeError: the model to start from is another one.
    """
    start = load_start(recipe)
    if start is None:
        return _read_vectors(model, recipe, prepared)
    ours, theirs = (
        [each.source_tokenizer.to_bytes(), each.target_tokenizer.to_bytes()]
        for each in (prepared, start)
    )
    if ours != theirs:
        raise ModelError(
            f"{prepared.folder} was not prepared with the tokenizers of {start.path}\n"
            "prepare anew, by the recipe with training.start_from"
        )
    model.load_state_dict(start.model.state_dict())
    return [f"starting from {start.path}"]


def _read_vectors(model: Seq2Seq, recipe: Recipe, prepared: Prepared) -> list[str]:
    """Puts the recipe's word vectors into a fresh model; a line for each side that has some."""
    sides = (
        ("source", recipe.model.encoder, model.encoder.embedding, prepared.source_tokenizer),
        ("target", recipe.model.decoder, model.decoder.embedding, prepared.target_tokenizer),
    )
    notes = []
    for name, table, embedding, tokenizer in sides:
        if table.vectors is None:
            continue
        owner = embedding.owner if isinstance(embedding, TiedEmbedding) else embedding
        if not isinstance(owner, nn.Embedding):
            raise RecipeError(f"model: the {name}'s vectors have no whole table to go into")
        path = Path(table.vectors.path)
        found = load_vectors(owner, path, entries(tokenizer))
        share = 100 * found / tokenizer.size
        notes.append(
            f"{name} vectors: {found:,} of {tokenizer.size:,} entries found in {path} "
            f"({share:.1f} %)"
        )
    return notes


def entries(tokenizer: Tokenizer) -> list[str]:
    """The words of a vocabulary; SentencePiece's mark of a word's beginning is left out."""
    return [piece.removeprefix("\u2581") for piece in tokenizer.pieces(range(tokenizer.size))]
