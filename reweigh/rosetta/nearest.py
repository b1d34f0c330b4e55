"""The options of another framework that come nearest to a composition, and what they do otherwise."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from reweigh.estimators import Estimator, Factor
from reweigh.levels import log_ratio
from reweigh.rosetta.formula import formula
from reweigh.rosetta.profile import Bounds, Profile, RefusedError
from reweigh.transforms import AtMost, Clip, Identity, Reject, Screen

# What a difference costs when the nearest is looked for: the unit matters most, the bound least.
_NO_BOUND = 2e-9  # a ratio that no one reaches: some options cannot be left open
_LEVEL, _STATISTIC, _TRANSFORM, _SIGN, _BOUND, _MISSING = 3.0, 4.0, 2.0, 3.0, 0.5, 5.0


@dataclass(frozen=True)
class Nearest:
    """The nearest options.

    Attributes:
        options: of the other framework; empty if nothing of it comes near.
        estimator: what they compute.
        exact: whether that is the same composition.
        differs: in which way it is not.
        notes: what holds of the options there.
    """

    options: Mapping[str, Any]
    estimator: Estimator
    exact: bool
    differs: tuple[str, ...]
    notes: tuple[str, ...]


def nearest(estimator: Estimator, profile: Profile) -> Nearest:
    """Options of `profile` whose composition is the nearest to `estimator`; never a silent approximation."""
    best: tuple[float, Mapping[str, Any], Estimator, tuple[str, ...], tuple[str, ...]] | None = None
    for options in _candidates(estimator, profile):
        try:
            reading = profile.read(options)
        except RefusedError:
            continue
        found = reading.plan.estimator
        cost, differs = _compare(estimator, found)
        if best is None or (cost, len(options)) < (best[0], len(best[1])):
            best = (cost, options, found, differs, reading.notes)
    assert best is not None  # no options at all is always a candidate
    cost, options, found, differs, notes = best
    return Nearest(options, found, cost == 0, differs, notes)


def _candidates(estimator: Estimator, profile: Profile) -> Iterator[Mapping[str, Any]]:
    yield {}
    off = {o.name: False for o in profile.options if o.default is True and "correction" in o.name}
    yield off
    bounds = [b for f in estimator.factors if (b := _bounds(f)) is not None] or [Bounds(0.0, math.inf, math.inf)]
    weights = [t for t in profile.templates if t.kind == "weights"]
    screens = [t for t in profile.templates if t.kind == "screens"]
    for b in bounds:
        for t in (*weights, *screens):
            yield {**(off if t.kind == "screens" else {}), **t.options(b)}
    for b, c in permutations(bounds, 2):
        for t in weights:
            for s in screens:
                first, second = t.options(b), s.options(c)
                if all(first.get(k, v) == v for k, v in second.items()):
                    yield {**first, **second}


def _bounds(f: Factor) -> Bounds | None:
    t = f.transform
    if isinstance(t, (Clip, Reject, Screen)):
        return Bounds(t.low, t.high, abs(math.log(t.high)) if 0 < t.high < math.inf else math.inf)
    if isinstance(t, AtMost):
        return Bounds(math.exp(-t.bound), math.exp(t.bound), t.bound)
    return None


def _compare(wanted: Estimator, found: Estimator) -> tuple[float, tuple[str, ...]]:
    """Least cost of pairing the factors, and what differs in that pairing."""
    a, b = list(wanted.factors), list(found.factors)
    pad = max(len(a), len(b))
    best: tuple[float, list[str]] = (math.inf, [])
    rows: list[Factor | None] = [*a, *[None] * (pad - len(a))]
    columns: list[Factor | None] = [*b, *[None] * (pad - len(b))]
    for order in permutations(columns) if pad <= 4 else [tuple(columns)]:
        cost, says = 0.0, list[str]()
        for x, y in zip(rows, order, strict=True):
            c, s = _pair(x, y)
            cost, says = cost + c, says + s
        if cost < best[0]:
            best = (cost, says)
    if wanted.normalise != found.normalise:
        best = (best[0] + _TRANSFORM, [*best[1], "the weights are divided by their mean in one of the two only"])
    return best[0], tuple(best[1])


def _pair(x: Factor | None, y: Factor | None) -> tuple[float, list[str]]:
    if x == y or (x is not None and y is not None and _same(x, y)):
        return 0.0, []
    if x is None or y is None:
        only = x or y
        assert only is not None
        told = formula(Estimator((only,))).removeprefix("w = ")
        if told in ("1", "r_t") and x is None and told == "1":
            return 0.0, []
        return _MISSING, [f"{told} is not expressed" if y is None else f"{told} comes with it"]
    cost, says = 0.0, list[str]()
    if x.of is not y.of:
        cost, says = cost + _STATISTIC, [*says, f"compares {y.of.__name__}, not {x.of.__name__}"]
    if x.level != y.level:
        cost, says = cost + _LEVEL, [*says, f"acts on the {_level(y)}, not on the {_level(x)}"]
    if x.sign != y.sign:
        cost, says = cost + _SIGN, [*says, "depends on the sign of the advantage otherwise"]
    if type(x.transform) is not type(y.transform):
        cost, says = cost + _TRANSFORM, [*says, f"{_does(y)}, where the other {_does(x)}"]
    elif x.transform != y.transform or x.scale != y.scale:
        cost, says = cost + _BOUND, [*says, f"bounds are {y.transform}, not {x.transform}"]
    return cost, says


def _same(x: Factor, y: Factor) -> bool:
    """Equal but for the rounding of bounds that were written as text, and for bounds that nothing reaches."""
    if (x.level, x.of, x.sign, x.scale, type(x.transform)) != (y.level, y.of, y.sign, y.scale, type(y.transform)):
        return False
    if not isinstance(x.transform, (Clip, Reject, Screen)) or not isinstance(y.transform, (Clip, Reject, Screen)):
        return x.transform == y.transform
    lows, highs = (x.transform.low, y.transform.low), (x.transform.high, y.transform.high)
    return math.isclose(*lows, rel_tol=1e-6, abs_tol=_NO_BOUND) and math.isclose(
        *(1 / h if h else math.inf for h in highs), rel_tol=1e-6, abs_tol=_NO_BOUND
    )


def _level(f: Factor) -> str:
    names = {"sequence": "product of the sequence", "geometric": "geometric mean of the sequence"}
    return names.get(f.level.name, f.level.name.replace("_", " "))


def _does(f: Factor) -> str:
    t = f.transform
    if isinstance(t, Clip):
        return "moves what is outside to the bound"
    if isinstance(t, Reject):
        return "drops what is outside and survivors keep their ratio"
    if isinstance(t, (Screen, AtMost)):
        return "drops what is outside and survivors weigh 1"
    return "weighs by the ratio itself" if isinstance(t, Identity) and f.of is log_ratio else repr(t)
