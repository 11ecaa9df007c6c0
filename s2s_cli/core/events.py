"""What a training tells while it runs, and the log that keeps it.

The trainer yields events; the screen, `log.jsonl` and tests are readers of them.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2s_cli.core.checkpoint import replacing


@dataclass(frozen=True)
class Event:
    """Something that happened after `update` updates, `epoch` epochs into the training."""

    update: int
    epoch: float


@dataclass(frozen=True)
class Started(Event):
    """The training begins, or goes on after `update` updates.

    parameters: numbers that are learned; batches: in an epoch; updates: in all, if nothing stops
    it earlier; techniques: what makes it fast here, and what does not apply and why; notes: on
    what it begins with, for a person.
    """

    parameters: int
    pairs: int
    batches: int
    updates: int
    device: str
    precision: str
    techniques: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noted(Event):
    """Something that a person should know came up in an update."""

    note: str


@dataclass(frozen=True)
class Progress(Event):
    """Some updates, since the last of these events.

    loss: nats a target word, as trained on: with label smoothing and the decoder's own words;
    norm: of the gradient, before clipping, of the last update; words_per_second: target words, EOS
    counted, validation not; padding: share of the padded target that is no word.
    """

    loss: float
    norm: float
    learning_rate: float
    words_per_second: float
    padding: float


@dataclass(frozen=True)
class Validated(Event):
    """A look at the validation pairs.

    perplexity: exp(total negative log-likelihood / target words, EOS counted), teacher-forced;
    scores: of the translated text; examples: (hypothesis, reference) texts;
    improved: whether this is the best model so far; waiting: validations since the best one.
    """

    perplexity: float
    scores: dict[str, float]
    seconds: float
    improved: bool
    waiting: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finished(Event):
    """The training ended. reason: `epochs`, `updates`, `patience` or `stopped`."""

    reason: str
    seconds: float
    best: dict[str, float]


class Log:
    """`log.jsonl`: an event a line, each flushed when it is written."""

    def __init__(self, path: Path, update: int) -> None:
        """Opens the log of a run that goes on after `update` updates.

        Events of later updates, which were lost, are cut off: they will happen again.

        Raises:
            ModelError: the file cannot be written.
        """
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() and update else []
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in lines if _is_of(line, update)))
        self._file = open(path, "ab")  # noqa: SIM115 - closed in `close`

    def write(self, event: Event) -> None:
        """Appends an event."""
        facts: dict[str, Any] = {"event": type(event).__name__.lower(), **asdict(event)}
        self._file.write(json.dumps(facts, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Flushes to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def _is_of(line: bytes, update: int) -> bool:
    """Whether a line of the log is whole and tells of `update` or an update before it."""
    try:
        return int(json.loads(line)["update"]) <= update
    except (ValueError, KeyError, TypeError):
        return False
