"""Each translation program in processes of its own, and their rounds in turns.

A program that can stay warm serves; of one that is a command, each run starts anew, and what a
run of one line takes is taken off.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from training_processes import QUIET
from training_programs import busy_seconds

SHORTEST = 1e-3  # seconds of a text, where no more than the noise of a start is left


@dataclass(frozen=True)
class Text:
    """What a program reads: the whole text, and a file of its first line."""

    whole: Path
    first: Path


class Program(Protocol):
    """Something that translates files."""

    text: Text
    warm: bool

    def start(self, output: Path) -> float:
        """Starts anew and translates a line greedily: seconds from nothing to its end."""
        ...

    def ask(self, source: Path, output: Path, beam: int) -> dict[str, float]:
        """Translates a file: `seconds` net of the start, `own` of processors, `peak` bytes."""
        ...

    def stop(self) -> None:
        """Ends its process, if there is one."""
        ...


class Server:
    """A program that stays warm; see `translation_server`."""

    warm = True

    def __init__(
        self,
        command: list[str],
        text: Text,
        threads: int,
        log: Path,
        quiet: Mapping[str, str] = QUIET,
    ) -> None:
        self.text = text
        self._log = log
        self._command = command
        others = {key: value for key, value in os.environ.items() if key not in QUIET}
        self._environment = others | {"OMP_NUM_THREADS": str(threads), **quiet}
        self._process: subprocess.Popen[str] | None = None

    def start(self, output: Path) -> float:
        self.stop()
        started = time.perf_counter()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
            )
        self.ask(self.text.first, output, 1)
        return time.perf_counter() - started

    def ask(self, source: Path, output: Path, beam: int) -> dict[str, float]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ValueError("start it first")
        order = {"source": str(source), "output": str(output), "beam": beam}
        try:
            print(json.dumps(order), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"a program has failed; see {self._log}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def stop(self) -> None:
        if self._process:
            self._process.communicate()  # it ends with its orders
            self._process = None


@dataclass
class Command:
    """A program that starts anew for every file: a script that is told what to do by variables."""

    script: Path
    options: dict[str, str]
    text: Text
    warm: bool = False
    starts: list[float] = field(default_factory=list)

    def start(self, output: Path) -> float:
        self.starts.append(self._run(self.text.first, output, 1)["seconds"])
        return self.starts[-1]

    def ask(self, source: Path, output: Path, beam: int) -> dict[str, float]:
        answer = self._run(source, output, beam)
        net = answer["seconds"] - statistics.median(self.starts)
        answer["seconds"] = max(net, SHORTEST)
        return answer

    def _run(self, source: Path, output: Path, beam: int) -> dict[str, float]:
        environment = {key: value for key, value in os.environ.items() if key not in QUIET}
        environment |= self.options
        environment |= {"SRC": str(source), "OUT": str(output), "BEAM": str(beam)}
        log = output.with_suffix(".log")
        started = time.perf_counter()
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [str(self.script)], env=environment, stdout=file, stderr=file
            )
            _, status, used = os.wait4(process.pid, 0)  # and of all that it has waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{self.script} has failed; see {log}")
        return {
            "seconds": time.perf_counter() - started,
            "own": used.ru_utime + used.ru_stime,
            "peak": used.ru_maxrss * 1024,
        }

    def stop(self) -> None:
        """Nothing stays."""


def start_all(programs: dict[str, Program], times: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each start, in turns; those that stay warm stay from the last."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(times):
        print(f"start {number + 1} of {times}", file=sys.stderr)
        for name, program in programs.items():
            found[name].append(program.start(folder / "start.txt"))
    return found


def file_of(folder: Path, name: str, ending: str) -> Path:
    """A file of a program."""
    return folder / f"{re.sub('[^A-Za-z0-9]+', '-', name)}.{ending}"


def output_of(folder: Path, name: str, beam: int) -> Path:
    """Where a program's translations lie."""
    return file_of(folder, name, f"b{beam}.txt")


def compete(
    programs: dict[str, Program], beams: list[int], rounds: int, folder: Path
) -> list[dict[str, Any]]:
    """Rounds in turns, every other time in the opposite order: a record for each run.

    In a first round, number 0, which does not count, the beams rise; the peak of memory is then
    that of this beam, as no wider one has been there before.
    """
    found = []
    for number in range(rounds + 1):
        for beam in sorted(beams):
            print(f"round {number} of {rounds}, beam {beam}", file=sys.stderr)
            for name in list(programs)[:: -1 if number % 2 else 1]:
                program = programs[name]
                if number == 0 and not program.warm:
                    continue  # which would be as cold the next time
                before, started = busy_seconds(), time.perf_counter()
                answer = program.ask(program.text.whole, output_of(folder, name, beam), beam)
                passed = time.perf_counter() - started
                others = max(0.0, busy_seconds() - before - answer["own"]) / passed
                record = {"round": number, "beam": beam, "program": name}
                found.append({**record, **answer, "foreign": others})
    return found
