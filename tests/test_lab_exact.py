"""Exact results: against plain sums over sequences and autograd, and the identities that must hold in every world."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reweigh import (
    Batch,
    Candidates,
    centred,
    dppo_tv,
    geo_rs,
    naive,
    policy_gradient,
    ppo_clip,
    prefix_is,
    prefix_tis,
    seq_is,
    seq_mis,
    seq_tis,
    suffix_is,
    token_is,
    token_mis,
    token_tis,
)
from reweigh.caps import Balance
from reweigh.named import NAMED
from reweigh.theory.lab import (
    Advantage,
    PerSequence,
    Policies,
    PPOClip,
    Reward,
    World,
    distances,
    exact,
    exact_snis,
    norms,
    random_world,
    ratio_law,
    token_bias,
    truncated_bias,
)
from reweigh.theory.lab.inequalities import inequalities

A_PI, A_MU = Advantage("pi"), Advantage("mu")


@st.composite
def worlds(draw, masked=0.0):
    vocab = draw(st.integers(2, 3))
    length = draw(st.integers(1, 5 if vocab == 2 else 4))
    memory = draw(st.sampled_from([None, 0, 1, 2]))
    eos = draw(st.sampled_from([None, 0, vocab - 1])) if vocab > 2 else None
    gap = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    reward = draw(st.sampled_from(["normal", "uniform", "binary"]))
    return random_world(vocab, length, memory, eos, gap, masked, reward, seed=draw(st.integers(0, 10**6)))


def close(a, b, scale=1.0, tolerance=1e-12):
    assert float((a - b).abs().max()) <= tolerance * max(scale, 1.0), float((a - b).abs().max())


@given(worlds())
def test_sequence_is_is_unbiased(world):
    for advantage in (Reward(), Reward(0.7), Reward("value"), A_PI):
        assert exact(world, seq_is(), advantage).bias_norm < 1e-12


@given(worlds(masked=0.4))
def test_under_truncated_support_sequence_is_lacks_exactly_what_mu_cannot_sample(world):
    s = world.sequences
    lost = torch.where(s.sampled, 0, s.pi * world.reward)[:, None].expand(s.mask.shape)
    close(exact(world, seq_is()).bias, -s.total(lost))
    d = distances(world)
    assert d.mean_ratio + d.unsupported == pytest.approx(1, abs=1e-12)
    assert exact(world, seq_is()).bias_norm <= norms(world).integrand * d.unsupported + 1e-12


@given(worlds())
def test_token_is_takes_the_reward_for_the_advantage_of_mu(world):
    raw = exact(world, token_is())
    close(raw.mean, exact(world, token_is(), A_MU).mean)
    close(raw.mean, exact(world, token_is(), Reward(-1.3)).mean)  # and a constant changes nothing


@given(worlds())
def test_prefix_is_needs_the_advantage_of_pi(world):
    assert exact(world, prefix_is(), A_PI).bias_norm < 1e-12


@given(worlds(), st.sampled_from([1, 2, 16, 256]))
def test_the_balance_cap_is_where_the_worst_case_error_is_stationary(world, n):
    """U(C) = (E (r - C)_+)^2 + E min(r, C)^2 / N, summed here: its slope is 2 P(r > C) (C / N - E (r - C)_+)."""
    mu, r = world.mu, (world.sampled.log_pi - world.sampled.log_mu).sum(-1).exp()
    cap = Balance(n=n).of_law(ratio_law(world))
    assert cap == pytest.approx(n * float(mu @ (r - cap).clamp(min=0)), rel=1e-9)

    def worst(c):
        return float(mu @ (r - c).clamp(min=0)) ** 2 + float(mu @ r.clamp(max=c).square()) / n

    assert all(worst(cap) < worst(cap * f) for f in (0.5, 0.9, 0.99))
    assert all(worst(cap) <= worst(cap * f) for f in (1.01, 1.1, 2.0))
    assert worst(cap) < worst(1.01 * cap) or float(r.max()) <= 1.01 * cap  # a cap over every ratio changes nothing


@given(worlds())
def test_two_self_normalised_sequences_against_every_pair(world):
    mu, r = world.mu, (world.sampled.log_pi - world.sampled.log_mu).sum(-1).exp()
    f = world.sampled.dense(torch.where(world.sampled.mask, world.sampled_reward[:, None], 0))
    share = r[:, None] / (r[:, None] + r)
    of_pair = share[..., None] * f[:, None] + (1 - share[..., None]) * f
    p = mu[:, None] * mu
    mean = torch.einsum("ij,ijd->d", p, of_pair)
    found = exact_snis(world, 2)
    close(found.mean, mean, tolerance=1e-11)
    variance = float((p * (of_pair - mean).square().sum(-1)).sum())
    assert found.trace_cov == pytest.approx(variance, rel=1e-8, abs=1e-10)


@given(worlds())
def test_suffix_is_makes_the_advantage_of_pi_out_of_the_reward(world):
    close(exact(world, suffix_is()).mean, exact(world, token_is(), A_PI).mean)


@given(worlds())
def test_naive_is_the_gradient_of_reward_weighted_likelihood(world):
    s, theta = world.sequences, world.policies.log_pi.clone().requires_grad_()
    log_pi = torch.where(s.mask, theta.log_softmax(-1)[s.row, s.tokens.clamp(min=0)], 0).sum(-1)
    ((s.mu * world.reward) @ log_pi).backward()
    close(exact(world, naive()).mean, theta.grad.flatten())


@given(worlds())
def test_parts_of_the_token_level_bias_add_up(world):
    parts = token_bias(world)
    close(parts.total, parts.states + parts.returns + parts.interaction)
    close(parts.total, exact(world, token_is()).bias)
    capped = truncated_bias(world, 1.1)
    close(capped.truncation, exact(world, token_tis(1.1)).mean - exact(world, token_is()).mean)
    close(capped.total, capped.mismatch + capped.truncation)


def test_the_first_token_has_no_state_mismatch_and_still_a_bias():
    world = random_world(3, 4, gap=0.8, seed=11)
    parts = token_bias(world)
    assert float(parts.states[:3].norm()) < 1e-14  # the row of the empty context
    assert float(parts.total[:3].norm()) > 1e-2


def test_truncation_can_take_bias_away():
    less = sum(
        truncated_bias(w, 1.2).total.norm() < token_bias(w).total.norm()
        for w in (random_world(2, 4, gap=0.7, seed=s) for s in range(40))
    )
    assert 2 <= less <= 25  # of 40: it is no curiosity, and no rule either


def plain(world, weight):
    """Moments by going through sequences one by one; `weight` maps (ratios, t) to the weight of token t."""
    s, mu = world.sequences, world.sequences.mu
    ratio = (s.log_pi - s.log_mu).exp()
    pi = world.policies.log_pi.exp()
    mean = torch.zeros(world.policies.num_params, dtype=torch.float64)
    outer = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for i in range(len(mu)):
        if not mu[i] > 0:
            continue
        length = int(s.lengths[i])
        g = torch.zeros_like(pi)
        for t in range(length):
            row, token = int(s.row[i, t]), int(s.tokens[i, t])
            step = -pi[row].clone()
            step[token] += 1
            g[row] += weight(ratio[i, :length].tolist(), t) * world.reward[i] * step
        g = g.flatten()
        mean += mu[i] * g
        outer += mu[i] * torch.outer(g, g)
    return mean, outer


PLAIN = [
    (naive(), lambda r, t: 1.0),
    (token_is(), lambda r, t: r[t]),
    (token_tis(1.2), lambda r, t: min(r[t], 1.2)),
    (token_mis(0.0, 1.2), lambda r, t: r[t] if r[t] <= 1.2 else 0.0),
    (prefix_is(), lambda r, t: math.prod(r[: t + 1])),
    (prefix_tis(1.2), lambda r, t: min(math.prod(r[: t + 1]), 1.2)),
    (suffix_is(), lambda r, t: math.prod(r[t:])),
    (seq_is(), lambda r, t: math.prod(r)),
    (seq_tis(1.5), lambda r, t: min(math.prod(r), 1.5)),
    (seq_mis(0.0, 1.5), lambda r, t: math.prod(r) if math.prod(r) <= 1.5 else 0.0),
    (geo_rs(0.8, 1.3), lambda r, t: float(0.8 <= math.prod(r) ** (1 / len(r)) <= 1.3)),
    (geo_rs(0.8, 1.3) * seq_is(), lambda r, t: math.prod(r) * (0.8 <= math.prod(r) ** (1 / len(r)) <= 1.3)),
    (geo_rs(0.8, 1.3) * token_tis(1.2), lambda r, t: min(r[t], 1.2) * (0.8 <= math.prod(r) ** (1 / len(r)) <= 1.3)),
]


@pytest.mark.parametrize(("estimator", "weight"), PLAIN, ids=range(len(PLAIN)))
@pytest.mark.parametrize("shape", [(3, 3, None, None, 0.0), (3, 4, 1, 0, 0.0), (2, 4, 0, None, 0.0), (3, 3, 1, 2, 0.3)])
def test_moments_are_plain_sums(estimator, weight, shape):
    vocab, length, memory, eos, masked = shape
    world = random_world(vocab, length, memory, eos, 0.5, masked, seed=21)
    found = exact(world, estimator)
    mean, outer = plain(world, weight)
    cov = outer - torch.outer(mean, mean)
    close(found.mean, mean)
    close(found.cov, cov)
    assert found.second_moment == pytest.approx(float(outer.trace()), rel=1e-12)
    assert found.trace_cov == pytest.approx(float(cov.trace()), rel=1e-11)
    bias2 = float((mean - world.gradient).square().sum())
    assert found.mse(64) == pytest.approx(bias2 + float(cov.trace()) / 64, rel=1e-11)
    along = max(0.0, float(mean @ world.gradient))
    below = float(world.gradient @ world.gradient) * (float(mean @ mean) + float(cov.trace()) / 8)
    expected = along**2 / below if along else 0.0  # a band can reject everything
    assert found.efficiency(8) == pytest.approx(expected, rel=1e-11)


def test_large_worlds_have_the_trace_without_the_covariance():
    world = random_world(3, 4, seed=5)
    found = exact(world, seq_tis(2.0))
    assert found.cov is None
    mean, outer = plain(world, lambda r, t: min(math.prod(r), 2.0))
    assert found.trace_cov == pytest.approx(float(outer.trace() - mean @ mean), rel=1e-11)


@pytest.mark.parametrize("advantage", [Reward(), Reward(0.3), A_MU, A_PI])
@pytest.mark.parametrize("kind", ["policy_gradient", "ppo_clip"])
def test_the_mean_is_what_training_on_all_of_mu_would_do(kind, advantage):
    """Through the logits of pi, the public loss and autograd, each sequence counted by its probability."""
    world = random_world(3, 3, memory=1, eos=0, gap=0.6, seed=31)
    s, theta = world.sequences, world.policies.log_pi.clone().requires_grad_()
    log_pi = torch.where(s.mask, theta.log_softmax(-1)[s.row, s.tokens.clamp(min=0)], 0)
    a = advantage.of(world)
    by_mu = a * world.mu[:, None]
    batch = world.batch_with(a)
    if kind == "policy_gradient":
        loss = policy_gradient(log_pi, by_mu, token_tis(1.3)(batch), 1.0)
        found = exact(world, token_tis(1.3), advantage)
    else:
        loss = ppo_clip(log_pi, batch.log_mu, by_mu, naive()(batch), 1.0, low=0.1, high=0.2, dual=2.0)
        found = exact(world, naive(), advantage, loss=PPOClip(0.1, 0.2, 2.0))
    (grad,) = torch.autograd.grad(-loss, theta)
    close(found.mean, grad.flatten())


def test_efficiency_does_not_change_with_scale_and_is_one_for_the_gradient_itself():
    world = random_world(2, 3, gap=0.0, seed=2)
    found = exact(world, seq_is())
    assert found.efficiency(1e15) == pytest.approx(1, rel=1e-9)
    assert found.efficiency(4) < found.efficiency(16) < 1
    doubled = exact(World(world.policies, 2 * world.reward), seq_is())
    assert doubled.efficiency(16) == pytest.approx(found.efficiency(16), rel=1e-12)


@pytest.mark.parametrize("n", [0, -3, math.nan])
def test_a_batch_of_nothing_is_refused(n):
    found = exact(random_world(2, 2), seq_is())
    with pytest.raises(ValueError, match=">= 1"):
        found.mse(n)
    with pytest.raises(ValueError, match=">= 1"):
        found.efficiency(n)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_estimator_has_an_exact_result_or_is_refused(name):
    world = World(random_world(2, 4, seed=3).policies, random_world(2, 4, seed=3).reward, turn_length=2)
    estimator = NAMED[name]()
    if estimator.reads_batch:
        with pytest.raises(ValueError, match=r"depend on the other sequences.*\nhint: "):
            exact(world, estimator)
        return
    found = exact(world, estimator)
    assert math.isfinite(found.mse(1))
    assert found.trace_cov >= 0


def test_turns_are_runs_of_tokens():
    world = World(random_world(2, 4, seed=3).policies, random_world(2, 4, seed=3).reward, turn_length=4)
    assert exact(world, NAMED["turn_tis"](1e9)).bias_norm < 1e-12  # one turn: the sequence itself


HOLD_NOT = {"seqIS var POST: M*Rmax*m2-|g|^2", "POST-bound vs Seq-IS bound: 4K^2m2 <= K^2m2"}


@given(worlds(), st.sampled_from([0.5, 1.0, 1.3, 2.0, 5.0]), st.sampled_from([1, 8, 64]))
def test_every_bound_holds(world, cap, n):
    if float(world.gradient.norm()) == 0:
        return
    sides = inequalities(world, distances(world), norms(world), cap, (0.9, 1.2), n)
    assert len(sides) >= 55
    for name, (left, right) in sides.items():
        if name not in HOLD_NOT and (name != "seqTIS bias<=K TV" or cap >= 1):
            assert left <= right + 1e-9 * max(1.0, abs(right)), f"{name}: {left} > {right}"


def test_what_the_post_gets_wrong_fails_where_it_should():
    """One fair token and a constant reward: the reward is not squared in the post's variance."""
    fair = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    world = World(Policies(fair, fair, 1), torch.full((2,), 4.0, dtype=torch.float64))
    left, right = inequalities(world, distances(world), norms(world), 2.0, (0.9, 1.1), 1)[min(HOLD_NOT, key=len)]
    assert (left, right) == pytest.approx((8.0, 2.0))


CENTRED = [token_tis(1.1), prefix_tis(1.2), naive(), dppo_tv(0.05, 0.03), token_mis(0.7, 1.3)]


@pytest.mark.parametrize("world", [random_world(3, 3, gap=0.7), random_world(3, 4, eos=0, gap=0.7, masked=0.2, seed=3)])
@pytest.mark.parametrize("estimator", CENTRED, ids=str)
def test_centred_in_a_world_a_constant_advantage_moves_nothing(world, estimator):
    """Also where sequences end early, and where mu cannot sample all of the vocabulary."""
    constant = PerSequence(torch.ones(len(world.mu), dtype=torch.float64))
    assert exact(world, estimator, constant).mean.norm() > 1e-3
    assert exact(world, centred(estimator), constant).mean.abs().max() < 1e-12
    # So a baseline changes no mean.
    means = [exact(world, centred(estimator), Reward(b)).mean for b in (0.0, 5.0)]
    if not any(f.sign for f in estimator.factors):
        torch.testing.assert_close(means[0], means[1], rtol=0, atol=1e-12)


def test_centring_of_importance_sampling_is_no_change_where_all_can_be_sampled():
    world = random_world(3, 3, gap=0.7)
    plain, other = exact(world, token_is()), exact(world, centred(token_is()))
    torch.testing.assert_close(other.mean, plain.mean, rtol=0, atol=1e-12)
    assert other.trace_cov == pytest.approx(plain.trace_cov)


@pytest.mark.parametrize("k", [None, 2])
def test_moments_of_a_centred_estimator_are_those_of_its_gradients(k):
    """Against autograd, sequence by sequence."""
    world, estimator = random_world(3, 2, gap=0.7, seed=2), centred(token_tis(1.1))
    found = exact(world, estimator, k=k)
    s, table = world.sampled, world.policies.log_pi.clone().requires_grad_()
    given = world.candidates(k)
    rows = []
    for i in range(len(world.mu)):
        log_p = table.log_softmax(-1)
        head = log_p[s.row[i : i + 1]].gather(-1, given.ids[i : i + 1].clamp(min=0))
        own = log_p[s.row[i : i + 1], s.tokens[i : i + 1]]
        candidates = Candidates(given.ids[i : i + 1], given.log_mu[i : i + 1], head, given.complete)
        batch = Batch.padded(own, s.log_mu[i : i + 1], s.mask[i : i + 1], candidates=candidates)
        loss = policy_gradient(own, world.reward[i : i + 1], estimator(batch), 1.0, candidates=head)
        rows.append(-torch.autograd.grad(loss, table)[0].flatten())
    each = torch.stack(rows)
    mean = world.mu @ each
    torch.testing.assert_close(found.mean, mean, rtol=1e-9, atol=1e-12)
    assert found.trace_cov == pytest.approx(float(world.mu @ (each - mean).square().sum(-1)), rel=1e-9)
    assert found.second_moment == pytest.approx(float(world.mu @ each.square().sum(-1)), rel=1e-9)


def test_centred_clipped_losses_in_a_world():
    world = random_world(3, 3, gap=0.7)
    for sign in (1.0, -1.0):
        constant = PerSequence(torch.full((len(world.mu),), sign, dtype=torch.float64))
        for loss in (PPOClip(0.1, 0.2), PPOClip(0.1, 0.2, dual=1.5)):
            assert exact(world, naive(), constant, loss=loss).mean.norm() > 1e-3
            assert exact(world, centred(naive()), constant, loss=loss).mean.abs().max() < 1e-12


@pytest.mark.slow
def test_the_tables_of_centring_are_those_of_the_lab():
    root = Path(__file__).parents[1]
    script = runpy.run_path(str(root / "docs" / "centring.py"))
    text = (root / "docs" / "centring.md").read_text()
    assert script["page"](text) == text, "python docs/centring.py"
