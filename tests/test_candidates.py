"""The best of very many numbers against torch's own sorting of them all."""

import pytest
import torch

from s2s_cli.core.search.candidates import (
    SLICE,
    STRIDE,
    best_words,
    group_maxima,
    likeliest,
    survey,
)

SIZES = [1, 2, 7, 2 * STRIDE - 1, 2 * STRIDE, 2 * STRIDE + 1, 5 * STRIDE + 100, 1000]


@pytest.mark.parametrize("size", SIZES)
def test_the_likeliest_word(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for _ in range(20):
        values = torch.randn(9, size, generator=generator)
        assert torch.equal(likeliest(values, group_maxima(values)), values.argmax(-1))
    for place in {0, size // 2, size - 1}:  # also where nothing else may be said
        values = torch.full((3, size), -torch.inf)
        values[:, place] = -5.0
        assert likeliest(values, group_maxima(values)).tolist() == [place] * 3


@pytest.mark.parametrize("width", [1, 3, 12])
@pytest.mark.parametrize("count", [1, 2, 10, 24])
@pytest.mark.parametrize("size", SIZES)
def test_the_best_words_of_all_rows(size: int, count: int, width: int) -> None:
    generator = torch.Generator().manual_seed(size + 1000 * count)
    values = 3 * torch.randn(4 * width, size, generator=generator)
    blocked = torch.rand(values.shape, generator=generator) < 0.3
    for given in (values, values.masked_fill(blocked, -torch.inf)):
        scores = torch.randn(4, width, generator=generator)
        found, rows, words = best_words(given, group_maxima(given), scores, count)
        every = (given.view(4, width, size) + scores[..., None]).flatten(1)
        expected, places = every.topk(min(count, width * size), -1)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        known = expected > -torch.inf
        assert torch.equal((rows * size + words)[known], places[known])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, SLICE, SLICE + 1, 3 * SLICE - 1])
def test_the_normalizer_is_the_log_of_the_sum(rows: int, size: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    logits = 6 * torch.randn(rows, size, generator=generator)
    logits += 40 * torch.randn(rows, 1, generator=generator)
    logits[-1] = torch.linspace(-3e4, 900.0, size) if size > 1 else -3e4
    maxima, found = survey(logits)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, logits.double().logsumexp(-1), rtol=1e-7, atol=3e-7)
    assert torch.equal(maxima, group_maxima(logits))
