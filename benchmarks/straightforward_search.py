"""The opponent in translation: a search as a good engineer writes it before looking at a profile.

Batches in the order of the file, the decoder's `nn.LSTM` called a step at a time, log-softmax over
all words, the best K of K x V, and every sentence kept until the whole batch is done. Nothing of
s2s is used, nor any of its techniques.

# B sentences, K beam, V vocabulary, t words so far
"""

from collections.abc import Iterator, Sequence

import torch
from straightforward import END, Plain, State
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence


@torch.inference_mode()
def translate(
    model: Plain,
    sources: Sequence[Sequence[int]],
    *,
    beam: int,
    batch_size: int,
    first_word: int,
    longest: float,
) -> Iterator[list[int]]:
    """The best translation of each source, its end symbol left out.

    Args:
        model: in evaluation mode.
        sources: as the encoder reads them, the end symbol last.
        beam: hypotheses of a sentence; 1 is the greedy search.
        batch_size: sentences.
        first_word: what the decoder reads first.
        longest: words of a batch's translations at most: this many for each of its longest source.
    """
    for start in range(0, len(sources), batch_size):
        batch = sources[start : start + batch_size]
        state = read(model, batch)
        steps = int(longest * max(len(source) for source in batch)) + 10
        if beam == 1:
            paths = greedy(model, state, first_word, steps)
        else:
            paths = beam_search(model, state, first_word, steps, beam)
        for path in paths.tolist():
            yield path[: path.index(END)] if END in path else path


def read(model: Plain, sources: Sequence[Sequence[int]]) -> State:
    """The encoder's last state, of each layer and sentence."""
    device = model.output.weight.device
    padded = pad_sequence([torch.tensor(source) for source in sources]).to(device)
    lengths = torch.tensor([len(source) for source in sources])
    vectors = model.source_embedding(padded)
    packed = pack_padded_sequence(vectors, lengths, enforce_sorted=False)
    return model.encoder(packed)[1]


def greedy(model: Plain, state: State, first_word: int, steps: int) -> Tensor:
    """The likeliest word at each step. [B, t]; what follows an end symbol has no meaning"""
    sentences = state[0].shape[1]
    words = torch.full((sentences,), first_word, device=state[0].device)
    ended = torch.zeros_like(words, dtype=torch.bool)
    path = []
    for _ in range(steps):
        outputs, state = model.decoder(model.target_embedding(words)[None], state)
        words = model.output(outputs[0]).argmax(-1)
        path.append(words)
        ended |= words == END
        if ended.all():
            break
    return torch.stack(path, 1)


def beam_search(model: Plain, state: State, first_word: int, steps: int, beam: int) -> Tensor:
    """The best hypothesis of each sentence. [B, t]; what follows an end symbol has no meaning

    An ended hypothesis stays in the beam with its score. As scores only fall, a sentence is done
    when its best one has ended; the loop, when all are.
    """
    sentences, device = state[0].shape[1], state[0].device
    state = tuple(part.repeat_interleave(beam, 1) for part in state)
    firsts = torch.arange(sentences, device=device)[:, None] * beam
    scores = torch.full((sentences, beam), float("-inf"), device=device)
    scores[:, 0] = 0.0  # all are the same at first
    ended = torch.zeros((sentences, beam), dtype=torch.bool, device=device)
    words = torch.full((sentences, beam), first_word, device=device)
    paths = torch.empty((sentences, beam, 0), dtype=torch.long, device=device)
    for _ in range(steps):
        outputs, state = model.decoder(model.target_embedding(words.flatten())[None], state)
        found = model.output(outputs[0]).log_softmax(-1).view(sentences, beam, -1)
        if ended.any():
            stays = torch.full((found.shape[-1],), float("-inf"), device=device)
            stays[END] = 0.0
            found[ended] = stays
        totals = scores[:, :, None] + found
        scores, best = totals.flatten(1).topk(beam)
        parents, words = best // found.shape[-1], best % found.shape[-1]
        rows = (firsts + parents).flatten()
        state = tuple(part[:, rows] for part in state)
        paths = paths.gather(1, parents[:, :, None].expand_as(paths))
        paths = torch.cat([paths, words[:, :, None]], 2)
        ended = ended.gather(1, parents) | (words == END)
        if ended[:, 0].all():
            break
    return paths[:, 0]
