"""Exponents and constants of what was measured at a few places."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9
"""A quantity below this is 0."""


@dataclass(frozen=True)
class Fit:
    """`constant x^exponent`, by least squares of logarithms.

    Attributes:
        exponent: NaN where the quantity is 0 somewhere.
        constant: NaN likewise.
        last: the quantity at the largest x.
        slack: the post's bound at the largest x over the quantity (of Seq-IS the whole second moment); infinite where
            that is 0.
    """

    exponent: float
    constant: float
    last: float
    slack: float


@dataclass(frozen=True)
class Spread:
    """Median and range of an exponent over random worlds; NaN where there is none."""

    median: float
    low: float
    high: float


def fit(x: Sequence[float], y: Sequence[float], bound: float) -> Fit:
    """Fit it to y at the places x, with the bound at the last one."""
    exponent = slope(x, y)
    middle = np.exp(np.mean(np.log(y)) - exponent * np.mean(np.log(x))) if math.isfinite(exponent) else math.nan
    return Fit(exponent, float(middle), y[-1], bound / y[-1] if y[-1] > ROUNDING else math.inf)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y against log x, by least squares; NaN where y is 0 somewhere."""
    if min(y) <= ROUNDING:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def spread(slopes: Sequence[float]) -> Spread:
    """Of exponents, one a world."""
    known = [v for v in slopes if math.isfinite(v)]
    if len(known) < len(slopes):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(float(np.median(known)), min(known), max(known))
