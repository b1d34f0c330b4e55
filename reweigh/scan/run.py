"""Scan record files: cut them into parts, measure the families of sums of each in one pass, and merge them in order."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from reweigh.dumps import formats
from reweigh.records.files import FilePart, Formats, Paths, cut
from reweigh.records.schema import RECORDS_LOST, REQUIRED, RunInfo, Violation
from reweigh.records.table import NO_TOKEN
from reweigh.scan.engines import Engine, Workers
from reweigh.scan.measure import BATCH_TOKENS, Family, Job, Measured, Task, measure_next
from reweigh.scan.rows import EVERY, Rows
from reweigh.scan.state import Keeper, Merged, StateFile, note_state

PART_TOKENS = 1 << 21  # of one part: seconds of work, so that little is lost or waited for
_MOST_PARTS = 256  # small files that are read in one go


FOREIGN = "files of no format that is read"


@dataclass(frozen=True)
class FileRead:
    """One file: how many rows and counted tokens it had, and what it says about its run."""

    path: Path
    rows: int
    tokens: int
    info: RunInfo


@dataclass(frozen=True)
class Progress:
    """How far a scan is: rows and tokens read, and the rows there are, None if that is not known.

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


@dataclass(frozen=True)
class Known:
    """What is known of some records before they are read.

    Attributes:
        files: in the order of reading.
        tasks: their parts, in order.
        reader: name of the files' format; recognised by their content if None.
        formats: how to read them, with what is known of each.
        chosen: which rows are read.
    """

    files: tuple[Path, ...]
    tasks: tuple[Task, ...]
    reader: str | None
    formats: Formats
    chosen: Rows = EVERY

    @property
    def tokens(self) -> int:
        """Add up the tokens, about; those of files that only reading tells are not in it."""
        return sum(one.tokens or 0 for one in self.tasks)

    @property
    def rows(self) -> int | None:
        """Add up the rows; None if only reading tells."""
        rows = [one.rows for one in self.tasks]
        return None if None in rows else sum(n or 0 for n in rows)

    def share(self, most: int | None) -> float:
        """Say what share of the tokens about so many are; 1 for None."""
        return 1.0 if most is None or self.tokens <= most else most / self.tokens


@dataclass(frozen=True, eq=False)
class Scanned:
    """What a scan found.

    Attributes:
        sums: by name of the family; those of no record at all are missing.
        files: what was read.
        notes: rules that do not hold, by rule: what was left out or is not known, and how much of it.
        state: the file that the scan goes on from, if it was asked for one.
    """

    sums: Mapping[str, Any]
    files: tuple[FileRead, ...]
    notes: Mapping[str, Violation] = field(default_factory=dict[str, Violation])
    state: StateFile | None = None

    @property
    def info(self) -> RunInfo:
        """What all files say alike."""
        merged = self.files[0].info
        for file in self.files[1:]:
            merged = merged.merged(file.info)
        return merged

    def left_out(self, columns: Collection[str]) -> Iterator[Violation]:
        """Give the rules because of which rows were left out, of those on these columns, or files."""
        for one in self.notes.values():
            rows = one.counted == "rows" and one.rule != NO_TOKEN and one.rule.partition(":")[0] in columns
            if rows or one.counted in ("files", "responses", RECORDS_LOST):
                yield one

    def done(self) -> None:
        """Delete the state file: what was wanted of the sums has been worked out of them."""
        if self.state is not None:
            self.state.remove()


def look(paths: Paths, reader: str | None = None, required: Sequence[str] = REQUIRED, rows: Rows = EVERY) -> Known:
    """Find files and cut them into parts, before anything is read but their footers or first lines; see `scan`.

    Args:
        paths: see `scan`.
        reader: see `scan`.
        required: columns that each file must have.
        rows: which rows are read.
    """
    how = formats(reader)
    files = how.expand(paths)
    tasks = tuple(_tasks(cut(files, PART_TOKENS, required=required, formats=how)))
    return Known(tuple(files), tasks, reader, how, rows)


def _tasks(parts: Iterable[FilePart]) -> Iterator[Task]:
    """Put small parts that follow each other together, up to the tokens of one part."""
    held: list[FilePart] = []
    before = tokens = 0
    for part in parts:
        size = PART_TOKENS if part.tokens is None else part.tokens
        if held and (tokens + size > PART_TOKENS or len(held) == _MOST_PARTS):
            yield Task(tuple(held), before)
            held, before, tokens = [], before + sum(one.tokens or 0 for one in held), 0
        held.append(part)
        tokens += size
    if held:
        yield Task(tuple(held), before)


def scan(
    paths: Paths | Known,
    families: Sequence[Family],
    *,
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    state: str | PathLike[str] | None = None,
    resume: bool = False,
    on_progress: Report | None = None,
) -> Scanned:
    """Read records once, in parts, and add up families of sums.

    Memory does not grow with the number of records, unless a family's sums do. What is added up does not depend on how
    records are cut into parts and files: counts are the same, and sums to 1e-9; for one cut it is the same to the last
    bit whatever engine ran it.

    Args:
        paths: files, folders or globs with both sides' log-probs: records, or dumps of training frameworks; or what
            `look` found of them.
        families: what to add up.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        reader: name of the files' format (see `reweigh.dumps.FORMATS`); recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        state: file to keep what was merged in, written every few seconds and when interrupted; `Scanned.done` deletes
            it.
        resume: go on from `state`; from the beginning if there is no such file.
        on_progress: called after each part.

    Raises:
        ValueError: a value that breaks a rule, or a missing column; with file, row and remedy. A state of other files
            or another question.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.plan.measured import family
        >>> from reweigh.scan import scan
        >>> found = scan("examples/records/vllm_bfloat16.parquet", [family({})])
        >>> found.files[0].rows
        64
    """
    name = families[0].name
    if resume and state is None:
        raise ValueError(
            f"{name}: resume needs the state file to go on from\nhint: {name}(..., state=path, resume=True)"
        )
    known = paths if isinstance(paths, Known) else look(paths, reader)
    job = Job(tuple(families), keep_going, BATCH_TOKENS, known.reader, known.formats, known.chosen)
    kept = (
        None
        if state is None
        else StateFile.of(Path(state), [part for one in known.tasks for part in one.parts], job).placed(resume)
    )
    merged = _merge(known, job, engine, kept, resume, on_progress)
    counts = {path: merged.total.files.get(str(path), (0, 0)) for path in known.files}
    files = tuple(FileRead(path, *n, known.formats.source(path).info()) for path, n in counts.items())
    notes = dict(merged.total.notes)
    for one in known.formats.left_out():
        notes[one.rule] = one
    if foreign := known.formats.ignored():
        notes[FOREIGN] = Violation(
            FOREIGN,
            str(foreign[0]),
            "it has no log-probs that a reader knows",
            "name it alone to hear why; move it elsewhere if it is no dump.",
            len(foreign),
            "files",
        )
    return Scanned(merged.total.sums, files, notes, kept)


def _merge(
    known: Known, job: Job, engine: Engine, kept: StateFile | None, resume: bool, report: Report | None
) -> Merged:
    merged = kept.load() if kept is not None and resume else Merged()
    resumed, keeper = merged.total.tokens, Keeper.start(kept)
    total, rest = known.rows, known.tasks[merged.parts :]
    try:
        with closing(engine(rest, job)) as results:
            for task, found in zip(rest, results, strict=True):
                found = measure_next(merged.total, found, task, job)
                merged = merged.then(found)
                keeper = keeper.keep(merged)
                if report is not None:
                    report(Progress(merged.total.rows, merged.total.tokens, total, resumed))
                if job.rows.limit is not None and merged.total.rows >= job.rows.limit:
                    break
    except ValueError:  # of the records: once they are mended, what was merged is of other files
        if kept is not None:
            kept.remove()
        raise
    except BaseException as e:  # Ctrl-C, a dead worker: what was merged is not lost
        if kept is not None and merged.parts:
            try:
                kept.save(merged)
            except OSError:  # then it goes on from what was saved before, if anything was
                if not isinstance(e, KeyboardInterrupt):
                    raise e from None
        if isinstance(e, KeyboardInterrupt):
            note_state(e, kept)
        raise
    if keeper.trouble:
        hint = "the result is whole; --resume of an interrupted command would have begun anew."
        lost = Violation("state: not saved", keeper.trouble, "the state could not be saved", hint, counted="files")
        merged = replace(merged, total=merged.total + Measured(notes={lost.rule: lost}))
    return merged
