"""`[batches]`: how pairs are put together for an update, and in which order they are met."""

from typing import Literal, Self

from pydantic import Field, model_validator

from s2s_cli.core.recipe.schema.table import Positive, Table


class Curriculum(Table):
    """Easy pairs first (Platanios et al. 2019).

    A pair may be drawn when the share of pairs that are easier is at most the competence c(t).
    """

    difficulty: Literal["length", "rarity"] = Field(
        description="Of a source: its words, or the sum of -log p(word) over them."
    )
    competence: Literal["linear", "root"] = Field(
        "root",
        description="`linear`: min(1, t (1 - c0) / T + c0); `root`: "
        "min(1, sqrt(t (1 - c0^2) / T + c0^2)).",
    )
    start: float = Field(0.01, gt=0, le=1, description="c0, the competence of the first update.")
    updates: Positive = Field(description="T, the update from which all pairs are met.")


class Batches(Table):
    """How pairs are put together for an update."""

    unit: Literal["sentences", "tokens"] = Field(
        "sentences", description="What `size` counts: pairs, or tokens of the longer padded side."
    )
    size: Positive = Field(128, description="Size of a batch, in `unit`.")
    pool: Positive = Field(
        1000, description="Batches' worth of pairs that are sorted by length together."
    )
    parts: Positive = Field(
        1,
        description="Compute an update's batch in so many parts, one after another (gradient "
        "accumulation): the same update but for the draws of dropout, in less memory.",
    )
    curriculum: Curriculum | None = Field(None, description="Easy pairs first; none: all at once.")

    @model_validator(mode="after")
    def curriculum_counts_sentences(self) -> Self:
        """A curriculum draws a number of pairs."""
        if self.curriculum and self.unit == "tokens":
            raise ValueError(
                "batches.curriculum draws a number of pairs, but batches.unit = 'tokens'; unit = "
                "'sentences' would work"
            )
        return self
