"""A training's events on stderr: a live bar on a terminal, plain lines elsewhere."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from s2s_cli.commands.terminal import Terminal

if TYPE_CHECKING:
    from s2s_cli.core.events import Event


class TrainingScreen:
    """Shows events as they come."""

    def __init__(self, terminal: Terminal, folder: Path) -> None:
        self._terminal = terminal
        self._folder = folder
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=terminal.console,
            transient=True,
            disable=terminal.quiet or not terminal.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, facts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, event: "Event") -> None:
        """Shows one event."""
        from s2s_cli.core.events import Finished, Noted, Progress, Started, Validated

        match event:
            case Started():
                self._bar.update(self._task, total=event.updates, completed=event.update)
                verb = "going on after" if event.update else "starting with"
                self._terminal.note(
                    f"{self._folder}: {event.parameters:,} parameters, {event.pairs:,} pairs, "
                    f"{event.updates:,} updates, {event.device}, {event.precision}; "
                    f"{verb} update {event.update:,}"
                )
                self._terminal.detail("; ".join(event.techniques))
                for note in event.notes:
                    self._terminal.note(note)
            case Noted():
                self._terminal.note(event.note)
            case Progress():
                facts = (
                    f"loss {event.loss:.3f}, {event.words_per_second:,.0f} words/s, "
                    f"lr {event.learning_rate:.3g}"
                )
                self._bar.update(self._task, completed=event.update, facts=facts)
                if self._bar.disable:
                    self._terminal.note(
                        f"epoch {event.epoch:.2f}, update {event.update:,}: {facts}, "
                        f"gradient {event.norm:.2f}"
                    )
            case Validated():
                self._validated(event.epoch, event.perplexity, event.scores, event.improved)
                for hypothesis, reference in event.examples:
                    self._terminal.detail(f"  {hypothesis}\n  ({reference})")
            case Finished():
                best = ", ".join(f"{name} {value:,.6g}" for name, value in event.best.items())
                self._terminal.note(
                    f"ended ({event.reason}) after {event.seconds:,.0f} s of training; "
                    + (f"best: {best}" if best else "never validated")
                )
                self._advise(event.reason)

    def _validated(
        self, epoch: float, perplexity: float, scores: dict[str, float], improved: bool
    ) -> None:
        numbers = [f"{name} {value:.2f}" for name, value in scores.items()]
        shape = ",.2f" if perplexity < 1e9 else ".3g"  # a model that knows nothing may have 1e300
        self._terminal.note(
            f"epoch {epoch:.2f}, validation: perplexity {perplexity:{shape}}"
            + "".join(f", {number}" for number in numbers)
            + (" (best so far)" if improved else "")
        )

    def _advise(self, reason: str) -> None:
        if reason == "stopped":
            self._terminal.note("the same command goes on from here")
        else:
            self._terminal.note(f"translate with: s2s translate -m {self._folder} < input.txt")
