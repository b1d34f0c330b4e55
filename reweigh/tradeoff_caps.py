"""The cap that trades lost mass for effective weights: what a step of stochastic gradient ascent asks for."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.adaptive import CapRule
from reweigh.caps import RatioLaw
from reweigh.stats import RatioStats
from reweigh.sums import CAPS

TRADEOFF_CAPS = tuple(c for c in CAPS if c >= 1)
"""What `tradeoff` chooses from: half octaves from 1 up."""
NOISE = 16.0
"""Of `tradeoff`: did best on worlds with rewards of three kinds, and 8 to 32 nearly as well."""
_FROM_ONE = CAPS.index(TRADEOFF_CAPS[0])


@final
@dataclass(frozen=True)
class tradeoff(CapRule):  # noqa: N801
    """`argmin_C (1 - mean w)_+^2 + noise mean w^2 / (N (mean w)^2)` with `w = min(r, C)`, over half octaves from 1 up.

    The first term is the mass that truncation loses, and so the square of the worst bias; the second is noise over
    the effective number of weights. It knows what `balance` does not: that a step's direction counts and not its
    length, and that the noise of a gradient is many times its own square, where the worst case has them equal. A cap
    under 1 only changes the length of the step, at random, so there is none; on policy nothing is capped.

    When: N is small against `1 + chi2`. At N = 64 it gives up what naive with a baseline would have had; see
    docs/caps.md for the numbers.

    Args:
        noise: how many times the squared gradient a unit's own squared gradient is, over 0.
        n: units averaged in one step, at least 1; those that the cap is chosen on if None.
        stats: at the level to cap.

    Raises:
        ValueError: unless noise > 0 and n >= 1.

    Example:
        >>> import torch
        >>> l = torch.tensor([-0.1, 0.1, 3.0, 0.0, -0.1, 0.0, 0.1, -0.2])
        >>> print(f"{tradeoff().log_cap(l, torch.ones(8, dtype=torch.bool)).exp():.2f}")
        1.00

    Source: ours; `benchmarks/caps.py` measures it. `tradeoff_cap` is the same of a known law.
    """

    noise: float = NOISE

    def __post_init__(self) -> None:
        """Refuse a noise of nothing."""
        CapRule.__post_init__(self)
        if not self.noise > 0:
            raise ValueError(f"tradeoff: noise must be > 0, got {self.noise}")

    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        ordered = l.sort().values
        # Units beyond the largest cap are never summed, so they may be e^800.
        r = ordered.clamp(max=math.log(CAPS[-1])).exp()
        log_caps = torch.tensor(TRADEOFF_CAPS, dtype=l.dtype, device=l.device).log()
        count = torch.searchsorted(ordered, log_caps, right=True)
        # With nothing in front, the sum of the first k stands at k.
        sums = torch.nn.functional.pad(torch.stack([r, r * r]).cumsum(1), (1, 0)).index_select(1, count)
        return self._least(len(ordered) - count, sums, units, n)

    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        count, *sums = stats.grid.sum(1)[:, :-1].cumsum(1)[:, _FROM_ONE:]
        return self._least(units - count, torch.stack(sums), units, n)

    def _least(self, over: Tensor, sums: Tensor, units: Tensor, n: Tensor) -> Tensor:
        """Log of the cap with the least proxy: of each, how many are over it, and sums of r and r^2 of the others."""
        caps = torch.tensor(TRADEOFF_CAPS, dtype=sums.dtype, device=sums.device)
        mean, square = (sums[0] + over * caps) / units, (sums[1] + over * caps * caps) / units
        best = tradeoff_proxy(mean, square, n, self.noise).argmin()
        return caps.log().index_select(0, best[None]).squeeze(0)


def tradeoff_cap(law: RatioLaw, n: float, noise: float = NOISE) -> float:
    """`argmin_C (1 - E_mu w)^2 + noise E_mu w^2 / (N (E_mu w)^2)`, `w = min(r, C)`, over half octaves from 1 up.

    What the rule `tradeoff` tends to as its sample grows; there it says what the two terms are and why.

    Args:
        law: of the ratio, such as `LogNormalRatio(s2)`.
        n: units averaged in one step, at least 1.
        noise: how many times the squared gradient a unit's own squared gradient is, over 0.

    Returns:
        A ratio pi/mu: a power of sqrt(2), from 1 up.

    Raises:
        ValueError: if n is below 1 or noise is not over 0.

    Example:
        >>> from reweigh.planner import LogNormalRatio
        >>> print([f"{tradeoff_cap(LogNormalRatio(4.0), n):.1f}" for n in (64, 1024)])
        ['1.0', '16.0']

    Source: ours; `benchmarks/caps.py` measures it.
    """
    if not n >= 1:
        raise ValueError(f"tradeoff_cap: n must be >= 1, got {n}")
    if not noise > 0:
        raise ValueError(f"tradeoff_cap: noise must be > 0, got {noise}")
    mean = torch.tensor([1 - law.excess(c) for c in TRADEOFF_CAPS], dtype=torch.float64)
    square = torch.tensor([law.min2(c) for c in TRADEOFF_CAPS], dtype=torch.float64)
    return TRADEOFF_CAPS[int(tradeoff_proxy(mean, square, n, noise).argmin())]


def tradeoff_proxy(
    mean: Float[Tensor, " cap"], square: Float[Tensor, " cap"], n: float | Tensor, noise: float
) -> Float[Tensor, " cap"]:
    """`(1 - mean)_+^2 + noise square / (n mean^2)`: what `tradeoff` makes small; infinite where the mean is 0.

    Args:
        mean: of `w = min(r, C)` at each cap.
        square: of its second moment.
        n: units averaged in one step.
        noise: over 0.
    """
    proxy = (1 - mean).clamp(min=0) ** 2 + noise * square / (n * mean * mean)
    return torch.where(mean > 0, proxy, torch.inf)
