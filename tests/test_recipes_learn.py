"""Third rung at full length: shipped recipes reach what they promise. Run with `make slow`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_cli.core.recipe import recipe_folder

DATA = recipe_folder() / "data"
ROOT = Path(__file__).resolve().parents[1]


def shell(command: str, folder: Path) -> str:
    """What a command line prints, by a shell in which `s2s` is this source."""
    function = f's2s() {{ "{sys.executable}" -m s2s_cli "$@"; }}; set -euo pipefail; '
    # Unlike the other tests, these train for minutes: torch may use all cores.
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.run(
        ["bash", "-c", function + command],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "source", "target", "metric", "least"),
    [
        ("toy-reverse", "toy-reverse/test.source", "toy-reverse/test.target", "exact", 99.0),
        ("quickstart", "tatoeba-en-fr/test.en", "tatoeba-en-fr/test.fr", "bleu", 41.0),
        ("quickstart-sutskever", "tatoeba-en-fr/test.en", "tatoeba-en-fr/test.fr", "bleu", 26.0),
    ],
)
def test_recipe_reaches_its_score(
    tmp_path: Path, recipe: str, source: str, target: str, metric: str, least: float
) -> None:
    assert shell(f"s2s train --recipe {recipe}", tmp_path) == f"runs/{recipe}\n"
    pipe = f"s2s translate < {DATA / source} | s2s evaluate -M {metric} {DATA / target}"
    printed = shell(pipe, tmp_path)
    print(f"{recipe}: {printed}")
    assert float(printed.split()[1]) >= least


def test_held_out_strings_are_not_trained_on() -> None:
    folder = DATA / "toy-reverse"
    splits = {
        split: (folder / f"{split}.source").read_text().split("\n")[:-1]
        for split in ("train", "dev", "test")
    }
    every = [line for lines in splits.values() for line in lines]
    assert len(set(every)) == len(every)
    assert len(splits["test"]) == 500
    symbols = {symbol for line in every for symbol in line.split()}
    assert len(symbols) == 20
    assert {len(line.split()) for line in every} == set(range(1, 21))
    for split, lines in splits.items():
        targets = (folder / f"{split}.target").read_text().split("\n")[:-1]
        assert targets == [line[::-1] for line in lines]
