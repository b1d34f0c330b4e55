"""The family of faults that sit at some places: early in a response, late in the context, late in a packed row."""

import numpy as np

from reweigh.doctor.cells import Array, Cells, Estimate, contrast, jackknife, ratio
from reweigh.doctor.diagnosis import CannotTell
from reweigh.doctor.family import Case, Family, Findings, Suspicion, evidence, p_above, p_below
from reweigh.doctor.noise import far_of, matters, together_of
from reweigh.scan.tokens import Tokens

PLACES = 34  # half octaves: 2^17 tokens
MOMENTS = ("n", "size", "gap^2", "room")
"""Of a cell: tokens; sum of |gap| / (1 - p), at most `CAP` each; their squares, in nats; and sum of (1 - p)^2, what the
squares of benign noise are in proportion to."""
CAP = 2.0
_STRETCHES = 0.2  # correlation of neighbouring sizes
_EARLY, _LATE = 6, 10  # half octaves: below the 8th token, and from the 32nd on
_LONGEST = 1 << 40  # tokens: no prompt is longer


def sized(tokens: Tokens) -> tuple[Array, Array, Array, Array]:
    """The moments, token by token."""
    gap, scale = tokens.gap, tokens.scale
    size = np.minimum(tokens.relative, CAP)
    return np.ones(len(gap)), size, (size * scale) ** 2, scale**2


def part(squares: float, total: Array) -> float:
    """Share of squares among all of a table's moments `[M]`. Sizes are bounded there, so that a few tokens which
    something else has set far apart do not hide the others."""
    share = squares / total[2] if total[2] > 0 else 0.0
    return float(min(max(share, 0.0), 1.0))


def half_octave(position: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... at 0, 1, 2, 3, 4, 6, 8, 12, ...: bins of a place."""
    if len(position) and position.max() < len(_HALF_OCTAVE):
        return _HALF_OCTAVE.take(position)
    return _half_octave(position)


def _half_octave(position: np.ndarray) -> np.ndarray:
    return np.minimum((2 * np.log2(position + 1)).astype(np.int64), PLACES - 1)


_HALF_OCTAVE = _half_octave(np.arange(1 << 16))  # of the places that most tokens have


def _measure(tokens: Tokens) -> dict[str, Cells]:
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


def _examine(case: Case) -> Findings:
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
    """The ratio whose logarithm is given."""
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
    """Slope of log mean size on log2 of the place, cells weighted by their tokens."""
    n, size = total[:, 0], total[:, 1]
    some = (n > 0) & (size > 0)
    if some.sum() < 3:
        return float("nan")
    x, y, w = np.arange(len(n))[some] / 2, np.log(size[some] / n[some]), n[some]
    x = x - (w * x).sum() / w.sum()
    return float((w * x * y).sum() / (w * x * x).sum())


def _excess(total: Array) -> float:
    """Squares over the level of the first places that have a tenth of the tokens."""
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
    _measure,
    _examine,
)
