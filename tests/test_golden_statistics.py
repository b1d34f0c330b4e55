"""Statistics of forty given ratios, against values computed elsewhere in float64 and again with 40 digits."""

import json
from math import exp, log
from pathlib import Path

import pytest
import torch

from reweigh import SEQUENCE, Batch, RatioStats, summarise
from reweigh.stats.intervals import bernoulli_kl, empirical_bernstein
from reweigh.stats.summary import excess

GIVEN = json.loads((Path(__file__).parent / "data" / "sample_stats.json").read_text())


@pytest.fixture(scope="module")
def stats():
    log_ratio = torch.tensor(GIVEN["log_rho"], dtype=torch.float64)[:, None]
    # No log-prob is over 0, however large the ratio: both are far below.
    return RatioStats.of(Batch.padded(log_ratio - 50, torch.full_like(log_ratio, -50), log_ratio.isfinite()), SEQUENCE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean_ratio", GIVEN["mean_rho"]),
        ("kl_k1", GIVEN["kl_k1"]),
        ("tv", GIVEN["tv_bounded"]),
        ("hellinger", GIVEN["hell2_plugin"]),
        ("renyi2", log(1 + GIVEN["chi2_selfnorm"])),
        ("ess", GIVEN["ess"]),
        ("largest_share", GIVEN["top_weight_share"]),
        ("khat", GIVEN["khat_psis"]),
    ],
)
def test_numbers(stats, name, expected):
    assert summarise(stats)[name].sample == pytest.approx(expected, rel=1e-12)


def test_moments_are_refused_for_the_tail(stats):
    summary = summarise(stats)
    assert "tail index 0.96" in summary.refusal
    assert summary.value("renyi2") is None
    assert summary.value("ess_fraction") is None


def test_powers(stats):
    assert float(stats.powers[1].sum()) == pytest.approx(exp(GIVEN["logsumexp1"]), rel=1e-12)
    assert float(stats.powers[2].sum()) == pytest.approx(exp(GIVEN["logsumexp2"]), rel=1e-12)


def test_interval_of_the_total_variation(stats):
    tv = summarise(stats)["tv"]
    assert [tv.low, tv.high] == pytest.approx(GIVEN["kl_ci95_tv"], rel=1e-9)


def test_excess_and_intervals(stats):
    cap = GIVEN["C"]
    assert excess(stats, cap).value == pytest.approx(GIVEN["excess_bounded"], rel=1e-12)
    n = len(GIVEN["log_rho"])
    assert list(bernoulli_kl(GIVEN["tv_bounded"], n)) == pytest.approx(GIVEN["kl_ci95_tv"], rel=1e-9)
    shortfall = [max(0.0, 1 - exp(x)) for x in GIVEN["log_rho"]]
    mean = sum(shortfall) / n
    variance = sum((x - mean) ** 2 for x in shortfall) / (n - 1)
    low, high = GIVEN["eb_ci95_tv"]
    # Ours keeps within what a mean of values in [0, 1] can be.
    assert list(empirical_bernstein(mean, variance, n)) == pytest.approx([max(0.0, low), min(1.0, high)], rel=1e-9)
