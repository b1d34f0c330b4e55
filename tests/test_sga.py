"""The ascent lemma: by hand, against every batch of small worlds, its best step, its smoothness, and errors."""

import math

import numpy as np
import pytest
from tabular import Tabular, softmax

from reweigh.theory.sga import Moments, softmax_smoothness


def test_terms_by_hand():
    """g = (2, 0), m = (1, 1), variance 6, N = 3, step 0.1, L = 2."""
    m = Moments([2.0, 0.0], [1.0, 1.0], 6.0)
    gain = m.gain(step=0.1, smoothness=2.0, n=3)
    assert gain.ascent == pytest.approx(0.1 * 0.9 * 4)
    assert gain.bias == pytest.approx(0.1 * 0.8 * -2)
    assert gain.noise == pytest.approx(0.01 * (2 + 2))
    assert gain.total == pytest.approx(0.1 * 2 - 0.01 * (2 + 2))  # eta <g, m> - L eta^2 / 2 (|m|^2 + variance / N)
    assert m.bias_norm == pytest.approx(math.sqrt(2))
    assert (m.second_moment(3), m.mse(3)) == pytest.approx((4, 4))
    assert m.best_step(2.0, 3) == pytest.approx(2 / (2 * 4))
    assert m.guaranteed_gain(2.0, 3) == pytest.approx(0.25)
    assert m.efficiency(3) == pytest.approx(4 / (4 * 4))


def random_moments(seed):
    g = np.random.default_rng(seed)
    return Moments(g.normal(size=4), g.normal(size=4), float(g.exponential()))


@pytest.mark.parametrize("seed", range(20))
def test_best_step_is_the_best_and_efficiency_the_share_of_the_possible_gain(seed):
    m, L, n = random_moments(seed), 1.7, 5
    best = m.best_step(L, n)
    steps = np.linspace(0, 3 * best + 0.1, 400)
    gains = [m.gain(float(x), L, n).total for x in steps]
    assert max(gains) <= m.guaranteed_gain(L, n) + 1e-12
    assert m.gain(best, L, n).total == pytest.approx(m.guaranteed_gain(L, n), abs=1e-14)
    g = np.asarray(m.gradient)
    assert m.guaranteed_gain(L, n) == pytest.approx(m.efficiency(n) * (g @ g) / (2 * L), abs=1e-14)
    assert 0 <= m.efficiency(n) <= 1
    if m.efficiency(n) > 0:
        mean = np.asarray(m.mean)
        snr, cos = n * (mean @ mean) / m.variance, g @ mean / np.linalg.norm(g) / np.linalg.norm(mean)
        assert m.efficiency(n) == pytest.approx(cos**2 * snr / (1 + snr))
        scaled = Moments(g, 3.0 * mean, 9.0 * m.variance)
        assert scaled.efficiency(n) == pytest.approx(m.efficiency(n))
        assert scaled.best_step(L, n) == pytest.approx(best / 3)
    else:
        assert best == m.guaranteed_gain(L, n) == 0


def test_an_estimator_that_points_away_or_nowhere_gains_nothing():
    for mean in ([-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        m = Moments([1.0, 0.0], mean, 0.0)
        assert (m.best_step(1.0), m.guaranteed_gain(1.0), m.efficiency()) == (0, 0, 0)
    assert Moments([1.0, 2.0], [1.0, 2.0], 0.0).efficiency() == 1
    assert Moments([0.0], [1.0], 1.0).guaranteed_gain(1.0) == 0


def objective(w, logits):
    pi = softmax(logits)
    rows, tokens = w._rows
    return np.where(w.live, pi[rows, tokens], 1).prod(1) @ w.rewards


WORLDS = [w for w in map(Tabular.random, range(24)) if w.numbers["g_norm"] > 1e-9]


def smoothness_of(w):
    return softmax_smoothness(w.numbers["half_range"], {None: 1, 0: w.length, 1: w.length}[w.order])


@pytest.mark.parametrize("name", ["naive", "seq_is", "seq_tis"])
def test_every_world_gains_at_least_what_is_guaranteed(name):
    """The exact mean of J after a step, over all sequences, is at least J + A + B - C."""
    for w in WORLDS:
        weight = {"naive": np.ones_like(w.rho), "seq_is": w.rho, "seq_tis": np.minimum(w.rho, 1.5)}[name]
        estimator = weight[:, None] * w.f
        m, L = Moments(w.g, w.mean(estimator), max(0.0, w.variance(estimator))), smoothness_of(w)
        logits, now = np.log(w.pi), objective(w, np.log(w.pi))
        for step in (0.3 / L, m.best_step(L), 2 / L):
            after = [objective(w, logits + step * e.reshape(logits.shape)) for e in estimator]
            assert w.p_mu @ after - now >= m.gain(step, L).total - 1e-12
        assert m.mse() == pytest.approx(w.bias(estimator) ** 2 + w.variance(estimator), rel=1e-9, abs=1e-12)


def test_smoothness_bounds_the_curvature():
    """Second differences of J along random directions and random logits."""
    g = np.random.default_rng(0)
    tightest = 0.0
    for w in WORLDS:
        L = smoothness_of(w)
        for _ in range(20):
            logits, way = 2 * g.normal(size=w.pi.shape), g.normal(size=w.pi.shape)
            way /= np.linalg.norm(way)
            h = 1e-3
            bend = sum(c * objective(w, logits + k * h * way) for k, c in ((-1, 1), (0, -2), (1, 1))) / h**2
            assert abs(bend) <= L * (1 + 1e-6) + 1e-6
            tightest = max(tightest, abs(bend) / L)
    assert tightest > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.gain(0.1, 0.0), "gain: smoothness must be > 0 and finite, got 0.0"),
        (lambda m: m.gain(0.1, -1.0), "gain: smoothness must be > 0 and finite, got -1.0"),
        (lambda m: m.best_step(math.nan), "best_step: smoothness must be > 0 and finite, got nan"),
        (lambda m: m.gain(-0.1, 1.0), "gain: step must be >= 0 and finite, got -0.1"),
        (lambda m: m.gain(math.nan, 1.0), "gain: step must be >= 0 and finite, got nan"),
        (lambda m: m.gain(0.1, 1.0, n=0), "gain: n must be >= 1, got 0"),
        (lambda m: m.efficiency(0.5), "second_moment: n must be >= 1, got 0.5"),
        (lambda m: m.mse(math.nan), "mse: n must be >= 1, got nan"),
        (lambda m: Moments([1.0, math.nan], [1.0, 1.0], 1.0), "gradient must be finite, got nan at index 1"),
        (lambda m: Moments([1.0, 1.0], [math.inf, 1.0], 1.0), "mean must be finite, got inf at index 0"),
        (lambda m: Moments([1.0], [1.0], -1.0), "variance must be >= 0 and finite, got -1.0"),
        (lambda m: Moments([1.0], [1.0], math.nan), "variance must be >= 0 and finite, got nan"),
        (lambda m: Moments([1.0, 2.0], [1.0], 1.0), r"vectors of one length, got \(2,\) and \(1,\)"),
        (lambda m: Moments([0.0], [1.0], 1.0).efficiency(), "the true gradient is 0"),
        (lambda m: softmax_smoothness(-1.0), "half_range and visits must be >= 0, got half_range=-1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(Moments([1.0], [1.0], 1.0))
