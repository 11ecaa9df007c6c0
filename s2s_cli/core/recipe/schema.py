"""Every key of a recipe, with its type, its default and what it means. Defaults live here only."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class PathKey:
    """Marks a string as a path: a relative one is read from the folder of the recipe's file.

    With `or_name` only what begins with `.`, `/` or `~` is a path; anything else is a name.
    """

    or_name: bool = False


FilePath = Annotated[str, PathKey()]
PathOrName = Annotated[str, PathKey(or_name=True)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
MetricName = Literal["bleu", "chrf", "ter", "exact", "wer"]
Selection = Literal["perplexity"] | MetricName


class Table(BaseModel):
    """A table of a recipe: immutable, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# --- data ------------------------------------------------------------------------------------


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


# --- tokenizer -------------------------------------------------------------------------------


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


class SeparateTokenizers(Table):
    """A tokenizer a side."""

    kind: Literal["separate"] = Field(description="A tokenizer for each side.")
    source: OneTokenizer = Field(description="The source's tokenizer.")
    target: OneTokenizer = Field(description="The target's tokenizer.")


# --- batches and model -----------------------------------------------------------------------


class Batches(Table):
    """How pairs are put together for an update."""

    unit: Literal["sentences", "tokens"] = Field(
        "sentences", description="What `size` counts: pairs, or tokens of the longer padded side."
    )
    size: Positive = Field(128, description="Size of a batch, in `unit`.")
    pool: Positive = Field(
        1000, description="Batches' worth of pairs that are sorted by length together."
    )


class Encoder(Table):
    """A stack of recurrent layers over the source."""

    cell: Literal["lstm", "gru", "tanh"] = Field(
        "lstm", description="Recurrent cell, as torch (cuDNN) defines it."
    )
    layers: Positive = Field(description="Layers of the stack.")
    embedding: Positive = Field(description="Numbers in a word's vector.")
    hidden: Positive = Field(description="Cells in a layer.")
    dropout: Probability = Field(0.0, description="Dropout between the layers.")
    embedding_dropout: Probability = Field(0.0, description="Dropout on the words' vectors.")


class PlainDecoder(Table):
    """Sutskever et al. 2014: the source is known through the first state alone."""

    kind: Literal["plain"] = Field(
        description="No context but the state handed over (Sutskever et al. 2014)."
    )
    cell: Literal["lstm", "gru", "tanh"] = Field("lstm", description="Recurrent cell.")
    layers: Positive = Field(description="Layers of the stack; as many as the encoder's.")
    embedding: Positive = Field(description="Numbers in a word's vector.")
    hidden: Positive = Field(description="Cells in a layer; as many as the encoder's.")
    start: Literal["eos", "bos"] = Field(
        "bos", description="The symbol that the decoder reads first."
    )
    dropout: Probability = Field(0.0, description="Dropout between the layers.")
    embedding_dropout: Probability = Field(0.0, description="Dropout on the words' vectors.")
    output_dropout: Probability = Field(0.0, description="Dropout before the output layer.")


class UniformInitialization(Table):
    """Every parameter from the same uniform distribution."""

    kind: Literal["uniform"] = Field(description="Every parameter uniform in [-range, range].")
    range: float = Field(gt=0, description="Half the width of the distribution.")


class TorchInitialization(Table):
    """What torch's layers do by themselves."""

    kind: Literal["torch"] = Field(description="torch's own start values.")
    forget_bias: float = Field(
        0.0, description="Added to the forget-gate bias of every LSTM layer."
    )


class Model(Table):
    """The network."""

    reverse_source: bool = Field(
        False, description="Feed the source's words last to first, end of sentence last."
    )
    encoder: Encoder = Field(description="The reader of the source.")
    decoder: PlainDecoder = Field(description="The writer of the target.")
    initialization: Annotated[
        UniformInitialization | TorchInitialization, Field(discriminator="kind")
    ] = Field(
        default=TorchInitialization(kind="torch"), description="Start values of the parameters."
    )

    @model_validator(mode="after")
    def state_fits(self) -> Self:
        """The plain decoder takes over every layer's state unchanged, so the stacks must agree."""
        for key in ("cell", "layers", "hidden"):
            ours, theirs = getattr(self.encoder, key), getattr(self.decoder, key)
            if ours != theirs:
                raise ValueError(
                    f"model.encoder.{key} = {ours!r} and model.decoder.{key} = {theirs!r} differ, "
                    "but a plain decoder takes over the encoder's states as they are; "
                    "make them equal"
                )
        return self


# --- training --------------------------------------------------------------------------------


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


class ConstantSchedule(Table):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = Field(description="The learning rate stays as it is.")


class HalvingSchedule(Table):
    """The learning rate is halved at `start` and again every `every` epochs."""

    kind: Literal["halving"] = Field(description="Halve again and again from some epoch on.")
    start: float = Field(ge=0, description="Epochs, fractions allowed, before the first halving.")
    every: float = Field(gt=0, description="Epochs, fractions allowed, between halvings.")


class Training(Table):
    """How long, how, and how often to look."""

    epochs: float = Field(
        10.0, gt=0, le=1e9, description="Passes over the training pairs, at most."
    )
    max_updates: Count = Field(0, description="Updates at most; 0 sets no limit.")
    seed: int = Field(1, ge=0, lt=1 << 63, description="Seed of start values, order and dropout.")
    loss_per: Literal["sentence", "word"] = Field(
        "sentence", description="What the summed loss of a batch is divided by."
    )
    clip: float = Field(
        5.0, ge=0, description="Largest global norm of the gradient, after that division; 0: off."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="`bf16`: autocast, with fp32 master weights."
    )
    validate_every: Count = Field(
        0, description="Updates between validations; 0 validates at the end of each epoch."
    )
    save_every: Count = Field(
        0, description="Updates between checkpoints; 0 saves after each validation."
    )
    log_every: Positive = Field(50, description="Updates between progress events.")
    patience: Count = Field(
        0, description="Stop after N validations in a row without a better one; 0: never."
    )


class Search(Table):
    """How a translation is looked for."""

    beam_size: Positive = Field(5, description="Width of the beam; 1 is greedy.")
    length_penalty: float = Field(
        0.0,
        ge=0,
        le=10,
        description="GNMT's alpha: scores are divided by ((5 + length) / 6) ** alpha.",
    )
    max_length_ratio: float = Field(
        2.0,
        gt=0,
        le=1000,
        description="Pieces of a translation at most: ratio * pieces of the source + 10.",
    )
    max_source: Positive = Field(
        1024, description="A longer source, in pieces, is translated in parts, with a warning."
    )
    batch_size: Positive = Field(64, description="Sentences that are searched together.")


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
    optimizer: Annotated[Sgd | Adam, Field(discriminator="kind")] = Field(
        description="The update rule."
    )
    schedule: Annotated[ConstantSchedule | HalvingSchedule, Field(discriminator="kind")] = Field(
        default=ConstantSchedule(kind="constant"), description="The learning rate over time."
    )
    training: Training = Field(default_factory=Training, description="How long, and how.")
    search: Search = Field(default_factory=Search, description="How translations are found.")
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="What is measured in validation."
    )
