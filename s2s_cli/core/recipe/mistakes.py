"""All mistakes of a recipe at once: where, what was written, what is allowed, what was meant."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from s2s_cli.core.recipe.keys import all_keys, kinds_of, tables_in
from s2s_cli.core.recipe.schema import Recipe, Table


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` for the choice most like `word`, or nothing when none is like it."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def describe(error: ValidationError) -> list[str]:
    """A line for each mistake that pydantic found."""
    return [line for details in error.errors() for line in _line(details).split("\n")]


def _line(details: ErrorDetails) -> str:
    path, table, choices = _place(details["loc"])
    value = details["input"]
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return f"{path} = {_shown(value)}: no such key{_other_key(path, table)}"
        case "missing":
            return f"{path}: missing; {_meaning(path, table)}"
        case "union_tag_not_found":
            kinds = [kind for choice in choices for kind in kinds_of(choice)]
            return f"{path}.kind: missing; one of {', '.join(kinds)}"
        case "union_tag_invalid":
            allowed = _quoted(context["expected_tags"])
            hint = nearest(str(context["tag"]), allowed)
            return f"{path}.kind = {_shown(context['tag'])}: one of {', '.join(allowed)}{hint}"
        case "literal_error":
            allowed = _quoted(context["expected"])
            hint = nearest(str(value), allowed)
            return f"{path} = {_shown(value)}: one of {', '.join(allowed)}{hint}"
        case "string_pattern_mismatch":
            return f"{path} = {_shown(value)}: should match {context['pattern']}"
        case "too_short":
            return f"{path} = {_shown(value)}: should have at least {context['min_length']} item"
        case "value_error":
            return str(context["error"])
        case _:
            message = details["msg"].removeprefix("Input should be ")
            message = message.replace("a valid dictionary or object", "a table")
            message = message.replace("an object", "a table")
            return f"{path} = {_shown(value)}: should be {message}"


def _place(location: tuple[int | str, ...]) -> tuple[str, type[Table], list[type[Table]]]:
    """The dotted key of a location, without the tags of unions, and the table that holds it.

    The tables that may stand at the location itself come third.
    """
    path: list[str] = []
    table: type[Table] = Recipe
    inside: list[type[Table]] = [Recipe]
    for part in location:
        tagged = [choice for choice in inside if str(part) in kinds_of(choice)]
        if len(inside) > 1 and tagged:
            inside = tagged
            continue
        if isinstance(part, int):
            path.append(f"{path.pop()}[{part}]")
            continue
        table = inside[0] if inside else table
        field = table.model_fields.get(part)
        inside = tables_in(field.annotation) if field else []
        path.append(part)
    return ".".join(path), table, inside


def _other_key(path: str, table: type[Table]) -> str:
    name = path.rpartition(".")[2]
    hint = nearest(name, table.model_fields)
    others = [kind for key in all_keys() if key.path == path for kind in key.kinds]
    if others:
        hint = f"; only kind {', '.join(others)} has it"
    elif not hint:
        elsewhere = sorted({key.path for key in all_keys() if key.path.endswith(f".{name}")})
        hint = f"; there is {', '.join(elsewhere)}" if elsewhere else ""
    return f"{hint} (allowed: {', '.join(table.model_fields)})"


def _meaning(path: str, table: type[Table]) -> str:
    field = table.model_fields[path.rpartition(".")[2]]
    return (field.description or "").rstrip(".")


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    if isinstance(value, bool):
        text = text.lower()
    return text if len(text) <= 60 else text[:57] + "..."
