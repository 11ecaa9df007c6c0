"""How a translation program serves: it stays warm and translates a file whenever it is told to.

It knows nothing but Python's own library, so that other toolkits' environments can load it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# A file of lines, where to write their translations, and the width of the beam.
Translate = Callable[[str, str, int], None]


def serve(translate: Translate, peak: Callable[[], int]) -> None:
    """Answers orders until there are no more; both are objects in JSON, a line each.

    An order has `source`, `output` and `beam`; an answer the `seconds` it took, the seconds of its
    `own` processors, and the `peak` of its memory, in bytes, since it was started.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        for line in sys.stdin:
            order = json.loads(line)
            own, started = time.process_time(), time.perf_counter()
            translate(order["source"], order["output"], order["beam"])
            answer = {
                "seconds": time.perf_counter() - started,
                "own": time.process_time() - own,
                "peak": peak(),
            }
            print(json.dumps(answer), file=answers, flush=True)


def host_peak() -> int:
    """The most bytes that this process has had, 0 if unknown."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
