"""Verdicts: which level, which reason, and which hint."""

import pytest
import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, judge, summarise


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


def test_numerics_are_ok():
    verdict = judge(*stats(normal(0.01)))
    assert verdict.level == "ok"
    assert "nats a token" in verdict.reason
    assert verdict.hint == ""
    assert str(verdict).startswith("ok: KL(mu||pi) is 4.9e-05 nats a token")
    assert "99.7% of the sequences effective" in reasons(verdict)


def test_a_noticeable_gap_warns():
    verdict = judge(stats(normal(0.06))[0])
    assert verdict.level == "warn"
    assert "noticeable" in verdict.reason
    assert str(verdict).split("\n")[1].startswith("hint: ")


def test_a_large_gap_fails():
    verdict = judge(stats(normal(0.2))[0])
    assert verdict.level == "fail"
    assert "more than numerics explain" in verdict.reason
    assert "cause" in verdict.hint


@pytest.mark.parametrize(("shift", "word"), [(-0.05, "temperature"), (0.05, "top-p")])
def test_a_mean_ratio_that_is_not_1_fails_and_names_where_to_look(shift, word):
    verdict = judge(*stats(normal(0.01, shift=shift)))
    assert verdict.level == "fail"
    assert "the mean token ratio is" in verdict.reason
    assert "must be 1" in verdict.reason
    assert word in verdict.hint


def test_a_sequence_gap_that_cannot_be_trusted_warns_with_the_reason():
    verdict = judge(stats(normal(0.8, (2000, 8)))[1])
    assert verdict.level == "warn"
    assert "cannot be trusted as weights: tail index" in verdict.reason
    assert "sequence TV is" in verdict.reason


def test_few_effective_sequences_warn():
    g = torch.Generator().manual_seed(1)
    r = torch.where(torch.rand(2000, 1, generator=g) < 0.5, 0.1, 1.9).double()
    verdict = judge(stats((r / r.mean()).log())[1])
    assert verdict.level in ("ok", "warn")
    assert "of the sequences effective" in verdict.reason


def test_bad_log_probs_are_counted():
    log_ratio = normal(0.01)
    log_ratio[0, :3] = torch.nan
    verdict = judge(*stats(log_ratio))
    assert verdict.level == "warn"
    assert verdict.reason.startswith("3 tokens of the mask (0.00023 of them) have a log-prob that is not finite")
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
    log_ratio = normal(0.2)
    log_ratio[0, :3] = torch.nan
    levels = [f.severity for f in judge(*stats(log_ratio)).findings]
    assert levels == sorted(levels, key=["fail", "warn", "ok"].index)
    assert len(levels) >= 3
    assert set(levels) >= {"fail", "warn"}


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
