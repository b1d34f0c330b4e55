"""The second moment at other lengths: independent tokens, drifting sequences, and what is refused."""

import math
import statistics

import pytest
import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats
from reweigh.stats.summary import renyi2_at, renyi2_models


def stats_of(lr):
    log_mu = torch.full_like(lr, -5.0)
    return RatioStats.of(Batch.padded(log_mu + lr, log_mu, torch.ones(lr.shape)), SEQUENCE)


def normal(sd, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    return sd * torch.randn(size, generator=g, dtype=torch.float64) - sd * sd / 2


@pytest.mark.parametrize("length", [64, 300, 5000])
def test_independent_tokens_extrapolate(length):
    stats, truth = stats_of(normal(0.05, (3000, 256))), length * 0.05**2
    number = renyi2_at(stats, length)
    assert number.value == pytest.approx(truth, rel=0.1)
    assert number.low <= truth <= number.high
    models = renyi2_models(stats, length)
    assert set(models) == {"variance", "kl", "block_16", "block_128"}
    assert models["block_128"] == number.value
    for name, value in models.items():
        assert value == pytest.approx(truth, rel=0.1), name


def test_models_that_disagree_widen_it():
    """A shift that all tokens of a sequence share adds up over the sequence, and blocks do not know."""
    lr = normal(0.02, (3000, 256)) + normal(0.5, (3000, 1)) / 256
    number = renyi2_at(stats_of(lr), 256)
    assert number.value < 0.6 * (256 * 0.02**2 + 0.25)
    assert number.high > 0.9 * (256 * 0.02**2 + 0.25)


def test_blocks_see_the_tail_that_the_sample_does_not():
    """Log-normal with a variance of 1.92 by sequence: most samples of 256 see three quarters of it, blocks all."""
    plain, blocks = [], []
    for seed in range(9):
        lr = normal(math.sqrt(1.92 / 64), (256, 64), seed)
        plain.append(math.log(float((2 * lr.sum(1)).exp().mean())))
        blocks.append(renyi2_at(stats_of(lr), 64).value)
    assert statistics.median(plain) < 0.85 * 1.92
    assert statistics.median(blocks) == pytest.approx(1.92, rel=0.1)


def test_what_cannot_be_extrapolated():
    short = renyi2_at(stats_of(normal(0.1, (100, 8))), 64)
    assert short.value is None
    assert short.refused == "no block size has 25 blocks and a mean square that is known to 25%"
    assert renyi2_at(RatioStats.empty(SEQUENCE), 64).refused == short.refused
    assert renyi2_models(RatioStats.empty(SEQUENCE), 64) == {}
    with pytest.raises(ValueError, match="length must be over 0, got 0"):
        renyi2_at(stats_of(normal(0.1, (3, 8))), 0)
    with pytest.raises(ValueError, match="stats must be at SEQUENCE level, got TOKEN"):
        renyi2_at(RatioStats.empty(TOKEN), 8)
