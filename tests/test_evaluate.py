"""`s2s evaluate` as a process: what it prints, what it reads, and how it ends."""

import gzip
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest

from s2s_cli.commands.evaluate import Metric
from s2s_cli.core.recipe.schema import MetricName

ROOT = Path(__file__).parents[1]
EVALUATE = [sys.executable, "-m", "s2s_cli", "evaluate"]

# Chosen so that the tokenizer, case and the second reference change the score.
HYPOTHESES = ["The cat sat on the mat.", "", "Is it so (1,000 times)?", "It rains today"]
REFERENCE = ["The cat sat on a mat.", "none", "is it so (1,000 times)?", "Today, it rains!"]
SECOND = ["A cat was on the mat.", "", "Is that so (1,000 times)?", "It rains, today"]


class Done:
    """How a process ended: its exit code and what it wrote."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.out = out.decode()
        self.err = err.decode()


def evaluate(*arguments: str | Path, stdin: bytes | Sequence[str] = b"") -> Done:
    """Runs the command with `stdin`, given as bytes or as lines."""
    sent = stdin if isinstance(stdin, bytes) else "".join(f"{line}\n" for line in stdin).encode()
    words = [*EVALUATE, *map(str, arguments)]
    done = subprocess.run(words, input=sent, capture_output=True, cwd=ROOT, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def sacrebleu(*arguments: str | Path) -> str:
    """What sacreBLEU's own command line prints."""
    words = [sys.executable, "-m", "sacrebleu", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write(tmp_path / "first.ref", REFERENCE)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write(tmp_path / "second.ref", SECOND)


@pytest.fixture
def hypotheses(tmp_path: Path) -> Path:
    return write(tmp_path / "hyp", HYPOTHESES)


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


# --- what it prints --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([], []),
        (["--tokenize", "none", "--smooth-method", "none"],) * 2,
        (["--tokenize", "char", "--smooth-method", "floor"],) * 2,
        (["--lowercase"], ["--lowercase", "--chrf-lowercase"]),
    ],
    ids=["default", "none", "char-floor", "lowercase"],
)
def test_equals_sacrebleu(
    reference: Path, second: Path, hypotheses: Path, ours: list[str], theirs: list[str]
) -> None:
    how = ["-m", "bleu", "chrf", "ter", "-w", "12", "-f", "json", *theirs]
    said = json.loads(sacrebleu(reference, second, "-i", hypotheses, *how))
    expected = {each["name"]: each for each in said}
    chosen = ["-M", "bleu", "-M", "chrf", "-M", "ter"]
    done = evaluate(reference, second, *chosen, *ours, "--format", "json", stdin=HYPOTHESES)
    assert (done.code, done.err) == (0, "")
    scores = json.loads(done.out)["scores"]
    assert [score["name"] for score in scores] == ["BLEU", "chrF", "TER"]
    for score, name in zip(scores, ["BLEU", "chrF2", "TER"], strict=True):
        assert score["value"] == pytest.approx(expected[name]["score"], abs=1e-11)
        assert score["signature"] == expected[name]["signature"]


def test_text_has_rounded_scores_then_signatures_in_the_order_asked(
    reference: Path, hypotheses: Path
) -> None:
    chosen = ["-M", "chrf", "--metric", "bleu", "-M", "wer"]
    done = evaluate(reference, *chosen, "--input", hypotheses)
    values = [
        sacrebleu(reference, "-i", hypotheses, "-m", name, "-b", "-w", "2").strip()
        for name in ("chrf", "bleu")
    ]
    lines = done.out.splitlines()
    assert lines[:2] == [f"chrF {values[0]}", f"BLEU {values[1]}"]
    # 1 of 6 words is replaced, 1 is missing, 1 of 5 is replaced, 3 of 3 are wrong (one by place).
    assert lines[2] == f"WER {100 * (1 + 1 + 1 + 3) / (6 + 1 + 5 + 3):.2f}"
    tsv = evaluate(reference, *chosen, "--format", "tsv", "-i", hypotheses).out.splitlines()
    signatures = [line.split("\t")[2] for line in tsv]
    assert lines[3:] == [
        f"# {name} {signature}"
        for name, signature in zip(["chrF", "BLEU", "WER"], signatures, strict=True)
    ]


def test_bleu_is_the_default(reference: Path) -> None:
    alone = evaluate(reference, stdin=HYPOTHESES)
    assert alone.code == 0
    assert alone.out == evaluate(reference, "-M", "bleu", stdin=HYPOTHESES).out
    assert [line.split()[:2] for line in alone.out.splitlines()][1] == ["#", "BLEU"]


def test_tsv_and_json_say_the_same_unrounded(reference: Path, hypotheses: Path) -> None:
    chosen = ["-M", "wer", "-M", "exact", "-M", "bleu", "-i", str(hypotheses)]
    tsv = evaluate(reference, *chosen, "--format", "tsv").out
    scores = json.loads(evaluate(reference, *chosen, "--format", "json").out)["scores"]
    columns = [line.split("\t") for line in tsv.splitlines()]
    assert [[name, float(value), signature] for name, value, signature in columns] == [
        [score["name"], score["value"], score["signature"]] for score in scores
    ]
    assert scores[0]["value"] == pytest.approx(100 * 6 / 15, rel=1e-15)
    full = float(sacrebleu(reference, "-i", hypotheses, "-b", "-w", "12"))
    assert scores[2]["value"] == pytest.approx(full, abs=1e-11)
    assert scores[2]["value"] != round(scores[2]["value"], 4)


def test_quiet_still_prints_the_data(reference: Path) -> None:
    loud, quiet = (evaluate(reference, *flag, stdin=HYPOTHESES) for flag in ([], ["-q"]))
    assert loud.out == quiet.out != ""


def test_tokenized_text_is_a_warning_on_stderr(tmp_path: Path) -> None:
    lines = ["a b ."] * 100
    reference = write(tmp_path / "ref", lines)
    for options, warned in (
        ([], True),
        (["-q"], True),
        (["--tokenize", "none"], False),
        (["-M", "chrf"], False),
    ):
        done = evaluate(reference, *options, stdin=lines)
        assert done.code == 0
        assert ("tokenized" in done.err) == warned
        assert all(line.startswith(("BLEU", "chrF", "#")) for line in done.out.splitlines())
    assert evaluate(reference, stdin=["a b ."] * 99 + ["a b"]).err == ""
    # The "\r" of a file from Windows is no part of its lines.
    assert "tokenized" in evaluate(reference, stdin=b"a b .\r\n" * 100).err


# --- what it reads ---------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_newline_ends_a_line(tmp_path: Path, odd: str) -> None:
    """The other side has two plain lines, so one line more would be an error."""
    plain = write(tmp_path / "plain", ["a b", "c d"])
    given = write(tmp_path / "odd", [f"c{odd}d", "c d"])
    for done in (
        evaluate(plain, "-M", "exact", stdin=given.read_bytes()),
        evaluate(plain, "-M", "exact", "-i", given),
        evaluate(given, "-M", "exact", "-i", plain),
    ):
        assert done.code == 0, done.err
        assert done.out.startswith("exact 50.00\n")


@pytest.mark.parametrize("sent", [b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb\n", b"a\nb"])
def test_marks_of_files_are_no_text(tmp_path: Path, sent: bytes) -> None:
    """Line ends of Windows, a byte order mark, and a last line without an end."""
    plain = write(tmp_path / "plain", ["a", "b"])
    given = tmp_path / "given"
    given.write_bytes(sent)
    for done in (
        evaluate(plain, "-M", "exact", stdin=sent),
        evaluate(given, "-M", "exact", "-i", plain),
    ):
        assert done.code == 0, done.err
        assert done.out.startswith("exact 100.00\n")


def test_gzip_files_are_read(tmp_path: Path, reference: Path, hypotheses: Path) -> None:
    for path in (reference, hypotheses):
        packed = gzip.compress(path.read_bytes())
        path.with_name(path.name + ".gz").write_bytes(packed)
    plain = evaluate(reference, "-i", hypotheses)
    packed_run = evaluate(f"{reference}.gz", "-i", f"{hypotheses}.gz")
    assert plain.code == packed_run.code == 0
    assert plain.out == packed_run.out


def test_a_reference_may_come_from_stdin(reference: Path, hypotheses: Path) -> None:
    """With unlike lengths, so that BLEU tells which of the two was the reference."""
    usual = evaluate(reference, "-i", hypotheses)
    assert evaluate("-", "-i", hypotheses, stdin=REFERENCE).out == usual.out
    assert evaluate(hypotheses, stdin=REFERENCE).out != usual.out


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    reference = write(tmp_path / "ref", ["a", "\ufffd", "c"])
    broken = tmp_path / "broken"
    broken.write_bytes(b"a\n\xff\nc\n")
    done = evaluate(reference, "-i", broken)
    assert (done.code, done.out) == (1, "")
    assert str(broken) in done.err
    assert "line 2" in done.err
    assert "Traceback" not in done.err
    replaced = evaluate(reference, "-i", broken, "--invalid", "replace", "-M", "exact")
    assert replaced.code == 0
    assert replaced.out.startswith("exact 100.00\n")
    assert evaluate(broken, "-i", reference).code == 1
    assert evaluate(broken, "-i", reference, "--invalid", "replace", "-M", "exact").code == 0


def terminal_session(*arguments: str | Path) -> Done:
    """Runs the command with a terminal as stdin, on which the hypotheses are typed."""
    ours, theirs = pty.openpty()
    words = [*EVALUATE, *map(str, arguments)]
    with subprocess.Popen(
        words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        os.close(theirs)
        os.write(ours, b"a b\nc\n\x04")
        out, err = process.communicate(timeout=60)
    os.close(ours)
    return Done(process.returncode, out, err)


def test_a_terminal_is_told_that_text_is_awaited(tmp_path: Path) -> None:
    reference = write(tmp_path / "ref", ["a b", "c"])
    told = terminal_session(reference, "-M", "exact")
    assert told.code == 0
    assert told.out.startswith("exact 100.00\n")
    assert len(told.err.splitlines()) == 1
    assert "waiting for text" in told.err
    silent = terminal_session(reference, "-M", "exact", "-q")
    assert (silent.code, silent.out, silent.err) == (0, told.out, "")
    piped = evaluate(reference, "-M", "exact", stdin=["a b", "c"])
    assert (piped.code, piped.out, piped.err) == (0, told.out, "")
    given = terminal_session(reference, "-i", reference)
    assert (given.code, given.err) == (0, "")


# --- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("named", [False, True], ids=["stdin", "file"])
def test_unequal_counts_are_named_with_their_files(
    tmp_path: Path, reference: Path, count: int, named: bool
) -> None:
    other = write(tmp_path / "other.ref", ["x"] * count)
    short = write(tmp_path / "hyp", HYPOTHESES)
    arguments = ["-i", str(short)] if named else []
    for references in ([other], [reference, other]):
        done = evaluate(*references, *arguments, stdin=HYPOTHESES)
        assert (done.code, done.out) == (1, "")
        assert f"{len(HYPOTHESES)} in {short if named else 'stdin'}" in done.err
        assert f"{count} in {other}" in done.err
        assert "Traceback" not in done.err


def test_no_hypotheses(tmp_path: Path, reference: Path) -> None:
    empty = write(tmp_path / "empty", [])
    for done, name in (
        (evaluate(reference), "stdin"),
        (evaluate(reference, "-i", empty), str(empty)),
        (evaluate(empty, "-i", empty), str(empty)),
    ):
        assert (done.code, done.out) == (1, "")
        assert f"{name} has 0 lines" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.ref"], ["missing.ref"]),
        (["first.ref", "missing.ref"], ["missing.ref"]),
        (["first.ref", "--tokenize", "13b"], ["13b", "13a", "intl", "none"]),
    ],
)
def test_what_fails_without_the_input_does_not_wait_for_it(
    reference: Path, arguments: list[str], said: list[str]
) -> None:
    """Stdin stays open and silent all the while."""
    places = [str(reference.parent / word) if "ref" in word else word for word in arguments]
    with subprocess.Popen(
        [*EVALUATE, *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
        assert process.stdout is not None
        assert process.stderr is not None
        done = Done(code, process.stdout.read(), process.stderr.read())
    assert (done.code, done.out) == (1, "")
    for part in said:
        assert part in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["first.ref", "-M", "rouge"],
        ["first.ref", "--smooth-method", "expo"],
        ["first.ref", "--format", "xml"],
        ["first.ref", "--invalid", "ignore"],
        ["-"],
        ["-", "-", "-i", "first.ref"],
    ],
)
def test_mistaken_use_ends_with_2(reference: Path, arguments: list[str]) -> None:
    places = [str(reference) if word == "first.ref" else word for word in arguments]
    done = evaluate(*places, stdin=HYPOTHESES)
    assert (done.code, done.out) == (2, "")
    assert done.err
    assert "Traceback" not in done.err


def test_the_metrics_are_those_of_a_recipe() -> None:
    """The command spells them out because importing the schema would slow every `--help`."""
    assert tuple(metric.value for metric in Metric) == get_args(MetricName)


def test_the_command_imports_nothing_heavy() -> None:
    heavy = {"sacrebleu", "pydantic", "numpy", "torch", "s2s_cli.core.metrics"}
    code = f"import sys, s2s_cli.commands.evaluate; print(sorted({heavy} & set(sys.modules)))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, cwd=ROOT, text=True, check=True)
    assert done.stdout == "[]\n"
