"""Self-normalised weights, groups, traps, chains and worst cases: closed forms against going through everything."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reweigh import geo_is, geo_rs, naive, prefix_is, seq_is, seq_mis, seq_tis, snis, token_is, token_tis
from reweigh.caps import Balance, Post
from reweigh.theory.lab import (
    Advantage,
    Group,
    Policies,
    Reward,
    World,
    chain,
    distances,
    exact,
    exact_group_mean,
    exact_snis,
    growth_rate,
    random_policies,
    random_world,
    ratio_law,
    trap_a,
    trap_b,
    trap_b_of_fixed_length,
    worst_case,
)

VALUE = Reward("value")


def groups_of(world, size):
    """Every group of sequences of mu: indices and probability."""
    mu = world.mu
    for group in itertools.product(range(len(mu)), repeat=size):
        yield torch.tensor(group), math.prod(float(mu[i]) for i in group)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4, 1.5]), st.sampled_from([0.0, 0.4]), st.integers(1, 3))
def test_self_normalised_weights_against_every_batch(seed, gap, masked, n):
    world = random_world(3, 1, gap=gap, masked=masked, seed=seed)
    f = world.sampled.dense(world.sampled_reward[:, None])
    r = seq_is()(world.batch).per_unit
    mean, square, ess = torch.zeros(3, dtype=torch.float64), 0.0, 0.0
    for group, p in groups_of(world, n):
        w = r[group] / r[group].sum()
        ghat = w @ f[group]
        mean, square, ess = mean + p * ghat, square + p * float(ghat @ ghat), ess + p * float(w @ w)
    found = exact_snis(world, n)
    torch.testing.assert_close(found.mean, mean, rtol=1e-11, atol=1e-12)
    assert found.trace_cov == pytest.approx(square - float(mean @ mean), rel=1e-9, abs=1e-12)
    assert found.inverse_ess == pytest.approx(ess, rel=1e-11)


def test_two_sequences_of_a_longer_world():
    world = random_world(2, 4, memory=1, gap=0.8, seed=3)
    f, r = world.sampled.dense(world.sampled_reward[:, None].expand(16, 4)), seq_is()(world.batch).per_unit
    mean = sum(p * (r[g] @ f[g]) / r[g].sum() for g, p in groups_of(world, 2))
    torch.testing.assert_close(exact_snis(world, 2).mean, mean, rtol=1e-11, atol=1e-12)
    assert torch.equal(exact_snis(world, 2, snis()).mean, exact_snis(world, 2, seq_is()).mean)


def test_self_normalised_truncated_weights():
    world = random_world(2, 3, gap=1.0, seed=4)
    coef = world.sampled_reward[:, None].expand(8, 3) - 0.25
    f, w = world.sampled.dense(coef), seq_tis(1.2)(world.batch).per_unit
    mean = sum(p * (w[g] @ f[g]) / w[g].sum() for g, p in groups_of(world, 2))
    found = exact_snis(world, 2, seq_tis(1.2), Reward(0.25))
    torch.testing.assert_close(found.mean, mean, rtol=1e-11, atol=1e-12)


def test_snis_tends_to_what_its_first_order_says_and_to_the_gradient():
    world = random_world(3, 3, gap=0.5, seed=5)
    far = exact_snis(world, 100_000)
    assert far.bias_norm < 1e-4
    torch.testing.assert_close(far.bias, far.delta_bias, rtol=2e-3, atol=1e-9)
    assert far.trace_cov == pytest.approx(far.delta_trace_cov, rel=1e-3)
    assert far.inverse_ess * 100_000 == pytest.approx(distances(world).m2, rel=1e-3)
    assert far.efficiency > exact_snis(world, 10).efficiency


def test_one_sequence_normalised_by_itself_is_naive():
    world = random_world(2, 3, seed=6)
    one, plain = exact_snis(world, 1), exact(world, naive())
    torch.testing.assert_close(one.mean, plain.mean, rtol=1e-12, atol=1e-13)
    assert one.mse == pytest.approx(plain.mse(1), rel=1e-11)


@pytest.mark.parametrize("n", [0, -1])
def test_a_batch_of_nothing_cannot_be_normalised(n):
    with pytest.raises(ValueError, match="n must be >= 1"):
        exact_snis(random_world(2, 2), n)


@pytest.mark.parametrize("estimator", [token_is(), seq_mis(0.0, 1.01), geo_rs(0.999, 1.001)])
def test_weights_that_cannot_normalise_a_batch_are_refused(estimator):
    with pytest.raises(ValueError, match="must give every sequence one weight over 0"):
        exact_snis(random_world(2, 3), 4, estimator)


@pytest.mark.parametrize("estimator", [naive(), token_is(), seq_tis(1.2), geo_is()])
@pytest.mark.parametrize(
    ("group", "advantages"),
    [
        (Group(3), lambda r: r - r.mean()),
        (Group(3, "others"), lambda r: (r - r.mean()) * 3 / 2),
        (Group(3, "std", eps=1e-4), lambda r: (r - r.mean()) / (r.std() + 1e-4)),
        (Group(3, "std", eps=0.1, unbiased=False), lambda r: (r - r.mean()) / (r.std(correction=0) + 0.1)),
    ],
    ids=["mean", "others", "std", "std of G"],
)
@pytest.mark.parametrize("reward", ["binary", "normal"])
def test_group_baselines_against_every_group(estimator, group, advantages, reward):
    world = random_world(2, 3, gap=0.7, reward=reward, masked=0.2, seed=8)
    ones = torch.ones(world.sampled.mask.shape, dtype=torch.float64)
    weighed = world.sampled.dense(ones * estimator(world.batch).per_token)
    r = world.sampled_reward
    mean = sum(p * (advantages(r[g]) @ weighed[g]) / 3 for g, p in groups_of(world, 3))
    torch.testing.assert_close(exact_group_mean(world, estimator, group), mean, rtol=1e-10, atol=1e-13)


def test_normalised_groups_reweigh_prompts():
    spread = [Group(8, "std").advantages([0.0, 1.0], [1 - p, p]) for p in (0.05, 0.25, 0.5)]
    assert [round(a[1] - a[0], 2) for a in spread] == [2.31, 1.90, 1.74]  # as found elsewhere


def test_groups_that_cannot_be_gone_through_are_refused():
    with pytest.raises(ValueError, match="Group: size must be >= 2, got 1"):
        Group(1)
    world = random_world(3, 4)
    with pytest.raises(ValueError, match=r"81 distinct rewards can fall in [\d,]+ ways"):
        exact_group_mean(world, naive(), Group(8, "std"))


def test_trap_a_turns_token_level_weights_round():
    """Cosine and efficiency at 64 sequences, as found elsewhere to the digits shown."""
    world = trap_a(100)
    assert distances(world).m2 == pytest.approx(1.64, abs=0.005)
    balanced = seq_tis(Balance(n=64).of_law(ratio_law(world)))
    cases = [
        (token_is(), VALUE, -0.23, 0.0),
        (geo_rs(), Reward(), -0.70, 0.0),
        (seq_mis(0.0, 2.0), VALUE, -0.13, 0.0),
        (naive(), VALUE, 0.45, 0.20),
        (prefix_is(), Reward(), 0.03, 0.001),
        (token_is(), Advantage("pi"), 0.98, 0.94),
        (seq_is(), VALUE, 1.0, 0.885),
        (seq_tis(2.0), VALUE, 0.99, 0.855),
        (balanced, VALUE, 1.0, 0.881),
    ]
    for estimator, advantage, cosine, efficiency in cases:
        found = exact(world, estimator, advantage)
        assert found.cosine == pytest.approx(cosine, abs=0.0051), estimator
        assert found.efficiency(64) == pytest.approx(efficiency, abs=0.0051 if efficiency in (0.20, 0.94) else 6e-4)


def test_trap_a_at_two_hundred_tokens():
    world = trap_a(200)
    chi2 = distances(world).chi2
    assert 1 + chi2 == pytest.approx(3.07, abs=0.005)
    caps = {2.0: 0.347, Post().of_chi2(chi2): 0.440, Balance(n=64).of_law(ratio_law(world)): 0.708, math.inf: 0.717}
    for cap, efficiency in caps.items():
        assert exact(world, seq_tis(cap), VALUE).efficiency(64) == pytest.approx(efficiency, abs=6e-4)


def test_trap_a_springs_at_fifty_nine_tokens():
    wrong = [float(exact(trap_a(t), token_is()).mean[1]) < 0 for t in (57, 58, 59, 60)]
    assert wrong == [False, False, True, True]
    assert all(float(trap_a(t).gradient[1]) > 0 for t in (57, 60, 200))


def test_trap_b_is_where_sequence_ratios_are_noise():
    for length, token, sequence in ((13, 0.99, 0.98), (100, 0.99, 0.41), (200, 0.99, 0.08)):
        world = trap_b(length)
        assert exact(world, token_is()).bias_norm < 1e-12
        assert exact(world, token_is(), VALUE).efficiency(64) == pytest.approx(token, abs=0.01)
        assert exact(world, seq_is(), VALUE).efficiency(64) == pytest.approx(sequence, abs=0.01)


def test_trap_b_of_fixed_length():
    world = trap_b_of_fixed_length(13)
    assert exact(world, token_is()).bias_norm < 1e-13
    assert exact(world, token_is(), VALUE).efficiency(64) == pytest.approx(0.834, abs=6e-4)  # as found elsewhere
    assert exact(world, seq_is(), VALUE).efficiency(64) == pytest.approx(0.639, abs=6e-4)


@pytest.mark.parametrize("chance", [0.0, 1.0, math.nan])
def test_traps_need_chances(chance):
    with pytest.raises(ValueError, match=r"trap_a: mu_failure must be a chance in \(0, 1\)"):
        trap_a(5, mu_failure=chance)


@pytest.mark.parametrize("trap", [trap_a, trap_b])
def test_traps_at_a_thousand_tokens_and_at_too_many(trap):
    assert exact(trap(1000), seq_is(), VALUE).bias_norm < 1e-12
    with pytest.raises(ValueError, match=r"at most 2,047, got 2,048.*\nhint: reweigh.theory.lab.chain"):
        trap(2048)
    with pytest.raises(ValueError, match=r"length must be >= 1, got 0"):
        trap(0)


@pytest.mark.parametrize("shape", [(3, 5, 0, None, 0), (3, 5, 1, 2, 0), (2, 6, 2, None, 0), (3, 4, None, 0, 0.3)])
def test_chains_are_what_going_through_every_sequence_finds(shape):
    vocab, length, memory, eos, masked = shape
    policies = random_policies(vocab, length, memory, eos, 0.7, masked, seed=9)
    d = distances(World(policies, torch.zeros(policies.num_sequences, dtype=torch.float64)))
    c = chain(policies)
    assert c.renyi2[-1] == pytest.approx(math.log(d.m2), abs=1e-13)
    assert c.hellinger2[-1] == pytest.approx(d.hellinger2, rel=1e-12)
    assert c.kl_mu_pi[-1] == pytest.approx(d.kl_mu_pi, rel=1e-12)
    assert c.kl_pi_mu[-1] == pytest.approx(d.kl_pi_mu, rel=1e-12)
    assert c.tv_tokens[-1] == pytest.approx(d.tv_tokens, rel=1e-12)
    assert c.length_mu[-1] == pytest.approx(d.length_mu, rel=1e-12)
    assert c.tv_at_least[-1] <= d.tv <= c.tv_at_most[-1]


def test_a_chain_is_cut_off_at_every_length():
    whole = random_policies(3, 6, memory=1, eos=0, seed=10)
    cut = Policies(whole.log_pi, whole.log_mu, 3, memory=1, eos=0)
    assert chain(whole).renyi2[2] == pytest.approx(chain(cut).renyi2[2], rel=1e-12)
    assert chain(whole).kl_mu_pi[2] == pytest.approx(chain(cut).kl_mu_pi[2], rel=1e-12)


def test_chains_of_thousands_of_tokens():
    iid = random_policies(3, 5000, memory=0, gap=1.5, seed=11)
    per_token = math.log(float((2 * iid.log_pi - iid.log_mu).exp().sum()))
    c = chain(iid)
    np.testing.assert_allclose(c.renyi2, per_token * np.arange(1, 5001), rtol=1e-10)
    assert c.renyi2[-1] > 709  # log of the largest float64
    assert c.chi2[-1] == math.inf
    assert growth_rate(iid) == pytest.approx(per_token, rel=1e-12)
    markov = random_policies(3, 4000, memory=2, gap=0.3, seed=12)
    c = chain(markov)
    assert c.renyi2[-1] - c.renyi2[-2] == pytest.approx(growth_rate(markov), rel=1e-9)
    largest = float((2 * markov.log_pi - markov.log_mu).logsumexp(-1).max())
    assert 0 < growth_rate(markov) < largest


def test_what_ends_early_stops_growing():
    c = chain(random_policies(3, 2000, memory=1, eos=0, gap=0.3, seed=13))
    assert c.renyi2[-1] == pytest.approx(c.renyi2[1000], rel=1e-12)
    assert growth_rate(random_policies(3, 2000, memory=1, eos=0, gap=0.3, seed=13)) == 0


def test_chains_with_too_many_contexts_are_refused():
    with pytest.raises(ValueError, match=r"chain: 131,071 contexts are too many.*\nhint: "):
        chain(random_policies(2, 17))
    with pytest.raises(ValueError, match=r"growth_rate: 4,096 contexts are too many"):
        growth_rate(random_policies(2, 13))


def tokens(*p):
    return torch.tensor(p, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [naive(), token_is(), token_tis(1.1)])
@pytest.mark.parametrize(
    ("pi", "mu", "length"),
    [(tokens(0.5, 0.3, 0.2), tokens(0.3, 0.4, 0.3), 2), (tokens(0.6, 0.4), tokens(0.5, 0.5), 3)],
)
def test_the_worst_reward_against_every_reward(estimator, pi, mu, length):
    policies = Policies(pi.log()[None], mu.log()[None], length, memory=0)
    count = policies.num_sequences
    worst = dict.fromkeys(("bias", "gradient", "second"), 0.0)
    for signs in itertools.product((1.0, -1.0), repeat=count - 1):  # the first sign is free
        found = exact(World(policies, torch.tensor((1.0, *signs), dtype=torch.float64)), estimator)
        values = {"bias": found.bias_norm, "gradient": float(found.g.norm()), "second": found.second_moment}
        worst = {name: max(worst[name], value) for name, value in values.items()}
    case = worst_case(pi, mu, length, estimator)
    assert case.bias == pytest.approx(worst["bias"], rel=1e-12)
    assert case.gradient == pytest.approx(worst["gradient"], rel=1e-12)
    assert case.second_moment == pytest.approx(worst["second"], rel=1e-12)
    assert case.log_m2 == pytest.approx(chain(policies).renyi2[-1], rel=1e-12)


def slope(pi, mu, estimator, what="bias", lengths=(64, 128)):
    a, b = (getattr(worst_case(pi, mu, t, estimator), what) for t in lengths)
    return math.log(b / a) / math.log(lengths[1] / lengths[0])


SMOOTH = tokens(0.5, 0.3, 0.2), tokens(0.492, 0.303, 0.205)
RARE = tokens(0.5, 0.499, 0.001), tokens(0.5, 0.49999, 0.00001)


@pytest.mark.parametrize("estimator", [naive(), token_is()])
def test_the_worst_bias_grows_as_t_or_as_t_to_one_and_a_half(estimator):
    """Never as its square: with a gap on all tokens, and with one on a token that is rare under mu."""
    assert slope(*SMOOTH, estimator) == pytest.approx(1.0, abs=0.02)
    assert slope(*RARE, estimator) == pytest.approx(1.457, abs=0.005)  # 1.5 while its log is small; as found elsewhere
    assert slope(*SMOOTH, estimator, "gradient") == pytest.approx(0.5, abs=0.01)


def test_second_moments_grow_linearly():
    assert slope(*SMOOTH, token_is(), "second_moment") == pytest.approx(1.0, abs=1e-9)
    assert slope(*SMOOTH, naive(), "score2") == pytest.approx(1.0, abs=1e-9)


def test_worst_cases_at_thousands_of_tokens():
    two = tokens(0.5, 0.5), tokens(0.499, 0.501)
    assert slope(*two, naive(), lengths=(2048, 4096)) == pytest.approx(1.0, abs=0.02)
    assert worst_case(*SMOOTH, 1000, naive()).bias > worst_case(*SMOOTH, 500, naive()).bias


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: worst_case(tokens(0.25, 0.25, 0.25, 0.25), tokens(0.25, 0.25, 0.25, 0.25), 4, naive()),
            "two or three",
        ),
        (lambda: worst_case(tokens(0.5, 0.6), tokens(0.5, 0.5), 4, naive()), "pi must be positive and add up to 1"),
        (lambda: worst_case(tokens(0.5, 0.5), tokens(0.5, 0.5), 0, naive()), "length must be >= 1, got 0"),
        (lambda: worst_case(*SMOOTH, 10_000, naive()), r"3 tokens at length 10,000 .* more than 3,000,000 ways"),
        (lambda: worst_case(*SMOOTH, 4, seq_is()), "must weigh each token by itself"),
    ],
)
def test_worst_cases_that_cannot_be_gone_through_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
