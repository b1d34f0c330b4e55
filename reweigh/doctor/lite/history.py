"""The history of a run: for every metric its steps and values, in order, with what was wrong counted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.diagnosis import InputNote

Array = NDArray[np.float64]

STEP_NAMES = (
    "step",
    "_step",
    "global_step",
    "training/global_step",
    "trainer/global_step",
    "train/global_step",
    "train/step",
    "rollout/step",
    "iteration",
    "rollout_id",
    "trainer/step",
)
"""Columns that count steps, the first one found wins; in any case of letters."""


@dataclass(frozen=True, eq=False)
class Series:
    """One metric: steps in rising order and a finite value at each."""

    steps: Array
    values: Array

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.steps)

    def with_(self, other: "Series") -> tuple["Series", "Series"]:
        """Both, at the steps that they share."""
        steps, a, b = np.intersect1d(self.steps, other.steps, assume_unique=True, return_indices=True)
        return Series(steps, self.values[a]), Series(steps, other.values[b])

    def scaled(self, factor: float) -> "Series":
        """Values times a factor."""
        return Series(self.steps, self.values * factor)


@dataclass(frozen=True)
class Cell:
    """One number as it was read: metric, step, value, and where it stands."""

    metric: str
    step: float
    value: float
    place: str


@dataclass(frozen=True, eq=False)
class History:
    """Metrics of one run by name, and notes on what was left out."""

    path: Path
    metrics: Mapping[str, Series]
    notes: tuple[InputNote, ...] = field(default=())

    @classmethod
    def of(cls, path: Path, cells: Iterable[Cell]) -> "History":
        """Sort, drop what is not finite, keep the last of several values of a step; each counted.

        Raises:
            ValueError: there is not one number.
        """
        by_metric: dict[str, dict[float, float]] = {}
        bad: dict[str, list[str]] = {}
        twice: dict[str, list[str]] = {}
        for cell in cells:
            if not np.isfinite(cell.value):
                bad.setdefault(cell.metric, []).append(cell.place)
                continue
            seen = by_metric.setdefault(cell.metric, {})
            if cell.step in seen:
                twice.setdefault(cell.metric, []).append(cell.place)
            seen[cell.step] = cell.value
        if not by_metric:
            raise ValueError(
                f"diagnose_metrics: {path} has no numbers in it\n"
                "hint: give the history of a run: one row a step, one column a metric."
            )
        metrics = {name: _series(values) for name, values in by_metric.items()}
        return cls(path, metrics, (*_notes(bad, twice),))


def _series(values: Mapping[float, float]) -> Series:
    steps = np.array(sorted(values), dtype=np.float64)
    return Series(steps, np.array([values[s] for s in steps.tolist()], dtype=np.float64))


def _notes(bad: Mapping[str, list[str]], twice: Mapping[str, list[str]]) -> Iterable[InputNote]:
    for name, places in bad.items():
        yield InputNote(f"{name} is not finite", len(places), "steps", places[0], "left out; look for what made it so")
    for name, places in twice.items():
        yield InputNote(
            f"{name} has several values at one step",
            len(places),
            "steps",
            places[0],
            "the last one counts; several runs in one file have to be split",
        )


def step_column(names: Iterable[str], place: str) -> str:
    """The column that counts steps.

    Raises:
        ValueError: none does.
    """
    given = {name.strip().lower(): name for name in names}
    for name in STEP_NAMES:
        if name in given:
            return given[name]
    shown = ", ".join(sorted(given.values())[:8]) or "nothing"
    raise ValueError(
        f"diagnose_metrics: {place}: no column counts steps, got {shown}\n"
        f"hint: name one of them {', '.join(STEP_NAMES[:3])}."
    )


def number(value: Any) -> float | None:
    """A number out of a cell: None if it is empty or no number, NaN and infinities as they are."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        try:
            return float(text)
        except ValueError:
            return None
    return float(value) if isinstance(value, (int, float, np.integer, np.floating)) else None
