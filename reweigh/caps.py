"""Rules that choose the cap of a truncated ratio: from a law, a batch, or sums that merge."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reweigh.stats.sums import CAPS, POWERS, RatioStats


@runtime_checkable
class RatioLaw(Protocol):
    """The distribution under mu of a ratio r = pi/mu, as far as a rule for its cap asks.

    `LogNormalRatio` is a model, from one number; `FiniteRatio` the exact law of a world that can be enumerated.
    """

    @property
    def chi2(self) -> float:
        """`E_mu r^2 - 1`: the chi-square of pi from mu; infinite if there is none."""
        ...

    def excess(self, cap: float) -> float:
        """`b(C) = E_mu (r - C)_+`: what truncation at C loses."""
        ...

    def lost(self, cap: float) -> float:
        """`P_pi(r > C) = E_mu r 1{r > C}`: what rejection over C loses."""
        ...

    def min2(self, cap: float) -> float:
        """`E_mu min(r, C)^2`: second moment of the truncated ratio."""
        ...


@dataclass(frozen=True)
class CapRule(ABC):
    """How a cap follows from ratios: of a batch, of sums, or of a known law. A frozen value.

    `log_cap` chooses without waiting for the device. Without `stats` the cap is chosen on the units that it caps, and
    micro-batches or ranks would each have their own. With `stats` it is chosen on those, whatever they were summed
    over: `all_reduce(RatioStats.of(batch, SEQUENCE))` is this batch on all ranks, a running sum the last steps. No
    units at all give no cap: C is infinite. `of_law` is what the rule tends to as its sample grows.

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
        if self.n is not None:
            _check_n(type(self).__name__, self.n)

    @abstractmethod
    def of_law(self, law: RatioLaw) -> float:
        """Cap of a ratio of known law, pi/mu.

        Args:
            law: of the ratio, such as `LogNormalRatio(s2)`.

        Raises:
            ValueError: if the rule needs `n` and has none.
        """

    @final
    def log_cap(self, log_ratio: Float[Tensor, "*unit"], valid: Bool[Tensor, "*unit"]) -> Float[Tensor, ""]:
        """Log of the cap, nats, float64.

        Args:
            log_ratio: of each unit, in any order; not read if the rule has stats.
            valid: which of them are units.
        """
        if self.stats is not None:
            units = self.stats.moments[0].sum()
            cap = self._of_stats(self.stats, units, self._step(units))
        else:
            l = torch.where(valid, log_ratio.detach().double(), -torch.inf).flatten()
            units = valid.sum().double()
            # A place more that is no unit, so that no batch is too small for a maximum.
            cap = self._of_sample(torch.cat([l, l.new_full((1,), -torch.inf)]), units, self._step(units))
        return torch.where(units > 0, cap, torch.inf)

    @abstractmethod
    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        """Log cap from log ratios, -inf where there is no unit."""

    @abstractmethod
    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        """Log cap from sums."""

    def _step(self, units: Tensor) -> Tensor:
        return units.clamp(min=1) if self.n is None else torch.full_like(units, self.n)

    def _given_n(self) -> float:
        if self.n is None:
            name = type(self).__name__
            raise ValueError(f"{name}: the cap of a law needs n, the units averaged in one step\nhint: {name}(n=64)")
        return self.n


@dataclass(frozen=True, eq=False)
class CapRange:
    """Where a cap lies as far as sums can tell.

    Attributes:
        low: log of the smallest cap it can be, nats.
        high: log of the largest, nats.
    """

    low: Float[Tensor, ""]
    high: Float[Tensor, ""]

    @property
    def log_cap(self) -> Float[Tensor, ""]:
        """Middle of the range in nats: the cap itself where the range is a point."""
        # A mean of infinities is NaN, and their sum over 2 is not.
        return torch.where(self.low == self.high, self.low, (self.low + self.high) / 2)


@final
@dataclass(frozen=True)
class Balance(CapRule):
    """`C = N E_mu (r - C)_+`: the cap with the least worst-case error of a truncated estimator over N units.

    The unique minimum of `E_mu(r - C)_+^2 + E_mu min(r, C)^2 / N`, which is the worst of squared bias plus second
    moment over N among integrands of norm at most 1; and no other function of the ratio has a smaller worst case. It
    is a guard against the worst: on a given problem a smaller cap is often better still at small N.

    Of a sample of M ratios it is `C = max_k (r_(1) + ... + r_(k)) / (k + M / N)` over ratios in falling order, the root
    of `N mean(r - C)_+ = C` in closed form: k grows the maximand exactly while the next ratio is above it. Where the
    sample's mean ratio falls short of 1 for want of its tail, so does the cap: with a variance of log r of 4 or 9 its
    bound is 1.2 to 1.5 times the best one.

    Args:
        n: units averaged in one step, at least 1; those that the cap is chosen on if None.
        stats: at the level to cap.

    Example:
        >>> import torch
        >>> from reweigh.theory.laws import LogNormalRatio
        >>> print(f"{Balance(n=16).of_law(LogNormalRatio(4.0)):.1f}")
        5.9
        >>> l = torch.tensor([4.0, 1.0, 0.5]).log()
        >>> print(f"{Balance().log_cap(l, torch.ones(3, dtype=torch.bool)).exp():.2f}")
        2.00

    Source: stationary point of the bound above, and its empirical form; ours.
    """

    def of_law(self, law: RatioLaw) -> float:
        """Solve `C = N E_mu (r - C)_+`: a ratio pi/mu in (0, N]."""
        n = self._given_n()
        return _crossing(lambda cap: n * law.excess(cap), n)

    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        return _largest_mean(l.sort(descending=True).values, n, units.clamp(min=1)).amax()

    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        return self.range_of_stats(stats).log_cap

    def range_of_stats(self, stats: RatioStats) -> CapRange:
        """Bracket the root of `N mean(r - C)_+ = C` over all units of the stats, as their sample would have it.

        A point when it lies over the smallest of the 256 largest ratios that the stats keep, which are all of them in a
        batch of 256 units. Else it lies between two caps of the grid, half an octave apart, where `sum (r - C)_+` is
        convex and known at both ends with its slopes, and bounded by the mean and variance of the ratios between them.
        For log-normal ratios its middle is then within 7%, where the error bound has barely risen. No host sync.

        Args:
            stats: at the level to cap; merged over ranks and steps as you like.

        Returns:
            The range; -inf at both ends if there are no units.

        Example:
            >>> import torch
            >>> from reweigh import SEQUENCE, Batch, RatioStats
            >>> log_ratio = torch.tensor([[4.0], [1.0], [0.5]], dtype=torch.float64).log()
            >>> batch = Batch.padded(log_ratio - 9, torch.full_like(log_ratio, -9), torch.ones(3, 1))
            >>> print(f"{Balance().range_of_stats(RatioStats.of(batch, SEQUENCE)).log_cap.exp():.2f}")
            2.00

        Source: the bracket is that of a convex function; ours.
        """
        units = stats.moments[0].sum()
        n, units = self._step(units), units.clamp(min=1)  # 0 / 0 is no ratio, and with no units nothing depends on it
        point = _largest_mean(stats.top, n, units).amax()
        exact = (point >= stats.top[-1]) | (units <= len(stats.top))
        low, high = _on_the_grid(stats, units, n)
        low = torch.maximum(low, point)  # any mean of largest ratios is at most the cap
        return CapRange(torch.where(exact, point, low), torch.where(exact, point, torch.maximum(low, high)))


@dataclass(frozen=True)
class SecondMomentRule(CapRule):
    """A cap that follows from `1 + chi2`, which is `E r^2`, and N.

    Under a heavy tail the sample's second moment falls far short of 1 + chi2, and so does the cap.
    """

    @abstractmethod
    def of_chi2(self, chi2: float) -> float:
        """Cap of a ratio of known chi-square, pi/mu.

        Args:
            chi2: of pi from mu, at the level to cap, at least 0; infinite gives no cap.

        Raises:
            ValueError: if chi2 is negative or NaN, or if the rule needs `n` and has none.
        """

    @final
    def of_law(self, law: RatioLaw) -> float:
        """Cap from the law's chi-square."""
        chi2 = law.chi2
        return self.of_chi2(0.0 if -1e-9 < chi2 < 0 else chi2)  # sums over a finite law round to just below 0

    @final
    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        return self._of_squares(2 * l, units, n)

    @final
    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        return self._of_squares(stats.powers[POWERS.index(2.0)].log() + 2 * stats.shift, units, n)

    def _of_squares(self, squares: Tensor, units: Tensor, n: Tensor) -> Tensor:
        # log(1 + chi2) as the sample has it, from logs of what adds up to it; at least 0 as any law has it.
        return self._of_m2((torch.logsumexp(squares, 0) - units.log()).clamp(min=0), n)

    @abstractmethod
    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        """Log cap from the log of the second moment."""

    def _checked(self, chi2: float) -> float:
        if not chi2 >= 0:
            raise ValueError(f"{type(self).__name__}: chi2 must be >= 0, got {chi2}")
        return chi2


@final
@dataclass(frozen=True)
class Post(SecondMomentRule):
    """`C = sqrt(2 (1 + chi2))`: the cap of the blog post; of a batch, `sqrt(2 mean r^2)`. It ignores N.

    It minimises the post's bound on the error of *one* sequence. It ignores the batch size (the same bounds give
    `sqrt(2 (1 + chi2)) N^(1/4)`, which is `PostBatch`), and its bound is four times that of no cap at all, so read it
    as a starting point.

    Args:
        n: not read.
        stats: at the level to cap.

    Example:
        >>> Post().of_chi2(1.0)
        2.0

    Source: Li and Liu (2025), Part 2, The optimal balance.
    """

    def of_chi2(self, chi2: float) -> float:
        """`sqrt(2 (1 + chi2))`, a ratio pi/mu of at least sqrt(2)."""
        return math.sqrt(2 * (1 + self._checked(chi2)))

    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        return (math.log(2) + log_m2) / 2


@final
@dataclass(frozen=True)
class PostBatch(SecondMomentRule):
    """`C = sqrt(2 (1 + chi2)) N^(1/4)`: what the post's own bounds give when the variance is divided by the batch size.

    Args:
        n: units averaged in one step, at least 1; those that the cap is chosen on if None.
        stats: at the level to cap.

    Example:
        >>> PostBatch(n=16).of_chi2(1.0)
        4.0

    Source: minimises `(2 (1 + chi2) / C)^2 + C^2 / N`, the bounds of Li and Liu (2025), Part 2.
    """

    def of_chi2(self, chi2: float) -> float:
        """`sqrt(2 (1 + chi2)) N^(1/4)`, a ratio pi/mu; that of `Post` at n = 1."""
        return math.sqrt(2 * (1 + self._checked(chi2))) * self._given_n() ** 0.25

    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        return (math.log(2) + log_m2) / 2 + n.log() / 4


@final
@dataclass(frozen=True)
class Cubic(SecondMomentRule):
    """`C = (N (1 + chi2)^2)^(1/3) / 2`: minimises a closed-form bound on the batch's error, `tis_mse_cubic`.

    It uses the chi-square alone, so it is right in its rate and wide of `Balance` in its constant. Where `N >= 64/27
    (1 + chi2)` the bound without any cap is the smaller one: then do not truncate.

    Args:
        n: units averaged in one step, at least 1; those that the cap is chosen on if None.
        stats: at the level to cap.

    Example:
        >>> print(f"{Cubic(n=64).of_chi2(0.0):.3f}")
        2.000

    Source: excess at most (1 + chi2) / (4 C) by the inequality of means, second moment at most C; ours.
    """

    def of_chi2(self, chi2: float) -> float:
        """`(N (1 + chi2)^2)^(1/3) / 2`, a ratio pi/mu."""
        return (self._given_n() * (1 + self._checked(chi2)) ** 2) ** (1 / 3) / 2

    def _of_m2(self, log_m2: Tensor, n: Tensor) -> Tensor:
        return (n.log() + 2 * log_m2) / 3 - math.log(2)


@final
@dataclass(frozen=True)
class SqrtN(CapRule):
    """`C = sqrt(N)`: reads no ratio at all, and has the right rate whenever the chi-square is finite.

    Args:
        n: units averaged in one step, at least 1; the units of the batch, or of the stats, if None.
        stats: read for their number of units only.

    Example:
        >>> from reweigh.theory.laws import LogNormalRatio
        >>> SqrtN(n=64).of_law(LogNormalRatio(4.0))
        8.0

    Source: Ionides (2008), Truncated importance sampling.
    """

    def of_law(self, law: RatioLaw) -> float:
        """`sqrt(N)`, whatever the law."""
        return math.sqrt(self._given_n())

    def _of_sample(self, l: Tensor, units: Tensor, n: Tensor) -> Tensor:
        return n.log() / 2

    def _of_stats(self, stats: RatioStats, units: Tensor, n: Tensor) -> Tensor:
        return n.log() / 2


TRADEOFF_CAPS = tuple(c for c in CAPS if c >= 1)
"""The caps that `Tradeoff` chooses from: half octaves from 1 up."""
NOISE = 16.0
"""Default of `Tradeoff`: did best on worlds with rewards of three kinds, and 8 to 32 nearly as well."""
_FROM_ONE = CAPS.index(TRADEOFF_CAPS[0])


@final
@dataclass(frozen=True)
class Tradeoff(CapRule):
    """`argmin_C (1 - E w)_+^2 + noise E w^2 / (N (E w)^2)` with `w = min(r, C)`, over half octaves from 1 up.

    The first term is the mass that truncation loses, and so the square of the worst bias; the second is noise over
    the effective number of weights. It knows what `Balance` does not: that a step's direction counts and not its
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
        >>> from reweigh.theory.laws import LogNormalRatio
        >>> print([f"{Tradeoff(n=n).of_law(LogNormalRatio(4.0)):.1f}" for n in (64, 1024)])
        ['1.0', '16.0']
        >>> l = torch.tensor([-0.1, 0.1, 3.0, 0.0, -0.1, 0.0, 0.1, -0.2])
        >>> print(f"{Tradeoff().log_cap(l, torch.ones(8, dtype=torch.bool)).exp():.2f}")
        1.00

    Source: ours; `benchmarks/caps.py` measures it.
    """

    noise: float = NOISE

    def __post_init__(self) -> None:
        """Refuse a noise of nothing."""
        CapRule.__post_init__(self)
        if not self.noise > 0:
            raise ValueError(f"Tradeoff: noise must be > 0, got {self.noise}")

    def of_law(self, law: RatioLaw) -> float:
        """Choose one of the caps by the law's moments: a power of sqrt(2), from 1 up."""
        n = self._given_n()
        mean = torch.tensor([1 - law.excess(c) for c in TRADEOFF_CAPS], dtype=torch.float64)
        square = torch.tensor([law.min2(c) for c in TRADEOFF_CAPS], dtype=torch.float64)
        return TRADEOFF_CAPS[int(self._proxy(mean, square, n).argmin())]

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
        return caps.log().index_select(0, self._proxy(mean, square, n).argmin()[None]).squeeze(0)

    def _proxy(self, mean: Float[Tensor, " cap"], square: Float[Tensor, " cap"], n: float | Tensor) -> Tensor:
        """Work out the sum to make small at each cap, from the moments of `w`; infinite where the mean is 0."""
        proxy = (1 - mean).clamp(min=0) ** 2 + self.noise * square / (n * mean * mean)
        return torch.where(mean > 0, proxy, torch.inf)


def mis_balance_cap(law: RatioLaw, n: float) -> float:
    """`C = 2 N P_pi(r > C)`: the cap with the least worst-case error of a *rejecting* estimator over N units.

    Minimises `P_pi(r > C)^2 + E_mu r^2 1{r <= C} / N`, as a rule at about twice the cap of truncation. There is no
    form of it from a sample, and so no `CapRule`: rejecting the largest of a sample's ratios leaves this sum exactly as
    it was, and rejecting any more raises it, so the sample says "reject nothing" whatever it is.

    Args:
        law: of the ratio, such as `LogNormalRatio(s2)`.
        n: units averaged in one step, at least 1.

    Returns:
        A ratio pi/mu, in (0, 2 N].

    Raises:
        ValueError: if n is below 1.

    Example:
        >>> from reweigh.theory.laws import LogNormalRatio
        >>> print(f"{mis_balance_cap(LogNormalRatio(1.0), 64):.1f}")
        7.8

    Source: stationary point of the bound above; ours.
    """
    _check_n("mis_balance_cap", n)
    return _crossing(lambda cap: 2 * n * law.lost(cap), 2 * n)


def _check_n(rule: str, n: float) -> None:
    if not n >= 1:
        raise ValueError(f"{rule}: n must be >= 1, got {n}")


def _crossing(falling: Callable[[float], float], most: float) -> float:
    """Find the C in (0, most] at which a function that does not grow meets C, by bisection of log C."""
    low, high = -745.0, math.log(most)  # e^-745 is the smallest float64
    for _ in range(80):  # 80 halvings of that range are far below the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if falling(math.exp(middle)) > math.exp(middle) else (low, middle)
    return math.exp(high)


def _largest_mean(falling: Float[Tensor, " k"], n: Tensor, count: Tensor) -> Float[Tensor, " k"]:
    """`log((r_(1) + ... + r_(k)) / (k + M / N))` for each k, from log ratios in falling order, nats.

    Each is at most the log of the balance cap, and the largest over all k is it.

    Args:
        falling: the largest log ratios, in falling order.
        n: N, units averaged in one step.
        count: M, units of the sample that they are the largest of.
    """
    k = torch.arange(1, len(falling) + 1, device=falling.device, dtype=falling.dtype)
    return torch.logcumsumexp(falling, 0) - torch.log(k + count / n)


def _on_the_grid(stats: RatioStats, units: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Bracket the log of the balance cap by the grid of the stats alone."""
    edges = torch.tensor((0.0, *CAPS), dtype=torch.float64, device=stats.top.device)  # the lower end of each cell
    count, total, squares = stats.grid.sum(1)
    log_all = torch.logsumexp(stats.powers[POWERS.index(1.0)].log() + stats.shift, 0)
    # The grid does not sum what is over its top. What the lower cells leave of the sum of all is that.
    over_top = torch.where(count[-1] > 0, (log_all.exp() - total.sum()).clamp(min=0), 0)
    total = torch.cat([total[:-1], over_top[None]])
    above, sum_above = (x.flip(0).cumsum(0).flip(0) for x in (count, total))  # from each lower end on
    slack = units / n
    # At each lower end: how far sum (r - C)_+ is above the line M C / N.
    gap = sum_above - edges * (above + slack)
    i = ((gap > 0).sum() - 1).clamp(min=0)  # the root is in this cell: the gap falls
    j = (i + 1).clamp(max=len(edges) - 1)
    # A tensor as an index would stop the device; selecting by one does not.
    table = torch.stack([count, total, squares, edges, above + slack, sum_above, gap])
    here, after = table.index_select(1, torch.stack([i, j])).unbind(1)
    cell, (start, rest_here, sum_here, gap_here) = here[:3], here[3:].unbind()
    end, rest, sum_over, gap_after = after[3:].unbind()
    low = torch.maximum(sum_here / rest_here, sum_over / rest).log()
    chord = start + (end - start) * gap_here / (gap_here - gap_after)
    high = torch.minimum(chord, _spread_at_most(cell, rest, sum_over)).log()
    # Over the top there is no chord, and the sums may be infinite: the cap is below the mean with nothing taken off.
    top = i == j
    return torch.where(top, -torch.inf, low), torch.where(top, log_all - torch.log(slack), high)


def _spread_at_most(cell: Tensor, rest: Tensor, sum_over: Tensor) -> Tensor:
    """Bound the root by what the mean and variance of a cell allow: the cap when its ratios take two values only.

    `sum (r - C)_+` of k ratios of mean m and variance v is at most `k (sqrt(v + (m - C)^2) + m - C) / 2`.

    Args:
        cell: number of ratios in the cell, their sum, and the sum of their squares.
        rest: ratios over the cell, plus M / N.
        sum_over: sum of the ratios over the cell.

    Source: Scarf (1958), A min-max solution of an inventory problem.
    """
    count, total, squares = cell.unbind()
    some = count.clamp(min=1)
    mean = total / some
    variance = (squares / some - mean * mean).clamp(min=0)
    a, b = 1 + 2 * rest / some, 2 * (rest * mean - sum_over) / some
    off = (torch.sqrt(b * b + (a * a - 1) * variance) - a * b) / (a * a - 1)
    return torch.where(count > 0, mean + off, torch.inf)
