"""Exact distances between Markov policies at lengths at which nobody can enumerate: by dynamic programming."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reweigh.lab.policies import Policies

Array = NDArray[np.float64]
MAX_CONTEXTS = 1 << 16  # rows that are gone through at every step
MAX_DENSE = 1024  # contexts up to which the growth rate's matrix is decomposed


@dataclass(frozen=True, eq=False)
class Chain:
    """Distances of sequences cut off at each length 1, 2, ..., T; all arrays are `[T]`.

    Attributes:
        renyi2: `log E_mu r^2`, nats: log(1 + chi2) where mu covers pi. As a log, since at thousands of tokens no float
            holds the number itself.
        hellinger2: squared Hellinger distance.
        kl_mu_pi: nats.
        kl_pi_mu: nats; inf where mu is truncated.
        tv_tokens: `sum_t E_mu TV(pi, mu | s_t)`: at least the total variation.
        length_mu: mean length under mu.
    """

    renyi2: Array
    hellinger2: Array
    kl_mu_pi: Array
    kl_pi_mu: Array
    tv_tokens: Array
    length_mu: Array

    @property
    def chi2(self) -> Array:
        """`e^renyi2 - 1`; inf when no float64 holds it."""
        with np.errstate(over="ignore"):
            return np.expm1(self.renyi2)

    @property
    def tv_at_most(self) -> Array:
        """The least of the bounds of the total variation: by tokens, by Hellinger, by KL."""
        h = self.hellinger2
        by_kl = np.sqrt(-np.expm1(-np.minimum(self.kl_mu_pi, self.kl_pi_mu)))
        return np.minimum(np.minimum(self.tv_tokens, np.sqrt(h * (2 - h))), by_kl)

    @property
    def tv_at_least(self) -> Array:
        """The squared Hellinger distance, which total variation is never below."""
        return self.hellinger2


def chain(policies: Policies) -> Chain:
    """Distances at every length up to that of the policies; thousands of tokens take a second.

    Args:
        policies: with any number of tokens of context, as long as the contexts can be gone through.

    Raises:
        ValueError: if there are too many contexts.

    Example:
        >>> from reweigh.lab import chain, growth_rate, random_policies
        >>> policies = random_policies(vocab=3, length=4096, memory=1, gap=0.1)
        >>> print(f"{chain(policies).renyi2[-1] / 4096:.4f} nats a token, {growth_rate(policies):.4f} in the limit")
        0.0015 nats a token, 0.0015 in the limit
    """
    if policies.num_contexts > MAX_CONTEXTS:
        raise ValueError(
            f"chain: {policies.num_contexts:,} contexts are too many (at most {MAX_CONTEXTS:,}).\n"
            "hint: give the policies a shorter memory."
        )
    log_pi, log_mu = policies.log_pi.numpy(), policies.log_mu.numpy()
    pi, mu = np.exp(log_pi), np.exp(log_mu)
    gap = np.where(mu > 0, log_mu - log_pi, 0.0)
    kl_mu, tv = (mu * gap).sum(-1), np.abs(pi - mu).sum(-1) / 2
    kl_pi = np.where((mu > 0).all(-1), -(pi * gap).sum(-1), np.inf)
    walk = _Walk.of(policies)
    squares = _walk_total(walk, np.where(mu > 0, pi * np.exp(-gap), 0.0))
    roots = _walk_total(walk, np.exp((log_pi + log_mu) / 2))
    under_mu, under_pi = _visits(walk, mu), _visits(walk, pi)
    with np.errstate(invalid="ignore"):
        return Chain(
            renyi2=squares,
            hellinger2=-np.expm1(roots),
            kl_mu_pi=np.cumsum(under_mu @ kl_mu),
            kl_pi_mu=np.cumsum(np.where(under_pi > 0, under_pi * kl_pi, 0.0).sum(-1)),
            tv_tokens=np.cumsum(under_mu @ tv),
            length_mu=np.cumsum(under_mu.sum(-1)),
        )


def growth_rate(policies: Policies) -> float:
    """The limit of `renyi2 / T`, nats a token: log of the spectral radius of the matrix `pi^2 / mu` between contexts.

    It is what `log(1 + chi2)` of a token is for iid contexts, and as a rule far below the largest one of a context. If
    sequences end before that could happen, it is 0.

    Raises:
        ValueError: if there are too many contexts to decompose a matrix of them.
    """
    walk = _Walk.of(policies)
    full = walk.first_full
    size = policies.num_contexts - full
    if size > MAX_DENSE:
        raise ValueError(
            f"growth_rate: {size:,} contexts are too many for their matrix (at most {MAX_DENSE:,}).\n"
            "hint: chain(policies).renyi2 at the largest T, over T."
        )
    log_pi, log_mu = policies.log_pi.numpy(), policies.log_mu.numpy()
    with np.errstate(invalid="ignore"):
        factor = np.where(np.isfinite(log_mu), np.exp(2 * log_pi - log_mu), 0.0)
    matrix = np.zeros((size, size))
    for a, column in walk.moves():
        np.add.at(matrix, (np.arange(size), column[full:] - full), factor[full:, a])
    radius = float(np.abs(np.linalg.eigvals(matrix)).max())
    return max(0.0, math.log(radius)) if policies.eos is not None else math.log(radius)


@dataclass(frozen=True, eq=False)
class _Walk:
    """Which context follows which.

    Attributes:
        following: `[contexts, V]`: the row after each token; -1 at the eos.
        first_full: the first row whose context is of full depth.
        length: T.
    """

    following: NDArray[np.int64]
    first_full: int
    length: int

    @classmethod
    def of(cls, policies: Policies) -> "_Walk":
        base, depth = len(policies.inner), policies.depth
        starts = np.cumsum([0] + [base**k for k in range(depth + 1)])
        following = np.full((policies.num_contexts, policies.vocab), -1, dtype=np.int64)
        for k in range(depth + 1):
            code = np.arange(base**k)
            for digit, a in enumerate(policies.inner):
                after = (code * base + digit) % base ** min(k + 1, depth)
                following[starts[k] : starts[k + 1], a] = starts[min(k + 1, depth)] + after
        return cls(following, int(starts[depth]), policies.length)

    def moves(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Every token that a sequence goes on after, and where it leads from each row."""
        return [(a, self.following[:, a]) for a in range(self.following.shape[1]) if (self.following[:, a] >= 0).all()]

    def step(self, state: Array, factor: Array) -> tuple[Array, float]:
        """What is at each row a token later when a token multiplies by its factor, and what ended with that token."""
        out, ended = np.zeros_like(state), float((state[:, None] * np.where(self.following < 0, factor, 0)).sum())
        for a, column in self.moves():
            np.add.at(out, column, state * factor[:, a])
        return out, ended


def _walk_total(walk: _Walk, factor: Array) -> Array:
    """log of the sum over sequences of the product of their tokens' factors, cut off at each length."""
    state = np.zeros(len(factor))
    state[0], scale, ended = 1.0, 0.0, -math.inf
    totals = np.empty(walk.length)
    for t in range(walk.length):
        state, over = walk.step(state, factor)
        if over > 0:
            ended = float(np.logaddexp(ended, math.log(over) + scale))
        left = state.sum()
        if left > 0:  # so that no length overflows or underflows
            state, scale = state / left, scale + math.log(left)
        totals[t] = np.logaddexp(ended, scale if left > 0 else -math.inf)
    return totals


def _visits(walk: _Walk, p: Array) -> Array:
    """`[T, contexts]`: how likely each context is at each step."""
    out = np.zeros((walk.length, len(p)))
    out[0, 0] = 1.0
    for t in range(1, walk.length):
        out[t], _ = walk.step(out[t - 1], p)
    return out
