"""Claims 12 to 19: variance and bias of the estimators that correct nothing, or each token by itself."""

from statistics import median

import torch

from reweigh import bounds as b
from reweigh.lab.advantages import Advantage, Reward
from reweigh.lab.claims.claim import Claim, Evidence
from reweigh.lab.claims.material import (
    NUMBER,
    broken,
    exponent,
    largest,
    log_prob,
    relative,
    slack,
    tiny,
    token_log_prob,
    worlds,
)
from reweigh.lab.exact import exact
from reweigh.lab.splits import token_bias
from reweigh.lab.worst_case import WorstCase, worst_case
from reweigh.named import naive, seq_is, token_is

LENGTHS = (64, 256)
# A gap that many tokens share, and one in a rare token.
SMOOTH = torch.tensor([[0.5, 0.3, 0.2], [0.495, 0.3, 0.205]], dtype=torch.float64)
RARE = torch.tensor([[0.5994, 0.3996, 0.001], [0.599994, 0.399996, 0.00001]], dtype=torch.float64)
WIDE = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)


def _at(policies: torch.Tensor, which: str = "naive") -> tuple[WorstCase, WorstCase]:
    estimator = naive() if which == "naive" else token_is()
    first, second = (worst_case(policies[0], policies[1], t, estimator) for t in LENGTHS)
    return first, second


def _second_power(policies: torch.Tensor, which: str = "naive") -> float:
    first, second = _at(policies, which)
    return exponent((first.second_moment, second.second_moment), LENGTHS)


def _bias_power(policies: torch.Tensor, which: str = "naive") -> float:
    first, second = _at(policies, which)
    return exponent((first.bias, second.bias), LENGTHS)


def _naive_variance() -> Evidence:
    near, far = _second_power(SMOOTH), _second_power(WIDE)
    sharp, post = "naive 2nd<=Rmax^2Ks^2(sqrtT(1+2D)+2TD)^2", "naive 2nd<=Rmax^2 Ks^2 T^2"
    on = broken("on-policy 2nd: F_pi<=Rmax^2 Ks^2 T")
    return Evidence(
        near < 1.1 and far > 1.8 and broken(post) + broken(sharp) + on == 0,
        f"Worst |R| <= 1, iid tokens, T = 64 to 256: the second moment grows as T^{near:.2f} at Delta = .005, and as "
        f"T^{far:.2f} at Delta = .2, so it does depend on the mismatch. All bounds hold in {NUMBER} worlds; the "
        f"post's has a median slack of {slack(post):.1f}, that of E_pi |f|^2 <= R_max^2 K_s^2 T "
        f"{slack('on-policy 2nd: F_pi<=Rmax^2 Ks^2 T'):.1f}.",
    )


def _token_variance() -> Evidence:
    near, far = _second_power(SMOOTH, "token"), _second_power(WIDE, "token")
    post, sharp = "tokIS_Amu 2nd<=T^2 A^2Ks^2(1+chi2max)", "tokIS_R 2nd<=Rmax^2Ks^2 T(1+chi2max)"
    return Evidence(
        abs(near - 1) < 0.01 and abs(far - 1) < 0.01 and broken(post) + broken(sharp) == 0,
        f"Worst |R| <= 1, iid tokens, T = 64 to 256: T^{near:.3f} at Delta = .005 and T^{far:.3f} at Delta = .2. In "
        f"{NUMBER} worlds both bounds hold; median slack {slack(post):.1f} for the post's, {slack(sharp):.1f} for "
        "the linear one.",
    )


def _naive_bias() -> Evidence:
    post, best = "naive bias<=2K TV", "naive bias<=2H sqrt(Fmu+Fpi)"
    return Evidence(
        broken(post) + broken(best) == 0,
        f"Holds in all of {NUMBER} worlds, median slack {slack(post):.1f}; by Hellinger {slack(best):.1f}.",
    )


def _hybrid() -> Evidence:
    names = {
        "sum of E_mu TV(s_t)": "TV<=sum E_dmu TV_t",
        "T Delta": "TV<=T*Delta_max",
        "1 - (1 - Delta)^T": "TV<=1-(1-Delta)^T",
        "Hellinger": "TV<=sqrt(h2(2-h2))",
        "Pinsker": "TV<=sqrt(KL(mu|pi)/2)",
        "sqrt(chi2) / 2": "TV<=sqrt(chi2)/2",
    }
    failed = sum(broken(n) for n in names.values())
    said = ", ".join(f"{short} {slack(n):.2f}" for short, n in names.items())
    return Evidence(
        failed == 0 and slack("TV<=sqrt(h2(2-h2))") < slack("TV<=sum E_dmu TV_t"),
        f"{failed} failures in {NUMBER} worlds; median slack: {said}.",
    )


def _quadratic() -> Evidence:
    smooth, rare = _bias_power(SMOOTH), _bias_power(RARE)
    smooth_token, rare_token = _bias_power(SMOOTH, "token"), _bias_power(RARE, "token")
    held = broken("naive bias<=2 Rmax Ks T^2 Delta")
    first, second = _at(SMOOTH)
    score = float((torch.eye(3).double() - SMOOTH[0]).norm(dim=1).max())
    times = [b.post_quadratic_bias(1.0, score, w.length, 0.005) / w.bias for w in (first, second)]
    return Evidence(
        held == 0 and max(smooth, smooth_token) < 1.1 and max(rare, rare_token) < 1.65 and times[1] > 3 * times[0],
        f"Largest bias over all |R| <= 1, exact, T = 64 to 256: T^{smooth:.2f} (Naive) and T^{smooth_token:.2f} "
        f"(Token-IS) for a gap that tokens share, T^{rare:.2f} and T^{rare_token:.2f} for one in a rare token. The "
        f"post's bound is {times[0]:.0f} times the truth at T = 64 and {times[1]:.0f} times at T = 256; it holds in "
        f"{NUMBER} worlds ({held} failures).",
    )


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
        number=12,
        title="Variance of Naive",
        post="The variance of Naive is O(T^2), whatever the mismatch.",
        verdict="LOOSE",
        why="Scores are martingale differences under pi, so their sum has a second moment that is linear in T. "
        "Under mu they drift, by at most 2 Delta K_s a token.",
        sharper="E |R S|^2 <= R_max^2 K_s^2 (sqrt(T) + 2 T Delta)^2: O(T + T^2 Delta^2), with Delta the largest "
        "total variation of a state.",
        use="`reweigh.bounds.naive_second_moment`. Long sequences are cheaper on-policy than the table of the post "
        "says.",
        evidence=_naive_variance,
    ),
    Claim(
        number=13,
        title="Variance of Token-IS",
        post="The variance of Token-IS is O(T^2 (1 + chi2)).",
        verdict="LOOSE",
        why="True. With the reward of the whole sequence, r_t s_t are martingale differences under mu, so T will do "
        "in place of T^2.",
        sharper="E |R sum r_t s_t|^2 <= R_max^2 K_s^2 T (1 + chi2_max). With an advantage for each token the "
        "mismatch multiplies only the part that is linear in T.",
        use="`reweigh.bounds.token_is_second_moment`, `token_second_moment`.",
        evidence=_token_variance,
    ),
    Claim(
        number=14,
        title="Bias of Naive by total variation",
        post="|bias of Naive| <= 2 sup |f| TV(mu, pi).",
        verdict="OK",
        why="Holds; sup |f| is paid where the mean of |f|^2 would do.",
        sharper="|bias| <= 2 H sqrt(E_mu |f|^2 + E_pi |f|^2), with H the Hellinger distance of sequences.",
        use="`reweigh.bounds.naive_bias_by_hellinger`: H has a bounded estimator, 1 - mean sqrt(r).",
        evidence=_naive_bias,
    ),
    Claim(
        number=15,
        title="Total variation by the hybrid argument",
        post="TV <= sum_t E_mu TV(s_t) <= T Delta.",
        verdict="OK",
        why="Holds, and so do several that are closer.",
        sharper="1 - (1 - Delta)^T; sqrt(H^2 (2 - H^2)); sqrt(KL / 2) and sqrt(1 - e^-KL); sqrt(chi2) / 2.",
        use="From logs, mean (1 - r)_+ estimates TV itself: it is in [0, 1], so its interval is honest.",
        evidence=_hybrid,
    ),
    Claim(
        number=16,
        title="The bias of Naive is O(T^2 Delta)",
        post="Both factors grow linearly, so the bias grows quadratically with the length.",
        verdict="LOOSE",
        why="As an upper bound it holds. The two factors are never large together: where |f| is of order T, the "
        "policies differ by little mass. T^2 is not attained by any reward.",
        sharper="The worst case is of order T sqrt(chi2_state) for a gap that tokens share and T^1.5 Delta for one "
        "in rare events: O(T^1.5 Delta + T^2 Delta^2) by concentration.",
        use="`reweigh.bounds.naive_bias_by_concentration`, `naive_bias_by_chi2`; `reweigh.lab.worst_case` is exact.",
        evidence=_quadratic,
    ),
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
