"""Bounds between distances of two policies, and on a surrogate objective's error; the checks that all bounds share."""

import math
from collections.abc import Iterable


def positive(bound: str, **values: float) -> None:
    """Refuse a value that is negative or NaN.

    Raises:
        ValueError: with the name of the bound and of the value.
    """
    for name, value in values.items():
        least(bound, name, value, 0)


def series(bound: str, name: str, values: Iterable[float]) -> list[float]:
    """The values as a list, if none is negative or NaN.

    Raises:
        ValueError: with the name of the bound, and the place of the value.
    """
    return [least(bound, f"{name}[{t}]", x, 0) for t, x in enumerate(values)]


def least(bound: str, name: str, value: float, low: float) -> float:
    """The value, if it is at least `low`.

    Raises:
        ValueError: if it is less, or NaN.
    """
    if not value >= low:
        raise ValueError(f"{bound}: {name} must be >= {low:g}, got {value}")
    return value


def over(bound: str, name: str, value: float, low: float) -> float:
    """The value, if it is over `low`.

    Raises:
        ValueError: if it is not, or NaN.
    """
    if not value > low:
        raise ValueError(f"{bound}: {name} must be > {low:g}, got {value}")
    return value


def tv_by_states(state_tv: Iterable[float]) -> float:
    """`TV <= sum_t E_mu TV(s_t)`: total variation of sequences from that of the states that mu visits.

    Args:
        state_tv: for each t, the mean total variation of the state at t, over sequences of mu; 0 after their end.

    Assumes: nothing.

    Source: hybrid argument; Li and Liu (2025), Part 2, Analysis 2.
    """
    return math.fsum(series("tv_by_states", "state_tv", state_tv))


def tv_by_coupling(state_tv_max: float, length: float) -> float:
    """`TV <= 1 - (1 - Delta)^T`.

    Args:
        state_tv_max: Delta, largest total variation of a state, at most 1.
        length: T, most tokens of a sequence.

    Assumes: nothing.

    Source: the two policies can be made to agree on each token with probability 1 - Delta; ours.
    """
    positive("tv_by_coupling", state_tv_max=state_tv_max, length=length)
    return 1 - (1 - min(state_tv_max, 1)) ** length


def tv_by_kl(kl: float) -> float:
    """`TV <= min(sqrt(KL / 2), sqrt(1 - e^-KL))`.

    The first is the smaller one up to a KL of 1.6; the second is never over 1.

    Args:
        kl: KL of either direction, nats.

    Assumes: nothing.

    Source: Pinsker (1964); Bretagnolle and Huber (1979).
    """
    positive("tv_by_kl", kl=kl)
    return min(math.sqrt(kl / 2), math.sqrt(-math.expm1(-kl)))


def tv_by_chi2(chi2: float) -> float:
    """`TV <= sqrt(chi2) / 2`; read the other way, `chi2 >= 4 TV^2`.

    Args:
        chi2: of pi from mu.

    Assumes: mu covers pi.

    Source: Cauchy and Schwarz.
    """
    positive("tv_by_chi2", chi2=chi2)
    return math.sqrt(chi2) / 2


def tv_by_hellinger(hellinger2: float) -> float:
    """`TV <= sqrt(H^2 (2 - H^2))`.

    Args:
        hellinger2: `H^2 = 1 - E_mu sqrt(r)`, at most 1.

    Assumes: nothing.

    Source: Le Cam (1986).
    """
    positive("tv_by_hellinger", hellinger2=hellinger2)
    h = min(hellinger2, 1.0)
    return math.sqrt(h * (2 - h))


def m2_at_least(state_chi2_min: float, length: float) -> float:
    """`E_mu r^2 >= (1 + chi2_min)^T`: when the second moment of the sequence ratio does explode.

    Args:
        state_chi2_min: smallest chi-square of a state.
        length: T, *fewest* tokens of a sequence.

    Assumes: mu covers pi.

    Source: tower property; ours.
    """
    positive("m2_at_least", state_chi2_min=state_chi2_min, length=length)
    return (1 + state_chi2_min) ** length


def m2_at_least_by_kl(kl_pi_mu: float) -> float:
    """`E_mu r^2 >= e^KL(pi||mu)`: a KL that grows with the length is enough for the second moment to explode.

    Args:
        kl_pi_mu: KL(pi||mu) of sequences, nats.

    Assumes: mu covers pi.

    Source: Jensen's inequality for `E_pi r`.
    """
    return math.exp(min(least("m2_at_least_by_kl", "kl_pi_mu", kl_pi_mu, 0), 709.0))


def excess_by_moment(cap: float, power: float, moment: float) -> float:
    """`E_mu (r - C)_+ <= (a - 1)^(a - 1) / a^a E_mu r^a / C^(a - 1)`; at a = 2: `(1 + chi2) / (4 C)`.

    Args:
        cap: C, over 0.
        power: a, over 1.
        moment: `E_mu r^a`.

    Assumes: nothing.

    Source: the largest value of `(r - C)_+ / r^a`; ours.
    """
    positive("excess_by_moment", moment=moment)
    if not (cap > 0 and power > 1):
        raise ValueError(f"excess_by_moment: cap must be > 0 and power > 1, got cap={cap}, power={power}")
    factor = (power - 1) ** (power - 1) / power**power
    return factor * moment / cap ** (power - 1)


def excess_by_chi2(cap: float, chi2: float) -> float:
    """`E_mu (r - C)_+ <= chi2 / (4 (C - 1))` for C > 1: unlike the form of the second moment it vanishes with the gap.

    Args:
        cap: C; infinite at 1 or below.
        chi2: of pi from mu.

    Assumes: mu covers pi.

    Source: `(x - c)_+ <= x^2 / (4 c)` at `x = r - 1`, `c = C - 1`; ours.
    """
    positive("excess_by_chi2", cap=cap, chi2=chi2)
    return chi2 / (4 * (cap - 1)) if cap > 1 else math.inf


def excess_at_most(cap: float, chi2: float = math.inf, tv: float = 1.0) -> float:
    """`E_mu (r - C)_+ <= min((1 + chi2) / (4 C), chi2 / (4 (C - 1)) if C > 1, TV if C >= 1, 1)`.

    Args:
        cap: C, at least 0.
        chi2: of pi from mu; infinite if unknown.
        tv: total variation; 1 if unknown.

    Assumes: mu covers pi.

    Source: `excess_by_moment`, `excess_by_chi2`, and `(r - C)_+ <= (r - 1)_+`; ours.
    """
    positive("excess_at_most", cap=cap, chi2=chi2, tv=tv)
    by_moment = excess_by_moment(cap, 2, 1 + chi2) if cap > 0 else 1.0
    return min(by_moment, excess_by_chi2(cap, chi2), tv if cap >= 1 else 1.0, 1.0)


def min2_at_most(cap: float, chi2: float = math.inf) -> float:
    """`E_mu min(r, C)^2 <= min(C, 1 + chi2, C^2)`.

    Args:
        cap: C, at least 0.
        chi2: of pi from mu; infinite if unknown.

    Assumes: nothing.

    Source: `min(r, C)^2 <= C r`; ours.
    """
    positive("min2_at_most", cap=cap, chi2=chi2)
    return min(cap, 1 + chi2, cap**2)


def lost_at_most(cap: float, chi2: float = math.inf, tv: float = 1.0) -> float:
    """`P_pi(r > C) <= min((1 + chi2) / C, C / (C - 1) TV, C / (C - 1)^2 chi2, 1)`, the middle two for C > 1.

    Args:
        cap: C, at least 0.
        chi2: of pi from mu; infinite if unknown.
        tv: total variation; 1 if unknown.

    Assumes: mu covers pi.

    Source: `r 1{r > C}` is at most `r^2 / C`, `C (r - 1)_+ / (C - 1)` and `C (r - 1)^2 / (C - 1)^2`; ours.
    """
    positive("lost_at_most", cap=cap, chi2=chi2, tv=tv)
    bounds = [1.0, (1 + chi2) / cap if cap > 0 else 1.0]
    if cap > 1:
        bounds += [cap / (cap - 1) * tv, cap / (cap - 1) ** 2 * chi2]
    return min(bounds)


# The surrogate is E_mu R (1 + sum_t (r_t - 1)); its error, |J(pi) - J(mu) - E_mu R sum_t (r_t - 1)|, stays when
# a constant is added to R. So each bound has half the range of the reward as a factor, 1/2 for rewards in [0, 1]; as
# published, for rewards in [0, 1], that factor is 1. A bound of the error does not bound its gradient: for that see
# `reweigh.theory.bounds.estimators`.


def surrogate_classical(half_range: float, length: float, state_kl_max: float) -> float:
    """`half_range T (T - 1) KL_max`.

    Args:
        half_range: of the reward.
        length: T, most tokens of a sequence.
        state_kl_max: largest KL(mu||pi) of a state, nats.

    Assumes: mu covers pi.

    Source: arXiv 2512.23075, re-derived; the half-range is ours.
    """
    positive("surrogate_classical", half_range=half_range, state_kl_max=state_kl_max)
    tokens = least("surrogate_classical", "length", length, 1)
    return half_range * tokens * (tokens - 1) * state_kl_max


def surrogate_by_pinsker(half_range: float, length: float, state_kl_max: float) -> float:
    """`4/3 half_range T^1.5 KL_max`: "Pinsker-Marginal".

    Args:
        half_range: of the reward.
        length: T.
        state_kl_max: largest KL(mu||pi) of a state, nats.

    Assumes: mu covers pi.

    Source: arXiv 2512.23075, re-derived; the half-range is ours.
    """
    positive("surrogate_by_pinsker", half_range=half_range, length=length, state_kl_max=state_kl_max)
    return 4 / 3 * half_range * length**1.5 * state_kl_max


def surrogate_mixed(half_range: float, length: float, state_kl_max: float, kl: float) -> float:
    """`2 half_range T sqrt(KL_max KL_seq)`.

    Args:
        half_range: of the reward.
        length: T.
        state_kl_max: largest KL(mu||pi) of a state, nats.
        kl: KL(mu||pi) of sequences, nats.

    Assumes: mu covers pi.

    Source: arXiv 2512.23075, re-derived; the half-range is ours.
    """
    positive("surrogate_mixed", half_range=half_range, length=length, state_kl_max=state_kl_max, kl=kl)
    return 2 * half_range * length * math.sqrt(state_kl_max * kl)


def surrogate_adaptive(
    half_range: float, state_tv: Iterable[float], state_tv_max: float = 1.0, state_kl_max: float = math.inf
) -> float:
    """`4 half_range sum_t E_mu TV(s_t) min(1, (T - t) Delta, sqrt((T - t) KL_max / 2))`, t = 1 to T.

    Args:
        half_range: of the reward.
        state_tv: for each t, the mean total variation of the state at t, over sequences of mu; 0 after their end.
        state_tv_max: Delta; 1 if unknown.
        state_kl_max: largest KL(mu||pi) of a state, nats; infinite if unknown.

    Assumes: mu covers pi.

    Source: arXiv 2512.23075, re-derived; the half-range is ours.
    """
    positive("surrogate_adaptive", half_range=half_range, state_tv_max=state_tv_max, state_kl_max=state_kl_max)
    total = 0.0
    for left, tv in enumerate(reversed(series("surrogate_adaptive", "state_tv", state_tv))):
        # The last token has no future to get wrong, and 0 * inf is no number.
        total += tv * min(1.0, left * state_tv_max, math.sqrt(left * state_kl_max / 2)) if left else 0.0
    return 4 * half_range * total


def surrogate_estimable(half_range: float, future: Iterable[float]) -> float:
    """`2 half_range sum_t E_mu |r_t - 1| (1 - r_after)_+`: no worst case over states, and logged log-probs estimate it.

    Args:
        half_range: of the reward.
        future: `E_mu |r_t - 1| (1 - r_after)_+` for each t, r_after the product of the ratios after t; or their sum as
            the one entry.

    Assumes: mu covers pi.

    Source: `r - 1 = sum_t (r_t - 1) r_after`, and `E |1 - r_after| = 2 E (1 - r_after)_+` at every prefix; ours.
    """
    positive("surrogate_estimable", half_range=half_range)
    return 2 * half_range * math.fsum(series("surrogate_estimable", "future", future))
