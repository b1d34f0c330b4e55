"""Exact bias, variance and efficiency of any estimator of the library, by going through every sequence."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Weights
from reweigh.lab.advantages import AnyAdvantage, Reward
from reweigh.lab.sequences import Sequences
from reweigh.lab.world import World
from reweigh.losses import policy_gradient, ppo_clip
from reweigh.sga import Moments

MAX_COVARIANCE = 64  # parameters up to which the whole covariance is kept, and not only its trace

Loss = Callable[[Tensor, Batch, Weights], Tensor]
"""`(log_pi, batch, weights)` -> the sum, not the mean, of a loss over the batch's sequences."""


@dataclass(frozen=True, eq=False)
class Outcome:
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
        """What the lemma of stochastic gradient ascent asks: its terms, the best step, the guaranteed gain."""
        return Moments(self.g.numpy(), self.mean.numpy(), self.trace_cov)

    @property
    def bias_norm(self) -> float:
        """`|m - g|`."""
        return self.lemma.bias_norm

    @property
    def cosine(self) -> float:
        """Of the angle between m and g; NaN if one of them is 0."""
        return float(self.g @ self.mean) / (float(self.g.norm() * self.mean.norm()) or math.nan)


@final
@dataclass(frozen=True, eq=False)
class Exact(Outcome):
    """What an estimator does to one sequence of mu: ghat is its value there, and a batch is the mean of n of them.

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
        return ppo_clip(log_pi, batch.log_mu, advantage, weights, 1.0, low=self.low, high=self.high, dual=self.dual)


def reinforce(log_pi: Tensor, batch: Batch, weights: Weights) -> Tensor:
    """The public `policy_gradient`, as a loss for `exact`."""
    return policy_gradient(log_pi, _advantage(batch), weights, 1.0)


def exact(
    world: World, estimator: Estimator, advantage: AnyAdvantage | None = None, *, loss: Loss = reinforce
) -> Exact:
    """Mean, bias and covariance of minus the gradient of a loss, over one sequence sampled from mu.

    The library's own estimator weighs a batch of every sequence, and its own loss is differentiated: what is computed
    here is what a trainer would compute, with the sampling noise taken out.

    Args:
        world: small enough to enumerate.
        estimator: any product that is not self-normalised.
        advantage: the reward if not given.
        loss: `reinforce`, or for example `PPOClip(0.2, 0.2)`.

    Raises:
        ValueError: on an estimator whose weights depend on the other sequences of the batch.

    Example:
        >>> from reweigh import seq_tis
        >>> from reweigh.lab import Reward, exact, random_world
        >>> world = random_world(vocab=3, length=4, gap=0.5, reward="binary")
        >>> print(f"{exact(world, seq_tis(2.0), Reward('value')).efficiency(64):.2f}")
        0.54
    """
    coef = coefficients(world, estimator, advantage, loss=loss)
    return moments(world.gradient, world.sampled, world.mu, coef)


def coefficients(
    world: World, estimator: Estimator, advantage: AnyAdvantage | None = None, *, loss: Loss = reinforce
) -> Float[Tensor, "sampled T"]:
    """What multiplies the score of each token in the gradient: `w_t A_t`, from the loss, for what mu can sample.

    Raises:
        ValueError: on an estimator whose weights depend on the other sequences of the batch.
    """
    if estimator.reads_batch:
        raise ValueError(
            f"exact: the weights of {estimator} depend on the other sequences of a batch, and not on one sequence.\n"
            "hint: for self-normalised sequence weights, reweigh.lab.exact_snis has the exact result at any N."
        )
    batch = world.batch_with((advantage or Reward()).of(world))
    log_pi = batch.log_pi.clone().requires_grad_()
    # A token's log-prob enters only its own sequence's terms, so one backward pass serves all sequences.
    (slope,) = torch.autograd.grad(loss(log_pi, batch, estimator(batch)), log_pi)
    return -slope


def moments(g: Tensor, sequences: Sequences, p: Float[Tensor, " L"], coef: Float[Tensor, "L T"]) -> Exact:
    """First and second moments of `sum_t coef_t s_t` when sequences have the probabilities p."""
    mean = sequences.total(p[:, None] * coef)
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


def _advantage(batch: Batch) -> Tensor:
    assert batch.advantage is not None
    return batch.advantage
