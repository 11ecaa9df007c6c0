"""Start values of the parameters."""

import torch
from torch import nn


@torch.no_grad()
def uniform(model: nn.Module, half_width: float) -> None:
    """Every parameter, biases included, uniform in [-half_width, half_width].

    Sutskever et al. 2014, section 3.4, with 0.08.
    """
    for parameter in model.parameters():
        parameter.uniform_(-half_width, half_width)


@torch.no_grad()
def forget_bias(model: nn.Module, value: float) -> None:
    """Adds `value` to the forget-gate bias of every LSTM layer (Gers et al. 2000).

    torch has two biases a gate, which are added; the first of them takes the value.
    """
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            size = module.hidden_size
            for layer in range(module.num_layers):
                module.get_parameter(f"bias_ih_l{layer}")[size : 2 * size] += value
