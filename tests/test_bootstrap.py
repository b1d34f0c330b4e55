"""The bootstrap of clusters: against a plain one, repeatable, and the same for merged stats."""

import math

import numpy as np
import pytest
import torch
from batches import random_batch, rows_of
from scipy import stats

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, summarise
from reweigh.stats.summary import bootstrap, resample

MEAN = lambda c: c["x"] / c["n"]  # noqa: E731


def test_it_is_the_percentile_bootstrap():
    x = np.random.default_rng(0).gamma(1.0, size=50)
    got = resample({"x": x, "n": np.ones(50)}, np.ones(50), MEAN, draws=20_000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert got == pytest.approx((theirs.low, theirs.high), rel=0.01)


def test_whole_clusters_are_drawn():
    """Eight copies of each value in one cluster say no more than one of each."""
    x = np.random.default_rng(0).normal(size=40)
    one = resample({"x": x, "n": np.ones(40)}, np.ones(40), MEAN)
    eight = resample({"x": 8 * x, "n": np.full(40, 8.0)}, np.full(40, 8.0), MEAN)
    assert one == pytest.approx(eight)


def test_empty_clusters_are_left_out_and_two_are_needed():
    x, n = np.array([1.0, 0.0, 3.0, 4.0]), np.array([1.0, 0.0, 1.0, 1.0])
    some = n > 0
    assert resample({"x": x, "n": n}, n, MEAN) == resample({"x": x[some], "n": n[some]}, n[some], MEAN)
    one = np.array([2.0])
    assert resample({"x": one, "n": one}, one, MEAN) == (-math.inf, math.inf)


def test_a_seed_is_an_interval_and_a_small_alpha_a_wide_one():
    x = np.arange(30.0)
    run = lambda **how: resample({"x": x, "n": np.ones(30)}, np.ones(30), MEAN, **how)  # noqa: E731
    assert run() == run() != run(seed=1)
    assert run(alpha=0.5)[0] > run()[0]


@pytest.mark.parametrize("how", [{"alpha": 0.0}, {"alpha": 1.0}, {"draws": 0}])
def test_what_cannot_be_resampled_is_refused(how):
    with pytest.raises(ValueError, match="0 < alpha < 1 and draws >= 1 are needed"):
        resample({"x": np.ones(3), "n": np.ones(3)}, np.ones(3), MEAN, **how)


@pytest.mark.parametrize("level", [TOKEN, SEQUENCE], ids=lambda level: level.name)
def test_intervals_hold_the_numbers_of_the_summary(level):
    g = torch.Generator().manual_seed(0)
    log_mu = torch.full((640, 10), -5.0, dtype=torch.float64)
    lr = 0.05 * torch.randn(640, 10, generator=g, dtype=torch.float64)
    batch = Batch.padded(log_mu + lr, log_mu, torch.ones(640, 10))
    ratios = RatioStats.of(batch, level)
    s, ends = summarise(ratios), bootstrap(ratios)
    assert set(ends) == {name for name in ends if name in s.numbers}
    assert ("kl_k3" in ends) == (level is TOKEN)
    for name, (low, high) in ends.items():
        assert low < s[name].sample < high, name
        if s[name].low is not None and name != "tv":  # the same clusters, so much the same width as the t interval's
            assert high - low == pytest.approx(s[name].high - s[name].low, rel=0.1), name


def test_merged_stats_have_the_intervals_of_one_batch():
    batch = random_batch(5, 0.3, size=(60, 9))
    parts = [RatioStats.of(rows_of(batch, torch.arange(i, i + 20)), SEQUENCE) for i in (0, 20, 40)]
    whole, merged = bootstrap(RatioStats.of(batch, SEQUENCE)), bootstrap(parts[2] + parts[0] + parts[1])
    for name, ends in whole.items():
        assert merged[name] == pytest.approx(ends, rel=1e-5, abs=1e-9), name


def test_ratios_of_e_300_and_tiny_ones():
    log_mu = torch.full((50, 1), -700.0, dtype=torch.float64)
    far = 300 + torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    ends = bootstrap(RatioStats.of(Batch.padded(log_mu + far, log_mu, torch.ones(50, 1)), SEQUENCE))
    assert 300 < math.log(ends["mean_ratio"][0]) < math.log(ends["mean_ratio"][1]) < 301
    assert 0 < ends["renyi2"][0] < ends["renyi2"][1] < 0.3
    near = 1e-6 * torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    low, high = bootstrap(RatioStats.of(Batch.padded(log_mu + near, log_mu, torch.ones(50, 1)), SEQUENCE))["renyi2"]
    assert 0 < low < 1e-12 / 3 < high < 1e-12


def test_it_is_not_honest_for_the_second_moment_of_a_heavy_tail():
    """Log-normal with variance 4 and 64 units: hardly one interval in ten reaches the truth. That is its warning."""
    g, hits = torch.Generator().manual_seed(0), 0
    log_mu = torch.full((64, 1), -60.0, dtype=torch.float64)
    for _ in range(40):
        lr = 2 * torch.randn(64, 1, generator=g, dtype=torch.float64) - 2
        ratios = RatioStats.of(Batch.padded(log_mu + lr, log_mu, torch.ones(64, 1)), SEQUENCE)
        low, high = bootstrap(ratios, draws=200)["renyi2"]
        hits += low <= 4.0 <= high
    assert hits <= 4
