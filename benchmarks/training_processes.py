"""Each program in a process of its own.

What a process does with freed memory, and how it multiplies in fp32, is set for all of it, so the
programs cannot share one. All are started and warmed up first; then they run in turns, one round
at a time, while the others sleep.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from training_programs import FUSED, OURS, Ours, Theirs, peak_memory, run_round
from training_setting import Setting

from s2s_cli.core.device import set_threads

# How long an idle thread looks for work before it sleeps, as `s2s` sets it: the others want its
# core. Alone, torch is as fast with it as without.
QUIET = {"GOMP_SPINCOUNT": "1000"}


def make_program(name: str, setting: Setting) -> Ours | Theirs:
    """The program of that name."""
    return Ours(setting) if name == OURS else Theirs(setting, fused=name == FUSED)


def serve(pipe: Connection, name: str, setting: Setting) -> None:
    """The life of a program's process: warmed up, it runs a round whenever it is told to.

    Other orders are functions, which are called with the program.
    """
    set_threads(setting.threads)
    program = make_program(name, setting)
    run_round(program)  # every shape is met, every buffer allocated
    pipe.send(
        {
            **program.facts(),
            "source words": program.words[0],
            "target words": program.words[1],
            "updates": len(program.batches),
        }
    )
    while (order := pipe.recv()) is not None:
        if order == "go":
            pipe.send({**run_round(program), "peak": peak_memory(program.device)})
        else:
            pipe.send(order[0](program, *order[1:]))


def call(pipe: Connection, function: Callable[..., Any], setting: Setting, *given: Any) -> None:
    """The life of a process that computes one thing."""
    set_threads(setting.threads)
    pipe.send(function(setting, *given))


class Child:
    """Another process, which answers through a pipe; as a context it ends with the context."""

    def __init__(self, target: Callable[..., None], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *given), daemon=True)
        os.environ.update(QUIET)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        """What it says next.

        Raises:
            SystemExit: it has died; its own message stands above.
        """
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit("a program has failed; see above") from None

    def ask(self, order: Any) -> Any:
        """Gives an order and waits for the answer."""
        self.pipe.send(order)
        return self.answer()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def in_a_process(function: Callable[..., Any], setting: Setting, *given: Any) -> Any:
    """`function(setting, ...)`, computed in a process of its own."""
    with Child(call, function, setting, *given) as child:
        return child.answer()


def compete(children: dict[str, Child], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Rounds in turns; every other time in the opposite order."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for name in list(children)[:: -1 if number % 2 else 1]:
            found[name].append(children[name].ask("go"))
    return found
