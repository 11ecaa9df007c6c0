"""The whole recipe."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from s2s_cli.core.recipe.schema.batches import Batches
from s2s_cli.core.recipe.schema.data import Data, SeparateTokenizers, SharedTokenizer
from s2s_cli.core.recipe.schema.model import Model
from s2s_cli.core.recipe.schema.optimization import ConstantSchedule, Optimizer, Schedule
from s2s_cli.core.recipe.schema.parts import AdaptiveSoftmax, AttentionDecoder
from s2s_cli.core.recipe.schema.search import Search
from s2s_cli.core.recipe.schema.table import Table
from s2s_cli.core.recipe.schema.training import Evaluation, Expectation, Training


class Recipe(Table):
    """An experiment, from text to score."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run's folder; by default the name of the recipe's file.",
    )
    about: str = Field("", description="What this is, in a line.")
    differs: tuple[str, ...] = Field((), description="Where it departs from its paper.")
    expects: tuple[Expectation, ...] = Field((), description="Scores it has reached.")
    data: Data = Field(description="What is learned from.")
    tokenizer: Annotated[SharedTokenizer | SeparateTokenizers, Field(discriminator="kind")] = Field(
        description="From text to numbers."
    )
    batches: Batches = Field(default_factory=Batches, description="How pairs are batched.")
    model: Model = Field(description="The network.")
    optimizer: Optimizer = Field(description="The update rule.")
    schedule: Schedule = Field(
        default=ConstantSchedule(kind="constant"), description="The learning rate over time."
    )
    training: Training = Field(default_factory=Training, description="How long, and how.")
    search: Search = Field(default_factory=Search, description="How translations are found.")
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="What is measured in validation."
    )

    @model_validator(mode="after")
    def tables_fit(self) -> Self:
        """What no table can see by itself."""
        found = []
        if self.model.tie == "three-way" and isinstance(self.tokenizer, SeparateTokenizers):
            found.append(
                "model.tie = 'three-way' needs one vocabulary, but tokenizer.kind = 'separate'; "
                "tokenizer.kind = 'shared' or tie = 'softmax' would work"
            )
        if isinstance(self.model.decoder.softmax, AdaptiveSoftmax):
            if self.training.label_smoothing:
                found.append(
                    "training.label_smoothing spreads probability over all words, which "
                    "model.decoder.softmax.kind = 'adaptive' never writes out; label_smoothing = "
                    "0.0 or softmax.kind = 'full' would work"
                )
            cutoffs = list(self.model.decoder.softmax.cutoffs)
            vocabulary = self.tokenizer.sides[1].vocabulary
            if cutoffs[-1] >= vocabulary:
                found.append(
                    f"model.decoder.softmax.cutoffs = {cutoffs} should be below the target's "
                    f"tokenizer vocabulary = {vocabulary}"
                )
        if self.batches.parts > 1 and self.training.teacher_forcing.coin == "batch":
            found.append(
                f"batches.parts = {self.batches.parts} would throw the coin of "
                "training.teacher_forcing.coin = 'batch' for each part; parts = 1, or a coin for "
                "each sequence or token, would work"
            )
        for name, side in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            if self.training.start_from and side.vectors:
                found.append(
                    f"training.start_from takes all vectors from that model, but model.{name}."
                    "vectors names a file; leave one of them out"
                )
        if self.batches.unit == "sentences" and self.batches.parts > self.batches.size:
            found.append(
                f"batches.parts = {self.batches.parts} are more than the pairs of a batch, "
                f"batches.size = {self.batches.size}; at most one a pair would work"
            )
        if not isinstance(self.model.decoder, AttentionDecoder):
            found += [
                f"{asked} needs attention, but model.decoder.kind = {self.model.decoder.kind!r} "
                "has none; leave it out, or take a model with attention"
                for asked in self.search.needs_attention
            ]
        if self.schedule.kind == "plateau" and self.data.validation is None:
            found.append(
                "schedule.kind = 'plateau' waits for validations, but there is no data.validation; "
                "give it, or choose another schedule"
            )
        if self.data.validation is None:
            counts = {"patience": self.training.patience, "keep_best": self.training.keep_best}
            found += [
                f"training.{key} = {value} counts validations, but there is no data.validation; "
                f"give it, or set {key} = 0"
                for key, value in counts.items()
                if value
            ]
        if found:
            raise ValueError("\n".join(found))
        return self
