"""Encoder and decoder as one model: its loss in training, its steps in search.

# B batch, T target steps, N real target words, R rows of a search, H hidden, V vocabulary
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2s_cli.core.batches import Batch, SourceBatch
from s2s_cli.core.model.decoder import PlainDecoder
from s2s_cli.core.model.encoder import Encoder
from s2s_cli.core.model.recurrent import RecurrentState


class Seq2Seq(nn.Module):
    """p(target | source), a word at a time (Sutskever et al. 2014, equation 1)."""

    def __init__(self, encoder: Encoder, decoder: PlainDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, batch: Batch) -> Tensor:
        """The negative log-likelihood of the batch's targets, teacher-forced. [] summed, in nats.

        The log-softmax is taken in fp32 whatever the precision of the model.
        """
        features, _ = self.decoder(batch.inputs, self.decoder.start(self.encoder(batch.source)))
        real = features.flatten(0, 1).index_select(0, batch.places)  # [N, H]
        logits = self.decoder.output(real)  # [N, V]
        return functional.cross_entropy(logits.float(), batch.targets, reduction="sum")

    def start(self, source: SourceBatch) -> RecurrentState:
        """The decoder's state before its first word, a row for each source."""
        return self.decoder.start(self.encoder(source))

    def step(self, words: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Reads a word a row, [R]; gives fp32 logits of the next, [R, V], and the new state."""
        features, state = self.decoder(words.unsqueeze(0), state)
        logits: Tensor = self.decoder.output(features.squeeze(0))
        return logits.float(), state

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.decoder.output.weight.device

    def parameter_count(self) -> int:
        """Numbers that are learned."""
        return sum(parameter.numel() for parameter in self.parameters())
