"""Audit record files: one family of sums over a scan, and what they say."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike

import numpy as np
import torch

from reweigh.audit.pictures import WORST_COLUMNS, Density, Histogram, Tail, Worst, WorstSequence
from reweigh.audit.result import Audit
from reweigh.audit.slices import Slices
from reweigh.audit.trial import (
    SIGNS,
    Limits,
    Outcome,
    Range,
    Trial,
    TrialRow,
    default_estimators,
    possible,
    refuse_batch_readers,
    trials_of,
)
from reweigh.audit.walked import Walked
from reweigh.audit.where import CUTS, Cut, Strata, TokenRows, all_strata
from reweigh.estimators import Estimator
from reweigh.levels import SEQUENCE, TOKEN, TURN
from reweigh.records.files import OF_BATCH, Paths
from reweigh.records.schema import Violation
from reweigh.scan.cuts import COLUMNS_OF, CUT_COLUMNS, By, merge, refuse_other_cuts
from reweigh.scan.engines import Engine, Workers
from reweigh.scan.measure import NOT_CHOSEN, Family
from reweigh.scan.rows import EVERY, Rows
from reweigh.scan.run import FOREIGN, FileRead, Report, Scanned, look, scan
from reweigh.scan.tokens import Part
from reweigh.stats.numerals import count
from reweigh.stats.summary import Summary, excess, summarise
from reweigh.stats.sums import RatioStats

COLUMNS = (*CUT_COLUMNS, *WORST_COLUMNS)  # what is read beside those of a batch
_VALUES = 3  # of a field in which files differ, the most common ones
SHOWN_CAP = 2.0  # ratio; the field's most common cap, for which the lost weight is shown


@dataclass(frozen=True, eq=False)
class AuditSums:
    """Adds up all that an audit is made of, in a size that does not depend on how many records there are.

    Attributes:
        levels: stats of the raw ratios, by name of the level; TURN only where the records have turns.
        trials: what each estimator did, by its name.
        histograms: of log ratios, by name of the level.
        strata: mean and spread of log ratios by each cut that the records allow.
        density: tokens by probability and log ratio.
        worst: the sequences that are farthest off.
        slices: by what they are cut by.
        positive: tokens that were left out because a log-prob is over 0.
        steps_stand_in: rows whose lag is counted from their step, for want of the trainer's version.
    """

    levels: dict[str, RatioStats] = field(default_factory=dict[str, RatioStats])
    trials: dict[str, Trial] = field(default_factory=dict[str, Trial])
    histograms: dict[str, Histogram] = field(default_factory=dict[str, Histogram])
    strata: dict[Cut, Strata] = field(default_factory=dict[Cut, Strata])
    density: Density = field(default_factory=Density.empty)
    worst: Worst = field(default_factory=Worst)
    slices: dict[By, Slices] = field(default_factory=dict[By, Slices])
    positive: int = 0
    steps_stand_in: int = 0

    @classmethod
    def of(cls, estimators: Mapping[str, Estimator] | None, by: tuple[By, ...], part: Part) -> "AuditSums":
        """Add up some records; None for the default estimators."""
        batch, shared = part.batch, part.shared
        layout = batch.layout
        levels = [TOKEN, SEQUENCE] + ([TURN] if layout.turn is not None else [])
        tried = default_estimators(batch) if estimators is None else possible(estimators, batch)
        live, walked = shared.runs.lengths, Walked.of(shared)
        if walked is None:
            log_ratio = batch.log_ratio
            tokens = Histogram.of(log_ratio, zeros=log_ratio.numel() - int(live.sum()))
            density = Density.of(shared)
            by_sequence = shared.runs.reduce(np.add, log_ratio.numpy(), 0, np.float64)
        else:
            tokens, density = Histogram.of_shapes(walked.shapes), Density(torch.from_numpy(walked.density))
            by_sequence = np.ascontiguousarray(walked.sequences[1])
        return cls(
            {stats.level.name: stats for stats in RatioStats.of_levels(batch, levels)},
            trials_of(tried, shared),
            {
                "token": tokens,
                "sequence": Histogram.of(torch.from_numpy(by_sequence)[live > 0]),
            },
            all_strata(TokenRows.of(shared, walked), part),
            density,
            Worst.of(shared, by_sequence, part),
            {cut: Slices.of(cut, part) for cut in by},
            part.positive,
            part.steps_stand_in,
        )

    def __add__(self, other: "AuditSums") -> "AuditSums":
        """Add up the records of both."""
        return AuditSums(
            merge(self.levels, other.levels),
            merge(self.trials, other.trials),
            merge(self.histograms, other.histograms),
            merge(self.strata, other.strata),
            self.density + other.density,
            self.worst + other.worst,
            merge(self.slices, other.slices),
            self.positive + other.positive,
            self.steps_stand_in + other.steps_stand_in,
        )


def audit(
    paths: Paths,
    *,
    estimators: Mapping[str, Estimator] | None = None,
    by: Iterable[By] = (),
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    state: str | PathLike[str] | None = None,
    resume: bool = False,
    on_progress: Report | None = None,
    rows: Rows = EVERY,
) -> Audit:
    """Measure the gap between sampler and trainer in records, judge it, and try estimators on it.

    Records are read once, in parts, and memory does not grow with their number. What is found does not depend on how
    they are cut into parts and files: counts are the same, and sums to 1e-9; for one cut it is the same to the last bit
    whatever engine ran it.

    Args:
        paths: files, folders or globs with both sides' log-probs: records, or dumps of training frameworks.
        estimators: what to try, by the name to show; a default set if not given.
        by: what to cut the numbers by: "step", "env", "length", "position", "lag", "turn" or "source" (file).
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        reader: name of the files' format (see `reweigh.dumps.FORMATS`); recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        state: file to keep what was merged in, written every few seconds and when interrupted, deleted at the end.
        resume: go on from `state`; from the beginning if there is no such file.
        on_progress: called after each part.
        rows: which rows are read: `Rows.of(["step >= 100"], share=0.1, limit=1000)`.

    Raises:
        ValueError: a value that breaks a rule, a missing column, or nothing to judge; with file, row and remedy. A
            state of other files or another question.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.audit import audit
        >>> found = audit("report/records.parquet", by=["length"])  # doctest: +SKIP
        >>> print(found.verdict)  # doctest: +SKIP
    """
    family = question(estimators, by)  # refuses what it cannot do, before anything is read
    found = scan(
        look(paths, reader, rows=rows),
        [family],
        keep_going=keep_going,
        engine=engine,
        state=state,
        resume=resume,
        on_progress=on_progress,
    )
    result = answer(found)
    found.done()
    return result


def question(estimators: Mapping[str, Estimator] | None = None, by: Iterable[By] = ()) -> Family:
    """Ask for an audit of what is scanned; see `audit` for the arguments.

    Raises:
        ValueError: there is no such cut, or what an estimator does depends on how records are cut.
    """
    cuts = refuse_other_cuts("audit", by)
    if estimators is not None:
        refuse_batch_readers(estimators)
    return Family(
        "audit",
        partial(AuditSums.of, estimators, cuts),
        COLUMNS,
        (AuditSums, Trial, Range, Histogram, Density, Strata, Worst, WorstSequence, Slices),
        {
            "estimators": "default" if estimators is None else {name: repr(e) for name, e in estimators.items()},
            "--by": list(cuts),
        },
        per_file="source" in cuts,
    )


def answer(found: Scanned) -> Audit:
    """Make the audit of what was scanned.

    Raises:
        ValueError: nothing in it counts.
    """
    sums: AuditSums = found.sums.get("audit", AuditSums())
    others = (rule for name, rule in found.notes.items() if name in (FOREIGN, NOT_CHOSEN))
    return conclude(sums, found.files, (*found.left_out((*OF_BATCH, *COLUMNS)), *others))


def conclude(sums: AuditSums, files: tuple[FileRead, ...], left_out: tuple[Violation, ...] = ()) -> Audit:
    """Make the audit of what was read.

    Raises:
        ValueError: nothing in it counts.
    """
    if not sum(file.tokens for file in files):
        raise ValueError(_nothing(files, sums, left_out))
    levels: dict[str, Summary] = {}
    for name, stats in sums.levels.items():
        summary = summarise(stats)
        if summary.n:
            levels[name] = summary
    wrong = not all(levels[name].identity for name in ("token", "sequence"))
    for name, summary in levels.items():
        cut = excess(sums.levels[name], SHOWN_CAP)
        if wrong:  # it is what is missing from a mean of 1
            cut = replace(cut, value=None, low=None, high=None, refused="the mean ratio is not 1")
        levels[name] = replace(summary, numbers={**summary.numbers, f"excess_{SHOWN_CAP:g}": cut})
    trials: list[TrialRow] = []
    for name, trial in sums.trials.items():
        outcomes = trial.outcomes()  # for each sign, in each bin
        by_bin = tuple(sum(column, Outcome()) for column in zip(*outcomes, strict=True))
        trials.append(
            TrialRow(
                name,
                trial.unit,
                sum(by_bin, Outcome()),
                by_bin,
                {sign: sum(row, Outcome()) for sign, row in zip(SIGNS, outcomes, strict=True)},
                raw=levels[trial.unit]["ess_fraction"],
                independent=sums.levels[trial.unit].host.effective_n,
                caps=trial.caps,
                limits=Limits.of(trial.limits, trial.range, wrong, levels["sequence"].refusal),
                high=trial.range.high,
            )
        )
    # A cut is shown if the records say of any token in which part it is.
    told = (sums.strata[x] for x in CUTS if x in sums.strata and any(key is not None for key in sums.strata[x].token))
    return Audit(
        files,
        levels,
        tuple(trials),
        {by: tuple(slices.rows()) for by, slices in sums.slices.items()},
        sums.histograms,
        {strata.cut: tuple(strata.rows()) for strata in told},
        sums.density,
        {name: Tail.of(sums.levels[name], summary) for name, summary in levels.items()},
        tuple(sums.worst.found),
        sums.positive,
        (*map(_left_out, left_out), *_notes(files, levels, sums)),
    )


def _left_out(rule: Violation) -> str:
    what = rule.counted if rule.count != 1 else rule.counted.removesuffix("s")
    where = f"{rule.detail}: {rule.place}" if rule.rule.startswith("file: ") else f"{rule.rule}, first in {rule.place}"
    return f"{rule.count:,} {what} left out: {where}"


def _nothing(files: tuple[FileRead, ...], sums: AuditSums, left_out: tuple[Violation, ...]) -> str:
    """Say why there is nothing to judge, and what to do."""
    rows = sum(file.rows for file in files)
    where = str(files[0].path) if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
    if rows == 0 and left_out:
        what = f"nothing to judge: {'; '.join(map(_left_out, left_out))}"
        hint = left_out[0].hint if len(left_out) == 1 else "`reweigh records validate` says what to do about each."
    elif rows == 0:
        what, hint = "there are no records", "did the run that wrote it get to its first response?"
    else:
        dropped = int(sums.levels["token"].dropped) + sums.positive
        why = f", and {dropped} tokens were left out for their log-probs" if dropped else ""
        what = f"nothing to judge: no token of {rows} rows counts{why}"
        hint = "the mask is true on response tokens that mu sampled, false on tool output and padding."
    return f"{where}: {what}\nhint: {hint}"


def _notes(files: tuple[FileRead, ...], levels: Mapping[str, Summary], sums: AuditSums) -> tuple[str, ...]:
    notes: dict[str, None] = {}
    read = [file for file in files if file.rows] or list(files)
    known, differ = read[0].info, dict[str, None]()
    for file in read[1:]:
        differ |= dict.fromkeys(known.disagreements(file.info))
        known = replace(known, **{name: x for name, x in vars(file.info).items() if getattr(known, name) is None})
    for name in differ:
        said = Counter(str(getattr(file.info, name)) for file in read if getattr(file.info, name) is not None)
        (first, n), *others = said.most_common()
        some = [f"{first} in {count(n, 'file')}", *(f"{value} in {k}" for value, k in others[: _VALUES - 1])]
        more = f" and {count(len(others) - _VALUES + 1, 'more value')}" if len(others) >= _VALUES else ""
        notes[f"the files differ in {name}: {', '.join(some)}{more}"] = None
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
    # Said where something is read off it: a cut by lag, asked for, or a picture of lags that differ.
    if sums.steps_stand_in and ("lag" in sums.slices or len(sums.strata["lag"].token) > 1):
        notes[
            f"the lag of {sums.steps_stand_in:,} rows is counted from their step, as they do not record the "
            "trainer's version"
        ] = None
    notes.update(dict.fromkeys(summary.note for summary in levels.values() if summary.note))
    return tuple(notes)
