"""What all tests share: one thread, no network, and a tiny corpus, recipe and model."""

import os

# Before torch is imported: threads that wait for each other make a busy machine crawl.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.prepared import Prepared, prepare
from s2s_cli.core.recipe import Recipe, load
from s2s_cli.core.tokenizer import Tokenizer

torch.set_num_threads(1)

# A translation that a child could learn: each word has one, and the order is turned round. One
# has two words, so that the two sides are of different lengths.
LEXICON = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        ["un", "deux", "trois", "quatre quatre", "cinq", "six", "sept", "huit", "neuf", "dix"],
        strict=True,
    )
)

NO_DROPOUT = [
    f"model.{key}=0.0"
    for key in (
        "encoder.dropout",
        "encoder.embedding_dropout",
        "decoder.dropout",
        "decoder.embedding_dropout",
        "decoder.output_dropout",
    )
]

RECIPE = """
name = "tiny"

[data.train]
kind = "text"
source = "train.source"
target = "train.target"

[data.validation]
kind = "text"
source = "validation.source"
target = "validation.target"

[tokenizer]
kind = "separate"
source = { kind = "words", vocabulary = 40 }
target = { kind = "words", vocabulary = 40 }

[batches]
size = 8
pool = 3

[model]
reverse_source = true

[model.encoder]
layers = 2
embedding = 10
hidden = 12
dropout = 0.2
embedding_dropout = 0.2

[model.decoder]
kind = "plain"
layers = 2
embedding = 11
hidden = 12
start = "eos"
dropout = 0.2
embedding_dropout = 0.2
output_dropout = 0.2

[model.initialization]
kind = "uniform"
range = 0.08

[optimizer]
kind = "sgd"
lr = 0.7

[training]
epochs = 3.0
log_every = 3

[search]
beam_size = 3
batch_size = 16

[evaluation]
metrics = ["exact", "chrf"]
select = "perplexity"
"""


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """Writes a text file, a line each."""
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def wide_model(recipe: Recipe, tokenizers: tuple[Tokenizer, Tokenizer], seed: int) -> Seq2Seq:
    """An untrained model whose weights are so wide that its words differ from line to line."""
    torch.manual_seed(seed)
    source, target = tokenizers
    model = build(recipe.model, source_vocabulary=source.size, target_vocabulary=target.size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-2.0, 2.0)
    return model


def place_in_pool(source: int, target: int) -> tuple[int, int]:
    """Targets rise where the source has an even number of words, and fall where it is odd."""
    return source, -target if source % 2 else target


@pytest.fixture(autouse=True)
def products_as_before() -> Iterator[None]:
    """A trainer chooses how all of a process multiplies: not for the next test."""
    matmul = getattr(torch.backends.mkldnn, "matmul", SimpleNamespace(fp32_precision="none"))
    before = matmul.fp32_precision
    yield
    matmul.fp32_precision = before


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.* and validation.* (.source, .target) and the recipe, tiny.toml."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(1)
    for split, count in {"train": 60, "validation": 13}.items():
        sources = [
            generator.choices(list(LEXICON), k=generator.randint(1, 7)) for _ in range(count)
        ]
        targets = [[LEXICON[word] for word in reversed(words)] for words in sources]
        write_lines(folder / f"{split}.source", [" ".join(words) for words in sources])
        write_lines(folder / f"{split}.target", [" ".join(words) for words in targets])
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def recipe_file(corpus: Path) -> Path:
    """The tiny recipe; vary it with `load(str(recipe_file), ["training.epochs=2.0"])`."""
    return corpus / "tiny.toml"


@pytest.fixture(scope="session")
def recipe(recipe_file: Path) -> Recipe:
    """The tiny recipe: a reversed 2-layer LSTM with dropout, 8 updates an epoch."""
    return load(str(recipe_file))


@pytest.fixture(scope="session")
def prepared(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The tiny corpus, prepared."""
    return prepare(recipe, tmp_path_factory.mktemp("prepared") / "tiny")


@pytest.fixture
def model(recipe: Recipe, prepared: Prepared) -> Seq2Seq:
    """A fresh model of the tiny recipe, in evaluation mode; its weights are always the same.

    They are so wide that sentences get different translations, of different lengths.
    """
    torch.manual_seed(4)
    fresh = build(
        recipe.model,
        source_vocabulary=prepared.source_tokenizer.size,
        target_vocabulary=prepared.target_tokenizer.size,
    )
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.uniform_(-2.0, 2.0)
    return fresh.eval()


@pytest.fixture(autouse=True)
def no_model_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's model is never the one that the person at this machine happens to use."""
    monkeypatch.delenv("S2S_MODEL", raising=False)
