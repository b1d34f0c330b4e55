"""A run in time: the gap of each step from its records, beside what the trainer logged at the same steps."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.metrics.history import Series
from reweigh.doctor.metrics.read import read_history
from reweigh.doctor.metrics.steps import ranks
from reweigh.levels import SEQUENCE, TOKEN
from reweigh.records.files import Paths
from reweigh.scan.cuts import Key, codes, in_ranges, merge, width_of
from reweigh.scan.engines import Engine, Workers
from reweigh.scan.measure import Family
from reweigh.scan.rows import EVERY, Rows
from reweigh.scan.run import Report, Scanned, look, scan
from reweigh.scan.tokens import MISSING, Part, take_sequences
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import plain
from reweigh.stats.summary import summarise
from reweigh.stats.sums import RatioStats

MOST = 100  # steps told apart; of more, 2, 4, 8, ... in a row are one
FEWEST = 8  # steps in common from which on a rank correlation is given

# What stands beside the gap, and the names it is logged under; of several, the first pattern's shortest name.
BESIDE: Mapping[str, tuple[str, ...]] = {
    "reward": (
        r"critic/(rewards?|score)/mean",
        r"(^|[/.])rewards?(/mean|_mean)?$",
        r"(^|[/_.])(raw_)?rewards?([/_.]|$)(?!.*(std|min|max))",
        r"(^|[/.])score(s|/mean)?$",
    ),
    "entropy": (r"(^|[/_.])(policy_)?entropy(_loss|/mean)?$", r"entropy(?!.*coef)"),
    "length": (
        r"response_length/mean",
        r"completions?/mean_length",
        r"(response|completion|generation|gen)_?len(gth)?s?(_mean|/mean)?$",
    ),
    "grad norm": (r"grad(ient)?_?norm(?!.*(clip|max))",),
}


@dataclass(frozen=True, eq=False)
class Steps:
    """Stats and rewards of each step; `a + b` is of both.

    Attributes:
        token: stats of tokens, by the first step of a range.
        sequence: stats of sequences.
        reward: `[2]`: sum and number of rewards.
        width: steps of a range.
    """

    token: Mapping[Key, RatioStats] = field(default_factory=dict[Key, RatioStats])
    sequence: Mapping[Key, RatioStats] = field(default_factory=dict[Key, RatioStats])
    reward: Mapping[Key, NDArray[np.float64]] = field(default_factory=dict[Key, NDArray[np.float64]])
    width: int = 1

    @classmethod
    def of(cls, part: Part) -> "Steps":
        """Add up some records."""
        step = codes("step", part).sequence
        assert step is not None
        lengths, reward = part.batch.layout.lengths, part.column("reward")
        token: dict[Key, RatioStats] = {}
        sequence: dict[Key, RatioStats] = {}
        rewards: dict[Key, NDArray[np.float64]] = {}
        for n in step[lengths > 0].unique().tolist():
            chosen = step.numpy() == n
            key = None if n == MISSING else int(n)
            token[key], sequence[key] = RatioStats.of_levels(take_sequences(part.batch, chosen), (TOKEN, SEQUENCE))
            known = np.array([]) if reward is None else reward[chosen].astype(np.float64)
            known = known[np.isfinite(known)]
            rewards[key] = np.array([known.sum(), len(known)], np.float64)
        return cls(token, sequence, rewards)._limited()

    def __add__(self, other: "Steps") -> "Steps":
        """Add up both."""
        width = max(self.width, other.width)
        a, b = self._at(width), other._at(width)
        both = (merge(a.token, b.token), merge(a.sequence, b.sequence), merge(a.reward, b.reward))
        return Steps(*both, width)._limited()

    def _limited(self) -> "Steps":
        # Those that do not say their step are one of them.
        return self._at(max(self.width, width_of("step", self.token, MOST - (None in self.token))))

    def _at(self, width: int) -> "Steps":
        if width == self.width:
            return self
        ranges = (in_ranges(self.token, width), in_ranges(self.sequence, width), in_ranges(self.reward, width))
        return Steps(*ranges, width)


@dataclass(frozen=True)
class Moment:
    """A step, or some in a row.

    Attributes:
        first: the first step.
        last: the last one.
        sequences: responses that count.
        tokens: tokens that count.
        numbers: "kl_k3", "mean_ratio" (of tokens) and "ess_fraction" (of sequences).
        length: tokens a response.
        beside: by name: what was logged, averaged over the steps; the records' own reward where nothing was.
    """

    first: int
    last: int
    sequences: int
    tokens: int
    numbers: Mapping[str, Number]
    length: float
    beside: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Timeline:
    """The result of `timeline`; `reweigh.report` prints it.

    Attributes:
        moments: in the order of steps.
        logged: what each column of `beside` was logged as.
        ranks: rank correlation of each with the KL, over how many moments.
        notes: what a reader should know.
    """

    moments: tuple[Moment, ...]
    logged: Mapping[str, str]
    ranks: Mapping[str, tuple[float, int]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "reweigh_timeline": 1,
            "logged_as": dict(self.logged),
            "rank_correlation_with_kl": {name: {"value": r, "moments": n} for name, (r, n) in self.ranks.items()},
            "moments": [
                {
                    "first": m.first,
                    "last": m.last,
                    "sequences": m.sequences,
                    "tokens": m.tokens,
                    "length": m.length,
                    **{
                        name: {
                            **{part: plain(getattr(x, part)) for part in ("value", "low", "high", "sample")},
                            "refused": x.refused,
                        }
                        for name, x in m.numbers.items()
                    },
                    "beside": dict(m.beside),
                }
                for m in self.moments
            ],
            "notes": list(self.notes),
        }


def question() -> Family:
    """Ask for a timeline of what is scanned."""
    return Family("timeline", Steps.of, ("step", "trainer_version", "reward"), (Steps,))


def timeline(
    paths: Paths,
    metrics: str | Path | None = None,
    *,
    show: Iterable[str] = (),
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    on_progress: Report | None = None,
    rows: Rows = EVERY,
) -> Timeline:
    """Measure the gap of each training step, and put what was logged at the same steps beside it.

    Args:
        paths: files, folders or globs of records, which have `step` (or `trainer_version`).
        metrics: the run's logged scalars, as `reweigh doctor --metrics` reads them.
        show: names of more metrics to show, as they were logged.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        reader: name of the records' format; recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        on_progress: called after each part.
        rows: which rows are read.

    Raises:
        ValueError: no record says its step; metrics without a number, or without one that is asked for.
        FileNotFoundError: nothing is there.
    """
    history = None if metrics is None else read_history(metrics)
    wanted = tuple(show)
    if wanted and history is None:
        raise ValueError("timeline: --show is of logged metrics\nhint: --metrics FILE, the run's history.")
    found = scan(
        look(paths, reader, rows=rows), [question()], keep_going=keep_going, engine=engine, on_progress=on_progress
    )
    return conclude(found, {} if history is None else history.metrics, wanted)


def conclude(found: Scanned, metrics: Mapping[str, Series], show: Iterable[str] = ()) -> Timeline:
    """Make the timeline of what was scanned.

    Raises:
        ValueError: no record says its step, or there is no metric of a name.
    """
    sums: Steps = found.sums.get("timeline", Steps())
    known = sorted(key for key in sums.token if isinstance(key, int))
    if not known:
        raise ValueError(
            "timeline: no record says its step (step and trainer_version are missing or null throughout)\n"
            "hint: write step, see docs/records.md; `reweigh audit` needs none."
        )
    logged = _logged(metrics, show)
    moments = tuple(_moment(sums, key, metrics, logged) for key in known)
    if "reward" not in logged and any("reward" in m.beside for m in moments):
        logged["reward"] = "the records' reward"
    notes = [f"{v.count:,} {v.counted} left out: {v.rule}, first in {v.place}" for v in found.notes.values()]
    if None in sums.token:
        notes.append(f"{int(sums.token[None].host.n):,} tokens are of responses that do not say their step")
    unmet = [name for name in logged if not any(name in m.beside for m in moments)]
    notes += [f"{logged[name]} was logged at none of the records' steps" for name in unmet]
    return Timeline(moments, {k: v for k, v in logged.items() if k not in unmet}, _ranks(moments), tuple(notes))


def _logged(metrics: Mapping[str, Series], show: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for label, patterns in BESIDE.items():
        for pattern in patterns:
            names = [name for name in metrics if re.search(pattern, name, re.IGNORECASE)]
            if names:
                found[label] = min(names, key=lambda name: (len(name), name))
                break
    for name in show:
        if name not in metrics:
            import difflib

            near = difflib.get_close_matches(name, list(metrics), 3)
            like = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(list(metrics)[:8])}, ..."
            raise ValueError(f"timeline: no metric is called {name!r}\nhint: {like}")
        found[name] = name
    return found


def _moment(sums: Steps, key: int, metrics: Mapping[str, Series], logged: Mapping[str, str]) -> Moment:
    token, sequence = summarise(sums.token[key]), summarise(sums.sequence[key])
    beside: dict[str, float] = {}
    for label, name in logged.items():
        series = metrics[name]
        values = series.values[(series.steps >= key) & (series.steps < key + sums.width)]
        if len(values):
            beside[label] = float(values.mean())
    total, count = sums.reward[key].tolist()
    if "reward" not in logged and count:
        beside["reward"] = total / count
    numbers = {name: token[name] for name in ("kl_k3", "mean_ratio")} | {"ess_fraction": sequence["ess_fraction"]}
    last = key + sums.width - 1
    return Moment(key, last, sequence.n, token.n, numbers, token.n / max(1, sequence.n), beside)


def _ranks(moments: tuple[Moment, ...]) -> dict[str, tuple[float, int]]:
    found: dict[str, tuple[float, int]] = {}
    for name in dict.fromkeys(name for m in moments for name in m.beside):
        both = [(m.numbers["kl_k3"].sample or 0.0, m.beside[name]) for m in moments if name in m.beside]
        if len(both) >= FEWEST and len({y for _, y in both}) > 1:
            value = ranks(*(np.array(x) for x in zip(*both, strict=True)))
            if math.isfinite(value):
                found[name] = (value, len(both))
    return found
