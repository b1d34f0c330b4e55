"""Comparing a tree of numbers with the same tree computed anew, so that nothing in it goes unlooked at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

TOLERANCE = 1e-9
SNIS_TOLERANCE = 1e-8  # an integral by quadrature on either side
# What is 0 up to rounding (a bias that there is not) has no relative error: a quantity below this share of the scale
# of its kind is compared as if it were that large.
FLOOR = 1e-3


@dataclass
class Tally:
    """One kind of quantity: how many were compared, and how far off the worst one is.

    Attributes:
        group: its name.
        tolerance: the largest relative error that passes.
        count: numbers compared; a vector of six counts six.
        worst: largest relative error.
        where: the place of the worst one.
    """

    group: str
    tolerance: float
    count: int = 0
    worst: float = 0.0
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether all are within the tolerance."""
        return self.worst <= self.tolerance  # False for NaN


@dataclass
class Comparison:
    """All tallies, and what there was nothing to compare with."""

    tallies: dict[str, Tally] = field(default_factory=lambda: {})
    uncovered: list[str] = field(default_factory=lambda: [])

    def add(self, group: str, where: str, given: Any, computed: Any, scale: float = 1.0) -> None:
        """Compare one quantity: a number, null, or a list of them of any depth.

        Args:
            group: the kind that it is counted under.
            where: its place in the file.
            given: what the file says; null stands for what is not finite.
            computed: what we say; None if we cannot say.
            scale: what quantities of its kind are of the size of.
        """
        if computed is None and given is not None:
            self.uncovered.append(where)
            return
        tolerance = SNIS_TOLERANCE if group.startswith("snis") else TOLERANCE
        tally = self.tallies.setdefault(group, Tally(group, tolerance))
        ours, theirs = numbers(computed), numbers(given)
        tally.count += len(theirs)
        error = _error(theirs, ours, scale)
        if not error <= tally.worst:
            tally.worst, tally.where = error, where

    def walk(
        self, group: str, where: str, given: Any, computed: Any, scales: Mapping[str, float] | None = None
    ) -> None:
        """Compare every quantity below a place of the file, and note which ones `computed` lacks.

        Args:
            group: of what is here.
            where: the place.
            given: what the file says.
            computed: the same tree.
            scales: the scale of each key, the key "" being for all others; if given, each key is a group of its own.
        """
        if not isinstance(given, Mapping):
            self.add(group, where, given, computed)
            return
        for key, value in cast("Mapping[str, Any]", given).items():
            mine = cast("Mapping[str, Any]", computed)[key] if _has(computed, key) else None
            if isinstance(value, Mapping):
                self.walk(f"{group}.{key}", f"{where}.{key}", value, mine)
            elif scales is None:
                self.add(group, f"{where}.{key}", value, mine)
            else:
                self.add(f"{group}.{key}", f"{where}.{key}", value, mine, scales.get(key, scales.get("", 1.0)))


def numbers(x: Any) -> list[float]:
    """A number or a nested list of numbers, flat; null and what is not finite are NaN.

    Raises:
        ValueError: on anything else.
    """
    if isinstance(x, (list, tuple)):
        return [v for part in cast("Sequence[Any]", x) for v in numbers(part)]
    if x is None:
        return [math.nan]
    if not isinstance(x, (int, float)):
        raise ValueError(f"golden file: a number was expected, got {x!r}")
    return [float(x) if math.isfinite(x) else math.nan]


def _has(tree: Any, key: str) -> bool:
    return isinstance(tree, Mapping) and key in tree


def _error(given: list[float], ours: list[float], scale: float) -> float:
    if len(given) != len(ours) or any(math.isnan(a) != math.isnan(b) for a, b in zip(given, ours, strict=True)):
        return math.inf
    pairs = [(a, b) for a, b in zip(given, ours, strict=True) if not math.isnan(a)]
    size = max([FLOOR * scale, *(abs(a) for a, _ in pairs)])
    away = max([0.0, *(abs(a - b) for a, b in pairs)])
    return away / size if size > 0 else (0.0 if away == 0 else math.inf)
