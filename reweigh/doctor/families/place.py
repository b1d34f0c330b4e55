"""Tests where the gap sits: early in a response, late in the context or in a packed row; on older weights, later steps,
or in caches that outlived an update.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.causes import CauseId
from reweigh.doctor.cells import Array, Cells, Estimate, Keyed, Prompts, contrast, jackknife, ratio
from reweigh.doctor.diagnosis import CannotTell, Suspicion
from reweigh.doctor.families.noise import far_of, matters, together_of
from reweigh.doctor.family import (
    AnySums,
    Case,
    Family,
    Findings,
    Sums,
    counted,
    evidence,
    once,
    p_above,
    p_below,
    share_of,
)
from reweigh.scan.tokens import MISSING, Tokens

PLACES = 34  # half octaves: 2^17 tokens
MOMENTS = ("n", "size", "gap^2", "room")
"""Of a cell: tokens; sum of |gap| / (1 - p), at most `CAP` each; their squares, in nats; and sum of (1 - p)^2, what the
squares of benign noise are in proportion to."""
CAP = 2.0
_STRETCHES = 0.2  # correlation of neighbouring sizes
_EARLY, _LATE = 6, 10  # half octaves: below the 8th token, and from the 32nd on
_LONGEST = 1 << 40  # tokens: no prompt is longer


def sized(tokens: Tokens) -> tuple[Array, Array, Array, Array]:
    """Returns the `MOMENTS`, token by token.

    Sizes are bounded, so that a few tokens which something else has set far apart do not hide the others.
    """
    size, scale = np.minimum(tokens.relative, CAP), tokens.scale
    return np.ones(len(size)), size, (size * scale) ** 2, scale**2


def _over(moments: Array, base: Array) -> float:
    """Returns the squares of some moments `[M]` less what they would be at the level of others."""
    floor = base[2] / base[3] if base[3] > 0 else 0.0
    return moments[2] - floor * moments[3]


def half_octave(position: np.ndarray) -> np.ndarray:
    """Bins a place: 0, 1, 2, ... at 0, 1, 2, 3, 4, 6, 8, 12, ..."""
    if len(position) and position.max() < len(_HALF_OCTAVE):
        return _HALF_OCTAVE.take(position)
    return _half_octave(position)


def _half_octave(position: np.ndarray) -> np.ndarray:
    return np.minimum((2 * np.log2(position + 1)).astype(np.int64), PLACES - 1)


_HALF_OCTAVE = _half_octave(np.arange(1 << 16))  # of the places that most tokens have


def _measure_places(tokens: Tokens) -> dict[str, Cells]:
    moments, bucket, rows = sized(tokens), tokens.bucket, tokens.rows
    sums = {"position": Cells.of(bucket, half_octave(tokens.position), PLACES, *moments)}
    if rows.prompt_length is not None:
        before = rows.prompt_length[tokens.seq]
        known = before >= 0
        place = np.clip(before[known], 0, _LONGEST) + tokens.position[known]
        sums["context"] = Cells.of(bucket[known], half_octave(place), PLACES, *(m[known] for m in moments))
    if rows.pack is not None:
        cell = np.minimum(rows.pack[tokens.seq], 1) * PLACES + half_octave(tokens.position)
        sums["pack"] = Cells.of(bucket, cell, 2 * PLACES, *moments)
    return sums


def _packing(case: Case) -> Findings:
    if "pack" not in case.sums:
        return [CannotTell("packing_leak", "no pack_index: which responses shared a row is not known", ("pack_index",))]
    data = case.cells("pack").data.reshape(64, 2, PLACES, 4).sum(2)
    first, later = (ratio(data[:, i, 1], data[:, i, 0]) for i in (0, 1))
    more = contrast(later, first)
    share = share_of(_over(data[:, 1].sum(0), data[:, 0].sum(0)), data.sum((0, 1))[2])
    finds = (
        evidence(
            "later_over_first",
            ratio_of(more),
            "size of the log ratio in later responses of a packed row over that in first ones",
        ),
    )
    return [Suspicion("packing_leak", p_above(more), _finite(more.value / 0.2) * matters(case), share, finds)]


def ratio_of(x: Estimate) -> Estimate:
    """Returns the ratio whose logarithm is given."""
    value = float(np.exp(x.value))
    return Estimate(value, value * x.se, x.df, x.n)


def _profile(case: Case) -> Findings:
    position = case.cells("position")
    context = case.cells("context") if "context" in case.sums else position
    in_response, in_context = jackknife(_trend, position.data), jackknife(_trend, context.data)
    begins = jackknife(_early_over_late, position.data)
    early, late = position.total[:_EARLY].sum(0), position.total[_LATE:].sum(0)
    finds = (
        evidence(
            "early_over_late", ratio_of(begins), "size of the log ratio in the first 8 tokens over that from the 32nd"
        ),
        evidence(
            "trend_in_response",
            in_response,
            "its growth with each doubling of the place in the response, in logs",
        ),
        evidence("trend_in_context", in_context, "the same by place in the whole context"),
    )
    # Another prompt is felt by whole stretches; what is larger early and even is a coarse engine on short contexts.
    together, (_, far) = together_of(case), far_of(case)
    stretches = together.value > _STRETCHES
    squares = _over(early, late)
    if stretches:
        squares = max(squares, float(case.cells("sizes").total[far, 1].sum()))
    prefix = Suspicion(
        "template_prefix",
        min(2 * min(p_above(begins), p_below(in_response)), 1.0),
        _finite(begins.value / np.log(1.7)) * (1.0 if stretches else 0.5) * matters(case),
        case.share(squares),
        (
            *finds,
            evidence("neighbours", together, "correlation of neighbouring sizes: .2 and more in stretches"),
        ),
    )
    # Positions that are read otherwise matter more the farther tokens look back.
    rises = max(in_context, in_response, key=lambda x: x.z)
    # Where a trend cannot be worked out it says nothing: a NaN would win the larger of two.
    steps = max(_finite(in_context.value) / 0.08, _finite(in_response.value) / 0.04)
    # By place in the response or in the context, whichever shows more: after a long prompt all places of a response are
    # alike, and where prompts differ in length they are not.
    share = max(_over_the_first(position.total), _over_the_first(context.total))
    return [
        prefix,
        Suspicion("position_encoding", min(2 * p_above(rises), 1.0), _finite(steps) * matters(case), share, finds),
    ]


def farthest(case: Case) -> int:
    """Returns about how many tokens the longest context has, or response where prompts' lengths are not known."""
    cells = case.cells("context") if "context" in case.sums else case.cells("position")
    some = np.flatnonzero(cells.total[:, 0] > 0)
    return int(2 ** ((some[-1] + 1) / 2)) - 1 if len(some) else 0


def _over_the_first(total: Array) -> float:
    """Returns the share of squares over the level of the first places that have a tenth of the tokens."""
    upto = np.searchsorted(np.cumsum(total[:, 0]), 0.1 * total[:, 0].sum()) + 1
    base = total[:upto].sum(0)
    floor = base[2] / base[3] if base[3] > 0 else 0.0
    return share_of(float((total[:, 2] - floor * total[:, 3]).sum()), total.sum(0)[2])


def _finite(x: float) -> float:
    return x if np.isfinite(x) else 0.0


def _early_over_late(total: Array) -> float:
    early, late = total[:_EARLY].sum(0), total[_LATE:].sum(0)
    if min(early[0], late[0], early[1], late[1]) <= 0:
        return float("nan")
    return float(np.log(early[1] / early[0] / (late[1] / late[0])))


def _trend(total: Array) -> float:
    """Fits the slope of log mean size on log2 of the place, cells weighted by their tokens."""
    n, size = total[:, 0], total[:, 1]
    some = (n > 0) & (size > 0)
    if some.sum() < 3:
        return float("nan")
    x, y, w = np.arange(len(n))[some] / 2, np.log(size[some] / n[some]), n[some]
    x = x - (w * x).sum() / w.sum()
    return float((w * x * y).sum() / (w * x * x).sum())


PLACE = Family(
    "places",
    ("template_prefix", "packing_leak", "position_encoding"),
    {
        "pack_index": "leaks between packed responses cannot be seen",
        "prompt_length": "places are counted from the response's start, not the context's",
    },
    _measure_places,
    lambda case: [*_packing(case), *_profile(case)],
)


FARTHEST = 8  # lags from here on are counted together
_TRIFLE = 0.003  # nats over 1 - p: a growth below it does nothing to any ratio
_ROUNDED = 0.015  # nats over 1 - p: what bfloat16 weights can hold back grows to less, and stays there
_MIXED = ("one version", "before the change", "after the change")


def _measure_versions(tokens: Tokens) -> Sums:
    moments, bucket, rows = sized(tokens), tokens.bucket, tokens.rows
    sums: dict[str, AnySums] = {}
    step = tokens.step
    lag = None if tokens.lag is None else np.maximum(tokens.lag, -1)  # a later version than the trainer's is not old
    if step is not None:
        late = np.full(len(tokens), -1) if lag is None else np.minimum(lag, FARTHEST)
        sums["lag"] = Keyed.of(*_where(step != MISSING, bucket, step, late, *moments))
    # Which weights sampled a token, or when: its version, or its step where it has none.
    version = step
    if tokens.version is not None:
        version = np.where(tokens.version >= 0, tokens.version, MISSING if step is None else step)
    if version is not None:
        responses = len(rows.sizes)
        lowest, _ = _range(version, tokens.seq, responses)
        some = (np.bincount(tokens.seq, minlength=responses) > 0) & (lowest > MISSING)
        by_row = [np.bincount(tokens.seq, m, minlength=responses)[some].astype(np.float64) for m in moments]
        sums["prompts"] = Prompts.of(rows.group[some], lowest[some], *by_row)
    if lag is not None and tokens.version is not None:
        lowest, highest = _range(tokens.version, tokens.seq, len(rows.sizes))
        changes = (lowest != highest)[tokens.seq]
        cell = np.where(changes, np.where(tokens.version == lowest[tokens.seq], 1, 2), 0)
        which = (lag == 0) | ((cell == 1) & (lag > 0))
        bucket, cell, *some_moments = _where(which, bucket, cell, *moments)
        sums["mixed"] = Cells.of(bucket, cell, len(_MIXED), *some_moments)
    return sums


def _where(which: NDArray[np.bool_], *columns: NDArray[Any]) -> list[NDArray[Any]]:
    if which.all():
        return list(columns)
    at = np.flatnonzero(which)
    return [column.take(at) for column in columns]


def _range(version: np.ndarray, seq: np.ndarray, responses: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.full(responses, np.iinfo(np.int64).max)
    high = np.full(responses, np.iinfo(np.int64).min)
    if len(seq):  # tokens stand in the order of their responses
        begins = np.flatnonzero(np.concatenate([[True], seq[1:] != seq[:-1]]))
        low[seq[begins]], high[seq[begins]] = np.minimum.reduceat(version, begins), np.maximum.reduceat(version, begins)
    return low, high


def _grid(case: Case) -> tuple[Array, Array, Array] | None:
    """Returns `[64, K, M]` sums, and the step and lag of each of the K keys; None if there are none."""
    keyed = case.sums.get("lag")
    assert keyed is None or isinstance(keyed, Keyed)
    if keyed is None or not keyed.data:
        return None
    keys = sorted(keyed.data)
    step, lag = np.array(keys).T
    return np.stack([keyed.data[key] for key in keys], 1), step, lag


@once
def sizes_by_step(case: Case) -> Array:
    """Returns the mean size at each step, or range of steps; empty if no step is known."""
    grid = _grid(case)
    if grid is None:
        return np.zeros(0)
    data, step, _ = grid
    total = data.sum(0)
    n = np.array([total[(step == s), 0].sum() for s in np.unique(step)])
    size = np.array([total[(step == s), 1].sum() for s in np.unique(step)])
    return (size / np.maximum(n, 1))[n >= 50]


def lag_said(lag: int) -> str:
    """Writes a lag as it is counted: the largest are counted together."""
    return str(lag) if lag < FARTHEST else f"{FARTHEST} or more"


def _rate(data: Array) -> Estimate:
    return ratio(data[:, 1], data[:, 0])


def _stale(case: Case) -> Findings:
    missing = CannotTell(
        "stale_weights", "no versions of the weights that sampled: lag is not known", ("versions", "trainer_version")
    )
    grid = _grid(case)
    if grid is None or (grid[2] < 0).all():
        return [missing]
    data, step, lag = grid
    known = lag >= 0
    lags = np.unique(lag[known])
    if len(lags) < 2:
        if lags[0] == 0:
            return []
        return [
            CannotTell(
                "stale_weights",
                f"all tokens have one lag ({lag_said(lags[0])}): there is none to compare with",
                ("versions",),
            )
        ]
    # Within a step: old and new tokens that were trained on together.
    base, old, base_squares, old_squares = [], [], 0.0, 0.0
    for s in np.unique(step[known]):
        here = known & (step == s)
        low = lag[here].min()
        a, b = data[:, here & (lag == low)].sum(1), data[:, here & (lag > low)].sum(1)
        if a[:, 0].sum() == 0 or b[:, 0].sum() == 0:
            continue
        weight = min(a[:, 0].sum(), b[:, 0].sum())
        base.append(a[:, :2] * weight / a[:, 0].sum())
        old.append(b[:, :2] * weight / b[:, 0].sum())
        base_squares += a[:, 2].sum() / a[:, 3].sum() * b[:, 3].sum()
        old_squares += b[:, 2].sum()
    if not base:
        a, b = data[:, known & (lag == lags[0])].sum(1), data[:, known & (lag > lags[0])].sum(1)
        base, old = [a[:, :2]], [b[:, :2]]
        base_squares, old_squares = a[:, 2].sum() / a[:, 3].sum() * b[:, 3].sum(), b[:, 2].sum()
    more = contrast(_rate(sum(old)), _rate(sum(base)))  # type: ignore[arg-type]
    finds = (
        evidence(
            "older_over_newer",
            ratio_of(more),
            "size of the log ratio on tokens of older weights over that on newer ones of the same step",
        ),
        counted("lags", len(lags), case.tokens, "different lags in the records"),
    )
    return [
        Suspicion(
            "stale_weights",
            p_above(more),
            more.value / 0.15,
            share_of(old_squares - base_squares, data.sum((0, 1))[2]),
            finds,
        )
    ]


def _sync(case: Case) -> Findings:
    """Tests for growth with the training step at one lag: the engine does not get the weights, or not all of them."""
    needs = ("step", "versions", "trainer_version")
    grid = _grid(case)
    if grid is None:
        return [CannotTell("weight_sync", "no training steps: growth along the run cannot be seen", needs)]
    data, step, lag = grid
    low = lag == lag.min()
    data, step = data[:, low], step[low]
    if len(np.unique(step)) < 3:
        return [
            CannotTell("weight_sync", "fewer than three training steps: growth along the run cannot be seen", ("step",))
        ]
    middle = np.median(np.repeat(step, np.maximum(data[:, :, 0].sum(0).astype(int) // 50, 1)))
    early, late = data[:, step < middle].sum(1), data[:, step >= middle].sum(1)
    if early[:, 0].sum() == 0 or late[:, 0].sum() == 0:
        return []
    more = contrast(_rate(late), _rate(early))
    whole = data.sum((0, 1))
    first, last = (data[:, step == end].sum((0, 1)) for end in (step.min(), step.max()))
    begun, final = first[1] / max(first[0], 1), last[1] / max(last[0], 1)
    grown = float(np.sqrt(max(final**2 - begun**2, 0.0)))
    finds = (
        evidence(
            "late_over_early",
            ratio_of(more),
            "size of the log ratio in the later half of the steps over the earlier, at one lag",
        ),
        counted(
            "grown",
            grown,
            last[0],
            "size of what the last step has over the first, nats: below .015 for lost roundings",
        ),
    )
    p, share = p_above(more), share_of(_over(whole, first), whole[2])
    effect = more.value / 0.15 * min(1.0, grown / _TRIFLE)
    pair: tuple[CauseId, CauseId] = ("weight_sync", "update_below_precision")
    likelier, other = pair[::-1] if grown < _ROUNDED else pair
    return [Suspicion(likelier, p, effect, share, finds), Suspicion(other, p, 0.5 * effect, share, finds)]


def _cache(case: Case) -> Findings:
    out: Findings = []
    if "mixed" in case.sums:
        data = case.cells("mixed").data
        plain, after = data[:, 0], data[:, 2]
        if plain[:, 0].sum() > 0 and after[:, 0].sum() > 0:
            more = contrast(_rate(after), _rate(plain))
            total = data.sum(0)
            share = share_of(_over(total[2], total[0]), total.sum(0)[2])
            finds = (
                evidence(
                    "after_change",
                    ratio_of(more),
                    "size of the log ratio on fresh tokens after a change of weights, over that in other responses",
                ),
            )
            out.append(Suspicion("stale_kv", p_above(more), more.value / 0.2 * matters(case), share, finds))
    if "prompts" not in case.sums:
        out.append(
            CannotTell(
                "stale_kv",
                "no versions and no steps: reused prompts cannot be told from new ones",
                ("versions", "step"),
            )
        )
        return out
    prompts = case.sums["prompts"]
    assert isinstance(prompts, Prompts)
    if not len(prompts.group):
        return out
    # Within a version: prompts that earlier ones had answered, and new ones.
    version, sums = prompts.version, prompts.sums
    _, code = np.unique(prompts.group, return_inverse=True)
    first = np.full(code.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, code, version)
    again = version > first[code]
    reused: list[Array] = []
    fresh: list[Array] = []
    squares = 0.0
    for v in np.unique(version[again]):
        here = version == v
        old, new = sums[here & again], sums[here & ~again]
        if len(new):
            reused.append(old)
            fresh.append(new)
            total = new.sum(0)
            squares += old[:, 2].sum() - total[2] / total[3] * old[:, 3].sum()
    if not reused:
        return out
    more = contrast(_rate(np.concatenate(reused)), _rate(np.concatenate(fresh)))
    finds = (
        evidence(
            "reused_over_new",
            ratio_of(more),
            "size of the log ratio on prompts that earlier weights had answered, over that on new prompts",
        ),
    )
    share = share_of(squares, sums.sum(0)[2])
    out.append(Suspicion("stale_kv", p_above(more), more.value / 0.2 * matters(case), share, finds))
    return out


VERSIONS = Family(
    "old weights",
    ("stale_weights", "weight_sync", "update_below_precision", "stale_kv"),
    {
        "versions": "lag cannot be seen",
        "trainer_version": "lag cannot be seen",
        "step": "growth along the run cannot be seen",
    },
    _measure_versions,
    lambda case: [*_stale(case), *_sync(case), *_cache(case)],
)
