"""Model files and training states: safetensors, nothing pickled. The only door to safetensors.

A model file is complete: weights (`model.*`), tokenizers as bytes (`source.tokenizer`,
`target.tokenizer`), and one JSON text under the metadata key `s2s` with the format's version, the
recipe and the results. A state file holds all that a training needs to go on, in one file, so
that its parts cannot be of different updates.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s2s_cli import __version__
from s2s_cli.core.errors import ModelError, RecipeError
from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.recipe import Recipe, parse
from s2s_cli.core.tokenizer import Tokenizer, restore

FORMAT = 1
KEY = "s2s"
BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.safetensors"
KEPT = "kept"  # a folder in a run's


@dataclass(frozen=True)
class ModelFile:
    """A model with all that translating takes. `header` is the file's metadata."""

    path: Path
    model: Seq2Seq
    recipe: Recipe
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    header: dict[str, Any]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name to write to, flushed to disk and renamed to `path` when the block ends well.

    Raises:
        ModelError: the file cannot be written.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; a finished file gets the usual rights.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(
            f"cannot write {path}: {reason or error}\nwhat was there before is unchanged"
        ) from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header as one file, whole or not at all."""
    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {KEY: json.dumps(header, ensure_ascii=False)}
    with replacing(path) as temporary:
        save_file(data, temporary, metadata)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a file of ours, without its tensors.

    Raises:
        ModelError: no such file, not one of ours, damaged, or of a newer format.
    """
    return _read(path, tensors=False)[1]


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the header of a file of ours. Errors as of `read_header`."""
    return _read(path, tensors=True)


def _read(path: Path, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[KEY])
            names = file.keys() if tensors else ()
            found = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise ModelError(f"there is no model file {path}") from None
    except KeyError:
        raise ModelError(
            f"{path} is not a model of s2s: its metadata lacks the key `s2s`"
        ) from None
    except (SafetensorError, ValueError, OSError) as error:
        raise ModelError(
            f"{path} is damaged, cut short, or not a model file ({error})\n"
            "copy it again, or use another checkpoint of the run"
        ) from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ModelError(f"{path} is damaged: its header is not that of a model of s2s")
    if header["format"] > FORMAT:
        raise ModelError(
            f"{path} has format {header['format']}, written by s2s {header.get('s2s')}; this is "
            f"s2s {__version__}, which reads up to format {FORMAT}\ninstall that version"
        )
    return found, header


def save_model(
    path: Path,
    model: Seq2Seq,
    recipe: Recipe,
    tokenizers: tuple[Tokenizer, Tokenizer],
    results: Mapping[str, Any],
) -> None:
    """Writes a complete model file. `results`: update, epoch, scores, data, for `s2s info`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for side, tokenizer in zip(("source", "target"), tokenizers, strict=True):
        data = bytearray(tokenizer.to_bytes())
        tensors[f"{side}.tokenizer"] = torch.frombuffer(data, dtype=torch.uint8)
    header = {
        "format": FORMAT,
        KEY: __version__,
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "results": dict(results),
    }
    save_tensors(path, tensors, header)


class _WithoutStartValues(TorchFunctionMode):
    """Leaves embeddings on the meta device as they are.

    torch draws those normal values in Python there, and imports its compiler for it, which takes
    longer than all the rest of loading a model.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        return named["tensor"] if function is nn.init.normal_ else function(*args, **named)


def outline(recipe: Recipe, source_vocabulary: int, target_vocabulary: int) -> Seq2Seq:
    """The recipe's network without numbers, on the meta device: its shapes, in no memory."""
    with torch.device("meta"), _WithoutStartValues():
        return build(
            recipe.model, source_vocabulary=source_vocabulary, target_vocabulary=target_vocabulary
        )


def load_model(path: Path, device: torch.device) -> ModelFile:
    """A model file, its model on `device` and in evaluation mode.

    Raises:
        ModelError: missing, damaged, or its parts do not fit each other.
    """
    tensors, header = load_tensors(path)
    if "place" in header:
        raise ModelError(
            f"{path} is the state of a training, not a model\n"
            f"name its folder, or {BEST} or {LAST} in it"
        )
    try:
        recipe = parse(header["recipe"], f"inside {path}")
        source, target = (
            restore(tensors.pop(f"{side}.tokenizer").numpy().tobytes(), spec)
            for side, spec in zip(("source", "target"), recipe.tokenizer.sides, strict=True)
        )
        model = outline(recipe, source.size, target.size)
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        model.load_state_dict(weights, assign=True)
    except (KeyError, RuntimeError, RecipeError, ModelError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    return ModelFile(path, model.to(device).eval(), recipe, source, target, header)


def find_model(reference: str | None) -> Path:
    """The model file that a person means: a file, a run's folder, or the newest run's best.

    Args:
        reference: a path; None takes $S2S_MODEL, else the newest run below `runs/`.

    Raises:
        ModelError: there is none.
    """
    if reference is None:
        reference = os.environ.get("S2S_MODEL") or None
    if reference is None:
        models = [path for name in (BEST, LAST) for path in Path("runs").glob(f"*/{name}")]
        if not models:
            raise ModelError(
                "no model: there is no trained run below runs/\n"
                "name one with -m MODEL or $S2S_MODEL, or train one: s2s train --recipe quickstart"
            )
        path = max(models, key=lambda path: path.stat().st_mtime).parent
    else:
        path = Path(reference)
        if not path.is_dir():
            return path
    for name in (BEST, LAST):
        if (path / name).exists():
            return path / name
    raise ModelError(f"the folder {path} holds no {BEST} and no {LAST}")


def kept_models(path: Path) -> list[Path]:
    """The models that a run keeps for averaging, or the one file that `path` is.

    Raises:
        ModelError: a run that keeps none.
    """
    if not path.is_dir():
        return [path]
    if found := sorted((path / KEPT).glob("*.safetensors")):
        return found
    raise ModelError(
        f"{path} keeps no models in {KEPT}/\n"
        "train with --set training.keep_best=5, or name model files"
    )


def average_models(paths: Sequence[Path], target: Path) -> list[Path]:
    """Writes the model whose weights are the mean of those of the models at `paths`.

    One after another is loaded; the sums are kept in double precision.

    Returns:
        Those whose training had another beginning than the first's: the mean of networks that were
        never one is rarely any good.

    Raises:
        ModelError: a file cannot be read or is named twice, their networks or vocabularies differ,
            or `target` is a file that a training writes, or cannot be written.
    """
    if target.name in (BEST, LAST, STATE) or target.parent.name == KEPT:
        raise ModelError(f"{target} is a file that a training writes; name another with -o")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ModelError("a model is named twice")
    cpu = torch.device("cpu")
    first = load_model(paths[0], cpu)
    update = first.header["results"]["update"]
    others = []
    sums = {name: tensor.double() for name, tensor in first.model.state_dict().items()}
    for path in paths[1:]:
        other = load_model(path, cpu)
        check_vocabularies(first, other, "an average")
        found = other.model.state_dict()
        shapes = {name: tensor.shape for name, tensor in found.items()}
        same = shapes == {name: tensor.shape for name, tensor in sums.items()}
        if not same or first.recipe.model != other.recipe.model:
            raise ModelError(
                f"{first.path} and {other.path} are different networks ([model])\n"
                "an average needs models of one training"
            )
        for name, tensor in found.items():
            sums[name] += tensor
        update = max(update, other.header["results"]["update"])
        if _beginning(other) != _beginning(first):
            others.append(path)
    first.model.load_state_dict({name: total / len(paths) for name, total in sums.items()})
    tokenizers = (first.source_tokenizer, first.target_tokenizer)
    results = {"update": update, "averaged": [str(path) for path in paths]}
    save_model(target, first.model, first.recipe, tokenizers, results)
    return others


def _beginning(model: ModelFile) -> tuple[Any, ...]:
    """What makes two models ones of the same training: text, seed, and start."""
    training = model.recipe.training
    return model.header["results"].get("data"), training.seed, training.start_from


def check_vocabularies(first: ModelFile, other: ModelFile, purpose: str) -> None:
    """Makes sure that two models know the same words on both sides.

    Raises:
        ModelError: they do not; `purpose` names what needs it.
    """
    pairs = {
        "source": (first.source_tokenizer, other.source_tokenizer),
        "target": (first.target_tokenizer, other.target_tokenizer),
    }
    for side, (ours, theirs) in pairs.items():
        if ours.to_bytes() != theirs.to_bytes():
            raise ModelError(
                f"{first.path} and {other.path} have different {side} vocabularies "
                f"({ours.size:,} and {theirs.size:,} entries)\n"
                f"{purpose} needs models trained on one prepared corpus"
            )
    if first.recipe.tokenizer != other.recipe.tokenizer:
        raise ModelError(f"{first.path} and {other.path} have different tokenizers ([tokenizer])")
