"""Claims 17 to 19: where the bias of token-level importance sampling comes from, and what it optimises."""

from statistics import median

import torch

from reweigh.lab.advantages import Advantage, Reward
from reweigh.lab.claims.claim import Claim, Evidence
from reweigh.lab.claims.material import NUMBER, broken, largest, log_prob, relative, tiny, token_log_prob, worlds
from reweigh.lab.exact import exact
from reweigh.lab.splits import token_bias
from reweigh.named import naive, seq_is, token_is


def _same_cause() -> Evidence:
    unbiased = largest(exact(w, seq_is()).bias_norm for w in worlds())
    proved = broken("tokIS_R bias<=2RmaxKs T(T-1)Delta")
    first_reward: list[float] = []
    first_critic: list[float] = []
    states: list[float] = []
    returns: list[float] = []
    for world in worlds():
        parts, v = token_bias(world), world.policies.vocab
        size = float(parts.total.norm())
        states.append(float(parts.states.norm()) / size)
        returns.append(float(parts.returns.norm()) / size)
        if world.policies.memory != 0:  # row 0 is then the first token and no other
            first_reward.append(float(parts.total[:v].norm()) / size)
            first_critic.append(float(parts.states[:v].norm()) / size)
    return Evidence(
        unbiased < 1e-12 and proved == 0 and largest(first_critic) < 1e-10 and median(first_reward) > 0.01,
        f"Seq-IS samples from mu as well, and its bias is at most {tiny(unbiased)}. The first token meets no wrong "
        f"state, and still has a median of {median(first_reward):.2f} of the bias of Token-IS; with the advantage of "
        f"pi at most {tiny(largest(first_critic))}. Median share of |bias|: states {median(states):.2f}, returns "
        f"{median(returns):.2f}. The proved bound fails in {proved} of {NUMBER} worlds.",
    )


def _surrogates() -> Evidence:
    of_naive = of_token = moved_naive = moved_token = apart = 0.0
    for world in worlds():
        s, mu, reward = world.sequences, world.sequences.mu, world.reward
        logits = world.policies.log_pi.clone().requires_grad_()
        log_pi = log_prob(world, logits)
        (likelihood,) = torch.autograd.grad(mu @ (reward * log_pi), logits)
        (cross_entropy,) = torch.autograd.grad(mu @ log_prob(world, logits), logits)
        ratios = torch.where(s.mask, (token_log_prob(world, logits) - s.log_mu).exp(), 0)
        (surrogate,) = torch.autograd.grad(mu @ (reward * ratios.sum(-1)), logits)
        plain, token = exact(world, naive()).mean, exact(world, token_is()).mean
        of_naive, of_token = max(of_naive, relative(plain, likelihood)), max(of_token, relative(token, surrogate))
        apart = max(apart, relative(plain, token))
        less = Reward(1.0)
        shift = plain - exact(world, naive(), less).mean
        moved_naive = max(moved_naive, float((shift - cross_entropy.flatten()).norm()))
        moved_token = max(moved_token, float((token - exact(world, token_is(), less).mean).norm()))
    return Evidence(
        max(of_naive, of_token) < 1e-11 and apart > 0.1 and max(moved_naive, moved_token) < 1e-11,
        f"In {NUMBER} worlds E[Naive] is the gradient of E_mu[R log pi] (to {tiny(of_naive)}), E[Token-IS] that of "
        f"E_mu[R sum_t r_t] (to {tiny(of_token)}), and they differ by up to {apart:.1f}x. Taking 1 off R moves the "
        f"mean of Naive by exactly grad E_mu log pi = -grad KL(mu||pi) (to {tiny(moved_naive)}) and that of Token-IS "
        f"by {tiny(moved_token)}.",
    )


def _which_advantage() -> Evidence:
    same, apart, less_biased = 0.0, 0.0, 0
    for world in worlds():
        raw, of_mu, of_pi = (exact(world, token_is(), a) for a in (None, Advantage("mu"), Advantage("pi")))
        same, apart = max(same, relative(of_mu.mean, raw.mean)), max(apart, relative(of_pi.mean, raw.mean))
        less_biased += of_pi.bias_norm < raw.bias_norm
    return Evidence(
        same < 1e-11 and apart > 0.01,
        f"{NUMBER} worlds: the mean of Token-IS with R and with the advantage of mu agree to {tiny(same)}; with the "
        f"advantage of pi it differs by up to {apart:.2f}x and is less biased in {less_biased}.",
    )


TOKEN_BIAS = (
    Claim(
        number=17,
        title="The same bias for Token-IS",
        post="The bound carries over to Token-IS, because the bias comes from the sampling distribution.",
        verdict="NON-SEQUITUR",
        why="The conclusion is true, the reason is not: Seq-IS is sampled from mu as well. And states are half of "
        "the cause: with the reward, or the advantage of mu, returns are those of mu too.",
        sharper="|bias of Token-IS| <= 2 half_range K_s sum_t E_mu (r_t - r)_+ <= 2 half_range K_s T (T - 1) Delta "
        "(for one length), with a proof; the middle can be estimated from logs.",
        use="`reweigh.bounds.token_is_bias_by_hybrids` with the `hybrid` of the statistics; "
        "`reweigh.lab.token_bias` splits the bias. A critic for pi removes the half that is due to returns.",
        evidence=_same_cause,
    ),
    Claim(
        number=18,
        title="One surrogate objective for both",
        post="Naive and Token-IS optimise the same biased surrogate L_mu.",
        verdict="WRONG",
        why="Naive follows E_mu[R log pi], a reward-weighted likelihood, and Token-IS E_mu[R sum_t r_t]. They agree "
        "at pi = mu only.",
        sharper="Token-IS does not change in the mean when a constant is added to R. Naive moves by c E_mu S = -c "
        "grad KL(mu||pi): a positive constant pulls pi towards mu. So do Seq-TIS, Seq-MIS, Geo-RS and SNIS to the "
        "extent that they do not correct.",
        use="Take a baseline off the reward with Naive and with truncated sequence weights: it is a part of the "
        "bias, and not only of the variance.",
        evidence=_surrogates,
    ),
    Claim(
        number=19,
        title="Which advantage",
        post="Token-IS multiplies by A(s_t, y_t); Naive by R.",
        verdict="OK+",
        why="It is not said of which policy. Rewards less a group mean are advantages of mu, and so is the "
        "analysis; with the advantage of pi, half of the cause of the bias is gone.",
        sharper="E[Token-IS with R] = E[Token-IS with A of mu], exactly. Naive with R and Token-IS with A have the "
        "same mean on-policy only.",
        use='`reweigh.lab.Advantage("pi")` shows what a critic for pi would be worth.',
        evidence=_which_advantage,
    ),
)
