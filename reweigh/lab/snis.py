"""Self-normalised importance sampling, exactly, at any number of sequences."""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.estimators import Estimator
from reweigh.lab.advantages import AnyAdvantage
from reweigh.lab.exact import Outcome, coefficients
from reweigh.lab.sequences import Sequences
from reweigh.lab.world import World
from reweigh.named import seq_is

# The integrand, as a function of v = log u, is analytic in a strip of half-width pi / 2, so that the trapezoid rule's
# error falls as exp(-pi^2 / STEP): below 1e-30 here.
STEP = 1 / 8
LEFT = 45.0  # e^-45 = 3e-20 of the integral lies below the first node
NUMBERS = 1 << 22  # float64 numbers that are worked on at a time
RIGHT = 800.0  # e^-800 is 0 in float64: nothing lies beyond the last node


@final
@dataclass(frozen=True, eq=False)
class ExactSNIS(Outcome):
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
    u = _nodes(w)
    decay = torch.exp(-u[:, None] * w)  # [nodes, L]
    phi = decay @ p
    tilted = decay * p
    once = _weight(u, 1, n * phi ** (n - 1))
    twice = _weight(u, 2, n * phi ** (n - 1))
    mean = s.total((once @ tilted)[:, None] * coef)
    # About a centre close to the mean: at a large n the squares of f itself would cancel to the last digits.
    centre = s.total(p[:, None] * coef) / float(p @ w)
    squares = float((twice @ tilted) @ _away(s, coef, w, centre))
    pairs = _weight(u, 2, n * (n - 1) * phi ** (n - 2)) if n > 1 else torch.zeros_like(u)
    for part in torch.arange(len(u)).split(max(1, NUMBERS // coef.numel())):
        away = s.total(tilted[part][:, :, None] * coef) - (tilted[part] @ w)[:, None] * centre
        squares += float(pairs[part] @ away.square().sum(-1))
    delta_bias, delta_trace = _first_order(world, w, coef, n)
    return ExactSNIS(
        g,
        mean,
        max(0.0, squares - float((mean - centre).square().sum())),
        n,
        float((twice @ tilted) @ w.square()),
        delta_bias,
        delta_trace,
    )


def _nodes(w: Tensor) -> Tensor:
    low = -LEFT - math.log(float(w.max()))
    high = math.log(RIGHT) - math.log(float(w.min()))
    return torch.exp(torch.arange(low, high + STEP, STEP, dtype=torch.float64))


def _weight(u: Tensor, power: int, density: Tensor) -> Tensor:
    """What a node counts: the trapezoid rule in log u, for the integral of u^(power - 1) density du."""
    return STEP * u**power * density


def _first_order(world: World, w: Tensor, coef: Tensor, n: int) -> tuple[Tensor, float]:
    """Delta method: bias `-E[w^2 (f - m)] / n`, variance `E[w^2 |f - m|^2] / n`, with `m = E[w f]` and `E w = 1`."""
    s, p = world.sampled, world.mu
    m = s.total(p[:, None] * coef)
    scaled = w[:, None] * coef  # w^2 f, as coef is w f
    crossed = s.total(p[:, None] * scaled) - float(p @ w.square()) * m
    return -crossed / n, float(p @ _away(s, coef, w, m)) / n


def _away(s: Sequences, coef: Tensor, w: Tensor, point: Tensor) -> Tensor:
    """`w^2 |f - point|^2` of each sequence, coef being of w f."""
    along = (s.each(coef) * point.unflatten(0, s.policies.log_pi.shape)[s.row] * s.first[:, :, None]).sum((1, 2))
    return s.square_norms(coef) - 2 * w * along + w.square() * float(point.square().sum())
