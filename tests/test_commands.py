"""Every command as a process, on a tiny corpus: what it prints, what it writes, how it ends."""

import contextlib
import gzip
import itertools
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import s2s_cli
from s2s_cli.app import app
from s2s_cli.commands.output import writing
from s2s_cli.core.checkpoint import load_model, load_tensors, save_model
from s2s_cli.core.errors import DataError, ModelError
from s2s_cli.core.model import build
from s2s_cli.core.prepared import Prepared
from s2s_cli.core.recipe import Recipe, load, packaged
from s2s_cli.core.translator import Translation, Translator

S2S = [sys.executable, "-m", "s2s_cli"]
# What the person at this machine has set must not change what is tested.
PERSONAL = {
    *("S2S_MODEL", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"),
    "PYTHONUNBUFFERED",  # would hide output that nobody flushes
}
CLEAN = {name: value for name, value in os.environ.items() if name not in PERSONAL}
# Runs a command, and tells at the end what it has imported.
IMPORTED = [
    sys.executable,
    "-c",
    """import sys; from s2s_cli.app import main
try: main()
finally: print(*sys.modules, file=sys.stderr)""",
]
PATIENCE = 300  # seconds, after which a command that hangs is a failure
LINES = ["one two three", "", "ten", "seven seven two nine", "four zwölf", "six five"]
SHORT = ["training.max_updates=4", "training.log_every=2"]


@dataclass(frozen=True)
class Done:
    """How a process ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Inside = Callable[..., Done]


@pytest.fixture(autouse=True, scope="module")
def ctrl_c_is_heard() -> Iterator[None]:
    """A program that a shell runs in the background ignores Ctrl-C, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def words(*arguments: str | Path) -> list[str]:
    return [*S2S, *map(str, arguments)]


def run(folder: Path, command: Sequence[str], stdin: str = "", **environment: str) -> Done:
    """Runs any program in `folder`."""
    done = subprocess.run(
        command,
        input=stdin.encode(),
        capture_output=True,
        cwd=folder,
        env=CLEAN | environment,
        timeout=PATIENCE,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def s2s(folder: Path, *arguments: str | Path, stdin: str = "", **environment: str) -> Done:
    """Runs a command in `folder`."""
    return run(folder, words(*arguments), stdin, **environment)


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Runs a command without a process of its own, which would take seconds to import torch."""

    def command(folder: Path, *arguments: str | Path) -> Done:
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            app(list(map(str, arguments)))
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capfd.readouterr())

    return command


@contextlib.contextmanager
def started(folder: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command under way, all three streams being pipes; one that hangs is killed."""
    with (
        subprocess.Popen(
            words(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=CLEAN,
        ) as process,
        killed_if_it_hangs(process),
    ):
        yield process


@contextlib.contextmanager
def killed_if_it_hangs(process: subprocess.Popen[bytes]) -> Iterator[None]:
    guard = threading.Timer(PATIENCE, process.kill)
    guard.start()
    try:
        yield
    finally:
        guard.cancel()
        process.kill()


def joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, with its inode's time and content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(files)}


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def settings(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def assert_message(done: Done, *said: str, lines: int = 3, code: int = 1) -> None:
    """The command ended with one message to a person, which says all of `said`."""
    assert (done.code, done.out) == (code, ""), done.err
    found = done.err.splitlines()
    told = next(place for place, line in enumerate(found) if line.startswith("error: "))
    assert 1 <= len(found) - told <= lines
    assert "Traceback" not in done.err
    for part in said:
        assert part in done.err


# --- prepare ---------------------------------------------------------------------------------


def test_prepare_prints_its_folder_and_reports(tmp_path: Path, recipe_file: Path) -> None:
    first = s2s(tmp_path, "prepare", "--recipe", recipe_file)
    assert first.code == 0
    folder = tmp_path / first.out.removesuffix("\n")
    assert re.fullmatch(r"prepared/tiny-[0-9a-f]{16}\n", first.out)
    assert (folder / "manifest.json").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    for fact in ("train: 60 pairs read, 60 kept", "validation: 13 pairs read", "vocabulary: words"):
        assert fact in first.err

    before = tree(tmp_path)
    again = s2s(tmp_path, "prepare", "-r", recipe_file)
    assert (again.code, again.out) == (0, first.out)
    assert again.err
    assert first.err.endswith(again.err)
    assert tree(tmp_path) == before

    elsewhere = s2s(tmp_path, "prepare", "-r", recipe_file, "--out", "some/where", "-q")
    assert (elsewhere.code, elsewhere.out, elsewhere.err) == (0, "some/where\n", "")
    made, known = (
        {path.name: path.read_bytes() for path in place.iterdir()}
        for place in (tmp_path / "some/where", folder)
    )
    assert made == known


def test_prepare_refuses_what_it_finds_there(tmp_path: Path, recipe_file: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    for place, said in (("file", "is a file"), ("full", "manifest.json"), ("file/x", "cannot")):
        done = s2s(tmp_path, "prepare", "-r", recipe_file, "--out", place)
        assert_message(done, place, said)
    assert tree(tmp_path) == before


def test_prepare_leaves_nothing_half_done(tmp_path: Path, recipe_file: Path) -> None:
    """The text is so long that the signal arrives long before its end."""
    block = gzip.compress(
        joined(["one two three four five six seven eight nine ten"] * 10_000).encode()
    )
    (tmp_path / "long.gz").write_bytes(block * 500)
    changes = settings("data.train.source=long.gz", "data.train.target=long.gz")
    for number in (signal.SIGINT, signal.SIGTERM):
        with started(tmp_path, "prepare", "-r", recipe_file, *changes) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == b"training the tokenizer ...\n"
            process.send_signal(number)
            assert process.communicate() == (b"", b"")
        assert process.returncode == 128 + number
        assert not list((tmp_path / "prepared").iterdir())


# --- train -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the run below was trained; tests leave its runs/ as it is."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="module")
def trained(workplace: Path, recipe_file: Path) -> Done:
    """How training the tiny recipe for four updates ended."""
    return s2s(workplace, "train", "--recipe", recipe_file, *settings(*SHORT))


def test_train_prints_the_run_and_writes_it(
    workplace: Path, trained: Done, recipe_file: Path
) -> None:
    assert (trained.code, trained.out) == (0, "runs/tiny\n")
    run = workplace / "runs" / "tiny"
    names = {"recipe.toml", "log.jsonl", "best.safetensors", "last.safetensors"}
    assert {path.name for path in run.iterdir()} - {"state.safetensors"} == names
    assert load(str(run / "recipe.toml")) == load(str(recipe_file), SHORT)
    assert len(list((workplace / "prepared").iterdir())) == 1  # made on the way
    log = events(run)
    kinds = [event["event"] for event in log]
    assert kinds == ["started", "progress", "progress", "validated", "finished"]
    assert [event["update"] for event in log] == [0, 2, 4, 4, 4]
    assert log[-1]["reason"] == "updates"
    told = trained.err.splitlines()
    assert sum("loss" in line for line in told) == 2
    assert any("validation: perplexity" in line for line in told)
    assert told[-1] == "translate with: s2s translate -m runs/tiny < input.txt"
    assert not {"\x1b", "\r"} & set(trained.err)


def test_the_same_training_again_is_done_at_once(
    workplace: Path, trained: Done, recipe_file: Path
) -> None:
    run = workplace / "runs" / "tiny"
    before = tree(run)
    again = s2s(workplace, "train", "--recipe", recipe_file, *settings(*SHORT))
    assert (again.code, again.out) == (0, trained.out)
    after = tree(run)
    for name in ("best.safetensors", "last.safetensors", "state.safetensors"):
        assert after[str(run / name)] == before[str(run / name)]
    kinds = [event["event"] for event in events(run)]
    assert kinds.count("progress") == 2
    assert kinds[-1] == "finished"
    assert len(list((workplace / "prepared").iterdir())) == 1


def test_a_saved_recipe_repeats_its_run(workplace: Path, trained: Done, tmp_path: Path) -> None:
    """From another folder, where the text is prepared anew."""
    run = workplace / "runs" / "tiny"
    done = s2s(tmp_path, "train", "-q", "--recipe", run / "recipe.toml", "--run", "again")
    assert (done.code, done.out, done.err) == (0, "again\n", "")
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_tensors(run / name), load_tensors(tmp_path / "again" / name)
        assert ours[1] == theirs[1]
        assert ours[0].keys() == theirs[0].keys()
        assert all(torch.equal(ours[0][key], theirs[0][key]) for key in ours[0])


def test_a_folder_with_another_run_is_refused_and_kept(
    workplace: Path, trained: Done, recipe_file: Path
) -> None:
    run = workplace / "runs" / "tiny"
    before = tree(run)
    changes = settings(*SHORT, "optimizer.lr=0.1")
    done = s2s(workplace, "train", "-r", recipe_file, *changes)
    assert_message(done, "runs/tiny", "optimizer.lr", "--run")
    assert tree(run) == before


def test_training_that_diverges_ends_with_3(
    workplace: Path, trained: Done, recipe_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "wild"
    changes = settings(*SHORT, "optimizer.lr=1e300", "training.clip=0.0")
    done = s2s(workplace, "train", "-q", "-r", recipe_file, "--run", run, *changes)
    assert_message(done, "loss", "update 2", "optimizer.lr", code=3)
    assert not list(run.glob("*.safetensors"))


def test_an_interrupted_training_goes_on(
    workplace: Path, trained: Done, recipe_file: Path, tmp_path: Path
) -> None:
    """Ctrl-C, the same command again, SIGTERM, the same command with an end: no update twice."""
    run = tmp_path / "long"
    changes = settings("training.epochs=1000000.0", "training.log_every=1")
    command = ("train", "-r", recipe_file, "--run", run, *changes)
    update = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        with started(workplace, *command) as process:
            assert process.stderr is not None
            read = iter(process.stderr.readline, b"")
            head = next(line for line in read if b"pairs" in line and b"updates" in line)
            assert f"update {update}\n".encode() in head
            next(line for line in read if b"loss" in line)
            process.send_signal(number)
            out, err = process.communicate()
        assert (process.returncode, out) == (128 + number, f"{run}\n".encode())
        assert err.endswith(b"the same command goes on from here\n")
        assert b"Traceback" not in err
        last = events(run)[-1]
        assert (last["event"], last["reason"]) == ("finished", "stopped")
        assert int(str(last["update"])) > update
        update = int(str(last["update"]))
    end = update + 2
    done = s2s(workplace, *command, "--set", f"training.max_updates={end}")
    assert (done.code, done.out) == (0, f"{run}\n")
    assert f"going on after update {update}\n" in done.err
    told = [event["update"] for event in events(run) if event["event"] == "progress"]
    assert told == list(range(1, end + 1))


# --- translate -------------------------------------------------------------------------------


def make_model(path: Path, seed: int, recipe: Recipe, prepared: Prepared) -> Path:
    """A model file with weights so wide that sentences get different translations."""
    torch.manual_seed(seed)
    source, target = prepared.source_tokenizer, prepared.target_tokenizer
    model = build(recipe.model, source_vocabulary=source.size, target_vocabulary=target.size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-2.0, 2.0)
    save_model(path, model, recipe, (source, target), {"update": seed})
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, prepared: Prepared) -> Path:
    return make_model(tmp_path_factory.mktemp("wide") / "wide.safetensors", 4, recipe, prepared)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, prepared: Prepared) -> Path:
    return make_model(tmp_path_factory.mktemp("other") / "other.safetensors", 5, recipe, prepared)


@pytest.fixture(scope="module")
def expected(wide: Path) -> list[list[Translation]]:
    """The two best translations of LINES, by Python."""
    found = Translator.load(wide, device="cpu").n_best(LINES, 2)
    assert len({best[0].text for best in found}) == len(LINES)  # or the tests below say little
    return found


def test_translate_writes_text(
    tmp_path: Path, wide: Path, expected: list[list[Translation]]
) -> None:
    done = s2s(tmp_path, "translate", "-m", wide, stdin=joined(LINES))
    assert (done.code, done.err) == (0, "")
    assert done.out == joined([best[0].text for best in expected])


def test_translate_reads_and_writes_files(
    tmp_path: Path, wide: Path, expected: list[list[Translation]]
) -> None:
    (tmp_path / "in.gz").write_bytes(gzip.compress(joined(LINES).encode()))
    (tmp_path / "out").write_text("what was there before")
    done = s2s(tmp_path, "translate", "-m", wide, "-i", "in.gz", "-o", "out", stdin="never read\n")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "out").read_text() == joined([best[0].text for best in expected])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gz", "out"]


def test_tsv_has_number_rank_score_and_text(
    tmp_path: Path, wide: Path, expected: list[list[Translation]]
) -> None:
    how = ["--format", "tsv", "--n-best", "2"]
    done = s2s(tmp_path, "translate", "-m", wide, *how, stdin=joined(LINES))
    assert done.code == 0
    rows = [
        (number, rank, one.text, one.score)
        for number, best in enumerate(expected, 1)
        for rank, one in enumerate(best, 1)
    ]
    assert len(rows) == 2 * len(LINES) - 1  # the blank line has but one
    found = [line.split("\t") for line in done.out.splitlines()]
    assert [(int(row[0]), int(row[1]), row[3]) for row in found] == [row[:3] for row in rows]
    scores = [float(row[2]) for row in found]
    assert scores == pytest.approx([row[3] for row in rows], abs=1e-4)


def test_jsonl_has_an_object_a_line(
    tmp_path: Path, wide: Path, expected: list[list[Translation]]
) -> None:
    how = ["--format", "jsonl", "--n-best", "2"]
    lines = [*LINES, "one\u2028two\x85\u2029"]
    done = s2s(tmp_path, "translate", "-m", wide, *how, stdin=joined(lines))
    assert done.code == 0
    assert len(done.out.splitlines()) == done.out.count("\n") == len(lines)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [one["line"] for one in found] == list(range(1, len(lines) + 1))
    assert [one["source"] for one in found] == lines
    for one, best in zip(found, expected, strict=False):
        assert [each["text"] for each in one["translations"]] == [each.text for each in best]
        for each, known in zip(one["translations"], best, strict=True):
            assert each["pieces"] == list(known.pieces)
            assert each["score"] == pytest.approx(known.score, abs=1e-4)
            assert each["log_probability"] == pytest.approx(known.log_probability, abs=1e-4)


def test_moses_counts_from_0_and_the_penalty_changes_the_score_alone(
    tmp_path: Path, wide: Path
) -> None:
    how = ["--format", "moses", "--n-best", "2", "--length-penalty", "0.9", "-b", "2"]
    done = s2s(tmp_path, "translate", "-m", wide, *how, stdin=joined(LINES))
    assert done.code == 0
    shape = re.compile(r"(\d+) \|\|\| (.*) \|\|\| s2s= (-?\d+\.\d{6}) \|\|\| (-?\d+\.\d{6})")
    found = [match for line in done.out.splitlines() if (match := shape.fullmatch(line))]
    assert len(found) == done.out.count("\n")
    assert sorted({int(one[1]) for one in found}) == list(range(len(LINES)))
    for one in found:
        length = len(one[2].split()) + 1
        divisor = ((5 + length) / 6) ** 0.9
        assert float(one[4]) == pytest.approx(float(one[3]) / divisor, abs=1e-5)
    for _, ranked in itertools.groupby(found, key=lambda one: one[1]):
        scores = [float(one[4]) for one in ranked]
        assert scores == sorted(scores, reverse=True)


def test_a_narrower_beam_by_either_option(tmp_path: Path, wide: Path) -> None:
    loaded = load_model(wide, torch.device("cpu"))
    narrow = loaded.recipe.search.model_copy(update={"beam_size": 1})
    greedy = Translator([loaded], narrow).translate(LINES)
    assert greedy != Translator([loaded]).translate(LINES)
    for how in (["--beam-size", "1"], ["--set", "search.beam_size=1"]):
        done = s2s(tmp_path, "translate", "-m", wide, *how, stdin=joined(LINES))
        assert (done.code, done.out, done.err) == (0, joined(greedy), "")


def test_n_best_needs_a_format_and_a_beam(inside: Inside, tmp_path: Path, wide: Path) -> None:
    text = inside(tmp_path, "translate", "-m", wide, "--n-best", "2")
    assert (text.code, text.out) == (2, "")
    for part in ("--n-best", "--format", "tsv", "jsonl", "moses"):
        assert part in text.err
    how = ["--format", "tsv", "--n-best", "4"]
    narrow = inside(tmp_path, "translate", "-m", wide, *how)
    assert_message(narrow, "4", "3", "-b 4")


def test_only_the_search_can_be_set(inside: Inside, tmp_path: Path, wide: Path) -> None:
    done = inside(tmp_path, "translate", "-m", wide, "--set", "model.x=1")
    assert_message(done, "model.x=1", "[search]")


def test_two_models_make_an_ensemble(tmp_path: Path, wide: Path, other: Path) -> None:
    both = Translator.load(wide, other, device="cpu").translate(LINES)
    assert both not in [
        Translator.load(one, device="cpu").translate(LINES) for one in (wide, other)
    ]
    done = s2s(tmp_path, "translate", "-m", wide, "-m", other, stdin=joined(LINES))
    assert (done.code, done.out, done.err) == (0, joined(both), "")


def test_the_same_model_twice_is_the_model(
    tmp_path: Path, wide: Path, expected: list[list[Translation]]
) -> None:
    twice = Translator.load(wide, wide, device="cpu").n_best(LINES, 2)
    assert [[one.text for one in best] for best in twice] == [
        [one.text for one in best] for best in expected
    ]
    scores = [one.score for best in twice for one in best]
    assert scores == pytest.approx([one.score for best in expected for one in best], abs=1e-4)


def test_unlike_members_are_refused(
    inside: Inside, tmp_path: Path, wide: Path, recipe: Recipe, prepared: Prepared
) -> None:
    """The same sizes, but the target's words are the source's."""
    source = prepared.source_tokenizer
    torch.manual_seed(1)
    model = build(
        recipe.model,
        source_vocabulary=source.size,
        target_vocabulary=source.size,
    )
    save_model(tmp_path / "unlike.safetensors", model, recipe, (source, source), {})
    done = inside(tmp_path, "translate", "-m", wide, "-m", "unlike.safetensors")
    assert_message(done, str(wide), "unlike.safetensors", "target")


def test_the_model_is_the_named_one_or_that_of_the_environment_or_the_newest(
    tmp_path: Path, wide: Path, other: Path, recipe: Recipe, prepared: Prepared
) -> None:
    """A newer run without validation has no best model, and still comes before an older one."""
    for age, run, name in ((300, "old", "best"), (200, "new", "last"), (900, "older", "best")):
        path = tmp_path / "runs" / run / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes({"new": wide, "old": other, "older": other}[run].read_bytes())
        os.utime(path, (1_700_000_000 - age,) * 2)
    ours, theirs = (
        joined(Translator.load(one, device="cpu").translate(LINES)) for one in (wide, other)
    )
    newest = s2s(tmp_path, "translate", stdin=joined(LINES))
    note = "model: runs/new/last.safetensors\n"
    assert (newest.code, newest.out, newest.err) == (0, ours, note)
    named = s2s(tmp_path, "translate", "-q", stdin=joined(LINES), S2S_MODEL="runs/old")
    assert (named.code, named.out, named.err) == (0, theirs, "")
    path = str(wide)
    option = s2s(tmp_path, "translate", "-m", path, stdin=joined(LINES), S2S_MODEL="runs/old")
    assert (option.code, option.out, option.err) == (0, ours, "")


def test_without_a_model_there_is_advice(inside: Inside, tmp_path: Path) -> None:
    assert_message(inside(tmp_path, "translate"), "-m", "S2S_MODEL", "s2s train")
    assert_message(inside(tmp_path, "translate", "-m", "nowhere"), "nowhere")


def test_an_empty_name_is_not_the_newest_model(
    inside: Inside, workplace: Path, trained: Done
) -> None:
    """As from a shell's variable that is not set: `-m "$MODEL"`."""
    assert_message(inside(workplace, "translate", "-m", ""), "best.safetensors")


def test_no_lines_in_no_lines_out(tmp_path: Path, wide: Path) -> None:
    """And the compiler of torch, as slow to import as all the rest, is left alone."""
    done = run(tmp_path, [*IMPORTED, "translate", "-m", str(wide)])
    assert (done.code, done.out) == (0, "")
    assert "torch" in done.err.split()
    assert "torch._dynamo" not in done.err.split()


def test_a_device_stays_a_device(tmp_path: Path, wide: Path) -> None:
    """The superuser, who could replace /dev/null, gets one to play with."""
    device = Path("/dev/null")
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            device = tmp_path / "null"
    done = s2s(tmp_path, "translate", "-m", wide, "-o", device, stdin=joined(LINES))
    assert (done.code, done.out, done.err) == (0, "", "")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """As /dev/stdout is one."""
    (tmp_path / "link").symlink_to("target")
    with writing(str(tmp_path / "link")) as file:
        file.write(b"text")
    assert (tmp_path / "link").readlink() == Path("target")
    assert (tmp_path / "target").read_bytes() == b"text"


@pytest.mark.parametrize("place", [".", "missing/out", "file/out"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises((DataError, ModelError), match=f"cannot write {tmp_path / place}: [A-Z]"),
        writing(str(tmp_path / place)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path, wide: Path) -> None:
    """As `| head -1` does. The second line is sent when nobody reads any more."""
    with started(tmp_path, "translate", "-q", "-m", wide) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one two three\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\n")
        process.stdout.close()
        process.stdin.write(b"ten\n")
        process.stdin.flush()
        process.wait()
        assert (process.returncode, process.stderr.read()) == (0, b"")


def test_head_sees_the_first_line(tmp_path: Path, wide: Path) -> None:
    (tmp_path / "in").write_text(joined(["one two three"] * 700))
    command = f"{sys.executable} -m s2s_cli translate -q -m {wide} -i in | head -1"
    done = run(tmp_path, ["sh", "-c", command])
    assert (done.code, done.out.count("\n"), done.err) == (0, 1, "")


def test_ctrl_c_ends_a_translation_quietly(tmp_path: Path, wide: Path) -> None:
    with started(tmp_path, "translate", "-q", "-m", wide) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.wait()
        assert (process.returncode, process.stderr.read()) == (130, b"")


def test_half_a_translation_replaces_nothing(tmp_path: Path, wide: Path) -> None:
    """Killed by SIGTERM with the first line written, it leaves no file of its own behind."""
    (tmp_path / "out").write_text("what was there before")
    os.mkfifo(tmp_path / "in")
    with started(tmp_path, "translate", "-m", wide, "-i", "in", "-o", "out") as process:
        with open(tmp_path / "in", "wb", buffering=0) as source:
            source.write(b"one two three\n")
            while not any(path.stat().st_size for path in tmp_path.glob(".out.*")):
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            process.wait()
        assert process.returncode == 143
    assert (tmp_path / "out").read_text() == "what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


# --- info, recipes, version ------------------------------------------------------------------


def test_info_tells_what_is_inside(workplace: Path, trained: Done, recipe_file: Path) -> None:
    done = s2s(workplace, "info", "runs/tiny")
    assert (done.code, done.err) == (0, "")
    facts, _, tensors = done.out.partition("\n\n")
    found = {line[:12].strip(): line[12:].strip() for line in facts.splitlines()}
    assert found["file"] == "runs/tiny/best.safetensors"
    assert found["update"] == "4"
    assert found["parameters"].replace(",", "").isdecimal()
    assert found["source"] == "13 entries, read in reverse"
    assert found["target"] == "13 entries"
    shapes = [json.loads(line.split("  ")[1]) for line in tensors.splitlines()]
    counted = sum(torch.Size(shape).numel() for shape in shapes)
    assert counted == int(found["parameters"].replace(",", ""))


def test_info_gives_the_recipe_back(
    workplace: Path, trained: Done, recipe_file: Path, tmp_path: Path
) -> None:
    done = s2s(workplace, "info", "--recipe", "runs/tiny/last.safetensors")
    assert (done.code, done.err) == (0, "")
    (tmp_path / "again.toml").write_text(done.out)
    assert load(str(tmp_path / "again.toml")) == load(str(recipe_file), SHORT)


def test_recipes_are_listed(tmp_path: Path) -> None:
    done = s2s(tmp_path, "recipes")
    assert (done.code, done.err) == (0, "")
    found = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert [name for name, _ in found] == sorted(packaged())
    assert all(about == load(name).about for name, about in found)
    alone = s2s(tmp_path, "recipes", "--set", "optimizer.lr=1.0")
    assert (alone.code, alone.out) == (2, "")


def test_recipes_tell_their_parameters(tmp_path: Path) -> None:
    done = s2s(tmp_path, "recipes", "-v")
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert lines.keys() == packaged().keys()
    assert " 384,144,000  Sutskever" in lines["sutskever2014/wmt14-en-fr"]
    one = s2s(tmp_path, "recipes", "sutskever2014/wmt14-en-fr", "-v")
    assert (one.code, one.err) == (0, "384,144,000 parameters\n")
    assert "parameters" not in one.out


def test_a_recipe_is_printed_resolved(tmp_path: Path) -> None:
    done = s2s(tmp_path, "recipes", "quickstart", "--set", "training.epochs=2.5")
    assert (done.code, done.err) == (0, "")
    (tmp_path / "copy.toml").write_text(done.out)
    assert load(str(tmp_path / "copy.toml")) == load("quickstart", ["training.epochs=2.5"])
    assert tomllib.loads(done.out)["search"]["beam_size"] == 5  # defaults are written out


def test_version(tmp_path: Path) -> None:
    done = s2s(tmp_path, "--version")
    assert (done.code, done.out, done.err) == (0, f"s2s {s2s_cli.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "-r", "bad.toml"], 1),
        (["translate", "--beam-size", "0"], 2),
        (["nonsense"], 2),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    (tmp_path / "bad.toml").write_text("[model]\nhiden = 3\n")
    done = run(tmp_path, [*IMPORTED, *arguments])
    assert done.code == code
    imported = done.err.splitlines()[-1].split()
    assert "s2s_cli.app" in imported
    assert not {"torch", "datasets"} & set(imported)


# --- how it ends -----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, corpus: Path, recipe_file: Path) -> Path:
    """A folder with the tiny recipe and its text, to spoil."""
    for path in corpus.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def spoil(path: Path, content: bytes) -> None:
    assert path.is_file()
    path.write_bytes(content)


def test_mistakes_in_a_recipe_are_listed(place: Path) -> None:
    """A line for each, after one that counts them."""
    changes = settings("optimizer.lrr=1.0", "training.epocs=3", "search.beam_size=0")
    done = s2s(place, "train", "-r", "tiny.toml", *changes)
    assert_message(done, "3 mistakes", "tiny.toml", "`lr`", "`epochs`", "beam_size = 0", lines=4)


def test_a_missing_recipe(place: Path) -> None:
    assert_message(s2s(place, "prepare", "-r", "tiny.tmol"), "`tiny.tmol`", "`s2s recipes` lists")
    assert_message(s2s(place, "prepare", "-r", "quikstart"), "did you mean `quickstart`")
    assert_message(s2s(place, "prepare", "-r", "~no-such-user/tiny.toml"), "~no-such-user")


def test_a_missing_text(place: Path) -> None:
    (place / "train.target").unlink()
    assert_message(s2s(place, "prepare", "-r", "tiny.toml"), str(place / "train.target"))


def test_unequal_texts(place: Path) -> None:
    spoil(place / "train.target", b"un\n" * 59)
    done = s2s(place, "prepare", "-r", "tiny.toml")
    assert "training the tokenizer" in done.err
    assert_message(done, "train.source has 60 lines", "train.target has 59")


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_empty_texts(place: Path, content: bytes) -> None:
    spoil(place / "train.source", content)
    spoil(place / "train.target", content)
    assert_message(s2s(place, "prepare", "-r", "tiny.toml"), "no training pairs", "train.source")
    assert not list(place.glob("prepared/*"))


def test_text_that_is_not_utf8(place: Path) -> None:
    lines = (place / "train.source").read_bytes().split(b"\n")
    lines[41] = "zwölf".encode("latin-1")
    spoil(place / "train.source", b"\n".join(lines))
    done = s2s(place, "prepare", "-r", "tiny.toml")
    assert_message(done, str(place / "train.source"), "line 42", "UTF-8", "iconv")


def test_half_a_model(inside: Inside, tmp_path: Path, wide: Path) -> None:
    content = wide.read_bytes()
    (tmp_path / "half.safetensors").write_bytes(content[: len(content) // 2])
    done = inside(tmp_path, "translate", "-m", "half.safetensors")
    assert_message(done, "half.safetensors", "cut short")


def test_the_state_of_a_training_is_no_model(
    inside: Inside, workplace: Path, trained: Done
) -> None:
    done = inside(workplace, "info", "runs/tiny/state.safetensors")
    assert_message(done, "runs/tiny/state.safetensors", "best.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(
    inside: Inside, tmp_path: Path, wide: Path, recipe_file: Path
) -> None:
    done = inside(tmp_path, "translate", "-m", wide, "--device", "cuda")
    assert_message(done, "--device cuda", "--device cpu")
    done = inside(tmp_path, "train", "-r", recipe_file, "--device", "cuda:3")
    assert_message(done, "--device cuda:3", "--device cpu")
    assert not list(tmp_path.iterdir())


def test_nothing_to_evaluate(place: Path) -> None:
    assert_message(s2s(place, "evaluate", "train.target"), "stdin has 0 lines")


def test_a_missing_input(inside: Inside, tmp_path: Path, wide: Path) -> None:
    for path, said in (("nowhere", "No such file"), (".", "Is a directory")):
        done = inside(tmp_path, "translate", "-m", wide, "-i", path)
        assert_message(done, f"cannot read {path}: {said}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare"],
        ["prepare", "-r", "tiny.toml", "--n-best", "1"],
        ["translate", "--format", "xml"],
        ["translate", "--length_penalty", "1"],
        ["translate", "--length-penalty", "nan"],
        ["translate", "--threads", "1000000"],
        ["train", "-r", "tiny.toml", "--threads", "-1"],
        ["recipes", "a", "b"],
    ],
)
def test_mistaken_use_ends_with_2(place: Path, arguments: list[str]) -> None:
    done = s2s(place, *arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err
    assert "Traceback" not in done.err


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """Nobody reads from the start; what is printed at the end meets a closed pipe."""
    with started(tmp_path, "recipes") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.wait()
        assert (process.returncode, process.stderr.read()) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, ["sh", "-c", f"{sys.executable} -m s2s_cli recipes >/dev/full"])
    assert (done.code, done.err) == (1, "error: No space left on device\n")


def test_closed_streams_are_empty_ones(place: Path) -> None:
    command = f"{sys.executable} -m s2s_cli"
    none = run(place, ["sh", "-c", f"{command} evaluate train.target <&-"])
    assert_message(none, "stdin has 0 lines")
    nowhere = run(place, ["sh", "-c", f"{command} recipes >&-"])
    assert (nowhere.code, nowhere.out, nowhere.err) == (0, "", "")


# --- terminals -------------------------------------------------------------------------------


def on_a_terminal(folder: Path, *arguments: str | Path, **environment: str) -> str:
    """What a command writes on a terminal that is its stdin and stderr; two lines are typed."""
    ours, theirs = pty.openpty()
    with (
        subprocess.Popen(
            words(*arguments),
            stdin=theirs,
            stderr=theirs,
            cwd=folder,
            env=CLEAN | {"TERM": "xterm-256color"} | environment,
        ) as process,
        killed_if_it_hangs(process),
    ):
        os.close(theirs)
        os.write(ours, b"one\n\n\x04")
        parts = []
        with contextlib.suppress(OSError):  # Linux tells of the other side's end in this way
            while part := os.read(ours, 1 << 16):
                parts.append(part)
    os.close(ours)
    return b"".join(parts).decode()


def test_colours_are_for_terminals_and_can_be_forbidden(place: Path) -> None:
    mistaken = ("prepare", "-r", "nowhere.toml")
    assert "\x1b[" in on_a_terminal(place, *mistaken)
    plain = on_a_terminal(place, *mistaken, NO_COLOR="1")
    assert "error: there is no recipe" in plain
    assert "\x1b" not in plain
    assert "\x1b" not in s2s(place, *mistaken).err


def test_a_terminal_is_told_that_lines_are_awaited(tmp_path: Path, wide: Path) -> None:
    (tmp_path / "in").write_text("one\n")
    typed = on_a_terminal(tmp_path, "translate", "-m", wide, "-o", "out", NO_COLOR="1")
    assert typed.count("Ctrl-D") == 1
    known = joined(Translator.load(wide, device="cpu").translate(["one", ""]))
    assert (tmp_path / "out").read_text() == known
    given = on_a_terminal(tmp_path, "translate", "-m", wide, "-i", "in", "-o", "out", NO_COLOR="1")
    assert "Ctrl-D" not in given
