"""Where a command's data goes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def writing(path: str) -> Iterator[BinaryIO]:
    """The stream to write to: stdout for `-`, else a file that appears whole at the end.

    A device or named pipe is written to as it is.
    """
    if path == "-":
        yield sys.stdout.buffer
        return
    if Path(path).exists() and not Path(path).is_file():
        with open(path, "wb") as file:
            yield file
        return
    from s2s_cli.core.checkpoint import replacing

    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        yield file
