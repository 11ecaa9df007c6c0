"""How `s2s score` reads what is to be scored, and how it writes the scores."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s2s_cli.commands.translation_formats import ESCAPES
from s2s_cli.core.corpus import Invalid, LineGroups
from s2s_cli.core.errors import DataError
from s2s_cli.core.tokenizer import EOS, SPECIAL_SYMBOLS

if TYPE_CHECKING:
    from s2s_cli.core.translator import Pieces, Scored

EOS_NAME = SPECIAL_SYMBOLS[EOS]
HALF_CHARACTERS = re.compile("[\ud800-\udfff]")  # which JSON can write, and UTF-8 cannot


@dataclass(frozen=True)
class Case:
    """What a line asks for.

    number: the line's, from 1; texts: of the targets; targets: what is scored, their texts or
    their pieces; listed: whether they came in a list, as `translations`.
    """

    number: int
    source: str
    texts: tuple[str, ...]
    targets: "tuple[str | Pieces, ...]"
    listed: bool = False


# --- reading ---------------------------------------------------------------------------------


def from_files(
    source: str, target: str, *, first: int, most: int, invalid: Invalid
) -> Iterator[list[Case]]:
    """Line N of the one file with line N of the other, as soon as both are there.

    Raises:
        DataError: a file cannot be read, or one of them ends before the other.
    """
    # Here, not with the first group, so that lines arrive while the model is loaded.
    left, right = (
        LineGroups(path, first=first, most=most, invalid=invalid) for path in (source, target)
    )

    def pairs() -> Iterator[list[Case]]:
        groups = iter(left), iter(right)
        names = ["stdin" if path == "-" else path for path in (source, target)]
        waiting: list[list[str]] = [[], []]
        done = 0
        while True:
            for side, lines in enumerate(waiting):
                lines.extend([] if lines else next(groups[side], []))
            count = min(map(len, waiting))
            if not count:
                break
            yield [
                Case(number, *pair)
                for number, pair in enumerate(
                    ((one, (other,), (other,)) for one, other in zip(*waiting, strict=False)),
                    done + 1,
                )
            ]
            waiting = [lines[count:] for lines in waiting]
            done += count
        if waiting[0] or waiting[1]:
            short, long = (0, 1) if waiting[1] else (1, 0)
            raise DataError(
                f"{names[short]} ends after line {done:,}, {names[long]} goes on\n"
                "line N of one must be the translation of line N of the other"
            )

    return pairs()


def from_lines(
    path: str, form: str, *, first: int, most: int, invalid: Invalid
) -> Iterator[list[Case]]:
    """The cases of an input, a line each; `form` is tsv or jsonl.

    Raises:
        DataError: the input cannot be read, or a line is not what it should be; the lines before
            it come first.
    """
    groups = LineGroups(path, first=first, most=most, invalid=invalid)
    where = "stdin" if path == "-" else path
    parse: Callable[[str], tuple[str, list[tuple[str, Any]], bool]]
    parse = _columns if form == "tsv" else functools.partial(_members, invalid=invalid)

    def cases() -> Iterator[list[Case]]:
        number = 0
        for lines in groups:
            found: list[Case] = []
            mistake = ""
            for line in lines:
                number += 1
                try:
                    source, targets, listed = parse(line)
                except ValueError as error:
                    mistake = f"{where}, line {number}: {error}"
                    break
                texts = tuple(text for text, _ in targets)
                found.append(Case(number, source, texts, tuple(t for _, t in targets), listed))
            if found:
                yield found
            if mistake:
                raise DataError(mistake)

    return cases()


def _columns(line: str) -> tuple[str, list[tuple[str, Any]], bool]:
    source, tab, rest = line.partition("\t")
    if not tab and line.strip():
        raise ValueError(
            f"there is no tab between source and target: {line[:60]!r}\n"
            "give source<TAB>target, or two files, or --input-format jsonl"
        )
    target = rest.partition("\t")[0]
    return source, [(target, target)], False


def _members(line: str, invalid: Invalid) -> tuple[str, list[tuple[str, Any]], bool]:
    if not line.strip():
        return "", [("", "")], False
    try:
        found = json.loads(line)
        whole = json.dumps(found, ensure_ascii=False) if "\\u" in line else ""
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if half := HALF_CHARACTERS.search(whole):
        if invalid == "error":
            raise ValueError(f"half a character, {half[0]!a}, which UTF-8 cannot write")
        found = json.loads(HALF_CHARACTERS.sub("\ufffd", whole))
    match found:
        case {"source": str(source), "translations": [*each]}:
            targets = [_target(one, "text") for one in each]
        case {"source": str(source), "target": str()}:
            targets = [_target(found, "target")]
        case _:
            raise ValueError(
                'it should be {"source": "...", "target": "..."}, or an object of '
                f"`s2s translate --format jsonl`, not {line[:60]!r}"
            )
    return source, targets, "translations" in found


def _target(one: Any, key: str) -> tuple[str, Any]:
    """(text, what is scored): the pieces where they are given."""
    match one:
        case {"pieces": [*pieces]} if all(isinstance(piece, str) for piece in pieces):
            return str(one.get(key, "")), pieces
        case {"pieces": _}:
            raise ValueError("`pieces` should be a list of strings")
        case dict() if isinstance(one.get(key), str):
            return one[key], one[key]
        case _:
            raise ValueError("each of `translations` should be an object with `text` or `pieces`")


# --- writing ---------------------------------------------------------------------------------


def text(_case: Case, scores: "Sequence[Scored]") -> str:
    """The log-probability; of several translations all, with tabs between."""
    return "\t".join(f"{one.log_probability:.6f}" for one in scores) + "\n"


def tsv(case: Case, scores: "Sequence[Scored]") -> str:
    """A line a target: line number, log-probability, pieces and EOS, log-probability of each."""
    return "".join(
        "\t".join(
            (
                str(case.number),
                f"{one.log_probability:.6f}",
                " ".join(map(_visible, (*one.pieces, EOS_NAME)[: len(one.word_log_probabilities)])),
                " ".join(f"{each:.6f}" for each in one.word_log_probabilities),
            )
        )
        + "\n"
        for one in scores
    )


def _visible(piece: str) -> str:
    """The piece, its white space escaped, as it is in JSON: it stands between spaces here."""
    return "".join(f"\\u{ord(c):04x}" if c.isspace() else c for c in piece)


def jsonl(case: Case, scores: "Sequence[Scored]") -> str:
    """An object a line, made as the one that was read, with the keys of `s2s translate`."""
    found = [
        {
            name: text,
            "log_probability": one.log_probability,
            "pieces": one.pieces,
            "word_log_probabilities": one.word_log_probabilities,
        }
        for name in ("text" if case.listed else "target",)
        for text, one in zip(case.texts, scores, strict=True)
    ]
    rest = {"translations": found} if case.listed else found[0]
    facts = {"line": case.number, "source": case.source, **rest}
    return json.dumps(facts, ensure_ascii=False).translate(ESCAPES) + "\n"


Writer = Callable[[Case, "Sequence[Scored]"], str]
FORMATS: dict[str, Writer] = {"text": text, "tsv": tsv, "jsonl": jsonl}
