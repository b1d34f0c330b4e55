"""Exact results at lengths where nobody can enumerate: Markov chains, iid tokens by their counts, worst rewards."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST
from reweigh.theory.lab.exact import Loss, reinforce
from reweigh.theory.lab.world import Policies
from reweigh.theory.laws import FiniteRatio

Array = NDArray[np.float64]


def number_of_counts(vocab: int, length: int) -> int:
    """In how many ways the tokens of a sequence can be counted."""
    return math.comb(length + vocab - 1, vocab - 1)


def all_counts(vocab: int, length: int) -> NDArray[np.int64]:
    """`[K, V]`: every way in which a sequence of two or three tokens can be counted."""
    first = np.arange(length + 1)
    if vocab == 2:
        return np.stack([first, length - first], -1)
    a, b = np.repeat(first, length + 1 - first), np.concatenate([np.arange(length + 1 - k) for k in first])
    return np.stack([a, b, length - a - b], -1)


def log_probability(counts: NDArray[np.int64], p: Array) -> Array:
    """`[K]`: log of the probability of all sequences with these counts together, nats.

    Args:
        counts: `[K, V]`, all of one length.
        p: `[V]`, of each token.
    """
    length = int(counts[0].sum())
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, length + 1)))])
    return log_factorial[length] - log_factorial[counts].sum(-1) + counts @ np.log(p)


def score_directions(vocab: int) -> Array:
    """`[V, V - 1]`: an orthonormal basis of the vectors that sum to 0, which the scores of two or three tokens are."""
    if vocab == 2:
        return np.array([[1.0], [-1.0]]) / math.sqrt(2)
    return np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -2.0]]) / np.sqrt([2.0, 6.0])


def farthest(up: Array, down: Array) -> float:
    """How far from 0 a sum gets if each of its terms is `up`, `down` or nothing, at the best choice: exactly.

    The sums fill a polygon whose sides are those of the triangles (0, up, down), sorted by their direction: its
    corners are met by walking along them.

    Args:
        up: `[K, d]`, d = 1 or 2.
        down: `[K, d]`.
    """
    if up.shape[1] == 1:
        return float(max(np.maximum(np.maximum(up, down), 0).sum(), -np.minimum(np.minimum(up, down), 0).sum()))
    turn = np.where(up[:, :1] * down[:, 1:] < up[:, 1:] * down[:, :1], -1.0, 1.0)  # each triangle anticlockwise
    sides = np.concatenate([turn * up, turn * (down - up), -turn * down])
    low = np.stack([np.zeros_like(up), up, down])  # the walk starts at the sum of each one's lowest corner
    lowest = np.lexsort((low[:, :, 0], low[:, :, 1]), axis=0)[0]
    start = np.take_along_axis(low, lowest[None, :, None], 0)[0].sum(0)
    order = np.argsort(np.arctan2(sides[:, 1], sides[:, 0]) % (2 * math.pi))
    corners = start + np.cumsum(sides[order], 0)
    return float(np.sqrt(np.square(corners).sum(-1).max()))


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
        >>> from reweigh.theory.lab import chain, growth_rate, random_policies
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
        """Go on by a token that multiplies by its factor: what is then at each row, and what ended with that token."""
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


MAX_TOKENS = 1 << 22  # of all sequences that are gone through
SMOOTH = ((0.5, 0.3, 0.2), (0.49, 0.3, 0.21))
RARE = ((0.549, 0.45, 0.001), (0.5495, 0.45049, 0.00001))
"""(pi, mu) of three tokens: every ratio a little off, and one token that mu hardly ever samples."""
_ORDERLESS = {level.name for level in (TOKEN, SEQUENCE, GEOMETRIC, WORST)}


@dataclass(frozen=True)
class Extremes:
    """Effect of the worst reward with |R| <= 1 on an estimator.

    Attributes:
        bias: `sup_R |E_mu ghat - g|`.
        second_moment: `sup_R E_mu |ghat|^2`, of one sequence.
    """

    bias: float
    second_moment: float


@dataclass(frozen=True, eq=False)
class Counted:
    """Sequences of iid tokens, one for each way that tokens can be counted: in another order, nothing would change.

    Attributes:
        log_pi: `[K, T]` nats.
        log_mu: `[K, T]` nats.
        pi: `[K]`: probability under pi of all sequences with these counts.
        mu: `[K]`, under mu.
        score: `[K, T, d]`: of each token, in the d = V - 1 directions that scores have.
    """

    log_pi: Float[Tensor, "K T"]
    log_mu: Float[Tensor, "K T"]
    pi: Array
    mu: Array
    score: Array

    @classmethod
    def of(cls, pi: Array, mu: Array, length: int) -> "Counted":
        """All counts of two or three tokens.

        Args:
            pi: `[V]` probabilities, all over 0.
            mu: `[V]`, all over 0.
            length: T.

        Raises:
            ValueError: unless V is 2 or 3 and the counts are few enough.
        """
        vocab = len(pi)
        if vocab not in (2, 3) or pi.shape != mu.shape:
            raise ValueError(f"Counted: two or three tokens are needed, got shapes {pi.shape} and {mu.shape}")
        if length < 1 or number_of_counts(vocab, length) * length > MAX_TOKENS:
            raise ValueError(
                f"Counted: length must be 1 to some {'2,000' if vocab == 2 else '200'} for {vocab} tokens, got {length}"
            )
        counts = all_counts(vocab, length)
        upto = counts.cumsum(-1)[:, :-1]
        tokens = (np.arange(length)[None, :, None] >= upto[:, None, :]).sum(-1)
        score = (np.eye(vocab) - pi) @ score_directions(vocab)
        return cls(
            torch.from_numpy(np.log(pi)[tokens]),
            torch.from_numpy(np.log(mu)[tokens]),
            np.exp(log_probability(counts, pi)),
            np.exp(log_probability(counts, mu)),
            score[tokens],
        )

    def batch(self, advantage: float = 1.0) -> Batch:
        """All of them, with the same advantage on every token."""
        every = torch.ones_like(self.log_pi)
        return Batch.padded(self.log_pi, self.log_mu, every, advantage=advantage * every, check=False)

    @property
    def law(self) -> FiniteRatio:
        """The law of the sequence ratio, for the rules that choose a cap."""
        return FiniteRatio((self.log_pi - self.log_mu).sum(-1).numpy(), self.mu)

    @property
    def m2(self) -> float:
        """`E_mu r^2`."""
        log_ratio = (self.log_pi - self.log_mu).sum(-1).numpy()
        return float(np.square(np.sqrt(self.mu) * np.exp(log_ratio)).sum())  # the root first: see `extremes`

    @property
    def score_max(self) -> float:
        """`K_s`, the largest norm of the score of a token."""
        return float(np.linalg.norm(self.score, axis=-1).max())

    @property
    def gradient(self) -> float:
        """`sup_R |g|`."""
        true = self.pi[:, None] * self.score.sum(1)
        return farthest(true, -true)

    @property
    def score2_pi(self) -> float:
        """`E_pi |S|^2`."""
        return float(self.pi @ np.square(self.score.sum(1)).sum(-1))

    def mean_weight(self, estimator: Estimator) -> float:
        """`E_mu w`: the share of the mass that an estimator with one weight a sequence retains; 1 for Seq-IS."""
        self._check(estimator)
        return float(self.mu @ estimator(self.batch()).per_unit.numpy())

    def extremes(self, estimator: Estimator, loss: Loss = reinforce) -> Extremes:
        """The largest bias and second moment of the loss's gradient, over all rewards with |R| <= 1.

        Both are largest where every reward is 1 or -1 (or, for the bias, 0): the loss is linear in the advantage for
        each of its signs, and may treat the signs differently, as PPO's does.

        Raises:
            ValueError: if the estimator depends on the order of tokens, or on other sequences.
        """
        self._check(estimator)
        slopes: list[Array] = []
        for advantage in (1.0, -1.0):
            batch = self.batch(advantage)
            log_pi = batch.log_pi.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss(log_pi, batch, estimator(batch)), log_pi)
            slopes.append(np.einsum("kt,ktd->kd", -slope.numpy(), self.score))
        up, down = slopes
        true, root = self.pi[:, None] * self.score.sum(1), np.sqrt(self.mu)[:, None]
        return Extremes(
            bias=farthest(self.mu[:, None] * up - true, self.mu[:, None] * down + true),
            # The root first: a ratio of e^400 has a square that no float64 holds, and next to no probability.
            second_moment=float(np.maximum(*(np.square(root * x).sum(-1) for x in (up, down))).sum()),
        )

    def _check(self, estimator: Estimator) -> None:
        if estimator.reads_batch or any(f.level.name not in _ORDERLESS for f in estimator.factors):
            raise ValueError(f"Counted: {estimator} must read one sequence, and no order of its tokens")


MAX_COUNTS = 3_000_000  # ways that tokens can be counted, up to which they are gone through


@dataclass(frozen=True)
class WorstCase:
    """Effect of the worst reward with |R| <= 1 on an estimator that weighs each of iid tokens by itself.

    Attributes:
        length: T.
        bias: `sup_R |E_mu ghat - g|`.
        gradient: `sup_R |g|`.
        second_moment: `sup_R E_mu |ghat|^2`, for one sequence.
        score2: `E_pi |S|^2`.
        log_m2: `log(1 + chi2)` of the sequence, nats.
    """

    length: int
    bias: float
    gradient: float
    second_moment: float
    score2: float
    log_m2: float


def worst_case(pi: Tensor, mu: Tensor, length: int, estimator: Estimator) -> WorstCase:
    """Go through the counts of each token, on which alone sequences of iid tokens depend, and choose R for each.

    The largest length of a sum of vectors, each with a sign of one's choice, is the farthest corner of a zonotope: in a
    plane it is found by sorting. So there may be two or three tokens.

    Args:
        pi: `[V]` probabilities of two or three tokens.
        mu: `[V]`, all over 0.
        length: T.
        estimator: of token level: `naive()`, `token_is()`, `token_tis(cap)`, `token_mis(low, high)`.

    Raises:
        ValueError: unless the probabilities are such, T >= 1 and the estimator weighs each token by itself.

    Example:
        >>> import torch
        >>> from reweigh import naive
        >>> from reweigh.theory.lab import worst_case
        >>> pi, mu = torch.tensor([[0.5, 0.3, 0.2], [0.49, 0.3, 0.21]], dtype=torch.float64)
        >>> print(f"{worst_case(pi, mu, 256, naive()).bias / worst_case(pi, mu, 64, naive()).bias:.1f}")
        4.0
    """
    if pi.shape != mu.shape or pi.dim() != 1 or pi.numel() not in (2, 3):
        raise ValueError(
            f"worst_case: pi and mu must be the probabilities of two or three tokens, got shapes {tuple(pi.shape)} and "
            f"{tuple(mu.shape)}.\nhint: merge tokens with like ratios; the ratio is what matters."
        )
    for name, p in (("pi", pi), ("mu", mu)):
        if not bool((p > 0).all()) or abs(float(p.double().sum()) - 1) > 1e-9:
            raise ValueError(
                f"worst_case: {name} must be positive and add up to 1, got {p.tolist()}.\n"
                "hint: write them in float64, or float32 rounds them."
            )
    if length < 1:
        raise ValueError(f"worst_case: length must be >= 1, got {length}")
    if number_of_counts(pi.numel(), length) > MAX_COUNTS:
        raise ValueError(
            f"worst_case: {pi.numel()} tokens at length {length:,} can be counted in more than {MAX_COUNTS:,} ways.\n"
            "hint: with two tokens, any length up to some millions works."
        )
    if estimator.reads_batch or any(f.level.name != TOKEN.name for f in estimator.factors):
        raise ValueError(f"worst_case: {estimator} must weigh each token by itself")
    # The library's weight of each token, from a batch with one sequence of one token for each.
    log_pi, log_mu = pi.double().log()[:, None], mu.double().log()[:, None]
    one = torch.ones_like(log_pi)
    w = estimator(Batch.padded(log_pi, log_mu, one, advantage=one, check=False)).per_token[:, 0].numpy()
    p, q = pi.double().numpy(), mu.double().numpy()
    counts = all_counts(len(p), length)
    prob_pi, prob_mu = np.exp(log_probability(counts, p)), np.exp(log_probability(counts, q))
    score = (np.eye(len(p)) - p) @ score_directions(len(p))  # of each token
    true, weighed = prob_pi[:, None] * (counts @ score), counts @ (w[:, None] * score)
    gap = prob_mu[:, None] * weighed - true
    return WorstCase(
        length,
        bias=farthest(gap, -gap),
        gradient=farthest(true, -true),
        second_moment=float(prob_mu @ np.square(weighed).sum(-1)),
        score2=float(prob_pi @ np.square(counts @ score).sum(-1)),
        log_m2=length * math.log(float((p * p / q).sum())),
    )
