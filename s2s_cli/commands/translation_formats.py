"""How `s2s translate` writes the translations of a line: a function for each `--format`."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2s_cli.core.translator import Translation

Writer = Callable[[int, str, "Sequence[Translation]"], str]

# What ends a line for some programs and is yet no control character that JSON would escape.
ESCAPES = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def text(number: int, source: str, best: "Sequence[Translation]") -> str:
    """The best translation alone."""
    return best[0].text + "\n"


def tsv(number: int, source: str, best: "Sequence[Translation]") -> str:
    """Line number from 1, rank from 1, score, text."""
    return "".join(
        f"{number}\t{rank}\t{one.score:.6f}\t{one.text.replace(chr(9), ' ')}\n"
        for rank, one in enumerate(best, 1)
    )


def jsonl(number: int, source: str, best: "Sequence[Translation]") -> str:
    """An object with the source and all its translations, best first."""
    found = [
        {
            "text": one.text,
            "score": one.score,
            "log_probability": one.log_probability,
            "pieces": one.pieces,
        }
        for one in best
    ]
    facts = {"line": number, "source": source, "translations": found}
    return json.dumps(facts, ensure_ascii=False).translate(ESCAPES) + "\n"


def moses(number: int, source: str, best: "Sequence[Translation]") -> str:
    """Moses' n-best list: line number from 0, text, features, score."""
    return "".join(
        f"{number - 1} ||| {one.text} ||| s2s= {one.log_probability:.6f} ||| {one.score:.6f}\n"
        for one in best
    )


FORMATS: dict[str, Writer] = {"text": text, "tsv": tsv, "jsonl": jsonl, "moses": moses}
