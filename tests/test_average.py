"""`s2s average`: the mean of the weights of several models of one training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from s2s_cli.app import app
from s2s_cli.core.checkpoint import (
    average_models,
    kept_models,
    load_model,
    read_header,
    save_model,
)
from s2s_cli.core.errors import ModelError
from s2s_cli.core.model import build
from s2s_cli.core.prepared import Prepared
from s2s_cli.core.recipe import Recipe, load

CPU = torch.device("cpu")


def saved(path: Path, recipe: Recipe, prepared: Prepared, seed: int) -> Path:
    """A model file of random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizers = (prepared.source_tokenizer, prepared.target_tokenizer)
    sizes = [tokenizer.size for tokenizer in tokenizers]
    model = build(recipe.model, source_vocabulary=sizes[0], target_vocabulary=sizes[1])
    save_model(path, model, recipe, tokenizers, {"update": 10 * seed})
    return path


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe, prepared: Prepared) -> Path:
    """A run's folder that keeps three models."""
    for seed in (1, 2, 3):
        saved(tmp_path / "run" / "kept" / f"update-{seed}.safetensors", recipe, prepared, seed)
    return tmp_path / "run"


def test_every_weight_is_the_mean(run: Path, tmp_path: Path) -> None:
    paths = kept_models(run)
    members = [load_file(path) for path in paths]
    average_models(paths, tmp_path / "mean.safetensors")
    found = load_file(tmp_path / "mean.safetensors")
    assert found.keys() == members[0].keys()
    for name, tensor in found.items():
        if name.startswith("model."):
            expected = sum(member[name].double() for member in members) / 3
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
            assert not torch.equal(tensor, members[0][name])
        else:  # a tokenizer
            assert torch.equal(tensor, members[0][name])
    results = read_header(tmp_path / "mean.safetensors")["results"]
    assert results == {"update": 30, "averaged": [str(path) for path in paths]}


def test_the_average_of_one_is_the_model(run: Path, tmp_path: Path) -> None:
    (path, *_) = kept_models(run)
    average_models([path], tmp_path / "mean.safetensors")
    ours, theirs = load_file(tmp_path / "mean.safetensors"), load_file(path)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_the_command_averages_what_a_run_keeps(run: Path) -> None:
    result = CliRunner().invoke(app, ["average", str(run)])
    assert result.exit_code == 0
    assert result.stdout == f"{run}/average.safetensors\n"
    assert "the mean of 3 models" in result.stderr
    assert load_model(run / "average.safetensors", CPU).header["results"]["update"] == 30


def test_the_command_averages_named_files(run: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in kept_models(run)[:2]]
    output = str(tmp_path / "two.safetensors")
    result = CliRunner().invoke(app, ["average", *paths, "-o", output, "-q"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{output}\n", "")
    assert read_header(Path(output))["results"]["averaged"] == paths


def test_another_training_is_warned_of(
    run: Path, tmp_path: Path, prepared: Prepared, recipe_file: Path
) -> None:
    """The mean of networks that were never one is rarely any good."""
    other = load(str(recipe_file), ["training.seed=9"])
    path = saved(tmp_path / "other.safetensors", other, prepared, 4)
    (first, *_) = kept_models(run)
    output = tmp_path / "mean.safetensors"
    result = CliRunner().invoke(app, ["average", str(first), str(path), "-o", str(output)])
    assert result.exit_code == 0
    assert f"{path} is of another training than {first}" in result.stderr
    # A longer training is the same one.
    longer = load(str(recipe_file), ["training.epochs=9.0"])
    path = saved(tmp_path / "longer.safetensors", longer, prepared, 4)
    assert average_models([first, path], output) == []


@pytest.mark.parametrize("name", ["best", "last", "state", "kept/update-4"])
def test_what_a_training_writes_is_not_overwritten(run: Path, name: str) -> None:
    target = run / f"{name}.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(ModelError, match="a file that a training writes"):
        average_models(kept_models(run)[:2], target)
    assert target.read_bytes() == b"precious"


def test_the_same_model_twice_is_refused(run: Path, tmp_path: Path) -> None:
    (path, *_) = kept_models(run)
    again = path.parent / ".." / "kept" / path.name
    with pytest.raises(ModelError, match="twice"):
        average_models([path, again], tmp_path / "mean.safetensors")


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["average", str(tmp_path / "nope")])
    assert result.exit_code == 1
    assert "there is no model file" in result.stderr


def test_files_need_a_name_for_their_mean(run: Path) -> None:
    paths = [str(path) for path in kept_models(run)]
    result = CliRunner().invoke(app, ["average", *paths])
    assert result.exit_code == 2
    assert "-o" in result.stderr


def test_a_run_that_keeps_nothing_is_told_how_to(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"training\.keep_best"):
        kept_models(tmp_path)
    result = CliRunner().invoke(app, ["average", str(tmp_path)])
    assert result.exit_code == 1


def test_other_networks_are_refused(
    tmp_path: Path, recipe: Recipe, prepared: Prepared, recipe_file: Path
) -> None:
    wider = load(str(recipe_file), ["model.decoder.embedding=20"])
    forward = load(str(recipe_file), ["model.reverse_source=false"])
    first = saved(tmp_path / "first.safetensors", recipe, prepared, 1)
    for name, other in {"wider": wider, "forward": forward}.items():
        file = saved(tmp_path / f"{name}.safetensors", other, prepared, 2)
        with pytest.raises(ModelError, match="different networks"):
            average_models([first, file], tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_other_vocabularies_are_refused(tmp_path: Path, recipe: Recipe, prepared: Prepared) -> None:
    first = saved(tmp_path / "first.safetensors", recipe, prepared, 1)
    turned = Prepared(
        **{
            **vars(prepared),
            "source_tokenizer": prepared.target_tokenizer,
            "target_tokenizer": prepared.source_tokenizer,
        }
    )
    other = saved(tmp_path / "other.safetensors", recipe, turned, 2)
    with pytest.raises(ModelError, match="different source vocabularies"):
        average_models([first, other], tmp_path / "mean.safetensors")
