"""`[data]` and `[tokenizer]`: what is learned from, and how it becomes numbers."""

from typing import Annotated, Literal

from pydantic import Field

from s2s_cli.core.recipe.schema.table import (
    Count,
    FilePath,
    PathOrName,
    Positive,
    Table,
)


class Source(Table):
    """What every kind of corpus has."""

    limit: Count = Field(0, description="Read only the first N pairs; 0 reads all.")
    sample: Count = Field(
        0,
        description="Keep N pairs, drawn at random without replacement from those with text on "
        "both sides, in their order; 0 keeps all.",
    )
    sample_seed: Count = Field(1, description="Seed of `sample`.")


class TextFiles(Source):
    """Parallel text: two files, one sentence a line, plain or .gz."""

    kind: Literal["text"] = Field(description="Parallel text in two files.")
    source: FilePath = Field(description="File of source sentences, plain or .gz.")
    target: FilePath = Field(description="File of target sentences, plain or .gz.")


class TsvFile(Source):
    """One file with a pair a line, columns parted by tabs, plain or .gz. No quoting."""

    kind: Literal["tsv"] = Field(description="One file, columns parted by tabs.")
    path: FilePath = Field(description="The file, plain or .gz.")
    source_column: Positive = Field(1, description="Column of the source, counted from 1.")
    target_column: Positive = Field(2, description="Column of the target, counted from 1.")


class HubDataset(Source):
    """A data set of the Hugging Face hub, or a local folder with the hub's layout."""

    kind: Literal["hub"] = Field(description="A data set read with the `datasets` library.")
    dataset: PathOrName = Field(
        description="Name on the hub (`wmt/wmt14`), or a folder: `./...`, `../...` or `/...`."
    )
    subset: str = Field("", description="Configuration of the data set (`fr-en`).")
    split: str = Field("train", description="Split of the data set.")
    revision: str = Field("", description="Commit or tag on the hub; empty takes the newest.")
    source_column: str = Field(
        description="Column of the source; a dot enters a nested column (`translation.en`)."
    )
    target_column: str = Field(description="Column of the target.")


Corpus = Annotated[TextFiles | TsvFile | HubDataset, Field(discriminator="kind")]


class MaxLength(Table):
    """Training pairs with a longer side are dropped, and counted in the report."""

    source: Count = Field(0, description="Longest source in tokens; 0 keeps all.")
    target: Count = Field(0, description="Longest target in tokens; 0 keeps all.")


class Data(Table):
    """What is learned from."""

    prepared: FilePath | None = Field(
        None, description="Folder of the prepared corpus; by default `prepared/NAME-FINGERPRINT`."
    )
    train: Corpus = Field(description="The training pairs.")
    validation: Corpus | None = Field(None, description="The pairs that choose the best model.")
    max_length: MaxLength = Field(
        default_factory=MaxLength, description="Length limits of training pairs."
    )


class SentencePiece(Table):
    """Subwords or characters by SentencePiece, trained on the training text."""

    kind: Literal["unigram", "bpe", "char"] = Field(description="SentencePiece's model type.")
    vocabulary: int = Field(
        ge=4,
        description="Entries in all, the three special symbols counted; the text may give fewer.",
    )
    character_coverage: float = Field(
        1.0, gt=0, le=1, description="Share of the text's characters that get an entry."
    )
    normalization: Literal["nmt_nfkc", "nfkc", "identity"] = Field(
        "nmt_nfkc", description="SentencePiece's normalisation rule."
    )
    sample: Positive = Field(
        1_000_000, description="Sentences a side that the tokenizer is trained on, at most."
    )


class Words(Table):
    """The most frequent words; each other word becomes `<unk>`."""

    kind: Literal["words"] = Field(description="Words parted by white space.")
    vocabulary: int = Field(
        ge=4,
        description="Entries in all, the three special symbols counted; the text may give fewer.",
    )
    pretokenizer: Literal["none", "moses"] = Field(
        "none", description="`moses`: Moses tokenisation before, detokenisation of the output."
    )
    language: str = Field("en", description="Language of the Moses rules.")


OneTokenizer = Annotated[SentencePiece | Words, Field(discriminator="kind")]


class SharedTokenizer(Table):
    """One tokenizer, trained on both sides, for both sides."""

    kind: Literal["shared"] = Field(description="One tokenizer for both sides.")
    model: OneTokenizer = Field(description="The tokenizer of both sides.")

    @property
    def sides(self) -> tuple[OneTokenizer, OneTokenizer]:
        """The source's and the target's."""
        return self.model, self.model


class SeparateTokenizers(Table):
    """A tokenizer a side."""

    kind: Literal["separate"] = Field(description="A tokenizer for each side.")
    source: OneTokenizer = Field(description="The source's tokenizer.")
    target: OneTokenizer = Field(description="The target's tokenizer.")

    @property
    def sides(self) -> tuple[OneTokenizer, OneTokenizer]:
        """The source's and the target's."""
        return self.source, self.target
