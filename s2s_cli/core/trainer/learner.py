"""One update of the weights: loss, gradients, their norm, clipping, and the step.

# N words looked up, E embedding
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from s2s_cli.core.batches import Batch
from s2s_cli.core.device import autocast
from s2s_cli.core.model import Exposure, Seq2Seq
from s2s_cli.core.recipe.schema import Optimizer, Sgd, Training
from s2s_cli.core.trainer.graphs import CudaGraphs, GraphedUpdates, Recorder, obstacle
from s2s_cli.core.trainer.optimizer import make_optimizer

# As `torch.nn.utils.clip_grad_norm_` has it, to divide by.
SMALLEST_NORM = 1e-6


@dataclass(frozen=True)
class RowGradient:
    """The gradient of a table of word vectors, for the words that were looked up alone.

    ids: [N], each word once, then zeros; rows: [N, E], the gradients of those words, then zeros.
    The shapes do not depend on which words are equal, so that a GPU need not be waited for.
    """

    table: Tensor
    ids: Tensor
    rows: Tensor

    @classmethod
    def taken_from(cls, table: Tensor) -> "RowGradient | None":
        """The sparse gradient of a table, its repeated words summed; the table's is dropped."""
        gradient, table.grad = table.grad, None
        if gradient is None:
            return None
        ids, order = gradient._indices()[0].sort(stable=True)
        fresh = torch.ones_like(ids)
        fresh[1:] = ids[1:] != ids[:-1]
        places = fresh.cumsum(0) - 1
        values = gradient._values()[order]
        rows = torch.zeros_like(values).index_add_(0, places, values)
        return cls(table, torch.zeros_like(ids).scatter_(0, places, ids), rows)

    @torch.no_grad()
    def descend(self, rate: Tensor) -> None:
        """Takes a step of plain SGD. rate: []"""
        self.table.index_add_(0, self.ids, self.rows.mul_(-rate))


class Learner:
    """A model's optimiser and what belongs to an update.

    Plain SGD, without momentum or weight decay, changes no row of a word that it has not seen:
    there tables of word vectors have a gradient for the rows looked up alone, and clipping is
    part of the learning rate. Both give what dense gradients, clipped, would give.
    """

    def __init__(
        self,
        model: Seq2Seq,
        spec: Optimizer,
        settings: Training,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        """recorder: of updates, where the settings ask for it; by default CUDA's."""
        self.model = model
        self.optimizer = make_optimizer(model, spec)
        scaled = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self._settings = settings
        self._device = device
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        # A scaled loss overflows now and then, and the update is left out: torch's part alone.
        self._not_plain = _obstacle(spec, scaled)
        self._plain = not self._not_plain
        tables = model.looked_up() if self._plain else []
        for table in tables:
            table.sparse = True
        self._tables = [table.weight for table in tables if table.weight.requires_grad]
        self._graphs: GraphedUpdates | None = None
        self._without_graphs = ""
        self._notes: list[str] = []
        if settings.cuda_graphs:
            kind = "cuda" if recorder else device.type
            self._without_graphs = obstacle(model, spec, settings, kind)
            if not self._without_graphs:
                recorder = recorder or CudaGraphs(device)
                self._graphs = GraphedUpdates(self._step, self.optimizer, recorder)

    @property
    def techniques(self) -> list[str]:
        """What it does in a shorter way than it is written in a paper, for a person to read."""
        rows = clipping = self._not_plain
        if self._plain:
            rows = "" if self._tables else "frozen, or tied and used elsewhere"
            clipping = "" if self._settings.clip else "there is none"
        tables = {id(table) for table in self._tables}
        names = [name for name, each in self.model.named_parameters() if id(each) in tables]
        lines = [
            _told("gradients of word vectors by rows", ", ".join(names), rows),
            _told("clipping within the learning rate", "", clipping),
        ]
        if self._settings.cuda_graphs:
            lines.append(_told("CUDA graphs", "of frequent shapes", self._without_graphs))
        return lines

    def take_notes(self) -> list[str]:
        """What came up since the last call, for a person to read."""
        notes, self._notes = self._notes, []
        return notes

    def learn(
        self, parts: Sequence[Batch], count: int, rate: float, exposure: Exposure | None = None
    ) -> tuple[Tensor, Tensor]:
        """An update: the summed loss of its words and the norm of the unclipped gradient, both [].

        On a GPU nothing here waits for it, but fp16's scaling, coins of scheduled sampling, and the
        recording of a graph.

        Args:
            parts: of the batch, on the device; their gradients are added.
            count: what the loss is divided by.
            rate: the learning rate.
            exposure: how much truth the decoder sees; None for all of it.
        """
        graphs, found = self._graphs, None
        # What is drawn or cut anew for each update cannot be replayed, nor can evaluation.
        if graphs is not None and len(parts) == 1 and exposure is None and self.model.training:
            found = graphs.learn(parts[0], count, rate)
            if graphs.failure:
                self._graphs, self._without_graphs = None, graphs.failure
                self._notes.append(
                    f"no CUDA graphs from here on, the training is the same: {graphs.failure}"
                )
        loss, norm = found or self._step(parts, count, rate, exposure)
        self._set_rate(rate)  # what a checkpoint keeps
        return loss, norm

    def _step(
        self,
        parts: Sequence[Batch],
        count: int | Tensor,
        rate: float | Tensor,
        exposure: Exposure | None = None,
    ) -> tuple[Tensor, Tensor]:
        """An update. What differs from one to the next may be [], to be replayed with others.

        The optimiser's own learning rate is another afterwards.
        """
        settings = self._settings
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in parts:
            with autocast(self._device, settings.precision):
                found = self.model(part, smoothing=settings.label_smoothing, exposure=exposure)
            self.scaler.scale(found / count).backward()
            losses.append(found.detach())
        self.scaler.unscale_(self.optimizer)
        return torch.stack(losses).sum(), self._descend(rate)

    def _descend(self, rate: float | Tensor) -> Tensor:
        """Clips and steps; the norm of the gradient before it was clipped."""
        clip = self._settings.clip
        found = (RowGradient.taken_from(table) for table in self._tables)
        rows = [gradient for gradient in found if gradient is not None]
        dense = [each.grad for each in self._parameters if each.grad is not None]
        norm = get_total_norm([*dense, *(gradient.rows for gradient in rows)])
        if self._plain:
            one = torch.ones_like(norm)
            step = rate * (torch.minimum(clip / (norm + SMALLEST_NORM), one) if clip else one)
            # On a GPU, and in what is recorded, nobody waits for the number.
            stays = self._device.type == "cuda" or isinstance(rate, Tensor)
            self._set_rate(step if stays else float(step))
            for gradient in rows:
                gradient.descend(step)
        else:
            self._set_rate(rate)
            if clip:
                clip_grads_with_norm_(self._parameters, clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _set_rate(self, rate: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def _obstacle(spec: Optimizer, scaled: bool) -> str:
    """What stands in the way of what plain SGD allows; "" where nothing does."""
    if not isinstance(spec, Sgd):
        return f"not with {spec.kind}"
    keys = {"momentum": spec.momentum, "weight_decay": spec.weight_decay, "fp16": scaled}
    return next((f"not with {key}" for key, there in keys.items() if there), "")


def _told(technique: str, where: str, reason: str) -> str:
    """A technique that is on, and where, or off, and why."""
    if reason:
        return f"off: {technique} ({reason})"
    return f"{technique}: {where}" if where else technique
