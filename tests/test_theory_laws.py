"""Laws of a ratio: given numbers, quadrature, the planner's tables, and the exact law of finitely many outcomes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate

from reweigh.theory.laws import FiniteRatio, LogNormalRatio

GIVEN = json.loads((Path(__file__).parent / "data" / "golden_worlds.json").read_text())["lognormal"]


@pytest.mark.parametrize("given", GIVEN, ids=lambda x: f"{x['s2']}-{x['C']}")
def test_given_numbers(given):
    law, cap = LogNormalRatio(given["s2"]), given["C"]
    pairs = {
        "excess": law.excess(cap),
        "E_min2": law.min2(cap),
        "mis_lost": law.lost(cap),
        "mis_m2": law.mis_m2(cap),
        "tv": law.tv,
        "chi2": law.chi2,
    }
    assert pairs == pytest.approx({k: given[k] for k in pairs}, rel=1e-12)


@pytest.mark.parametrize("s2", [0.01, 1.0, 9.0])
@pytest.mark.parametrize("cap", [0.2, 1.0, 30.0])
def test_quadrature(s2, cap):
    law, s = LogNormalRatio(s2), math.sqrt(s2)

    def mean(h):
        density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        f = lambda z: h(math.exp(s * z - s2 / 2)) * density(z)  # noqa: E731
        at = (math.log(cap) + s2 / 2) / s
        ends = sorted({-14.0, 14.0 + 2 * s, min(max(at, -14.0), 14.0), 0.0, min(max(s / 2, -14), 14)})
        return sum(integrate.quad(f, x, y, epsabs=1e-14)[0] for x, y in zip(ends[:-1], ends[1:], strict=True))  # noqa: RUF007

    assert law.excess(cap) == pytest.approx(mean(lambda r: max(r - cap, 0)), rel=1e-7, abs=1e-12)
    assert law.min2(cap) == pytest.approx(mean(lambda r: min(r, cap) ** 2), rel=1e-7, abs=1e-12)
    assert law.lost(cap) == pytest.approx(mean(lambda r: r * (r > cap)), rel=1e-7, abs=1e-12)
    assert law.above(cap) == pytest.approx(mean(lambda r: float(r > cap)), rel=1e-7, abs=1e-12)
    assert law.mis_m2(cap) == pytest.approx(mean(lambda r: r * r * (r <= cap)), rel=1e-7, abs=1e-12)
    assert law.tv == pytest.approx(mean(lambda r: max(1 - r, 0)), rel=1e-7)
    assert law.hellinger2 == pytest.approx(1 - mean(math.sqrt), rel=1e-6, abs=1e-10)
    assert law.kl == pytest.approx(mean(lambda r: -math.log(r)), rel=1e-7)
    assert 1 / law.ess_fraction == pytest.approx(1 + law.chi2) == pytest.approx(math.exp(law.renyi2))


# KL a token, length, mean min(w, 2), effective share, share of ratios within [1/2, 2], dropped by two bands
PLAN = [
    (1e-4, 1024, 0.98, 0.81, 0.86, 0.03, 0.0),
    (1e-4, 16384, 0.50, 0.04, 0.20, 0.0, 0.0),
    (1e-3, 256, 0.91, 0.60, 0.64, 0.74, 0.001),
    (1e-3, 1024, 0.64, 0.13, 0.29, 0.58, 0.0),
    (1e-3, 4096, 0.21, 3e-4, 0.07, 0.50, 0.0),
    (2e-3, 4096, 0.06, 8e-8, 0.02, 0.85, 0.0),
    (5e-3, 1024, 0.15, 4e-5, 0.05, 0.93, 0.05),
    (1e-2, 1024, 0.03, 1e-9, 0.01, 0.99, 0.50),
]


@pytest.mark.parametrize(("kl", "length", "mean", "ess", "within", "narrow", "wide"), PLAN)
def test_plan(kl, length, mean, ess, within, narrow, wide):
    law = LogNormalRatio.of_length(kl, length)
    assert 1 - law.excess(2.0) == pytest.approx(mean, abs=0.0051)
    assert law.ess_fraction == pytest.approx(ess, abs=0.0051)
    assert -math.log10(law.ess_fraction) == pytest.approx(-math.log10(ess), abs=0.35)
    assert law.within(0.5, 2.0) == pytest.approx(within, abs=0.0051)
    assert 1 - law.geo_accept(0.999, 1.001, length) == pytest.approx(narrow, abs=0.0051)
    assert 1 - law.geo_accept(0.99, 1.01, length) == pytest.approx(wide, abs=0.0051)


@pytest.mark.parametrize(
    ("sigma", "accepted"),
    [
        (0.02, {50: 0.28, 100: 0.38, 1000: 0.87, 10_000: 1.0}),
        (0.05, {50: 0.11, 100: 0.15, 1000: 0.36, 10_000: 0.31, 100_000: 0.06}),
    ],
)
def test_a_fixed_band_on_the_geometric_ratio_depends_on_the_length(sigma, accepted):
    for length, share in accepted.items():
        law = LogNormalRatio(sigma**2 * length)
        assert law.geo_accept(0.999, 1.001, length) == pytest.approx(share, abs=0.0051)


def test_the_band_is_that_of_the_sequence_ratio():
    law = LogNormalRatio(0.7)
    assert law.geo_accept(0.9, 1.2, 5) == pytest.approx(law.within(0.9**5, 1.2**5), rel=1e-12)


def test_no_gap_and_a_gap_past_any_float():
    none, vast = LogNormalRatio(0.0), LogNormalRatio(1e5)
    assert (none.tv, none.kl, none.chi2, none.hellinger2, none.ess_fraction) == (0, 0, 0, 0, 1)
    assert (none.excess(0.25), none.excess(1.0), none.lost(0.5), none.lost(1.0)) == (0.75, 0, 1, 0)
    assert (none.min2(0.5), none.min2(3.0), none.mis_m2(0.5), none.mis_m2(1.0)) == (0.25, 1, 0, 1)
    assert (none.geo_accept(0.9, 1.1, 9), none.geo_accept(1.01, 1.1, 9), none.minimax(4)) == (1, 0, 0)
    assert (vast.tv, vast.excess(2.0), vast.lost(1e300), vast.ess_fraction) == (1, 1, 1, 0)
    assert vast.chi2 == math.inf
    assert 0 <= vast.min2(1e3) < 1e-9
    assert (vast.excess(0.0), vast.min2(0.0)) == (1, 0)
    assert 0 < vast.minimax(64) <= 1


def test_tails_far_past_erfc_are_smooth():
    """Where the closed form changes over, 30 standard deviations out, nothing jumps."""
    law = LogNormalRatio(1.0)
    logs = [math.log(law.above(math.exp(x))) for x in (29.4999, 29.5001)]
    assert logs[0] - logs[1] == pytest.approx(30.03 * 2e-4, rel=1e-3)
    assert law.above(math.exp(34)) > 0


def test_minimax_is_the_best_event():
    law = LogNormalRatio(4.0)
    caps = np.exp(np.linspace(-6, 8, 2001))
    best = max(law.lost(c) ** 2 * (1 - law.above(c)) ** 16 for c in caps)
    assert law.minimax(16) == pytest.approx(best, rel=1e-4)
    assert law.minimax(16) >= best


def test_finite_law_of_many_quantiles_is_the_log_normal_one():
    from statistics import NormalDist

    n = 20_000
    z = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    law, exact = FiniteRatio(z - 0.5, np.full(n, 1 / n)), LogNormalRatio(1.0)
    for name in ("tv", "hellinger2"):
        assert getattr(law, name) == pytest.approx(getattr(exact, name), rel=1e-3)
    for name in ("excess", "lost", "above", "min2", "mis_m2"):
        assert getattr(law, name)(2.0) == pytest.approx(getattr(exact, name)(2.0), rel=3e-3), name
    assert law.minimax(64) == pytest.approx(exact.minimax(64), rel=3e-3)


def test_finite_law_by_hand():
    law = FiniteRatio(np.array([-np.inf, 0.0, math.log(4.0)]), np.array([0.6, 0.2, 0.2]))
    assert law.m2 == pytest.approx(0.2 + 3.2)
    assert law.chi2 == pytest.approx(2.4)
    assert law.tv == pytest.approx(0.6)
    assert law.hellinger2 == pytest.approx(1 - 0.2 - 0.2 * 2)
    assert (law.excess(2.0), law.above(4.0), law.above(1.0)) == pytest.approx((0.4, 0.0, 0.2))
    assert (law.lost(1.0), law.min2(2.0), law.mis_m2(1.0)) == pytest.approx((0.8, 1.0, 0.2))
    assert law.minimax(1) == pytest.approx(1 * 0.6)  # the event that r is not 0; of r = 4: 0.64 * 0.8
    assert law.minimax(9) == pytest.approx(0.64 * 0.8**9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogNormalRatio(-1.0), "LogNormalRatio: s2 must be >= 0 and finite, got -1.0"),
        (lambda: LogNormalRatio(math.nan), "s2 must be >= 0 and finite, got nan"),
        (lambda: LogNormalRatio(math.inf), "s2 must be >= 0 and finite, got inf"),
        (lambda: LogNormalRatio(1.0).lost(-2.0), "a cap must be >= 0, got -2.0"),
        (lambda: LogNormalRatio(1.0).min2(math.nan), "a cap must be >= 0, got nan"),
        (lambda: FiniteRatio(np.zeros(2), np.ones(2)), "sum to 1, got a sum of 2"),
        (lambda: FiniteRatio(np.zeros(2), np.array([1.5, -0.5])), "probabilities must be >= 0"),
        (lambda: FiniteRatio(np.zeros(2), np.ones(1)), r"shapes \(2,\) and \(1,\)"),
        (lambda: FiniteRatio(np.array([np.inf]), np.ones(1)), "log_ratio must be finite or -inf"),
        (lambda: FiniteRatio(np.array([0.1]), np.ones(1)), "mean of pi/mu under mu is at most 1, got 1.105"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_second_moment_of_ratios_whose_squares_are_no_float64():
    p = np.array([1e-200, 1 - 1e-200])
    rare = FiniteRatio(np.array([400.0, -1.0]), p)
    assert math.log(rare.m2) == pytest.approx(800 + math.log(1e-200), rel=1e-12)
