"""Parts of a model that make no sense together: both keys, and what would work."""

from collections.abc import Iterator

from s2s_cli.core.recipe.schema.parts import (
    AdaptiveSoftmax,
    AttentionDecoder,
    Covering,
    Decoder,
    DotAttention,
    Encoder,
    LinearReadout,
    MultiHeadAttention,
    NormalInitialization,
    PeekyDecoder,
    PlainDecoder,
    StartValues,
)

ENCODER, DECODER = "model.encoder", "model.decoder"


def misfits(encoder: Encoder, decoder: Decoder, tie: str, values: StartValues) -> Iterator[str]:
    """A line for each mistake."""
    yield from _start_values(encoder, decoder, values)
    yield from _bridge(encoder, decoder)
    yield from _backward_alone(decoder)
    yield from _stack(encoder, ENCODER)
    yield from _stack(decoder, DECODER)
    yield from _vectors(encoder, ENCODER)
    yield from _vectors(decoder, DECODER)
    yield from _readout(decoder)
    if isinstance(decoder.softmax, AdaptiveSoftmax):
        cutoffs, reduction = decoder.softmax.cutoffs, decoder.softmax.reduction
        if list(cutoffs) != sorted(set(cutoffs)):
            yield f"{DECODER}.softmax.cutoffs = {list(cutoffs)} should rise"
        if (width := features(decoder, encoder.width)) < reduction ** len(cutoffs):
            yield (
                f"{DECODER}.softmax.reduction = {reduction:g} leaves the last of {len(cutoffs)} "
                f"clusters less than one of the {width} features ({DECODER}.softmax.cutoffs); a "
                "smaller reduction or fewer cutoffs would work"
            )
    if tie != "none":
        yield from _tying(encoder, decoder, tie)
    if isinstance(decoder, AttentionDecoder):
        yield from _attention(encoder, decoder)


def features(decoder: Decoder, context: int) -> int:
    """Numbers that the softmax reads; `context`: the width of a context."""
    if decoder.readout.size:
        return decoder.readout.size
    return readout_inputs(decoder, context)


def readout_inputs(decoder: Decoder, context: int) -> int:
    """Numbers that the readout reads: a state, the word where it is asked for, the context."""
    reads_context = isinstance(decoder, AttentionDecoder) or (
        isinstance(decoder, PeekyDecoder) and decoder.context_to != "cell"
    )
    word = decoder.embedding if decoder.readout.word else 0
    return decoder.hidden + word + (context if reads_context else 0)


def _is_lstm(cell: str) -> bool:
    return cell.startswith("lstm")


def _bridge(encoder: Encoder, decoder: Decoder) -> Iterator[str]:
    chosen = f"{DECODER}.bridge = {decoder.bridge!r}"
    alike = _is_lstm(decoder.cell) == _is_lstm(encoder.cell)
    others = "linear (any sizes) or tanh would work" if alike else "tanh (any sizes) would work"
    match decoder.bridge:
        case "copy":
            if encoder.bidirectional:
                yield (
                    f"{ENCODER}.bidirectional = true has two states a layer, but {chosen} hands "
                    f"over one as it is; choose another bridge: {others}"
                )
            pairs = {
                "layers": (encoder.layers, decoder.layers),
                "hidden": (encoder.hidden, decoder.hidden),
            }
            for key, (ours, theirs) in pairs.items():
                if ours != theirs and not encoder.bidirectional:
                    yield (
                        f"{ENCODER}.{key} = {ours} and {DECODER}.{key} = {theirs} differ, but "
                        f"{chosen} takes over the encoder's states as they are; make them equal, "
                        f"or choose another bridge: {others}"
                    )
        case "last":
            if encoder.width != decoder.hidden:
                yield (
                    f"{ENCODER}.hidden = {encoder.hidden}"
                    + (", twice as bidirectional," if encoder.bidirectional else "")
                    + f" and {DECODER}.hidden = {decoder.hidden} differ, but {chosen} takes over "
                    f"the encoder's last state as it is; make them equal, or choose another "
                    f"bridge: {others}"
                )
        case "first-backward":
            if not encoder.bidirectional:
                yield (
                    f"{chosen} starts from the state of the backward direction, but "
                    f"{ENCODER}.bidirectional = false; make it true, or choose another bridge: "
                    f"{others}"
                )
        case "zero":
            if isinstance(decoder, PlainDecoder):
                yield (
                    f"{chosen} with {DECODER}.kind = 'plain' tells the decoder nothing of the "
                    "source; any other bridge, or kind peeky or attention, would work"
                )
        case "tanh" | "linear":
            pass
    as_it_is = decoder.bridge in ("copy", "last", "linear")
    if as_it_is and not alike:
        yield (
            f"{ENCODER}.cell = {encoder.cell!r} and {DECODER}.cell = {decoder.cell!r} differ: one "
            f"has a memory and the other none, and {chosen} hands over part for part; make them "
            "alike, or choose bridge tanh, which starts a memory at zero"
        )


def _backward_alone(decoder: Decoder) -> Iterator[str]:
    if decoder.bridge != "first-backward":
        return
    chosen = f"{DECODER}.bridge = 'first-backward'"
    if isinstance(decoder, PeekyDecoder) and decoder.context == "tanh":
        yield (
            f"{chosen} starts from the state of the backward direction, but {DECODER}.context = "
            "'tanh' mixes both before; context = 'state', or bridge tanh or linear, would work"
        )
    if isinstance(decoder, PlainDecoder):
        yield (
            f"{chosen} with {DECODER}.kind = 'plain' leaves what the last layer's forward "
            "direction reads unused; bridge tanh or linear, or kind peeky or attention, would work"
        )


def _start_values(encoder: Encoder, decoder: Decoder, values: StartValues) -> Iterator[str]:
    if values.forget_bias and not (_is_lstm(encoder.cell) or _is_lstm(decoder.cell)):
        yield (
            f"model.initialization.forget_bias = {values.forget_bias:g} is an LSTM's, but "
            f"{ENCODER}.cell = {encoder.cell!r} and {DECODER}.cell = {decoder.cell!r} have no "
            "forget gate; 0.0 would work"
        )
    additive = Covering | MultiHeadAttention
    attends = isinstance(decoder, AttentionDecoder) and isinstance(decoder.attention, additive)
    if isinstance(values, NormalInitialization) and values.attention_std and not attends:
        yield (
            f"model.initialization.attention_std = {values.attention_std:g} is of additive "
            f"attention's matrices, but {DECODER} has none; {DECODER}.attention.kind additive, "
            "concat or multi-head, or 0.0, would work"
        )


def _stack(side: Encoder | Decoder, name: str) -> Iterator[str]:
    if side.embedding_rank >= side.embedding:
        yield (
            f"{name}.embedding_rank = {side.embedding_rank} is no lower rank than that of "
            f"{name}.embedding = {side.embedding}; less, or 0, would work"
        )
    first = side.residual_from
    chosen = f"{name}.residual_from = {first}"
    if first > side.layers:
        yield f"{chosen} is above the last layer, {name}.layers = {side.layers}"
    width = side.width if isinstance(side, Encoder) else side.hidden
    if first == 1 and side.embedding != width:
        yield (
            f"{chosen} adds the words' vectors to the first layer's output, but "
            f"{name}.embedding = {side.embedding} and {name}.hidden = {side.hidden} give vectors "
            f"of {side.embedding} and outputs of {width} numbers; make these equal, or start from 2"
        )


def _vectors(side: Encoder | Decoder, name: str) -> Iterator[str]:
    if side.vectors and side.embedding_rank:
        yield (
            f"{name}.vectors has no whole table to go into with {name}.embedding_rank = "
            f"{side.embedding_rank}; 0 would work"
        )


def _readout(decoder: Decoder) -> Iterator[str]:
    readout = decoder.readout
    if readout.state == "previous" and decoder.residual_from:
        yield (
            f"{DECODER}.readout.state = 'previous' and {DECODER}.residual_from = "
            f"{decoder.residual_from}: there is no state that holds an output with its input added "
            "until the next step; state = 'current' or residual_from = 0 would work"
        )
    if readout.state == "previous" and not readout.word:
        yield (
            f"{DECODER}.readout.state = 'previous' with {DECODER}.readout.word = false never shows "
            "the softmax the word before; word = true or state = 'current' would work"
        )


def _tying(encoder: Encoder, decoder: Decoder, tie: str) -> Iterator[str]:
    chosen = f"model.tie = {tie!r}"
    width = features(decoder, encoder.width)
    if width != decoder.embedding:
        key = "readout.size" if decoder.readout.size else "hidden"
        yield (
            f"{chosen} makes the table of vectors the softmax's matrix, but {DECODER}.embedding = "
            f"{decoder.embedding} and the softmax reads {width} numbers ({DECODER}.{key}); make "
            f"them equal, or give {DECODER}.readout a kind and size = {decoder.embedding}"
        )
    if tie == "three-way" and encoder.embedding != decoder.embedding:
        yield (
            f"{chosen} needs one table of vectors, but {ENCODER}.embedding = {encoder.embedding} "
            f"and {DECODER}.embedding = {decoder.embedding}; make them equal"
        )
    if isinstance(decoder.softmax, AdaptiveSoftmax):
        yield f"{chosen} needs {DECODER}.softmax.kind = 'full', not 'adaptive'"
    sides: dict[str, Encoder | Decoder] = {DECODER: decoder}
    if tie == "three-way":
        sides[ENCODER] = encoder
    for name, side in sides.items():
        if side.embedding_rank:
            yield (
                f"{chosen} needs whole vectors, but {name}.embedding_rank = {side.embedding_rank}; "
                "0 would work"
            )
        if side.vectors and side.vectors.frozen:
            yield (
                f"{chosen} and {name}.vectors.frozen = true would freeze the softmax's matrix; "
                "frozen = false would work"
            )
    if tie == "three-way" and encoder.vectors:
        yield f"{chosen}: the one table takes its vectors from {DECODER}.vectors; move them there"


def _attention(encoder: Encoder, decoder: AttentionDecoder) -> Iterator[str]:
    attention, name = decoder.attention, f"{DECODER}.attention"
    if isinstance(attention, DotAttention) and encoder.width != decoder.hidden:
        yield (
            f"{name}.kind = 'dot' multiplies states by outputs number by number, but {ENCODER} "
            f"gives outputs of {encoder.width} and {DECODER}.hidden = {decoder.hidden}; make them "
            "equal, or choose general"
        )
    if isinstance(attention, MultiHeadAttention):
        for key, value in (("size", attention.size), ("the encoder's width", encoder.width)):
            if value % attention.heads:
                yield f"{name}.heads = {attention.heads} does not divide {key} = {value}"
    if decoder.input_feeding:
        if decoder.query != "current":
            yield (
                f"{DECODER}.input_feeding = true feeds what follows from a context back, but with "
                f"{DECODER}.query = {decoder.query!r} the context itself goes to the first layer; "
                "query = 'current', or no input_feeding, would work"
            )
        if isinstance(decoder.readout, LinearReadout) and not decoder.readout.size:
            yield (
                f"{DECODER}.input_feeding = true feeds the readout's output back, but with "
                f"{DECODER}.readout.kind = 'linear' of size 0 there is none of its own; a size, "
                "tanh (Luong et al. 2015) or maxout would work"
            )
    coverage = isinstance(attention, Covering) and attention.coverage
    if coverage and decoder.query == "current" and not decoder.input_feeding:
        yield (
            f"{name}.coverage = true needs what a step attended to at the next one, but "
            f"{DECODER}.query = 'current' without {DECODER}.input_feeding has no loop over time; "
            "input_feeding = true, or query = 'previous', would work"
        )
