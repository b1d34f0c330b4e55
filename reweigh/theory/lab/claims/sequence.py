"""Evidence on the lemma and on weights of whole sequences: claims 0 to 11 and 24 to 31."""

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.caps import balance_cap, post_batch_cap, post_cap
from reweigh.estimators import Estimator
from reweigh.named import geo_rs, naive, seq_is, seq_mis, seq_tis, snis, token_is
from reweigh.theory import bounds as b
from reweigh.theory.lab.claims.material import (
    NUMBER,
    Evidence,
    broken,
    exponent,
    iid_law,
    largest,
    log_prob,
    relative,
    slack,
    table,
    tiny,
    value,
    worlds,
)
from reweigh.theory.lab.closed_forms import chain, growth_rate
from reweigh.theory.lab.distances import StateDistances, distances, norms, ratio_law
from reweigh.theory.lab.exact import Reward, coefficients, exact, exact_snis
from reweigh.theory.lab.world import Policies, World, random_world, trap_a
from reweigh.theory.laws import LogNormalRatio
from reweigh.theory.sga import Moments, softmax_smoothness

_LEMMA_STEPS = (0.3, 1.0, 3.0)  # in units of 1 / L
_LEMMA_BATCHES = (1, 2)


def _steps_of(world: World, coef: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Every gradient that a batch of n can give, and its probability."""
    each, p = world.sampled.dense(coef), world.mu
    if n == 1:
        return each, p
    return ((each[:, None] + each) / 2).flatten(0, 1), (p[:, None] * p).flatten()


def _lemma() -> Evidence:
    cases = broken = helped = 0
    margin, rescaled = float("inf"), 0.0
    for seed in range(6):
        world = random_world(vocab=2, length=3, gap=0.8, seed=seed)
        curvature = softmax_smoothness(norms(world).half_range)
        start = value(world, world.policies.log_pi)
        for estimator in (naive(), token_is(), seq_is(), seq_tis(2.0)):
            coef, found = coefficients(world, estimator), exact(world, estimator)
            lemma = found.lemma
            helped += lemma.gain(0.5 / curvature, curvature).bias > 1e-12
            small = Moments(found.g.numpy(), found.mean.numpy() / 10, found.trace_cov / 100)
            rescaled = max(rescaled, abs(small.efficiency(64) - lemma.efficiency(64)))
            for n in _LEMMA_BATCHES:
                grads, p = _steps_of(world, coef, n)
                for step in _LEMMA_STEPS:
                    at = world.policies.log_pi + step / curvature * grads.unflatten(1, world.policies.log_pi.shape)
                    gain = float(p @ (value(world, at) - start))
                    bound = lemma.gain(step / curvature, curvature, n).total
                    cases, broken = cases + 1, broken + (gain < bound - 1e-12)
                    margin = min(margin, gain - bound)
    total = 6 * 4
    return Evidence(
        broken == 0 and helped > 0 and rescaled < 1e-12,
        f"E J(theta + step ghat_N) over every batch against A + B - C, {cases} cases (6 worlds, 4 estimators, N = 1 "
        f"and 2, steps of {', '.join(f'{s:g}' for s in _LEMMA_STEPS)} / L): {broken} below the bound, smallest margin "
        f"{margin:.2g}. Term B is positive in {helped} of {total} cases: bias can help. A tenfold smaller estimator "
        f"has the same efficiency (difference at most {tiny(rescaled)}).",
    )


def _gradient() -> Evidence:
    worst = 0.0
    for world in worlds():
        logits = world.policies.log_pi.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(world, logits), logits)
        worst = max(worst, relative(world.gradient, slope))
    world = worlds()[0]
    logits = world.policies.log_pi.clone().requires_grad_()
    own = log_prob(world, logits).exp()
    (slope,) = torch.autograd.grad(own @ own, logits)
    score_form = World(world.policies, own.detach()).gradient
    twice = float(slope.norm() / score_form.norm())
    return Evidence(
        worst < 1e-12 and abs(twice - 2) < 1e-12,
        f"E_pi[R S] against automatic differentiation of J in {NUMBER} random worlds: relative difference at most "
        f"{tiny(worst)}. With R = pi(y), a reward that depends on the parameters, the true gradient is {twice:.3f} "
        "times E_pi[R S].",
    )


def _unbiased() -> Evidence:
    worst = largest(exact(w, seq_is()).bias_norm / float(w.gradient.norm()) for w in worlds())
    cut = [random_world(vocab=3, length=4, memory=(None, 1)[i % 2], masked=0.3, seed=i) for i in range(20)]
    gaps: list[float] = []
    over = 0
    means: list[float] = []
    for world in cut:
        s, d, found = world.sequences, distances(world), exact(world, seq_is())
        lost = torch.where(s.sampled, 0, s.pi * world.reward)
        gaps.append(float((found.bias + s.total(lost[:, None].expand(s.mask.shape))).norm()))
        over += found.bias_norm > b.unsupported_bias(norms(world).integrand, d.unsupported) + 1e-12
        means.append(d.mean_ratio)
    return Evidence(
        worst < 1e-12 and largest(gaps) < 1e-12 and over == 0 and min(means) < 0.9,
        f"Full support, {NUMBER} worlds: |bias| / |g| at most {tiny(worst)}. Truncated support, {len(cut)} worlds: "
        f"E_mu r falls to {min(means):.2f} in place of 1, the bias is minus what pi does where mu is 0 (to "
        f"{tiny(largest(gaps))}), and the bound K pi(mu = 0) fails in {over}.",
    )


def _seq_is_variance() -> Evidence:
    worst = 0.0
    for world in worlds():
        s, found = world.sampled, exact(world, seq_is())
        ratio = (s.log_pi - s.log_mu).sum(-1).exp()
        second = ratio.square() * world.sampled_reward.square() * s.square_norms(torch.ones_like(s.log_pi))
        direct = float(world.mu @ second) - float(world.gradient.square().sum())
        worst = max(worst, abs(found.trace_cov / direct - 1))
    world = random_world(vocab=2, length=4, gap=0.7)
    each = world.sampled.dense(
        (world.sampled.log_pi - world.sampled.log_mu).sum(-1, keepdim=True).exp()
        * world.sampled_reward[:, None]
        * world.sampled.mask
    )
    pairs = ((each[:, None] + each) / 2 - world.gradient).square().sum(-1)
    of_two = float(world.mu @ pairs @ world.mu) / exact(world, seq_is()).trace_cov
    return Evidence(
        worst < 1e-9 and abs(of_two - 0.5) < 1e-12,
        f"The formula against the trace of the covariance in {NUMBER} worlds: relative difference at most "
        f"{tiny(worst)}. Over all pairs of sequences the mean of two has {of_two:.3f} of the variance.",
    )


def _reward_squared() -> Evidence:
    flat = table([[0.5, 0.5]])
    world = World(Policies(flat, flat, 1), torch.full((2,), 4.0, dtype=torch.float64))
    k, var = norms(world), exact(world, seq_is()).trace_cov
    post = b.post_seq_is_variance(k.score, k.reward, 1.0, k.gradient)
    wrong = 0
    for seed in range(NUMBER):
        short = random_world(vocab=2, length=1 + seed % 2, gap=0.3, seed=seed)
        c, var_short, m2 = norms(short), exact(short, seq_is()).trace_cov, distances(short).m2
        wrong += var_short > b.post_seq_is_variance(c.score, c.reward, m2, c.gradient) + 1e-12
    right = broken("seqIS var: M*Rmax^2*m2-|g|^2")
    return Evidence(
        var > post and wrong > 0 and right == 0,
        f"One token, two choices, pi = mu, reward 4 for both: variance {var:.3g}, the post's bound {post:.3g}. The "
        f"post's bound fails in {wrong} of {NUMBER} random worlds of one or two tokens with normal rewards, the one "
        f"with R_max^2 in {right} of {NUMBER} larger ones.",
    )


def _tower() -> Evidence:
    fixed = [w for w in worlds() if w.policies.eos is None and w.policies.memory == 1]
    tower, apart = 0.0, 1.0
    for world in fixed:
        m2 = distances(world).m2
        tower = max(tower, abs(float(chain(world.policies).renyi2[-1]) - math.log(m2)))
        ratio2 = (2 * world.batch.log_ratio).exp()
        product = math.prod(float(world.mu @ column) for column in ratio2.unbind(-1))
        apart = max(apart, product / m2, m2 / product)
    return Evidence(
        tower < 1e-10 and apart > 1.01,
        f"{len(fixed)} Markov worlds: the recursion by the tower property gives log E_mu r^2 to {tiny(tower)} of the "
        "sum over all sequences; the product of E_mu r_t^2, as if tokens were independent, is off by up to "
        f"{apart:.2f}x.",
    )


def _explosion() -> Evidence:
    length = 4096
    first = Policies(table([[0.5, 0.5]] * 3), table([[0.7, 0.3], [0.5, 0.5], [0.5, 0.5]]), length, memory=1)
    m2 = chain(first).renyi2
    at_first = math.log1p(float(StateDistances.of(first).chi2[0]))
    rare = Policies(
        table([[0.99, 0.01], [0.99, 0.01], [0.5, 0.5]]), table([[0.99, 0.01], [0.99, 0.01], [0.8, 0.2]]), 13, memory=1
    )
    m2_rare, chi2 = chain(rare).chi2 + 1, float(StateDistances.of(rare).chi2.max())
    rate = growth_rate(rare)
    lower = broken("exp(KL(pi|mu))<=m2") + broken("(1+chi2min)^T<=m2") + broken("m2<=(1+chi2max)^T")
    return Evidence(
        abs(m2[-1] - at_first) < 1e-9 and rate < math.log1p(chi2) * 0.9 and lower == 0,
        f"A gap in the first token only: E_mu r^2 = {math.exp(m2[-1]):.3f} at T = 1 and at T = {length:,}, where the "
        f"bound is 10^{length * at_first / math.log(10):.0f}. A gap only in a state that is entered with a chance of "
        f"1%: {m2_rare[4]:.2f}, {m2_rare[9]:.2f}, {m2_rare[12]:.2f} at T = 5, 10, 13 (bound "
        f"{', '.join(f'{b.post_m2(chi2, t):.0f}' for t in (5, 10, 13))}), and in the limit {rate:.4f} nats a token "
        f"(bound {math.log1p(chi2):.4f}). The bound and both lower bounds hold in {NUMBER} random worlds ({lower} "
        "failures).",
    )


def _prefactor() -> Evidence:
    lengths = (4, 8, 16)
    on = [_over_m2(t, 0.5) for t in lengths]
    off = [_over_m2(t, 0.4) for t in lengths]
    power = exponent((off[1], off[2]), (8, 16))
    return Evidence(
        abs(exponent((on[0], on[2]), (4, 16)) - 1) < 1e-9 and power > 1,
        f"Variance over (1 + chi2)^T, iid tokens, reward 1: {', '.join(f'{x:.3g}' for x in on)} at T = 4, 8, 16 for "
        f"pi = mu, where (1 + chi2)^T is 1, and {', '.join(f'{x:.3g}' for x in off)} for mu = (.4, .6), local power "
        f"{power:.2f}: it is not bounded.",
    )


def _over_m2(length: int, mu: float) -> float:
    policies = Policies(table([[0.5, 0.5]]), table([[mu, 1 - mu]]), length, memory=0)
    world = World(policies, torch.ones(2**length, dtype=torch.float64))
    chi2 = float(StateDistances.of(policies).chi2.max())
    return exact(world, seq_is()).trace_cov / b.post_m2(chi2, length)


def _percent() -> Evidence:
    found: list[tuple[float, float, float]] = []
    for shift in (0.05, 0.005):
        tables = table([[0.5 + shift, 0.5 - shift]]), table([[0.5, 0.5]])
        policies = Policies(*tables, 200, memory=0)
        states = StateDistances.of(policies)
        found.append((float(states.chi2[0]), float(states.tv[0]), float(chain(policies).chi2[-1]) + 1))
    (chi2, tv, m2), (chi2_small, tv_small, m2_small) = found
    one, five = b.post_m2(0.01, 200), b.post_m2(0.05, 200)
    return Evidence(
        round(one, 1) == 7.3 and int(five) == 17_292 and abs(m2 - one) < 1e-6 and m2_small < 1.03,
        f"1.01^200 = {one:.3f} and 1.05^200 = {five:,.1f}. Two tokens with ratios of 1 +- 10% (TV {tv:.3f}) have "
        f"chi2 = {chi2:.4f} and E_mu r^2 = {m2:.3f} at T = 200; ratios of 1 +- 1% (TV {tv_small:.4f}) have chi2 = "
        f"{chi2_small:.1e} and {m2_small:.4f}.",
    )


def _mild() -> World:
    return random_world(vocab=3, length=4, memory=1, gap=0.4, seed=3)


def _heavy() -> World:
    return random_world(vocab=3, length=7, memory=1, gap=1.3, reward="binary", seed=10)


def _snis_bias() -> Evidence:
    world = _mild()
    sizes = (64, 256, 1024)
    found = [exact_snis(world, n) for n in sizes]
    power = exponent((found[1].bias_norm, found[2].bias_norm), (256, 1024))
    ratio = found[2].bias_norm / float(found[2].delta_bias.norm())
    k, m2 = norms(world).integrand, distances(world).m2
    over = sum(x.bias_norm > b.snis_bias(k, m2, x.n) for x in found)
    constants: list[float] = []
    for length in (2, 4, 6):
        longer = random_world(vocab=3, length=length, memory=0, gap=0.8, reward="binary", seed=1)
        constants.append(distances(longer).m2)
    return Evidence(
        abs(power + 1) < 0.02 and abs(ratio - 1) < 0.05 and over == 0 and constants[2] > constants[0] ** 2.9,
        f"Exact |bias| times N: {', '.join(f'{x.bias_norm * x.n:.4g}' for x in found)} at N = "
        f"{', '.join(map(str, sizes))} (chi2 = {m2 - 1:.2f}), power of N {power:.3f}, {ratio:.3f} of the first-order "
        "term at N = 1024; `snis_bias` holds at each. E_mu r^2, which the constant grows with, of iid tokens at T = "
        f"2, 4, 6: {', '.join(f'{c:.2f}' for c in constants)}.",
    )


def _snis_norm() -> Evidence:
    world, n = _heavy(), 16
    s, d = world.sampled, distances(world)
    g = torch.Generator().manual_seed(0)
    f = s.dense(world.sampled_reward[:, None].expand(s.mask.shape))
    worst = 0.0
    for _ in range(200):
        rows = torch.multinomial(world.mu, n, replacement=True, generator=g)
        batch = Batch.padded(s.log_pi[rows], s.log_mu[rows], s.mask[rows])
        ghat = (snis()(batch).per_unit[:, None] * f[rows]).mean(0)
        worst = max(worst, float(ghat.norm() / f[rows].norm(dim=1).max().clamp(min=1e-30)))
    found = exact_snis(world, n)
    mse, plain = found.bias_norm**2 + found.trace_cov, exact(world, seq_is()).mse(n)
    delta = float(found.delta_bias.norm())
    return Evidence(
        worst <= 1 + 1e-9 and mse < plain / 3 and found.delta_trace_cov > 3 * found.trace_cov,
        f"200 batches of {n}: |ghat| is at most {worst:.3f} of the largest |f_i|. At E_mu r^2 = {d.m2:.0f}, N = {n}: "
        f"exact |bias| {found.bias_norm:.3f} (first order: {delta:.3f}), exact variance {found.trace_cov:.3f} (first "
        f"order: {found.delta_trace_cov:.2f}), error {mse:.3f} where Seq-IS has {plain:.2f}.",
    )


def _effective_size() -> Evidence:
    world = _heavy()
    m2 = distances(world).m2
    few, many = (1 / exact_snis(world, n).inverse_ess for n in (4, 4096))
    raw, less = exact_snis(world, 64), exact_snis(world, 64, advantage=Reward("value"))
    moved = float((raw.mean - less.mean).norm() / world.gradient.norm())
    return Evidence(
        few < 2.5 and abs(many / 4096 * m2 - 1) < 0.25 and moved > 1e-3,
        f"E_mu r^2 = {m2:.0f}: 1 / E[1 / ESS] is {few:.2f} of 4 sequences and {many:.0f} of 4096, "
        f"{many / 4096 * m2:.2f} times N / (1 + chi2). Taking the mean reward off R moves the mean of SNIS by "
        f"{moved:.3f} |g| at N = 64.",
    )


def _seq_tis_variance() -> Evidence:
    post, sharp = "seqTIS var<=K^2C^2", "seqTIS 2nd<=C F_pi"
    return Evidence(
        broken(post) + broken(sharp) == 0 and slack(sharp) < slack(post),
        f"{NUMBER} worlds, C = 2: both hold; median slack {slack(post):.1f} for K^2 C^2 and {slack(sharp):.1f} for C "
        "E_pi |f|^2.",
    )


def _seq_tis_bias() -> Evidence:
    post, sharp = "seqTIS bias<=2K m2/C", "seqTIS bias<=K E(rho-C)+"
    eight = min(
        b.post_tis_bias(1, chi2, cap) / b.excess_by_moment(cap, 2, 1 + chi2)
        for chi2 in (0.1, 3.0, 50.0)
        for cap in (0.5, 2.0, 20.0)
    )
    return Evidence(
        broken(post) + broken(sharp) == 0 and abs(eight - 8) < 1e-9,
        f"{NUMBER} worlds, C = 2: both hold; median slack {slack(post):.0f} for 2 K (1 + chi2) / C and "
        f"{slack(sharp):.1f} for K E_mu (r - C)_+. The post's is {eight:.0f} times K (1 + chi2) / (4 C) at every "
        "chi2 and C.",
    )


def _controllable() -> Evidence:
    lengths = (4, 64, 256, 1024)
    laws = [iid_law(0.5, 0.57, t) for t in lengths]
    kept = [1 - law.excess(2.0) for law in laws]
    needed = [next(c for c in (2.0**k for k in range(60)) if law.excess(c) <= 0.1) for law in laws]
    fading = all(x > y for x, y in pairwise(kept))
    return Evidence(
        fading and kept[-1] < 0.1 and needed[-1] > 8 * needed[0],
        f"Two iid tokens, pi = (.5, .5), mu = (.57, .43): E_mu min(r, 2) = {', '.join(f'{x:.2f}' for x in kept)} at "
        f"T = {', '.join(map(str, lengths))}, where 1 + chi2 = {', '.join(f'{law.m2:.3g}' for law in laws)}. To lose "
        f"at most a tenth takes a cap of {', '.join(f'{c:.0f}' for c in needed)} (a power of 2).",
    )


def _error() -> Evidence:
    world = random_world(vocab=2, length=4, gap=0.7)
    found = exact(world, seq_tis(1.5))
    s = world.sampled
    ratio = (s.log_pi - s.log_mu).sum(-1).exp().clamp(max=1.5)
    each = s.dense((ratio * world.sampled_reward)[:, None].expand(s.mask.shape))
    one = float(world.mu @ (each - world.gradient).square().sum(-1))
    pairs = ((each[:, None] + each) / 2 - world.gradient).square().sum(-1)
    two = float(world.mu @ pairs @ world.mu)
    gap = max(abs(one / (found.bias_norm**2 + found.trace_cov) - 1), abs(two / found.mse(2) - 1))
    return Evidence(
        gap < 1e-12,
        f"E |ghat - g|^2 over every sequence is {one:.4f}, and {two:.4f} over every pair for the mean of two; "
        f"|bias|^2 + Var / N agrees to {tiny(gap)}.",
    )


def _optimal_cap() -> Evidence:
    grid = np.exp(np.linspace(-2, 12, 20_001))
    far = 0.0
    for chi2, n in ((1.0, 1), (50.0, 1), (1.0, 1024), (50.0, 1024)):
        best = float(grid[np.argmin([b.post_tis_mse(1, chi2, float(c), n) for c in grid[::20]]) * 20])
        far = max(far, abs(best / post_batch_cap(chi2, n) - 1))
    cost: dict[tuple[float, int], float] = {}
    for s2, n in ((9.0, 1), (4.0, 64), (4.0, 1024)):
        law = LogNormalRatio(s2)
        post, best = (b.tis_mse(1, law.excess(c), law.min2(c), n) for c in (post_cap(law.chi2), balance_cap(law, n)))
        cost[s2, n] = post / best
    beaten = 0
    for world in worlds():
        caps = post_cap(distances(world).chi2), balance_cap(ratio_law(world), 1)
        post, other = (exact(world, seq_tis(c)).mse(1) for c in caps)
        beaten += other < post
    return Evidence(
        far < 0.02 and cost[9.0, 1] > 10 and cost[4.0, 1024] > 2,
        f"Grid search finds the minimum of the post's bound where it says, times N^(1/4) for a batch (to {far:.1%}). "
        f"Worst error under log-normal ratios, over the least possible: {cost[9.0, 1]:.0f}x for Var log r = 9, N = "
        f"1; {cost[4.0, 64]:.2f}x for 4, N = 64; {cost[4.0, 1024]:.1f}x for 4, N = 1024. At N = 1 the balance cap "
        f"has the smaller exact error in {beaten} of {NUMBER} worlds.",
    )


def _limit() -> Evidence:
    below = over = 0
    worst = 0.0
    for world in worlds():
        k, d = norms(world).integrand, distances(world)
        limit, plain = b.post_limit(k, d.chi2), exact(world, seq_is()).mse(1)
        below += plain <= limit / 4 * (1 + 1e-9)
        over += exact(world, seq_tis(post_cap(d.chi2))).mse(1) > limit
        worst = max(worst, exact(world, seq_tis(1.0)).mse(1) / limit)
    times = b.post_limit(1.0, 7.0) / b.seq_is_mse(1.0, 8.0)
    ratios: list[str] = []
    sound = True
    for s2 in (4.0, 9.0):
        law = LogNormalRatio(s2)
        for n in (16, 64, 1024):
            cap = balance_cap(law, n)
            ratio = b.tis_mse(1, law.excess(cap), law.min2(cap), n) / law.minimax(n)
            sound = sound and 1 <= ratio < 4
            ratios.append(f"{ratio:.2f}")
    return Evidence(
        below == NUMBER and over == 0 and times == 4 and worst < 0.25 and sound,
        f"Exact error of Seq-IS at N = 1 is below a quarter of the limit in {below} of {NUMBER} worlds; the bound "
        f"itself fails in {over}; Seq-TIS at C = 1 has at most {worst:.2f} of it. Worst case of Seq-TIS at the "
        f"balance cap over a true lower bound, log-normal: {', '.join(ratios[:3])} (Var log r = 4) and "
        f"{', '.join(ratios[3:])} (9) at N = 16, 64, 1024.",
    )


_LONG_LENGTHS = (1, 4, 10)
_LONG_SEEDS = 40


def _mass(world: World, estimator: Estimator) -> list[float]:
    """Share of pi's mass at each length that an estimator's weights leave."""
    s, w = world.sampled, estimator(world.batch).per_unit
    return [float((world.mu * w)[s.lengths == t].sum() / s.pi[s.lengths == t].sum()) for t in _LONG_LENGTHS]


def _long_sequences() -> Evidence:
    found: dict[str, list[list[float]]] = {"Seq-IS": [], "TIS(2)": [], "MIS(2)": []}
    for seed in range(_LONG_SEEDS):
        world = random_world(vocab=3, length=10, memory=0, eos=0, gap=0.8, seed=seed)
        for (_, into), e in zip(found.items(), (seq_is(), seq_tis(2.0), seq_mis(0.0, 2.0)), strict=True):
            into.append(_mass(world, e))
    middle = {name: [median(row[i] for row in rows) for i in range(3)] for name, rows in found.items()}
    off = max(abs(x - 1) for row in found["Seq-IS"] for x in row)
    # Each token with KL(mu||pi) = .0002; the band of geo_rs.
    geo = [LogNormalRatio.of_length(2e-4, t).geo_accept(0.999, 1.001, t) for t in (10, 100, 1000)]
    one = random_world(vocab=3, length=8, memory=1, gap=0.05, seed=0)
    kept = float(one.mu[geo_rs(0.99, 1.01)(one.batch).keep].sum())
    short = random_world(vocab=3, length=2, memory=1, gap=0.05, seed=0)
    kept_short = float(short.mu[geo_rs(0.99, 1.01)(short.batch).keep].sum())
    falls = all(middle[name][2] < middle[name][1] < middle[name][0] for name in ("TIS(2)", "MIS(2)"))
    said = "; ".join(f"{name} {', '.join(f'{x:.2f}' for x in middle[name])}" for name in ("TIS(2)", "MIS(2)"))
    return Evidence(
        off < 1e-11 and falls and geo[0] < geo[1] < geo[2] and kept_short < kept,
        f"E_mu[w 1{{length}}] over pi(length), lengths {', '.join(map(str, _LONG_LENGTHS))}, {_LONG_SEEDS} worlds with "
        f"an eos: Seq-IS 1 (to {tiny(off)}); medians {said}. A band of .999 to 1.001 on the geometric ratio keeps "
        f"{', '.join(f'{x:.2f}' for x in geo)} of sequences of 10, 100, 1000 tokens at KL .0002 a token; in a world, "
        f"one of 1% keeps {kept_short:.2f} at T = 2 and {kept:.2f} at T = 8.",
    )


def _artefacts() -> Evidence:
    world = trap_a(100)
    tis, mis = (exact(world, e, Reward("value")).cosine for e in (seq_tis(2.0), seq_mis(0.0, 2.0)))
    dropped = ~seq_mis(0.0, 2.0)(world.batch).keep
    successes = float(world.sampled_reward[dropped].min())
    agree = 0
    cases = [(cap, excess) for cap in (3.0, 10.0) for excess in (0.5, 5.0, 50.0)]
    for cap, excess in cases:
        share = b.artefacts_for_mis(cap)
        sides = [(1 - s) * excess + s * (cap - 1) > (1 - s) * (excess + cap) + s for s in (share - 1e-6, share + 1e-6)]
        agree += sides == [False, True]
    shares = ", ".join(f"{b.artefacts_for_mis(c):.2f} at C = {c:g}" for c in (2.0, 3.0, 10.0))
    return Evidence(
        tis > 0.9 > 0 > mis and successes == 1.0 and agree == len(cases),
        f"Trap A, T = 100: what Seq-MIS(2) rejects are successes, all with reward {successes:.0f}, and its cosine "
        f"with g is {mis:.2f}; Seq-TIS(2) has {tis:.2f}. Share of artefacts from which rejecting has less bias: "
        f"{shares}, whatever the size of the excess (sides change there in {agree} of {len(cases)} cases).",
    )


EVIDENCE: dict[int, Callable[[], Evidence]] = {
    0: _lemma,
    1: _gradient,
    2: _unbiased,
    3: _seq_is_variance,
    4: _reward_squared,
    5: _tower,
    6: _explosion,
    7: _prefactor,
    8: _percent,
    9: _snis_bias,
    10: _snis_norm,
    11: _effective_size,
    24: _seq_tis_variance,
    25: _seq_tis_bias,
    26: _controllable,
    27: _error,
    28: _optimal_cap,
    29: _limit,
    30: _long_sequences,
    31: _artefacts,
}
"""By the number of the claim."""
