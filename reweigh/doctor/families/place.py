"""Tests where the gap sits: early in a response, late in the context or in a packed row; on older weights, later steps,
or in caches that outlived an update.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.cells import Array, Cells, Estimate, Ints, Keyed, contrast, jackknife, ratio
from reweigh.doctor.diagnosis import CannotTell, Suspicion
from reweigh.doctor.families.noise import far_of, matters, together_of
from reweigh.doctor.family import Case, Family, Findings, counted, evidence, p_above, p_below
from reweigh.doctor.prompts import Prompts
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
    """Returns the moments, token by token."""
    gap, scale = tokens.gap, tokens.scale
    size = np.minimum(tokens.relative, CAP)
    return np.ones(len(gap)), size, (size * scale) ** 2, scale**2


def part(squares: float, total: Array) -> float:
    """Returns the share of squares among all of a table's moments `[M]`.

    Sizes are bounded there, so that a few tokens which something else has set far apart do not hide the others."""
    share = squares / total[2] if total[2] > 0 else 0.0
    return float(min(max(share, 0.0), 1.0))


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


def _examine_places(case: Case) -> Findings:
    return [*_packing(case), *_profile(case)]


def _packing(case: Case) -> Findings:
    if "pack" not in case.sums:
        return [CannotTell("packing_leak", "no pack_index: which responses shared a row is not known", ("pack_index",))]
    data = case.cells("pack").data.reshape(64, 2, PLACES, 4).sum(2)
    first, later = (ratio(data[:, i, 1], data[:, i, 0]) for i in (0, 1))
    more = contrast(later, first)
    base = data[:, 0].sum(0)
    rest = data[:, 1].sum(0)
    floor = base[2] / base[3] if base[3] > 0 else 0.0
    share = part(rest[2] - floor * rest[3], data.sum((0, 1)))
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
    floor = late[2] / late[3] if late[3] > 0 else 0.0
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
    squares = early[2] - floor * early[3]
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
    steps = max(in_context.value / 0.08, in_response.value / 0.04)
    share = part(_excess(context.total), context.total.sum(0))
    return [
        prefix,
        Suspicion("position_encoding", min(2 * p_above(rises), 1.0), _finite(steps) * matters(case), share, finds),
    ]


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


def _excess(total: Array) -> float:
    """Returns the squares over the level of the first places that have a tenth of the tokens."""
    upto = np.searchsorted(np.cumsum(total[:, 0]), 0.1 * total[:, 0].sum()) + 1
    base = total[:upto].sum(0)
    floor = base[2] / base[3] if base[3] > 0 else 0.0
    return float((total[:, 2] - floor * total[:, 3]).sum())


PLACE = Family(
    "places",
    ("template_prefix", "packing_leak", "position_encoding"),
    {
        "pack_index": "leaks between packed responses cannot be seen",
        "prompt_length": "places are counted from the response's start, not the context's",
    },
    _measure_places,
    _examine_places,
)


_FARTHEST = 8  # lags from here on are counted together
_TRIFLE = 0.003  # nats over 1 - p: a growth below it does nothing to any ratio
_ROUNDED = 0.015  # nats over 1 - p: what bfloat16 weights can hold back grows to less, and stays there
_MIXED = ("one version", "before the change", "after the change")


def _measure_versions(tokens: Tokens) -> dict[str, Cells | Keyed | Prompts]:
    moments, bucket, rows = sized(tokens), tokens.bucket, tokens.rows
    sums: dict[str, Cells | Keyed | Prompts] = {}
    step = tokens.step
    lag = None if tokens.lag is None else np.maximum(tokens.lag, -1)  # a later version than the trainer's is not old
    if step is not None:
        late = np.full(len(tokens), -1) if lag is None else np.minimum(lag, _FARTHEST)
        sums["lag"] = Keyed.of(*_where(step != MISSING, bucket, step, late, *moments))
    version = _used(tokens.version, step)
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


def _used(version: Ints | None, step: Ints | None) -> Ints | None:
    """Says which weights sampled a token, or when: its version, or its step where it has none."""
    if version is None or step is None:
        return step if version is None else np.where(version >= 0, version, MISSING)
    return np.where(version >= 0, version, step)


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


def _examine_versions(case: Case) -> Findings:
    return [*_stale(case), *_sync(case), *_cache(case)]


def _grid(case: Case) -> tuple[Array, Array, Array]:
    """Returns `[64, K, M]` sums, and the step and lag of each of the K keys."""
    keyed = case.keyed("lag")
    keys = sorted(keyed.data)
    return (
        np.stack([keyed.data[key] for key in keys], 1),
        np.array([k[0] for k in keys]),
        np.array([k[1] for k in keys]),
    )


def _rate(data: Array) -> Estimate:
    return ratio(data[:, 1], data[:, 0])


def _stale(case: Case) -> Findings:
    missing = CannotTell(
        "stale_weights", "no versions of the weights that sampled: lag is not known", ("versions", "trainer_version")
    )
    if "lag" not in case.sums or not case.keyed("lag").data:
        return [missing]
    data, step, lag = _grid(case)
    if (lag < 0).all():
        return [missing]
    known = lag >= 0
    lags = np.unique(lag[known])
    if len(lags) < 2:
        if lags[0] == 0:
            return []
        return [
            CannotTell(
                "stale_weights", f"all tokens have one lag ({lags[0]}): there is none to compare with", ("versions",)
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
            "stale_weights", p_above(more), more.value / 0.15, part(old_squares - base_squares, data.sum((0, 1))), finds
        )
    ]


def _sync(case: Case) -> Findings:
    """Tests for growth with the training step at one lag: the engine does not get the weights, or not all of them."""
    needs = ("step", "versions", "trainer_version")
    if "lag" not in case.sums or not case.keyed("lag").data:
        return [CannotTell("weight_sync", "no training steps: growth along the run cannot be seen", needs)]
    data, step, lag = _grid(case)
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
    first = data[:, step == step.min()].sum((0, 1))
    floor = first[2] / first[3] if first[3] > 0 else 0.0
    whole = data.sum((0, 1))
    excess = whole[2] - floor * whole[3]
    last = data[:, step == step.max()].sum((0, 1))
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
    p, share = p_above(more), part(excess, whole)
    effect = more.value / 0.15 * min(1.0, grown / _TRIFLE)
    small = grown < _ROUNDED
    first_cause, other = (
        ("update_below_precision", "weight_sync") if small else ("weight_sync", "update_below_precision")
    )
    return [
        Suspicion(first_cause, p, effect, share, finds),  # type: ignore[arg-type]
        Suspicion(other, p, 0.5 * effect, share, finds),  # type: ignore[arg-type]
    ]


def _cache(case: Case) -> Findings:
    out: Findings = []
    if "mixed" in case.sums:
        data = case.cells("mixed").data
        plain, after = data[:, 0], data[:, 2]
        if plain[:, 0].sum() > 0 and after[:, 0].sum() > 0:
            more = contrast(_rate(after), _rate(plain))
            total = data.sum(0)
            floor = total[0, 2] / total[0, 3] if total[0, 3] > 0 else 0.0
            share = part(total[2, 2] - floor * total[2, 3], total.sum(0))
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
    used = _reused(prompts)
    if used is None:
        return out
    more, share_squares = used
    finds = (
        evidence(
            "reused_over_new",
            ratio_of(more),
            "size of the log ratio on prompts that earlier weights had answered, over that on new prompts",
        ),
    )
    out.append(
        Suspicion(
            "stale_kv", p_above(more), more.value / 0.2 * matters(case), part(share_squares, prompts.sums.sum(0)), finds
        )
    )
    return out


def _reused(prompts: Prompts) -> tuple[Estimate, float] | None:
    group, version, sums = prompts.group, prompts.version, prompts.sums
    if not len(group):
        return None
    _, code = np.unique(group, return_inverse=True)
    first = np.full(code.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, code, version)
    again = version > first[code]
    a, b, squares = [], [], 0.0
    for v in np.unique(version[again]):
        here = version == v
        old, new = here & again, here & ~again
        if not new.any():
            continue
        a.append((sums[old], code[old]))
        b.append((sums[new], code[new]))
        total = sums[new].sum(0)
        squares += sums[old][:, 2].sum() - total[2] / total[3] * sums[old][:, 3].sum()
    if not a:
        return None
    old, new = np.concatenate([x for x, _ in a]), np.concatenate([x for x, _ in b])
    return contrast(ratio(old[:, 1], old[:, 0]), ratio(new[:, 1], new[:, 0])), squares


VERSIONS = Family(
    "old weights",
    ("stale_weights", "weight_sync", "update_below_precision", "stale_kv"),
    {
        "versions": "lag cannot be seen",
        "trainer_version": "lag cannot be seen",
        "step": "growth along the run cannot be seen",
    },
    _measure_versions,
    _examine_versions,
)
