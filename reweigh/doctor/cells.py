"""Adds up moments by cluster and cell, by step and lag, or by prompt, as every test of the doctor does, and reads
estimates off the sums.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.scan.cuts import merge
from reweigh.stats.intervals import t_quantile
from reweigh.stats.sums import NUM_BUCKETS

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[int, int]
MOST_PROMPTS = 4096  # those with the lowest hash; all of them in most runs


@dataclass(frozen=True, eq=False)
class Cells:
    """Sums of some moments in each cell of a fixed grid, cluster by cluster; `a + b` is of both.

    Attributes:
        data: `[64, K, M]` float64: bucket of the cluster, cell, moment.
    """

    data: Array

    @classmethod
    def of(cls, bucket: Ints, cell: Ints | None, cells: int, *moments: NDArray[Any]) -> "Cells":
        """Adds up moments, each `[N]`, of tokens in buckets and cells, each `[N]`; None if there is one cell."""
        where = bucket if cell is None else bucket * cells + cell
        data, counts = np.empty((NUM_BUCKETS * cells, len(moments))), None
        for i, m in enumerate(moments):
            if m.dtype == np.bool_ and not m.all():
                data[:, i] = np.bincount(where[m], minlength=len(data))
                continue
            first = float(m[0]) if len(m) else 0.0
            if first not in (0.0, 1.0) or not (m == first).all():
                data[:, i] = np.bincount(where, weights=m, minlength=len(data))
            elif first:  # all 1, as of a moment that counts: whole numbers, whose sums are exact in any order
                counts = np.bincount(where, minlength=len(data)) if counts is None else counts
                data[:, i] = counts
            else:  # all 0, as of a column that is not recorded
                data[:, i] = 0.0
        return cls(data.reshape(NUM_BUCKETS, cells, len(moments)))

    def __add__(self, other: "Cells") -> "Cells":
        """Adds the sums of other records."""
        return Cells(self.data + other.data)

    @property
    def total(self) -> Array:
        """Sums over all clusters, `[K, M]`."""
        return self.data.sum(0)


def binned(edges: Array, x: Array) -> Ints:
    """Counts the edges below each value, as `np.searchsorted(edges, x)` does: faster where there are few."""
    below = np.zeros(len(x), np.int8)
    for edge in edges:
        below += x > edge
    return below.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Keyed:
    """Sums of some moments by training step and lag, cluster by cluster; `a + b` is of both.

    Steps are joined into ranges of 1, 2, 4, ... until there are at most `RANGES`.

    Attributes:
        data: `[64, M]` of each step and lag.
        width: of a range of steps.
    """

    data: Mapping[Key, Array]
    width: int = 1

    RANGES = 32
    LAGS = 16

    @classmethod
    def of(cls, bucket: Ints, step: Ints, lag: Ints, *moments: NDArray[Any]) -> "Keyed":
        """Adds up moments, each `[N]`, by step and lag, each `[N]`; a lag is below `LAGS`, or -1."""
        steps, of_step = np.unique(step, return_inverse=True)  # a step may be a time stamp, too large to multiply
        unique, code = np.unique(of_step.reshape(-1) * (cls.LAGS + 1) + lag + 1, return_inverse=True)
        cells = Cells.of(bucket, code.reshape(-1), max(len(unique), 1), *moments)
        keys = [(int(steps[x // (cls.LAGS + 1)]), int(x) % (cls.LAGS + 1) - 1) for x in unique]
        return cls({key: cells.data[:, i] for i, key in enumerate(keys)})._joined(1)

    def __add__(self, other: "Keyed") -> "Keyed":
        """Adds the sums of other records, at the wider of the two ranges of steps."""
        width = max(self.width, other.width)
        return Keyed(merge(self._joined(width).data, other._joined(width).data), width)._joined(width)

    def _joined(self, least: int) -> "Keyed":
        """Joins steps into ranges of at least so many, and of twice as many until there are at most `RANGES`."""
        data, width = self.data, self.width
        while width < least or len({step for step, _ in data}) > self.RANGES:
            width = least if width < least else width * 2
            wider: dict[Key, Array] = {}
            for (step, lag), x in data.items():
                key = step // width * width, lag
                wider[key] = wider[key] + x if key in wider else x
            data = wider
        return Keyed(data, width)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Sums of moments of each prompt at each version, of a sample of prompts that is the same however records are cut.

    `a + b` is of both.

    Attributes:
        group: `[P]` hash of the prompt.
        version: `[P]` of the weights that sampled, or the training step.
        sums: `[P, M]`.
    """

    group: Ints
    version: Ints
    sums: Array

    @classmethod
    def of(cls, group: Ints, version: Ints, *moments: Array) -> "Prompts":
        """Adds up moments, each `[N]`, by prompt and version, each `[N]`."""
        if not len(group):
            return cls(group, version, np.stack(moments, -1))
        keys, code = np.unique(np.stack([group, version], -1), axis=0, return_inverse=True)
        code = code.reshape(-1)
        sums = np.stack([np.bincount(code, weights=m, minlength=len(keys)) for m in moments], -1).astype(np.float64)
        groups = np.unique(keys[:, 0])
        if len(groups) > MOST_PROMPTS:  # sorted by hash, so that the same stay whatever came first
            keep = keys[:, 0] < groups[MOST_PROMPTS]
            keys, sums = keys[keep], sums[keep]
        return cls(keys[:, 0], keys[:, 1], sums)

    def __add__(self, other: "Prompts") -> "Prompts":
        """Adds the sums of other records."""
        group, version = np.concatenate([self.group, other.group]), np.concatenate([self.version, other.version])
        return Prompts.of(group, version, *np.concatenate([self.sums, other.sums]).T)


MOST_RESPONSES = 4096  # those with the lowest hash; all of them in most runs


@dataclass(frozen=True, eq=False)
class Responses:
    """What holds for whole responses, of a sample that is the same however records are cut; `a + b` is of both.

    Attributes:
        key: `[R]` hash of the response, rising.
        numbers: `[R, M]` sums over its tokens.
        names: by attribute, what it is of each: a prompt, a step, a bin of lengths; None where it is not known.
    """

    key: Ints
    numbers: Array
    names: Mapping[str, tuple[str | int | None, ...]]

    def __add__(self, other: "Responses") -> "Responses":
        """Adds the responses of other records; an attribute that one of them does not know is None there."""
        attributes = dict.fromkeys((*self.names, *other.names))
        names = {one: (*self._named(one), *other._named(one)) for one in attributes}
        key = np.concatenate([self.key, other.key])
        return Responses(key, np.concatenate([self.numbers, other.numbers]), names).sample()

    def sample(self) -> "Responses":
        """Keeps those with the lowest hash; sums of one response that came in parts are added."""
        key, code = np.unique(self.key, return_inverse=True)
        code = code.reshape(-1)
        sums = [np.bincount(code, weights=m, minlength=len(key)) for m in self.numbers.T]
        numbers: Array = np.stack(sums, -1).astype(np.float64)
        first = np.full(len(key), len(code), np.int64)
        np.minimum.at(first, code, np.arange(len(code)))
        some = first[:MOST_RESPONSES].tolist()
        names = {name: tuple(values[i] for i in some) for name, values in self.names.items()}
        return Responses(key[:MOST_RESPONSES], numbers[:MOST_RESPONSES], names)

    def _named(self, attribute: str) -> tuple[str | int | None, ...]:
        return self.names.get(attribute, (None,) * len(self.key))


@dataclass(frozen=True)
class Estimate:
    """A number with its clustered standard error.

    Attributes:
        value: NaN if there is nothing.
        se: standard error; infinite with fewer than two clusters.
        df: degrees of freedom: clusters less one.
        n: tokens.
    """

    value: float
    se: float
    df: int
    n: int

    @property
    def z(self) -> float:
        """Standard errors from 0; 0 where there is no telling."""
        return self.above(0.0)

    def above(self, other: float) -> float:
        """Standard errors above another value; 0 where there is no telling."""
        if not math.isfinite(self.value) or not math.isfinite(self.se):
            return 0.0
        if self.se == 0:
            return 0.0 if self.value == other else math.copysign(1e6, self.value - other)
        return (self.value - other) / self.se

    def plus(self, number: float) -> "Estimate":
        """Adds a number that is known for sure."""
        return replace(self, value=self.value + number)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval, by Student's t."""
        half = t_quantile(0.975, max(self.df, 1)) * self.se
        return self.value - half, self.value + half


def ratio(total: Array, count: Array, n: float | None = None) -> Estimate:
    """Divides `sum total` by `sum count` over clusters, `[64]` each, with a linearised (sandwich) error."""
    some = count != 0
    t, c = total[some], count[some]
    groups, whole = len(c), float(c.sum())
    n = whole if n is None else n
    if groups == 0 or whole == 0:
        return Estimate(math.nan, math.inf, 0, 0)
    value = float(t.sum()) / whole
    if groups < 2:
        return Estimate(value, math.inf, 0, int(n))
    se = math.sqrt(groups / (groups - 1) * float(((t - value * c) ** 2).sum())) / abs(whole)
    return Estimate(value, se, groups - 1, int(n))


def contrast(a: Estimate, b: Estimate) -> Estimate:
    """Takes `log a - log b` of two estimates, by the delta method, as if they were independent.

    This overstates the error where they share clusters that are high and low together."""
    if not (a.value > 0 and b.value > 0):
        return Estimate(math.nan, math.inf, 0, a.n + b.n)
    se = math.hypot(a.se / a.value, b.se / b.value)
    return Estimate(math.log(a.value / b.value), se, min(a.df, b.df), a.n + b.n)


def jackknife(of: Callable[[Array], float], data: Array) -> Estimate:
    """Takes a statistic of cluster sums `[64, ...]`: its value on all, its error by leaving one cluster out at a time.

    Args:
        of: from summed data, `data.sum(0)`, to a number.
        data: sums by cluster, first axis.
    """
    some = data[np.abs(data).reshape(len(data), -1).sum(1) > 0]
    groups = len(some)
    whole = some.sum(0)
    value = float(of(whole)) if groups else math.nan
    if groups < 2 or not math.isfinite(value):
        return Estimate(value, math.inf, 0, 0)
    left = np.array([of(whole - one) for one in some])
    if not np.isfinite(left).all():
        return Estimate(value, math.inf, 0, 0)
    se = math.sqrt((groups - 1) / groups * float(((left - left.mean()) ** 2).sum()))
    return Estimate(value, se, groups - 1, 0)
