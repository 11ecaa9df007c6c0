"""States of recurrent layers, and stacks of layers behind one shape, time first.

# B batch, T steps, L layers, I input, H hidden, G gates' numbers
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2s_cli.core.model.cells import CONSTANT, Layer, Parts, run_fused, run_layer_by_layer
from s2s_cli.core.model.dropout import NO_MASKS, Dropout, Masks
from s2s_cli.core.model.reading import read_forward


@dataclass(frozen=True)
class RecurrentState:
    """The state of every layer: (h, c) of an LSTM, (h,) of other cells, each [L, B, H].

    masks: of dropouts that stay the same over time, in training.
    """

    tensors: Parts
    masks: Masks = NO_MASKS

    @property
    def top(self) -> Tensor:
        """The last layer's h, [B, H]."""
        return self.tensors[0][-1]

    def layer(self, index: int) -> Parts:
        """The parts of one layer, each [B, H]."""
        return tuple(part[index] for part in self.tensors)

    def select(self, rows: Tensor) -> "RecurrentState":
        """The states of these rows of the batch, in this order, repeats allowed. rows: [R]"""
        return RecurrentState(
            tuple(part.index_select(1, rows) for part in self.tensors), self.masks.select(rows)
        )


def stacked(layers: Sequence[Parts], masks: Masks) -> RecurrentState:
    """One state of the parts of each layer."""
    return RecurrentState(tuple(torch.stack(part) for part in zip(*layers, strict=True)), masks)


class Recurrent(nn.Module):
    """torch's stacked cells: all layers in one call of the fused kernel."""

    def __init__(self, cells: nn.LSTM | nn.GRU | nn.RNN) -> None:
        super().__init__()
        self.cells = cells
        self.hidden = cells.hidden_size
        self.layers = cells.num_layers
        self.parts = 2 if isinstance(cells, nn.LSTM) else 1

    def forward(self, inputs: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """inputs: [T, B, I] -> outputs of the last layer [T, B, H] and the state after step T."""
        outputs, after = self.run(inputs, state.tensors)
        return outputs, RecurrentState(after, state.masks)

    def of_constant(self, context: Tensor) -> Tensor:
        """What the first layer reads of a context that is the same at every step: all of it."""
        return context

    def run(self, inputs: Tensor, parts: Parts) -> tuple[Tensor, Parts]:
        """The same on the bare parts of a state, each [L, B, H]."""
        # The kernel's own dropout is slow on a CPU.
        if self.training and self.cells.dropout and inputs.device.type == "cpu":
            return run_layer_by_layer(self.cells, inputs, parts)
        return run_fused(self.cells, inputs, parts)

    def masks(self, _like: Tensor) -> tuple[Tensor | None, ...]:
        """None: the kernel's own dropout draws anew for each step."""
        return ()

    def read(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Parts]:
        """Sentences of all lengths, as `read_forward`; parts of a state are [L, B, H]."""
        return read_forward(self, inputs, lengths)

    def zeros(self, rows: int, like: Tensor) -> Parts:
        """The parts of a state of zeros for `rows` sentences."""
        shape = (self.layers, rows, self.hidden)
        return tuple(like.new_zeros(shape) for _ in range(self.parts))


class LayerStack(nn.Module):
    """Layers one by one: for cells, dropouts and connections that no fused kernel has.

    residual_from: the first layer, counted from 1, whose input is added to its output (Wu et al.
    2016, section 3.1), as it was before dropout; 0 for none. An input that is wider, because a
    context stands behind it, adds its first H numbers.
    """

    def __init__(
        self, layers: Sequence[Layer], *, residual_from: int = 0, dropout: Dropout | None = None
    ) -> None:
        super().__init__()
        self.stack = nn.ModuleList(layers)
        self._layers = tuple(layers)  # the same, with their type
        self.hidden = layers[0].hidden
        self.layers = len(layers)
        self.parts = layers[0].parts
        self.dropout = dropout or Dropout(0.0)
        self.residual_from = residual_from

    def __getitem__(self, index: int) -> Layer:
        return self._layers[index]

    def is_residual(self, index: int) -> bool:
        """Whether the layer at `index`, counted from 0, adds its input."""
        return 0 < self.residual_from <= index + 1

    def forward(self, inputs: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """inputs: [T, B, I] -> outputs of the last layer [T, B, H] and the state after step T."""
        after = []
        for index in range(self.layers):
            given = self.between(index, inputs, state.masks)
            outputs, parts = self[index].run(given, state.layer(index))
            after.append(parts)
            inputs = self.joined(index, outputs, inputs)
        return inputs, stacked(after, state.masks)

    def of_constant(self, context: Tensor) -> Tensor:
        """What the first layer reads of a context, [B, C], that is the same at every step.

        All of it, or its product, [B, G], where that is taken apart for search.
        """
        product = self[0].products.get(CONSTANT)
        return product(context) if product else context

    def step(
        self, projected: Tensor, inputs: Tensor, state: RecurrentState
    ) -> tuple[Tensor, RecurrentState]:
        """One step of all layers: output of the last [B, H], and the state after.

        projected: [B, G], what the first layer makes of its whole input, of which `inputs` are
        the first numbers.
        """
        after = [self[0].step(projected, state.layer(0))]
        output = self.joined(0, after[0][0], inputs)
        for index in range(1, self.layers):
            given = self.between(index, output, state.masks)
            parts = self[index].step(self[index].project(given), state.layer(index))
            after.append(parts)
            output = self.joined(index, parts[0], output)
        return output, stacked(after, state.masks)

    def masks(self, like: Tensor) -> tuple[Tensor | None, ...]:
        """Masks below each layer but the first, for the sentences of `like` [.., B, n]."""
        return tuple(self.dropout.mask(like, self.hidden) for _ in range(1, self.layers))

    def between(self, index: int, inputs: Tensor, masks: Masks) -> Tensor:
        """What the layer at `index` reads: dropout acts before all layers but the first."""
        return self.dropout(inputs, masks.between(index)) if index else inputs

    def joined(self, index: int, outputs: Tensor, inputs: Tensor) -> Tensor:
        """What the layer at `index` gives on: its outputs, its inputs added where residual."""
        return outputs + inputs[..., : self.hidden] if self.is_residual(index) else outputs
