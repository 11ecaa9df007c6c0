"""In fp32 a line's translation does not depend on its neighbours. Trained models; `make slow`."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from s2s_cli.core.checkpoint import load_model
from s2s_cli.core.prepared import prepare
from s2s_cli.core.recipe import load, recipe_folder
from s2s_cli.core.trainer import Trainer
from s2s_cli.core.translator import Translation, Translator

CPU = torch.device("cpu")
SMALL = [
    "model.encoder.embedding=96",
    "model.encoder.hidden=64",
    "training.epochs=4.0",
    "training.moving_average=0.0",
    "training.validate_every=0",
    "evaluation={metrics=[],select='perplexity'}",
    "optimizer.lr=0.004",
]
SIDE = "layers=1, embedding=96, hidden=128, bridge='linear'"
ATTENTION = "kind='attention', readout={kind='tanh', size=128}"
GENERAL = f"{ATTENTION}, attention={{kind='general'}}"
ADDITIVE = f"{ATTENTION}, attention={{kind='additive', size=64}}"
DECODERS = {
    "plain": "kind='plain'",
    "peeky": "kind='peeky'",
    "current": GENERAL,
    "feeding": f"{GENERAL}, input_feeding=true",
    "previous": f"{ADDITIVE}, query='previous'",
    "bottom": f"{ADDITIVE}, query='bottom'",
}
STRANGE = [
    "\u2028",
    "\u0085",
    "\x0b",
    "\r",
    "\x00",
    "\u200f",
    "e\u0301",
    "😀",
    "漢字",
    "<unk>",
    "</s>",
    "\ufffd",
]


def hostile(words: Sequence[str], count: int) -> Iterator[str]:
    """Lines of known and strange words in no order, of all lengths up to 60 words, some twice."""
    chance = random.Random(9)
    last = ""
    for number in range(count):
        line = [chance.choice(words) for _ in range(chance.randrange(60 if number % 3 else 12))]
        for _ in range(chance.randrange(4)):
            line.insert(chance.randrange(len(line) + 1), chance.choice(STRANGE))
        if number % 5 == 0:
            line = [chance.choice(line or STRANGE)] * chance.randrange(1, 40)
        last = last if number % 11 == 0 else chance.choice((" ", "", "  ")).join(line)
        yield last


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_neither_batches_nor_threads_change_a_translation(name: str, tmp_path: Path) -> None:
    """But for ties: translations of which neither is likelier, to 1e-5 of their score."""
    recipe = load("quickstart", [*SMALL, f"model.decoder={{{SIDE}, {DECODERS[name]}}}"])
    list(Trainer(recipe, prepare(recipe, tmp_path / "prepared"), tmp_path / "run", CPU).train())
    model = load_model(tmp_path / "run" / "last.safetensors", CPU)
    real = (recipe_folder() / "data/tatoeba-en-fr/test.en").read_text("utf-8").split("\n")[:-1]
    lines = [*real, *hostile(" ".join(real).split(), 400)]
    assert len(real) == 500

    def translated(lines: Sequence[str], size: int, beam: int) -> list[Translation]:
        changes = {"batch_size": size, "beam_size": beam}
        settings = model.recipe.search.model_copy(update=changes)
        return [best[0] for best in Translator([model], settings).n_best(lines, 1)]

    for beam in (1, 5):
        expected = translated(lines, 64, beam)
        assert len({one.text for one in expected[:500]}) > 250  # it has learned something
        order = random.Random(3).sample(range(len(lines)), len(lines))
        shuffled = translated([lines[place] for place in order], 64, beam)
        found = {
            "alone": translated(lines, 1, beam),
            "by seven": translated(lines, 7, beam),
            "shuffled": [
                one
                for _, one in sorted(zip(order, shuffled, strict=True), key=lambda pair: pair[0])
            ],
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        found["two threads"] = translated(lines, 64, beam)
        torch.set_num_threads(threads)
        for how, others in found.items():
            unlike = [
                (mine.text, other.text)
                for mine, other in zip(expected, others, strict=True)
                if mine.text != other.text
                and abs(mine.score - other.score) > 1e-5 * abs(mine.score)
            ]
            assert not unlike, (how, beam, unlike[:3])
            # Ties are rare, or something is not as it should be.
            ties = sum(one.text != other.text for one, other in zip(expected, others, strict=True))
            print(f"{name}, beam {beam}, {how}: {ties} of {len(lines)} lines are ties")
            assert ties < len(lines) / 100
