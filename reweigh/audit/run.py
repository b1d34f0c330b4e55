"""Audit record files: one family of sums over a scan, and what they say."""

from collections.abc import Iterable, Mapping
from os import PathLike

from reweigh.audit.accumulate import COLUMNS, Sums, family
from reweigh.audit.result import Audit, conclude
from reweigh.audit.trial import refuse_batch_readers
from reweigh.estimators import Estimator
from reweigh.records.files import OF_BATCH, Paths
from reweigh.scan.cuts import By, refuse_other_cuts
from reweigh.scan.engines import Engine, Workers
from reweigh.scan.measure import Family
from reweigh.scan.run import Report, Scanned, scan


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
        by: what to cut the numbers by: "step", "env", "length", "position", "lag", "turn" or "source" (file).
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
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
    found = scan(
        paths,
        [question(estimators, by)],
        keep_going=keep_going,
        reader=reader,
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
    return family(estimators, cuts)


def answer(found: Scanned) -> Audit:
    """Make the audit of what was scanned.

    Raises:
        ValueError: nothing in it counts.
    """
    sums: Sums = found.sums.get("audit", Sums())
    return conclude(sums, found.files, tuple(found.left_out((*OF_BATCH, *COLUMNS))))
