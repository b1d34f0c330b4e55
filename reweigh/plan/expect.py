"""What an estimator would do to ratios of a known law: how much it drops, caps and keeps, in closed form."""

import math
from dataclasses import dataclass, replace
from typing import final

from reweigh.divergences import log_ratio
from reweigh.estimators import Estimator, Factor
from reweigh.plan.bands import Centred
from reweigh.plan.law import MixedRatio, Part
from reweigh.planner import LogNormalRatio
from reweigh.transforms import Clip, Identity, Reject, Screen, Transform

_ROUNDING = 1e-12  # of sums in float64
_PREFIXES = 64  # of a sequence, over which a prefix estimator is averaged: by the midpoint rule


@final
@dataclass(frozen=True)
class Expected:
    """What an estimator does to a unit, on average.

    Attributes:
        kept: share of units that are not dropped.
        capped: share of units that are kept with their ratio moved to a bound.
        retained: mean weight over all units, dropped ones at 0. What the mean step is multiplied by, if the loss is
            divided by all units.
        square: mean squared weight over all units.
    """

    kept: float
    capped: float
    retained: float
    square: float

    @property
    def dropped(self) -> float:
        """Share of units that are dropped."""
        return 1 - self.kept if self.kept < 1 - _ROUNDING else 0.0

    @property
    def over_kept(self) -> float | None:
        """Mean weight over kept units: the factor on the step if the loss is divided by these; None if none is left."""
        return self.retained / self.kept if self.kept > 0 else None

    @property
    def ess(self) -> float:
        """`(mean w)^2 / mean w^2`: effective share of all units; 0 if none is left."""
        if not self.square > 0:
            return 0.0
        return min(1.0, self.retained**2 / self.square)


def expect(estimator: Estimator, law: MixedRatio, turns: float | None = None) -> Expected | None:
    """`P(keep)`, `P(moved)`, `E w` and `E w^2` of an estimator, when token ratios are independent with the law's s2.

    In a product, a token and its long sequence are taken as independent given the part, which they nearly are.

    Args:
        estimator: factors at TOKEN, TURN, PREFIX or SEQUENCE with `Identity`, `Clip`, `Reject` or `Screen` of the
            log ratio; `Screen` at GEOMETRIC; `length_band`. Products of token factors with those of one other level;
            at one level, of screens and at most one ratio. A self-normalised one is in the limit of many units.
        law: of the ratios.
        turns: how many a sequence has; without it an estimator of turns has no closed form.

    Returns:
        None if there is no closed form.

    Example:
        >>> from reweigh import seq_tis
        >>> from reweigh.plan import MixedRatio, expect
        >>> found = expect(seq_tis(2.0), MixedRatio.of_lengths(1e-3, [(1024, 1.0)]))
        >>> print(f"{found.retained:.2f}")
        0.64

    Source: closed forms of `LogNormalRatio`.
    """
    parts = [_of_part(estimator, part, turns) for part in law.parts]
    by_token = estimator.unit != "sequence"
    weights = [p.share * p.length if by_token else p.share for p in law.parts]
    total = sum(weights)
    sums = [0.0] * 4
    for weight, found in zip(weights, parts, strict=True):
        if found is None:
            return None
        values = (found.kept, found.capped, found.retained, found.square)
        sums = [s + weight / total * x for s, x in zip(sums, values, strict=True)]
    kept, capped, retained, square = sums
    if estimator.normalise and retained > 0:  # over kept units the mean weight is 1
        retained, square = kept, square * (kept / retained) ** 2
    return Expected(kept, capped, retained, square)


def _of_part(estimator: Estimator, part: Part, turns: float | None) -> Expected | None:
    kept = retained = square = 1.0
    capped = 0.0
    factors = _joined(estimator.factors)
    if factors is None:
        return None
    for factor in factors:
        found = _of_factor(factor, part, turns)
        if found is None:
            return None
        capped = capped * found.kept + kept * found.capped - capped * found.capped
        kept, retained, square = kept * found.kept, retained * found.retained, square * found.square
    return Expected(kept, capped, retained, square)


def _joined(factors: tuple[Factor, ...]) -> tuple[Factor, ...] | None:
    """At most one factor a level; None if two of them follow from one ratio in a way that has no closed form here."""
    by_level: dict[str, Factor] = {}
    for f in factors:
        other = by_level.get(f.level.name)
        transform = f.transform if other is None else _both(other.transform, f.transform)
        if transform is None or (other is not None and (other.of, other.sign, other.scale) != (f.of, f.sign, f.scale)):
            return None
        by_level[f.level.name] = replace(f, transform=transform)
    return tuple(by_level.values()) if len(by_level.keys() - {"token"}) <= 1 else None


def _both(a: Transform, b: Transform) -> Transform | None:
    """The transform that does both to one ratio."""
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Screen) and isinstance(y, (Screen, Reject)):
            low, high = max(x.low, y.low), min(x.high, y.high)
            return type(y)(low, high) if low <= high else None
        if isinstance(x, Screen) and (isinstance(y, Identity) or y == Clip()):
            return Reject(x.low, x.high)
    return None


def _of_factor(f: Factor, part: Part, turns: float | None) -> Expected | None:
    t = f.transform
    if isinstance(f.of, Centred) and isinstance(t, Screen) and f.level.name == "root":
        root = math.sqrt(part.length)
        ends = (-f.of.kl * part.length + root * math.log(x) for x in (t.low, t.high))
        return _screened(_normal_within(part.s2 * part.length, *ends))
    if f.of is not log_ratio or f.sign or f.scale != 1:
        return None
    if f.level.name == "geometric":
        return _screened(_geometric(t, part)) if isinstance(t, Screen) else None
    if f.level.name == "prefix":
        step = part.length / _PREFIXES
        found = [_of_ratio(t, part.ratio((i + 0.5) * step)) for i in range(_PREFIXES)]
        return _mean([x for x in found if x is not None]) if None not in found else None
    if f.level.name == "turn":
        return None if turns is None else _of_ratio(t, part.ratio(part.length / turns))
    tokens = {"token": 1.0, "sequence": part.length}.get(f.level.name)
    return None if tokens is None else _of_ratio(t, part.ratio(tokens))


def _of_ratio(t: Transform, law: LogNormalRatio) -> Expected | None:
    """A transform of a ratio with this law."""
    if isinstance(t, Identity):
        return Expected(1, 0, 1, 1 + law.chi2)
    if isinstance(t, Clip):
        below = t.low + law.excess(t.low) - 1  # E (low - r)_+
        over = 0.0 if math.isinf(t.high) else law.excess(t.high)
        square = 1 + law.chi2 if math.isinf(t.high) else law.min2(t.high)
        square += t.low**2 - law.min2(t.low)
        return Expected(1, law.above(t.high) + 1 - law.above(t.low), 1 + below - over, square)
    if isinstance(t, Reject):
        upto = 1 + law.chi2 if math.isinf(t.high) else law.mis_m2(t.high)
        retained = law.lost(t.low) - law.lost(t.high)
        return Expected(law.within(t.low, t.high), 0, retained, upto - law.mis_m2(t.low))
    if isinstance(t, Screen):
        return _screened(law.within(t.low, t.high))
    return None


def _geometric(t: Screen, part: Part) -> float:
    low = t.low if t.low > 0 else 1e-300  # a ratio that no mean of log ratios reaches
    high = t.high if t.high < math.inf else 1e300
    return part.ratio(part.length).geo_accept(low, high, part.length)


def _normal_within(s2: float, low: float, high: float) -> float:
    """`P(low <= X <= high)` of `X ~ N(-s2/2, s2)`."""
    if s2 == 0:
        return 1.0 if low <= 0 <= high else 0.0
    below, upto = (math.erfc(-(x + s2 / 2) / math.sqrt(2 * s2)) / 2 for x in (low, high))
    return upto - below


def _screened(kept: float) -> Expected:
    return Expected(kept, 0, kept, kept)


def _mean(found: list[Expected]) -> Expected:
    n = len(found)
    columns = zip(*((x.kept, x.capped, x.retained, x.square) for x in found), strict=True)
    return Expected(*(sum(column) / n for column in columns))
