"""The shape of the code: who may import whom, and what must not be imported to answer at once."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "s2s_cli"
CORE = PACKAGE / "core"

# A module of core may import only what stands left of it.
ORDER = [
    *("errors", "recipe", "tokenizer", "corpus", "prepared", "batches", "model", "device"),
    *("checkpoint", "search", "translator", "metrics", "schedule", "events", "trainer"),
]

# Each outside library comes in by one door.
DOORS = {
    "sentencepiece": ("core/tokenizer.py",),
    "sacremoses": ("core/tokenizer.py",),
    "datasets": ("core/corpus/",),
    "sacrebleu": ("core/metrics.py",),
    "safetensors": ("core/checkpoint.py",),
    "typer": ("app.py", "commands/"),
    "rich": ("app.py", "commands/"),
}

SLOW = {"torch", "datasets", "sentencepiece"}

RECIPE = """
[data.train]
kind = "text"
source = "a"
target = "b"

[tokenizer]
kind = "shared"
model = { kind = "char", vocabulary = 100 }

[model]
encoder = { layers = 1, embedding = 2, hidden = 3 }
decoder = { kind = "plain", layers = 1, embedding = 2, hidden = 3 }

[optimizer]
kind = "sgd"
learning_rate = 0.7
"""


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dotted names of what a file imports, in functions too, and the lines where it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def parsed(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """The files below a folder, by their path in the package."""
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield path.relative_to(PACKAGE).as_posix(), tree


def module_of(file: str) -> str:
    """The module of core that a file belongs to; a package counts as one."""
    return file.split("/")[1].removesuffix(".py")


def test_the_order_names_every_module_of_core() -> None:
    found = {module_of(file) for file, _ in parsed(CORE)} - {"__init__"}
    assert found == set(ORDER)


def test_core_imports_only_what_stands_left() -> None:
    wrong = []
    for file, tree in parsed(CORE):
        place = module_of(file)
        allowed = [] if place == "__init__" else ORDER[: ORDER.index(place) + 1]
        for name, line in imports(tree):
            parts = name.split(".")
            if parts[0] != "s2s_cli" or name == "s2s_cli.__version__":
                continue
            if parts[1] != "core" or parts[2] not in allowed:
                wrong.append(f"{file}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("library", DOORS)
def test_an_outside_library_comes_in_by_one_door(library: str) -> None:
    users = [
        (file, line)
        for file, tree in parsed(PACKAGE)
        for name, line in imports(tree)
        if name.split(".")[0] == library
    ]
    assert users
    assert [f"{file}:{line}" for file, line in users if not file.startswith(DOORS[library])] == []


def is_main_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def test_core_never_prints() -> None:
    spoken = []
    for file, tree in parsed(CORE):
        body = [node for node in tree.body if not is_main_block(node)]
        for node in (inner for outer in body for inner in ast.walk(outer)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                spoken.append(f"{file}:{node.lineno} prints")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {
                "sys.stdout",
                "sys.stderr",
            }:
                spoken.append(f"{file}:{node.lineno} has {ast.unparse(node)}")
    assert spoken == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--help",), 0, "Usage"),
        (("train", "--help"), 0, "--recipe"),
        (("recipes",), 0, "quickstart"),
        (("train", "--recipe", "mistaken.toml"), 1, "optimizer.learning_rate"),
        (("prepare", "--recipe", "mistaken.toml"), 1, "optimizer.learning_rate"),
        (("train", "--recipe", "quickstrat"), 1, "did you mean `quickstart`"),
    ],
)
def test_answers_at_once(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mistaken.toml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "s2s_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    imported = set(re.findall(r"^import time:.*\|\s*([\w.]+)$", done.stderr, re.MULTILINE))
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "s2s_cli.app" in imported
    assert imported & SLOW == set()
