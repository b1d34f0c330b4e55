"""Diagnose record files: cut them into parts, add each up, merge the sums in their order, and examine them once."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa

from reweigh.doctor.causes import ENGINES, TRAINERS, fix_for
from reweigh.doctor.cells import Cells
from reweigh.doctor.diagnosis import Diagnosis, InputNote, diagnose
from reweigh.doctor.families import FAMILIES
from reweigh.doctor.family import Case
from reweigh.doctor.slices import BYS, By, Slices, slices_of
from reweigh.doctor.tokens import tokens_of
from reweigh.doctor.visit import Visit, visit_tokens
from reweigh.dumps import formats
from reweigh.processes import in_order
from reweigh.records.files import FilePart, Paths, cut, read_info
from reweigh.records.schema import REQUIRED, RunInfo, Tally, Violation, fail
from reweigh.records.table import aligned, check_counts, check_names, check_values, conform

PART_TOKENS = 1 << 21  # of one part: seconds of work
_SPREAD = 16  # parts that a sample is made of, at least
BATCH_TOKENS = 1 << 18  # worked on at a time: some hundred megabytes

Progress = Callable[[int, int], None]
"""Called with tokens that are newly done, and the tokens there are, 0 if that is not known."""


@dataclass(frozen=True, eq=False)
class Read:
    """What was added up of record files; `a + b` is of both.

    Attributes:
        whole: of all.
        slices: of what was asked for.
    """

    whole: Visit = field(default_factory=Visit)
    slices: tuple[Slices, ...] = ()

    def __add__(self, other: "Read") -> "Read":
        """Both."""
        slices = tuple(a + b for a, b in zip(self.slices, other.slices, strict=True)) if self.slices else other.slices
        return Read(self.whole + other.whole, slices)


def doctor(
    paths: Paths,
    *,
    by: Iterable[By] = (),
    baseline: Paths | None = None,
    programs: Collection[str] | None = None,
    reader: str | None = None,
    workers: int = 1,
    most: int | None = None,
    on_progress: Progress | None = None,
) -> Diagnosis:
    """Name the causes of the gap between sampler and trainer in records, ranked, with what speaks for each.

    Records are read once, in parts, and memory does not grow with their number; the sums do not depend on how they are
    cut. Rows and tokens that cannot be used are left out and counted in the diagnosis's notes.

    Args:
        paths: files, folders or globs with both sides' log-probs: records, or dumps of training frameworks.
        by: also diagnose each slice by "step", "lag", "turn", "env" or "source" (file).
        baseline: records of the same engine and trainer from before the trouble, such as a run's first step: sizes
            are judged by what was normal there.
        programs: whose options to name in the fixes ("vllm", "trl", ...); the engine and trainer that the files name if
            not given, or all.
        reader: name of the files' format (see `reweigh.dumps.FORMATS`); recognised by their content if not given.
        workers: processes.
        most: look at about so many tokens only, in parts spread evenly over the files, and say so in the notes.
        on_progress: called after each part.

    Raises:
        ValueError: a file cannot be read or has no log_pi or log_mu, or there is nothing to look at.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.doctor import doctor
        >>> found = doctor("examples/records/vllm_bfloat16.parquet")
        >>> found.verdict
        'numerics'
    """
    by = tuple(dict.fromkeys(by))
    for name in by:
        if name not in BYS:
            raise ValueError(f"doctor: by must be one of {', '.join(BYS)}, got {name!r}")
    fix_for("none", programs)  # refuses a program that it does not know, before anything is read
    read, info = _read(paths, by, reader, workers, most, on_progress)
    before = None if baseline is None else _read(baseline, (), reader, workers, most, None)[0].whole
    programs = _of(info) if programs is None else programs
    found = conclude(read.whole, info, before, programs)
    slices = {s.by: {k: conclude(v, info, before, programs) for k, v in s.labelled().items()} for s in read.slices}
    return replace(found, slices=slices)


def _of(info: RunInfo) -> Collection[str] | None:
    """The engine and the trainer that the files name, and all others of a kind that they do not name."""
    names = {str(x).lower().replace("_", "-") for x in (info.engine, info.trainer) if x}
    chosen = [x for kind in (ENGINES, TRAINERS) for x in ([y for y in kind if y in names] or kind)]
    return None if len(chosen) == len(ENGINES) + len(TRAINERS) else chosen


def conclude(
    found: Visit, info: RunInfo, baseline: Visit | None = None, programs: Collection[str] | None = None
) -> Diagnosis:
    """Examine the sums of some records."""
    case = Case(found.sums, info.to_dict(), None if baseline is None else baseline.sums)
    said = [x for family in FAMILIES for x in family.examine(case)]
    tokens = int(case.cells("whole").total[0, 0])
    return replace(diagnose(said, tokens, programs), sequences=found.sequences, tokens=tokens, notes=_notes(found))


def read(part: FilePart, by: Sequence[By] = (), reader: str | None = None) -> Read:
    """Read one part and add it up; rows that cannot be used are counted and left out."""
    found = Read()
    for table, notes in _tables(part, reader):
        tokens = tokens_of(table)
        whole = visit_tokens(tokens)
        whole = replace(whole, sequences=table.num_rows, notes=notes)
        found += Read(whole, tuple(slices_of(name, tokens, table, str(part.path)) for name in by))
    return found


def _read(
    paths: Paths,
    by: Sequence[By],
    reader: str | None,
    workers: int,
    most: int | None,
    on_progress: Progress | None,
) -> tuple[Read, RunInfo]:
    known = formats(reader)
    parts = cut(paths, PART_TOKENS if most is None else min(PART_TOKENS, max(most // _SPREAD, 1)), formats=known)
    chosen = _spread(parts, most)
    info: RunInfo | None = None
    for path in dict.fromkeys(part.path for part in parts):
        one = read_info(path, known)
        info = one if info is None else info.merged(one)
    expected = 0 if any(part.tokens is None for part in parts) else sum(part.tokens or 0 for part in chosen)
    total = Read()
    with closing(_engine(chosen, by, reader, workers)) as found:
        for one in found:
            total += one
            if on_progress is not None and "whole" in one.whole.sums:
                on_progress(_counted(one.whole), expected)
    if "whole" not in total.whole.sums or _counted(total.whole) == 0:
        raise ValueError(
            f"doctor: no token to look at in {total.whole.sequences} responses{_reasons(total.whole)}\n"
            "hint: `reweigh records describe` says what the files hold, `reweigh records validate` what is wrong."
        )
    if len(chosen) < len(parts):
        hint = f"`reweigh doctor` looks at all of it; here about {most:,} tokens were wanted."
        note = Violation("looked at a sample", str(parts[0].path), "", hint, len(chosen), f"of {len(parts)} parts")
        total = replace(total, whole=total.whole + Visit(notes={note.rule: note}))
    return total, info or RunInfo()


def _spread(parts: list[FilePart], most: int | None) -> list[FilePart]:
    """Every part, or every so many-th."""
    known = sum(part.tokens or 0 for part in parts)
    if most is None or known <= most:
        return parts
    count = max(1, len(parts) * most // known)
    return [parts[i * len(parts) // count] for i in range(count)]


def _reasons(visit: Visit) -> str:
    found = ", ".join(f"{v.rule} ({v.count:,} {v.counted})" for v in visit.notes.values())
    return f": {found}" if found else ""


def _counted(visit: Visit) -> int:
    whole = visit.sums["whole"]
    assert isinstance(whole, Cells)
    return int(whole.total[0, 0])


def _engine(
    parts: Sequence[FilePart], by: Sequence[By], reader: str | None, workers: int
) -> Generator[Read, None, None]:
    work = partial(read, by=tuple(by), reader=reader)
    if min(workers, len(parts)) > 1:
        hint = "run it again with fewer --workers."
        yield from in_order(work, parts, min(workers, len(parts)), "doctor", hint)
        return
    for part in parts:
        yield work(part)


def _tables(part: FilePart, reader: str | None) -> Iterator[tuple[pa.Table, Mapping[str, Violation]]]:
    tally = Tally()
    for raw, origin in formats(reader).reader_of(part.path).read(part, None, BATCH_TOKENS, tally):
        table = conform(raw, origin, tally)
        for name in REQUIRED:
            if f"{name}: wrong type" in tally.by_rule:
                fail(tally.by_rule[f"{name}: wrong type"])
        check_names(table.schema.names, REQUIRED, origin.place(0), fail)
        whole = aligned(table, origin, REQUIRED, tally)
        if not whole.all():
            table, origin = table.filter(pa.array(whole)), origin.keep([int(i) for i in np.flatnonzero(whole)])
        check_values(table, origin, tally)
        check_counts(table, origin, tally)
        yield table, dict(tally.by_rule)
        tally.by_rule.clear()


def _notes(found: Visit) -> tuple[InputNote, ...]:
    return tuple(InputNote(v.rule, v.count, v.counted, v.place, v.hint) for v in found.notes.values())
