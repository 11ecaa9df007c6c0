"""The reference of recipes: made from the schema, complete, and the one that is in docs."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from s2s_cli.core.recipe.keys import all_keys, tables_in
from s2s_cli.core.recipe.reference import reference
from s2s_cli.core.recipe.schema import Table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"


def rows() -> dict[str, list[list[str]]]:
    """The rows of the reference by the dotted path of their key; `kinds` share a path."""
    found = defaultdict(list)
    places: list[str] = []
    for line in reference().splitlines():
        if line.startswith("## "):
            places = re.findall(r"`\[+([\w.]+)\]+`", line) or [""]
        elif line.startswith("| `"):
            cells = re.split(r"(?<!\\) \| ", line.strip("| "))
            for place in places:
                found[f"{place}.{cells[0].strip('`')}".lstrip(".")].append(cells)
    return found


def test_the_page_is_what_the_schema_gives() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "make it again: python -m s2s_cli.core.recipe.reference > docs/recipes.md"
    )


def test_every_key_has_a_description_that_ends_like_a_sentence() -> None:
    bad = [key.path for key in all_keys() if not re.search(r"\w.*\.$", key.field.description or "")]
    assert bad == []


def test_every_key_of_every_kind_has_a_row_with_its_description() -> None:
    found = rows()
    tables = Counter(path.replace("[]", "") for path, _ in {(k.path, k.table) for k in all_keys()})
    for key in all_keys():
        cells = found[key.path.replace("[]", "")]
        assert (key.field.description or "").replace("|", r"\|") in [row[3] for row in cells]
    # A row for each kind that has the key, or one where all kinds have the same.
    assert found.keys() == tables.keys()
    for path, cells in found.items():
        assert len(cells) in (1, tables[path])


def test_every_default_stands_in_its_row() -> None:
    found = rows()
    for key in all_keys():
        if key.path == "name" or tables_in(key.field.annotation):
            continue
        shown = {row[2].strip("`") for row in found[key.path.replace("[]", "")]}
        if key.field.is_required():
            assert "required" in shown
            continue
        value = key.field.get_default(call_default_factory=True)
        assert ("none" if value is None else json.dumps(value)) in shown


def test_every_table_tells_what_it_is_under_its_kinds() -> None:
    text = reference()
    tables: set[type[Table]] = {key.table for key in all_keys()}
    for table in tables:
        assert f"\n{(table.__doc__ or '?').strip()}\n" in text
    for key in all_keys():
        for kind in key.kinds:
            assert re.search(rf'^### kind = .*`"{kind}"`', text, re.MULTILINE)


def test_types_are_told_in_words() -> None:
    found = rows()
    told = {path: cells[0][1] for path, cells in found.items()}
    assert told["data.train"] == "table"
    assert told["expects"] == "array of tables"
    assert told["data.prepared"] == "path"
    assert told["data.train.dataset"] == "path or name"
    assert told["differs"] == "array of text"
    assert told["model.reverse_source"] == "`true` or `false`"
    assert told["model.encoder.hidden"] == "whole number `>= 1`"
    assert told["model.encoder.dropout"] == "number `>= 0` `< 1`"
    assert told["batches.unit"] == '`"sentences"` or `"tokens"`'
    assert told["evaluation.select"].startswith('`"perplexity"`, `"bleu"`')
