"""`[optimizer]` and `[schedule]`: the update rule, and its rate over time."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from s2s_cli.core.recipe.schema.table import Count, Positive, Probability, Table


class Sgd(Table):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = Field(description="Stochastic gradient descent.")
    lr: float = Field(gt=0, description="Learning rate.")
    momentum: Probability = Field(0.0, description="Momentum.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")


class Adam(Table):
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019)."""

    kind: Literal["adam", "adamw"] = Field(
        description="`adamw` decays weights apart from the gradient."
    )
    lr: float = Field(gt=0, description="Learning rate.")
    beta1: Probability = Field(0.9, description="Decay of the gradient's mean.")
    beta2: Probability = Field(0.999, description="Decay of the squared gradient's mean.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")


class Adagrad(Table):
    """Adagrad (Duchi et al. 2011)."""

    kind: Literal["adagrad"] = Field(description="Adagrad.")
    lr: float = Field(gt=0, description="Learning rate.")
    initial: float = Field(0.0, ge=0, description="Sum of squared gradients to begin with.")
    epsilon: float = Field(1e-10, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")


class Adadelta(Table):
    """Adadelta (Zeiler 2012)."""

    kind: Literal["adadelta"] = Field(description="Adadelta.")
    lr: float = Field(1.0, gt=0, description="Factor of each step; the paper has none, 1.")
    rho: Probability = Field(0.95, description="Decay of the means of squares.")
    epsilon: float = Field(1e-6, gt=0, description="Added to both means of squares.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")


Optimizer = Annotated[Sgd | Adam | Adagrad | Adadelta, Field(discriminator="kind")]


class ConstantSchedule(Table):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = Field(description="The learning rate stays as it is.")


class HalvingSchedule(Table):
    """The learning rate is halved at `start` and again every `every` epochs."""

    kind: Literal["halving"] = Field(description="Halve again and again from some epoch on.")
    start: float = Field(ge=0, description="Epochs, fractions allowed, before the first halving.")
    every: float = Field(gt=0, description="Epochs, fractions allowed, between halvings.")


class PlateauSchedule(Table):
    """The learning rate falls when validations get no better."""

    kind: Literal["plateau"] = Field(description="Lower the rate when validations stall.")
    factor: float = Field(0.5, gt=0, lt=1, description="What the rate is multiplied by.")
    wait: Positive = Field(
        1, description="Validations in a row without a better one before each such step."
    )


class InverseSqrtSchedule(Table):
    """Linear warm-up, then the inverse square root of the updates (Vaswani et al. 2017, 5.3)."""

    kind: Literal["inverse-sqrt"] = Field(
        description="lr min(u / warmup, sqrt(warmup / u)) at update u, counted from 1."
    )
    warmup: Positive = Field(description="Updates until the rate is `optimizer.lr`.")


class ExponentialSchedule(Table):
    """Linear warm-up, a plateau, and an exponential fall to a last rate (Chen et al. 2018)."""

    kind: Literal["exponential"] = Field(
        description="Rise in a line to `optimizer.lr`, stay, fall by the same factor each update, "
        "stay."
    )
    warmup: Count = Field(0, description="Updates until the rate is `optimizer.lr`.")
    first: float = Field(
        0.0, ge=0, le=1, description="The rate at update 0, as a share of `optimizer.lr`."
    )
    start: Count = Field(description="Update at which the rate begins to fall.")
    end: Positive = Field(description="Update from which it stays at `last`.")
    last: float = Field(gt=0, le=1, description="The last rate, as a share of `optimizer.lr`.")

    @model_validator(mode="after")
    def in_order(self) -> Self:
        """Warm-up, start, end."""
        if self.first and not self.warmup:
            raise ValueError(
                f"schedule.first = {self.first:g} is where a warm-up begins, but schedule.warmup = "
                "0; a warmup, or first = 0.0, would work"
            )
        if not self.warmup <= self.start < self.end:
            raise ValueError(
                f"schedule.warmup = {self.warmup}, schedule.start = {self.start} and schedule.end "
                f"= {self.end} should rise: warmup <= start < end"
            )
        return self


Schedule = Annotated[
    ConstantSchedule
    | HalvingSchedule
    | PlateauSchedule
    | InverseSqrtSchedule
    | ExponentialSchedule,
    Field(discriminator="kind"),
]
