"""Tests in how many responses a gap is and what those share, where it begins and returns, and whether it points where
training goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.cells import Array, Cells, Estimate, Ints, Responses, ratio
from reweigh.doctor.diagnosis import Spread, Suspicion
from reweigh.doctor.families.place import CAP, sized
from reweigh.doctor.family import AnySums, Case, Family, Findings, Sums, evidence, once, p_above
from reweigh.scan.tokens import MISSING, Tokens

PLACES = 2048  # that are told apart; later ones are left out
LEVELS = np.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])  # edges of |gap| / (1 - p), nats
NUMBERS = ("n", "size", "gap^2", *(f"level {i}" for i in range(len(LEVELS) + 1)))
ATTRIBUTES = ("prompt", "env", "step", "turns", "length", "finish reason", "version")
_PERIODS = (16, 32, 64, 128, 256, 512, 1024)


def _measure(tokens: Tokens) -> Sums:
    """Adds up `responses`, see `NUMBERS`; `places` `[1, place, (n, size)]`; `ahead` `[64, 1, (n, x, y, xx, yy, xy)]`
    of responses, x their advantage and y their summed log ratio over its root of squares; `turn_joins` `[64, 1, (turns
    that begin after masked tokens, turns that follow the last without one)]`; `engine_alone` `[1, 1, (tokens
    whose log_pi is the engine's prefill)]`.
    """
    rows, responses = tokens.rows, len(tokens.rows.sizes)
    n, size, squares, _ = sized(tokens)
    some = tokens.counts > 0
    at = np.searchsorted(LEVELS, tokens.relative)
    levels = np.bincount(tokens.seq * (len(LEVELS) + 1) + at, minlength=responses * (len(LEVELS) + 1))
    by_response = [np.bincount(tokens.seq, m, minlength=responses) for m in (n, size, squares)]
    numbers = np.concatenate([np.stack(by_response, -1), levels.reshape(responses, len(LEVELS) + 1)], 1).astype(
        np.float64
    )
    sums: dict[str, AnySums] = {
        "responses": Responses(rows.key[some], numbers[some], _names(tokens, some)).sample(),
    }
    near = tokens.position < PLACES
    place = tokens.position[near]
    data: Array = np.stack([np.bincount(place, m[near], minlength=PLACES) for m in (n, size)], -1).astype(np.float64)
    sums["places"] = Cells(data[None])
    sums["engine_alone"] = Cells(np.array([[[float(rows.engine_alone) * len(tokens)]]]))
    sums["ahead"] = _ahead(tokens, numbers[:, 0])
    joins = tokens.turn_start & (tokens.place > 0)
    joined = joins.copy()
    joined[1:] &= tokens.position[1:] == tokens.position[:-1] + 1
    sums["turn_joins"] = Cells.of(tokens.bucket, None, 1, joins & ~joined, joined)
    return sums


def _names(tokens: Tokens, some: NDArray[np.bool_]) -> Mapping[str, tuple[str | int | None, ...]]:
    rows, responses = tokens.rows, len(tokens.rows.sizes)
    turns = np.zeros(responses, np.int64)
    np.maximum.at(turns, tokens.seq, tokens.turn + 1)
    lengths = 2 ** (np.log2(np.maximum(rows.sizes, 1)).astype(np.int64) + 1)
    names: dict[str, NDArray[Any]] = {"turns": turns, "length": lengths}
    for name, column in (("prompt", rows.prompt), ("env", rows.env), ("finish reason", rows.finish)):
        if column is not None:
            names[name] = column
    if rows.step is not None:
        names["step"] = _known(rows.step, rows.step != MISSING)
    if tokens.version is not None:
        version = np.full(responses, np.iinfo(np.int64).max)
        np.minimum.at(version, tokens.seq, tokens.version)
        names["version"] = _known(version, version >= 0)  # as where there is no such column
    return {name: tuple(column[some].tolist()) for name, column in names.items()}


def _known(numbers: Ints, known: NDArray[np.bool_]) -> NDArray[Any]:
    """Returns numbers, None where they are not known."""
    found = numbers.astype(object)
    found[~known] = None
    return found


def _ahead(tokens: Tokens, n: Array) -> Cells:
    rows, responses = tokens.rows, len(tokens.rows.sizes)
    if tokens.advantage is None:
        return Cells.of(rows.bucket, None, 1, *np.zeros((6, responses)))
    advantage = np.where(np.isfinite(tokens.advantage), np.clip(tokens.advantage, -10, 10), 0.0)
    gap = np.clip(tokens.gap, -CAP, CAP)
    x = np.bincount(tokens.seq, advantage, minlength=responses) / np.maximum(n, 1)
    squares = np.bincount(tokens.seq, gap**2, minlength=responses)
    y = np.bincount(tokens.seq, gap, minlength=responses) / np.sqrt(np.maximum(squares, 1e-300))
    some = (x != 0) & (squares > 1e-10 * np.maximum(n, 1))
    x, y, bucket = x[some], y[some], rows.bucket[some]
    return Cells.of(bucket, None, 1, np.ones(len(x)), x, y, x * x, y * y, x * y)


@once
def correlation_of(case: Case) -> Estimate:
    """Estimates the correlation of a response's summed log ratio with its advantage: above 0 if pi is ahead of mu on
    the way that training goes.
    """
    n, x, y, xx, yy, xy = case.cells("ahead").total[0]
    if n < 20:
        return Estimate(float("nan"), np.inf, 0, int(n))
    cov, vx, vy = xy - x * y / n, xx - x * x / n, yy - y * y / n
    if not (vx > 0 and vy > 0):
        return Estimate(float("nan"), np.inf, 0, int(n))
    value = float(cov / np.sqrt(vx * vy))
    return Estimate(value, float(np.sqrt(max(1 - value * value, 1e-12) / (n - 2))), int(n - 2), int(n))


@dataclass(frozen=True)
class _Split:
    """Responses that carry the gap, and the others."""

    heavy: NDArray[np.bool_]
    share: float
    times: float


def _split(case: Case) -> _Split | None:
    """Divides responses at the widest jump of their mean size; None if there is no such jump, or if single tokens make
    it."""
    sums = case.sums.get("responses")
    assert sums is None or isinstance(sums, Responses)
    if sums is None:
        return None
    enough = sums.numbers[:, 0] >= 4
    numbers = sums.numbers
    if enough.sum() < 12:
        return None
    mean = np.where(enough, numbers[:, 1] / np.maximum(numbers[:, 0], 1), np.nan)
    order = np.argsort(mean)[: int(enough.sum())]
    sizes = np.maximum(mean[order], 1e-7)
    jumps = np.log(sizes[1:] / sizes[:-1])
    first = len(sizes) - int(0.4 * len(sizes))  # the few: at most two in five
    if first >= len(sizes) - 1:
        return None
    at = first + int(np.argmax(jumps[first - 1 :]))
    few, many = order[at:], order[:at]
    quiet = numbers[many][:, 1].sum() / numbers[many][:, 0].sum()
    loud = numbers[few][:, 1].sum() / numbers[few][:, 0].sum()
    share = float(numbers[few][:, 2].sum() / max(numbers[order][:, 2].sum(), 1e-300))
    # A token in a hundred that is far off is the tail of all responses; a response that is off has many such.
    level = int(np.searchsorted(LEVELS, max(3 * quiet, 1e-6)))
    beyond = numbers[few][:, 3 + level + 1 :].sum(1) / numbers[few][:, 0]
    if jumps[at - 1] < np.log(1.6) or len(few) < 2 or share < 0.75 or loud < 6 * quiet or np.median(beyond) < 0.12:
        return None
    heavy = np.zeros(len(mean), np.bool_)
    heavy[few] = True
    return _Split(heavy, share, float(loud / max(quiet, 1e-12)))


def spread_of(case: Case) -> Spread | None:
    """Says in which responses the gap is, if it is in a few of them alone, and what those share."""
    found = _split(case)
    if found is None:
        return None
    sums = case.sums["responses"]
    assert isinstance(sums, Responses)
    shared: dict[str, tuple[str, ...]] = {}
    for name in ATTRIBUTES:
        if name not in sums.names:
            continue
        values = np.array([str(x) for x in sums.names[name]])
        inside = sorted(set(values[found.heavy].tolist()))
        apart = np.isin(values, inside)
        if len(inside) < len(set(values.tolist())) and found.heavy[apart].mean() >= 0.8:
            shared[name] = tuple(inside)
    return Spread(int(found.heavy.sum()), len(found.heavy), found.share, found.times, shared)


@dataclass(frozen=True)
class Profile:
    """The shape of the gap along a response.

    Attributes:
        kind: "flat", "slope", "step" or "period".
        at: the place of a step, or the length of a period.
        times: sizes after the step over those before it; of the loud places of a period over the others.
        fit: share of what a slope leaves over that the step explains.
    """

    kind: str
    at: int
    times: float
    fit: float


@once
def profile_of(case: Case) -> Profile:
    """Tells a step from a slope, and both from a period, by mean sizes place by place."""
    n, size = case.cells("places").total.T if "places" in case.sums else np.zeros((2, PLACES))
    flat = Profile("flat", 0, 1.0, 0.0)
    last = int(np.flatnonzero(n > 0)[-1]) + 1 if (n > 0).any() else 0
    if last < 16 or n.sum() < 500:
        return flat
    n, size = n[:last], size[:last]
    whole = size.sum() / n.sum()
    if whole <= 1e-6:
        return flat
    # Logs of mean sizes over stretches of a thirty-second of all tokens, at least 2 places.
    edges = _stretches(n, 32)
    m, w = np.add.reduceat(size, edges), np.add.reduceat(n, edges)
    y = np.log(m / w + 1e-4 * whole)
    x = np.log2(edges + 1.0)
    slope = _line_error(x, y, w)
    best, cut = np.inf, 0
    for i in range(1, len(y)):
        error = _error(y[:i], w[:i]) + _error(y[i:], w[i:])
        if error < best:
            best, cut = error, i
    total = _error(y, w)
    fit = 1 - best / slope if slope > 0 else 0.0
    # Sharp: what lies next to the edge on either side is already at the level of its side.
    if 0 < cut < len(y):
        rise = float(np.average(y[cut:], weights=w[cut:]) - np.average(y[:cut], weights=w[:cut]))
        # The edge may lie inside a stretch, which then has a level between both.
        across = [(y[cut] - y[cut - 1]) / 0.6]
        across += [(y[i + 1] - y[i - 1]) / 0.8 for i in (cut - 1, cut) if 0 < i < len(y) - 1]
        if fit > 0.5 and max(x * np.sign(rise) for x in across) > abs(rise) > np.log(2.0):
            at = _sharpest(n, size, int(edges[cut - 1]), int(edges[min(cut + 1, len(edges) - 1)]))
            return Profile("step", at, float(np.exp(rise)), fit)
    for period in _PERIODS:
        if last < 4 * period:
            break
        found = _period(n, size, period)
        if found > 1.5:
            return Profile("period", period, found, 0.0)
    return Profile("slope", 0, 1.0, fit) if total > 0 and 1 - slope / total > 0.3 else flat


def _stretches(n: Array, count: int) -> Ints:
    ends = np.cumsum(n)
    edges = np.unique(np.searchsorted(ends, np.linspace(0, ends[-1], count + 1)[:-1], side="right"))
    return edges[np.concatenate([[True], np.diff(edges) >= 2])]


def _error(y: Array, w: Array) -> float:
    mean = (w * y).sum() / w.sum()
    return float((w * (y - mean) ** 2).sum())


def _line_error(x: Array, y: Array, w: Array) -> float:
    mx, my = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
    var = (w * (x - mx) ** 2).sum()
    cov = (w * (x - mx) * (y - my)).sum()
    return float((w * (y - my) ** 2).sum() - (cov * cov / var if var > 0 else 0.0))


def _sharpest(n: Array, size: Array, low: int, high: int) -> int:
    """Finds the place from which on sizes are of the other side, between two places."""
    best, at = -1.0, low
    for i in range(max(low, 1), min(high, len(n) - 1) + 1):
        before, after = slice(max(i - 16, 0), i), slice(i, i + 16)
        a, b = (size[x].sum() / max(n[x].sum(), 1) for x in (before, after))
        jump = abs(float(np.log((b + 1e-12) / (a + 1e-12))))
        if jump > best:
            best, at = jump, i
    return at


def _period(n: Array, size: Array, period: int) -> float:
    """Divides the size at the loudest place of a period by that of the others; 1 if it does not return each time."""
    turns = len(n) // period
    a, b = n[: turns * period].reshape(turns, period), size[: turns * period].reshape(turns, period)
    mean = b.sum(0) / np.maximum(a.sum(0), 1)
    loud = int(np.argmax(mean))
    others = (b.sum() - b[:, loud].sum()) / max(a.sum() - a[:, loud].sum(), 1)
    if others <= 0 or a[:, loud].sum() < 30:
        return 1.0
    each = b[:, loud] / np.maximum(a[:, loud], 1) > 1.2 * others
    return float(mean[loud] / others) if each.mean() > 0.75 else 1.0


def _examine(case: Case) -> Findings:
    out: Findings = []
    joins = case.cells("turn_joins").data[:, 0]
    apart, joined = joins.sum(0)
    if apart >= 3 and joined >= 3:
        rate = ratio(joins[:, 1], joins.sum(1))
        finds = (
            evidence(
                "turns_without_a_break",
                rate,
                "share of later turns that follow the last one without a masked token between them, where others have "
                "one: their tool's text is counted",
            ),
        )
        # A tool may say nothing. Its text would surprise where turns begin; so little shows that none is counted.
        turns = case.cells("turns").data
        later = ratio(turns[:, 1, 1], turns[:, 1, 0])
        foreign = case.cells("surprise").total[0, 0] > 0  # taken out already
        surprising = later.n >= 50 and (p_above(later) < 1e-4 or foreign)
        if surprising or later.n < 50:
            p = p_above(rate, 0.01)
            proven = p < 1e-4 and surprising
            out.append(Suspicion("unmasked_context", p, rate.value / 0.05, None, finds, proven=proven))
    along = correlation_of(case)
    if np.isfinite(along.value):
        finds = (
            evidence(
                "ahead_of_sampler",
                along,
                "correlation of a response's summed log ratio with its advantage: above 0 if the trainer's weights are "
                "ahead of the sampler's on the way that training goes",
            ),
        )
        out.append(Suspicion("stale_weights", p_above(along), along.value / 0.1, None, finds))
    return out


RESPONSES = Family(
    "responses",
    ("unmasked_context", "stale_weights"),
    {"advantage": "whether the trainer is ahead of the sampler cannot be seen"},
    _measure,
    _examine,
)
