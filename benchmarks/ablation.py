"""Forward, reversed, peeky, attention: four models, one budget, paired seeds, one table.

    python benchmarks/ablation.py --data CORPUS --out FOLDER [--seed 1 --seed 2 --seed 3]

CORPUS holds {train,dev,test}.{en,fr}.gz, such as 158,526 pairs of Tatoeba; without it this says so
and stops. Each run goes on where it was interrupted and leaves FOLDER/ARM-SEED/result.json; the
table of all results that are there is printed as Markdown. Several processes may work on one
FOLDER, each on seeds of its own.
"""

import argparse
import gzip
import json
import statistics
import sys
from pathlib import Path

import torch

from s2s_cli.core.checkpoint import BEST, load_model
from s2s_cli.core.events import Finished, Validated
from s2s_cli.core.metrics import evaluate
from s2s_cli.core.prepared import PackedPairs, PackedText, prepare
from s2s_cli.core.recipe import Recipe, load
from s2s_cli.core.trainer import Trainer, validation
from s2s_cli.core.translator import Translator

# The last two are the second with one thing more.
ARMS = {"forward": "plain", "reversed": "plain", "peeky": "peeky", "attention": "attention"}
EXTRA = {
    "attention": """
[model.decoder.attention]
kind = "general"

[model.decoder.readout]
kind = "tanh"
size = 256
""",
}

RECIPE = """
[data.train]
kind = "text"
source = "{data}/train.en.gz"
target = "{data}/train.fr.gz"

[data.validation]
kind = "text"
source = "{data}/dev.en.gz"
target = "{data}/dev.fr.gz"
limit = 1000

[tokenizer]
kind = "shared"

[tokenizer.model]
kind = "bpe"
vocabulary = 6000

[batches]
size = 64

[model]
reverse_source = {reverse}

[model.encoder]
layers = 2
embedding = 256
hidden = 256

[model.decoder]
kind = "{kind}"
layers = 2
embedding = 256
hidden = 256
{extra}
[model.initialization]
kind = "torch"
forget_bias = 1.0

[optimizer]
kind = "adam"
lr = 0.003

[schedule]
kind = "halving"
start = 2.3
every = 0.3

[training]
epochs = 3.5
loss_per = "word"
clip = 1.0
precision = "{precision}"
validate_every = 1500
save_every = 1500
seed = {seed}
"""


def recipe_of(arm: str, seed: int, data: Path, folder: Path, precision: str) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{arm}-{seed}.toml"
    file.write_text(
        RECIPE.format(
            data=data.resolve(),
            kind=ARMS[arm],
            extra=EXTRA.get(arm, ""),
            reverse="false" if arm == "forward" else "true",
            precision=precision,
            seed=seed,
        ),
        encoding="utf-8",
    )
    return load(str(file))


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rb") as file:
        return file.read().decode().split("\n")[:-1]


def train_and_score(recipe: Recipe, data: Path, folder: Path, out: Path) -> None:
    """Trains a run and writes its result."""
    prepared = prepare(recipe, out / "prepared")
    trainer = Trainer(recipe, prepared, folder, torch.device("cpu"))
    seconds = 0.0
    for event in trainer.train():
        if isinstance(event, Validated):
            print(f"{folder.name}: update {event.update}, {event.scores}", file=sys.stderr)
        if isinstance(event, Finished):
            seconds = event.seconds
    model = load_model(folder / BEST, torch.device("cpu"))
    sources, references = (lines_of(data / f"test.{side}.gz") for side in ("en", "fr"))
    pairs = PackedPairs(
        PackedText.pack(model.source_tokenizer.encode(sources)),
        PackedText.pack(model.target_tokenizer.encode(references)),
    )
    translations = Translator.load(folder, device="cpu").translate(sources)
    (bleu,) = evaluate(translations, [references], ["bleu"])
    result = {
        "updates": trainer.place.update,
        "seconds": seconds,
        "parameters": model.model.parameter_count(),
        "perplexity": validation.perplexity(model.model, pairs, recipe),
        "bleu": bleu.value,
        "signature": str(bleu.signature),
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def table(out: Path) -> str:
    """All results as Markdown."""
    rows = ["| arm | parameters | seed | test perplexity | test BLEU |", "|---|---|---|---|---|"]
    for arm in ARMS:
        found = {
            path.parent.name.rpartition("-")[2]: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(out.glob(f"{arm}-*/result.json"))
        }
        for seed, result in found.items():
            rows.append(
                f"| {arm} | {result['parameters']:,} | {seed} | {result['perplexity']:.2f} | "
                f"{result['bleu']:.2f} |"
            )
        if found:
            perplexity, bleu = (
                statistics.mean(result[key] for result in found.values())
                for key in ("perplexity", "bleu")
            )
            rows.append(f"| **{arm}** | | mean | **{perplexity:.2f}** | **{bleu:.2f}** |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tatoeba-en-fr"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--arm", choices=ARMS, action="append")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not (options.data / "train.en.gz").exists():
        print(f"skipped: there is no corpus in {options.data}")
        return
    torch.set_num_threads(options.threads)
    for seed in options.seed or [1, 2, 3]:
        for arm in options.arm or ARMS:
            folder = options.out / f"{arm}-{seed}"
            if not (folder / "result.json").exists():
                recipes = options.out / "recipes"
                recipe = recipe_of(arm, seed, options.data, recipes, options.precision)
                train_and_score(recipe, options.data, folder, options.out)
    print(table(options.out))


if __name__ == "__main__":
    main()
