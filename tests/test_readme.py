"""README's commands and its Python, run as they stand, with their budgets cut."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2s_cli.core.recipe import packaged
from s2s_cli.core.translator import Translator

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = "".join(
    f" --set {change}"
    for change in (
        "training.max_updates=12",
        "training.log_every=4",
        "data.train.limit=300",
        "data.validation.limit=20",
        *(
            f"model.{side}.{key}=24"
            for side in ("encoder", "decoder")
            for key in ("embedding", "hidden")
        ),
    )
)


def blocks(language: str) -> list[str]:
    """README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def cut(command: str) -> str:
    """The command with a small budget where it trains or prepares."""
    is_long = re.match(r"s2s (train|prepare) ", command)
    # Few sentences have few subwords.
    fewer = " --set tokenizer.model.vocabulary=200" if "mine.toml" in command else ""
    return command + SMALL + fewer if is_long else command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a checkout, with a person's own text and recipe beside it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for split in ("train", "dev"):
        for language in ("en", "fr"):
            name = f"{split}.{language}"
            (folder / name).symlink_to(ROOT / "recipes/data/tatoeba-en-fr" / name)
    (recipe,) = blocks("toml")
    (folder / "mine.toml").write_text(recipe)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command line by a shell in which `s2s` is this source."""
    function = f's2s() {{ "{sys.executable}" -m s2s_cli "$@"; }}; set -o pipefail; '
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", function + command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


def test_commands_run_in_their_order(folder: Path) -> None:
    assert len(COMMANDS) >= 10
    outputs = {}
    for command in COMMANDS:
        done = run(cut(command), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout or ">" in command, f"{command} printed nothing"
        outputs[command] = done.stdout
    assert outputs["s2s train --recipe quickstart"] == "runs/quickstart\n"
    scored = "s2s evaluate recipes/data/tatoeba-en-fr/test.fr < out.fr"
    assert re.match(r"BLEU \d+\.\d\d\n", outputs[scored])


def test_python_equals_the_pipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (folder / "runs/quickstart").exists():
        run(cut("s2s train --recipe quickstart"), folder)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    lines = ["Where is my book?", "", "I am happy."]
    (folder / "lines.en").write_text("".join(f"{line}\n" for line in lines))
    piped = run("s2s translate -q -m runs/quickstart < lines.en", folder).stdout
    assert printed == f"{piped.split(chr(10))[:-1]}\n"
    assert piped.count("\n") == 3
    assert Translator.load("runs/quickstart").translate(lines) == piped.split("\n")[:-1]


def test_table_of_recipes_is_complete() -> None:
    listed = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
    assert listed == list(packaged())


def test_paths_in_readme_exist() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
