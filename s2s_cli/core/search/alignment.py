"""What attention says of words: which source word each comes from.

# T words of a translation, S words of its source; matrices are [T + 1, S + 1], EOS last
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from s2s_cli.core.tokenizer import UNKNOWN

Links = tuple[tuple[int, int], ...]


def links(attention: Tensor) -> Links:
    """(source, target), both from 0, for each word of the translation; no EOS on either side."""
    if not attention.shape[1] > 1:
        return ()
    sources = attention[:-1, :-1].argmax(-1).tolist()
    return tuple((source, target) for target, source in enumerate(sources))


def copies(words: Sequence[int], attention: Tensor, surfaces: Sequence[str]) -> dict[int, str]:
    """For the place of each unknown word the text of the source word that it attends to most.

    surfaces: [S]; words of the source that are no text, such as a mere space, are passed over.
    """
    places = [place for place, surface in enumerate(surfaces) if surface]
    if not places:
        return {}
    return {
        number: surfaces[places[int(attention[number, places].argmax())]]
        for number, word in enumerate(words)
        if word == UNKNOWN
    }


def joined(attentions: Sequence[Tensor]) -> Tensor:
    """The attention of a translation in parts: each part's own, one below and behind the other."""
    whole = torch.zeros(sum(map(len, attentions)), sum(each.shape[1] for each in attentions))
    row = column = 0
    for each in attentions:
        whole[row : row + len(each), column : column + each.shape[1]] = each
        row, column = row + len(each), column + each.shape[1]
    return whole
