"""An honest run is not called wrong by chance, and a dishonest one is: a small form of benchmarks/honest.py."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, judge, summarise
from reweigh.stats.tail import IDENTITY_ALPHA, log_odds_above_1

PATH = Path(__file__).parents[1] / "benchmarks" / "honest.py"
LIMIT = math.log(1 / IDENTITY_ALPHA)


def load():
    spec = importlib.util.spec_from_file_location("honest_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


HONEST = load()


@pytest.mark.parametrize("kind", HONEST.KINDS)
def test_honest_pairs_raise_no_alarm(kind):
    """A fair bet of 6 batches passes e^6.9 once in 170 such tests, and an alarm needs e^13.8."""
    alarms, odds, actions = HONEST.count(kind, 6)
    assert alarms == 0
    assert odds < math.log(1000)
    assert "fix" not in actions


@pytest.mark.slow
@pytest.mark.parametrize("kind", [x for x in HONEST.KINDS if "long" not in x])
def test_two_hundred_batches_raise_none(kind):
    alarms, odds, actions = HONEST.count(kind, 200, seed=1000)
    assert alarms == 0
    assert odds < LIMIT - math.log(5), "a run of 1,000 steps would come near an alarm"
    assert "fix" not in actions


def stats(log_ratio, group=None):
    log_mu = torch.full_like(log_ratio, -40.0)
    batch = Batch.padded(log_mu + log_ratio, log_mu, torch.ones(log_ratio.shape), group=group)
    return RatioStats.of_levels(batch, (TOKEN, SEQUENCE))


def test_the_odds_are_those_of_the_bet_from_below():
    """Against the bet itself, unit by unit: never more, and not much less where it matters."""
    from reweigh.stats.tail import IDENTITY_RATES

    g = torch.Generator().manual_seed(0)
    for sd, shift in ((0.01, 0.004), (0.1, 0.02), (0.5, 0.05), (1.5, 0.2), (3.0, 0.0)):
        lr = sd * torch.randn(2000, generator=g, dtype=torch.float64) - sd * sd / 2 + shift
        r = lr.exp()
        won = [lr.sum(), lr.sum() / 2, *(torch.log1p(s * (r - 1)).sum() for s in IDENTITY_RATES)]
        exact = float(torch.logsumexp(torch.stack(won), 0)) - math.log(len(won))
        found = log_odds_above_1(stats(lr[:, None])[0].host)
        assert found <= exact + 1e-6
        assert found >= exact - 0.1 * abs(exact) - 1


def test_above_1_is_wrong_under_any_tail_and_cluster():
    g = torch.Generator().manual_seed(1)
    r = torch.full((200, 1), 1.5).double()
    r[::20] = 1e6  # which no tail index forgives
    token, sequence = stats(r.log(), group=torch.arange(200) // 100)
    assert summarise(token).refusal
    assert not summarise(token).identity
    assert not summarise(sequence).identity
    verdict = judge(token, sequence)
    assert (verdict.level, verdict.action) == ("fail", "fix")
    # one huge ratio by itself proves nothing: an honest sample has one now and then
    lr = 0.1 * torch.randn(200, 1, generator=g, dtype=torch.float64) - 0.005
    lr[0] = math.log(400)
    token, sequence = stats(lr)
    assert summarise(token)["mean_ratio"].sample > 2.9
    assert summarise(token).identity
    assert "either rare large ratios were not drawn, or the log-probs" in summarise(token)["mean_ratio"].refused


def test_a_converged_policy_is_no_fault_for_its_last_digits():
    """KL of 1e-8 a token, all of one sign: sequences of 4,000 tokens are off by 0.4%, and nobody need care."""
    lr = torch.full((64, 4000), -1e-6, dtype=torch.float64)
    token, sequence = stats(lr)
    assert summarise(sequence)["mean_ratio"].value == pytest.approx(0.996, abs=1e-3)
    assert judge(token, sequence).action == "nothing"


def test_what_a_heavy_tail_hides_is_said_with_both_readings():
    g = torch.Generator().manual_seed(3)
    lr = 3 * torch.randn(200, 1, generator=g, dtype=torch.float64) - 4.5
    _, sequence = (summarise(x) for x in stats(lr))
    mean = sequence["mean_ratio"]
    assert (mean.value, mean.low, mean.high) == (None, None, None)
    assert mean.sample < 0.9
    assert sequence["unseen"].refused == mean.refused
    assert sequence.identity


def test_a_small_temperature_is_still_found():
    """Sampled at 0.9 and logged at 1: 10,000 tokens, and the mean ratio is over 1 for certain."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(100, 100, 50, generator=g, dtype=torch.float64)
    log_mu, log_pi = logits.log_softmax(-1), (logits / 0.9).log_softmax(-1)
    token = torch.multinomial(log_pi.exp().view(-1, 50), 1, generator=g).view(100, 100, 1)
    batch = Batch.padded(*(x.gather(-1, token)[..., 0] for x in (log_pi, log_mu)), torch.ones(100, 100))
    assert judge(*RatioStats.of_levels(batch, (TOKEN, SEQUENCE))).action == "fix"
    honest = replace(batch, log_mu=batch.log_pi)
    assert judge(*RatioStats.of_levels(honest, (TOKEN, SEQUENCE))).action == "nothing"
