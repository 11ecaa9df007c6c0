"""The programs that are compared, a round of their updates, and whether they compute the same."""

import itertools
import os
import re
import time
from collections.abc import Iterable, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from straightforward import MODELS, PaddedBatch, Reader, Sizes, Updates
from torch import Tensor
from training_setting import Setting

from s2s_cli.core import device as devices
from s2s_cli.core.batches import Batch, Indices, make_batch
from s2s_cli.core.model import build
from s2s_cli.core.recipe import Recipe, override
from s2s_cli.core.recipe.schema import Sgd, UniformInitialization
from s2s_cli.core.tokenizer import EOS
from s2s_cli.core.trainer.feed import AHEAD, Feed
from s2s_cli.core.trainer.learner import Learner
from s2s_cli.core.translator import first_word

OURS, THEIRS, FUSED = "s2s", "straightforward", "straightforward, fused optimiser"


class Program(Protocol):
    """Something that trains on the batches of a round."""

    device: torch.device
    batches: Sized  # of a round
    words: tuple[int, int]  # source and target words of a round, the end symbols counted

    def feed(self) -> Iterable[Any]:
        """The batches of a round, once again."""
        ...

    def update(self, batch: Any) -> Tensor:
        """An update; its summed loss."""
        ...


# --- s2s -------------------------------------------------------------------------------------


class Ours:
    """s2s as its trainer runs it: its batches are made during the round."""

    def __init__(self, setting: Setting, recipe: Recipe | None = None) -> None:
        self.setting = setting
        self.recipe = recipe or setting.load()
        self.device = devices.find_device(setting.device)
        self.techniques = devices.accelerate(self.device, setting.precision)
        self.memory = {"before opening the corpus": anonymous_memory()}
        self.corpus = setting.corpus_opened()
        self.memory["corpus opened"] = anonymous_memory()
        self.batches = self.corpus.batches(self.recipe, setting.updates)
        self.memory["first epoch planned"] = anonymous_memory()
        lengths = [self.lengths(rows) for rows in self.batches]
        self.words = (
            sum(int(source.sum()) for source, _ in lengths),
            sum(int(target.sum()) for _, target in lengths),
        )
        torch.manual_seed(self.recipe.training.seed)
        self.model = build(
            self.recipe.model,
            source_vocabulary=self.corpus.source_vocabulary,
            target_vocabulary=self.corpus.target_vocabulary,
        ).to(self.device)
        self.learner = Learner(self.model, self.recipe.optimizer, self.recipe.training, self.device)
        self.techniques += self.learner.techniques

    def lengths(self, rows: Indices) -> tuple[Any, Any]:
        """Words of the sources and targets of a batch, the end symbols counted."""
        source, target = self.corpus.pairs.source.offsets, self.corpus.pairs.target.offsets
        return source[rows + 1] - source[rows] + 1, target[rows + 1] - target[rows] + 1

    def batch(self, rows: Indices) -> Batch:
        """A batch, on the device."""
        return make_batch(
            self.corpus.pairs,
            rows,
            reverse=self.recipe.model.reverse_source,
            start=first_word(self.recipe),
        ).to(self.device)

    def feed(self) -> Iterable[Batch]:
        """The batches of a round as a training meets them."""
        ahead = AHEAD if self.device.type == "cuda" else 0
        feed = Feed(self.corpus.plan(self.recipe), self.recipe, self.device, ahead=ahead)
        whole = (made.parts[0] for made in feed)  # neither recipe cuts a batch into parts
        return itertools.islice(whole, len(self.batches))

    def divisor(self, batch: Batch) -> int:
        """What the loss is divided by."""
        per_word = self.recipe.training.loss_per == "word"
        return batch.words if per_word else batch.sentences

    def learn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """An update: the summed loss, and the norm of the gradient."""
        return self.learner.learn([batch], self.divisor(batch), self.recipe.optimizer.lr)

    def update(self, batch: Batch) -> Tensor:
        """An update; its summed loss."""
        return self.learn(batch)[0]

    def facts(self) -> dict[str, Any]:
        """What does not change from round to round."""
        return {
            "parameters": self.model.parameter_count(),
            "techniques": self.techniques,
            "memory": self.memory,
        }


# --- the straightforward program -------------------------------------------------------------


class Theirs:
    """The opponent, on the same pairs in the same order; its batches are made beforehand."""

    def __init__(self, setting: Setting, fused: bool, recipe: Recipe | None = None) -> None:
        recipe = recipe or setting.load()
        self.device = devices.find_device(setting.device)
        corpus = setting.corpus_opened()
        self.batches = [
            padded(corpus.pairs, rows, recipe) for rows in corpus.batches(recipe, setting.updates)
        ]
        if self.device.type == "cuda":
            self.batches = [batch.pinned() for batch in self.batches]
        self.words = (
            sum(int(batch.lengths.sum()) for batch in self.batches),
            sum(batch.words for batch in self.batches),
        )
        torch.manual_seed(recipe.training.seed)
        side, values = recipe.model.decoder, recipe.model.initialization
        sizes = Sizes(
            corpus.source_vocabulary,
            corpus.target_vocabulary,
            layers=side.layers,
            embedding=side.embedding,
            hidden=side.hidden,
            features=side.readout.size or side.hidden,
            dropout=side.dropout,
        )
        self.model: Reader = MODELS[setting.decoder](sizes).to(self.device)
        if isinstance(values, UniformInitialization):
            for parameter in self.model.parameters():
                torch.nn.init.uniform_(parameter, -values.range, values.range)
        kind = torch.optim.SGD if isinstance(recipe.optimizer, Sgd) else torch.optim.Adam
        self.updates = Updates(
            self.model,
            # None is torch's default, and not the same as False.
            kind(self.model.parameters(), lr=recipe.optimizer.lr, fused=fused or None),
            per=recipe.training.loss_per,
            clip=recipe.training.clip,
            bf16=setting.precision == "bf16",
        )

    def feed(self) -> Iterable[PaddedBatch]:
        """The batches of a round."""
        return self.batches

    def update(self, batch: PaddedBatch) -> Tensor:
        """An update; its summed loss."""
        return self.updates.learn(batch.to(self.device))[0]

    def facts(self) -> dict[str, Any]:
        """What does not change from round to round."""
        return {"parameters": sum(each.numel() for each in self.model.parameters())}


def padded(pairs: Any, rows: Indices, recipe: Recipe) -> PaddedBatch:
    """The pairs at `rows` as the straightforward program has them."""
    turn = -1 if recipe.model.reverse_source else 1
    return PaddedBatch.of(
        [[*pairs.source[row][::turn], EOS] for row in rows],
        [[*pairs.target[row], EOS] for row in rows],
        first_word(recipe),
    )


# --- the same? -------------------------------------------------------------------------------

# From a parameter's name in s2s to that in the straightforward program.
NAMES = (
    (r"^(en|de)coder\.recurrent\.cells\.", r"\1coder."),
    (r"^decoder\.recurrent\.stack\.(\d+)\.cells\.(\w+)_l0$", r"cells.\1.\2"),
    (r"^encoder\.embedding\.", "source_embedding."),
    (r"^decoder\.embedding\.", "target_embedding."),
    (r"^decoder\.readout\.transform\.0\.", "readout."),
    (r"^decoder\.attention\.score\.matrix\.", "key."),
    (r"^decoder\.attention\.score\.", ""),
    (r"^decoder\.output\.", "output."),
)


UNEVEN = 32  # pairs, of all lengths
DROPOUTS = (
    "encoder.dropout",
    "encoder.embedding_dropout",
    "decoder.dropout",
    "decoder.embedding_dropout",
    "decoder.output_dropout",
)


def their_name(name: str) -> str:
    """What the straightforward program calls a parameter of s2s."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def compare(setting: Setting) -> dict[str, dict[str, list[float]]]:
    """Loss a word and gradient's norm of both on two batches, with the same weights.

    In fp32 without dropout; each with the products that it uses in training. Batches of training
    have sources of nearly one length, so that padding could hide: the second's differ.
    """
    fp32 = replace(setting, precision="fp32", updates=1)
    recipe = override(fp32.load(), [f"model.{key}=0.0" for key in DROPOUTS], "model")
    theirs = Theirs(fp32, fused=False, recipe=recipe)
    corpus = setting.corpus_opened()
    torch.manual_seed(recipe.training.seed)
    weights = build(
        recipe.model,
        source_vocabulary=corpus.source_vocabulary,
        target_vocabulary=corpus.target_vocabulary,
    ).state_dict()
    batches = {
        "first batch": corpus.batches(recipe, 1)[0],
        "first pairs": numpy.arange(UNEVEN),
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in batches}
    for name, rows in batches.items():
        theirs.model.load_state_dict({their_name(key): value for key, value in weights.items()})
        batch = padded(corpus.pairs, rows, recipe).to(theirs.device)
        loss, norm = theirs.updates.learn(batch)
        found[name][THEIRS] = [float(loss) / batch.words, float(norm)]
    ours = Ours(fp32, recipe)
    for name, rows in batches.items():
        ours.model.load_state_dict(weights)
        loss, norm = ours.learn(ours.batch(rows))
        found[name][OURS] = [float(loss) / int(ours.lengths(rows)[1].sum()), float(norm)]
    return found


# --- a round ---------------------------------------------------------------------------------


def memory_line(name: str) -> int:
    """Bytes of a line of the process's status, 0 where there is none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def anonymous_memory() -> int:
    """Bytes of this process's own memory, mapped files not counted."""
    return memory_line("RssAnon")


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had, on the device that it computes on.

    Not `ru_maxrss`: that is inherited from the process that has started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return memory_line("VmHWM")


def busy_seconds() -> float:
    """Seconds that all cores together have worked since the machine started, 0 if unknown."""
    try:
        numbers = Path("/proc/stat").read_text(encoding="utf-8").split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, *interrupts = (int(number) for number in numbers)
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def run_round(program: Program) -> dict[str, float]:
    """One pass over the batches: seconds, the mean loss of a word, and cores others used."""
    batches = program.feed()
    wait(program.device)
    busy, ours, started = busy_seconds(), time.process_time(), time.perf_counter()
    loss = torch.zeros((), device=program.device)
    for batch in batches:
        loss += program.update(batch)
    loss_a_word = float(loss) / program.words[1]
    wait(program.device)
    seconds = time.perf_counter() - started
    others = busy_seconds() - busy - (time.process_time() - ours)
    return {"seconds": seconds, "loss": loss_a_word, "foreign": max(0.0, others) / seconds}


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
