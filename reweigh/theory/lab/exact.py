"""Exact effect of an estimator in a world: moments, self-normalised or in groups, and the parts of its bias."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reweigh.batch import Batch
from reweigh.centring import Centred
from reweigh.estimators import Estimator, Weights
from reweigh.losses import policy_gradient, ppo_clip
from reweigh.named import prefix_is, seq_is, token_is, token_tis
from reweigh.theory.lab.world import Sequences, World
from reweigh.theory.sga import Moments


@dataclass(frozen=True)
class Reward:
    """`R - baseline` on every token: a terminal reward, less the same constant for all.

    Args:
        baseline: a number, or "value" for `J(mu) = E_mu R`, which the mean reward of a large group tends to.
    """

    baseline: float | Literal["value"] = 0.0

    def of(self, world: World) -> Float[Tensor, "sampled T"]:
        """Give it for every token of what mu can sample."""
        b = world.value_mu if self.baseline == "value" else self.baseline
        return (world.sampled_reward - b)[:, None].expand(world.sampled.mask.shape)


@dataclass(frozen=True)
class Advantage:
    """`A(s_t, y_t) = Q(s_t, y_t) - V(s_t)` of one of the policies, as a perfect critic would give it.

    With the advantage of mu, the mean of token IS is that with the raw reward; only one of pi removes what is wrong
    with the returns, and nobody has it without a critic.

    Args:
        policy: whose returns.
    """

    policy: Literal["pi", "mu"]

    def of(self, world: World) -> Float[Tensor, "sampled T"]:
        """Give it for every token of what mu can sample."""
        s = world.sequences
        values = prefix_values(s, s.log_pi if self.policy == "pi" else s.log_mu, world.reward)
        return torch.where(s.mask, values.diff(dim=-1), 0)[s.sampled]


@dataclass(frozen=True, eq=False)
class PerSequence:
    """Any advantage that is one number a sequence.

    Args:
        values: `[sampled]`, for what mu can sample.
    """

    values: Float[Tensor, " sampled"]

    def of(self, world: World) -> Float[Tensor, "sampled T"]:
        """Give it for every token of what mu can sample."""
        return self.values[:, None].expand(world.sampled.mask.shape)


AnyAdvantage = Reward | Advantage | PerSequence
"""All that may multiply the score in the lab."""


def prefix_values(sequences: Sequences, log_p: Tensor, reward: Tensor) -> Float[Tensor, "L T_plus_1"]:
    """`E[R | y_<t]` for t = 0 to T, when a policy with these log-probs goes on from the prefix."""
    columns: list[Tensor] = []
    for t in range(log_p.shape[1] + 1):
        group, count = prefixes(sequences, t)
        rest = log_p[:, t:].sum(-1).exp()  # not p(y) / p(prefix): a prefix may be very improbable
        columns.append(rest.new_zeros(count).index_add(0, group, rest * reward)[group])
    return torch.stack(columns, -1)


def prefixes(sequences: Sequences, t: int) -> tuple[Int[Tensor, " L"], int]:
    """Which sequences share their first t tokens: a number for each, and how many numbers there are."""
    tokens = sequences.tokens
    # In lexicographic order those that share a prefix are neighbours.
    new = (tokens[1:, :t] != tokens[:-1, :t]).any(-1)
    group = torch.cat([new.new_zeros(1), new]).long().cumsum(0)
    return group, int(group[-1]) + 1


MAX_COVARIANCE = 64  # parameters up to which the whole covariance is kept, and not only its trace

Loss = Callable[[Tensor, Batch, Weights], Tensor]
"""`(log_pi, batch, weights)` -> the sum, not the mean, of a loss over the batch's sequences."""


@dataclass(frozen=True, eq=False)
class GradientMoments:
    """Mean and variance of a gradient estimate ghat, exactly, beside the true gradient.

    Attributes:
        g: `[params]`: `grad E_pi R`.
        mean: `[params]`: `m = E_mu ghat`.
        trace_cov: trace of the covariance of ghat.
    """

    g: Float[Tensor, " params"]
    mean: Float[Tensor, " params"]
    trace_cov: float

    @property
    def bias(self) -> Float[Tensor, " params"]:
        """`m - g`."""
        return self.mean - self.g

    @property
    def lemma(self) -> Moments:
        """Moments for the lemma of stochastic gradient ascent: its terms, the best step, the guaranteed gain."""
        return Moments(self.g.numpy(), self.mean.numpy(), self.trace_cov)

    @property
    def bias_norm(self) -> float:
        """`|m - g|`."""
        return self.lemma.bias_norm

    @property
    def cosine(self) -> float:
        """Cosine of the angle between m and g; NaN if one of them is 0."""
        return float(self.g @ self.mean) / (float(self.g.norm() * self.mean.norm()) or math.nan)


@final
@dataclass(frozen=True, eq=False)
class Exact(GradientMoments):
    """Effect of an estimator on one sequence of mu: ghat is its value there, and a batch is the mean of n of them.

    Attributes:
        second_moment: `E_mu |ghat|^2`.
        cov: `[params, params]`, the covariance of ghat; None in a world of many parameters.
    """

    second_moment: float
    cov: Float[Tensor, "params params"] | None = None

    def mse(self, n: float) -> float:
        """`E |mean of n - g|^2 = |bias|^2 + trace_cov / n`.

        Raises:
            ValueError: if n < 1.
        """
        return self.lemma.mse(n)

    def efficiency(self, n: float) -> float:
        """`Gamma_n`, the share of the progress that a step over n sequences can promise: see `Moments.efficiency`.

        Raises:
            ValueError: if n < 1, or there is no gradient to follow.
        """
        return self.lemma.efficiency(n)


@dataclass(frozen=True)
class PPOClip:
    """The public `ppo_clip`, centred on mu, as a loss for `exact`: two policies, weights as given.

    Args:
        low: clip below 1.
        high: clip above 1.
        dual: bound for negative advantages.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __call__(self, log_pi: Tensor, batch: Batch, weights: Weights) -> Tensor:
        """The sum over the batch."""
        advantage = _advantage(batch)
        bounds: dict[str, Any] = {"low": self.low, "high": self.high, "dual": self.dual}
        if weights.centre is not None and batch.candidates is not None:
            bounds |= {"candidates": batch.candidates.log_pi, "old_candidates": batch.candidates.log_mu}
        return ppo_clip(log_pi, batch.log_mu, advantage, weights, 1.0, **bounds)


def reinforce(log_pi: Tensor, batch: Batch, weights: Weights) -> Tensor:
    """The public `policy_gradient`, as a loss for `exact`."""
    return policy_gradient(log_pi, _advantage(batch), weights, 1.0, candidates=_candidates(batch, weights))


def exact(
    world: World,
    estimator: Estimator | Centred,
    advantage: AnyAdvantage | None = None,
    *,
    loss: Loss = reinforce,
    k: int | None = None,
) -> Exact:
    """Mean, bias and covariance of minus the gradient of a loss, over one sequence sampled from mu.

    The library's own estimator weighs a batch of every sequence, and its own loss is differentiated: what is computed
    here is what a trainer would compute, with the sampling noise taken out.

    Args:
        world: small enough to enumerate.
        estimator: any product that is not self-normalised, or a centred one.
        advantage: the reward if not given.
        loss: `reinforce`, or for example `PPOClip(0.2, 0.2)`.
        k: how many of mu's likeliest tokens a centred estimator is given at each place; all if not given.

    Raises:
        ValueError: on an estimator whose weights depend on the other sequences of the batch.

    Example:
        >>> from reweigh import seq_tis
        >>> from reweigh.theory.lab import Reward, exact, random_world
        >>> world = random_world(vocab=3, length=4, gap=0.5, reward="binary")
        >>> print(f"{exact(world, seq_tis(2.0), Reward('value')).efficiency(64):.2f}")
        0.54
    """
    coef = coefficients(world, estimator, advantage, loss=loss, k=k)
    return moments(world.gradient, world.sampled, world.mu, coef)


def coefficients(
    world: World,
    estimator: Estimator | Centred,
    advantage: AnyAdvantage | None = None,
    *,
    loss: Loss = reinforce,
    k: int | None = None,
) -> Tensor:
    """Find what multiplies the score of each token in the gradient: `w_t A_t`, from the loss, for what mu can sample.

    Returns:
        `[sampled, T]`; of a centred estimator `[sampled, T, V]`, for every token at each place.

    Raises:
        ValueError: on an estimator whose weights depend on the other sequences of the batch.
    """
    if estimator.reads_batch:
        raise ValueError(
            f"exact: the weights of {estimator} depend on the other sequences of a batch, and not on one sequence.\n"
            "hint: for self-normalised sequence weights, reweigh.theory.lab.exact_snis has the exact result at any N."
        )
    values = (advantage or Reward()).of(world)
    if isinstance(estimator, Centred):
        return _of_all_tokens(world, estimator, values, loss, k)
    batch = world.batch_with(values)
    log_pi = batch.log_pi.clone().requires_grad_()
    # A token's log-prob enters only its own sequence's terms, so one backward pass serves all sequences.
    (slope,) = torch.autograd.grad(loss(log_pi, batch, estimator(batch)), log_pi)
    return -slope


def _of_all_tokens(world: World, estimator: Centred, values: Tensor, loss: Loss, k: int | None) -> Tensor:
    """Find what multiplies the score of every token at each place, of a loss that reads those of candidates too."""
    s, candidates = world.sampled, world.candidates(k)
    candidates = replace(candidates, log_pi=candidates.log_pi.clone().requires_grad_())
    batch = world.batch_with(values, candidates)
    log_pi = batch.log_pi.clone().requires_grad_()
    own, others = torch.autograd.grad(loss(log_pi, batch, estimator(batch)), (log_pi, candidates.log_pi))
    out = torch.zeros(*s.tokens.shape, world.policies.vocab, dtype=own.dtype)
    out = out.scatter_add(-1, s.tokens.clamp(min=0)[:, :, None], torch.where(s.mask, own, 0)[:, :, None])
    there = candidates.ids >= 0
    return -out.scatter_add(-1, torch.where(there, candidates.ids, 0), torch.where(there, others, 0))


def moments(g: Tensor, sequences: Sequences, p: Float[Tensor, " L"], coef: Tensor) -> Exact:
    """First and second moments of `sum_t coef_t s_t` when sequences have the probabilities p.

    Args:
        g: the true gradient.
        sequences: all that can be sampled.
        p: their probabilities.
        coef: `[L, T]`, or `[L, T, V]` with one for every token at each place.
    """
    sampled = coef.dim() == 2
    mean = sequences.total(p[:, None] * coef) if sampled else sequences.total_of_all(p[:, None, None] * coef)
    rows = sequences.each(coef)
    expected = mean.unflatten(0, sequences.policies.log_pi.shape)[sequences.row]
    expected = torch.where(sequences.first[:, :, None], expected, 0)
    # |x - m|^2, with the part of m in contexts that the sequence never visits counted as it is.
    centred = ((rows - expected).square() - expected.square()).sum((1, 2)) + mean.square().sum()
    cov = None
    if len(mean) <= MAX_COVARIANCE:
        away = sequences.dense(coef) - mean
        cov = away.T @ (p[:, None] * away)
    return Exact(g, mean, max(0.0, float(p @ centred)), float(p @ rows.square().sum((1, 2))), cov)


def _candidates(batch: Batch, weights: Weights) -> Tensor | None:
    """Give the log-probs of the candidates, with their gradient, if the weights are centred."""
    return None if weights.centre is None or batch.candidates is None else batch.candidates.log_pi


def _advantage(batch: Batch) -> Tensor:
    assert batch.advantage is not None
    return batch.advantage


# Quadrature of `exact_snis`. The integrand, as a function of v = log u, is analytic in a strip of half-width pi / 2, so
# that the trapezoid rule's error falls as exp(-pi^2 / _STEP): below 1e-30 here.
_STEP = 1 / 8
_LEFT = 45.0  # e^-45 = 3e-20 of the integral lies below the first node
_NUMBERS = 1 << 22  # float64 numbers that are worked on at a time
_RIGHT = 800.0  # e^-800 is 0 in float64: nothing lies beyond the last node


@final
@dataclass(frozen=True, eq=False)
class ExactSNIS(GradientMoments):
    """`ghat = sum_i w_i f_i / sum_i w_i` over n sequences of mu: the covariance is the batch's, not to be divided by n.

    Attributes:
        n: number of sequences.
        inverse_ess: `E sum w^2 / (sum w)^2`: one over the effective number of sequences.
        delta_bias: `[params]`: the first-order approximation of the bias, of use only if n is far over 1 + chi2 and the
            mean weight is 1: full support, and no cap.
        delta_trace_cov: the first-order approximation of `trace_cov`, likewise.
    """

    n: int
    inverse_ess: float
    delta_bias: Float[Tensor, " params"]
    delta_trace_cov: float

    @property
    def mse(self) -> float:
        """`E |ghat - g|^2`."""
        return self.lemma.mse()

    @property
    def efficiency(self) -> float:
        """Gamma of this batch: see `Moments.efficiency`."""
        return self.lemma.efficiency()


def exact_snis(
    world: World, n: int, estimator: Estimator | None = None, advantage: AnyAdvantage | None = None
) -> ExactSNIS:
    """`E ghat = n int_0^inf E[w f e^(-u w)] phi(u)^(n-1) du` with `phi(u) = E e^(-u w)`: a sum over a thousand nodes.

    Args:
        world: small enough to enumerate.
        n: number of sequences in the batch.
        estimator: whose weights, one a sequence and all over 0, are self-normalised, whether it says so or not;
            `snis()` if not given.
        advantage: the reward if not given.

    Raises:
        ValueError: if n < 1, or the weights are not one positive number a sequence.

    Source: 1 / s = int_0^inf e^(-u s) du under the expectation.
    """
    if not n >= 1:
        raise ValueError(f"exact_snis: n must be >= 1, got {n}")
    estimator = seq_is() if estimator is None else replace(estimator, normalise=None)
    weights = estimator(world.batch)
    if weights.unit != "sequence" or not bool((weights.per_unit > 0).all()):
        raise ValueError(
            f"exact_snis: {estimator} must give every sequence one weight over 0; with a rejection, a batch can be "
            "left with nothing to normalise by"
        )
    w, p, s, g = weights.per_unit, world.mu, world.sampled, world.gradient
    coef = coefficients(world, estimator, advantage)
    low, high = -_LEFT - math.log(float(w.max())), math.log(_RIGHT) - math.log(float(w.min()))
    u = torch.exp(torch.arange(low, high + _STEP, _STEP, dtype=torch.float64))
    decay = torch.exp(-u[:, None] * w)  # [nodes, L]
    phi = decay @ p
    tilted = decay * p
    once = _weight(u, 1, n * phi ** (n - 1))
    twice = _weight(u, 2, n * phi ** (n - 1))
    mean = s.total((once @ tilted)[:, None] * coef)
    # About a centre close to the mean: at a large n the squares of f itself would cancel to the last digits.
    m = s.total(p[:, None] * coef)
    centre = m / float(p @ w)
    squares = float((twice @ tilted) @ _away(s, coef, w, centre))
    pairs = _weight(u, 2, n * (n - 1) * phi ** (n - 2)) if n > 1 else torch.zeros_like(u)
    for part in torch.arange(len(u)).split(max(1, _NUMBERS // coef.numel())):
        away = s.total(tilted[part][:, :, None] * coef) - (tilted[part] @ w)[:, None] * centre
        squares += float(pairs[part] @ away.square().sum(-1))
    # Delta method: bias -E[w^2 (f - m)] / n, variance E[w^2 |f - m|^2] / n, with m = E[w f] and E w = 1; coef is w f.
    crossed = s.total(p[:, None] * (w[:, None] * coef)) - float(p @ w.square()) * m
    return ExactSNIS(
        g,
        mean,
        max(0.0, squares - float((mean - centre).square().sum())),
        n,
        inverse_ess=float((twice @ tilted) @ w.square()),
        delta_bias=-crossed / n,
        delta_trace_cov=float(p @ _away(s, coef, w, m)) / n,
    )


def _weight(u: Tensor, power: int, density: Tensor) -> Tensor:
    """Weigh a node by the trapezoid rule in log u, for the integral of u^(power - 1) density du."""
    return _STEP * u**power * density


def _away(s: Sequences, coef: Tensor, w: Tensor, point: Tensor) -> Tensor:
    """`w^2 |f - point|^2` of each sequence, coef being of w f."""
    along = (s.each(coef) * point.unflatten(0, s.policies.log_pi.shape)[s.row] * s.first[:, :, None]).sum((1, 2))
    return s.square_norms(coef) - 2 * w * along + w.square() * float(point.square().sum())


Baseline = Literal["mean", "others", "std"]
MAX_OUTCOMES = 1_000_000  # ways that rewards can fall in a group, up to which they are gone through


@dataclass(frozen=True)
class Group:
    """A group of sequences of one prompt, and how their rewards become advantages.

    Args:
        size: G, sequences in the group; at least 2.
        baseline: "mean": `R_i - mean of all G` (Dr. GRPO); "others": `R_i - mean of the other G - 1` (RLOO); "std":
            `(R_i - mean) / (sd + eps)` (GRPO).
        eps: added to the standard deviation.
        unbiased: whether the standard deviation has G - 1 in its denominator, as `torch.std` has, or G.

    Raises:
        ValueError: if size < 2.
    """

    size: int
    baseline: Baseline = "mean"
    eps: float = 0.0
    unbiased: bool = True

    def __post_init__(self) -> None:
        """Refuse a group of one."""
        if self.size < 2:
            raise ValueError(f"Group: size must be >= 2, got {self.size}")

    def advantages(self, values: list[float], chances: list[float]) -> list[float]:
        """The expected advantage of a member with each reward, over the rewards of the others.

        Args:
            values: the rewards there are.
            chances: their probabilities under mu.

        Raises:
            ValueError: if "std" is asked for with more outcomes than can be gone through.
        """
        mean = math.fsum(v * p for v, p in zip(values, chances, strict=True))
        if self.baseline == "others":
            return [v - mean for v in values]
        if self.baseline == "mean":
            return [(1 - 1 / self.size) * (v - mean) for v in values]
        outcomes = math.comb(self.size - 2 + len(values), len(values) - 1)
        if outcomes > MAX_OUTCOMES:
            raise ValueError(
                f"Group: {len(values)} distinct rewards can fall in {outcomes:,} ways on the other {self.size - 1} "
                f"of a group, and at most {MAX_OUTCOMES:,} are gone through.\n"
                'hint: "mean" and "others" need no enumeration; binary rewards have few outcomes.'
            )
        total = [0.0] * len(values)
        for counts in _compositions(self.size - 1, len(values)):
            chance = _multinomial(counts, chances)
            others = [*zip(counts, values, strict=True)]
            for i, own in enumerate(values):
                mean = (own + sum(c * v for c, v in others)) / self.size
                squares = (own - mean) ** 2 + sum(c * (v - mean) ** 2 for c, v in others)
                sd = math.sqrt(squares / (self.size - self.unbiased))
                total[i] += chance * ((own - mean) / (sd + self.eps) if own != mean else 0.0)
        return total


def exact_group_mean(world: World, estimator: Estimator, group: Group) -> Float[Tensor, " params"]:
    """`E (1/G) sum_i w_i A_i S_i` over groups of G sequences of mu: the mean gradient that a group baseline gives.

    What a sequence's reward becomes on average depends on that reward alone, so a group is a reward of its own shape.
    Where `E[w S] = 0` (on-policy, token IS, sequence IS) the mean keeps its direction; else the baseline changes it.

    Args:
        world: small enough to enumerate; its sequences are the responses to one prompt.
        estimator: any product that is not self-normalised. Gates read the sign of the expected advantage.
        group: its size and baseline.

    Raises:
        ValueError: if "std" is asked for with more outcomes than can be gone through.

    Source: Shao et al. (2024), DeepSeekMath (GRPO); Ahmadian et al. (2024) (RLOO); Liu et al. (2025) (Dr. GRPO).
    """
    values, index = world.sampled_reward.unique(return_inverse=True)
    chances = torch.zeros_like(values).index_add(0, index, world.mu)
    expected = torch.tensor(group.advantages(values.tolist(), chances.tolist()), dtype=torch.float64)
    coef = coefficients(world, estimator, PerSequence(expected[index]))
    return world.sampled.total(world.mu[:, None] * coef)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write total as a sum of parts numbers, in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def _multinomial(counts: tuple[int, ...], chances: list[float]) -> float:
    log_p = math.lgamma(sum(counts) + 1)
    for c, p in zip(counts, chances, strict=True):
        if c and p == 0:
            return 0.0
        log_p += (c * math.log(p) if c else 0.0) - math.lgamma(c + 1)
    return math.exp(log_p)


@dataclass(frozen=True, eq=False)
class TokenBias:
    """The bias of token IS with the reward, in parts that add up to it.

    The first token of a sequence has no state mismatch and still a bias: its returns are those of mu.

    Attributes:
        total: `[params]`.
        states: what is left with the advantage of pi: states are those of mu.
        returns: what is left with prefix ratios and the advantage of mu: returns are those of mu.
        interaction: the rest.
    """

    total: Float[Tensor, " params"]
    states: Float[Tensor, " params"]
    returns: Float[Tensor, " params"]

    @property
    def interaction(self) -> Float[Tensor, " params"]:
        """`total - states - returns`."""
        return self.total - self.states - self.returns


@dataclass(frozen=True, eq=False)
class TruncatedBias:
    """The bias of token TIS with the reward: what the cap adds to what token IS has ("bias on bias").

    The two may point in opposite directions, so that the truncated estimator is the less biased one.

    Attributes:
        total: `[params]`.
        mismatch: the bias of token IS.
    """

    total: Float[Tensor, " params"]
    mismatch: Float[Tensor, " params"]

    @property
    def truncation(self) -> Float[Tensor, " params"]:
        """`E[token TIS] - E[token IS]`."""
        return self.total - self.mismatch


def token_bias(world: World) -> TokenBias:
    """Split the bias of token IS into its state half and its return half.

    Example:
        >>> from reweigh.theory.lab import random_world, token_bias
        >>> parts = token_bias(random_world(vocab=2, length=4))
        >>> print([f"{float(x.norm()):.3f}" for x in (parts.total, parts.states, parts.returns, parts.interaction)])
        ['0.093', '0.063', '0.061', '0.009']
    """
    return TokenBias(
        total=exact(world, token_is()).bias,
        states=exact(world, token_is(), Advantage("pi")).bias,
        returns=exact(world, prefix_is(), Advantage("mu")).bias,
    )


def truncated_bias(world: World, cap: float) -> TruncatedBias:
    """Split the bias of token TIS at this cap.

    Args:
        world: small enough to enumerate.
        cap: ratio pi/mu of a token.
    """
    return TruncatedBias(total=exact(world, token_tis(cap)).bias, mismatch=exact(world, token_is()).bias)
