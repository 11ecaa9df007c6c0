r"""Lines from outside, as they are in files and pipes.

Only b"\n" ends a line: text loaders that also split at a lone carriage return, a form feed or
U+2028 bring the two sides of a corpus out of step.
"""

import gzip
import queue
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal, cast

from s2s_cli.core.errors import DataError

Invalid = Literal["error", "replace"]


def decode_line(raw: bytes, where: str, number: int, invalid: Invalid = "error") -> str:
    """The text of one line, without its LF or CR LF.

    Args:
        raw: the line's bytes.
        where: the name of the file or stream, for the message.
        number: the line's number, counted from 1; a byte order mark is dropped from line 1.
        invalid: whether bytes that are not UTF-8 are an error or become U+FFFD.

    Raises:
        DataError: with the file, the line and the bytes.
    """
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8", errors="strict" if invalid == "error" else "replace")
    except UnicodeDecodeError as error:
        shown = raw[max(0, error.start - 8) : error.end + 8]
        raise DataError(
            f"{where}, line {number}: not UTF-8 at byte {error.start + 1}: {shown!r}\n"
            "convert the text to UTF-8 (iconv -f latin1 -t utf-8, say)"
        ) from None


def read_lines(path: str, invalid: Invalid = "error") -> Iterator[str]:
    """The lines of a file, plain or gzip by its name (.gz); `-` is stdin.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8.
    """
    where = "stdin" if path == "-" else path
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                yield decode_line(raw, where, number, invalid)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(where, error) from None


def unreadable(where: str, error: Exception) -> DataError:
    """The error for a file that cannot be read."""
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return DataError(f"{where} is not a whole gzip file: {error}")
    reason = error.strerror if isinstance(error, OSError) else None
    return DataError(f"cannot read {where}: {reason or error}")


def _open(path: str) -> BinaryIO:
    if path == "-":
        return cast(BinaryIO, open(sys.stdin.fileno(), "rb", closefd=False))
    if path.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


class LineGroups:
    """Lines of a file or pipe in groups, each as large as what has arrived, up to a limit.

    A slow writer's line comes alone and at once; a fast writer's come by the thousand. A thread
    reads ahead by a bounded number of lines, from the moment the object is made.
    """

    def __init__(self, path: str, *, first: int, most: int, invalid: Invalid = "error") -> None:
        """Groups of at most `first` lines, then twice as many each time, up to `most`.

        `first` may be changed until the first group is taken.
        """
        self._where = "stdin" if path == "-" else path
        self.first, self._most, self._invalid = first, most, invalid
        # The thread may be killed while it waits for a line: it must not hold sys.stdin's lock.
        self._arrived: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=most)
        threading.Thread(target=self._read, args=(path,), daemon=True).start()

    def _read(self, path: str) -> None:
        try:
            with _open(path) as file:
                for raw in file:
                    self._arrived.put(raw)
            self._arrived.put(None)
        except Exception as error:  # noqa: BLE001 - raised again where the groups are read
            self._arrived.put(error)

    def __iter__(self) -> Iterator[list[str]]:
        """The groups.

        Raises:
            DataError: the file cannot be read, or a line is not UTF-8; the lines before it come
                first, in a group of their own.
        """
        number, size = 0, self.first
        while True:
            group: list[str] = []
            item = self._arrived.get()
            while isinstance(item, bytes):
                number += 1
                try:
                    group.append(decode_line(item, self._where, number, self._invalid))
                except DataError as error:
                    item = error
                    break
                if len(group) == size or self._arrived.empty():
                    break
                item = self._arrived.get()
            if group:
                yield group
            if item is None:
                return
            if isinstance(item, Exception):
                raise item if isinstance(item, DataError) else unreadable(self._where, item)
            size = min(2 * size, self._most)
