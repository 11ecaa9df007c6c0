"""Decoders that must loop over time, because what a step attends to enters the next one.

The first layer reads the word and, behind it, what was fed. Only what depends on the step before
stands in the loops: the words' share of the first layer's input is multiplied beforehand, and
readouts and upper layers come after, where they can.

# B batch, T target steps, E embedding, H hidden, C context, F features
"""

from dataclasses import replace

import torch
from torch import Tensor

from s2s_cli.core.model.bridge import Encoded
from s2s_cli.core.model.decoder import AttendingDecoder, AttentionState
from s2s_cli.core.model.recurrent import LayerStack, stacked


class FeedingDecoder(AttendingDecoder[LayerStack]):
    """Input feeding: the readout of a step is read with the next word.

    Luong et al. 2015, section 3.3. What is fed has not gone through the dropout before the
    softmax, and is zero at first.
    """

    def fed_at_first(self, encoded: Encoded) -> Tensor:
        """Features of zeros."""
        return encoded.summary.new_zeros(len(encoded.summary), self.readout.features)

    def forward(self, words: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Reads `words` [T, B]; features [T, B, F] for the softmax, and the state after."""
        recurrent, source, fed = state.recurrent, state.source, state.fed
        vectors = self.vectors(words, recurrent.masks)
        project = self.recurrent[0].beside(vectors)
        features = []
        for step, vector in enumerate(vectors):
            previous = recurrent.top
            output, recurrent = self.recurrent.step(project(step, fed), vector, recurrent)
            context, source = self.attention.step(output, source)
            fed = self.readout(output, previous, vector, context)
            features.append(fed)
        written = self.dropped(torch.stack(features), recurrent.masks)
        return written, AttentionState(recurrent, source, fed)


class PreviousQueryDecoder(AttendingDecoder[LayerStack]):
    """The state before a step asks; the context enters the step (Bahdanau et al. 2015, 3.1)."""

    def forward(self, words: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Reads `words` [T, B]; features [T, B, F] for the softmax, and the state after."""
        recurrent, source = state.recurrent, state.source
        vectors = self.vectors(words, recurrent.masks)
        project = self.recurrent[0].beside(vectors)
        previous, outputs, contexts = [], [], []
        for step, vector in enumerate(vectors):
            previous.append(recurrent.top)
            context, source = self.attention.step(recurrent.top, source)
            contexts.append(context)
            output, recurrent = self.recurrent.step(project(step, context), vector, recurrent)
            outputs.append(output)
        features = self.readout(
            torch.stack(outputs), torch.stack(previous), vectors, torch.stack(contexts)
        )
        after = replace(state, recurrent=recurrent, source=source)
        return self.dropped(features, recurrent.masks), after


class BottomQueryDecoder(AttendingDecoder[LayerStack]):
    """The first layer asks; all layers and the readout see the context (Chen et al. 2018, 3.1).

    The first layer sees that of the step before, zeros at first. Only the first layer is in the
    loop: the others know all contexts beforehand.
    """

    def fed_at_first(self, encoded: Encoded) -> Tensor:
        """A context of zeros."""
        return torch.zeros_like(encoded.outputs[:, 0])

    def forward(self, words: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Reads `words` [T, B]; features [T, B, F] for the softmax, and the state after."""
        source, context = state.source, state.fed
        stack, masks = self.recurrent, state.recurrent.masks
        vectors = self.vectors(words, masks)
        project = stack[0].beside(vectors)
        parts = state.recurrent.layer(0)
        outputs, seen = [], []
        for step in range(len(words)):
            parts = stack[0].step(project(step, context), parts)
            context, source = self.attention.step(parts[0], source)
            outputs.append(parts[0])
            seen.append(context)
        output, contexts = torch.stack(outputs), torch.stack(seen)
        output = stack.joined(0, output, vectors)
        after = [parts]
        for index in range(1, stack.layers):
            given = torch.cat([stack.between(index, output, masks), contexts], -1)
            upper, parts = stack[index].run(given, state.recurrent.layer(index))
            output = stack.joined(index, upper, output)
            after.append(parts)
        features = self.read_out(output, state.recurrent, vectors, contexts)
        new = replace(state, recurrent=stacked(after, masks), source=source, fed=context)
        return features, new
