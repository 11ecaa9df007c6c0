"""A task learned to a threshold, from text to text: what no test of a part can promise."""

import random
from pathlib import Path

import pytest
import torch

from s2s_cli.core.events import Validated
from s2s_cli.core.prepared import prepare
from s2s_cli.core.recipe import load
from s2s_cli.core.trainer import Trainer
from s2s_cli.core.translator import Translator

SYMBOLS = "abcdefgh"
LONGEST = 6

RECIPE = """
[data.train]
kind = "text"
source = "train.source"
target = "train.target"

[data.validation]
kind = "text"
source = "validation.source"
target = "validation.target"

[tokenizer]
kind = "shared"
model = { kind = "words", vocabulary = 20 }

[batches]
size = 64

[model.encoder]
layers = 1
embedding = 16
hidden = 96

[model.decoder]
kind = "plain"
layers = 1
embedding = 16
hidden = 96

[optimizer]
kind = "adam"
lr = 0.006

[schedule]
kind = "halving"
start = 12.0
every = 1.0

[training]
epochs = 16.0
clip = 1.0
loss_per = "word"

[evaluation]
metrics = ["exact"]
select = "exact"
"""


def write_task(folder: Path) -> tuple[list[str], list[str]]:
    """Strings of 1 to 6 symbols and the same turned round; returns held-out lines of both."""
    generator = random.Random(5)
    strings: dict[str, None] = {}  # in order, each once
    while len(strings) < 4200:
        length = generator.randint(1, LONGEST)
        strings[" ".join(generator.choices(SYMBOLS, k=length))] = None
    sources = list(strings)
    generator.shuffle(sources)
    targets = [source[::-1] for source in sources]
    for split, part in {"train": slice(400, None), "validation": slice(100)}.items():
        for side, lines in (("source", sources), ("target", targets)):
            text = "".join(f"{line}\n" for line in lines[part])
            (folder / f"{split}.{side}").write_text(text, encoding="utf-8")
    (folder / "reverse.toml").write_text(RECIPE, encoding="utf-8")
    return sources[100:400], targets[100:400]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_small_model_learns_to_reverse(cell: str, tmp_path: Path) -> None:
    sources, targets = write_task(tmp_path)
    changes = [f"model.encoder.cell={cell}", f"model.decoder.cell={cell}"]
    recipe = load(str(tmp_path / "reverse.toml"), changes)
    prepared = prepare(recipe, tmp_path / "prepared")
    validated = [
        event
        for event in Trainer(recipe, prepared, tmp_path / "run", torch.device("cpu")).train()
        if isinstance(event, Validated)
    ]
    assert validated[0].scores["exact"] < 50  # it was not known from the start
    translator = Translator.load(tmp_path / "run", device="cpu")
    right = sum(
        found == target
        for found, target in zip(translator.translate(sources), targets, strict=True)
    )
    assert right > 0.95 * len(sources)
