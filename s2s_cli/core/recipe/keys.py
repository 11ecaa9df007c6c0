"""The schema seen as a flat list of dotted keys: for paths, for hints and for the reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo

from s2s_cli.core.recipe.schema import PathKey, Recipe, Table


@dataclass(frozen=True)
class Key:
    """A key of a table; `kinds` are the variants of the table that have it, () of a plain one."""

    path: str
    table: type[Table]
    kinds: tuple[str, ...]
    field: FieldInfo


def tables_in(annotation: Any) -> list[type[Table]]:
    """The tables that a value of this type may be, in the order of the schema."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for part in get_args(annotation) for table in tables_in(part)]


def kinds_of(table: type[Table]) -> tuple[str, ...]:
    """The values of `kind` that select this table."""
    field = table.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def all_keys(table: type[Table] = Recipe, prefix: str = "") -> Iterator[Key]:
    """Every key below `table`, depth first, tables included."""
    for name, field in table.model_fields.items():
        path = f"{prefix}{name}"
        yield Key(path, table, kinds_of(table), field)
        # `expects` is an array of tables: its keys are not reached by a dotted path.
        is_array = get_args(field.annotation)[1:] == (Ellipsis,)
        for inner in tables_in(field.annotation):
            yield from all_keys(inner, f"{path}[]." if is_array else f"{path}.")


def _markers(annotation: Any) -> Iterator[PathKey]:
    for part in get_args(annotation):
        if isinstance(part, PathKey):
            yield part
        yield from _markers(part)


def path_keys() -> dict[str, PathKey]:
    """The dotted keys whose values are paths."""
    found = {}
    for key in all_keys():
        marker = next((item for item in key.field.metadata if isinstance(item, PathKey)), None)
        marker = marker or next(_markers(key.field.annotation), None)
        if marker:
            found[key.path] = marker
    return found
