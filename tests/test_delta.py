"""Total variation of single states: Markov's bound, and what is refused."""

import pytest
import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats
from reweigh.stats.summary import states_beyond


def test_markov_holds_where_the_states_are_known():
    """Half of the states are coins of 0.5 and 0.9, the other half alike under both policies."""
    g = torch.Generator().manual_seed(0)
    heads = torch.rand(200, 50, generator=g) < 0.5
    apart = torch.rand(200, 50, generator=g) < 0.5
    log_mu = torch.full((200, 50), 0.5, dtype=torch.float64).log()
    log_pi = torch.where(apart, torch.where(heads, 0.9, 0.1).double().log(), log_mu)
    stats = RatioStats.of(Batch.padded(log_pi, log_mu, torch.ones(200, 50)), TOKEN)
    number = states_beyond(stats, 0.39)
    assert 0.5 <= number.value <= number.high
    assert number.value == pytest.approx(0.5 * 0.4 / 0.39, rel=0.05)
    assert states_beyond(stats, 0.01).value == 1.0
    assert states_beyond(stats, 1.0).high < 0.25


def test_what_cannot_be_asked():
    stats = RatioStats.of(Batch.padded(torch.zeros(3, 2) - 1, torch.zeros(3, 2) - 1, torch.ones(3, 2)), TOKEN)
    with pytest.raises(ValueError, match="delta must be over 0 and at most 1, got 0"):
        states_beyond(stats, 0.0)
    with pytest.raises(ValueError, match="stats must be at TOKEN level, got SEQUENCE"):
        states_beyond(RatioStats.empty(SEQUENCE), 0.1)
    assert states_beyond(RatioStats.empty(TOKEN), 0.1).refused == "there are no units"
