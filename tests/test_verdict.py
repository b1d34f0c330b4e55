"""Verdicts: which level, which reason, which one thing to do, and which estimator."""

import math
from dataclasses import replace

import pytest
import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, judge, summarise
from reweigh.stats.verdict import Cause


def stats(log_ratio, log_mu=-3.0, mask=None):
    mu = torch.full(log_ratio.shape, log_mu, dtype=torch.float64)
    batch = Batch.padded(mu + log_ratio, mu, torch.ones(log_ratio.shape) if mask is None else mask)
    return RatioStats.of(batch, TOKEN), RatioStats.of(batch, SEQUENCE)


def normal(sd, size=(400, 32), shift=0.0):
    """Log ratios of tokens whose mean ratio is e^-shift, in this very sample."""
    g = torch.Generator().manual_seed(2)
    lr = sd * torch.randn(size, generator=g, dtype=torch.float64)
    return lr - lr.exp().mean().log() - shift


def reasons(verdict):
    return " | ".join(f.reason for f in verdict.findings)


def test_numerics_are_ok_and_there_is_nothing_to_do():
    verdict = judge(*stats(normal(0.005)))
    assert (verdict.level, verdict.action, verdict.use) == ("ok", "nothing", "")
    assert str(verdict).startswith("ok: nothing to do: KL(mu||pi) is 1.2e-05 nats a token, 99.9")
    assert (verdict.hint, verdict.order, verdict.deciding) == ("", "", "")


def test_a_small_gap_is_ok_with_a_guard():
    verdict = judge(*stats(normal(0.06)))
    assert (verdict.level, verdict.action, verdict.use) == ("ok", "small", "seq_tis(2)")
    assert verdict.reason.startswith("small: KL(mu||pi) is 0.0018 nats a token")
    assert verdict.hint.startswith("a guard is enough: seq_tis(2) (mean weight ")


def test_a_gap_that_matters_is_corrected_by_sequences_while_a_cap_leaves_enough_of_them():
    verdict = judge(*stats(normal(0.09, (400, 128))))
    assert (verdict.level, verdict.action, verdict.use) == ("warn", "correct", "seq_tis(2)")
    assert verdict.choice.mean_weight >= 0.7
    assert verdict.runner_up.name == "token_tis(2)"
    assert verdict.choice.missed < verdict.runner_up.missed
    assert "at worst it misses" in verdict.hint


def test_a_large_gap_fails_and_leaves_tokens_until_it_is_reduced():
    verdict = judge(*stats(normal(0.25)))
    assert (verdict.level, verdict.action, verdict.use) == ("fail", "reduce", "token_tis(2)")
    assert verdict.reason.startswith("too large to correct: KL(mu||pi) is 0.031 nats a token")
    assert verdict.hint.startswith("find the cause first; until then use token_tis(2) (mean weight 1.0")
    assert verdict.choice.mean_weight > verdict.runner_up.mean_weight
    assert verdict.choice.effective > verdict.runner_up.effective
    named = judge(*stats(normal(0.25)), cause=Cause("the sampler is late", "Wait for it.", "policy"))
    assert named.hint.startswith("reduce it first: wait for it; until then use token_tis(2)")
    assert (named.action, named.use) == (verdict.action, verdict.use)


def test_tokens_alone_are_judged_by_their_kl():
    actions = [judge(stats(normal(sd))[0]).action for sd in (0.01, 0.06, 0.2)]
    assert actions == ["small", "correct", "reduce"]
    assert judge(stats(normal(0.06))[0]).use == "token_tis(2)"


STEPS = ("nothing", "small", "correct", "reduce")


@pytest.mark.parametrize("length", [1, 8, 64, 512])
@pytest.mark.parametrize("kind", ["normal", "few", "uneven"])
def test_the_verdict_only_gets_worse_as_the_gap_grows(length, kind):
    """The same gap, larger and larger: no step back, and the estimator changes once, from sequences to tokens."""
    g = torch.Generator().manual_seed(length)
    base = torch.randn(256, length, generator=g, dtype=torch.float64)
    if kind == "few":  # one token in twenty carries it
        base = base * (torch.rand(256, length, generator=g) < 0.05) * 4
    if kind == "uneven":  # some responses are ten times as far off as others
        base = base * torch.logspace(-1, 0, 256, dtype=torch.float64)[:, None]
    found = []
    for size in torch.logspace(-4, 0.0, 25, dtype=torch.float64):
        lr = size * base
        lr = lr - torch.logsumexp(lr.flatten(), 0) + math.log(lr.numel())  # the mean token ratio is 1
        found.append(judge(*stats(lr, log_mu=-30.0)))
    assert not any(v.action == "fix" for v in found)
    assert [STEPS.index(v.action) for v in found] == sorted(STEPS.index(v.action) for v in found)
    assert [v.level for v in found] == sorted((v.level for v in found), key=["ok", "warn", "fail"].index)
    uses = [v.use for v in found if v.use]
    assert uses == sorted(uses, key=["seq_tis(2)", "token_tis(2)"].index)


def test_what_is_advised_never_looks_worse_than_what_comes_next():
    """Mean weight, effective share, and what is missed at worst: not all three speak for the runner-up."""
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        length, sd = int(torch.randint(1, 200, (), generator=g)), float(torch.rand((), generator=g)) ** 2
        lr = sd * torch.randn(100, length, generator=g, dtype=torch.float64) - sd * sd / 2
        verdict = judge(*stats(lr, log_mu=-20.0))
        if verdict.choice is not None:
            mine, other = verdict.choice, verdict.runner_up
            worse = mine.mean_weight < other.mean_weight and mine.effective < other.effective
            assert not (worse and mine.missed >= other.missed), (seed, mine, other)


@pytest.mark.parametrize(("kind", "level"), [("wrong", "fail"), ("bug", "warn")])
def test_a_named_cause_that_no_weight_mends_is_to_be_fixed_first(kind, level):
    cause = Cause("the engine logs before temperature", "Log after it.", kind)
    verdict = judge(*stats(normal(0.06)), cause=cause)
    assert (verdict.level, verdict.action, verdict.use) == (level, "fix", "")
    assert verdict.hint == "fix that first, no estimator mends it: log after it"
    assert "the engine logs before temperature" in verdict.reason
    suspected = judge(*stats(normal(0.06)), cause=replace(cause, sure=False))
    assert (suspected.action, suspected.use) == ("small", "seq_tis(2)")


def test_both_sides_wrong_alike_is_no_small_gap():
    both = Cause("both sides log before temperature", "Sample at temperature 1.", "wrong")
    assert judge(*stats(normal(0.0)), cause=both).action == "fix"
    assert judge(*stats(normal(0.0)), cause=replace(both, kind="bug")).action == "nothing"


@pytest.mark.parametrize(("shift", "word"), [(-0.05, "temperature"), (0.05, "top-p")])
def test_a_mean_ratio_that_is_not_1_fails_and_names_where_to_look(shift, word):
    verdict = judge(*stats(normal(0.01, shift=shift)))
    assert verdict.level == "fail"
    assert "the mean token ratio is" in verdict.reason
    assert "must be 1" in verdict.reason
    assert word in verdict.hint


def test_a_share_that_cannot_be_trusted_is_said_to_be_of_this_sample():
    verdict = judge(stats(normal(0.8, (2000, 8)))[1])
    assert verdict.level in ("warn", "fail")
    assert verdict.reason.endswith("of the responses effective here") or "capped at 2" in verdict.reason


def test_bad_log_probs_are_counted():
    log_ratio = normal(0.01)
    log_ratio[0, :3] = torch.nan
    verdict = judge(*stats(log_ratio))
    assert verdict.level == "warn"
    assert verdict.reason.startswith("3 tokens of the mask (0.00023 of them) have a log-prob that is not finite")
    assert verdict.action == "nothing"
    assert "top-p" in verdict.hint


def test_no_tokens_fail():
    verdict = judge(*stats(normal(0.01), mask=torch.zeros(400, 32)))
    assert (verdict.level, verdict.reason) == ("fail", "there are no tokens to judge")
    assert "mask" in verdict.hint


def test_only_bad_tokens_fail_for_what_they_are():
    verdict = judge(*stats(torch.full((3, 4), torch.nan, dtype=torch.float64)))
    assert verdict.level == "fail"
    assert verdict.reason.startswith("12 tokens of the mask (1 of them) have a log-prob that is not finite")


def test_the_worst_comes_first_and_all_are_there():
    log_ratio = normal(0.3)
    log_ratio[0, :3] = torch.nan
    levels = [f.severity for f in judge(*stats(log_ratio)).findings]
    assert levels == sorted(levels, key=["fail", "warn", "ok"].index)
    assert levels == ["fail", "warn"]


def test_summaries_and_stats_give_the_same_verdict():
    token, sequence = stats(normal(0.06))
    assert judge(token, sequence) == judge(summarise(token), sequence) == judge(sequence, token)


def test_what_cannot_be_judged_is_refused():
    token, _ = stats(normal(0.01))
    with pytest.raises(ValueError, match="judge: give the stats of at least one level"):
        judge()
    with pytest.raises(ValueError, match="judge: token stats were given twice; add them first"):
        judge(token, token)


def test_ratios_of_e_300_are_judged():
    log_ratio = normal(0.01)
    log_ratio[0] = 10.0
    log_ratio[1] = -10.0
    verdict = judge(*stats(log_ratio, log_mu=-20.0))
    assert verdict.level == "fail"
    assert "nan" not in reasons(verdict)
    assert "inf" not in reasons(verdict).replace("infinite", "")


@pytest.mark.parametrize("sd", [0.05, 0.1, 0.3])
def test_swapped_log_probs_are_asked_for(sd):
    log_mu = -3 - torch.rand(256, 64)
    log_pi = log_mu + sd * torch.randn(256, 64) - sd**2 / 2
    ask = "are log_pi and log_mu swapped?"
    right, wrong = (
        judge(*RatioStats.of_levels(Batch.padded(a, b, torch.ones(256, 64)), (TOKEN, SEQUENCE)))
        for a, b in ((log_pi, log_mu), (log_mu, log_pi))
    )
    assert wrong.level == "fail"
    assert ask in wrong.hint
    assert ask not in str(right)
    hot = Batch.padded(0.7 * log_mu, log_mu, torch.ones(256, 64))  # raised for another reason
    assert ask not in str(judge(*RatioStats.of_levels(hot, (TOKEN, SEQUENCE))))


def test_a_verdict_is_written_in_a_line():
    batch = Batch.padded(torch.full((64, 8), -1.0), torch.full((64, 8), -1.0), torch.ones(64, 8))
    found = judge(*RatioStats.of_levels(batch, (TOKEN, SEQUENCE)))
    assert repr(found) == f"Verdict(ok: {found.sentence})"
    assert found._repr_html_().startswith("<b>ok</b> ")
