"""A run's folder and a prepared corpus keep what is in them, and what cannot go on says so."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s2s_cli.core import checkpoint
from s2s_cli.core.checkpoint import read_header
from s2s_cli.core.corpus import contents
from s2s_cli.core.errors import DivergedError, ModelError
from s2s_cli.core.events import Event
from s2s_cli.core.prepared import Prepared, fingerprint, prepare
from s2s_cli.core.prepared import preparation as making
from s2s_cli.core.recipe import load
from s2s_cli.core.recipe.schema import HubDataset
from s2s_cli.core.trainer import Trainer, check_run

CPU = torch.device("cpu")
SHORT = ["training.max_updates=3"]


def train(recipe_file: Path, prepared: Prepared, folder: Path, *changes: str) -> list[Event]:
    recipe = load(str(recipe_file), [*SHORT, *changes])
    return list(Trainer(recipe, prepared, folder, CPU).train())


def test_a_persons_own_recipe_is_not_overwritten(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    own = folder / "recipe.toml"
    own.write_text(f'# my notes\nextends = "{recipe_file}"\n')
    recipe = load(str(own), ["name=tiny"])
    with pytest.raises(ModelError, match="no run"):
        check_run(folder, recipe)
    assert own.read_text().startswith("# my notes")


def test_a_model_without_its_state_is_not_trained_anew(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    train(recipe_file, prepared, tmp_path / "run")
    (tmp_path / "run" / checkpoint.STATE).unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ModelError, match="is gone"):
        train(recipe_file, prepared, tmp_path / "run", "training.max_updates=6")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_weights_that_overflow_in_the_last_step_are_not_saved(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    """Loss and norm of the update were finite; its step was not."""
    changes = ["optimizer.kind=sgd", "optimizer.lr=3e38", "training.clip=0.0"]
    with pytest.raises(DivergedError, match="nothing was saved yet"):
        train(recipe_file, prepared, tmp_path / "run", *changes, "training.validate_every=1")
    recipe = load(str(recipe_file), [*SHORT, *changes, "training.save_every=1"])
    trainer = Trainer(recipe, without_validation(prepared), tmp_path / "other", CPU)
    with pytest.raises(DivergedError, match="weights"):
        list(trainer.train())
    for folder in (tmp_path / "run", tmp_path / "other"):
        assert not list(folder.glob("*.safetensors"))


def without_validation(prepared: Prepared) -> Prepared:
    return Prepared(**{**vars(prepared), "validation": None, "validation_references": []})


def test_the_last_model_tells_its_scores_and_its_data(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    train(recipe_file, prepared, tmp_path / "run")
    results = read_header(tmp_path / "run" / checkpoint.LAST)["results"]
    assert results["update"] == 3
    assert results["perplexity"] > 1
    assert set(results["sha256"]) == {"train", "validation"}


def test_arms_of_an_ablation_share_a_corpus(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reverse = load(str(recipe_file), ["name=reverse"])
    forward = load(str(recipe_file), ["name=forward", "model.reverse_source=false"])
    assert fingerprint(reverse) == fingerprint(forward)
    assert prepare(reverse).folder == prepare(forward).folder
    assert len(list((tmp_path / "prepared").iterdir())) == 1


def test_a_corpus_that_another_process_has_made_meanwhile_is_opened(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(str(recipe_file))
    made = prepare(recipe, tmp_path / "made").folder
    write: Callable[..., None] = making._write

    def slow(*arguments: object) -> None:
        write(*arguments)
        shutil.copytree(made, tmp_path / "both")

    monkeypatch.setattr(making, "_write", slow)
    assert prepare(recipe, tmp_path / "both").folder == tmp_path / "both"
    assert not list(tmp_path.glob(".both*"))


def test_a_local_data_set_is_known_by_its_files_and_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "train-0.parquet").write_bytes(b"one")
    spec = HubDataset(
        kind="hub", dataset=str(folder), source_column="source", target_column="target"
    )
    first = contents(spec)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes").write_text("a downloader's")
    assert contents(spec) == first
    (folder / "train-0.parquet").rename(folder / "validation-0.parquet")
    assert contents(spec) != first
