"""Summaries: values, intervals that cover, refusals and what is said in their place."""

import math
import re
import sys

import numpy as np
import pytest
import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, excess, summarise
from reweigh.tail import MAX_SHARE, MIN_UNITS


def batch_of(log_ratio, group=None):
    """Sequences of the given log ratios, `[S, T]`."""
    log_mu = torch.full(log_ratio.shape, -2.0 - float(log_ratio.max().clamp(min=0)), dtype=log_ratio.dtype)
    return Batch.padded(log_mu + log_ratio, log_mu, torch.ones(log_ratio.shape), group=group)


def normal(sd, size, seed=0):
    """Log ratios whose ratio has mean 1: normal with mean -sd^2 / 2 a token."""
    g = torch.Generator().manual_seed(seed)
    return sd * torch.randn(size, generator=g, dtype=torch.float64) - sd * sd / 2


def summary(log_ratio, level=SEQUENCE, group=None):
    return summarise(RatioStats.of(batch_of(log_ratio, group), level))


def test_by_hand():
    """Ratios 1/2, 1, 1 and 3/2, as one token each."""
    s = summary(torch.tensor([0.5, 1.0, 1.0, 1.5], dtype=torch.float64).log()[:, None], TOKEN)
    assert (s.n, s.sequences, s.tokens, s.dropped) == (4, 4, 4, 0)
    assert s["mean_ratio"].value == pytest.approx(1.0)
    assert s["tv"].value == pytest.approx(0.5 / 4)
    assert s["kl_k1"].value == pytest.approx(-math.log(0.75) / 4)
    assert s["kl_k3"].value == pytest.approx(-math.log(0.75) / 4)
    assert s["ess"].value == pytest.approx(16 / (0.25 + 1 + 1 + 2.25))
    assert s["largest_share"].value == pytest.approx(1.5 / 4)
    assert s["hellinger"].value == pytest.approx(1 - (math.sqrt(0.5) + 2 + math.sqrt(1.5)) / 4)
    assert s["renyi2"].sample == pytest.approx(math.log(4.5 / 4))
    assert s.refusal == f"4 units are too few (at least {MIN_UNITS})"
    assert s["renyi2"].value is s["ess_fraction"].value is s.get("renyi2") is None
    assert s["renyi2"].refused == s.refusal


def test_every_number_says_what_it_is():
    for level in (TOKEN, SEQUENCE):
        for name, number in summary(normal(0.1, (200, 40)), level).numbers.items():
            assert number.meaning.endswith("."), name
            assert number.value is None or number.sample == number.value, name
            if number.low is not None and number.high is not None:
                assert number.low <= number.value <= number.high, name


def test_intervals_cover_the_truth_under_clustering():
    """Log-normal tokens; 40 prompts of 8 responses that share a shift with mean ratio 1."""
    sd, shared = 0.05, 0.1
    truth = {"mean_ratio": 1.0, "kl_k1": (sd**2 + shared**2) / 2, "kl_k3": (sd**2 + shared**2) / 2}
    truth["tv"] = math.erf(math.sqrt(sd**2 + shared**2) / (2 * math.sqrt(2)))
    rounds, hits, hits_unclustered = 60, dict.fromkeys(truth, 0), 0
    for seed in range(rounds):
        lr = normal(sd, (320, 6), seed) + normal(shared, (40, 1), 1000 + seed).repeat_interleave(8, 0)
        s = summary(lr, TOKEN, group=torch.arange(320) // 8)
        for name, value in truth.items():
            hits[name] += s[name].low <= value <= s[name].high
        plain = summary(lr, TOKEN)["mean_ratio"]
        hits_unclustered += plain.low <= 1 <= plain.high
    assert all(count >= 0.8 * rounds for count in hits.values()), hits  # KL is skewed, and 40 clusters are few
    assert hits["mean_ratio"] >= 0.88 * rounds
    assert hits_unclustered < 0.7 * rounds


def test_a_bounded_quantity_of_many_copies_is_as_uncertain_as_one():
    lr = normal(0.5, (50, 1))
    alone = summary(lr)["tv"]
    copies = summary(lr.repeat_interleave(8, 0), group=torch.arange(400) // 8)["tv"]
    assert copies.value == pytest.approx(alone.value)
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.35)


def test_small_gaps_are_told():
    pytest.importorskip("arviz_stats")
    s = summary(normal(0.1, (20_000, 1), seed=1))
    assert s.refusal == ""
    assert s["renyi2"].value == pytest.approx(0.01, rel=0.3)
    assert s["ess_fraction"].value == pytest.approx(math.exp(-0.01), rel=0.01)
    assert s["khat"].value < 0.5


REFUSALS = [
    (normal(0.02, (MIN_UNITS - 1, 8)), "units are too few"),
    (normal(1.0, (1000, 16)), "tail index"),
    (normal(0.02, (100, 8)) + 1.0, "the mean ratio .* is not 1"),
]


@pytest.mark.parametrize(("log_ratio", "reason"), REFUSALS, ids=[r for _, r in REFUSALS])
def test_moments_that_the_sample_cannot_carry_are_refused(log_ratio, reason):
    pytest.importorskip("arviz_stats")
    s = summary(log_ratio)
    assert re.search(reason, s.refusal), s.refusal
    assert s["renyi2"].value is None
    assert s["ess_fraction"].value is None
    assert s["renyi2"].sample is not None, "what this sample has is a fact, and stays"
    assert s["tv"].value is not None, "what is bounded is never refused"


def test_one_unit_with_most_of_the_weight_is_a_reason():
    lr = torch.zeros(30, 1, dtype=torch.float64)
    lr[3] = math.log(30 * MAX_SHARE / (1 - MAX_SHARE) * 1.2)
    assert "one unit carries" in summary(lr).refusal


def test_a_spread_that_the_sample_is_too_small_for_is_a_reason():
    """Uniform log ratios have no heavy tail to see, and a standard deviation of 3 nats."""
    lr = torch.linspace(-9, 1.4, 60, dtype=torch.float64)[:, None]
    assert "fewer than exp(" in summary(lr).refusal or "tail index" in summary(lr).refusal


def test_a_tail_that_only_blocks_have_seen_is_a_reason():
    """Sequences that all cancel, of blocks that vary: the sample's second moment is that of nothing."""
    blocks = 0.3 * torch.randn(80, 16, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = (blocks - blocks.mean(1, keepdim=True)).expand(80, 16, 16).reshape(80, 256) / 16
    s = summary(lr)
    assert "by blocks of tokens" in s.refusal
    assert s["renyi2_by_blocks"].value > 2 * s["renyi2"].sample


def test_blocks_extrapolate_a_product_of_independent_tokens():
    """renyi2 of T independent tokens is T sd^2."""
    s = summary(normal(0.05, (600, 512)))
    assert s["renyi2_by_blocks"].value == pytest.approx(512 * 0.05**2, rel=0.1)


def test_the_certified_bound_is_below_the_truth_and_not_nothing():
    """Log-normal with sd 0.5: 1 + chi2 = e^0.25."""
    bounds = [summary(normal(0.5, (2000, 1), seed))["renyi2_at_least"].value for seed in range(20)]
    assert max(bounds) <= 0.25
    assert min(bounds) > 0.02


def test_excess_covers_the_truth():
    """E (r - 2)_+ of a log-normal, by the formula of an option's price; 5 standard errors of its mean beside it."""
    sd, cap = 1.0, 2.0
    phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    d1 = (math.log(1 / cap) + sd * sd / 2) / sd
    truth = phi(d1) - cap * phi(d1 - sd)
    for seed in range(20):
        number = excess(RatioStats.of(batch_of(normal(sd, (4000, 1), seed)), SEQUENCE), cap)
        assert number.low <= truth <= number.high
        assert number.value == pytest.approx(truth, abs=0.06)


def test_excess_over_a_mean_ratio_above_1_is_an_interval_still():
    """Every ratio e: the mean of min(r, 8) is e, so what is left of 1 is negative."""
    number = excess(RatioStats.of(batch_of(torch.ones(100, 1)), SEQUENCE), 8.0)
    assert number.value == 0
    assert 0 <= number.low <= number.high


def test_without_a_fitter_there_is_a_note_and_no_tail_index(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_stats.base.array", None)
    s = summary(normal(0.02, (200, 8)))
    assert s["khat"].value is None
    assert 'pip install "reweigh[audit]"' in s.note
    assert s["renyi2"].value is not None


def test_the_tail_index_is_that_of_the_largest_ratios():
    """Ratios u^-k have index k; the prior of the fit pulls a little towards 0.5, so try others too."""
    pytest.importorskip("arviz_stats")
    u = torch.rand(5000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (0.2, 0.5, 0.9):
        assert summary(-k * u.log())["khat"].value == pytest.approx(k, abs=0.15)


def test_the_tail_index_is_that_of_all_units_up_to_the_kept_tail():
    """From the 256 kept values alone it must come out as from the whole sample."""
    array_stats = pytest.importorskip("arviz_stats.base.array").array_stats
    for n in (30, 226, 2000, 7225):
        lr = normal(0.7, (n, 1), seed=n)
        expected = float(array_stats.psislw(-lr.squeeze(1).numpy())[1])
        assert summary(lr)["khat"].value == pytest.approx(expected, rel=1e-6), n


@pytest.mark.parametrize("sd", [0.0, 1e-6])
def test_on_policy_there_is_nothing_to_refuse(sd):
    s = summary(normal(sd, (100, 8)))
    assert s.refusal == ""
    assert s["ess_fraction"].value == pytest.approx(1.0)
    assert s["tv"].value == pytest.approx(0.0, abs=1e-5)


def test_ties_in_the_tail_are_no_tail_index():
    pytest.importorskip("arviz_stats")
    lr = torch.cat([torch.linspace(-0.2, -0.1, 79), torch.zeros(8), torch.linspace(0.01, 0.03, 13)]).double()[:, None]
    value = summary(lr)["khat"].value
    assert value is None or math.isfinite(value)


def test_numbers_are_plain_floats():
    for number in summary(normal(0.1, (50, 20)), TOKEN).numbers.values():
        for x in (number.value, number.low, number.high, number.sample):
            assert x is None or (isinstance(x, float) and not isinstance(x, np.floating))
