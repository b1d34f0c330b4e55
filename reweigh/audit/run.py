"""Reading records once, in parts, and turning what they add up to into an audit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from reweigh.audit.accumulate import Plan, Sums
from reweigh.audit.result import Audit, FileRead, TrialRow
from reweigh.audit.slices import BYS, COLUMNS_OF, By
from reweigh.audit.trial import Outcome, refuse_batch_readers
from reweigh.batch import POSITIVE_TOLERANCE, Batch
from reweigh.estimators import Estimator
from reweigh.records import RunInfo, Violation, expand, read_batches, read_info
from reweigh.records.parquet import parquet_rows
from reweigh.records.paths import Paths, format_of
from reweigh.records.rules import check_values
from reweigh.summary import Summary, excess, summarise
from reweigh.verdict import Finding, Verdict, judge

PART_TOKENS = 1 << 18  # of one part: enough to be fast, little enough for progress to move and memory to stay small
SHOWN_CAP = 2.0  # ratio; the field's most common cap, for which the lost weight is shown


@dataclass(frozen=True)
class Progress:
    """How far an audit is: rows and tokens read, and the rows there are, None if that is not known."""

    rows: int
    tokens: int
    total_rows: int | None


Report = Callable[[Progress], None]


def audit(
    paths: Paths,
    *,
    estimators: Mapping[str, Estimator] | None = None,
    by: Iterable[By] = (),
    keep_going: bool = False,
    on_progress: Report | None = None,
) -> Audit:
    """Measure the gap between sampler and trainer in records, judge it, and try estimators on it.

    Records are read once, in parts, and memory does not grow with their number.

    Args:
        paths: record files, folders or globs, with `log_mu` and `log_pi`.
        estimators: what to try, by the name to show; a default set if not given.
        by: what to cut the numbers by: "step", "env", "length", "position" or "lag".
        keep_going: leave out tokens whose log-prob cannot be one, and count them; otherwise they are an error.
        on_progress: called after each part.

    Raises:
        ValueError: a value that breaks a rule, a missing column, or nothing to judge; with file, row and remedy.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.audit import audit
        >>> found = audit("report/records.parquet", by=["length"])  # doctest: +SKIP
        >>> print(found.verdict)  # doctest: +SKIP
    """
    by = tuple(dict.fromkeys(by))
    for name in by:
        if name not in BYS:
            raise ValueError(f"audit: by must be one of {', '.join(BYS)}, got {name!r}")
    if estimators is not None:
        refuse_batch_readers(estimators)
    plan, files = Plan(estimators, by), expand(paths)
    total = _count_rows(files)
    columns = tuple(dict.fromkeys(c for name in by for c in COLUMNS_OF.get(name, ())))
    sums = Sums()
    read: dict[Path, tuple[int, int]] = dict.fromkeys(files, (0, 0))
    for part in read_batches(files, columns=columns, max_tokens=PART_TOKENS):
        if not keep_going:
            check_values(part.table, part.origin, partial(_refuse, part.path))
        batch, positive = _without_positive(part.batch)
        sums += Sums.of(batch, part, plan, positive)
        rows, tokens = read[part.path]
        read[part.path] = rows + batch.layout.num_seqs, tokens + int(batch.layout.mask.sum())
        if on_progress is not None:
            done = [sum(n) for n in zip(*read.values(), strict=True)]
            on_progress(Progress(done[0], done[1], total))
    found = tuple(FileRead(path, *read[path], read_info(path)) for path in files)
    _refuse_nothing(found, sums)
    return _conclude(sums, found, plan)


def _conclude(sums: Sums, files: tuple[FileRead, ...], plan: Plan) -> Audit:
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
        trials.append(TrialRow(name, trial.unit, sum(by_bin, Outcome()), by_bin))
    return Audit(
        _with_positive(judge(*levels.values()), sums.positive, levels["token"].tokens),
        files,
        levels,
        tuple(trials),
        {by: tuple(slices.rows()) for by, slices in sums.slices.items()},
        sums.histograms,
        {name: tuple(profile.points()) for name, profile in sums.profiles.items()},
        sums.positive,
        _notes(files, levels, sums),
    )


def _refuse(path: Path, violation: Violation) -> None:
    if violation.rule.startswith(("log_mu:", "log_pi:")):
        raise ValueError(
            f"{violation} `reweigh records validate {path}` lists all there are; "
            "`reweigh audit --keep-going` leaves such tokens out and counts them."
        )


def _refuse_nothing(files: tuple[FileRead, ...], sums: Sums) -> None:
    if sum(file.tokens for file in files):
        return
    rows = sum(file.rows for file in files)
    where = str(files[0].path) if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
    if rows == 0:
        raise ValueError(f"{where}: there are no records\nhint: did the run that wrote it get to its first response?")
    dropped = int(sums.levels["token"].dropped) + sums.positive
    why = f", and {dropped} tokens were left out for their log-probs" if dropped else ""
    raise ValueError(
        f"{where}: nothing to judge: no token of {rows} rows counts{why}\n"
        "hint: the mask is true on response tokens that mu sampled, false on tool output and padding."
    )


def _without_positive(batch: Batch) -> tuple[Batch, int]:
    """Take tokens with a log-prob over 0 out of the mask; NaN and infinity are out already."""
    layout = batch.layout
    wrong = layout.mask & ((batch.log_pi > POSITIVE_TOLERANCE) | (batch.log_mu > POSITIVE_TOLERANCE))
    count = int(wrong.sum())
    if count == 0:
        return batch, 0
    mask = layout.mask & ~wrong
    return replace(batch, layout=layout.masked(mask), log_ratio=torch.where(mask, batch.log_ratio, 0)), count


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
    for by, slices in sums.slices.items():
        if set(slices.token) == {None}:
            columns = " and ".join(COLUMNS_OF.get(by, ()))
            notes[f"by {by}: no record says it ({columns} missing or null throughout)"] = None
    notes.update(dict.fromkeys(summary.note for summary in levels.values() if summary.note))
    return tuple(notes)


def _count_rows(files: Sequence[Path]) -> int | None:
    """Rows of all files, for progress; None if only reading them would tell."""
    total = 0
    for path in files:
        if format_of(path) == "parquet":
            total += parquet_rows(path)
        elif path.suffix == ".gz":
            return None
        else:
            with open(path, "rb") as file:
                total += sum(1 for line in file if line.strip()) - (read_info(path) != RunInfo(schema_version=None))
    return total
