"""Encoder and decoder as one model: its loss in training, its steps in search.

# B batch, T target steps, N real target words, R rows of a search, H hidden, V vocabulary
"""

from typing import Any

import torch
from torch import Tensor, nn

from s2s_cli.core.batches import Batch, SourceBatch
from s2s_cli.core.model.decoder import Decoder
from s2s_cli.core.model.embedding import TiedEmbedding
from s2s_cli.core.model.encoder import Encoder
from s2s_cli.core.model.exposure import Exposure, forced_features
from s2s_cli.core.model.output import TiedSoftmax


class Seq2Seq(nn.Module):
    """p(target | source), a word at a time (Sutskever et al. 2014, equation 1)."""

    def __init__(self, encoder: Encoder, decoder: Decoder[Any, Any]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(
        self, batch: Batch, *, smoothing: float = 0.0, exposure: Exposure | None = None
    ) -> Tensor:
        """The negative log-likelihood of the batch's targets. [] summed, in nats.

        The log-softmax is taken in fp32 whatever the precision of the model.

        Args:
            batch: pairs.
            smoothing: the share of each target's probability that is spread over all words.
            exposure: when the decoder reads its own words; by default never (teacher forcing).
        """
        state = self.decoder.start(self.encoder(batch.source))
        if exposure is None:
            features, _ = self.decoder(batch.inputs, state)
        else:
            features = forced_features(self.decoder, batch.inputs, state, exposure)
        real = features.flatten(0, 1).index_select(0, batch.places)  # [N, F]
        return self.decoder.output.loss(real, batch.targets, smoothing)

    def start(self, source: SourceBatch) -> Any:
        """The decoder's state before its first word, a row for each source."""
        return self.decoder.start(self.encoder(source))

    def step(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Reads a word a row, [R]; gives fp32 logits of the next, [R, V], and the new state."""
        features, state = self.decoder(words.unsqueeze(0), state)
        logits: Tensor = self.decoder.output(features.squeeze(0))
        return logits.float(), state

    def looked_up(self) -> list[nn.Embedding]:
        """Tables of word vectors that nothing else uses: no softmax, and not the other side."""
        tied = {id(m.owner) for m in self.modules() if isinstance(m, TiedEmbedding | TiedSoftmax)}
        return [m for m in self.modules() if isinstance(m, nn.Embedding) and id(m) not in tied]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def parameter_count(self) -> int:
        """Numbers of the model, frozen ones included."""
        return sum(parameter.numel() for parameter in self.parameters())
