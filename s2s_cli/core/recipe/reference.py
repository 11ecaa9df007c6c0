"""The reference of every key as Markdown, made from the schema so that it cannot fall behind.

`python -m s2s_cli.core.recipe.reference > docs/recipes.md` writes the page.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any, get_origin

from s2s_cli.core.recipe.keys import Key, all_keys, kinds_of, path_keys, tables_in
from s2s_cli.core.recipe.schema import Recipe, Table

INTRODUCTION = """\
# Recipes

A recipe is a [TOML](https://toml.io) file that captures an experiment, from its text to its score.
`s2s recipes` lists the packaged ones, `s2s recipes NAME` prints one with every key written out, and
each run keeps its own as `runs/NAME/recipe.toml`: `s2s train --recipe runs/NAME/recipe.toml`
repeats it. Types are strict and unknown keys are mistakes; all mistakes are told at once.

**`extends = "other.toml"`**, at the top of a file, takes over another recipe, found from the folder
of the file that says so, and merges key by key: a key that is written wins. A table whose `kind`
changes replaces its parent's as a whole. `name`, `about` and `expects` are not inherited.

**`--set KEY=VALUE`** on the command line overrides any key and may be repeated:
`--set optimizer.lr=0.5`. The value is read as TOML, and as plain text where it is not TOML:
`--set tokenizer.model.kind=char` needs no quotes. A table whose `kind` changes loses its other
keys here too, so give those that it needs.

**Paths** in a file start at the folder of that file, paths in `--set` at the current folder; `~` is
the home folder. Where a name is possible too, only what begins with `.`, `/` or `~` is a path.

Tables below that come in several kinds are chosen by their key `kind`. A default of "its keys'"
stands for a table that may be left out, and then has the defaults of its keys.
"""

TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
}
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
Shape = tuple[type[Table], ...]


def reference() -> str:
    """The page: an introduction and a section for each table, with its variants by `kind`."""
    sections: dict[str, dict[type[Table], list[Key]]] = {}
    for key in all_keys():
        tables = sections.setdefault(key.path.rpartition(".")[0], {})
        tables.setdefault(key.table, []).append(key)
    # Places where the same tables may stand (the two corpora, the tokenizers) share a section.
    places: dict[Shape, list[str]] = {}
    for path, tables in sections.items():
        places.setdefault(tuple(tables), []).append(path)
    parts = [INTRODUCTION]
    for paths in places.values():
        parts += _section(paths, sections[paths[0]])
    return "\n".join(parts)


def _section(paths: list[str], tables: dict[type[Table], list[Key]]) -> Iterable[str]:
    yield f"## {', '.join(_heading(path) for path in paths)}\n"
    rows = {table: {_name(key): _row(key) for key in keys} for table, keys in tables.items()}
    # What all variants have stands once, after them.
    first, *others = rows.values()
    shared = [row for name, row in first.items() if all(each.get(name) == row for each in others)]
    for table, own in rows.items():
        if kinds := kinds_of(table):
            yield f"### kind = {_either(json.dumps(kind) for kind in kinds)}\n"
        yield f"{(table.__doc__ or '').strip()}\n"
        yield from _grid(row for row in own.values() if not others or row not in shared)
    if others and shared:
        yield "### Every kind\n"
        yield from _grid(shared)


def _grid(rows: Iterable[str]) -> Iterable[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    yield from rows
    yield ""


def _row(key: Key) -> str:
    cells = (f"`{_name(key)}`", _type(key), _default(key), key.field.description)
    return f"| {' | '.join((cell or '').replace('|', chr(92) + '|') for cell in cells)} |"


def _heading(path: str) -> str:
    if not path:
        return "Top level"
    return f"`[[{path.removesuffix('[]')}]]`" if path.endswith("[]") else f"`[{path}]`"


def _name(key: Key) -> str:
    return key.path.rpartition(".")[2]


def _either(choices: Iterable[str]) -> str:
    *first, last = (f"`{choice}`" for choice in choices)
    return f"{', '.join(first)} or {last}" if first else last


def _type(key: Key) -> str:
    """What may be written."""
    if marker := path_keys().get(key.path):
        return "path or name" if marker.or_name else "path"
    if tables_in(key.field.annotation):
        is_array = get_origin(key.field.annotation) is tuple
        return "array of tables" if is_array else "table"
    return _described(key.table.model_json_schema()["properties"][_name(key)])


def _described(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if choices := _choices(schema):
        return _either(json.dumps(choice) for choice in choices)
    if "anyOf" in schema:  # a value, or none
        return " or ".join(_described(part) for part in schema["anyOf"] if part["type"] != "null")
    if schema["type"] == "array":
        return f"array of {_described(schema['items'])}"
    limits = [f"`{symbol} {schema[word]:g}`" for word, symbol in LIMITS.items() if word in schema]
    return " ".join([TYPES[schema["type"]], *limits])


def _choices(schema: dict[str, Any]) -> list[str]:
    """The values that are allowed, where they can be counted."""
    if "const" in schema:
        return [schema["const"]]
    inner = (choice for part in schema.get("anyOf", ()) for choice in _choices(part))
    return [*schema.get("enum", ()), *inner]


def _default(key: Key) -> str:
    field = key.field
    if key.table is Recipe and _name(key) == "name":
        return "the file's name"  # put in where a recipe is loaded
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Table):
        kinds = kinds_of(type(value))
        return f"`kind = {json.dumps(vars(value)['kind'])}`" if kinds else "its keys'"
    return "none" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
