"""Holds the history of a run: metrics by name, one run's points, and what was left out."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.diagnosis import InputNote

Array = NDArray[np.float64]

STEP_NAMES = (
    "train/global_step",
    "training/global_step",
    "trainer/global_step",
    "training_step",
    "train/step",
    "rollout/step",
    "trainer/step",
    "system/step",
    "global_step",
    "step",
    "iteration",
    "rollout_id",
    "_step",
)
"""Columns that count steps, in any case of letters. Those that count training steps come before those that may count
calls of the logger: W&B's own `_step` is 10, 22, 34 at the training steps 2, 4, 6 of TRL 1.16; open-instruct's
`global_step` counts episodes."""

LARGEST = float(np.finfo(np.float32).max)
"""From here on a value stands for an infinity: MLflow gives 1.797e308 back for one, `nan_to_num` 3.4e38."""


@dataclass(frozen=True, eq=False)
class Series:
    """One metric: steps in rising order and a finite value at each."""

    steps: Array
    values: Array

    def __len__(self) -> int:
        """Counts the steps."""
        return len(self.steps)

    def with_(self, other: "Series") -> tuple["Series", "Series"]:
        """Returns two series at the steps that they share."""
        steps, a, b = np.intersect1d(self.steps, other.steps, assume_unique=True, return_indices=True)
        return Series(steps, self.values[a]), Series(steps, other.values[b])

    def scaled(self, factor: float) -> "Series":
        """Multiplies the values by a factor."""
        return Series(self.steps, self.values * factor)

    def at(self, keep: NDArray[np.bool_]) -> "Series":
        """Keeps some of the steps."""
        return Series(self.steps[keep], self.values[keep])


@dataclass(frozen=True)
class Point:
    """One number as it was read: metric, step, value, and where it stands."""

    metric: str
    step: float
    value: float
    place: str


@dataclass(frozen=True, eq=False)
class History:
    """Metrics of one run by name, and notes on what was left out.

    Attributes:
        path: where it was read from.
        metrics: series by name.
        notes: what was left out.
        rounded: metrics that were printed with four decimals, so that 0 stands for anything below 5e-5.
        last: the last step at which anything was logged.
        resumed: steps from which the run went on from a checkpoint.
    """

    path: Path
    metrics: Mapping[str, Series]
    notes: tuple[InputNote, ...] = field(default=())
    rounded: frozenset[str] = frozenset()
    last: float = 0.0
    resumed: frozenset[float] = frozenset()

    @classmethod
    def of(cls, path: Path, cells: Iterable[Point], notes: Sequence[InputNote] = ()) -> "History":
        """Sorts by step, drops what is not finite and what a later start of the run replaced; each counted.

        Args:
            path: where they were read from.
            cells: numbers in the order in which they were written.
            notes: what the reader has to say; read after the cells.

        Raises:
            ValueError: there is not one number.
        """
        by_metric: dict[str, list[Point]] = {}
        bad: dict[str, list[Point]] = {}
        for cell in cells:
            finite = abs(cell.value) < LARGEST  # false for NaN
            (by_metric if finite else bad).setdefault(cell.metric, []).append(cell)
        if not by_metric:
            raise ValueError(
                f"diagnose_metrics: {path} has no numbers in it\n"
                "hint: give the history of a run: one row a step, one column a metric."
            )
        metrics: dict[str, Series] = {}
        said: dict[tuple[str, str, str], list[tuple[str, int, str]]] = {}
        resumed: set[float] = set()
        for name, points in by_metric.items():
            metrics[name], told, again = _one_run(points)
            resumed |= again
            for note in told:
                said.setdefault((note.rule, note.counted, note.hint), []).append((name, note.count, note.place))
        for name, points in bad.items():
            end = "" if name in metrics and metrics[name].steps[-1] > points[-1].step else " up to the end of the run"
            more = (
                f"from step {points[0].step:g} on{end}" if len(points) > 2 and _in_a_row(points, metrics, name) else ""
            )
            hint = f"{more}: left out; look for what made it so" if more else "left out; look for what made it so"
            said.setdefault(("not finite", "steps", hint), []).append((name, len(points), points[0].place))
        told = [_joined(*key, names) for key, names in said.items()]
        last = max(p.step for points in (*by_metric.values(), *bad.values()) for p in points)
        return cls(path, metrics, (*notes, *told), last=last, resumed=frozenset(resumed))


def _in_a_row(points: Sequence[Point], metrics: Mapping[str, Series], name: str) -> bool:
    """Tells whether no finite value stands between the first and the last that is not."""
    if name not in metrics:
        return True
    steps = metrics[name].steps
    return not ((steps > points[0].step) & (steps < points[-1].step)).any()


def _joined(rule: str, counted: str, hint: str, names: Sequence[tuple[str, int, str]]) -> InputNote:
    """Says one thing of several metrics at once."""
    count = max(n for _, n, _ in names)
    first = ", ".join(name for name, _, _ in names[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    verb = "is" if len(names) == 1 else "are"
    rule = f"{verb} not finite" if rule == "not finite" else rule
    return InputNote(f"{first}{more} {rule}", count, counted, names[0][2], hint)


def _one_run(points: Sequence[Point]) -> tuple[Series, list[InputNote], set[float]]:
    """Takes one run out of the points of a metric, as they were written.

    Where steps go back to their beginning, another run was appended: the last one is taken. Where they go back to a
    later step, the run went on from a checkpoint: what it replaced is thrown away.

    Returns:
        The series, what was left out, and the steps from which it went on.
    """
    notes: list[InputNote] = []
    last = {p.step: i for i, p in enumerate(points)}
    if len(points) > 1 and len(last) == 1:
        hint = "the order counts; log the step"
        notes.append(InputNote("has one step for all values", len(points), "values", points[0].place, hint))
        values = np.array([p.value for p in points])
        return Series(np.arange(len(points), dtype=np.float64), values), notes, set()
    kept: dict[float, float] = {}
    top = first = points[0].step
    earlier, replaced, twice = 0, 0, 0
    place: dict[str, str] = {}
    resumed: set[float] = set()
    for i, p in enumerate(points):
        if p.step < top and any(last[s] >= i for s in kept if s >= p.step):
            if p.step <= first:
                earlier += len(kept)
                place["earlier"] = p.place
                resumed.clear()
                kept, first = {}, p.step
            else:
                gone = [s for s in kept if s >= p.step]
                replaced += len(gone)
                resumed.add(p.step)
                place.setdefault("replaced", p.place)
                for s in gone:
                    del kept[s]
            top = p.step
        if p.step in kept:
            twice += 1
            place.setdefault("twice", p.place)
        kept[p.step] = p.value
        top, first = max(top, p.step), min(first, p.step)
    if earlier:
        hint = "the last run in the file is taken; split the file to see the others"
        notes.append(InputNote("starts again from its first step", earlier, "earlier points", place["earlier"], hint))
    if replaced:
        hint = "the run went on from a checkpoint; what it replaced is left out"
        notes.append(InputNote("goes back to an earlier step", replaced, "points", place["replaced"], hint))
    if twice:
        hint = "the last one counts; several runs or ranks in one file have to be split"
        notes.append(InputNote("has several values at one step", twice, "steps", place["twice"], hint))
    steps = np.array(sorted(kept), dtype=np.float64)
    return Series(steps, np.array([kept[s] for s in steps.tolist()], dtype=np.float64)), notes, resumed


_WRAPPED = re.compile(r"^(?:np\.|numpy\.|torch\.)?(?:float\d*|int\d*|tensor|array)\(\s*([^,()\[\]]+?)\s*(?:,.*)?\)$")


def number(value: Any) -> float | None:
    """Reads a number out of a cell: None if it is empty or no number, NaN and infinities as they are.

    Example:
        >>> number("np.float64(0.0042)"), number(" NaN "), number("tensor(0.5, device='cuda:0')"), number("")
        (0.0042, nan, 0.5, None)
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if wrapped := _WRAPPED.match(text):
            text = wrapped[1]
        try:
            return float(text) if text else None
        except ValueError:
            return None
    try:
        return float(value) if isinstance(value, (int, float, np.integer, np.floating)) else None
    except OverflowError:  # an integer beyond float64
        return math.inf if value > 0 else -math.inf
