"""Parts of compositions that the core has no name for: rules for log ratios, statistics, levels and transforms."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, for_advantage, weigh
from reweigh.layout import Layout
from reweigh.levels import GEOMETRIC, TOKEN, TURN, Level, signed_binary_kl
from reweigh.transforms import AtMost, Transform, Truncate

Rule = Callable[[Tensor], Tensor]
"""A framework's treatment of the raw log ratio of each token, before anything else sees it."""

_OVERFLOW = math.log(torch.finfo(torch.float32).max)  # nats: the largest log ratio whose ratio float32 holds


def as_it_comes(log_ratio: Tensor) -> Tensor:
    """Infinities and NaN stay in."""
    return log_ratio


def one_if_not_finite(log_ratio: Tensor) -> Tensor:
    """A ratio that cannot be computed is 1."""
    return torch.where(torch.isfinite(log_ratio), log_ratio, 0)


@final
@dataclass(frozen=True)
class Clamped:
    """Log ratios clamped to [-nats, nats], infinite ones too."""

    nats: float

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Clamp the log ratios."""
        return log_ratio.clamp(-self.nats, self.nats)


# Statistics. As those of the core: functions of a batch, 0 off the mask.


def k3_reversed(batch: Batch) -> Tensor:
    """`1 / r - 1 + log r`, nats: the formula of the other KL, on the same samples."""
    return torch.expm1(-batch.log_ratio) + batch.log_ratio


def prob_gap_from_probs(batch: Batch) -> Tensor:
    """`|pi - mu|`, from the two probabilities, so that a probability of 0 is one."""
    return prob_diff_from_probs(batch).abs()


def prob_diff_from_probs(batch: Batch) -> Tensor:
    """`pi - mu`, from the two probabilities, so that a probability of 0 is one."""
    return torch.where(batch.layout.mask, batch.log_pi.detach().exp() - batch.log_mu.detach().exp(), 0)


def binary_kl_of_clamped(batch: Batch) -> Tensor:
    """`binary_kl` of probabilities that were clamped to [1e-6, 1 - 1e-6] before."""
    mu, pi = (x.detach().exp().clamp(1e-6, 1 - 1e-6) for x in (batch.log_mu, batch.log_pi))
    kl = mu * (mu / pi).log() + (1 - mu) * ((1 - mu) / (1 - pi)).log()
    return torch.where(batch.layout.mask, kl, 0)


def signed_binary_kl_from_probs(batch: Batch) -> Tensor:
    """`signed_binary_kl`, where a probability mu of 0 leaves `-log(1 - pi)`."""
    finite = torch.isfinite(batch.log_mu)
    alone = -torch.log1p(-batch.log_pi.detach().exp())
    return torch.where(finite | ~batch.layout.mask, signed_binary_kl(batch), alone)


def prob_gap_of_clamped(batch: Batch) -> Tensor:
    """`|pi - mu|` of probabilities that were clamped to [1e-6, 1 - 1e-6] before."""
    mu, pi = (x.detach().exp().clamp(1e-6, 1 - 1e-6) for x in (batch.log_mu, batch.log_pi))
    return torch.where(batch.layout.mask, (mu - pi).abs(), 0)


def abs_log_ratio(batch: Batch) -> Tensor:
    """`|log r|`, nats."""
    return batch.log_ratio.abs()


def fold_of_ratio(batch: Batch) -> Tensor:
    """`e^|log r|`: by which factor the two probabilities differ."""
    return torch.where(batch.layout.mask, batch.log_ratio.abs().exp(), 0)


@final
@dataclass(frozen=True)
class OrNan:
    """A statistic; NaN in a sequence with an infinite log ratio off the mask, as infinity times 0 is."""

    of: Callable[[Batch], Tensor]

    def __call__(self, batch: Batch) -> Tensor:
        """Compute the statistic."""
        lost = ~batch.layout.mask & ~torch.isfinite(batch.log_pi.detach() - batch.log_mu.detach())
        return torch.where(batch.layout.mask & lost.any(-1, keepdim=True), torch.nan, self.of(batch))


def signed_binary_kl_rounded(batch: Batch) -> Tensor:
    """`signed_binary_kl` of float32 probabilities, 1e-8 added to those of another token; NaN where mu is 0."""
    log_mu, log_pi = batch.log_mu.detach(), batch.log_pi.detach()
    mu, pi = log_mu.exp(), log_pi.exp()
    kl = mu * (log_mu - log_pi) + (1 - mu) * ((1 - mu + 1e-8) / (1 - pi + 1e-8)).log()
    return torch.where(batch.layout.mask, kl * (pi - mu).sign(), 0)


# Levels.


def _turn_geometric(x: Tensor, layout: Layout) -> Tensor:
    count = TURN.fold(layout.mask.to(x.dtype), layout)
    return TURN.fold(x, layout) / count.clamp(min=1)


TURN_GEOMETRIC = Level("turn_geometric", "turn", _turn_geometric)
"""The mean over the tokens of the turn; of log ratios, the log of the turn's geometric mean."""


@final
@dataclass(frozen=True)
class _BoundedByAnother:
    low: float
    high: float
    other: Level

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        mean, decides = GEOMETRIC.fold(x, layout), self.other.fold(x, layout)
        low, high = -math.inf if self.low == 0 else math.log(self.low), math.log(self.high)
        inside = (decides >= low) & (decides <= high)
        return torch.where(inside, mean, mean.clamp(low, high))


def bounded_geometric(low: float, high: float, other: Level) -> Level:
    """The mean log ratio, bounded to [low, high] (ratios) in those sequences whose `other` fold is outside."""
    name = f"geometric_bounded_to_[{low:g}, {high:g}]_where_{other.name}_is_outside"
    return Level(name, "sequence", _BoundedByAnother(low, high, other))


@final
@dataclass(frozen=True)
class _ClampedFold:
    fold: Callable[[Tensor, Layout], Tensor]
    low: float
    high: float

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        return self.fold(x, layout).clamp(self.low, self.high)


def clamped_level(level: Level, low: float, high: float) -> Level:
    """The same level with its values clamped, nats."""
    return Level(f"{level.name}_clamped", level.unit, _ClampedFold(level.fold, low, high))


@final
@dataclass(frozen=True)
class _GeometricOfClamped:
    low: float
    high: float

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        low = -math.inf if self.low == 0 else math.log(self.low)
        return GEOMETRIC.fold(torch.where(layout.mask, x.clamp(low, math.log(self.high)), 0), layout)


def geometric_of_clamped(low: float, high: float) -> Level:
    """The mean of log ratios that were bounded to [low, high] (ratios) token by token."""
    return Level(f"geometric_of_token_ratios_in_[{low:g}, {high:g}]", "sequence", _GeometricOfClamped(low, high))


def two_sided_kl(high: float, low: float, cap: float = math.inf) -> Estimator:
    """`dppo_kl` with a bound of its own for each sign of the advantage, nats."""
    rise = for_advantage(+1, weigh(TOKEN, AtMost(high), of=signed_binary_kl))
    fall = for_advantage(-1, weigh(TOKEN, AtMost(low), of=signed_binary_kl, scale=-1))
    return rise * fall * weigh(TOKEN, Truncate(cap))


# Transforms.


@final
@dataclass(frozen=True)
class Within(Transform):
    """A unit whose statistic is outside [low, high] is dropped; the others weigh 1.

    Args:
        low: in the statistic's unit.
        high: in the statistic's unit.
    """

    low: float
    high: float

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Drop what is outside."""
        return torch.zeros_like(x), valid & (x >= self.low) & (x <= self.high)


@final
@dataclass(frozen=True)
class BandAboveZero(Transform):
    """A unit whose statistic is over 0 and not `Within` the bounds is dropped; the others weigh 1."""

    low: float
    high: float

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Drop what is over 0 and outside."""
        return torch.zeros_like(x), valid & ((x <= 0) | ((x >= self.low) & (x <= self.high)))


@final
@dataclass(frozen=True)
class ZeroIfOverflow(Transform):
    """A ratio that float32 cannot hold, or that is NaN, is 0 before the inner transform sees it."""

    inner: Transform
    moves_to_bound: ClassVar[bool] = False

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Lose it, then transform."""
        return self.inner(torch.where((x > _OVERFLOW) | torch.isnan(x), -torch.inf, x), valid)


@final
@dataclass(frozen=True)
class NanPasses(Transform):
    """As the inner transform, and a NaN, which compares false with every bound, is kept."""

    inner: Transform

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Transform, and keep NaN."""
        log_w, keep = self.inner(x, valid)
        return log_w, keep | (valid & torch.isnan(x))
