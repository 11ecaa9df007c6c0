"""The update rule of a recipe, by torch's optimisers, and the moving average of the weights."""

from typing import assert_never

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from s2s_cli.core.model import Seq2Seq
from s2s_cli.core.recipe.schema import Adadelta, Adagrad, Adam, Optimizer, Sgd


def make_optimizer(model: Seq2Seq, spec: Optimizer) -> torch.optim.Optimizer:
    """Torch's optimiser of that name, its update in one fused kernel where it has one."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    match spec:
        case Sgd():
            return torch.optim.SGD(
                learned,
                lr=spec.lr,
                momentum=spec.momentum,
                weight_decay=spec.weight_decay,
                fused=True,
            )
        case Adam(kind=kind):
            optimizer = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
            return optimizer(
                learned,
                lr=spec.lr,
                betas=(spec.beta1, spec.beta2),
                eps=spec.epsilon,
                weight_decay=spec.weight_decay,
                fused=True,
            )
        case Adagrad():
            return torch.optim.Adagrad(
                learned,
                lr=spec.lr,
                initial_accumulator_value=spec.initial,
                eps=spec.epsilon,
                weight_decay=spec.weight_decay,
            )
        case Adadelta():
            return torch.optim.Adadelta(
                learned, lr=spec.lr, rho=spec.rho, eps=spec.epsilon, weight_decay=spec.weight_decay
            )
        case _:
            assert_never(spec)


def averaged(model: Seq2Seq, decay: float) -> AveragedModel:
    """A moving average of the model's weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    for module in average.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN wants them in one piece, which a copy is not
    return average
