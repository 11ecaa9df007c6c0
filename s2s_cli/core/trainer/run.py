"""A run's folder: whose it is, and where its training stands."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2s_cli import __version__
from s2s_cli.core.checkpoint import (
    BEST,
    FORMAT,
    KEY,
    LAST,
    STATE,
    load_tensors,
    replacing,
    save_tensors,
)
from s2s_cli.core.errors import ModelError
from s2s_cli.core.recipe import Recipe, dump, load
from s2s_cli.core.recipe.keys import path_keys

RECIPE = "recipe.toml"
LOG = "log.jsonl"

# What may change when a run goes on: how long, how often and how fast, and what training never
# reads.
FREE = frozenset(
    {
        "name",
        "about",
        "differs",
        "expects",
        "search",
        "training.epochs",
        "training.max_updates",
        "training.patience",
        "training.validate_every",
        "training.save_every",
        "training.log_every",
        "training.keep_best",
        "training.cuda_graphs",
        # Moved files are the same text; the fingerprint tells.
        *(key for key in path_keys() if key.startswith("data.")),
    }
)


@dataclass
class Place:
    """Where a training stands.

    update: updates done; epoch and batch: of the next one; waiting: validations since the best;
    best: the scores of the best model and its update; results: of a validation since the last
    update; seconds: spent on updates; stalled: how often validations have stalled (see
    `PlateauSchedule`); kept: (value, update) of the models in `kept/`, best first.
    """

    update: int = 0
    epoch: int = 0
    batch: int = 0
    waiting: int = 0
    best: dict[str, float] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    stalled: int = 0
    kept: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class SavedState:
    """All that a training needs to go on.

    average: the moving average's tensors; random: the states of torch's generators by device;
    scaler: of an fp16 loss.
    """

    place: Place
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    scaler: dict[str, Any]


def check(folder: Path, recipe: Recipe) -> None:
    """Makes sure that the folder is free for a run, or that the run in it is this recipe's.

    Raises:
        ModelError: the folder holds another recipe's run, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file; name another run with --run DIR")
    saved = folder / RECIPE
    signs = (LOG, STATE, BEST, LAST)
    if saved.exists() and not any((folder / name).exists() for name in signs):
        if saved.read_bytes() != dump(recipe).encode():
            raise ModelError(
                f"{folder} holds a {RECIPE} and no run; it would be overwritten\n"
                "name another folder with --run DIR"
            )
    elif saved.exists():
        different = list(_differences(load(str(saved)).model_dump(), recipe.model_dump()))
        if different:
            raise ModelError(
                f"{folder} holds a run of another recipe; different: {', '.join(different)}\n"
                "name another run with --run DIR"
            )
    # A start that was killed may have left a hidden temporary file.
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ModelError(f"{folder} is not empty and holds no run; name another with --run DIR")


def claim(folder: Path, recipe: Recipe) -> None:
    """Makes the run's folder and writes the resolved recipe into it.

    Raises:
        ModelError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot make the run's folder {folder}: {error.strerror}") from None
    with replacing(folder / RECIPE) as temporary:
        temporary.write_text(dump(recipe), encoding="utf-8")


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if path in FREE or old == new:
        return
    if not (isinstance(old, dict) and isinstance(new, dict)):
        yield path
        return
    for key in {**old, **new}:
        yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)


def save_state(folder: Path, state: SavedState, fingerprint: str) -> None:
    """Writes the state as one file: weights, optimiser, generators, and the place."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    tensors |= {f"random.{device}": tensor for device, tensor in state.random.items()}
    for index, values in state.optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
    header = {
        "format": FORMAT,
        KEY: __version__,
        "fingerprint": fingerprint,
        "place": vars(state.place),
        "groups": state.optimizer["param_groups"],
        "scaler": state.scaler,
    }
    save_tensors(folder / STATE, tensors, header)


def load_state(folder: Path, fingerprint: str) -> SavedState | None:
    """The state of an interrupted or finished run; None where there is none yet.

    Raises:
        ModelError: the file is damaged, or the run learned from another prepared corpus.
    """
    path = folder / STATE
    if not path.exists():
        if (folder / LAST).exists():  # which is written after the state
            raise ModelError(
                f"{folder} holds a trained model, but {STATE}, with which its training could go "
                "on, is gone\nname another run with --run DIR"
            )
        return None
    tensors, header = load_tensors(path)
    try:
        place, groups, learned_from = (
            Place(**header["place"]),
            header["groups"],
            header["fingerprint"],
        )
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not the state of a training ({error})\nname another run with --run DIR"
        ) from None
    if learned_from != fingerprint:
        raise ModelError(
            f"{folder} was trained on other text, or with another tokenizer\n"
            "put the text back as it was, or name another run with --run DIR"
        )
    parts: dict[str, dict[str, Tensor]] = {
        kind: {} for kind in ("model", "average", "random", "optimizer")
    }
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer = {"state": state, "param_groups": groups}
    scaler = header.get("scaler", {})
    return SavedState(place, parts["model"], parts["average"], optimizer, parts["random"], scaler)


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators: the CPU's, and each CUDA device's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_states(states: dict[str, Tensor]) -> None:
    """Puts the generators back where they were; devices that are gone are left out."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda{index}"], index)
