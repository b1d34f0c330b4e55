"""Confidence intervals: against other implementations, by brute force, and by their coverage."""

import math

import numpy as np
import pytest
from scipy import special, stats

from reweigh.stats.intervals import (
    MANY,
    bernoulli_kl,
    bounded,
    clustered,
    design_effect,
    empirical_bernstein,
    root_mean,
    t_below,
    t_quantile,
)
from reweigh.theory.laws import LogNormalRatio


def kl(p, q):
    return sum(a * math.log(a / b) if a else 0.0 for a, b in ((p, q), (1 - p, 1 - q)))


@pytest.mark.parametrize("n", [1, 25, 400, 100_000])
@pytest.mark.parametrize("mean", [0.0, 0.003, 0.3, 0.97, 1.0])
def test_bernoulli_kl_is_the_set_it_says(mean, n):
    """A scan of a fine grid finds the same ends."""
    low, high = bernoulli_kl(mean, n)
    grid = np.linspace(1e-6, 1 - 1e-6, 200_001)
    inside = [m for m in grid if n * kl(mean, m) <= math.log(40)]
    assert low <= mean <= high
    if inside:
        assert (low, high) == (pytest.approx(inside[0], abs=1.1e-5), pytest.approx(inside[-1], abs=1.1e-5))
    else:
        assert high - low < 1e-5


def test_bernoulli_kl_covers_the_true_mean():
    """Of 1, 10 and 200 draws of a coin, exactly by the binomial distribution: at least 95% in every case."""
    for n in (1, 10, 200):
        for p in (0.001, 0.02, 0.3, 0.5, 0.9):
            ends = [bernoulli_kl(k / n, n) for k in range(n + 1)]
            covered = sum(stats.binom.pmf(k, n, p) for k, (low, high) in enumerate(ends) if low <= p <= high)
            assert covered >= 0.95, (n, p)


def test_bernoulli_kl_scales_with_the_largest_value():
    low, high = bernoulli_kl(0.2, 50)
    assert bernoulli_kl(0.8, 50, high=4.0) == (pytest.approx(4 * low), pytest.approx(4 * high))
    assert bernoulli_kl(0.3, 0) == (0.0, 1.0)
    narrow, wide = bernoulli_kl(0.2, 50, alpha=0.5), bernoulli_kl(0.2, 50, alpha=0.001)
    assert wide[0] < narrow[0] < 0.2 < narrow[1] < wide[1]


def test_bernoulli_kl_by_hand_at_the_ends():
    """With no success `n log(1 / (1 - m)) = log 40`, so m = 1 - 40^(-1/n)."""
    assert bernoulli_kl(0.0, 10) == (0.0, pytest.approx(1 - 40 ** (-0.1)))
    assert bernoulli_kl(1.0, 10) == (pytest.approx(40 ** (-0.1)), 1.0)


def test_empirical_bernstein_by_hand():
    log80 = math.log(80)
    half = math.sqrt(2 * 0.04 * log80 / 1000) + 7 * log80 / (3 * 999)
    assert empirical_bernstein(0.5, 0.04, 1000) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert empirical_bernstein(0.01, 0.04, 8) == (0.0, 1.0)
    assert empirical_bernstein(0.5, 0.04, 1) == (0.0, 1.0)


def test_bernoulli_kl_is_the_narrower_at_small_n():
    low, high = bernoulli_kl(0.5, 64)
    wide = empirical_bernstein(0.5, 0.25, 64)
    assert high - low < 0.6 * (wide[1] - wide[0])


def test_bounded_is_chernoff_below_4000_values_and_the_overlap_from_there():
    few = bounded(0.5, 0.26, MANY - 1, 900.0, 2.0)
    assert few == (pytest.approx(0.4245, abs=1e-4), pytest.approx(0.5810, abs=1e-4))
    assert few == bernoulli_kl(0.5, 900, 2.0) == bounded(0.5, 0.26, 10 * MANY, 900.0, 2.0, "chernoff")
    many = bounded(0.5, 0.26, MANY, 900.0, 2.0)
    by_kl = bernoulli_kl(0.5, 900, 2.0, 0.025)
    by_variance = empirical_bernstein(0.5, 0.01 * 900 / 899, 900, 2.0, 0.025)
    assert many == pytest.approx((max(by_kl[0], by_variance[0]), min(by_kl[1], by_variance[1])), rel=1e-12)
    assert by_kl[0] < by_variance[0]
    assert bounded(0.5, 0.26, 1.0, 1.0, 2.0, "bernstein") == (0.0, 2.0)


def test_bounded_loses_a_little_or_gains_much():
    """Of a coin, nothing is better than Chernoff; of values close together, Bernstein is far better."""
    width = lambda ends: ends[1] - ends[0]  # noqa: E731
    n = 10_000
    assert width(bounded(0.3, 0.3, n, n)) == pytest.approx(width(bernoulli_kl(0.3, n)), rel=0.1)
    assert width(bounded(1.0, 1.01, n, n, 10.0)) < 0.25 * width(bernoulli_kl(1.0, n, 10.0))


def test_widths_that_the_documentation_names():
    def ratio(s2, cap, n, ours):
        law = LogNormalRatio(s2)
        mean = 1 - law.excess(cap)
        low, high = ours(mean, law.min2(cap), n)
        chernoff = bernoulli_kl(mean, n, cap)
        return (high - low) / (chernoff[1] - chernoff[0])

    for s2, expected in ((0.25, (1.4, 0.6, 0.2)), (4.0, (1.7, 1.2, 0.8))):
        for n, x in zip((64, 1000, 100_000), expected, strict=True):
            by_variance = lambda m, square, n: bounded(m, square, n, n, 10.0, "bernstein")  # noqa: E731
            assert ratio(s2, 10.0, n, by_variance) == pytest.approx(x, abs=0.051)
    best = lambda m, square, n: bounded(m, square, n, n, 2.0)  # noqa: E731
    assert 1 / ratio(0.01, 2.0, 100_000, best) == pytest.approx(7, abs=0.5)
    assert math.sqrt(math.log(4 / 0.05) / math.log(2 / 0.05)) == pytest.approx(1.09, abs=0.005)


def test_bernstein_covers_the_true_mean_of_a_coin():
    """Exactly, by the binomial distribution."""
    for n in (10, 300):
        for p in (0.001, 0.1, 0.5, 0.97):
            ends = [empirical_bernstein(k / n, k / n * (1 - k / n) * n / (n - 1), n) for k in range(n + 1)]
            covered = sum(stats.binom.pmf(k, n, p) for k, (low, high) in enumerate(ends) if low <= p <= high)
            assert covered >= 0.95, (n, p)


@pytest.mark.parametrize("n", [20.0, 64.0, 5000.0])
@pytest.mark.parametrize("mean", [0.05, 0.9, 0.9999, 1.02])
def test_root_mean_is_the_set_it_says(mean, n):
    low, high = root_mean(mean, n)
    grid = np.linspace(0, 1, 200_001)
    inside = grid[(mean - grid) ** 2 <= (1 - grid**2) / (0.05 * n)]
    if len(inside):
        assert (low, high) == (pytest.approx(inside[0], abs=1e-5), pytest.approx(inside[-1], abs=1e-5))
    else:
        assert 0 <= low <= high <= 1


def test_root_mean_of_few_and_of_many():
    assert root_mean(0.5, 0) == (0.0, 1.0)
    low, high = root_mean(1.0, 1e9)
    assert 1 - low < 1e-7
    assert high == 1


@pytest.mark.parametrize("p", [0.9, 0.975, 0.995])
@pytest.mark.parametrize(("df", "within"), [(1, 1e-6), (2, 1e-6), (3, 0.05), (4, 0.02), (10, 1e-3), (63, 1e-6)])
def test_t_quantile_against_scipy(p, df, within):
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=within)
    assert t_quantile(1 - p, df) == pytest.approx(-t_quantile(p, df), rel=1e-9)


def test_t_quantile_is_within_1_percent_from_4_degrees_of_freedom_on():
    """At 95%, which is what the intervals ask for."""
    for df in range(4, 64):
        assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=0.01)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 15, 31, 62, 63, 200])
def test_t_below_against_scipy(df):
    """In the far tails relative to the tail itself: p-values there are what causes are ranked by."""
    t = np.concatenate([np.geomspace(1e-3, 1e4, 400), [1e6]])
    t = np.concatenate([-t, t])
    np.testing.assert_allclose([t_below(x, df) for x in t], special.stdtr(df, t), rtol=1e-12, atol=1e-300)


def test_t_below_close_to_nought():
    """Against the arcus tangent: scipy 1.17.1 has lost half of its digits here."""
    for t in (-1e-3, -1e-6, -1e-9, 1e-12):
        assert t_below(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, rel=1e-14)


def test_t_below_at_the_ends():
    assert t_below(-math.inf, 5) == 0 == t_below(-1e200, 5)
    assert t_below(math.inf, 5) == 1 == t_below(1e200, 5)
    assert t_below(0.0, 5) == 0.5
    assert math.isnan(t_below(math.nan, 5))


def test_clustered_with_clusters_of_one_is_the_t_interval():
    x = np.random.default_rng(0).normal(size=40)
    low, high = clustered(x, np.ones(40))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 39, x.mean(), stats.sem(x)), rel=1e-5)


def test_clustered_by_hand():
    """Clusters of sums 6, 2 and counts 3, 1: mean 2, residuals 0 and 0. With 9, 1: mean 2.5, residuals 1.5, -1.5."""
    assert clustered(np.array([6.0, 2.0]), np.array([3.0, 1.0])) == (2.0, 2.0)
    half = stats.t.ppf(0.975, 1) * math.sqrt(2 * 1.5**2 * 2 / 1 / 16)
    assert clustered(np.array([9.0, 1.0]), np.array([3.0, 1.0])) == pytest.approx((2.5 - half, 2.5 + half))


def test_clustered_is_the_sandwich_of_a_regression_on_a_constant():
    """The cluster-robust (CR1) variance of an intercept, written out with matrices."""
    rng = np.random.default_rng(1)
    cluster = rng.integers(0, 12, size=200)
    y = rng.normal(size=200) + rng.normal(size=12)[cluster]
    x = np.ones((200, 1))
    bread = np.linalg.inv(x.T @ x)
    residual = y - y.mean()
    meat = sum(np.outer(v, v) for v in (x[cluster == c].T @ residual[cluster == c] for c in range(12)))
    error = math.sqrt((bread @ meat @ bread)[0, 0] * 12 / 11)
    total, count = (np.bincount(cluster, w, minlength=12) for w in (y, None))
    low, high = clustered(total, count.astype(float))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 11) * error, rel=1e-4)


def test_clustered_leaves_out_empty_clusters_and_needs_two():
    total, count = np.array([1.0, 0.0, 2.0, 3.0]), np.array([1.0, 0.0, 1.0, 1.0])
    assert clustered(total, count) == clustered(total[count > 0], count[count > 0])
    assert clustered(np.array([5.0]), np.array([2.0])) == (-math.inf, math.inf)


def test_clustered_covers_under_clustering_and_the_plain_interval_does_not():
    rng = np.random.default_rng(2)
    hits, naive = 0, 0
    for _ in range(400):
        effect = rng.normal(size=30)
        y = effect[:, None] + 0.5 * rng.normal(size=(30, 8))
        low, high = clustered(y.sum(1), np.full(30, 8.0))
        hits += low <= 0 <= high
        low, high = stats.t.interval(0.95, 239, y.mean(), stats.sem(y.ravel()))
        naive += low <= 0 <= high
    assert 0.92 <= hits / 400 <= 0.98
    assert naive / 400 < 0.7


def test_design_effect_of_copies_is_their_number():
    """Eight copies of each value carry the information of one."""
    x = np.random.default_rng(3).normal(size=500)
    got = design_effect(8 * x, np.full(500, 8.0), 4000.0, float(x.var()))
    assert got == pytest.approx(8.0, rel=0.01)
    assert design_effect(x, np.ones(500), 500.0, float(x.var())) == pytest.approx(1.0, rel=0.01)
    assert design_effect(x, np.ones(500), 500.0, 0.0) == 1.0
    assert design_effect(np.array([3.0]), np.array([3.0]), 3.0, 1.0) == 1.0
