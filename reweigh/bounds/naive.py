"""Bounds of the bias and second moment of the estimator that corrects nothing."""

import math

from reweigh.bounds.check import positive

# K_s = score_max is the largest norm of the score of a token, Delta = state_tv_max the largest total variation of a
# state, T = length the most tokens of a sequence, and f = R times the score of a sequence.


def gradient_norm(half_range: float, score_max: float, length: float) -> float:
    """`|g| <= half_range K_s sqrt(T)`.

    Args:
        half_range: of the reward.
        score_max: K_s.
        length: T.

    Assumes: nothing.

    Source: scores are martingale differences under pi; ours.
    """
    return math.sqrt(on_policy_second_moment(half_range, score_max, length))


def on_policy_second_moment(reward_max: float, score_max: float, length: float) -> float:
    """`E_pi |R S|^2 <= R_max^2 K_s^2 T`: linear in the length, not quadratic.

    Args:
        reward_max: largest |R|.
        score_max: K_s.
        length: T.

    Assumes: nothing.

    Source: scores are martingale differences under pi; ours.
    """
    positive("on_policy_second_moment", reward_max=reward_max, score_max=score_max, length=length)
    return (reward_max * score_max) ** 2 * length


def naive_second_moment(reward_max: float, score_max: float, length: float, state_tv_max: float) -> float:
    """`E_mu |R S|^2 <= R_max^2 K_s^2 (sqrt(T) + 2 T Delta)^2`: of order T + T^2 Delta^2.

    Corrects the T^2 of `post_naive_second_moment`.

    Args:
        reward_max: largest |R|.
        score_max: K_s.
        length: T.
        state_tv_max: Delta.

    Assumes: nothing.

    Source: Doob's decomposition of the score under mu: a martingale, and a drift of at most 2 Delta K_s a token; ours.
    """
    positive("naive_second_moment", reward_max=reward_max, score_max=score_max, length=length)
    positive("naive_second_moment", state_tv_max=state_tv_max)
    return (reward_max * score_max * (math.sqrt(length) + 2 * length * state_tv_max)) ** 2


def naive_bias_by_hellinger(hellinger2: float, second_mu: float, second_pi: float) -> float:
    """`|bias of Naive| <= 2 H sqrt(E_mu |f|^2 + E_pi |f|^2)`: as a rule the best of the four.

    Args:
        hellinger2: `H^2 = 1 - E_mu sqrt(r)` of sequences.
        second_mu: `E_mu |f|^2`.
        second_pi: `E_pi |f|^2`.

    Assumes: nothing.

    Source: `mu - pi = (sqrt mu - sqrt pi)(sqrt mu + sqrt pi)` and Cauchy-Schwarz; ours.
    """
    positive("naive_bias_by_hellinger", hellinger2=hellinger2, second_mu=second_mu, second_pi=second_pi)
    return 2 * math.sqrt(hellinger2 * (second_mu + second_pi))


def naive_bias_by_chi2(chi2: float, second_mu: float) -> float:
    """`|bias of Naive| <= sqrt(chi2 E_mu |f|^2)`.

    Args:
        chi2: of sequences.
        second_mu: `E_mu |f|^2`.

    Assumes: mu covers pi.

    Source: Cauchy-Schwarz for `E_mu (1 - r) f`; ours.
    """
    positive("naive_bias_by_chi2", chi2=chi2, second_mu=second_mu)
    return math.sqrt(chi2 * second_mu)


def naive_bias_by_tv(tv: float, second_mu: float, second_pi: float) -> float:
    """`|bias of Naive| <= sqrt(2 TV (E_mu |f|^2 + E_pi |f|^2))`.

    Args:
        tv: total variation of sequences.
        second_mu: `E_mu |f|^2`.
        second_pi: `E_pi |f|^2`.

    Assumes: nothing.

    Source: Cauchy-Schwarz with |mu - pi| as weight; ours.
    """
    positive("naive_bias_by_tv", tv=tv, second_mu=second_mu, second_pi=second_pi)
    return math.sqrt(2 * tv * (second_mu + second_pi))


def naive_bias_by_concentration(
    reward_max: float, score_max: float, length: float, state_tv_max: float, tv: float
) -> float:
    """`|bias of Naive| <= R_max (2 p (x + v / x) + 2 p T Delta K_s)`, with p = TV: of order T^1.5 Delta + (T Delta)^2.

    Here `v = T K_s^2 (1 + 2 Delta)^2` and `x = sqrt(2 v ln(2 / p))`. It needs no moment of f.

    Args:
        reward_max: largest |R|.
        score_max: K_s.
        length: T.
        state_tv_max: Delta.
        tv: p, total variation of sequences; anything at least it and at most 1 does, such as `tv_by_coupling`.

    Assumes: nothing.

    Source: Pinelis (1994) for the martingale of scores, and the most that mass p can carry of its tail; ours.
    """
    positive("naive_bias_by_concentration", reward_max=reward_max, score_max=score_max, length=length)
    positive("naive_bias_by_concentration", state_tv_max=state_tv_max, tv=tv)
    p, v = min(tv, 1.0), length * (score_max * (1 + 2 * state_tv_max)) ** 2
    if p == 0 or v == 0:
        return 0.0
    x = math.sqrt(2 * v * math.log(2 / p))
    return reward_max * 2 * p * (x + v / x + length * state_tv_max * score_max)
