"""How `s2s translate` writes the translations of a line: a function for each `--format`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_cli.core.translator import Translation

How = Mapping[str, Any]
Writer = Callable[[int, str, "Sequence[Translation]", How | None], str]

# What ends a line for some programs and is yet no control character that JSON would escape.
ESCAPES = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def text(number: int, source: str, best: "Sequence[Translation]", how: How | None = None) -> str:
    """The best translation alone."""
    return best[0].text + "\n"


def tsv(number: int, source: str, best: "Sequence[Translation]", how: How | None = None) -> str:
    """Line number from 1, rank from 1, score, text; word scores and alignment where asked for."""
    return "".join(
        "\t".join(
            [
                f"{number}\t{rank}\t{one.score:.6f}\t{one.text.replace(chr(9), ' ')}",
                *_told(one.word_log_probabilities, "{:.6f}"),
                *_told(_pharaoh(one), "{}"),
            ]
        )
        + "\n"
        for rank, one in enumerate(best, 1)
    )


def jsonl(number: int, source: str, best: "Sequence[Translation]", how: How | None = None) -> str:
    """An object with the source, all its translations, best first, and how they were found."""
    facts: dict[str, Any] = {"line": number, "source": source}
    if best[0].source_pieces is not None:
        facts["source_pieces"] = best[0].source_pieces
    facts["translations"] = [_members(one) for one in best]
    if how is not None:
        facts["search"] = how
    return json.dumps(facts, ensure_ascii=False).translate(ESCAPES) + "\n"


def moses(number: int, source: str, best: "Sequence[Translation]", how: How | None = None) -> str:
    """Moses' n-best list: line number from 0, text, features, score, and perhaps an alignment.

    Its readers part fields at any `|||`, so that one in a text is written as Moses escapes it.
    """
    return "".join(
        " ||| ".join(
            [
                str(number - 1),
                one.text.replace("|||", "&#124;&#124;&#124;"),
                f"s2s= {one.log_probability:.6f}",
                f"{one.score:.6f}",
                *_told(_pharaoh(one), "{}"),
            ]
        )
        + "\n"
        for one in best
    )


def _members(one: "Translation") -> dict[str, Any]:
    """A translation as JSON has it."""
    found: dict[str, Any] = {
        "text": one.text,
        "score": one.score,
        "log_probability": one.log_probability,
        "pieces": one.pieces,
    }
    if one.word_log_probabilities is not None:
        found["word_log_probabilities"] = one.word_log_probabilities
    if one.attention is not None:
        found["alignment"] = " ".join(_pharaoh(one) or ())
        found["attention"] = [[round(share, 6) for share in row] for row in one.attention.tolist()]
    return found


def _pharaoh(one: "Translation") -> list[str] | None:
    """Pharaoh's `i-j`, source piece and target piece, both from 0."""
    return None if one.alignment is None else [f"{i}-{j}" for i, j in one.alignment]


def _told(values: Sequence[object] | None, form: str) -> list[str]:
    """A field of its own where there is anything to tell."""
    return [] if values is None else [" ".join(form.format(value) for value in values)]


FORMATS: dict[str, Writer] = {"text": text, "tsv": tsv, "jsonl": jsonl, "moses": moses}
