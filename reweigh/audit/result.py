"""An audit as a value that draws nothing: verdict, numbers, what estimators would do; and how sums become one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from reweigh.audit.accumulate import Sums
from reweigh.audit.pictures import Density, Histogram, Tail, WorstSequence, tail_of
from reweigh.audit.recommend import Headline, Recommendation, headline, recommend
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import Asked, Limits, Outcome, TrialRow
from reweigh.audit.where import Cut, Stratum, shown_cuts
from reweigh.doctor.diagnosis import Diagnosis
from reweigh.records import RunInfo
from reweigh.scan.cuts import COLUMNS_OF, By
from reweigh.scan.run import FileRead
from reweigh.stats.summary import Summary, excess, summarise
from reweigh.stats.verdict import Finding, Verdict, judge


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of `audit`; `reweigh.report` prints it.

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
        asked: what was to be tried, for what it says of estimators that were not.
        batch: responses averaged in one step, for the recommendation; those of the records if not given.
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
    asked: Asked | None = None
    batch: float | None = None

    @cached_property
    def recommendation(self) -> Recommendation:
        """The estimator to use and why; worked out once."""
        return recommend(self, self.asked, self.batch)

    @cached_property
    def headline(self) -> Headline:
        """The audit in one sentence, what to do and why; worked out once."""
        return headline(self, self.recommendation.use)

    @property
    def info(self) -> RunInfo:
        """What all files say alike."""
        merged = self.files[0].info
        for file in self.files[1:]:
            merged = merged.merged(file.info)
        return merged


SHOWN_CAP = 2.0  # ratio; the field's most common cap, for which the lost weight is shown


def conclude(sums: Sums, files: tuple[FileRead, ...], left_out: tuple[str, ...] = ()) -> Audit:
    """The audit of what was read.

    Raises:
        ValueError: nothing in it counts.
    """
    _refuse_nothing(files, sums, left_out)
    levels: dict[str, Summary] = {}
    for name, stats in sums.levels.items():
        summary = summarise(stats)
        if summary.n:
            levels[name] = summary
    wrong = not all(summary.identity for summary in levels.values())
    for name, summary in levels.items():
        cut = excess(sums.levels[name], SHOWN_CAP)
        if wrong:  # it is what is missing from a mean of 1
            cut = replace(cut, value=None, low=None, high=None, refused="the mean ratio is not 1")
        levels[name] = replace(summary, numbers={**summary.numbers, f"excess_{SHOWN_CAP:g}": cut})
    trials: list[TrialRow] = []
    for name, trial in sums.trials.items():
        by_bin = tuple(trial.by_bin())
        raw = levels[trial.unit]["ess_fraction"]
        independent = sums.levels[trial.unit].host.effective_n
        total, signs = sum(by_bin, Outcome()), trial.by_sign()
        limits = Limits.of(trial.limits, trial.range, wrong, levels["sequence"].refusal)
        trials.append(
            TrialRow(name, trial.unit, total, by_bin, signs, raw, independent, trial.caps, limits, trial.high)
        )
    return Audit(
        _with_positive(judge(*levels.values()), sums.positive, levels["token"].tokens),
        files,
        levels,
        tuple(trials),
        {by: tuple(slices.rows()) for by, slices in sums.slices.items()},
        sums.histograms,
        {strata.cut: tuple(strata.rows()) for strata in shown_cuts(sums.strata)},
        sums.density,
        {name: tail_of(sums.levels[name], summary) for name, summary in levels.items()},
        tuple(sums.worst.found),
        sums.positive,
        (*left_out, *_notes(files, levels, sums)),
    )


def _refuse_nothing(files: tuple[FileRead, ...], sums: Sums, left_out: tuple[str, ...]) -> None:
    if sum(file.tokens for file in files):
        return
    rows = sum(file.rows for file in files)
    where = str(files[0].path) if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
    if rows == 0 and left_out:
        raise ValueError(
            f"{where}: nothing to judge: {'; '.join(left_out)}\n"
            "hint: `reweigh records validate` says what to do about each."
        )
    if rows == 0:
        raise ValueError(f"{where}: there are no records\nhint: did the run that wrote it get to its first response?")
    dropped = int(sums.levels["token"].dropped) + sums.positive
    why = f", and {dropped} tokens were left out for their log-probs" if dropped else ""
    raise ValueError(
        f"{where}: nothing to judge: no token of {rows} rows counts{why}\n"
        "hint: the mask is true on response tokens that mu sampled, false on tool output and padding."
    )


def _with_positive(verdict: Verdict, count: int, tokens: int) -> Verdict:
    if count == 0:
        return verdict
    finding = Finding(
        "warn",
        f"{count:,} tokens of the mask ({count / (count + tokens):.2g} of them) have a log-prob over 0: left out",
        "compute the log-softmax in float32, and check that these are not logits",
    )
    if verdict.level == "ok":
        return Verdict(finding.severity, finding.reason, finding.hint, (finding, *verdict.findings))
    return replace(verdict, findings=(*verdict.findings, finding))


def _notes(files: tuple[FileRead, ...], levels: Mapping[str, Summary], sums: Sums) -> tuple[str, ...]:
    notes: dict[str, None] = {}
    for file in files[1:]:
        for name, (a, b) in files[0].info.disagreements(file.info).items():
            notes[f"the files differ in {name}: {a} in {files[0].path}, {b} in {file.path}"] = None
    for decimals in dict.fromkeys(file.info.decimals for file in files if file.info.decimals is not None):
        # both sides rounded: the sum of two uniform errors, each of variance 1/12 of a unit in the last place
        sd = (2 / 12) ** 0.5 * 10.0**-decimals
        notes[
            f"log-probs are rounded to {decimals} decimals in the file: that alone gives a token's log ratio a "
            f"standard deviation of {sd:.2g} nats"
        ] = None
    for by, slices in sums.slices.items():
        if set(slices.token) == {None}:
            columns = " and ".join(COLUMNS_OF.get(by, ()))
            notes[f"by {by}: no record says it ({columns} missing or null throughout)"] = None
    if sums.steps_stand_in:
        notes[
            f"the lag of {sums.steps_stand_in:,} rows is counted from their step, as they do not record the "
            "trainer's version"
        ] = None
    notes.update(dict.fromkeys(summary.note for summary in levels.values() if summary.note))
    return tuple(notes)
