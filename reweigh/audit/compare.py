"""Compare two sets of records: their numbers side by side, with the interval of each difference."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.audit.slices import Slices
from reweigh.levels import SEQUENCE, TOKEN
from reweigh.records.files import Paths
from reweigh.records.table import groups_of
from reweigh.scan.cuts import CUT_COLUMNS, By, in_ranges, label, merge, refuse_other_cuts
from reweigh.scan.engines import Engine, Workers
from reweigh.scan.measure import Family
from reweigh.scan.rows import EVERY, Rows
from reweigh.scan.run import FileRead, Report, Scanned, look, scan
from reweigh.scan.tokens import Part
from reweigh.stats.intervals import Number, t_quantile
from reweigh.stats.numerals import plain
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import HostSums, RatioStats
from reweigh.stats.verdict import Verdict, judge

Array = NDArray[np.float64]
FEWEST = 8  # clusters of a side below which no difference is told from chance: a t of so few says little


@dataclass(frozen=True, eq=False)
class Side:
    """The sums of one side; `a + b` is of both.

    Attributes:
        token: stats of the tokens.
        sequence: stats of the sequences.
        prompts: hashes of the prompts (of the responses where none is recorded), sorted.
        slices: stats by what they are cut by.
    """

    token: RatioStats = field(default_factory=lambda: RatioStats.empty(TOKEN))
    sequence: RatioStats = field(default_factory=lambda: RatioStats.empty(SEQUENCE))
    prompts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    slices: Mapping[By, Slices] = field(default_factory=dict[By, Slices])

    @classmethod
    def of(cls, by: tuple[By, ...], part: Part) -> "Side":
        """Add up some records."""
        token, sequence = RatioStats.of_levels(part.batch, (TOKEN, SEQUENCE))
        prompts = np.unique(groups_of(part.table))
        return cls(token, sequence, prompts, {cut: Slices.of(cut, part) for cut in by})

    def __add__(self, other: "Side") -> "Side":
        """Add up both."""
        prompts = np.union1d(self.prompts, other.prompts)
        slices = merge(self.slices, other.slices)
        return Side(self.token + other.token, self.sequence + other.sequence, prompts, slices)


@dataclass(frozen=True)
class Difference:
    """One number of both sides.

    Attributes:
        name: as in `Summary.numbers`, or "length".
        level: "token" or "sequence".
        a: of the first side.
        b: of the second.
        change: b less a, with the interval of the difference; refused where the data cannot tell it.
    """

    name: str
    level: str
    a: Number
    b: Number
    change: Number

    @property
    def sure(self) -> bool:
        """Whether chance alone does not explain it, at 95%."""
        low, high = self.change.low, self.change.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        numbers = {"a": self.a, "b": self.b, "change": self.change}
        return {"name": self.name, "level": self.level, "sure": self.sure} | {
            key: {
                "value": plain(x.value),
                "low": plain(x.low),
                "high": plain(x.high),
                "sample": plain(x.sample),
                "unit": x.unit,
                "refused": x.refused,
            }
            for key, x in numbers.items()
        }


@dataclass(frozen=True)
class SliceChange:
    """The token KL of both sides in one slice.

    Attributes:
        label: what the slice is called.
        difference: of KL(mu||pi) by k3.
    """

    label: str
    difference: Difference


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of `compare`; `reweigh.report` prints it.

    Attributes:
        names: what the sides are called.
        verdicts: of each side, as an audit gives it.
        files: of each side.
        differences: of each number that both have, b less a.
        shared: prompts (responses where no prompt is recorded) that both sides have.
        prompts: of each side.
        paired: whether differences are of shared prompts, which takes out what the prompts vary by.
        slices: KL of the slices that both have, by what they are cut by.
        runs: what the files say of each run, where they differ, by name.
        notes: what a reader should know.
    """

    names: tuple[str, str]
    verdicts: tuple[Verdict, Verdict]
    files: tuple[tuple[FileRead, ...], tuple[FileRead, ...]]
    differences: tuple[Difference, ...]
    shared: int
    prompts: tuple[int, int]
    paired: bool
    slices: Mapping[By, tuple[SliceChange, ...]]
    runs: Mapping[str, tuple[Any, Any]]
    notes: tuple[str, ...]

    @property
    def kl(self) -> Difference:
        """Find the difference of the token KL, which is what the comparison is about."""
        return next(x for x in self.differences if x.name == "kl_k3")

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "reweigh_compare": 1,
            "a": self._side(0),
            "b": self._side(1),
            "shared_prompts": self.shared,
            "paired": self.paired,
            "runs_differ": {name: list(both) for name, both in self.runs.items()},
            "differences": [one.to_dict() for one in self.differences],
            "slices": {
                by: [{"label": row.label} | row.difference.to_dict() for row in rows]
                for by, rows in self.slices.items()
            },
            "notes": list(self.notes),
        }

    def _side(self, i: int) -> dict[str, Any]:
        files, verdict = self.files[i], self.verdicts[i]
        return {
            "name": self.names[i],
            "files": [str(file.path) for file in files],
            "rows": sum(file.rows for file in files),
            "tokens": sum(file.tokens for file in files),
            "prompts": self.prompts[i],
            "verdict": verdict.level,
            "reason": verdict.reason,
        }


def question(by: Iterable[By] = ()) -> Family:
    """Ask for one side of what is scanned."""
    cuts = refuse_other_cuts("compare", by)
    return Family(
        "compare", partial(Side.of, cuts), CUT_COLUMNS, (Side, Slices), {"--by": list(cuts)}, per_file="source" in cuts
    )


def compare(
    a: Paths,
    b: Paths,
    *,
    by: Iterable[By] = (),
    names: tuple[str, str] | None = None,
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    on_progress: Report | None = None,
    rows: Rows = EVERY,
) -> Comparison:
    """Measure two sets of records, and say which of their numbers differ by more than chance.

    Intervals are of the *difference*. Where both sides answer the same prompts, what is common to a prompt cancels: the
    clusters of both sides are the same 64 buckets of prompts, and their residuals are subtracted. Where they share
    none, the variances add up.

    Args:
        a: files, folders or globs of the first side; what the second is held against.
        b: of the second.
        by: what to compare slices by.
        names: what to call the sides; their paths if not given.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        reader: name of the files' format; recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        on_progress: called after each part.
        rows: which rows are read, of both.

    Raises:
        ValueError: of the records, with file, row and remedy; nothing to compare on a side.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.audit.compare import compare
        >>> found = compare("examples/records/vllm_bfloat16.parquet", "examples/records/vllm_fp8_kv.parquet")
        >>> found.kl.sure, found.paired
        (True, True)
    """
    family = question(by)
    sides = [
        scan(
            look(paths, reader, rows=rows),
            [family],
            keep_going=keep_going,
            engine=engine,
            on_progress=on_progress,
        )
        for paths in (a, b)
    ]
    return conclude(sides[0], sides[1], names or (_name(a), _name(b)))


def conclude(a: Scanned, b: Scanned, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare what was scanned of two sides.

    Raises:
        ValueError: nothing on a side counts.
    """
    sums: list[Side] = [one.sums.get("compare", Side()) for one in (a, b)]
    for side, name in zip(sums, names, strict=True):
        if not float(side.token.host.n):
            raise ValueError(
                f"compare: there is nothing to compare in {name}: no token counts\n"
                "hint: `reweigh audit` says why; is --where of what both have?"
            )
    first, second = sums
    shared = len(np.intersect1d(first.prompts, second.prompts, assume_unique=True))
    paired = shared > 0
    levels = [(summarise(side.token), summarise(side.sequence)) for side in sums]
    differences = (*_differences(first, second, levels, paired), _length(first, second, paired))
    slices: dict[By, tuple[SliceChange, ...]] = {
        by: _slices(by, first.slices[by], second.slices[by], paired) for by in first.slices if by in second.slices
    }
    runs = a.info.disagreements(b.info)
    return Comparison(
        names,
        (judge(*levels[0]), judge(*levels[1])),
        (a.files, b.files),
        differences,
        shared,
        (len(first.prompts), len(second.prompts)),
        paired,
        slices,
        runs,
        tuple(_notes(first, second, shared, slices, (a, b), names)),
    )


_Combine = Callable[[HostSums], Array]
_Residual = tuple[Array, NDArray[np.bool_]]  # of each cluster, and whether it has a unit

# Means of units, by name: the level that they are of, and their sum over each cluster.
_MEANS: tuple[tuple[str, str, _Combine], ...] = (
    ("kl_k3", "token", lambda h: _k3(h)),
    ("kl_k1", "token", lambda h: -h.clusters["l"]),
    ("mean_abs", "token", lambda h: h.clusters["abs"]),
    ("mean_ratio", "token", lambda h: _ratio(h)),
    ("tv", "token", lambda h: h.clusters["tv"]),
    ("tv", "sequence", lambda h: h.clusters["tv"]),
)


def _ratio(h: HostSums) -> Array:
    weights = h.clusters["w1"]
    with np.errstate(over="ignore", divide="ignore"):  # where there is no weight there is none
        return np.exp(np.log(weights) + h.shift_max)


def _k3(h: HostSums) -> Array:
    if h.tiny:  # as the audit's number: sums of e^l - 1 are rounding there
        return h.clusters["l2"] / 2
    return _ratio(h) - h.clusters["n"] - h.clusters["l"]


def _differences(a: Side, b: Side, levels: list[tuple[Summary, Summary]], paired: bool) -> Iterable[Difference]:
    for name, level, combine in _MEANS:
        sides = [side.token.host if level == "token" else side.sequence.host for side in (a, b)]
        numbers = [summaries[0 if level == "token" else 1].numbers[name] for summaries in levels]
        residuals = [_residual(combine(h), h.clusters["n"]) for h in sides]
        yield _difference(name, level, numbers, residuals, paired)
    numbers = [summaries[1].numbers["ess_fraction"] for summaries in levels]
    residuals = [_residual_of_ess(side.sequence.host, x.sample or 0.0) for side, x in zip((a, b), numbers, strict=True)]
    yield _difference("ess_fraction", "sequence", numbers, residuals, paired)


def _length(a: Side, b: Side, paired: bool) -> Difference:
    """Compare tokens a response."""
    numbers: list[Number] = []
    residuals: list[_Residual] = []
    for side in (a, b):
        tokens, seqs = side.token.host.clusters["n"], side.sequence.host.clusters["n"]
        mean = float(tokens.sum() / seqs.sum())
        numbers.append(Number(mean, None, None, mean, "tokens", "Tokens of a response that count."))
        residuals.append(_residual(tokens, seqs))
    return _difference("length", "sequence", numbers, residuals, paired)


def _residual(total: Array, count: Array) -> "_Residual":
    """By cluster: what it moves the mean by, and whether it has a unit."""
    n = count.sum()
    with np.errstate(over="ignore", invalid="ignore"):
        return (total - total.sum() / n * count) / n, count > 0


def _residual_of_ess(h: HostSums, ess: float) -> "_Residual":
    """By cluster: what it moves the effective share by, to first order."""
    c = h.clusters
    if h.tiny:
        mean = h.total["l"] / h.n
        moved = (c["l2"] - 2 * mean * c["l"] + mean**2 * c["n"]) / h.n
        moved = -(moved - moved.sum() * c["n"] / h.n)
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = 2 * c["w1"] / c["w1"].sum() - c["w2"] / c["w2"].sum() - c["n"] / h.n
    return ess * moved, c["n"] > 0


def _difference(name: str, level: str, numbers: list[Number], residuals: list[_Residual], paired: bool) -> Difference:
    a, b = numbers
    untold = a.refused or b.refused
    if a.sample is None or b.sample is None:
        return Difference(name, level, a, b, Number(None, unit=a.unit, refused=untold or "a side has no such number"))
    change = b.sample - a.sample
    number = Number(change, None, None, change, a.unit, "The second less the first.")
    if untold:
        return Difference(name, level, a, b, replace(number, value=None, refused=untold))
    (x, in_a), (y, in_b) = residuals
    fewest = min(int(in_a.sum()), int(in_b.sum()))
    if fewest < FEWEST:
        why = f"a side has {fewest} clusters of prompts; {FEWEST} tell a difference from chance"
        return Difference(name, level, a, b, replace(number, refused=why))
    half = _half(x, in_a, y, in_b, paired)
    if not math.isfinite(half):
        return Difference(name, level, a, b, replace(number, refused="its variance is beyond what a float64 holds"))
    return Difference(name, level, a, b, replace(number, low=change - half, high=change + half))


def _half(x: Array, in_a: NDArray[np.bool_], y: Array, in_b: NDArray[np.bool_], paired: bool) -> float:
    """Half the width of the 95% interval of a difference.

    Paired: the variance of the clusters' own differences, whatever the two sides of one have in common, with G - 1
    degrees of freedom. Otherwise the two variances, and Welch's degrees of freedom.
    """
    if paired:
        groups = int((in_a | in_b).sum())
        variance = float(np.square(y - x).sum()) * groups / (groups - 1)
        return t_quantile(0.975, groups - 1) * math.sqrt(variance)
    parts = [(float(np.square(e).sum()) * g / (g - 1), g - 1) for e, g in ((x, int(in_a.sum())), (y, int(in_b.sum())))]
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(v**2 / df for v, df in parts)
    return t_quantile(0.975, max(1, int(freedom))) * math.sqrt(variance)


def _slices(by: By, a: Slices, b: Slices, paired: bool) -> tuple[SliceChange, ...]:
    """Compare the slices that both have, at one width of ranges."""
    width = (a + b).width
    sides = [in_ranges(one.token, width) for one in (a, b)]
    keys = [key for key in sides[0] if key in sides[1]]
    keys.sort(key=lambda key: (key is None, isinstance(key, str), key if key is not None else 0))
    rows: list[SliceChange] = []
    for key in keys:
        stats = [side[key] for side in sides]
        numbers = [summarise(one).numbers["kl_k3"] for one in stats]
        residuals = [_residual(_k3(one.host), one.host.clusters["n"]) for one in stats]
        rows.append(SliceChange(label(by, key, width), _difference("kl_k3", "token", numbers, residuals, paired)))
    return tuple(rows)


def _notes(
    a: Side,
    b: Side,
    shared: int,
    slices: Mapping[By, tuple[SliceChange, ...]],
    scanned: tuple[Scanned, Scanned],
    names: tuple[str, str],
) -> Iterable[str]:
    if 0 < shared < max(len(a.prompts), len(b.prompts)):
        yield (
            f"{shared:,} prompts are in both, {len(a.prompts) - shared:,} in the first alone and "
            f"{len(b.prompts) - shared:,} in the second alone: where prompts differ, so may the numbers for that reason"
        )
    for by, rows in slices.items():
        if not rows:
            yield f"by {by}: the sides have no slice in common"
    for one, name in zip(scanned, names, strict=True):
        for rule in one.notes.values():
            if rule.counted in ("rows", "files"):
                yield f"{name}: {rule.count:,} {rule.counted} left out: {rule.rule}, first in {rule.place}"


def _name(paths: Paths) -> str:
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    return str(given[0]) if len(given) == 1 else f"{given[0]} and {len(given) - 1} more"
