"""What an audit found: the verdict, the numbers of each level, what estimators would do, and the slices."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from reweigh.audit.pictures import Histogram, Point
from reweigh.audit.slices import By, SliceRow
from reweigh.audit.trial import Outcome
from reweigh.estimators import Unit
from reweigh.records import RunInfo
from reweigh.summary import Summary
from reweigh.verdict import Verdict


@dataclass(frozen=True)
class FileRead:
    """One file: how many rows and counted tokens it had, and what it says about its run."""

    path: Path
    rows: int
    tokens: int
    info: RunInfo


@dataclass(frozen=True)
class TrialRow:
    """What one estimator would do.

    Attributes:
        name: as one would write it.
        unit: what a weight belongs to.
        all: on all units.
        by_bin: by bin of response length (`reweigh.sums.LENGTH_EDGES`); some have no units.
    """

    name: str
    unit: Unit
    all: Outcome
    by_bin: tuple[Outcome, ...]


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of `audit`.

    Attributes:
        verdict: how bad it is, why, and what to look at first.
        files: what was read.
        levels: numbers by name of the level: "token", "sequence", and "turn" if the records have turns.
        trials: what each estimator would do.
        slices: by what they are cut by.
        histograms: of log ratios, "token" and "sequence".
        profiles: of |log ratio|, by "position" in the response and by "probability" under mu.
        positive: tokens left out because a log-prob is over 0 (`keep_going`).
        notes: what a reader should know of the data and of how it was read.
    """

    verdict: Verdict
    files: tuple[FileRead, ...]
    levels: Mapping[str, Summary]
    trials: tuple[TrialRow, ...]
    slices: Mapping[By, tuple[SliceRow, ...]]
    histograms: Mapping[str, Histogram]
    profiles: Mapping[str, tuple[Point, ...]]
    positive: int = 0
    notes: tuple[str, ...] = ()

    @property
    def info(self) -> RunInfo:
        """What all files say alike."""
        merged = self.files[0].info
        for file in self.files[1:]:
            merged = merged.merged(file.info)
        return merged

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, with `"reweigh_audit": 1` for its schema; no number in it is NaN or infinite."""
        from reweigh.audit.document import document

        return document(self)

    def render(self, console: Console) -> None:
        """Print the verdict, then the tables."""
        from reweigh.audit.render_terminal import render

        render(self, console)

    def to_html(self) -> str:
        """One page that needs nothing else."""
        from reweigh.audit.render_html import render_html

        return render_html(self)
