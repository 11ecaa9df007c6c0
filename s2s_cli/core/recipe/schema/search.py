"""`[search]`: how a translation is looked for, what it may be, and what is told of it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from s2s_cli.core.recipe.schema.table import Count, FilePath, Positive, Table

EnsembleMean = Literal["probabilities", "log-probabilities", "logits"]
Unknown = Literal["keep", "forbid", "replace"]


class Sampling(Table):
    """Translations are drawn word by word, not searched for, and come in the order of drawing."""

    temperature: float = Field(
        1.0, ge=0.001, le=1000, description="What logits are divided by; below 1 the likely gain."
    )
    top_k: Count = Field(0, description="Draw among the K likeliest words alone; 0: all.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Draw among the fewest words, of those that temperature and `top_k` leave, "
        "that together have this probability; 1: all.",
    )
    seed: int = Field(
        1,
        ge=0,
        lt=1 << 63,
        description="What is drawn depends on it, the line's number and the sample's alone.",
    )


class Search(Table):
    """How a translation is looked for."""

    beam_size: Positive = Field(5, description="Width of the beam; 1 is greedy.")
    sampling: Sampling | None = Field(
        None, description="Draw translations by chance; `beam_size` is not used then."
    )
    length_normalization: Literal["gnmt", "average"] = Field(
        "gnmt",
        description="What ranks translations: `gnmt`, the log-probability divided by GNMT's "
        "penalty, which `length_penalty` = 0 switches off; `average`, divided by the pieces, EOS "
        "counted.",
    )
    length_penalty: float = Field(
        0.0,
        ge=0,
        le=10,
        description="GNMT's alpha: scores are divided by ((5 + length) / 6) ** alpha.",
    )
    coverage_penalty: float = Field(
        0.0,
        ge=0,
        le=100,
        description="GNMT's beta: beta times the sum, over the words of the source without its "
        "EOS, of log(min(attention it has had, 1)) is added to a score, of log(1e-6) at least; "
        "needs attention.",
    )
    min_length_ratio: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Pieces of a translation at least: ratio * pieces of the source.",
    )
    max_length_ratio: float = Field(
        2.0,
        gt=0,
        le=1000,
        description="Pieces of a translation at most: ratio * pieces of the source + 10.",
    )
    no_repeat_ngram: Count = Field(
        0, description="No N pieces in a row twice in a translation; 0: off."
    )
    prefix: str = Field(
        "",
        description="What every translation begins with; a line's own prefix replaces it. White "
        "space at its end does not count: its last word may go on.",
    )
    unk: Unknown = Field(
        "keep",
        description="The unknown word `<unk>`: `keep`, as any other; `forbid`; `replace`, in the "
        "text, by the source word that attention weighs most, which needs attention.",
    )
    shortlist: FilePath | None = Field(
        None,
        description="A file with the pieces that may be said, one a line, plain or .gz; EOS may "
        "always be. Probabilities are among these pieces alone then.",
    )
    ensemble: EnsembleMean = Field(
        "probabilities",
        description="How several models are joined: by the mean of their `probabilities`, or of "
        "their `log-probabilities`, normalised again; that of `logits` is the same as the latter.",
    )
    word_scores: bool = Field(
        False, description="Tell the log-probability of each piece and of EOS (jsonl, tsv)."
    )
    alignment: bool = Field(
        False,
        description="Tell the source piece of each piece as Pharaoh's `i-j` (jsonl, tsv, moses), "
        "and the attention itself (jsonl); needs attention.",
    )
    max_source: Positive = Field(
        1024, description="A longer source, in pieces, is translated in parts, with a warning."
    )
    batch_size: Count = Field(
        0,
        description="Sentences that are searched together; 0: as many as have 1,024 hypotheses. "
        "Fewer where sources are so long that padded they had more than 32,768 pieces.",
    )

    @property
    def needs_attention(self) -> tuple[str, ...]:
        """What is set that cannot be done without attention."""
        asked = {
            f"search.coverage_penalty = {self.coverage_penalty:g}": self.coverage_penalty > 0,
            'search.unk = "replace"': self.unk == "replace",
            "search.alignment = true": self.alignment,
        }
        return tuple(told for told, is_set in asked.items() if is_set)

    @model_validator(mode="after")
    def keys_fit(self) -> Self:
        """What no key can see by itself."""
        found = []
        if self.min_length_ratio > self.max_length_ratio:
            found.append(
                f"search.min_length_ratio = {self.min_length_ratio:g} is above "
                f"search.max_length_ratio = {self.max_length_ratio:g}; at most that would work"
            )
        if self.length_normalization == "average" and self.length_penalty:
            found.append(
                f"search.length_penalty = {self.length_penalty:g} is GNMT's, but "
                "search.length_normalization = 'average'; length_penalty = 0.0 or "
                "length_normalization = 'gnmt' would work"
            )
        if found:
            raise ValueError("\n".join(found))
        return self
