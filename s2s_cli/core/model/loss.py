"""The loss of a softmax over a whole vocabulary, without keeping all of its logits.

The gradient is found while the logits are there, in the forward pass, a chunk of words at a time,
and overwrites them. Stock cross entropy writes down logits, log-probabilities and both of their
gradients for all words.

# N words, C words of a chunk, F features, V vocabulary
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

# Numbers in the logits of a chunk. On a GPU a chunk's products should fill the whole of it.
CHUNK = {"cpu": 1 << 25, "cuda": 1 << 28}
# Words whose probabilities are computed together on a CPU: a few MB, which stay in its cache. Its
# products have whole multiples of as many rows: oneDNN writes and keeps a program for each number.
SLICE = 64


def full_loss(
    features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float
) -> Tensor:
    """The negative log-likelihood of `targets` under a softmax of `features`, summed. []

    Products are taken in the precision of autocast where it is on, log-probabilities in fp32.

    Args:
        features: [N, F].
        weight: [V, F].
        bias: [V].
        targets: [N] ids; or, but in fp16, [2, N]: ids, and below each a 1 if it counts or a 0 if
            it is padding, which gives no loss and no gradient.
        smoothing: the share of the target's probability that is spread over all V words (Szegedy
            et al. 2016, section 7).
    """
    kind, device = features.dtype, features.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    if kind == torch.float16:
        # Its gradients would vanish before the loss is scaled, which happens in the backward pass.
        logits = functional.linear(features, weight, bias)
        return functional.cross_entropy(
            logits.float(), targets, reduction="sum", label_smoothing=smoothing
        )
    inputs = (features, weight, bias)
    # Asked here: inside of the function gradients are off, and parameters seem to need one.
    if not (torch.is_grad_enabled() and any(each.requires_grad for each in inputs)):
        with torch.autocast(device, enabled=False):
            return _loss_and_gradients(inputs, kind, targets, smoothing, differentiate=False)[0]
    loss: Tensor = _FullLoss.apply(*inputs, targets, smoothing, kind)  # type: ignore[no-untyped-call]
    return loss


class _FullLoss(torch.autograd.Function):
    """Gradients of the sum are kept in place of logits; backward only scales them, and once."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        smoothing: float,
        kind: torch.dtype,
    ) -> Tensor:
        inputs = (features, weight, bias)
        with torch.autocast(features.device.type, enabled=False):
            loss, gradients = _loss_and_gradients(
                inputs, kind, targets, smoothing, differentiate=True
            )
        # Not by `save_for_backward`: what is in its hands is copied before it becomes a `grad`.
        ctx.gradients = [  # type: ignore[attr-defined]
            found.to(given.dtype) for found, given in zip(gradients, inputs, strict=True)
        ]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *outer: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.__dict__.pop("gradients", None)
        if found is None:
            raise RuntimeError("the gradients of this loss were given away by an earlier backward")
        needed = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        scaled = (
            gradient.mul_(outer[0]) if wanted else None
            for gradient, wanted in zip(found, needed, strict=True)
        )
        return (*scaled, None, None, None)


def _loss_and_gradients(
    inputs: tuple[Tensor, Tensor, Tensor],
    kind: torch.dtype,
    targets: Tensor,
    smoothing: float,
    *,
    differentiate: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss and, if asked for, its gradients in the inputs, by products of a kind.

    The sums over chunks are fp32 or wider.
    """
    features, weight, bias = (each.to(kind) for each in inputs)
    words, vocabulary = len(features), len(weight)
    padding: Tensor | None = None
    if targets.dim() == 2:
        padding = targets[1, :, None] == 0
        targets = targets[0]
    wide = torch.promote_types(features.dtype, torch.float32)
    loss = torch.zeros((), dtype=wide, device=features.device)
    size = max(1, CHUNK[features.device.type] // vocabulary)
    step = size
    if features.device.type == "cpu":
        step = SLICE
        size = max(SLICE, size // SLICE * SLICE)
        features = functional.pad(features, (0, 0, 0, -words % SLICE))
    by_feature = torch.empty_like(features)
    by_weight: Tensor | None = None
    by_bias = torch.zeros_like(bias, dtype=wide)
    for first in range(0, words, size):
        chunk, wanted = features[first : first + size], targets[first : first + size, None]
        empty = None if padding is None else padding[first : first + size]
        logits = functional.linear(chunk, weight, bias)  # [C, V]
        logits[len(wanted) :] = 0
        for start in range(0, len(wanted), step):
            target = wanted[start : start + step]
            piece = logits[start : start + len(target)]
            skipped = None if empty is None else empty[start : start + step]
            known = torch.log_softmax(piece, 1, dtype=wide)
            loss -= (1 - smoothing) * _sum(known.gather(1, target), skipped)
            if smoothing:
                loss -= smoothing * _sum(known.mean(1, keepdim=True), skipped)
            if differentiate:
                # In full precision: near 1, a probability less 1 would be lost in bf16.
                known.exp_().scatter_add_(
                    1, target, known.new_full((1, 1), smoothing - 1).expand_as(target)
                )
                if smoothing:
                    known -= smoothing / vocabulary
                if skipped is not None:
                    known.masked_fill_(skipped, 0)
                piece.copy_(known)
        if differentiate:
            torch.mm(logits, weight, out=by_feature[first : first + size])
            if by_weight is None:
                by_weight = torch.mm(logits.T, chunk).to(wide)
            else:
                by_weight += torch.mm(logits.T, chunk)
            by_bias += logits.sum(0, dtype=wide)
    by_feature = by_feature[:words]
    return loss, (by_feature, torch.zeros_like(weight) if by_weight is None else by_weight, by_bias)


def _sum(numbers: Tensor, skipped: Tensor | None) -> Tensor:
    """The sum of [C, 1] numbers but for those that are skipped."""
    return (numbers if skipped is None else numbers.masked_fill(skipped, 0)).sum()
