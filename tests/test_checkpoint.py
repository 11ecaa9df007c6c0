"""Model files: the same bits again, whole or not at all, and one clear message for each damage."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from s2s_cli.core import checkpoint
from s2s_cli.core.checkpoint import (
    find_model,
    load_model,
    load_tensors,
    read_header,
    replacing,
    save_model,
    save_tensors,
)
from s2s_cli.core.errors import ModelError
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.prepared import Prepared, prepare
from s2s_cli.core.recipe import Recipe, load
from s2s_cli.core.trainer import run

CPU = torch.device("cpu")
RESULTS = {"update": 12, "epoch": 1.5, "perplexity": 3.25, "data": "é\u2028"}


@pytest.fixture
def saved(tmp_path: Path, model: Seq2Seq, recipe: Recipe, prepared: Prepared) -> Path:
    """A model file."""
    path = tmp_path / "model.safetensors"
    tokenizers = (prepared.source_tokenizer, prepared.target_tokenizer)
    save_model(path, model, recipe, tokenizers, RESULTS)
    return path


def header_and_data(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """A safetensors file, read as its format says: eight bytes of length, JSON, numbers."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- what goes in comes out ------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(
    saved: Path, model: Seq2Seq, recipe: Recipe, prepared: Prepared
) -> None:
    loaded = load_model(saved, CPU)
    ours, theirs = model.state_dict(), loaded.model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name
    assert loaded.recipe == recipe
    assert loaded.source_tokenizer.to_bytes() == prepared.source_tokenizer.to_bytes()
    assert loaded.target_tokenizer.to_bytes() == prepared.target_tokenizer.to_bytes()
    assert loaded.source_tokenizer.to_bytes() != loaded.target_tokenizer.to_bytes()
    assert loaded.header["results"] == RESULTS
    assert not loaded.model.training
    assert all(module.training is False for module in loaded.model.modules())
    assert read_header(saved) == loaded.header


def test_not_a_number_and_infinity_survive(
    tmp_path: Path, model: Seq2Seq, recipe: Recipe, prepared: Prepared
) -> None:
    with torch.no_grad():
        bias = model.decoder.output.bias
        bias[:4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    tokenizers = (prepared.source_tokenizer, prepared.target_tokenizer)
    save_model(tmp_path / "m", model, recipe, tokenizers, {})
    again = load_model(tmp_path / "m", CPU).model.decoder.output.bias
    assert torch.equal(again.view(torch.int32), bias.view(torch.int32))


def test_a_loaded_model_saved_again_is_the_same_file(saved: Path, tmp_path: Path) -> None:
    loaded = load_model(saved, CPU)
    again = tmp_path / "again.safetensors"
    tokenizers = (loaded.source_tokenizer, loaded.target_tokenizer)
    save_model(again, loaded.model, loaded.recipe, tokenizers, loaded.header["results"])
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_a_sentencepiece_model_travels_inside(
    kind: str, recipe_file: Path, tmp_path: Path, corpus: Path
) -> None:
    from s2s_cli.core.model import build

    changes = ["tokenizer.kind=shared", f"tokenizer.model={{kind='{kind}', vocabulary=40}}"]
    recipe = load(str(recipe_file), changes)
    prepared = prepare(recipe, tmp_path / "prepared")
    size = prepared.source_tokenizer.size
    fresh = build(recipe.model, source_vocabulary=size, target_vocabulary=size)
    tokenizers = (prepared.source_tokenizer, prepared.target_tokenizer)
    save_model(tmp_path / "m.safetensors", fresh, recipe, tokenizers, {})
    loaded = load_model(tmp_path / "m.safetensors", CPU)
    lines = (corpus / "validation.source").read_text(encoding="utf-8").splitlines()
    for one, other in zip(
        tokenizers, (loaded.source_tokenizer, loaded.target_tokenizer), strict=True
    ):
        assert other.to_bytes() == one.to_bytes()
        assert other.encode(lines) == one.encode(lines)
        assert other.decode(other.encode(lines)) == lines


def test_the_file_is_plain_safetensors_and_nothing_is_pickled(saved: Path) -> None:
    header, data = header_and_data(saved)
    metadata = header.pop("__metadata__")
    assert set(metadata) == {"s2s"}
    facts = json.loads(str(metadata["s2s"]))
    assert set(facts) == {"format", "s2s", "recipe", "results"}
    # Every byte after the header belongs to a tensor of plain numbers.
    spans = []
    for name, facts in header.items():
        is_text = name in ("source.tokenizer", "target.tokenizer")
        assert facts["dtype"] == ("U8" if is_text else "F32"), name
        assert is_text or name.startswith("model."), name
        spans.append(tuple(facts["data_offsets"]))
    spans.sort()
    assert spans[0][0] == 0
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
    assert spans[-1][1] == len(data)
    # torch's and Python's pickles begin so.
    assert not saved.read_bytes().startswith((b"PK\x03\x04", b"\x80"))


# --- damage ----------------------------------------------------------------------------------


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_byte_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def random_bytes(path: Path) -> None:
    path.write_bytes(torch.randint(256, (5000,), dtype=torch.uint8).numpy().tobytes())


def text(path: Path) -> None:
    path.write_text("This is not a model.\n" * 10, encoding="utf-8")


def another_safetensors_file(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def another_with_metadata(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_in_half, "is damaged, cut short, or not a model file"),
        (cut_in_the_header, "is damaged, cut short, or not a model file"),
        (emptied, "is damaged, cut short, or not a model file"),
        (a_byte_short, "is damaged, cut short, or not a model file"),
        (random_bytes, "is damaged, cut short, or not a model file"),
        (text, "is damaged, cut short, or not a model file"),
        (a_directory, "is damaged, cut short, or not a model file"),
        (another_safetensors_file, "is not a model of s2s"),
        (another_with_metadata, "is not a model of s2s"),
        (missing, "there is no model file"),
    ],
)
def test_a_damaged_file_is_one_clear_message(
    saved: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(saved)
    for read in (lambda: load_model(saved, CPU), lambda: read_header(saved)):
        with pytest.raises(ModelError, match=re.escape(message)) as caught:
            read()
        assert str(saved) in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3
        assert caught.value.exit_code == 1


def rewritten(
    path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, object]], None]
) -> None:
    """The file again, with other tensors or another header."""
    tensors, header = load_tensors(path)
    change(tensors, header)
    save_tensors(path, tensors, header)


def test_a_newer_format_names_the_version_that_reads_it(saved: Path) -> None:
    rewritten(saved, lambda _, header: header.update(format=checkpoint.FORMAT + 1, s2s="9.9"))
    with pytest.raises(ModelError, match=r"format 2, written by s2s 9\.9.*reads up to format 1"):
        load_model(saved, CPU)
    rewritten_to_ours = saved.with_name("ours")
    save_tensors(rewritten_to_ours, {}, {"format": checkpoint.FORMAT})
    assert read_header(rewritten_to_ours)["format"] == checkpoint.FORMAT


@pytest.mark.parametrize("lost", ["source.tokenizer", "model.decoder.output.bias"])
def test_a_file_that_lacks_a_part_is_damaged(saved: Path, lost: str) -> None:
    rewritten(saved, lambda tensors, _: tensors.pop(lost))
    with pytest.raises(ModelError, match="is damaged") as caught:
        load_model(saved, CPU)
    assert lost.removeprefix("model.") in str(caught.value)


def test_parts_that_do_not_fit_are_damage(saved: Path) -> None:
    def other_size(tensors: dict[str, torch.Tensor], _: dict[str, object]) -> None:
        tensors["model.decoder.output.bias"] = torch.zeros(3)

    rewritten(saved, other_size)
    with pytest.raises(ModelError, match="is damaged"):
        load_model(saved, CPU)


def test_a_spoiled_tokenizer_is_damage(saved: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor], _: dict[str, object]) -> None:
        tensors["source.tokenizer"][0] = 255

    rewritten(saved, spoil)
    with pytest.raises(ModelError, match="is damaged"):
        load_model(saved, CPU)


def test_a_training_state_is_no_model(tmp_path: Path) -> None:
    """It lies beside the models, so it will be named by mistake."""
    state = run.SavedState(
        place=run.Place(),
        model={"w": torch.zeros(1)},
        average={},
        optimizer={"state": {}, "param_groups": []},
        random={},
        scaler={},
    )
    run.save_state(tmp_path, state, "fingerprint")
    path = tmp_path / checkpoint.STATE
    with pytest.raises(ModelError, match="is the state of a training, not a model") as caught:
        load_model(path, CPU)
    assert str(path) in str(caught.value)


# --- whole or not at all ---------------------------------------------------------------------


def test_replacing_puts_the_new_file_in_the_old_one_s_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"another"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent  # a rename does not leave the file system
            before = path.read_bytes() if path.exists() else None
            temporary.write_bytes(content)
            assert (path.read_bytes() if path.exists() else None) == before
        assert files_in(tmp_path) == {"file": content}
    # As readable as any file that one makes here.
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def fail_half_way(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise error


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), ModelError()])
@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_what_was_there(tmp_path: Path, there: bool, error: BaseException) -> None:
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")
    with pytest.raises(type(error)):
        fail_half_way(path, error)
    assert files_in(tmp_path) == ({"file": b"old"} if there else {})


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ModelError, match="No space left on device") as caught:
        fail_half_way(path, OSError(28, "No space left on device"))
    assert f"cannot write {path}" in str(caught.value)
    assert files_in(tmp_path) == {"file": b"old"}


def test_what_is_renamed_was_flushed_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine after the rename must not find an empty file."""
    steps: list[tuple[str, int]] = []
    replace = Path.replace

    def flush(number: int) -> None:
        steps.append(("flush", os.fstat(number).st_size))

    def rename(self: Path, target: Path) -> Path:
        steps.append(("rename", self.stat().st_size))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    with replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"content")
    assert steps[:2] == [("flush", 7), ("rename", 7)]


def test_a_folder_that_is_not_there_cannot_be_written_to(
    tmp_path: Path, model: Seq2Seq, recipe: Recipe, prepared: Prepared
) -> None:
    tokenizers = (prepared.source_tokenizer, prepared.target_tokenizer)
    with pytest.raises(ModelError, match="cannot write"):
        save_model(tmp_path / "nowhere" / "m", model, recipe, tokenizers, {})


# --- which model is meant --------------------------------------------------------------------


def make_run(folder: Path, *names: str, age: float) -> None:
    """A run's folder with these files, made `age` seconds ago."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
        now = (folder / name).stat().st_mtime
        os.utime(folder / name, (now - age, now - age))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with three runs; the newest by name is not the newest by time."""
    make_run(tmp_path / "runs" / "c", "best.safetensors", "last.safetensors", age=300)
    make_run(tmp_path / "runs" / "b", "best.safetensors", "last.safetensors", age=100)
    make_run(tmp_path / "runs" / "a", "best.safetensors", "last.safetensors", age=200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_itself(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2S_MODEL", "runs/b")
    assert find_model("runs/c/last.safetensors") == Path("runs/c/last.safetensors")
    assert find_model("some/file") == Path("some/file")


def test_a_run_s_folder_means_its_best_else_its_last(runs: Path) -> None:
    assert find_model("runs/c") == Path("runs/c/best.safetensors")
    Path("runs/c/best.safetensors").unlink()
    assert find_model("runs/c") == Path("runs/c/last.safetensors")
    Path("runs/c/last.safetensors").unlink()
    with pytest.raises(ModelError, match="the folder runs/c holds no"):
        find_model("runs/c")


def test_without_a_name_the_environment_says(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2S_MODEL", "runs/c")
    assert find_model(None) == Path("runs/c/best.safetensors")
    monkeypatch.setenv("S2S_MODEL", "")
    assert find_model(None) == Path("runs/b/best.safetensors")


def test_without_a_name_the_newest_run_is_meant(runs: Path) -> None:
    assert find_model(None) == Path("runs/b/best.safetensors")


def test_a_newest_run_without_validation_is_still_the_newest(runs: Path) -> None:
    make_run(runs / "runs" / "d", "last.safetensors", age=50)
    assert find_model(None) == Path("runs/d/last.safetensors")


def test_a_run_is_as_new_as_its_last_checkpoint(runs: Path) -> None:
    """Its best may be old."""
    make_run(runs / "runs" / "d", "best.safetensors", age=1000)
    (runs / "runs" / "d" / "last.safetensors").touch()
    assert find_model(None) == Path("runs/d/best.safetensors")


def test_no_run_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="s2s train"):
        find_model(None)
