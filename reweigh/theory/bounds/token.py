"""Bounds on what corrects each token by itself, or nothing at all."""

import math
from collections.abc import Iterable

from reweigh.theory.bounds.divergence import least, positive, series

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


# K_s = score_max is the largest norm of the score of a token, Delta = state_tv_max the largest total variation of a
# state, T = length the most tokens of a sequence. Adding a constant to the reward leaves these biases alone, so what
# counts is half its range, (max - min) / 2, which is at most the largest |R|.


def token_is_bias(half_range: float, score_max: float, length: float, state_tv_max: float) -> float:
    """`|bias of Token-IS| <= 2 half_range K_s T (T - 1) Delta`: the proof that the post's claim lacks.

    Args:
        half_range: of the reward.
        score_max: K_s.
        length: T.
        state_tv_max: Delta.

    Assumes: mu covers pi; the advantage is the reward of the whole sequence, less any constant, or A of mu.

    Source: bias is `sum_t E_mu r_t (1 - r_others) (R - c) s_t`; ours.
    """
    tokens = least("token_is_bias", "length", length, 1)
    return token_is_bias_by_hybrids(half_range, score_max, [tokens * (tokens - 1) * state_tv_max])


def token_is_bias_by_kl(half_range: float, score_max: float, length: float, state_kl_max: float) -> float:
    """`|bias of Token-IS| <= half_range K_s T sqrt(2 (T - 1) KL_max)`: smaller where many tokens share the gap.

    Args:
        half_range: of the reward.
        score_max: K_s.
        length: T.
        state_kl_max: largest KL(mu||pi) of a state, nats.

    Assumes: as `token_is_bias`.

    Source: `token_is_bias_by_hybrids` and Pinsker's inequality; ours.
    """
    positive("token_is_bias_by_kl", half_range=half_range, score_max=score_max, state_kl_max=state_kl_max)
    tokens = least("token_is_bias_by_kl", "length", length, 1)
    return half_range * score_max * tokens * math.sqrt(2 * (tokens - 1) * state_kl_max)


def token_is_bias_by_hybrids(
    half_range: float, score_max: float, hybrid: Iterable[float], longer: float = 0.0
) -> float:
    """`|bias of Token-IS| <= half_range K_s (2 sum_t E_mu (r_t - r)_+ + E_pi T - E_mu T)`, which logs can estimate.

    r_t is the ratio of token t and r that of the sequence. With one length for all, `E_mu (r_t - r)_+` is the total
    variation between pi and the law that samples token t from pi and all others from mu.

    Args:
        half_range: of the reward.
        score_max: K_s.
        hybrid: `E_mu (r_t - r)_+` for each t up to the end of each sequence, or their sum over t as the one entry;
            `RatioStats` keeps that as `hybrid`.
        longer: mean length under pi less that under mu, `E_mu (r - 1) T`, tokens. It can be left at 0 if the sums go
            on to the longest length, with r_t = 1 after the end.

    Assumes: as `token_is_bias`.

    Source: as `token_is_bias`, before the worst case is taken: the mean of |r_t - r| at live tokens; ours.
    """
    positive("token_is_bias_by_hybrids", half_range=half_range, score_max=score_max)
    return (
        half_range * score_max * max(0.0, 2 * math.fsum(series("token_is_bias_by_hybrids", "hybrid", hybrid)) + longer)
    )


def token_is_bias_by_martingale(half_range: float, gap2: float) -> float:
    """`|bias of Token-IS| <= half_range sqrt(E_mu |sum_t r_t s_t - r S|^2)`: of order T sqrt(chi2 of a state).

    Args:
        half_range: of the reward.
        gap2: `E_mu |sum_t r_t s_t - r S|^2`.

    Assumes: as `token_is_bias`.

    Source: both sums have mean 0 under mu, so any constant can be taken off R; Cauchy-Schwarz; ours.
    """
    positive("token_is_bias_by_martingale", half_range=half_range, gap2=gap2)
    return half_range * math.sqrt(gap2)


def state_bias(visit_tv: Iterable[float], signal: Iterable[float]) -> float:
    """`|bias of Token-IS with A of pi| <= sum_t 2 TV(d_t^mu, d_t^pi) sup |G_t|`: mu meets other states.

    With `G(s) = E_pi A(s, .) score`, at most half_range K_s, the worst case is `half_range K_s T (T - 1) Delta`: half
    of `token_is_bias`, whose other half is that A of mu values what mu would do next.

    Args:
        visit_tv: for each t, half the summed distance of the probabilities that the state at t is this or that one; of
            states that a token follows.
        signal: for each t, largest norm of G at a state of t.

    Assumes: mu covers pi; A is the advantage of pi.

    Source: difference of two means; ours.
    """
    visits, norms = series("state_bias", "visit_tv", visit_tv), series("state_bias", "signal", signal)
    if len(visits) != len(norms):
        raise ValueError(f"state_bias: one entry a step is needed of both, got {len(visits)} and {len(norms)}")
    return 2 * math.fsum(a * b for a, b in zip(visits, norms, strict=True))


def token_is_second_moment(reward_max: float, score_max: float, length: float, weight_m2: float) -> float:
    """`E |R sum_t r_t s_t|^2 <= R_max^2 K_s^2 T (1 + chi2_max)`: linear in the length.

    Corrects the T^2 of `post_token_second_moment` for the reward of the whole sequence.

    Args:
        reward_max: largest |R|.
        score_max: K_s.
        length: T.
        weight_m2: bound of `E_mu r_t^2` at every state: 1 + chi2_max.

    Assumes: mu covers pi; the advantage is the reward of the whole sequence, less any constant.

    Source: `r_t s_t` are martingale differences under mu; ours.
    """
    return token_second_moment(reward_max, score_max, length, weight_m2, 0.0)


def token_tis_second_moment(
    reward_max: float, score_max: float, length: float, weight_m2: float, state_tv_max: float, cap: float
) -> float:
    """`E |R sum_t min(r_t, C) s_t|^2 <= R_max^2 K_s^2 (sqrt(T min(C, E r_t^2)) + T Delta min(1, 2 C if C < 1))^2`.

    Args:
        reward_max: largest |R|.
        score_max: K_s.
        length: T.
        weight_m2: bound of `E_mu r_t^2` at every state: 1 + chi2_max.
        state_tv_max: Delta.
        cap: C.

    Assumes: mu covers pi; the advantage is the reward of the whole sequence, less any constant.

    Source: `min(r, C)^2 <= C r`, and a drift of `E (r_t - C)_+ K_s` a token at most; ours.
    """
    positive("token_tis_second_moment", cap=cap, weight_m2=weight_m2, state_tv_max=state_tv_max)
    drift = state_tv_max * (1 if cap >= 1 else 2 * cap)
    return token_second_moment(reward_max, score_max, length, min(cap, weight_m2), drift)


def token_second_moment(signal_max: float, score_max: float, length: float, weight_m2: float, drift: float) -> float:
    """`E |sum_t X_t|^2 <= X_max^2 K_s^2 (sqrt(T E w^2) + T drift)^2`: of any sum of weighted scores.

    For Token-IS with an advantage of each token, `drift = sup |E_pi A s| / (A_max K_s)`, at most 1: then T^2, but free
    of the mismatch, which only multiplies the part that is linear in T.

    Args:
        signal_max: X_max, largest |reward or advantage| that multiplies a score.
        score_max: K_s.
        length: T.
        weight_m2: bound of `E_mu w_t^2` at every state.
        drift: largest norm of `E_mu X_t` at a state, over X_max K_s.

    Assumes: for a reward of the whole sequence, that it is a factor of the sum as a whole.

    Source: Doob's decomposition under mu; ours.
    """
    positive("token_second_moment", signal_max=signal_max, score_max=score_max, length=length)
    positive("token_second_moment", weight_m2=weight_m2, drift=drift)
    return (signal_max * score_max * (math.sqrt(length * weight_m2) + length * drift)) ** 2


def truncation_bias(signal_max: float, score_max: float, excess: Iterable[float]) -> float:
    """`|E truncated - E not| <= X_max K_s sum_t E_mu (w_t - C)_+`: what a cap on token or prefix ratios adds.

    For Token-TIS, the post's "bias on bias": linear in T, and it can as well take away from the bias that is there. For
    prefix ratios with A of pi it is all the bias; each entry is then at most `excess_at_most` of the prefix.

    Args:
        signal_max: largest |reward or advantage| that multiplies a score.
        score_max: K_s.
        excess: `E_mu (w_t - C)_+` for each t, or their sum as the one entry.

    Assumes: nothing.

    Source: `w - min(w, C) = (w - C)_+`.
    """
    positive("truncation_bias", signal_max=signal_max, score_max=score_max)
    return signal_max * score_max * math.fsum(series("truncation_bias", "excess", excess))
