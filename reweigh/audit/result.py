"""An audit as a value that draws nothing: verdict, numbers, and what estimators would do."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from reweigh.audit.known import Place, place
from reweigh.audit.pictures import Density, Histogram, Tail, WorstSequence
from reweigh.audit.recommend import Headline, Recommendation, headline, recommend
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import Asked, TrialRow
from reweigh.audit.where import Cut, Stratum
from reweigh.doctor.diagnosis import Diagnosis
from reweigh.records import RunInfo
from reweigh.scan.cuts import By
from reweigh.scan.run import FileRead
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, interval
from reweigh.stats.summary import Summary
from reweigh.stats.verdict import Verdict, judge


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of `audit`; `reweigh.report` prints it.

    Attributes:
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
        asked: what was to be tried, for what it says of estimators that were not.
        batch: responses averaged in one step, for the recommendation; those of the records if not given.
    """

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
    asked: Asked | None = None
    batch: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Say how bad it is, why, and the one thing to do; worked out once, with the cause if a doctor was asked."""
        return self._judged

    @cached_property
    def _judged(self) -> Verdict:
        cause = None if self.diagnosis is None else self.diagnosis.cause
        return judge(self.levels["token"], self.levels["sequence"], cause=cause, positive=self.positive)

    def __repr__(self) -> str:
        """Say in a line what was found and of how much."""
        sizes = f"{sum(f.rows for f in self.files):,} responses, {sum(f.tokens for f in self.files):,} tokens"
        return f"Audit({self.verdict.level}: {self.verdict.sentence}; {sizes})"

    def _repr_html_(self) -> str:
        """Show the verdict and the numbers of each level in a notebook; `reweigh.report.page` has all of it."""
        names = ("mean_ratio", "kl_k3", "kl_k1", "tv", "ess_fraction")
        rows = "".join(
            f"<tr><th>{name}</th>{''.join(_cell(level.numbers.get(name)) for level in self.levels.values())}</tr>"
            for name in names
        )
        heads = "".join(f"<th>{count(level.n, name)}</th>" for name, level in self.levels.items())
        return f"{html.escape(str(self.verdict))}<table><tr><th></th>{heads}</tr>{rows}</table>"

    @cached_property
    def recommendation(self) -> Recommendation:
        """Rank what was tried, beside the estimator that the verdict says to use; worked out once."""
        return recommend(self, self.asked, self.batch)

    @cached_property
    def headline(self) -> Headline:
        """Say it in one sentence, with what to do and why; worked out once."""
        return headline(self.verdict, self.diagnosis, self.place)

    @cached_property
    def place(self) -> Place:
        """Say where the gap stands among levels that were measured or reported; worked out once."""
        token = self.levels["token"]
        return place(max(0.0, token["kl_k3"].sample or 0.0), token["mean_abs"].sample or 0.0, self.info)

    @property
    def info(self) -> RunInfo:
        """Say of the run what all files say alike."""
        merged = self.files[0].info
        for file in self.files[1:]:
            merged = merged.merged(file.info)
        return merged


def _cell(number: Number | None) -> str:
    if number is None:
        return "<td></td>"
    return f"<td>{html.escape(' '.join(interval(number)).strip())}</td>"
