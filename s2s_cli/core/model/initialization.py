"""Start values of the parameters."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from s2s_cli.core.model.attention import AdditiveScore, MultiHeadAttention
from s2s_cli.core.model.cells import LayerNormLstm, PeepholeLstm, ScannedLayer

VECTORS = ("scale", "peepholes")  # one number a cell, neither a matrix nor a bias


@torch.no_grad()
def uniform(model: nn.Module, half_width: float) -> None:
    """Every parameter, biases included, uniform in [-half_width, half_width].

    Sutskever et al. 2014, section 3.4, with 0.08; Luong et al. 2015, section 4.1, with 0.1. Only
    the scales of a layer norm, which these papers do not have, stay one.
    """
    for name, parameter in model.named_parameters():
        if not name.endswith("scale"):
            parameter.uniform_(-half_width, half_width)


@torch.no_grad()
def normal(model: nn.Module, std: float, attention_std: float) -> None:
    """Matrices normal with mean 0, biases zero; scales of a layer norm stay one.

    attention_std: where it is not 0, that of the matrices of additive attention, whose vector v
    is zero then (Bahdanau et al. 2015, appendix B.1).
    """
    for name, parameter in model.named_parameters():
        if _is_matrix(name, parameter):
            parameter.normal_(0.0, std)
        elif not name.endswith("scale"):
            parameter.zero_()
    if not attention_std:
        return
    for module in model.modules():
        if isinstance(module, AdditiveScore | MultiHeadAttention):
            for matrix in (module.query.weight, module.key.weight):
                matrix.normal_(0.0, attention_std)
            vector = module.vector.weight if isinstance(module, AdditiveScore) else module.vectors
            vector.zero_()


@torch.no_grad()
def xavier(model: nn.Module) -> None:
    """Matrices uniform in +-sqrt(6 / (inputs + outputs)), each gate's by itself; biases zero.

    Glorot & Bengio 2010, equation 16. A table of word vectors is a matrix here, too.
    """
    hidden = {id(each): size for layer, size in _recurrent(model) for each in layer.parameters()}
    for name, parameter in model.named_parameters():
        if _is_matrix(name, parameter):
            for gate in torch.split(parameter, hidden.get(id(parameter), len(parameter))):
                nn.init.xavier_uniform_(gate)
        elif not name.endswith("scale"):
            parameter.zero_()


@torch.no_grad()
def orthogonal_recurrent(model: nn.Module) -> None:
    """Each gate's recurrent matrix a random rotation (Saxe et al. 2014)."""
    for layer, size in _recurrent(model):
        for name, parameter in layer.named_parameters():
            if name.startswith("weight_h"):
                for gate in torch.split(parameter, size):
                    nn.init.orthogonal_(gate)


@torch.no_grad()
def forget_bias(model: nn.Module, value: float) -> None:
    """Adds `value` to the forget-gate bias of every LSTM layer (Gers et al. 2000).

    torch has two biases a gate, which are added; the first of them takes the value.
    """
    for module in model.modules():
        match module:
            case nn.LSTM():
                for layer in range(module.num_layers):
                    bias = module.get_parameter(f"bias_ih_l{layer}")
                    bias[module.hidden_size : 2 * module.hidden_size] += value
            case PeepholeLstm() | LayerNormLstm():
                module.bias[module.hidden : 2 * module.hidden] += value
            case _:
                pass


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() > 1 and not name.endswith(VECTORS)


def _recurrent(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Each module with weights of recurrent layers, and the rows of a gate in its matrices."""
    for module in model.modules():
        match module:
            case nn.LSTM() | nn.GRU() | nn.RNN():
                yield module, module.hidden_size
            case ScannedLayer():
                yield module, module.hidden
            case _:
                pass
