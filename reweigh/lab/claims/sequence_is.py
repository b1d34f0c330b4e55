"""Claims 1 to 4: sequence-level importance sampling, its mean and its variance."""

import torch

from reweigh import bounds as b
from reweigh.lab.claims.claim import Claim, Evidence
from reweigh.lab.claims.material import NUMBER, broken, largest, log_prob, relative, table, tiny, value, worlds
from reweigh.lab.distances import distances, norms
from reweigh.lab.exact import exact
from reweigh.lab.policies import Policies
from reweigh.lab.world import World, random_world
from reweigh.named import seq_is


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


def _variance() -> Evidence:
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


SEQUENCE_IS = (
    Claim(
        number=1,
        title="The gradient is an expectation under pi",
        post="g = E_pi[f], with f = R times the score of the sequence.",
        verdict="OK+",
        why="The reward must not depend on the parameters; and it is for one prompt, to be averaged over prompts.",
        sharper="With R that depends on the parameters, E_pi[grad R] is to be added. A term -log pi in R adds none, "
        "since its mean gradient under pi is 0.",
        use="Detach whatever the policy itself contributes to the reward, or differentiate it as well.",
        evidence=_gradient,
    ),
    Claim(
        number=2,
        title="Seq-IS is unbiased",
        post="Weighing by the sequence ratio is perfectly unbiased: E_mu[r f] = g.",
        verdict="OK+",
        why="mu must be able to sample all that pi can, and the logged log-probs must be of the law that sampled. "
        "top-p, top-k and min-p break the first, temperature and another precision the second.",
        sharper="|bias| <= K pi(mu = 0), K = sup |f|: a floor that no weight can remove. E_mu r falls short of 1 by "
        "exactly that mass.",
        use="Look whether the mean ratio of the audit is 1 within its interval; sample with top_p = 1, or give pi "
        "the same support.",
        evidence=_unbiased,
    ),
    Claim(
        number=3,
        title="Variance of Seq-IS",
        post="Var = E_mu[r^2 R^2 |S|^2] - |g|^2.",
        verdict="OK",
        why="Exact, for one sequence.",
        sharper="Over N for a batch of N.",
        use="Divide by the sequences of a step before comparing with a squared bias.",
        evidence=_variance,
    ),
    Claim(
        number=4,
        title="Bound of that variance",
        post="Var <= M R_max E_mu r^2 - |g|^2, with M = sup |S|^2.",
        verdict="WRONG",
        why="A slip: the reward must be squared. As printed it can fail as soon as |R| goes beyond 1. Nothing later "
        "in the post depends on it.",
        sharper="Var <= K^2 E_mu r^2 - |g|^2, with K = sup |R S| <= R_max sup |S|.",
        use="`reweigh.bounds.seq_is_variance`.",
        evidence=_reward_squared,
    ),
)
