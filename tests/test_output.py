"""Softmaxes and word vectors, alone and tied.

# N words, F features, V vocabulary, E embedding, R rank
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.batches import Batch, make_batch
from s2s_cli.core.checkpoint import load_model, load_tensors, save_model
from s2s_cli.core.errors import RecipeError
from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.model.build import build
from s2s_cli.core.model.embedding import FactoredEmbedding, TiedEmbedding
from s2s_cli.core.model.output import AdaptiveSoftmax, Softmax, TiedSoftmax
from s2s_cli.core.prepared import PackedPairs, PackedText, prepare
from s2s_cli.core.recipe import load
from s2s_cli.core.recipe.schema import Model
from s2s_cli.core.tokenizer import BOS

VOCABULARY = 10
FEATURES = 8


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are taken in fp32, which would hide a wrong term: here that is float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def batch() -> Batch:
    sources = [[5, 6, 7], [4, 5, 6, 7, 8], [9], [], [7, 8, 4]]
    targets = [[4, 5], [9, 8, 7, 6, 5, 4], [3, 3, 3], [5], [8, 4, 4, 3]]
    pairs = PackedPairs(PackedText.pack(sources), PackedText.pack(targets))
    return make_batch(pairs, numpy.arange(len(pairs)), reverse=False, start=BOS)


def model_of(tie: str = "none", source_vocabulary: int = VOCABULARY, **changes: Any) -> Seq2Seq:
    side = {"layers": 1, "embedding": 6, "hidden": 6}
    recipe = {"tie": tie, "encoder": side, "decoder": {**side, "kind": "plain", **changes}}
    torch.manual_seed(41)
    model = build(
        Model.model_validate(recipe),
        source_vocabulary=source_vocabulary,
        target_vocabulary=VOCABULARY,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.double()


# --- softmaxes -------------------------------------------------------------------------------


def log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.exp().sum().log()


def full(softmax: Softmax | TiedSoftmax, features: Tensor) -> Tensor:
    """log p of all words [V] for the features [F]."""
    return log_softmax(
        torch.stack(
            [row @ features + b for row, b in zip(softmax.weight, softmax.bias, strict=True)]
        )
    )


def adaptive(softmax: AdaptiveSoftmax, features: Tensor) -> Tensor:
    """Grave et al. 2017: p(word) = p(cluster) p(word | cluster), frequent words in the head."""
    head = log_softmax(softmax.layers.head.weight @ features + softmax.layers.head.bias)
    first = softmax.layers.cutoffs[0]
    pieces = [head[:first]]
    for cluster, (down, up) in enumerate(softmax.layers.tail):
        pieces.append(head[first + cluster] + log_softmax(up.weight @ (down.weight @ features)))
    return torch.cat(pieces)


def softmaxes() -> list[Any]:
    torch.manual_seed(42)
    made = [
        Softmax(FEATURES, VOCABULARY),
        TiedSoftmax(nn.Embedding(VOCABULARY, FEATURES)),
        TiedSoftmax(TiedEmbedding(nn.Embedding(VOCABULARY, FEATURES))),
        AdaptiveSoftmax(FEATURES, VOCABULARY, (4,), 2.0),
        AdaptiveSoftmax(FEATURES, VOCABULARY, (3, 6, 7), 2.0),
    ]
    for softmax in made:
        if isinstance(softmax, TiedSoftmax):
            nn.init.normal_(softmax.bias)  # zeros at first
            softmax.weight.data = softmax.weight.data.double()
        softmax.double()
    return made


@pytest.mark.parametrize("softmax", softmaxes(), ids=lambda softmax: type(softmax).__name__)
def test_softmaxes_follow_their_equations(softmax: Any, exact: None) -> None:
    """Log-probabilities of all words, the loss of some, and the gradients of both."""
    torch.manual_seed(43)
    features = (3 * torch.randn(12, FEATURES)).double().requires_grad_()
    targets = torch.arange(12) % VOCABULARY  # every word, some twice
    by_hand = adaptive if isinstance(softmax, AdaptiveSoftmax) else full
    expected = torch.stack([by_hand(softmax, row) for row in features])
    close(expected.exp().sum(-1), torch.ones(12).double())
    close(softmax(features).log_softmax(-1), expected)
    if isinstance(softmax, AdaptiveSoftmax):
        close(softmax(features), expected)  # normal already
    close(softmax(features.view(3, 4, -1)), softmax(features).view(3, 4, -1))

    weight = [softmax.weight] if isinstance(softmax, TiedSoftmax) else []
    leaves = [features, *softmax.parameters(), *weight]
    by_loss = softmax.loss(features, targets, 0.0)
    by_sum = -sum(row[target] for row, target in zip(expected, targets, strict=True))
    close(by_loss, by_sum)
    for one, other in zip(
        torch.autograd.grad(by_loss, leaves), torch.autograd.grad(by_sum, leaves), strict=True
    ):
        close(one, other)


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
@pytest.mark.parametrize("place", [0, 1])
def test_label_smoothing_follows_its_equation(place: int, smoothing: float, exact: None) -> None:
    """(1 - e) of the target's probability stays, e is spread over all V words, itself too."""
    softmax = softmaxes()[place]
    torch.manual_seed(44)
    features, targets = torch.randn(5, FEATURES).double().requires_grad_(), [3, 0, 9, 9, 1]
    expected = features.new_zeros(())
    for row, target in zip(features, targets, strict=True):
        logs = full(softmax, row)
        expected = expected - (1 - smoothing) * logs[target] - smoothing * logs.mean()
    loss = softmax.loss(features, torch.tensor(targets), smoothing)
    close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, features)[0] for value in (loss, expected))
    close(ours, theirs)


def test_label_smoothing_of_a_model_counts_real_words_alone(exact: None) -> None:
    model, pairs = model_of(), batch()
    features, _ = model.decoder(pairs.inputs, model.start(pairs.source))
    logs = model.decoder.output(features).log_softmax(-1).flatten(0, 1)[pairs.places]
    picked = logs.gather(1, pairs.targets[:, None]).sum()
    close(model(pairs, smoothing=0.3), -0.7 * picked - 0.3 * logs.mean(-1).sum())


def test_an_adaptive_softmax_has_no_label_smoothing() -> None:
    softmax = softmaxes()[-1]
    with pytest.raises(ValueError, match="no label smoothing"):
        softmax.loss(torch.randn(2, FEATURES).double(), torch.tensor([1, 2]), 0.1)


def test_an_adaptive_softmax_takes_clusters_and_reduction_from_the_recipe() -> None:
    table = {"kind": "adaptive", "cutoffs": (2, 5), "reduction": 2.0}
    softmax = model_of(softmax=table).decoder.output
    assert softmax.layers.head.weight.shape == (2 + 2, 6)
    assert softmax.layers.head.bias.shape == (4,)
    # 6 features, halved for each cluster; words 2 to 4 and 5 to 9.
    shapes = [tuple(linear.weight.shape) for cluster in softmax.layers.tail for linear in cluster]
    assert shapes == [(3, 6), (3, 3), (1, 6), (5, 1)]
    with pytest.raises(RecipeError, match=r"cutoffs = \[2, 10\].* 10 entries"):
        model_of(softmax={**table, "cutoffs": (2, 10)})


@pytest.mark.parametrize("softmax", softmaxes(), ids=lambda softmax: type(softmax).__name__)
def test_losses_are_fp32_under_autocast(softmax: Any) -> None:
    one = copy.deepcopy(softmax).float()
    if isinstance(one, TiedSoftmax):
        one.weight.data = one.weight.data.float()
    torch.manual_seed(45)
    features, targets = torch.randn(40, FEATURES), torch.arange(40) % VOCABULARY
    exact = one.loss(features, targets, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = one.loss(features.bfloat16(), targets, 0.0)
    assert loss.dtype == exact.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0)


# --- word vectors ----------------------------------------------------------------------------


def test_factored_vectors_are_a_table_times_a_matrix() -> None:
    torch.manual_seed(46)
    embedding = FactoredEmbedding(VOCABULARY, 3, 6).double()
    words = torch.tensor([[1, 9, 1], [4, 0, 9]])
    vectors = embedding(words)
    weights = torch.randn_like(vectors)
    parameters = (embedding.table.weight, embedding.matrix.weight)
    table, matrix = (value.detach().clone().requires_grad_() for value in parameters)
    expected = torch.stack([torch.stack([matrix @ table[word] for word in row]) for row in words])
    close(vectors, expected)
    close(embedding.weight, torch.stack([matrix @ row for row in table]))
    ours = torch.autograd.grad((vectors * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), (table, matrix))
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)
    assert embedding.embedding_dim == 6
    assert sum(parameter.numel() for parameter in embedding.parameters()) == 10 * 3 + 3 * 6


def test_factored_vectors_come_from_the_recipe() -> None:
    full_rank, factored = model_of(), model_of(embedding_rank=2)
    assert isinstance(factored.decoder.embedding, FactoredEmbedding)
    assert factored.decoder.embedding.matrix.weight.shape == (6, 2)
    assert full_rank.parameter_count() - factored.parameter_count() == 10 * 6 - (10 * 2 + 2 * 6)


def test_tied_vectors_are_their_owner_s() -> None:
    owner = nn.Embedding(VOCABULARY, 6)
    tied = TiedEmbedding(owner)
    words = torch.tensor([[3, 9], [3, 0]])
    assert torch.equal(tied(words), owner(words))
    assert tied.weight is owner.weight
    assert tied.owner is owner
    assert tied.embedding_dim == 6
    assert not list(tied.parameters())
    assert not tied.state_dict()
    assert nn.ModuleList([owner, tied]).state_dict().keys() == {"0.weight"}


# --- tied models -----------------------------------------------------------------------------

ENCODER, DECODER, OUTPUT = (
    f"{part}.weight" for part in ("encoder.embedding", "decoder.embedding", "decoder.output")
)
TIES: dict[str, Sequence[str]] = {
    "softmax": (DECODER, OUTPUT),
    "three-way": (ENCODER, DECODER, OUTPUT),
}
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "projected": {"hidden": 7, "bridge": "tanh", "readout": {"kind": "linear", "size": 6}},
    "attention": {
        "kind": "attention",
        "attention": {"kind": "general"},
        "input_feeding": True,
        "readout": {"kind": "maxout", "size": 6},
    },
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("tie", TIES)
def test_a_tied_model_is_one_with_equal_tables(
    tie: str, changes: dict[str, Any], smoothing: float, exact: None
) -> None:
    """One parameter, whose gradient is the sum of those of an untied model's tables."""
    tied, untied = model_of(tie, **changes), model_of(**changes)
    table, *others = TIES[tie]
    keys = untied.state_dict().keys()
    assert tied.state_dict().keys() == keys - set(others)
    assert dict(tied.named_parameters()).keys() == keys - set(others)
    saved = untied.parameter_count() - tied.parameter_count()
    assert saved == len(others) * VOCABULARY * 6

    weights = tied.state_dict()
    untied.load_state_dict({**weights, **dict.fromkeys(others, weights[table])})
    pairs = batch()
    ours, theirs = tied(pairs, smoothing=smoothing), untied(pairs, smoothing=smoothing)
    close(ours, theirs)
    ours.backward()
    theirs.backward()
    gradients = {name: parameter.grad for name, parameter in untied.named_parameters()}
    gradients[table] = sum(gradients[name] for name in TIES[tie])
    for name, parameter in tied.named_parameters():
        close(parameter.grad, gradients[name])


@pytest.mark.parametrize("tie", TIES)
def test_a_tie_holds(tie: str) -> None:
    """After an update, a copy, a change of type, and the loading of other weights."""
    model = model_of(tie)
    model(batch()).backward()
    before = model.decoder.output.weight.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
    assert not torch.equal(model.decoder.output.weight, before)
    copied = copy.deepcopy(model)
    loaded = model_of(tie)
    loaded.load_state_dict(model.state_dict(), assign=True)
    for one in (model, copied, model.half(), copied.to("meta"), loaded):
        tables = {id(one.decoder.output.weight), id(one.decoder.embedding.weight)}
        if tie == "three-way":
            tables.add(id(one.encoder.embedding.weight))
        assert len(tables) == 1
        assert one.decoder.output.weight.dtype == one.decoder.output.bias.dtype
    assert copied.decoder.output.weight is not model.decoder.output.weight


def test_a_three_way_tie_needs_one_vocabulary() -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        model_of("three-way", source_vocabulary=VOCABULARY + 1)


@pytest.mark.parametrize("tie", TIES)
def test_a_tied_model_is_saved_once_and_loaded_tied(
    tie: str, recipe_file: Path, tmp_path: Path
) -> None:
    changes = [f"model.tie={tie}", "model.encoder.embedding=12", "model.decoder.embedding=12"]
    if tie == "three-way":
        changes += ["tokenizer.kind=shared", "tokenizer.model={kind='words', vocabulary=40}"]
    recipe = load(str(recipe_file), changes)
    prepared = prepare(recipe, tmp_path / "prepared")
    tokenizers = (prepared.source_tokenizer, prepared.target_tokenizer)
    model = build(
        recipe.model,
        source_vocabulary=tokenizers[0].size,
        target_vocabulary=tokenizers[1].size,
    ).eval()
    path = tmp_path / "tied.safetensors"
    save_model(path, model, recipe, tokenizers, {})
    saved, _ = load_tensors(path)
    numbers = sum(value.numel() for name, value in saved.items() if name.startswith("model."))
    assert numbers == model.parameter_count()
    loaded = load_model(path, torch.device("cpu")).model
    assert loaded.parameter_count() == model.parameter_count()
    assert loaded.decoder.output.weight is loaded.decoder.embedding.weight
    if tie == "three-way":
        assert loaded.decoder.embedding.weight is loaded.encoder.embedding.weight
    pairs = batch()
    assert torch.equal(loaded(pairs), model(pairs))
    # Its own numbers again, by the uses of the table.
    words = torch.tensor([4, 5])
    vectors = functional.embedding(words, saved[f"model.{TIES[tie][0]}"])
    assert torch.equal(loaded.decoder.embedding(words), vectors)
