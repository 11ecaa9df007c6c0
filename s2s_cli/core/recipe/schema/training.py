"""`[training]` and `[evaluation]`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from s2s_cli.core.recipe.schema.table import Count, FilePath, Positive, Probability, Table

MetricName = Literal["bleu", "chrf", "ter", "exact", "wer"]
Selection = Literal["perplexity"] | MetricName
Share = Annotated[float, Field(ge=0, le=1)]


# --- teacher forcing -------------------------------------------------------------------------


class Forcing(Table):
    """What all schedules of teacher forcing have (Bengio et al. 2015)."""

    coin: Literal["token", "sequence", "batch"] = Field(
        "token", description="How often a coin is thrown: for each word, sentence, or batch."
    )
    own: Literal["argmax", "sample"] = Field(
        "argmax", description="The model's own word: its likeliest, or one drawn from it."
    )


class ConstantForcing(Forcing):
    """The same ratio all the time."""

    kind: Literal["constant"] = Field(description="The same ratio all the time.")
    ratio: Share = Field(
        1.0, description="Probability that the decoder reads the true previous word; 1: always."
    )


class FallingForcing(Forcing):
    """A ratio that falls with i."""

    per: Literal["update", "epoch"] = Field(
        "update", description="What i counts: updates, or whole epochs, done."
    )


class LinearForcing(FallingForcing):
    """max(least, first - fall i)."""

    kind: Literal["linear"] = Field(description="max(least, first - fall i).")
    first: Share = Field(1.0, description="The ratio at the beginning, the paper's k.")
    fall: float = Field(gt=0, description="How much it falls each time, the paper's c.")
    least: Share = Field(0.0, description="The smallest ratio, the paper's epsilon.")

    @model_validator(mode="after")
    def it_falls(self) -> Self:
        """From the first to the least."""
        if self.least > self.first:
            raise ValueError(
                f"training.teacher_forcing.first = {self.first:g} and "
                f"training.teacher_forcing.least = {self.least:g}: the ratio falls from the first "
                "to the least; least <= first would work"
            )
        return self


class ExponentialForcing(FallingForcing):
    """k^i."""

    kind: Literal["exponential"] = Field(description="k^i.")
    k: float = Field(gt=0, lt=1, description="What the ratio is multiplied by each time.")


class InverseSigmoidForcing(FallingForcing):
    """k / (k + exp(i / k))."""

    kind: Literal["inverse-sigmoid"] = Field(description="k / (k + exp(i / k)).")
    k: float = Field(ge=1, description="How slowly it falls: to a half at about k ln k.")


TeacherForcing = Annotated[
    ConstantForcing | LinearForcing | ExponentialForcing | InverseSigmoidForcing,
    Field(discriminator="kind"),
]


# --- training --------------------------------------------------------------------------------


class Training(Table):
    """How long, how, and how often to look."""

    epochs: float = Field(
        10.0, gt=0, le=1e9, description="Passes over the training pairs, at most."
    )
    max_updates: Count = Field(0, description="Updates at most; 0 sets no limit.")
    seed: int = Field(
        1, ge=0, lt=1 << 63, description="Seed of start values, dropout and teacher forcing."
    )
    order_seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = Field(
        None, description="Seed of the order of the pairs; by default `seed`."
    )
    start_from: FilePath | None = Field(
        None,
        description="A model file or run to fine-tune: its weights and tokenizers, a fresh "
        "optimiser. `[model]` and `[tokenizer]` have to be its own, dropouts and start values "
        "aside; text is prepared with its tokenizers. Of a run its best model.",
    )
    loss_per: Literal["sentence", "word"] = Field(
        "sentence", description="What the summed loss of a batch is divided by."
    )
    clip: float = Field(
        5.0, ge=0, description="Largest global norm of the gradient, after that division; 0: off."
    )
    label_smoothing: Probability = Field(
        0.0, description="Share of the target's probability that is spread over all words."
    )
    teacher_forcing: TeacherForcing = Field(
        default=ConstantForcing(kind="constant"),
        description="Whether the decoder reads the true previous word or its own.",
    )
    moving_average: Probability = Field(
        0.0,
        description="Decay of a moving average of the weights, which is what is validated and "
        "kept as a model; 0: none.",
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description=(
            "`bf16`, `fp16`: autocast, with fp32 master weights; fp16 with a scaled loss. `tf32`: "
            "fp32 with products rounded to 10 bits. `tf32` and `fp16` need CUDA."
        ),
    )
    cuda_graphs: bool = Field(
        False,
        description="On CUDA, record an update of a frequent shape once and replay it; not yet "
        "verified on a device.",
    )
    validate_every: Count = Field(
        0, description="Updates between validations; 0 validates at the end of each epoch."
    )
    save_every: Count = Field(
        0, description="Updates between checkpoints; 0 saves after each validation."
    )
    keep_best: Count = Field(
        0, description="Keep the N best models in `kept/`, for `s2s average`; 0: the best alone."
    )
    log_every: Positive = Field(50, description="Updates between progress events.")
    patience: Count = Field(
        0, description="Stop after N validations in a row without a better one; 0: never."
    )


class Evaluation(Table):
    """What is measured on the validation pairs."""

    metrics: tuple[MetricName, ...] = Field(
        ("bleu",), description="Scores of the translated validation text; may be empty."
    )
    select: Selection = Field(
        "bleu", description="What the best model is best at; perplexity or one of `metrics`."
    )
    beam_size: Positive = Field(1, description="Width of the beam in validation.")

    @model_validator(mode="after")
    def selected_is_measured(self) -> Self:
        """Only what is measured can choose."""
        if self.select != "perplexity" and self.select not in self.metrics:
            raise ValueError(
                f"evaluation.select = {self.select!r} is not among evaluation.metrics = "
                f"{list(self.metrics)}; add it there or select perplexity"
            )
        return self


class Expectation(Table):
    """A score this recipe has reached."""

    metric: str = Field(description="Name of the score.")
    score: float = Field(description="Its value.")
    data: str = Field(description="The text it was measured on.")
    signature: str = Field("", description="sacreBLEU's signature.")
    command: str = Field("", description="The command that measured it.")
