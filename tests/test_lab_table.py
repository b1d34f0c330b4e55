"""`lab table`: what is measured, on iid tokens at a length, against enumeration and against what is known of it."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from reweigh import geo_rs, naive, prefix_is, seq_is, seq_mis, seq_tis, snis, token_is, token_tis
from reweigh.cli.lab import lab
from reweigh.theory.lab import PerSequence, Policies, PPOClip, World, exact, worst_case
from reweigh.theory.lab.closed_forms import RARE, Counted, farthest
from reweigh.theory.lab.exact import reinforce
from reweigh.theory.lab.table import STEPS, fit, post_table, slope, spread

PI, MU = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.35, 0.25])


@pytest.fixture(scope="module")
def rows():
    steps = []
    found = post_table(steps.append)
    assert sum(steps) == STEPS
    return {(row.estimator, row.quantity): row for row in found}


@pytest.mark.parametrize(
    ("estimator", "loss"),
    [
        (naive(), reinforce),
        (token_tis(1.2), reinforce),
        (seq_tis(1.5), reinforce),
        (seq_mis(high=1.5), reinforce),
        (geo_rs(0.8, 1.2), reinforce),
        (naive(), PPOClip()),
    ],
)
def test_extremes_are_attained_and_not_exceeded(estimator, loss):
    """Two tokens, three steps: every reward of -1, 0 and 1 that depends on counts only, one by one."""
    pi, mu = np.array([0.7, 0.3]), np.array([0.45, 0.55])
    found = Counted.of(pi, mu, 3).extremes(estimator, loss)
    policies = Policies(torch.tensor(pi).log()[None], torch.tensor(mu).log()[None], 3, memory=0)
    bias, second = 0.0, 0.0
    for code in range(3**4):
        by_count = torch.tensor([code // 3**k % 3 - 1 for k in range(4)], dtype=torch.float64)
        world = World.scored(policies, lambda tokens, r=by_count: float(r[sum(tokens)]))
        at = exact(world, estimator, PerSequence(world.sampled_reward), loss=loss)
        bias, second = max(bias, at.bias_norm), max(second, at.second_moment)
    assert found.bias == pytest.approx(bias, rel=1e-9)
    assert found.second_moment == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("estimator", [naive(), token_is(), token_tis(1.5)])
def test_three_tokens_against_the_closed_form(estimator):
    found = Counted.of(PI, MU, 9).extremes(estimator)
    known = worst_case(torch.from_numpy(PI), torch.from_numpy(MU), 9, estimator)
    assert found.bias == pytest.approx(known.bias, rel=1e-12)
    assert found.second_moment == pytest.approx(known.second_moment, rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 2])
def test_farthest_is_the_best_of_all_choices(dimension):
    g = np.random.default_rng(dimension)
    for size in (1, 2, 5):
        for down_too in (True, False):
            up = g.normal(size=(size, dimension)) * g.integers(0, 2, size=(size, 1))
            down = g.normal(size=(size, dimension)) if down_too else -up
            best = 0.0
            for choice in itertools.product(range(3), repeat=size):
                terms = [(up[i], down[i], 0 * up[i])[k] for i, k in enumerate(choice)]
                best = max(best, float(np.linalg.norm(np.sum(terms, 0))))
            assert farthest(up, down) == pytest.approx(best, rel=1e-12)


def test_sequence_ratio():
    c = Counted.of(PI, MU, 7)
    assert c.pi.sum() == pytest.approx(1)
    assert c.m2 == pytest.approx(float((PI**2 / MU).sum()) ** 7)
    assert c.m2 == pytest.approx(c.law.m2)
    assert c.mean_weight(seq_is()) == pytest.approx(1)
    assert c.mean_weight(seq_tis(2.0)) == pytest.approx(1 - c.law.excess(2.0))
    assert c.extremes(seq_is()).bias < 1e-12


@pytest.mark.parametrize("estimator", [prefix_is(), snis()])
def test_what_reads_order_or_batch_is_refused(estimator):
    with pytest.raises(ValueError, match="must read one sequence, and no order of its tokens"):
        Counted.of(PI, MU, 3).extremes(estimator)


def test_sizes_are_refused():
    with pytest.raises(ValueError, match="some 200 for 3 tokens, got 2000"):
        Counted.of(PI, MU, 2000)
    with pytest.raises(ValueError, match="two or three tokens"):
        Counted.of(np.full(4, 0.25), np.full(4, 0.25), 3)


def test_fits():
    found = fit((1, 2, 4), (3.0, 12.0, 48.0), 96.0)
    assert (found.exponent, found.constant, found.last, found.slack) == pytest.approx((2, 3, 48, 2))
    assert math.isnan(slope((1, 2), (0.0, 1.0)))
    assert spread((1.0, 5.0, 2.0)) == spread((5.0, 2.0, 1.0))
    assert math.isnan(spread((1.0, math.nan)).median)


@pytest.mark.slow
def test_exponents_are_those_of_the_theory(rows):
    for name in ("Naive", "Token-IS", "Token-TIS(2)", "PPO-clip(.2)"):
        assert rows[name, "bias"].smooth.exponent == pytest.approx(1.0, abs=0.02)
        assert rows[name, "bias"].rare.exponent == pytest.approx(1.5, abs=0.03)
        assert rows[name, "second moment"].smooth.exponent == pytest.approx(1.0, abs=0.03)
    assert rows["Seq-IS", "bias"].rare.last < 1e-9
    assert rows["Seq-IS", "E r^2"].rare.exponent == pytest.approx(1.0)
    assert rows["Seq-IS", "E r^2"].random.high < 1
    pi, mu = (np.array(x) / sum(x) for x in RARE)
    assert rows["Seq-IS", "E r^2"].rare.last == pytest.approx(float((pi**2 / mu).sum()) ** 128)


@pytest.mark.slow
def test_every_bound_of_the_post_holds_in_the_table(rows):
    for row in rows.values():
        if row.post != "0":
            assert row.smooth.slack >= 1
            assert row.rare.slack >= 1


@pytest.mark.slow
def test_command():
    text = CliRunner().invoke(lab, ["table"])
    assert text.exit_code == 0, text.output
    assert max(map(len, text.stdout.rstrip().splitlines())) <= 100
    assert "0.014 T^1.00" in text.stdout
    assert "[least, largest]" in text.stdout
    data = json.loads(CliRunner().invoke(lab, ["table", "--json"]).stdout)
    assert len(data["rows"]) == 14
    assert data["rows"][0]["smooth"]["exponent"] == pytest.approx(1.0, abs=0.01)
