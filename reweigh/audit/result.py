"""What an audit found: the verdict, the numbers of each level, what estimators would do, and the slices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from reweigh.audit.pictures import Density, Histogram, Tail, WorstSequence
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import Limits, Outcome, Sign
from reweigh.audit.where import Cut, Stratum
from reweigh.doctor.diagnosis import Diagnosis
from reweigh.levels import Unit
from reweigh.records import RunInfo
from reweigh.scan.cuts import By
from reweigh.scan.run import FileRead
from reweigh.stats.intervals import Number
from reweigh.stats.summary import Summary
from reweigh.stats.verdict import Verdict


@dataclass(frozen=True)
class TrialRow:
    """What one estimator would do.

    Attributes:
        name: as one would write it.
        unit: what a weight belongs to.
        all: on all units.
        by_bin: by bin of response length (`reweigh.stats.sums.LENGTH_EDGES`); some have no units.
        by_sign: by sign of the sequence's mean advantage; all are "none" where no advantage is recorded.
        raw: the share of its units that would be effective under their raw ratios; refused as the level's is.
        independent: how many independent units know as much as these clustered ones; for intervals.
        caps: whether it moves large ratios to a bound.
        limits: how wrong and how noisy it can be at worst.
        high: the largest weight there can be, whatever the data; infinite if it has none.
    """

    name: str
    unit: Unit
    all: Outcome
    by_bin: tuple[Outcome, ...]
    by_sign: Mapping[Sign, Outcome]
    raw: Number
    independent: float
    caps: bool
    limits: Limits
    high: float


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
        strata: mean and spread of log ratios, by each cut that the records tell.
        density: tokens by probability under mu and log ratio.
        tails: the largest ratios of each level.
        worst: the sequences whose log ratio is farthest from 0.
        positive: tokens left out because a log-prob is over 0 (`keep_going`).
        notes: what a reader should know of the data and of how it was read.
        diagnosis: what a doctor said of the same records: `dataclasses.replace(found, diagnosis=...)`; None if none was
            asked.
    """

    verdict: Verdict
    files: tuple[FileRead, ...]
    levels: Mapping[str, Summary]
    trials: tuple[TrialRow, ...]
    slices: Mapping[By, tuple[SliceRow, ...]]
    histograms: Mapping[str, Histogram]
    strata: Mapping[Cut, tuple[Stratum, ...]]
    density: Density
    tails: Mapping[str, Tail]
    worst: tuple[WorstSequence, ...]
    positive: int = 0
    notes: tuple[str, ...] = ()
    diagnosis: Diagnosis | None = None

    @property
    def info(self) -> RunInfo:
        """What all files say alike."""
        merged = self.files[0].info
        for file in self.files[1:]:
            merged = merged.merged(file.info)
        return merged

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, with `"reweigh_audit": 2` for its schema; no number in it is NaN or infinite."""
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
