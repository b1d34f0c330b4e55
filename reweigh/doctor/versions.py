"""The family of old weights: by lag, by training step, and in caches that outlived an update."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.cells import Array, Cells, Estimate, Ints, Keyed, contrast, ratio
from reweigh.doctor.diagnosis import CannotTell
from reweigh.doctor.family import Case, Family, Findings, Suspicion, counted, evidence, p_above
from reweigh.doctor.noise import matters
from reweigh.doctor.places import part, ratio_of, sized
from reweigh.doctor.prompts import Prompts
from reweigh.scan.tokens import MISSING, Tokens

_FARTHEST = 8  # lags from here on are counted together
_TRIFLE = 0.003  # nats over 1 - p: a growth below it does nothing to any ratio
_ROUNDED = 0.015  # nats over 1 - p: what bfloat16 weights can hold back grows to less, and stays there
_MIXED = ("one version", "before the change", "after the change")


def _measure(tokens: Tokens) -> dict[str, Cells | Keyed | Prompts]:
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
    """Which weights sampled a token, or when: its version, or its step where it has none."""
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


def _examine(case: Case) -> Findings:
    return [*_stale(case), *_sync(case), *_cache(case)]


def _grid(case: Case) -> tuple[Array, Array, Array]:
    """`[64, K, M]` sums, and the step and lag of each of the K keys."""
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
    """Growth with training step at one lag: the engine does not get the weights, or not all of them."""
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
    _measure,
    _examine,
)
