"""Bounds of how far the surrogate objective of token ratios is from the true one: the TRM family, halved."""

import math
from collections.abc import Iterable

from reweigh.bounds.check import least, positive, series

# The surrogate is E_mu R (1 + sum_t (r_t - 1)); its error, |J(pi) - J(mu) - E_mu R sum_t (r_t - 1)|, stays when
# a constant is added to R. So each bound has half the range of the reward as a factor, 1/2 for rewards in [0, 1]; as
# published, for rewards in [0, 1], that factor is 1. A bound of the error does not bound its gradient: for that see
# `reweigh.bounds.token`.


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
