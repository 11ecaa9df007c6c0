"""Where a command's data goes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from s2s_cli.core.errors import DataError


@contextlib.contextmanager
def writing(path: str) -> Iterator[BinaryIO]:
    """The stream to write to: stdout for `-`, else a file that appears whole at the end.

    A link, a device or a named pipe is written to as it is: /dev/stdout is a link that must stay.

    Raises:
        DataError: the file cannot be written.
    """
    if path == "-":
        yield sys.stdout.buffer
        return
    target = Path(path)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        try:
            stream = open(path, "wb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from None
        with stream:
            yield stream
        return
    from s2s_cli.core.checkpoint import replacing

    with replacing(target) as temporary, open(temporary, "wb") as file:
        yield file
