"""Bounds for sequence weights without a cap, for the band on the geometric ratio, and for any estimator at all."""

import math

from reweigh.bounds.check import least, positive

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
