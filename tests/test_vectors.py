"""Word vectors from files of word2vec, GloVe and fastText."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from s2s_cli.core.errors import DataError
from s2s_cli.core.model.vectors import load_vectors

ENTRIES = ["<unk>", "</s>", "cat", "naïve", "dog", "New York"]
UNTOUCHED = 9.0


def table(width: int = 3) -> nn.Embedding:
    embedding = nn.Embedding(len(ENTRIES), width)
    nn.init.constant_(embedding.weight, UNTOUCHED)
    return embedding


def loaded(path: Path, width: int = 3) -> tuple[int, dict[str, list[float]]]:
    """The count, and the vectors of the words that have been given one."""
    embedding = table(width)
    count = load_vectors(embedding, path, ENTRIES)
    rows = zip(ENTRIES, embedding.weight.tolist(), strict=True)
    return count, {word: row for word, row in rows if row != [UNTOUCHED] * width}


def plain(text: str) -> bytes:
    return text.encode()


def windows(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def trailing(text: str) -> bytes:
    """As word2vec and fastText end their lines: a space, and then the line feed."""
    return text.replace("\n", " \n").encode()


LINES = "the 0.5 0.25 -1\ncat 1 -2.5e-1 3\nbird 4 4 4\nnaïve -4 5 6\n"
FOUND = {"cat": [1.0, -0.25, 3.0], "naïve": [-4.0, 5.0, 6.0]}


@pytest.mark.parametrize("header", ["", "4 3\n", "2000000 3\n"], ids=["glove", "word2vec", "fast"])
@pytest.mark.parametrize("ending", [plain, windows, trailing])
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_all_makers_are_read(
    header: str, ending: Callable[[str], bytes], packed: bool, tmp_path: Path
) -> None:
    content = ending(header + LINES)
    path = tmp_path / ("vectors.txt.gz" if packed else "vectors.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert loaded(path) == (2, FOUND)


def test_a_file_may_end_without_a_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(LINES.rstrip("\n"), encoding="utf-8")
    assert loaded(path) == (2, FOUND)


def test_a_word_may_hold_spaces(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(LINES + "New York 7 8 9\n. . . 1 1 1\n", encoding="utf-8")
    assert loaded(path) == (3, {**FOUND, "New York": [7.0, 8.0, 9.0]})


def test_bytes_that_are_no_utf8_spoil_their_own_word_alone(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes(b"a\xff\xfeb 1 1 1\n" + LINES.encode())
    assert loaded(path) == (2, FOUND)


def test_of_a_word_that_stands_twice_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(LINES + "cat 7 7 7\ncat 8 8 8\n", encoding="utf-8")
    assert loaded(path) == (2, FOUND)


def test_all_entries_of_a_word_get_its_vector(tmp_path: Path) -> None:
    """SentencePiece may have a piece with and one without its mark."""
    path = tmp_path / "vectors.txt"
    path.write_text(LINES, encoding="utf-8")
    embedding = table()
    assert load_vectors(embedding, path, ["cat", "dog", "cat"]) == 2
    assert embedding.weight[0].tolist() == embedding.weight[2].tolist() == FOUND["cat"]
    assert embedding.weight[1].tolist() == [UNTOUCHED] * 3


@pytest.mark.parametrize("text", ["Katze 1 2 3\n", ""])
def test_a_file_without_any_of_the_words_is_no_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"has none of the 6 entries of the vocabulary"):
        loaded(path)


def test_tabs_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("\ufeff" + LINES.replace(" ", "\t") + "\n\n", "utf-8")
    assert loaded(path) == (len(FOUND), FOUND)


def test_vectors_are_learned_further(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(LINES, encoding="utf-8")
    embedding = table()
    load_vectors(embedding, path, ENTRIES)
    embedding(torch.tensor([2, 4])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.sum(1).tolist() == [0, 0, 3, 0, 3, 0]


@pytest.mark.parametrize(
    ("text", "width", "told"),
    [
        (LINES, 4, r"line 1: a word and 3 numbers .* have 4\n.*`embedding`"),
        (LINES, 2, r"line 1: a word and 3 numbers .* have 2\n"),
        (f"4 3\n{LINES}", 2, r"line 2: a word and 3 numbers"),
        (f"4 3\n{LINES}", 300, r"line 2: a word and 3 numbers .* have 300"),
        (f"{LINES}cat 1 2\n", 3, r"line 5: a word and 2 numbers"),
        (LINES + "dog 1 2 x\n", 3, r"line 5: not a word and its vector"),
        (LINES + "dog 1  2\n", 3, r"line 5: not a word and its vector"),
        (LINES + "dog 1 nan 2\n", 3, r"line 5: not a word and its vector"),
        (LINES + "dog 1 -inf 2\n", 3, r"line 5: not a word and its vector"),
        (LINES + "dog 1 2 1e99\n", 3, r"line 5: not a word and its vector"),
    ],
)
def test_a_line_that_is_wrong_is_told(text: str, width: int, told: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"vectors\.txt, " + told):
        load_vectors(table(width), path, ENTRIES)


def truncated(content: bytes) -> bytes:
    return gzip.compress(content)[:-20]


def not_packed(content: bytes) -> bytes:
    return content


def spoilt(content: bytes) -> bytes:
    packed = bytearray(gzip.compress(content))
    packed[12:20] = b"\xff" * 8
    with pytest.raises(zlib.error):
        gzip.decompress(bytes(packed))
    return bytes(packed)


@pytest.mark.parametrize("damage", [truncated, not_packed, spoilt])
def test_a_damaged_archive_is_told(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(damage(LINES.encode()))
    with pytest.raises(DataError, match=r"cannot read word vectors .*vectors\.txt\.gz: "):
        load_vectors(table(), path, ENTRIES)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read word vectors .*nowhere\.txt: No such file"):
        load_vectors(table(), tmp_path / "nowhere.txt", ENTRIES)
    with pytest.raises(DataError, match=r"cannot read word vectors .*: Is a directory"):
        load_vectors(table(), tmp_path, ENTRIES)
