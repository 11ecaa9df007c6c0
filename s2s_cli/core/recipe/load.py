"""From a recipe's file, or its name, to a checked `Recipe`: `extends`, `--set`, paths, mistakes."""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from s2s_cli.core.errors import RecipeError
from s2s_cli.core.recipe.keys import path_keys
from s2s_cli.core.recipe.mistakes import describe, nearest
from s2s_cli.core.recipe.schema import Recipe

Raw = dict[str, Any]


def recipe_folder() -> Path:
    """Where the packaged recipes lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def packaged() -> dict[str, Path]:
    """The packaged recipes by name, in alphabetical order."""
    folder = recipe_folder()
    files = folder.rglob("*.toml")
    names = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    return dict(sorted(names.items()))


def load(reference: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path, or the packaged one of that name, with `KEY=VALUE` overrides.

    A value is read as TOML, and as plain text where it is not TOML. Relative paths in a file start
    at the file's folder; those in overrides start at the current folder.

    Raises:
        RecipeError: the file is not there or not TOML, or its keys are wrong; all mistakes at once.
    """
    path = _find(reference)
    raw = _read(path, ())
    if "name" not in raw:
        names = {file.resolve(): name for name, file in packaged().items()}
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", names.get(path.resolve(), path.stem))
        raw["name"] = name.strip("._-") or "recipe"
    return parse(_merge(raw, _changes(overrides)), str(path))


def override(recipe: Recipe, overrides: Sequence[str], table: str) -> Recipe:
    """`recipe` with `KEY=VALUE` overrides of keys in one of its tables.

    Raises:
        RecipeError: a key of another table, or a mistake.
    """
    for each in overrides:
        if not each.startswith(f"{table}."):
            raise RecipeError(f"--set {each}: only keys of [{table}] can change here")
    raw = recipe.model_dump(mode="json", exclude_none=True)
    return parse(_merge(raw, _changes(overrides)), recipe.name)


def _changes(overrides: Sequence[str]) -> Raw:
    changes: Raw = {}
    for each in overrides:
        _set(changes, each)
    _resolve_paths(changes, Path.cwd())
    return changes


def parse(raw: Raw, where: str) -> Recipe:
    """A checked recipe from its keys and values.

    Raises:
        RecipeError: with a line for each mistake; `where` names the file.
    """
    try:
        # Strict mode takes arrays for tuples only from JSON, and TOML has only arrays.
        return Recipe.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        lines = describe(error)
        count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise RecipeError("\n  ".join([f"{count} in recipe {where}:", *lines])) from None


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, every key written out."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _expanded(text: str) -> Path:
    """The path, its `~` replaced; as it stands where nobody has that home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _find(reference: str) -> Path:
    path = _expanded(reference)
    if path.is_file():
        return path
    names = packaged()
    if reference in names:
        return names[reference]
    hint = nearest(reference, names) or "; `s2s recipes` lists the packaged ones"
    raise RecipeError(f"there is no recipe file and no packaged recipe `{reference}`{hint}")


def _read(path: Path, below: tuple[Path, ...]) -> Raw:
    """The keys of a file, on top of those of the file that it extends."""
    if path.resolve() in below:
        chain = " -> ".join(str(file) for file in [*below, path.resolve()])
        raise RecipeError(f"recipes extend each other in a circle: {chain}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        child = f" (extended by {below[-1]})" if below else ""
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}{child}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"recipe {path} is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from None
    _resolve_paths(raw, path.resolve().parent)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise RecipeError(f"recipe {path}: extends = {parent!r} should be the path of a recipe")
    base = _read(path.resolve().parent / parent, (*below, path.resolve()))
    # A child is another experiment: the parent's name and results are not its own.
    for key in ("name", "about", "expects"):
        base.pop(key, None)
    return _merge(base, raw)


def _merge(base: Raw, changes: Raw) -> Raw:
    """`changes` on top of `base`, key by key; a table whose kind changes replaces the other."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            other_kind = "kind" in value and value["kind"] != old.get("kind", value["kind"])
            merged[key] = value if other_kind else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _set(changes: Raw, change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"--set {change}: write KEY=VALUE, such as optimizer.lr=0.5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.split(".")
    for table in tables:
        changes = changes.setdefault(table, {})
        if not isinstance(changes, dict):
            raise RecipeError(f"--set {change}: `{table}` was set to a value before")
    changes[last] = value


def _holders(raw: Raw, tables: list[str]) -> Iterator[Raw]:
    for table in tables:
        inner = raw.get(table)
        if not isinstance(inner, dict):
            return
        raw = inner
    yield raw


def _resolve_paths(raw: Raw, folder: Path) -> None:
    for key, marker in path_keys().items():
        *tables, last = key.split(".")
        for holder in _holders(raw, tables):
            value = holder.get(last)
            if isinstance(value, str) and (not marker.or_name or value[:1] in (".", "/", "~")):
                holder[last] = str(folder / _expanded(value))
