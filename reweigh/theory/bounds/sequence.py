"""Bounds on weights of whole sequences: plain, geometric or self-normalised, truncated, or rejected."""

import math
from typing import Literal

from reweigh.theory.bounds.divergence import least, over, positive

# Throughout f = R times the score of a sequence, and K = f_max its largest norm.


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


# Throughout f = R times the score of a sequence, and K = f_max its largest norm.


def tis_bias(f_max: float, excess: float) -> float:
    """`|bias of Seq-TIS| <= K E_mu (r - C)_+`, attained by some f.

    Replaces `post_tis_bias`, which is at least eight times this.

    Args:
        f_max: K.
        excess: `E_mu (r - C)_+`; from divergences: `excess_at_most`; from a sample: `reweigh.excess`.

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

    Its minimum over C is at `reweigh.caps.balance_cap`, and no other function of the ratio has a smaller worst case.

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

    Assumes: mu covers pi; the cap is `reweigh.caps.cubic_cap`.

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
