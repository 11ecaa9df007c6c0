"""The training loop: updates, validations, checkpoints.

The loss of a batch is summed over its target words and divided by its sentences (or words), and
the global norm of that gradient is clipped (Sutskever et al. 2014, section 3.4).
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from s2s_cli.core import checkpoint
from s2s_cli.core.batches import BatchPlan
from s2s_cli.core.device import NO_BF16, accelerate, usable_precision
from s2s_cli.core.errors import DivergedError, ModelError
from s2s_cli.core.events import Event, Finished, Noted, Progress, Started, Validated
from s2s_cli.core.model import Exposure, Seq2Seq, build
from s2s_cli.core.prepared import PackedPairs, Prepared
from s2s_cli.core.recipe import Recipe
from s2s_cli.core.schedule import learning_rate, truth_ratio
from s2s_cli.core.trainer import keeping, run, validation
from s2s_cli.core.trainer.feed import AHEAD, Feed
from s2s_cli.core.trainer.learner import Learner
from s2s_cli.core.trainer.optimizer import averaged
from s2s_cli.core.trainer.run import Place, SavedState
from s2s_cli.core.trainer.start import begin

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
            DataError: word vectors cannot be read.
            RecipeError: the model to start from does not fit.
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
        precision = recipe.training.precision
        self._precision = usable_precision(device, precision)
        self._techniques = accelerate(device, precision)
        torch.manual_seed(recipe.training.seed)
        self.model = build(
            recipe.model,
            source_vocabulary=prepared.source_tokenizer.size,
            target_vocabulary=prepared.target_tokenizer.size,
        ).to(device)
        self._learner = Learner(self.model, recipe.optimizer, recipe.training, device)
        self._notes = [] if saved else begin(self.model, recipe, prepared)
        if self._precision != precision:
            self._notes.append(NO_BF16)
        run.claim(folder, recipe)
        decay = recipe.training.moving_average
        self._average = averaged(self.model, decay) if decay else None
        if saved:
            self.place = saved.place
            self.model.load_state_dict(saved.model)
            self._learner.optimizer.load_state_dict(saved.optimizer)
            self._learner.scaler.load_state_dict(saved.scaler)
            if self._average:
                self._average.load_state_dict(saved.average)
            run.set_random_states(saved.random)
        seed = recipe.training.order_seed
        self._plan = BatchPlan(
            prepared.train,
            recipe.batches.unit,
            recipe.batches.size,
            recipe.batches.pool,
            recipe.training.seed if seed is None else seed,
            recipe.batches.curriculum,
        )
        self._feed = self._open_feed()
        self._batches = self._feed.batches  # in the epoch of the latest update
        self._rate = 0.0
        self._restart_interval()

    def train(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Trains to the end, or until `should_stop` says so after an update; saves, and ends.

        Every event of update N has been taken before the checkpoint of update N is written.

        Raises:
            DivergedError: the loss is not finite; the last checkpoint stays as it was.
            ModelError: a checkpoint cannot be written.
        """
        if self._feed.closed:
            self._feed = self._open_feed()
            self._batches = self._feed.batches
        try:
            yield from self._train(should_stop)
        finally:
            self._feed.close()

    def _open_feed(self) -> Feed:
        """What there is to learn from the training's place on."""
        place, device = self.place, self._device
        ahead = AHEAD if device.type == "cuda" else 0
        return Feed(
            self._plan, self.recipe, device, epoch=place.epoch, batch=place.batch, ahead=ahead
        )

    def _train(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        settings = self.recipe.training
        yield Started(
            *self._position(),
            parameters=self.model.parameter_count(),
            pairs=len(self.prepared.train),
            batches=self._batches,
            updates=self._planned(),
            device=str(self._device),
            precision=self._precision,
            techniques=(*self._techniques, *self._learner.techniques),
            notes=tuple(self._notes),
        )
        if self.place.update:
            self._mend_last()
        self._restart_interval()
        reason = self.reason_to_end()
        while not reason:
            ends_epoch = self._update()
            update = self.place.update
            for note in self._learner.take_notes():
                yield Noted(*self._position(), note=note)
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
        batches = self._batches
        # A single quotient: 68 of 50 are 1.36 in binary too, but 1 + 18 / 50 is less.
        return self.place.update, (self.place.epoch * batches + self.place.batch) / batches

    def _planned(self) -> int:
        """Updates in all; where batches are counted in tokens, about as many."""
        settings = self.recipe.training
        updates = math.ceil(round(settings.epochs * self._batches, 6))  # 1.1 * 50 is 55
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

    @property
    def _best_known(self) -> Seq2Seq:
        """The model that is measured and kept: the moving average where there is one."""
        if self._average is None:
            return self.model
        model: Seq2Seq = self._average.get_submodule("module")  # type: ignore[assignment]
        return model

    def _restart_interval(self) -> None:
        """Begins to count anew for the next `Progress`."""
        self._loss = torch.zeros((), device=self._device)
        self._norm = torch.zeros((), device=self._device)
        self._words = self._padded = 0
        self._clock = time.perf_counter()

    def _update(self) -> bool:
        """One update; whether it was the last of its epoch."""
        settings, place = self.recipe.training, self.place
        update = next(self._feed)
        parts, self._batches = update.parts, update.batches
        words = sum(part.words for part in parts)
        count = sum(part.sentences for part in parts) if settings.loss_per == "sentence" else words
        self._rate = learning_rate(
            self.recipe.schedule,
            self.recipe.optimizer.lr,
            self._position()[1],
            place.update,
            place.stalled,
        )
        self.model.train()
        loss, norm = self._learner.learn(parts, count, self._rate, self._exposure())
        # A scaled loss overflows now and then; the update is left out then, and the scale halved.
        scaled = self._learner.scaler.is_enabled()
        self._norm = torch.where(norm.isfinite(), norm, self._norm) if scaled else norm
        self._loss += loss
        self._padded += sum(part.inputs.numel() for part in parts)
        if self._average:
            self._average.update_parameters(self.model)
        self._words += words
        place.update += 1
        place.results = {}
        place.batch += 1
        if place.batch < self._batches:
            return False
        place.epoch, place.batch = place.epoch + 1, 0
        return True

    def _exposure(self) -> Exposure | None:
        """How much truth the decoder sees in the next update; None for all of it."""
        spec = self.recipe.training.teacher_forcing
        ratio = truth_ratio(spec, epoch=self._position()[1], update=self.place.update)
        return Exposure(ratio, spec.coin, spec.own) if ratio < 1 else None

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
        model = self._best_known.eval()
        perplexity = validation.perplexity(model, pairs, self.recipe)
        if not math.isfinite(perplexity):
            raise self._diverged(f"the validation perplexity is {perplexity}")
        found: dict[str, float] = {}
        hypotheses: list[str] = []
        references = self.prepared.validation_references
        if self.recipe.evaluation.metrics:
            tokenizer = self.prepared.target_tokenizer
            hypotheses = validation.translations(model, pairs.source, tokenizer, self.recipe)
            found = validation.scores(hypotheses, references, self.recipe)
        results = {"perplexity": perplexity, **found}
        select = self.recipe.evaluation.select
        improved = validation.is_better(results, self.place.best, select)
        self.place.waiting = 0 if improved else self.place.waiting + 1
        schedule = self.recipe.schedule
        if schedule.kind == "plateau" and self.place.waiting:
            self.place.stalled += self.place.waiting % schedule.wait == 0
        keeping.keep(
            self.folder,
            self.place,
            results[select],
            select,
            self.recipe.training.keep_best,
            lambda name: self._save_model(name, results),
        )
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
            self._best_known,
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
            self._average.state_dict() if self._average else {},
            self._learner.optimizer.state_dict(),
            run.random_states(),
            self._learner.scaler.state_dict(),
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
