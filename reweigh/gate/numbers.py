"""The numbers of one run as a gate sees them: from records, or from the baseline file of an earlier gate."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, cast, get_args

from reweigh import __version__
from reweigh import doctor as diagnosing
from reweigh.audit.run import AuditSums, answer, question
from reweigh.audit.slices import Slices
from reweigh.guard import finite
from reweigh.records import RunInfo
from reweigh.records.files import Paths
from reweigh.scan import By, Engine, Report, Workers, look, scan
from reweigh.scan.rows import EVERY, Rows
from reweigh.stats.intervals import Number, bernoulli_kl
from reweigh.stats.numerals import plain
from reweigh.stats.summary import Summary, bootstrap, excess, summarise
from reweigh.stats.sums import HostSums, RatioStats

LevelName = Literal["token", "sequence", "turn"]
LEVEL_NAMES: tuple[LevelName, ...] = get_args(LevelName)
Worse = Literal["more", "less", "either"]

_SAMPLE = 4_000_000  # tokens that the cause is looked for in: seconds, as `reweigh audit` does
_CAP = 2.0  # ratio; the field's most common cap, as in the audit
_TAIL_SAMPLE = 7225  # units: no more of the tail than 3 sqrt(7225) points is kept (`reweigh.stats.tail`)
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Kind:
    """The properties of a number that a gate must know before it can bound it.

    Attributes:
        worse: which way is bad.
        low: the smallest value that it can have.
        high: the largest.
        levels: where it exists.
        exact: true of a fact about the very records: it has no error, and says nothing of any other records.
        rate: its interval narrows as n^-rate.
    """

    worse: Worse
    low: float = -math.inf
    high: float = math.inf
    levels: tuple[LevelName, ...] = LEVEL_NAMES
    exact: bool = False
    rate: float = 0.5

    @property
    def scale(self) -> bool:
        """Whether "1.2 times the baseline" means something: it is never negative, and 0 is as good or bad as can be."""
        return self.low == 0 and self.worse != "either"


_TOKEN: tuple[LevelName, ...] = ("token",)
_SEQUENCE: tuple[LevelName, ...] = ("sequence",)
KINDS: Mapping[str, Kind] = {
    "mean_ratio": Kind("either", 0.0),
    "kl_k3": Kind("more", 0.0, levels=_TOKEN),
    "kl_k1": Kind("more"),
    "mean_abs": Kind("more", 0.0),
    "sd": Kind("more", 0.0),
    "tv": Kind("more", 0.0, 1.0),
    "tv_sum": Kind("more", 0.0, levels=_TOKEN),
    "hellinger": Kind("more", 0.0, 1.0),
    "beyond_2x": Kind("more", 0.0, 1.0, levels=_TOKEN),
    "prob_gap": Kind("more", 0.0, 1.0, levels=_TOKEN),
    "excess_2": Kind("more", 0.0, 1.0),
    "unseen": Kind("more", high=1.0),
    "renyi2": Kind("more", 0.0),
    "ess_fraction": Kind("less", 0.0, 1.0),
    # The error of a tail index goes with the points of the tail, and there are 3 sqrt(n) of them.
    "khat": Kind("more", rate=0.25),
    "hybrid": Kind("more", 0.0, levels=_SEQUENCE),
    "ess": Kind("less", 0.0, exact=True),
    "largest_share": Kind("more", 0.0, 1.0, exact=True),
    "largest_gap": Kind("more", 0.0, 1.0, levels=_TOKEN, exact=True),
}
"""Numbers that can be bounded, by name."""

INSTEAD: Mapping[str, str] = {
    "unseen_at_most": "it is one end of an interval, and a bound on it could never be broken: bound unseen",
    "renyi2_at_least": "it is one end of an interval: bound renyi2, which is broken if even this end is beyond",
    "renyi2_by_blocks": "it is a model, for a check: bound renyi2",
    "kl_pi_mu": "it has no interval: bound renyi2, which is at least as large",
    "state_tv_at_most": "it has no interval, and goes with the prompts more than with the gap: bound prob_gap",
    "longer": "it has no interval: bound hybrid",
    "token_is_gap": "it has no interval: bound hybrid",
    "kept_2": "it is what excess_2 leaves of 1: bound excess_2",
    "effective_2": "it has no interval: bound ess_fraction or excess_2",
    "delta_max": "no sample can tell it: bound largest_gap or beyond_2x",
}
"""Numbers of the audit that cannot be bounded: why, and what to bound in their place."""


def measured(stats: RatioStats) -> tuple[Summary, dict[str, Number]]:
    """The summary of the stats, and every number that can be bounded, with its 95% interval.

    To what `summarise` gives this adds: bootstrap intervals of `sd`, `renyi2` and `ess_fraction` over whole prompts,
    `renyi2` never below its certified lower bound; a Chernoff interval of `prob_gap`, a mean of values in [0, 1]; and
    for `khat` the standard error (1 + k) / sqrt(m) of m tail points. Where a moment is refused, the end that holds
    under any tail is kept: a bound can still be broken for certain. With one prompt alone there is no interval.

    Source: Smith (1987) for the tail index, with the m of Vehtari et al. (2024).
    """
    summary = summarise(stats)
    if summary.n == 0:
        return summary, {}
    h = stats.host
    numbers = dict(summary.numbers)
    cut = excess(stats, _CAP)
    if not summary.identity:  # it is what is missing from a mean of 1
        cut = replace(cut, value=None, low=None, high=None, refused="the mean ratio is not 1")
    numbers["excess_2"] = cut
    boot, least = bootstrap(stats), summary["renyi2_at_least"].low or 0.0
    numbers["sd"] = _around(numbers["sd"], *boot["sd"])
    if summary.refusal:
        numbers["renyi2"] = replace(numbers["renyi2"], low=least, high=None)
        numbers["ess_fraction"] = replace(numbers["ess_fraction"], low=None, high=math.exp(-least))
    else:
        low, high = boot["renyi2"]
        numbers["renyi2"] = _around(numbers["renyi2"], max(low, least), high)
        low, high = boot["ess_fraction"]
        numbers["ess_fraction"] = _around(numbers["ess_fraction"], max(0.0, low), min(high, math.exp(-least)))
    if numbers["mean_ratio"].value is None:  # what holds of it under any tail
        most = numbers["unseen_at_most"].high or 0.0
        numbers["mean_ratio"] = replace(numbers["mean_ratio"], low=max(0.0, 1 - most), high=math.inf)
        numbers["unseen"] = replace(numbers["unseen"], low=-math.inf, high=most)
    if "prob_gap" in numbers:
        mean = numbers["prob_gap"].value or 0.0
        numbers["prob_gap"] = _around(numbers["prob_gap"], *bernoulli_kl(min(mean, 1.0), h.effective_n))
    numbers["khat"] = _tail(numbers["khat"], h)
    alone = int((h.clusters["n"] > 0).sum()) < 2  # tokens of one response tell nothing of another
    for name, kind in KINDS.items():
        if name not in numbers:
            continue
        if kind.exact:
            numbers[name] = replace(numbers[name], low=numbers[name].value, high=numbers[name].value)
        elif alone:
            numbers[name] = replace(numbers[name], low=-math.inf, high=math.inf)
        elif numbers[name].low is not None and numbers[name].high is not None:
            numbers[name] = _around(numbers[name], numbers[name].low or 0.0, numbers[name].high or 0.0)
    return summary, {name: numbers[name] for name in KINDS if name in numbers}


def _around(number: Number, low: float, high: float) -> Number:
    """Give it this interval, stretched to the value where rounding or a skewed resample leaves it out."""
    if number.value is None:
        return replace(number, low=low, high=high)
    return replace(number, low=min(low, number.value), high=max(high, number.value))


def _tail(number: Number, h: HostSums) -> Number:
    k = number.value
    if k is None:
        return replace(number, refused=number.refused or "too few units, or all alike")
    n = min(h.effective_n, _TAIL_SAMPLE)
    half = _Z * (1 + max(k, -0.5)) / math.sqrt(min(n / 5, 3 * math.sqrt(n)))
    return replace(number, low=k - half, high=k + half)


BASELINE_VERSION = 1
_FIELDS = ("value", "low", "high")
_TOO_LARGE = "beyond what a float64 holds"


@dataclass(frozen=True)
class LevelNumbers:
    """The numbers of one level, of all records or of one slice.

    Attributes:
        level: "token", "sequence" or "turn".
        by: what the slice is cut by; None for all records.
        label: of the slice; None for all records.
        n: units.
        sequences: sequences with a unit.
        tokens: tokens.
        numbers: by name, see `reweigh.gate.numbers.KINDS`.
    """

    level: LevelName
    by: By | None
    label: str | None
    n: int
    sequences: int
    tokens: int
    numbers: Mapping[str, Number]


@dataclass(frozen=True, eq=False)
class Run:
    """The numbers of one run: what a policy is held against, and what a baseline file keeps.

    Attributes:
        cuts: each level of all records, then of each slice.
        info: what the files say of the run that wrote them.
        source: the record files, or the baseline file.
        verdict: the audit's level and its sentence, with the cause and what to do.
        notes: the audit's.
        reweigh: the version that measured it.
        created: when, ISO 8601.
    """

    cuts: tuple[LevelNumbers, ...]
    info: RunInfo
    source: str
    verdict: str = ""
    notes: tuple[str, ...] = ()
    reweigh: str = __version__
    created: str = ""

    def find(self, level: LevelName, by: By | None, label: str | None) -> LevelNumbers | None:
        """The cut of that name, if there is one."""
        return next((c for c in self.cuts if (c.level, c.by, c.label) == (level, by, label)), None)

    def labels(self, by: By) -> tuple[str, ...]:
        """Labels of the slices, in order."""
        return tuple(dict.fromkeys(c.label for c in self.cuts if c.by == by and c.label is not None))

    def to_json(self) -> str:
        """As the text of a baseline file; a number that JSON has not got is null."""
        document = {
            "reweigh_gate_baseline": BASELINE_VERSION,
            "reweigh": self.reweigh,
            "created": self.created,
            "source": self.source,
            "verdict": self.verdict,
            "run": self.info.to_dict(),
            "cuts": [_cut_to_dict(cut) for cut in self.cuts],
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read_run(
    records: Paths,
    by: Iterable[By] = (),
    *,
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    state: str | PathLike[str] | None = None,
    resume: bool = False,
    on_progress: Report | None = None,
    rows: Rows = EVERY,
) -> Run:
    """Measure records, once, in parts; see `reweigh.audit.audit` for the arguments and errors.

    Example:
        >>> from reweigh.gate import read_run
        >>> run = read_run("examples/records/vllm_bfloat16.parquet")  # doctest: +SKIP
        >>> run.find("token", None, None).numbers["kl_k3"]  # doctest: +SKIP
    """
    known = look(records, reader, rows=rows)
    scanned = scan(
        known,
        [question({}, by), diagnosing.question(known, most=_SAMPLE)],
        keep_going=keep_going,
        engine=engine,
        state=state,
        resume=resume,
        on_progress=on_progress,
    )
    audited = replace(answer(scanned), diagnosis=diagnosing.answer(scanned))
    sums: AuditSums = scanned.sums["audit"]
    cuts = [_cut(stats, None, None) for stats in sums.levels.values()]
    for one in sums.slices.values():
        for key, stats in one.token.items():  # unlike a report's, slices of little text are not merged into one
            label = Slices(one.by, {key: stats}, {}, one.width).rows()[0].label
            cuts.append(_cut(stats, one.by, label))
            if key in one.sequence:
                cuts.append(_cut(one.sequence[key], one.by, label))
    paths = [str(file.path) for file in audited.files]
    run = Run(
        tuple(cut for cut in cuts if cut.n),
        audited.info,
        paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more",
        f"{audited.verdict.level}: {audited.headline.sentence}",
        audited.notes,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    scanned.done()
    return run


def _cut(stats: RatioStats, by: By | None, label: str | None) -> LevelNumbers:
    summary, numbers = measured(stats)
    level: LevelName = next(name for name in LEVEL_NAMES if name == summary.level)
    return LevelNumbers(level, by, label, summary.n, summary.sequences, summary.tokens, numbers)


def _cut_to_dict(cut: LevelNumbers) -> dict[str, Any]:
    numbers: dict[str, dict[str, Any]] = {}
    for name, x in cut.numbers.items():
        refused = _TOO_LARGE if x.value is not None and not math.isfinite(x.value) else x.refused
        numbers[name] = {key: plain(getattr(x, key)) for key in _FIELDS} | {"unit": x.unit, "refused": refused}
    sizes = {"n": cut.n, "sequences": cut.sequences, "tokens": cut.tokens}
    return {"level": cut.level, "by": cut.by, "label": cut.label, **sizes, "numbers": numbers}


def read_baseline(path: str | PathLike[str]) -> Run:
    """Read a baseline file.

    Raises:
        ValueError: it is none, is of another version, or is damaged; with the key.
        FileNotFoundError: nothing is there.
    """
    again = "hint: write it with `reweigh gate --save-baseline FILE RECORDS`."
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path}: not a baseline: {e}\n{again}") from None
    if not isinstance(data, dict) or "reweigh_gate_baseline" not in data:
        raise ValueError(f"{path}: not a baseline: the key reweigh_gate_baseline is missing\n{again}")
    document = cast("dict[str, Any]", data)
    version = document["reweigh_gate_baseline"]
    if version != BASELINE_VERSION:
        raise ValueError(
            f"{path}: reweigh_gate_baseline must be {BASELINE_VERSION}, got {version!r}: another version of reweigh "
            f"wrote it ({document.get('reweigh')})\n{again}"
        )

    def damaged(key: str, value: object) -> ValueError:
        return ValueError(f"{path}: {key}: a baseline cannot hold {value!r} there\n{again}")

    try:
        cuts = tuple(_cut_of(cut, f"cuts[{i}]", damaged) for i, cut in enumerate(document["cuts"]))
        info = RunInfo.from_dict(document["run"])
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: damaged: {type(e).__name__}: {e}\n{again}") from None
    verdict, version, created = (str(document.get(key, "")) for key in ("verdict", "reweigh", "created"))
    return Run(cuts, info, str(path), verdict, (), version, created)


def _cut_of(data: Mapping[str, Any], where: str, damaged: Callable[[str, object], ValueError]) -> LevelNumbers:
    if data["level"] not in LEVEL_NAMES:
        raise damaged(f"{where}.level", data["level"])
    if data["by"] not in (None, *get_args(By)):
        raise damaged(f"{where}.by", data["by"])
    for key in ("n", "sequences", "tokens"):
        if type(data[key]) is not int or not finite(data[key]) or data[key] < 1:
            raise damaged(f"{where}.{key}", data[key])
    numbers: dict[str, Number] = {}
    for name, x in data["numbers"].items():
        for key in _FIELDS:
            if x[key] is not None and (type(x[key]) not in (int, float) or not finite(x[key])):
                raise damaged(f"{where}.numbers.{name}.{key}", x[key])
        value, low, high = (None if x[key] is None else float(x[key]) for key in _FIELDS)
        ends = [end for end in (low, value, high) if end is not None]
        if ends != sorted(ends):
            raise damaged(f"{where}.numbers.{name}", ends)
        numbers[name] = Number(value, low, high, value, str(x["unit"]), "", str(x["refused"]))
    sizes = (data["n"], data["sequences"], data["tokens"])
    return LevelNumbers(data["level"], data["by"], data["label"], *sizes, numbers)
