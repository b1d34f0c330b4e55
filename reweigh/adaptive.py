"""Rules that find a cap in the data: `seq_tis(cap=balance())`, from the batch at hand or from sums of many."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reweigh.caps import largest_mean
from reweigh.running_caps import balance_cap_of_stats
from reweigh.stats import RatioStats
from reweigh.sums import POWERS
from reweigh.transforms import Transform


@dataclass(frozen=True)
class CapRule(ABC):
    """`(log_ratio, valid) -> log C`: how a cap follows from ratios. A frozen value; nothing waits for the device.

    Without `stats` the cap is chosen on the units that it caps, and micro-batches or ranks would each have their own.
    With `stats` it is chosen on those, whatever they were summed over: `all_reduce(RatioStats.of(batch, SEQUENCE))` is
    this batch on all ranks, a running sum the last steps. No units at all give no cap: C is infinite.

    Args:
        n: units averaged in one step, at least 1; those that the cap is chosen on if None. Give it with running stats.
        stats: at the level to cap.

    Raises:
        ValueError: unless n >= 1.
    """

    n: float | None = field(default=None, kw_only=True)
    stats: RatioStats | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        """Refuse a batch of nothing."""
        if self.n is not None and not self.n >= 1:
            raise ValueError(f"{type(self).__name__}: n must be >= 1, got {self.n}")

    @final
    def log_cap(self, log_ratio: Float[Tensor, "*unit"], valid: Bool[Tensor, "*unit"]) -> Float[Tensor, ""]:
        """Log of the cap, nats, float64.

        Args:
            log_ratio: of each unit; not read if the rule has stats.
            valid: which of them are units.
        """
        if self.stats is not None:
            units = self.stats.moments[0].sum()
            cap = self._of_stats(self.stats, units, self._batch(units))
        else:
            l = torch.where(valid, log_ratio.detach().double(), -torch.inf).flatten()
            units = valid.sum().double()
            # A place more that is no unit, so that no batch is too small for a maximum.
            cap = self._of_sample(torch.cat([l, l.new_full((1,), -torch.inf)]), units, self._batch(units))
        return torch.where(units > 0, cap, torch.inf)

    @abstractmethod
    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        """Log cap from log ratios, -inf where there is no unit."""

    @abstractmethod
    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        """Log cap from sums."""

    def _batch(self, units: Tensor) -> Tensor:
        return units.clamp(min=1) if self.n is None else torch.full_like(units, self.n)


@final
@dataclass(frozen=True)
class balance(CapRule):  # noqa: N801 - a rule prints as one writes it
    """`C = N mean(r - C)_+`: the least worst-case error of a truncated estimator over N units.

    Args:
        n: units averaged in one step, at least 1; those that the cap is chosen on if None.
        stats: at the level to cap.

    Example:
        >>> import torch
        >>> l = torch.tensor([4.0, 1.0, 0.5]).log()
        >>> print(f"{balance().log_cap(l, torch.ones(3, dtype=torch.bool)).exp():.2f}")
        2.00

    Source: `reweigh.caps.balance_cap`; ours.
    """

    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        return largest_mean(l.sort(descending=True).values, n, units.clamp(min=1)).amax()

    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        return balance_cap_of_stats(stats, n).log_cap


@dataclass(frozen=True)
class SecondMomentRule(CapRule):
    """A cap that follows from `mean r^2`, the sample's `1 + chi2`, and N.

    Under a heavy tail the sample's second moment falls far short of 1 + chi2, and so does the cap.
    """

    @final
    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        return self._of_m2(_log_mean(2 * l, units), n)

    @final
    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        return self._of_m2(_log_mean(stats.powers[POWERS.index(2.0)].log() + 2 * stats.shift, units), n)

    @abstractmethod
    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        """Log cap from the log of the second moment."""


@final
@dataclass(frozen=True)
class post(SecondMomentRule):  # noqa: N801
    """`C = sqrt(2 mean r^2)`: the rule of the blog post with the sample's second moment, which ignores N.

    Args:
        n: not read.
        stats: at the level to cap.

    Source: `reweigh.caps.post_cap`, Li and Liu (2025), Part 2, The optimal balance.
    """

    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        return (math.log(2) + log_m2) / 2


@final
@dataclass(frozen=True)
class post_batch(SecondMomentRule):  # noqa: N801
    """`C = sqrt(2 mean r^2) N^(1/4)`: what the post's own bounds give for a batch of N.

    Args:
        n: units averaged in one step, at least 1; those that the cap is chosen on if None.
        stats: at the level to cap.

    Source: `reweigh.caps.post_batch_cap`.
    """

    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        return (math.log(2) + log_m2) / 2 + n.log() / 4


@final
@dataclass(frozen=True)
class cubic(SecondMomentRule):  # noqa: N801
    """`C = (N (mean r^2)^2)^(1/3) / 2`: a closed-form bound's best cap, with the sample's second moment.

    Args:
        n: units averaged in one step, at least 1; those that the cap is chosen on if None.
        stats: at the level to cap.

    Source: `reweigh.caps.cubic_cap`; ours.
    """

    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        return (n.log() + 2 * log_m2) / 3 - math.log(2)


@final
@dataclass(frozen=True)
class sqrt_n(CapRule):  # noqa: N801
    """`C = sqrt(N)`: reads no ratio at all.

    Args:
        n: units averaged in one step, at least 1; the units of the batch, or of the stats, if None.
        stats: read for their number of units only.

    Source: Ionides (2008), Truncated importance sampling.
    """

    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        return n.log() / 2

    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        return n.log() / 2


@final
@dataclass(frozen=True)
class TruncateAt(Transform):
    """A ratio over the rule's cap weighs the cap: `w = min(r, C)`, C being chosen on the batch or on the rule's stats.

    At TURN level a turn counts once for each of its tokens; give the rule stats of that level to count it once.

    Args:
        rule: `balance()`, `tradeoff()`, `post()`, `post_batch()`, `cubic()`, `sqrt_n()`, or any other.
    """

    reads_batch: ClassVar[bool] = True
    moves_to_bound: ClassVar[bool] = True
    rule: CapRule

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Choose, then cap."""
        return torch.minimum(x, self.rule.log_cap(x, valid).to(x.dtype)), valid


def _log_mean(squares: Tensor, units: Tensor) -> Tensor:
    """`log(1 + chi2)` as the sample has it, from logs of what adds up to it; at least 0 as any law has it."""
    return (torch.logsumexp(squares, 0) - units.log()).clamp(min=0)
