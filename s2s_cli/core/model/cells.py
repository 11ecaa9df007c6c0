"""Single recurrent layers of one shape: over a whole sequence, or a step at a time.

`project` is what a layer makes of its input without knowing its state: it is linear, so the parts
of an input may be projected apart and added, as `beside` does. What torch has no kernel for loops
over time here and nowhere else.

# B batch, T steps, I input, H hidden, G gates' numbers (4 H, 3 H or H)
"""

import abc
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.model.activation import tanh_
from s2s_cli.core.model.dropout import dropped
from s2s_cli.core.model.products import Product

Parts = tuple[Tensor, ...]
Matrix = tuple[Tensor, Tensor | None]
# Names of products.
INPUT, HIDDEN, CANDIDATE, CONSTANT = "input", "hidden", "candidate", "constant"


class Layer(nn.Module, abc.ABC):
    """The shape of all layers. A state is (h, c) of an LSTM and (h,) of other cells, each [B, H].

    hidden: H; parts: how many tensors a state has; products: those that are packed, by name, for
    search; none in training.
    """

    hidden: int
    parts: int

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[str, Product] = {}

    @abc.abstractmethod
    def input_weight(self) -> Tensor:
        """[G, I]."""

    @abc.abstractmethod
    def input_bias(self) -> Tensor:
        """[G]: all of the biases that can be added to the input's product."""

    @abc.abstractmethod
    def matrices(self) -> dict[str, Matrix]:
        """What a step multiplies the state with, by name: [n, H], and a bias [n] or None."""

    @abc.abstractmethod
    def step(self, projected: Tensor, state: Parts) -> Parts:
        """The state after an input, of which `projected` [B, G] is known."""

    def project(self, inputs: Tensor) -> Tensor:
        """inputs: [.., I] -> [.., G], biases added."""
        if self.products:
            return self.products[INPUT](inputs)
        return functional.linear(inputs, self.input_weight(), self.input_bias())

    def times(self, name: str, numbers: Tensor) -> Tensor:
        """The product of [B, H] with one of the matrices."""
        if self.products:
            return self.products[name](numbers)
        return functional.linear(numbers, *self.matrices()[name])

    def tanh(self, numbers: Tensor) -> Tensor:
        """The tanh of fresh numbers, which are overwritten in search."""
        return tanh_(numbers) if self.products else torch.tanh(numbers)

    def beside(self, inputs: Tensor) -> Callable[[int, Tensor], Tensor]:
        """As `project`, where the first i numbers of an input are known at all steps beforehand.

        Gives a function of a step and the other numbers at it, [B, I - i], that gives [B, G].
        inputs: [T, B, i]
        """
        # Two parts of the weights, taken at every call, would take longer than they save: each has
        # a gradient as large as all of them.
        if len(inputs) == 1:
            return lambda _, others: self.project(torch.cat([inputs[0], others], -1))
        weight, known = self.input_weight(), inputs.shape[-1]
        first, rest = torch.split(weight, [known, weight.shape[1] - known], 1)
        projected = functional.linear(inputs, first, self.input_bias()).unbind(0)
        return lambda step, others: projected[step] + functional.linear(others, rest)

    def run(self, inputs: Tensor, parts: Parts) -> tuple[Tensor, Parts]:
        """inputs: [T, B, I] -> outputs h of all steps [T, B, H] and the state after the last."""
        outputs = []
        for projected in self.project(inputs).unbind(0):
            parts = self.step(projected, parts)
            outputs.append(parts[0])
        return torch.stack(outputs) if len(outputs) > 1 else outputs[0].unsqueeze(0), parts

    def zeros(self, rows: int, like: Tensor) -> Parts:
        """A state of zeros for `rows` sentences."""
        kind = self.input_weight().dtype
        return tuple(like.new_zeros(rows, self.hidden, dtype=kind) for _ in range(self.parts))


class FusedLayer(Layer):
    """A layer of torch's: its fused kernel over a sequence, its equations for a step.

    index: of the layer in `cells`. Its kernel computes all of their layers, so that of several
    one alone can only be stepped.
    """

    def __init__(self, cells: nn.LSTM | nn.GRU | nn.RNN, index: int = 0) -> None:
        super().__init__()
        self.cells = cells
        self.hidden = cells.hidden_size
        self.parts = 2 if isinstance(cells, nn.LSTM) else 1
        self._index = index

    def _parameter(self, name: str) -> Tensor:
        return self.cells.get_parameter(f"{name}_l{self._index}")

    def input_weight(self) -> Tensor:
        """[G, I]."""
        return self._parameter("weight_ih")

    def input_bias(self) -> Tensor:
        """[G]: both biases, but a GRU's second one stands inside the product with its reset."""
        bias = self._parameter("bias_ih")
        return bias if isinstance(self.cells, nn.GRU) else bias + self._parameter("bias_hh")

    def matrices(self) -> dict[str, Matrix]:
        """One, and a GRU's second bias."""
        bias = self._parameter("bias_hh") if isinstance(self.cells, nn.GRU) else None
        return {HIDDEN: (self._parameter("weight_hh"), bias)}

    def step(self, projected: Tensor, state: Parts) -> Parts:
        """The equations of torch's documentation."""
        found = self.times(HIDDEN, state[0])
        match self.cells:
            case nn.LSTM() if self.products:
                return _lstm_in_place(found.add_(projected), state[1])
            case nn.LSTM():
                return _lstm(projected + found, state[1])
            case nn.GRU():
                reset, keep, new = found.chunk(3, -1)
                input_reset, input_keep, input_new = projected.chunk(3, -1)
                candidate = self.tanh(input_new + torch.sigmoid(input_reset + reset) * new)
                return (_mixed(torch.sigmoid(input_keep + keep), state[0], candidate),)
            case _:
                return (self.tanh(projected + found),)

    def run(self, inputs: Tensor, parts: Parts) -> tuple[Tensor, Parts]:
        """The fused kernel, or packed products step by step."""
        if self.products:
            return super().run(inputs, parts)
        outputs, after = run_fused(self.cells, inputs, tuple(part[None] for part in parts))
        return outputs, tuple(part.squeeze(0) for part in after)


def run_fused(
    cells: nn.LSTM | nn.GRU | nn.RNN, inputs: Tensor, parts: Parts
) -> tuple[Tensor, Parts]:
    """Torch's kernel on [T, B, I] and a state [L, B, H], whatever its type of cell."""
    if isinstance(cells, nn.LSTM):
        hidden, memory = parts
        return cells(inputs, (hidden, memory))  # type: ignore[no-any-return]
    # On the CPU autocast knows torch's LSTM alone; the others take their weights' type.
    kind = cells.get_parameter("weight_ih_l0").dtype
    outputs, after = cells(inputs.to(kind), parts[0].to(kind))
    return outputs, (after,)


def run_layer_by_layer(
    cells: nn.LSTM | nn.GRU | nn.RNN, inputs: Tensor, parts: Parts
) -> tuple[Tensor, Parts]:
    """As `run_fused`, with our dropout between the layers, a layer a call."""
    kernel = torch.gru if isinstance(cells, nn.GRU) else torch.rnn_tanh
    states = []
    for index, weights in enumerate(cells.all_weights):
        if index:
            inputs = dropped(inputs, cells.dropout)
        before = tuple(part[index : index + 1] for part in parts)
        options = (tuple(weights), True, 1, 0.0, True, False, False)
        if isinstance(cells, nn.LSTM):
            inputs, *after = torch.lstm(inputs, before, *options)
        else:
            kind = weights[0].dtype
            inputs, *after = kernel(inputs.to(kind), before[0].to(kind), *options)
        states.append(after)
    return inputs, tuple(torch.cat(layers) for layers in zip(*states, strict=True))


class ScannedLayer(Layer):
    """Weights of a layer that torch has no kernel for."""

    def __init__(self, inputs: int, hidden: int, gates: int, parts: int) -> None:
        super().__init__()
        self.hidden, self.parts = hidden, parts
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(gates * hidden, hidden))
        self.bias = nn.Parameter(torch.empty(gates * hidden))
        for parameter in self.parameters():  # as torch's own layers begin
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def input_weight(self) -> Tensor:
        """[G, I]."""
        return self.weight_ih

    def input_bias(self) -> Tensor:
        """[G]."""
        return self.bias

    def matrices(self) -> dict[str, Matrix]:
        """[G, H]."""
        return {HIDDEN: (self.weight_hh, None)}


class PeepholeLstm(ScannedLayer):
    """Graves 2013 (arXiv 1308.0850), equations 7 to 11: gates see the memory, number by number."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, gates=4, parts=2)
        # Diagonal matrices from the memory to the input, forget and output gates.
        self.peepholes = nn.Parameter(torch.empty(3, hidden))
        nn.init.uniform_(self.peepholes, -(hidden**-0.5), hidden**-0.5)

    def step(self, projected: Tensor, state: Parts) -> Parts:
        """The input and forget gates see the old memory, the output gate the new one."""
        hidden, memory = state
        gates = projected + self.times(HIDDEN, hidden)
        write, forget, value, output = gates.chunk(4, -1)
        write = torch.sigmoid(write + self.peepholes[0] * memory)
        forget = torch.sigmoid(forget + self.peepholes[1] * memory)
        memory = forget * memory + write * torch.tanh(value)
        output = torch.sigmoid(output + self.peepholes[2] * memory)
        return output * torch.tanh(memory), memory


class LayerNormLstm(ScannedLayer):
    """An LSTM whose gates are normalised, each by itself (Ba et al. 2016; Chen et al. 2018, 3.1).

    The sum of both products is normalised over the H numbers of a gate, then scaled and shifted.
    The memory is not normalised.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, gates=4, parts=2)
        self.scale = nn.Parameter(torch.ones(4 * hidden))
        with torch.no_grad():
            self.bias.zero_()

    def input_bias(self) -> Tensor:
        """None before the normalisation, which would take part of it away."""
        return torch.zeros_like(self.bias)

    def step(self, projected: Tensor, state: Parts) -> Parts:
        """Torch's LSTM with normalised gates."""
        hidden, memory = state
        gates = projected + self.times(HIDDEN, hidden)
        by_gate = gates.view(*gates.shape[:-1], 4, self.hidden)
        normal = functional.layer_norm(by_gate, (self.hidden,)).view(gates.shape)
        gates = normal * self.scale + self.bias
        return _lstm_in_place(gates, memory) if self.products else _lstm(gates, memory)


class ResetBeforeGru(ScannedLayer):
    """A GRU whose reset gate acts before the product: U (r * h).

    z_keeps: whether the update gate z is the share of the old state (Cho et al. 2014, section
    2.3), or that of the new one (Bahdanau et al. 2015, appendix A.1.1).
    """

    def __init__(self, inputs: int, hidden: int, *, z_keeps: bool) -> None:
        super().__init__(inputs, hidden, gates=3, parts=1)
        self.z_keeps = z_keeps
        # The candidate's matrix stands apart: a slice of one parameter, taken at every step, would
        # have a gradient of that whole parameter's size at every step.
        both, candidate = torch.split(self.weight_hh.detach(), 2 * hidden)
        self.weight_hh = nn.Parameter(both.clone())
        self.weight_hn = nn.Parameter(candidate.clone())

    def matrices(self) -> dict[str, Matrix]:
        """[2 H, H] of both gates and [H, H] of the candidate."""
        return {HIDDEN: (self.weight_hh, None), CANDIDATE: (self.weight_hn, None)}

    def step(self, projected: Tensor, state: Parts) -> Parts:
        """Gates in the order r, z, candidate."""
        (hidden,) = state
        inputs, value = torch.split(projected, 2 * self.hidden, -1)
        gates = torch.sigmoid(inputs + self.times(HIDDEN, hidden))
        reset, update = gates.chunk(2, -1)
        candidate = self.tanh(value + self.times(CANDIDATE, reset * hidden))
        if self.z_keeps:
            return (_mixed(update, hidden, candidate),)
        return (_mixed(update, candidate, hidden),)


def _mixed(share: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The mixture share * one + (1 - share) * other."""
    return other + share * (one - other)


def _lstm(gates: Tensor, memory: Tensor) -> Parts:
    """The state (h, c) from the gates' sums [B, 4 H]: input, forget, value, output."""
    write, forget, value, output = gates.chunk(4, -1)
    memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(value)
    return torch.sigmoid(output) * torch.tanh(memory), memory


def _lstm_in_place(gates: Tensor, memory: Tensor) -> Parts:
    """As `_lstm`, the gates overwritten, with few passes over them."""
    shares = gates.view(len(gates), 4, -1)
    shares[:, 2].mul_(2)
    write, forget, value, output = shares.sigmoid_().unbind(1)
    memory = torch.addcmul(forget * memory, write, value.mul_(2).sub_(1))  # the value's tanh
    return tanh_(memory.clone()).mul_(output), memory
