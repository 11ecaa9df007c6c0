"""Word vectors made elsewhere: the text files of word2vec, GloVe and fastText.

# V vocabulary, E embedding
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from s2s_cli.core.errors import DataError


@torch.no_grad()
def load_vectors(embedding: nn.Embedding, path: Path, entries: Sequence[str]) -> int:
    """Puts a file's vectors into the rows of `embedding` whose words it has.

    Other rows stay as they are. Where a word stands twice, the first counts.

    Args:
        embedding: [V, E].
        path: a word and its E numbers a line, parted by spaces; a first line of two numbers is
            skipped. Plain or .gz.
        entries: the vocabulary, the word of each id.

    Returns:
        The number of rows that were filled.

    Raises:
        DataError: the file cannot be read, has none of the words, or a line does not
            hold a word and E finite numbers.
    """
    rows: dict[str, list[int]] = {}
    for row, word in enumerate(entries):
        rows.setdefault(word, []).append(row)
    width, found, read = embedding.embedding_dim, 0, 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                # A word may hold spaces itself (GloVe's of Common Crawl do): numbers stand last.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
                parts = text.replace("\t", " ").strip("\r\n ").split(" ")
                if number == 1 and len(parts) == 2 and "".join(parts).isdecimal():
                    continue  # how many there are, which the head of a file belies
                if parts == [""]:
                    continue
                if len(parts) <= width or (not read and len(parts) != width + 1):
                    raise DataError(
                        f"{path}, line {number}: a word and {len(parts) - 1} numbers parted by "
                        f"spaces, but the recipe's vectors have {width}\nset `embedding` of that "
                        "side to the width of the file's vectors"
                    )
                read += 1
                if filled := rows.pop(" ".join(parts[:-width]), None):
                    embedding.weight[filled] = _numbers(parts[-width:], path, number)
                    found += len(filled)
    except (OSError, EOFError, zlib.error) as error:  # the last two of a damaged .gz
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read word vectors {path}: {reason or error}") from None
    if not found:
        raise DataError(f"{path} has none of the {len(entries):,} entries of the vocabulary")
    return found


def _numbers(parts: Sequence[str], path: Path, number: int) -> Tensor:
    try:
        with numpy.errstate(over="ignore"):  # what fp32 cannot hold is infinite, and told below
            found = numpy.array(parts, dtype=numpy.float32)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not a word and its vector ({error})") from None
    if not numpy.isfinite(found).all():
        raise DataError(
            f"{path}, line {number}: not a word and its vector (a number is not finite)"
        )
    return torch.from_numpy(found)
