"""Audit record files: cut them into parts, measure each, merge the results in their order, and judge."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol

from reweigh.audit.accumulate import Plan
from reweigh.audit.measure import Engine, Job
from reweigh.audit.result import Audit, FileRead, conclude
from reweigh.audit.resume import Keeper, Merged, StateFile
from reweigh.audit.slices import BYS, By
from reweigh.audit.trial import refuse_batch_readers
from reweigh.audit.workers import Workers
from reweigh.dumps import formats
from reweigh.estimators import Estimator
from reweigh.records import read_info
from reweigh.records.files import FilePart, Paths, cut

PART_TOKENS = 1 << 21  # of one part: seconds of work, so that little is lost or waited for


@dataclass(frozen=True)
class Progress:
    """How far an audit is: rows and tokens read, and the rows there are, None if that is not known.

    Attributes:
        resumed: tokens that an earlier run had read.
    """

    rows: int
    tokens: int
    total_rows: int | None
    resumed: int = 0


class Report(Protocol):
    """What is called after each part."""

    def __call__(self, progress: Progress, /) -> None:
        """Show it."""
        ...


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
) -> Audit:
    """Measure the gap between sampler and trainer in records, judge it, and try estimators on it.

    Records are read once, in parts, and memory does not grow with their number. What is found does not depend on how
    they are cut into parts and files: counts are the same, and sums to 1e-9; for one cut it is the same to the last bit
    whatever engine ran it.

    Args:
        paths: files, folders or globs with both sides' log-probs: records, or dumps of training frameworks.
        estimators: what to try, by the name to show; a default set if not given.
        by: what to cut the numbers by: "step", "env", "length", "position" or "lag".
        keep_going: leave out tokens whose log-prob cannot be one, and count them; otherwise they are an error.
        reader: name of the files' format (see `reweigh.dumps.FORMATS`); recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        state: file to keep what was merged in, written every few seconds and when interrupted, deleted at the end.
        resume: go on from `state`; from the beginning if there is no such file.
        on_progress: called after each part.

    Raises:
        ValueError: a value that breaks a rule, a missing column, or nothing to judge; with file, row and remedy. A
            state of other files or another question.
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
    if resume and state is None:
        raise ValueError("audit: resume needs the state file to go on from\nhint: audit(..., state=path, resume=True)")
    found_by = formats(reader)
    files = found_by.expand(paths)
    parts = cut(files, PART_TOKENS, formats=found_by)
    job = Job(Plan(estimators, by), keep_going, reader=reader)
    kept = None if state is None else StateFile.of(Path(state), parts, job)
    merged = _merge(parts, job, engine, kept, resume, on_progress)
    counts = {path: merged.files.get(str(path), (0, 0)) for path in files}
    found = conclude(
        merged.total.sums, tuple(FileRead(path, *n, read_info(path, found_by)) for path, n in counts.items())
    )
    if kept is not None:
        kept.remove()
    return found


def _merge(
    parts: Sequence[FilePart], job: Job, engine: Engine, kept: StateFile | None, resume: bool, report: Report | None
) -> Merged:
    merged = kept.load() if kept is not None and resume else Merged()
    resumed, keeper = merged.total.tokens, Keeper.start(kept)
    total = None if any(part.rows is None for part in parts) else sum(part.rows or 0 for part in parts)
    rest = parts[merged.parts :]
    try:
        with closing(engine(rest, job)) as results:
            for part, found in zip(rest, results, strict=True):
                merged = merged.then(part, found)
                keeper = keeper.keep(merged)
                if report is not None:
                    report(Progress(merged.total.rows, merged.total.tokens, total, resumed))
    except ValueError:  # of the records: once they are mended, what was merged is of other files
        if kept is not None:
            kept.remove()
        raise
    except BaseException:  # Ctrl-C, a dead worker: what was merged is not lost
        if kept is not None and merged.parts:
            kept.save(merged)
        raise
    return merged
