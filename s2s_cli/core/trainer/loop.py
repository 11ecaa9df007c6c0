"""The training loop: updates, validations, checkpoints.

The loss of a batch is summed over its target words and divided by its sentences (or words), and
the global norm of that gradient is clipped (Sutskever et al. 2014, section 3.4).
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import assert_never

import torch

from s2s_cli.core import checkpoint
from s2s_cli.core.batches import BatchPlan, make_batch
from s2s_cli.core.device import autocast
from s2s_cli.core.errors import DivergedError, ModelError
from s2s_cli.core.events import Event, Finished, Progress, Started, Validated
from s2s_cli.core.model import Seq2Seq, build
from s2s_cli.core.prepared import PackedPairs, Prepared
from s2s_cli.core.recipe import Recipe
from s2s_cli.core.recipe.schema import Adam, Sgd
from s2s_cli.core.schedule import learning_rate
from s2s_cli.core.trainer import run, validation
from s2s_cli.core.trainer.run import Place, SavedState
from s2s_cli.core.translator import first_word

EXAMPLES = 3


class Trainer:
    """A training in a run's folder, fresh or gone on with.

    Example:
        trainer = Trainer(recipe, prepare(recipe), Path("runs/x"), torch.device("cpu"))
        for event in trainer.train():
            print(event)
    """

    def __init__(
        self, recipe: Recipe, prepared: Prepared, folder: Path, device: torch.device
    ) -> None:
        """Makes or opens the run.

        Raises:
            ModelError: the folder holds another recipe's run, or its state is damaged.
        """
        self.recipe = recipe
        self.prepared = prepared
        self.folder = folder
        self.place = Place()
        self._device = device
        run.check(folder, recipe)
        fingerprint: str = prepared.manifest["fingerprint"]
        self._fingerprint = fingerprint
        saved = run.load_state(folder, fingerprint)
        run.claim(folder, recipe)
        torch.manual_seed(recipe.training.seed)
        self.model = build(
            recipe.model,
            source_vocabulary=prepared.source_tokenizer.size,
            target_vocabulary=prepared.target_tokenizer.size,
        ).to(device)
        self._optimizer = make_optimizer(self.model, recipe.optimizer)
        if saved:
            self.place = saved.place
            self.model.load_state_dict(saved.model)
            self._optimizer.load_state_dict(saved.optimizer)
            run.set_random_states(saved.random)
        self._plan = BatchPlan(
            prepared.train,
            recipe.batches.unit,
            recipe.batches.size,
            recipe.batches.pool,
            recipe.training.seed,
        )
        self._batches = self._plan.epoch(self.place.epoch)
        self._rate = 0.0
        self._restart_interval()

    def train(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Trains to the end, or until `should_stop` says so after an update; saves, and ends.

        Every event of update N has been taken before the checkpoint of update N is written.

        Raises:
            DivergedError: the loss is not finite; the last checkpoint stays as it was.
            ModelError: a checkpoint cannot be written.
        """
        settings = self.recipe.training
        yield Started(
            *self._position(),
            parameters=self.model.parameter_count(),
            pairs=len(self.prepared.train),
            batches=len(self._batches),
            updates=self._planned(),
            device=str(self._device),
            precision=settings.precision,
        )
        if self.place.update:
            self._mend_last()
        self._restart_interval()
        reason = self.reason_to_end()
        while not reason:
            ends_epoch = self._update()
            update = self.place.update
            ended = self.reason_to_end()
            reason = ended or ("stopped" if should_stop() else "")
            validating = bool(ended) or _due(settings.validate_every, update, ends_epoch)
            saving = bool(reason) or _due(settings.save_every, update, validating)
            if validating or saving or update % settings.log_every == 0:
                yield self._progress()
            if validating and self.prepared.validation:
                yield self._validate(self.prepared.validation)
                reason = reason or self.reason_to_end()
            if saving or reason:
                self._save()
            if validating or saving:
                self._restart_interval()
        yield Finished(
            *self._position(), reason=reason, seconds=self.place.seconds, best=self.place.best
        )

    def _position(self) -> tuple[int, float]:
        """Updates and epochs done."""
        batches = len(self._batches)
        # A single quotient: 68 of 50 are 1.36 in binary too, but 1 + 18 / 50 is less.
        return self.place.update, (self.place.epoch * batches + self.place.batch) / batches

    def _planned(self) -> int:
        """Updates in all; where batches are counted in tokens, about as many."""
        settings = self.recipe.training
        updates = math.ceil(round(settings.epochs * len(self._batches), 6))  # 1.1 * 50 is 55
        return min(updates, settings.max_updates or updates)

    def reason_to_end(self) -> str:
        """Why there is nothing left to train: `epochs`, `updates`, `patience`; "" if there is."""
        settings = self.recipe.training
        update, epochs = self._position()
        if settings.max_updates and update >= settings.max_updates:
            return "updates"
        if epochs >= settings.epochs:
            return "epochs"
        if settings.patience and self.place.waiting >= settings.patience:
            return "patience"
        return ""

    def _update(self) -> bool:
        """One update; whether it was the last of its epoch."""
        settings, place = self.recipe.training, self.place
        batch = make_batch(
            self.prepared.train,
            self._batches[place.batch],
            reverse=self.recipe.model.reverse_source,
            start=first_word(self.recipe),
        ).to(self._device)
        rate = learning_rate(self.recipe.schedule, self.recipe.optimizer.lr, self._position()[1])
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self._device, settings.precision):
            loss = self.model(batch)
        (loss / (batch.sentences if settings.loss_per == "sentence" else batch.words)).backward()
        self._norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), settings.clip or math.inf
        )
        self._optimizer.step()
        self._loss += loss.detach()
        self._words += batch.words
        self._padded += batch.inputs.numel()
        self._rate = rate
        place.update += 1
        place.results = {}
        place.batch += 1
        if place.batch < len(self._batches):
            return False
        place.epoch, place.batch = place.epoch + 1, 0
        self._batches = self._plan.epoch(place.epoch)
        return True

    def _restart_interval(self) -> None:
        """Begins to count anew for the next `Progress`."""
        self._loss = torch.zeros((), device=self._device)
        self._norm = torch.zeros((), device=self._device)
        self._words = self._padded = 0
        self._clock = time.perf_counter()

    def _progress(self) -> Progress:
        loss = float(self._loss) / self._words  # on CUDA this waits for the updates
        norm = float(self._norm)
        seconds = time.perf_counter() - self._clock
        # A step along a gradient that is not finite spoils the weights; the loss tells of it only
        # at the next update, when they might have been saved.
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {loss:g} and the norm of its gradient {norm:g}")
        self.place.seconds += seconds
        event = Progress(
            *self._position(),
            loss=loss,
            norm=norm,
            learning_rate=self._rate,
            words_per_second=self._words / seconds,
            padding=1 - self._words / self._padded,
        )
        self._restart_interval()
        return event

    def _diverged(self, what: str) -> DivergedError:
        kept = (self.folder / checkpoint.STATE).exists()
        return DivergedError(
            f"{what} at update {self.place.update:,}, learning rate {self._rate:g}; "
            + (f"{self.folder} keeps its last checkpoint\n" if kept else "nothing was saved yet\n")
            + "train again into another --run with a smaller optimizer.lr or training.clip, or in "
            "fp32"
        )

    def _validate(self, pairs: PackedPairs) -> Validated:
        """Measures, and keeps the model if it is the best so far."""
        started = time.perf_counter()
        self.model.eval()
        perplexity = validation.perplexity(self.model, pairs, self.recipe)
        if not math.isfinite(perplexity):
            raise self._diverged(f"the validation perplexity is {perplexity}")
        found: dict[str, float] = {}
        hypotheses: list[str] = []
        references = self.prepared.validation_references
        if self.recipe.evaluation.metrics:
            tokenizer = self.prepared.target_tokenizer
            hypotheses = validation.translations(self.model, pairs.source, tokenizer, self.recipe)
            found = validation.scores(hypotheses, references, self.recipe)
        results = {"perplexity": perplexity, **found}
        improved = validation.is_better(results, self.place.best, self.recipe.evaluation.select)
        self.place.waiting = 0 if improved else self.place.waiting + 1
        if improved:
            self.place.best = {"update": self.place.update, **results}
            self._save_model(checkpoint.BEST, results)
        self.place.results = results
        examples = zip(hypotheses, references, strict=False)
        return Validated(
            *self._position(),
            perplexity=perplexity,
            scores=found,
            seconds=time.perf_counter() - started,
            improved=improved,
            waiting=self.place.waiting,
            examples=tuple(examples)[:EXAMPLES],
        )

    def _save_model(self, name: str, results: dict[str, float]) -> None:
        update, epoch = self._position()
        checkpoint.save_model(
            self.folder / name,
            self.model,
            self.recipe,
            (self.prepared.source_tokenizer, self.prepared.target_tokenizer),
            {
                "update": update,
                "epoch": epoch,
                **results,
                "data": self._fingerprint,
                "sha256": self.prepared.manifest["contents"],
            },
        )

    def _save(self) -> None:
        """Writes the state, then the model: a folder with a last model has a state."""
        if not all(bool(weights.isfinite().all()) for weights in self.model.parameters()):
            raise self._diverged("weights are no longer finite")
        state = SavedState(
            self.place,
            self.model.state_dict(),
            self._optimizer.state_dict(),
            run.random_states(),
        )
        run.save_state(self.folder, state, self._fingerprint)
        self._save_model(checkpoint.LAST, self.place.results)

    def _mend_last(self) -> None:
        """Writes the last model again where a kill came between the state and it."""
        try:
            written = checkpoint.read_header(self.folder / checkpoint.LAST)["results"]["update"]
        except (ModelError, KeyError):
            written = None
        if written != self.place.update:
            self._save_model(checkpoint.LAST, self.place.results)


def _due(every: int, update: int, otherwise: bool) -> bool:
    """Whether something that happens every so many updates, or else at `otherwise`, is due."""
    return update % every == 0 if every else otherwise


def make_optimizer(model: Seq2Seq, spec: Sgd | Adam) -> torch.optim.Optimizer:
    """Torch's optimiser of that name, its update in one fused kernel."""
    match spec:
        case Sgd():
            return torch.optim.SGD(
                model.parameters(),
                lr=spec.lr,
                momentum=spec.momentum,
                weight_decay=spec.weight_decay,
                fused=True,
            )
        case Adam(kind=kind):
            optimizer = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
            return optimizer(
                model.parameters(),
                lr=spec.lr,
                betas=(spec.beta1, spec.beta2),
                eps=spec.epsilon,
                weight_decay=spec.weight_decay,
                fused=True,
            )
        case _:
            assert_never(spec)
