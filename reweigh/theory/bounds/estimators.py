"""Bounds on what estimators do: weights of whole sequences, what corrects each token by itself, or nothing at all."""

import math
from collections.abc import Iterable
from typing import Literal

from reweigh.theory.bounds.divergence import least, over, positive, series

# Throughout f = R times the score of a sequence and K = f_max its largest norm, K_s = score_max is the largest norm of
# the score of a token, Delta = state_tv_max the largest total variation of a state, and T = length the most tokens of a
# sequence. Adding a constant to the reward leaves the bias of Token-IS alone, so what counts there is half the reward's
# range, (max - min) / 2, which is at most the largest |R|.


def seq_is_variance(f_max: float, m2: float, gradient_norm: float) -> float:
    """`Var(Seq-IS) <= K^2 E_mu r^2 - |g|^2`, of one sequence.

    Corrects `post_seq_is_variance`, where the reward is not squared: K is at most R_max K_S.

    Args:
        f_max: K.
        m2: `E_mu r^2`, 1 + chi2 where mu covers pi.
        gradient_norm: |g|.

    Assumes: mu covers pi wherever f is not 0, and logged log-probs are of the law that sampled.

    Source: second moment less the squared mean.
    """
    positive("seq_is_variance", f_max=f_max, m2=m2, gradient_norm=gradient_norm)
    return f_max**2 * m2 - gradient_norm**2


def seq_is_mse(f_max: float, m2: float, n: float = 1) -> float:
    """`MSE(Seq-IS) <= K^2 E_mu r^2 / N`: a quarter of the post's "fundamental limit" at N = 1.

    Args:
        f_max: K.
        m2: `E_mu r^2`.
        n: N, sequences of the batch.

    Assumes: mu covers pi.

    Source: no bias, and the variance of a mean.
    """
    positive("seq_is_mse", f_max=f_max, m2=m2)
    return f_max**2 * m2 / least("seq_is_mse", "n", n, 1)


def unsupported_bias(f_max: float, unsupported: float) -> float:
    """`|bias| <= K pi(mu = 0)`: of Seq-IS under top-p, top-k or min-p sampling; no weight can remove it.

    Args:
        f_max: K.
        unsupported: `1 - E_mu r`, the mass that pi gives to sequences that mu never samples.

    Assumes: log-probs of mu are those of the truncated, renormalised law.

    Source: the sum over what is never sampled; ours.
    """
    positive("unsupported_bias", f_max=f_max, unsupported=unsupported)
    return f_max * unsupported


def geo_bias(f_max: float, distance: float) -> float:
    """`|bias of Geo-RS| <= K E_mu |1{band} - r|`, attained by some f.

    A band on the geometric ratio does not bound the sequence ratio: what is kept is not corrected, so a wide band has
    the bias of Naive, and a narrow one drops all.

    Args:
        f_max: K.
        distance: `E_mu |1{band} - r| = E_mu |1 - r| 1{band} + P_pi(not in the band)`.

    Assumes: mu covers pi; kept sequences weigh 1, and the mean is not divided by the share that was kept.

    Source: bias is `E_mu (1{band} - r) f`; ours.
    """
    positive("geo_bias", f_max=f_max, distance=distance)
    return f_max * distance


def snis_mse(f_max: float, m2: float, n: float) -> float:
    """`MSE(SNIS) <= min(4 K^2 E_mu r^2 / N, 4 K^2)`.

    Args:
        f_max: K.
        m2: `E_mu r^2`.
        n: N, sequences of the batch.

    Assumes: mu covers pi.

    Source: Agapiou, Papaspiliopoulos, Sanz-Alonso, Stuart (2017), theorem 2.1, for one function; as its proof splits
        the error in two means that hold for vectors, so does it. Both estimate and target are means of f.
    """
    positive("snis_mse", f_max=f_max, m2=m2)
    return 4 * f_max**2 * min(m2 / least("snis_mse", "n", n, 1), 1.0)


def snis_bias(f_max: float, m2: float, n: float) -> float:
    """`|bias of SNIS| <= min(2 K sqrt(m2 (m2 - 1)) / N, 2 K sqrt(m2 / N), 2 K)`: 0 where the policies are equal.

    Over six times below the 12 K m2 / N that is usually quoted.

    Args:
        f_max: K.
        m2: `E_mu r^2`, at least 1.
        n: N, sequences of the batch.

    Assumes: mu covers pi.

    Source: bias is `-E (SNIS - g) (mean r - 1)`, so at most sqrt(MSE) sqrt(chi2 / N), and sqrt(MSE); ours.
    """
    root = math.sqrt(snis_mse(f_max, m2, n))
    return root * min(1.0, math.sqrt(max(0.0, least("snis_bias", "m2", m2, 1 - 1e-9) - 1) / n))


def minimax_mse(f_max: float, pi_mass: float, mu_mass: float, n: float) -> float:
    """`sup_f MSE >= K^2 pi(A)^2 (1 - mu(A))^N` for *every* estimator and any event A: what no weight can beat.

    If a batch misses A, then f = K and f = -K on A look alike. The best event is {r > C}; over all C:
    `LogNormalRatio.minimax`, `FiniteRatio.minimax`. Seq-TIS at the balance cap is within 1.4 of it under log-normal
    ratios with a variance of 9 of their log.

    Args:
        f_max: K.
        pi_mass: pi(A).
        mu_mass: mu(A).
        n: N, sequences of the batch.

    Assumes: nothing but |f| <= K about f.

    Source: two-point method (Le Cam); ours.
    """
    positive("minimax_mse", f_max=f_max, pi_mass=pi_mass, mu_mass=mu_mass)
    return f_max**2 * pi_mass**2 * max(0.0, 1 - mu_mass) ** least("minimax_mse", "n", n, 1)


def tis_bias(f_max: float, excess: float) -> float:
    """`|bias of Seq-TIS| <= K E_mu (r - C)_+`, attained by some f.

    Replaces `post_tis_bias`, which is at least eight times this.

    Args:
        f_max: K.
        excess: `E_mu (r - C)_+`; from divergences: `excess_at_most`; from a sample: `reweigh.stats.summary.excess`.

    Assumes: mu covers pi.

    Source: bias is `E_mu (min(r, C) - r) f`.
    """
    positive("tis_bias", f_max=f_max, excess=excess)
    return f_max * excess


def tis_second_moment(f_max: float, min2: float) -> float:
    """`E |Seq-TIS|^2 <= K^2 E_mu min(r, C)^2`, attained by some f.

    Args:
        f_max: K.
        min2: `E_mu min(r, C)^2`; from divergences: `min2_at_most`.

    Assumes: nothing.

    Source: |f| <= K.
    """
    positive("tis_second_moment", f_max=f_max, min2=min2)
    return f_max**2 * min2


def capped_second_moment(cap: float, second_pi: float) -> float:
    """`E |w f|^2 <= C E_pi |f|^2` for w = min(r, C) and for w = r 1{r <= C}.

    Linear in C, and in T, since `E_pi |f|^2` is: `on_policy_second_moment`. The post has K^2 C^2.

    Args:
        cap: C.
        second_pi: `E_pi |f|^2`.

    Assumes: nothing.

    Source: `w^2 <= C r`; ours.
    """
    positive("capped_second_moment", cap=cap, second_pi=second_pi)
    return cap * second_pi


def tis_mse(f_max: float, excess: float, min2: float, n: float = 1) -> float:
    """`MSE(Seq-TIS) <= K^2 ((E_mu (r - C)_+)^2 + E_mu min(r, C)^2 / N)`.

    Its minimum over C is at `reweigh.caps.Balance`, and no other function of the ratio has a smaller worst case.

    Args:
        f_max: K.
        excess: `E_mu (r - C)_+`.
        min2: `E_mu min(r, C)^2`.
        n: N, sequences of the batch.

    Assumes: mu covers pi.

    Source: `tis_bias` and `tis_second_moment`; ours.
    """
    return tis_bias(f_max, excess) ** 2 + tis_second_moment(f_max, min2) / least("tis_mse", "n", n, 1)


def tis_mse_cubic(f_max: float, m2: float, n: float = 1) -> float:
    """`MSE(Seq-TIS at the cubic cap) <= 3/4 K^2 (E_mu r^2 / N)^(2/3)`.

    Below the bound of Seq-IS only while `N < 64/27 E_mu r^2`: with more sequences than that, do not truncate.

    Args:
        f_max: K.
        m2: `E_mu r^2`.
        n: N, sequences of the batch.

    Assumes: mu covers pi; the cap is `reweigh.caps.Cubic`.

    Source: `tis_mse` with `excess <= m2 / (4 C)` and `min2 <= C`; ours.
    """
    positive("tis_mse_cubic", f_max=f_max, m2=m2)
    return 0.75 * f_max**2 * (m2 / least("tis_mse_cubic", "n", n, 1)) ** (2 / 3)


def tis_mse_at_one(f_max: float, tv: float, n: float = 1) -> float:
    """`MSE(Seq-TIS at C = 1) <= K^2 (TV^2 + 1 / N)`: never exponential in the length.

    Args:
        f_max: K.
        tv: total variation of sequences.
        n: N, sequences of the batch.

    Assumes: mu covers pi.

    Source: `tis_mse` at C = 1, where the excess is the total variation; ours.
    """
    return tis_mse(f_max, tv, 1.0, n)


def mis_bias(f_max: float, lost: float) -> float:
    """`|bias of Seq-MIS| <= K P_pi(r > C)`, attained by some f; of any estimator that drops units and else weighs by r.

    Args:
        f_max: K.
        lost: mass of pi on what is dropped; for Seq-MIS from divergences: `lost_at_most`.

    Assumes: mu covers pi.

    Source: bias is `-E_pi f 1{dropped}`.
    """
    positive("mis_bias", f_max=f_max, lost=lost)
    return f_max * lost


def mis_mse(f_max: float, lost: float, mis_m2: float, n: float = 1) -> float:
    """`MSE(Seq-MIS) <= K^2 (P_pi(r > C)^2 + E_mu r^2 1{r <= C} / N)`.

    Its minimum over C is at `reweigh.caps.mis_balance_cap`, and never below that of truncation.

    Args:
        f_max: K.
        lost: `P_pi(r > C)`.
        mis_m2: `E_mu r^2 1{r <= C}`.
        n: N, sequences of the batch.

    Assumes: mu covers pi.

    Source: `mis_bias` and |f| <= K; ours.
    """
    positive("mis_mse", f_max=f_max, lost=lost, mis_m2=mis_m2)
    return mis_bias(f_max, lost) ** 2 + f_max**2 * mis_m2 / least("mis_mse", "n", n, 1)


def artefacts_for_mis(cap: float) -> float:
    """`C / (2 (C - 1))`: share of artefacts among ratios over C above which rejecting has less bias than truncating.

    An artefact is a ratio over C whose true weight is about 1. Over 1, so never, for C below 2; 3/4 at C = 3.

    Args:
        cap: C, over 0; infinite at 1 or below.

    Assumes: artefacts weigh 1, the others what their ratio says.

    Source: bias of TIS `P ((1 - share) e + share (C - 1))`, of MIS `P ((1 - share) (e + C) + share)`; ours.
    """
    return cap / (2 * (cap - 1)) if over("artefacts_for_mis", "cap", cap, 0) > 1 else math.inf


def tis_or_mis(artefacts: float, cap: float) -> Literal["tis", "mis"]:
    """`mis` if `artefacts > C / (2 (C - 1))`, else `tis`: which of the two has less bias.

    Args:
        artefacts: share of the ratios over C whose true weight is about 1, in [0, 1].
        cap: C, over 0.

    Assumes: as `artefacts_for_mis`.

    Source: `artefacts_for_mis`.
    """
    if not 0 <= artefacts <= 1:
        raise ValueError(f"tis_or_mis: artefacts must be a share in [0, 1], got {artefacts}")
    return "mis" if artefacts > artefacts_for_mis(cap) else "tis"


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
