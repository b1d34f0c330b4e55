"""Summaries: values, intervals that cover, refusals and what is said in their place."""

import math
import re

import numpy as np
import pytest
import reference
import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, summarise
from reweigh.stats.summary import excess
from reweigh.stats.sums import MIN_UNITS
from reweigh.stats.tail import (
    MAX_SHARE,
    MIN_BEHIND,
    kl_pi_mu,
    log_needed_by_kl,
    refusal_of,
    units_behind,
)
from reweigh.theory.laws import LogNormalRatio


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
    assert s["renyi2"].value is s["ess_fraction"].value is s.value("renyi2") is None
    assert s["renyi2"].refused == s.refusal


def test_every_number_says_what_it_is():
    for level in (TOKEN, SEQUENCE):
        for name, number in summary(normal(0.1, (200, 40)), level).numbers.items():
            assert number.meaning.endswith("."), name
            assert number.value is None or number.sample == number.value, name
            if number.low is not None and number.high is not None:
                assert number.low <= number.value <= number.high, name


@pytest.mark.slow
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
    """Uniform log ratios have no heavy tail to see, and a variance of 5.9 nats squared; log 60 is 4.1."""
    lr = torch.linspace(-7, 1.4, 60, dtype=torch.float64)[:, None]
    assert summary(lr).refusal == "60 units are too few for log ratios that spread so widely: it takes over 437"


def test_too_few_units_where_the_second_moment_comes_from_is_a_reason():
    """Two values have no tail at all; 2 KL is 1.24, and Phi(-2 sqrt(1.24)) 0.013."""
    r = torch.tensor([0.3, 0.3, 0.3, 3.1]).double().repeat(14)[:, None]
    assert summary(r.log()).refusal == (
        f"fewer than {MIN_BEHIND} of 56 units can be where a log(1 + chi2) of 1.2 comes from"
    )
    assert units_behind(1.24) == pytest.approx(0.01297, abs=1e-4)
    assert summary(r.log().repeat(50, 1)).refusal == ""


def test_what_kl_of_the_sample_asks_for_is_a_reason():
    """Ratios of 4 and 0.8 by turns: the mean of r log r is 2.7, and log 26 is 3.3; of 5 and 0.8: 3.9."""
    ratios = lambda high: torch.tensor([high, 0.8]).double().log().repeat(14)[:26, None]  # noqa: E731
    for high, refused in ((4.0, False), (5.0, True)):
        h = RatioStats.of(batch_of(ratios(high)), SEQUENCE).host
        mean = (high * math.log(high) + 0.8 * math.log(0.8)) / 2
        assert log_needed_by_kl(h) == pytest.approx(mean, rel=1e-6)
        assert kl_pi_mu(h) == pytest.approx(mean / ((high + 0.8) / 2) - math.log((high + 0.8) / 2), rel=1e-6)
        reason = refusal_of(h, None, True, None)
        assert ("units are too few for a KL(pi||mu) like this sample's: it takes over" in reason) == refused, reason


def test_a_tail_that_only_blocks_have_seen_is_a_reason():
    """Sequences that all cancel, of blocks that vary: the sample's second moment is that of nothing."""
    blocks = 0.3 * torch.randn(80, 16, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = (blocks - blocks.mean(1, keepdim=True)).expand(80, 16, 16).reshape(80, 256) / 16
    s = summary(lr)
    assert "by blocks of tokens" in s.refusal
    assert s["renyi2_by_blocks"].value > 2 * s["renyi2"].sample


def test_sequences_that_drift_as_a_whole_are_told_with_a_note():
    """Every token of a sequence has the same log ratio: blocks taken for independent see little of it."""
    lr = normal(0.5, (4000, 1)).expand(4000, 256) / 256
    s = summary(lr)
    assert s.refusal == ""
    assert "by blocks of tokens: log ratios of a response drift together" in s.note
    assert summary(normal(0.02, (400, 256))).note == ""


@pytest.mark.slow
def test_a_mean_below_1_is_no_fault_of_the_logs_under_a_heavy_tail():
    """Log-normal, so the identity holds: at nominal 99.9% hardly one in forty may be called a fault."""
    for s2, n in ((1.0, 64), (9.0, 64), (9.0, 1024)):
        wrong = [not summary(normal(math.sqrt(s2), (n, 1), seed)).identity for seed in range(40)]
        assert sum(wrong) <= 1, (s2, n)


@pytest.mark.parametrize("shift", [-0.02, 0.02])
def test_a_mean_that_is_not_1_is_a_fault_where_the_tail_is_light(shift):
    assert not summary(normal(0.05, (4000, 1)) + 4 * shift).identity
    assert not summary(normal(0.05, (100, 40)) + shift, TOKEN).identity


@pytest.mark.parametrize("shift", [-0.5, -3.0, -30.0])
def test_a_mean_far_below_1_is_a_fault_however_large_the_kl_then_is(shift):
    assert not summary(normal(0.05, (100, 1)) + shift).identity


def test_a_mean_over_1_is_a_fault_at_any_tail():
    s = summary(normal(3.0, (2000, 1)) + 6.0)
    assert s.refusal
    assert not s.refusal.startswith("the mean ratio")
    assert not s.identity


def test_unseen_mass_is_found_and_bounded():
    """mu lacks a fifth of pi's mass: E_mu r = 0.8."""
    s = summary(normal(0.3, (3000, 1)) + math.log(0.8))
    assert s["unseen"].value == pytest.approx(0.2, abs=0.02)
    assert s["unseen"].low < 0.2 < s["unseen"].high
    assert 0.2 < s["unseen_at_most"].value < 0.3
    assert s["unseen"].value == pytest.approx(1 - s["mean_ratio"].value)
    assert not s.identity


def test_unseen_mass_of_a_heavy_tail_is_bounded_still():
    """Nothing is unseen, but 9 in 10 of the mass is missing from most samples: only the bound is honest."""
    for seed in range(20):
        s = summary(normal(3.0, (200, 1), seed))
        assert s["unseen_at_most"].low is None
        assert 0 <= s["unseen_at_most"].high <= 1


def test_kl_of_the_other_direction_is_that_of_the_sample():
    """`sum r log r / sum r - log mean r`, exactly for up to 256 units and to 0.1% from the grid."""
    for sd, n, digits in (
        (1e-5, 500, 1e-3),
        (0.05, 100, 1e-6),
        (0.05, 5000, 1e-3),
        (1.0, 5000, 1e-3),
        (3.0, 5000, 1e-3),
    ):
        lr = normal(sd, (n, 1))
        p = torch.softmax(lr.squeeze(1), 0)
        assert summary(lr)["kl_pi_mu"].sample == pytest.approx(float((p * (p * n).log()).sum()), rel=digits), (sd, n)
    for shift in (300.0, -300.0):
        lr = normal(0.5, (400, 1))
        p = torch.softmax(lr.squeeze(1), 0)
        expected = float((p * (p * 400).log()).sum())
        # Over the grid the largest 256 are what is left to go by; they hold nearly all of the weight.
        assert summary(lr + shift)["kl_pi_mu"].sample == pytest.approx(expected, abs=0.05)


def test_hellinger_has_an_interval_that_covers():
    truth = LogNormalRatio(1.0).hellinger2
    for seed in range(40):
        number = summary(normal(1.0, (300, 1), seed))["hellinger"]
        assert number.low <= truth <= number.high
        assert number.high - number.low < 0.5


def test_the_sum_of_state_tv_is_over_the_tv_of_sequences():
    lr = normal(0.05, (400, 50))
    token, sequence = summary(lr, TOKEN), summary(lr)
    assert token["tv_sum"].value == pytest.approx(50 * token["tv"].value)
    assert token["tv_sum"].low < token["tv_sum"].value < token["tv_sum"].high
    assert token["tv_sum"].value > sequence["tv"].value


def test_the_largest_tv_of_a_state_is_refused_with_what_is_certain():
    s = summary(normal(0.3, (40, 50)), TOKEN)
    number = s["delta_max"]
    assert (number.value, number.high) == (None, None)
    assert number.low == number.sample == s["largest_gap"].value > 0
    assert number.refused.startswith("no upper bound of the largest TV of a state can come from samples")


def test_hybrid_and_longer_against_the_tokens():
    """Responses of 1 to 6 tokens; pi prefers the long ones."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 7, (600,), generator=g)
    mask = torch.arange(6) < lengths[:, None]
    lr = torch.where(mask, 0.1 * torch.randn(600, 6, generator=g, dtype=torch.float64) + 0.03, 0)
    log_mu = torch.full_like(lr, -3.0)
    s = summarise(RatioStats.of(Batch.padded(log_mu + lr, log_mu, mask.double()), SEQUENCE))
    r = lr.sum(1).exp()
    over = torch.where(mask, (lr.exp() - r[:, None]).clamp(min=0), 0).sum(1)
    longer = float(((r - 1) * (lengths - lengths.double().mean())).mean())
    assert s["hybrid"].value == pytest.approx(float(over.mean()), rel=1e-6)
    half = 1.9639 * float(over.std()) / math.sqrt(600)
    assert s["hybrid"].high - s["hybrid"].value == pytest.approx(half, rel=0.25)
    assert s["longer"].sample == pytest.approx(longer, rel=1e-5)
    assert s["token_is_gap"].sample == pytest.approx(2 * float(over.mean()) + longer, rel=1e-5)


def test_with_one_length_for_all_nothing_is_longer():
    """E (r - 1) T without the mean length taken off would be 20 times the noise of the mean ratio."""
    s = summary(normal(0.2, (100, 20)))
    assert s["longer"].sample == pytest.approx(0.0, abs=1e-9)
    assert s["token_is_gap"].sample == pytest.approx(2 * s["hybrid"].value, rel=1e-9)


def test_the_gap_of_token_is_is_refused_with_the_moments():
    s = summary(normal(1.0, (300, 16)))
    assert s["token_is_gap"].refused == s["longer"].refused == s.refusal != ""
    assert s["hybrid"].value is not None


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


def test_the_tail_index_is_that_of_the_largest_ratios():
    """Ratios u^-k have index k; the prior of the fit pulls a little towards 0.5, so try others too."""
    u = torch.rand(5000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (0.2, 0.5, 0.9):
        assert summary(-k * u.log())["khat"].value == pytest.approx(k, abs=0.15)


def test_the_tail_index_is_that_of_all_units_up_to_the_kept_tail():
    """From the 256 kept values alone it must come out as from the whole sample."""
    from arviz_stats.base.array import array_stats

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


def test_ties_at_the_foot_are_no_part_of_the_tail():
    """The fit is to what is over the plateau; and the ties are said."""
    over = normal(1.0, (13, 1), seed=3).abs() + 0.01
    lr = torch.cat([torch.linspace(-0.2, -0.1, 70)[:, None].double(), torch.zeros(17, 1).double(), over])
    khat = summary(lr)["khat"]
    excess = sorted((over.exp() - 1).squeeze(1).tolist())
    assert khat.value == pytest.approx(reference.fit_pareto(excess)[0], rel=1e-5)
    assert "7 of the largest ratios are a plateau of equal ones" in khat.meaning
    assert "plateau" not in summary(normal(1.0, (100, 1)))["khat"].meaning


@pytest.mark.parametrize("n", [100, 1000, 20_000])
def test_a_few_over_a_plateau_are_a_refusal(n):
    """No tail index can be fitted to four, and what the others of their kind weigh is not known."""
    lr = torch.zeros(n, 1, dtype=torch.float64)
    lr[:4] = torch.tensor([1.0, 1.2, 1.4, 1.6])[:, None]
    s = summary(lr)
    most = {100: 20, 1000: 94, 20_000: 255}[n]
    assert (
        s.refusal == f"4 of the {most} largest ratios are over a plateau of equal ones, by up to 5 times: "
        "too few for a tail index"
    )
    assert (s["khat"].value, s["khat"].refused) == (None, s.refusal)
    assert s["ess_fraction"].refused
    lr[:4] = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None]  # of less than twice the plateau nobody fears a tail
    assert summary(lr).refusal == ""


def test_ratios_in_few_steps_are_a_refusal():
    """Log-probs that came in whole nats: of 134 in the tail there are three different ones, and a fit says 0.03."""
    lr = normal(1.5, (2000, 1), seed=0).round()
    s = summary(lr)
    assert s["khat"].value is None
    assert re.match(
        r"\d+ of the 134 largest ratios are over a plateau of equal ones, in \d different values", s["khat"].refused
    )
    assert s.refusal
    assert summary((normal(0.5, (2000, 1), seed=0) * 20).round() / 20)["khat"].value is not None


@pytest.mark.parametrize("n", [25, 26, 27, 28, 29, 30])
def test_small_samples_have_a_finite_tail_index(n):
    for seed in range(5):
        assert math.isfinite(summary(normal(0.5, (n, 1), seed=seed))["khat"].value)


def test_a_tail_index_that_is_no_number_is_a_refusal():
    stats = RatioStats.of(batch_of(normal(0.5, (100, 1))), SEQUENCE)
    for khat in (math.nan, math.inf):
        assert refusal_of(stats.host, khat, True, None) == "the tail index is not finite"
    assert refusal_of(stats.host, 0.3, True, None) == ""


def test_numbers_are_plain_floats():
    for number in summary(normal(0.1, (50, 20)), TOKEN).numbers.values():
        for x in (number.value, number.low, number.high, number.sample):
            assert x is None or (isinstance(x, float) and not isinstance(x, np.floating))
