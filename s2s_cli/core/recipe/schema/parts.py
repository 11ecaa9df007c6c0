"""What a model is put together from: `[model.encoder]`, `[model.decoder]`, start values."""

from typing import Annotated, Literal

from pydantic import Field

from s2s_cli.core.recipe.schema.table import Count, FilePath, Positive, Probability, Table

CellName = Literal[
    "lstm", "lstm-peephole", "lstm-layer-norm", "gru", "gru-cho", "gru-bahdanau", "tanh"
]
BridgeName = Literal["copy", "last", "tanh", "first-backward", "linear", "zero"]


# --- what both sides have --------------------------------------------------------------------


class Vectors(Table):
    """Word vectors made elsewhere, as text: word2vec, GloVe or fastText."""

    path: FilePath = Field(
        description="A word and its numbers a line, parted by spaces; a first line of two "
        "numbers is skipped. Plain or .gz. Words that it lacks keep their start "
        "values."
    )
    frozen: bool = Field(
        False, description="Keep every vector of this side as it is read (or drawn) at the start."
    )


class Side(Table):
    """Words and a stack of recurrent layers: what encoder and decoder share."""

    cell: CellName = Field(
        "lstm",
        description="Recurrent cell. `lstm`, `gru` (reset after the product, z the share kept) and "
        "`tanh` as torch and cuDNN define them; `lstm-peephole`: Graves 2013; `lstm-layer-norm`: "
        "each gate normalised (Ba et al. 2016, Chen et al. 2018); `gru-cho`: reset before the "
        "product, z the share of the old state; `gru-bahdanau`: the same, z the share of the new.",
    )
    layers: Positive = Field(description="Layers of the stack.")
    embedding: Positive = Field(description="Numbers in a word's vector.")
    embedding_rank: Count = Field(
        0, description="Rank of the vectors: a table of that width times a matrix; 0: full."
    )
    vectors: Vectors | None = Field(None, description="Word vectors to begin with.")
    hidden: Positive = Field(description="Cells in a layer, of one direction.")
    residual_from: Count = Field(
        0,
        description="The first layer, counted from 1, that adds its input to its output, as all "
        "above it do; 0: none.",
    )
    dropout: Probability = Field(0.0, description="Dropout between the layers.")
    embedding_dropout: Probability = Field(0.0, description="Dropout on the words' vectors.")
    variational: bool = Field(
        False,
        description="Draw the masks of this side's dropouts once a sentence and not once a step "
        "(Gal & Ghahramani 2016).",
    )


class Encoder(Side):
    """A stack of recurrent layers over the source."""

    bidirectional: bool = Field(
        False,
        description="Each layer reads in both directions and gives both outputs side by side.",
    )

    @property
    def width(self) -> int:
        """Numbers in an output of the last layer, both directions."""
        return self.hidden * (2 if self.bidirectional else 1)


# --- from state to features ------------------------------------------------------------------


class Reading(Table):
    """What a readout reads, beside the context."""

    state: Literal["current", "previous"] = Field(
        "current", description="The last layer's state after, or before, the step."
    )
    word: bool = Field(False, description="Whether the previous word's vector is read too.")


class LinearReadout(Reading):
    """What the softmax reads, as it is, or through one matrix."""

    kind: Literal["linear"] = Field(description="No non-linearity.")
    size: Count = Field(
        0, description="Features of a linear layer before the softmax; 0: no such layer."
    )


class TanhReadout(Reading):
    """tanh of a linear layer (Luong et al. 2015, section 3)."""

    kind: Literal["tanh"] = Field(description="tanh of a linear layer.")
    size: Positive = Field(description="Features for the softmax.")


class MaxoutReadout(Reading):
    """Maxout of pairs (Cho et al. 2014, Bahdanau et al. 2015, appendices)."""

    kind: Literal["maxout"] = Field(description="The larger of each two numbers.")
    size: Positive = Field(description="Features for the softmax, of twice as many numbers.")


Readout = Annotated[LinearReadout | TanhReadout | MaxoutReadout, Field(discriminator="kind")]


class FullSoftmax(Table):
    """One logit a word."""

    kind: Literal["full"] = Field(description="One logit a word.")


class AdaptiveSoftmax(Table):
    """torch's adaptive softmax (Grave et al. 2017), for ids in the order of falling frequency."""

    kind: Literal["adaptive"] = Field(
        description="Rare words in clusters of fewer features; made for the `words` tokenizer, "
        "whose ids fall in frequency."
    )
    cutoffs: tuple[Positive, ...] = Field(
        min_length=1, description="Ids at which a cluster ends, rising, below the vocabulary."
    )
    reduction: float = Field(
        4.0, gt=1, description="Each cluster has that many times fewer features than the last."
    )


Softmax = Annotated[FullSoftmax | AdaptiveSoftmax, Field(discriminator="kind")]


# --- attention -------------------------------------------------------------------------------


class Windowed(Table):
    """Attention that may be local."""

    local_window: Count = Field(
        0, description="D of local-p: attend to 2 D + 1 words around a predicted place; 0: to all."
    )


class Covering(Windowed):
    """Attention that may know what it has attended to."""

    coverage: bool = Field(
        False,
        description="Also read how much attention a word has had so far (Tu et al. 2016, See et "
        "al. 2017), which makes the decoder loop over time.",
    )


class DotAttention(Windowed):
    """h^T s (Luong et al. 2015, section 3.1)."""

    kind: Literal["dot"] = Field(description="h^T s.")


class GeneralAttention(Windowed):
    """h^T W s (Luong et al. 2015, section 3.1)."""

    kind: Literal["general"] = Field(description="h^T W s.")


class ConcatAttention(Covering):
    """v^T tanh(W [h; s]) of the decoder's size (Luong et al. 2015, section 3.1)."""

    kind: Literal["concat"] = Field(description="v^T tanh(W [h; s]), as wide as the state.")


class AdditiveAttention(Covering):
    """v^T tanh(W s + U h) (Bahdanau et al. 2015, appendix A.1.2)."""

    kind: Literal["additive"] = Field(description="v^T tanh(W s + U h).")
    size: Positive = Field(description="Numbers in the sum, the paper's n'.")


class MultiHeadAttention(Table):
    """Several additive attentions, each over its share of the outputs (Chen et al. 2018)."""

    kind: Literal["multi-head"] = Field(description="Additive attention by several heads.")
    size: Positive = Field(description="Numbers in the sums of all heads together.")
    heads: Positive = Field(description="Heads; they divide `size` and the encoder's width.")


class LocationAttention(Table):
    """softmax(W s): a weight for each place, whatever stands there (Luong et al. 2015)."""

    kind: Literal["location"] = Field(description="softmax(W s) over the places of the source.")
    longest: Positive = Field(
        description="Places that have a weight, in the order of reading; later words have none."
    )


AttentionTable = Annotated[
    DotAttention
    | GeneralAttention
    | ConcatAttention
    | AdditiveAttention
    | MultiHeadAttention
    | LocationAttention,
    Field(discriminator="kind"),
]


# --- decoders --------------------------------------------------------------------------------


class DecoderSide(Side):
    """What all decoders have."""

    start: Literal["eos", "bos"] = Field(
        "bos", description="The symbol that the decoder reads first."
    )
    bridge: BridgeName = Field(
        "copy",
        description="The first state. `copy`: every layer takes over its twin's; `last`: every "
        "layer the encoder's last layer's; `tanh`: tanh(V c), c the encoder's last layer's state "
        "(Cho et al. 2014), an LSTM's memory zero; `first-backward`: the same of the backward "
        "direction alone (Bahdanau et al. 2015); `linear`: a linear layer for each part of the "
        "state; `zero`: zeros.",
    )
    output_dropout: Probability = Field(0.0, description="Dropout before the softmax.")
    readout: Readout = Field(
        default=LinearReadout(kind="linear"), description="From the state to the softmax."
    )
    softmax: Softmax = Field(
        default=FullSoftmax(kind="full"), description="From features to probabilities."
    )


class PlainDecoder(DecoderSide):
    """Sutskever et al. 2014: the source is known through the first state alone."""

    kind: Literal["plain"] = Field(
        description="No context but the state handed over (Sutskever et al. 2014)."
    )


class PeekyDecoder(DecoderSide):
    """Cho et al. 2014: a context that never changes is seen at every step."""

    kind: Literal["peeky"] = Field(
        description="The source's last state at every step (Cho et al. 2014)."
    )
    context_to: Literal["cell", "readout", "both"] = Field(
        "both", description="What reads the context: the first layer, the readout, or both."
    )
    context: Literal["state", "tanh"] = Field(
        "state",
        description="`state`: the encoder's last layer's state h; `tanh`: tanh(V h) (Cho et al. "
        "2014, appendix A), from which a `tanh` or `linear` bridge starts then, too.",
    )


class AttentionDecoder(DecoderSide):
    """Bahdanau et al. 2015, Luong et al. 2015: at each step another view of the source."""

    kind: Literal["attention"] = Field(description="Attention to all words of the source.")
    attention: AttentionTable = Field(description="How words are scored.")
    query: Literal["current", "previous", "bottom"] = Field(
        "current",
        description="`current`: the state after the step asks, the context goes to the readout "
        "(Luong et al. 2015); `previous`: the state before the step asks, the context goes to the "
        "first layer and the readout (Bahdanau et al. 2015), in a loop over time; `bottom`: the "
        "first layer asks after its step, the context goes to all layers and the readout, to the "
        "first at its next step (Chen et al. 2018), in a loop over time.",
    )
    input_feeding: bool = Field(
        False,
        description="The readout's output is read with the next word (Luong et al. 2015, section "
        "3.3), in a loop over time; with `query = current`.",
    )


Decoder = Annotated[
    PlainDecoder | PeekyDecoder | AttentionDecoder,
    Field(discriminator="kind"),
]


# --- start values ----------------------------------------------------------------------------


class Initialization(Table):
    """What all kinds of start values may have on top."""

    recurrent: Literal["same", "orthogonal"] = Field(
        "same", description="`orthogonal`: each gate's recurrent matrix is a random rotation."
    )
    forget_bias: float = Field(
        0.0, description="Added to the forget-gate bias of every LSTM layer."
    )


class UniformInitialization(Initialization):
    """Every parameter from the same uniform distribution."""

    kind: Literal["uniform"] = Field(description="Every parameter uniform in [-range, range].")
    range: float = Field(gt=0, description="Half the width of the distribution.")


class NormalInitialization(Initialization):
    """Matrices from a normal distribution, biases zero."""

    kind: Literal["normal"] = Field(description="Matrices normal with mean 0, biases zero.")
    std: float = Field(gt=0, description="Standard deviation.")
    attention_std: float = Field(
        0.0,
        ge=0,
        description="That of the matrices W and U of additive attention, whose vector v is zero "
        "then (Bahdanau et al. 2015, appendix B.1); 0: as all others.",
    )


class XavierInitialization(Initialization):
    """Matrices by Glorot & Bengio 2010, each gate's by itself; biases zero."""

    kind: Literal["xavier"] = Field(
        description="Matrices uniform in +-sqrt(6 / (inputs + outputs)), biases zero."
    )


class TorchInitialization(Initialization):
    """What torch's layers do by themselves."""

    kind: Literal["torch"] = Field(description="torch's own start values.")


StartValues = Annotated[
    UniformInitialization | NormalInitialization | XavierInitialization | TorchInitialization,
    Field(discriminator="kind"),
]
