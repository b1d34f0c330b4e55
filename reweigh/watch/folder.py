"""Look at a folder that grows: what is new and whole is read and added, the rest is waited for; all of it is kept."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from reweigh import __version__
from reweigh import doctor as diagnosing
from reweigh.audit import Audit, answer
from reweigh.dumps import formats
from reweigh.dumps.form import itself
from reweigh.dumps.open import FORMATS, UnknownFormatError, named, recognise
from reweigh.guard import write_whole
from reweigh.records import RunInfo, read_info
from reweigh.records.files import FilePart, cut, is_hidden
from reweigh.scan import Engine, FileRead, Job, Measured, Scanned, Workers
from reweigh.scan.measure import Task, measure_next, pack, types_of, unpack
from reweigh.scan.run import PART_TOKENS
from reweigh.scan.state import identity_at

STATE_VERSION = 3


@dataclass(frozen=True)
class Stamp:
    """The size of a file and the time of its last change, in ns: it has changed if one of them has."""

    size: int
    time: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Take that of a file as it is now."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class ReadSoFar:
    """The part of one file that was read.

    Attributes:
        stamp: of the file when it was read.
        upto: bytes of it that were read.
        rows: of it.
        tokens: of it that count.
        lines: of it, if it is JSON lines.
        info: what it says of its run.
    """

    stamp: Stamp
    upto: int
    rows: int
    tokens: int
    lines: int
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Trouble:
    """A file that could not be read.

    Attributes:
        stamp: of the file when it was tried last.
        reason: what was wrong then, in a line.
        tries: how often it was tried.
    """

    stamp: Stamp
    reason: str
    tries: int


@dataclass(frozen=True, eq=False)
class Watched:
    """A watched folder as it is known: a frozen value, of which `reweigh.watch.look` makes the next one.

    Attributes:
        total: the sums of all that was read.
        files: what was read, by the file's name, in the order of reading.
        troubles: files that could not be read, by name.
        pending: stamps of files that are still being written, by name.
        beside: files that are read together with another or are no dumps, with their stamps: not looked into again.
        rewritten: files that have changed in what was read already: what they said at first stays in the sums.
        looks: how often the folder was looked at.
    """

    total: Measured = field(default_factory=Measured)
    files: Mapping[str, ReadSoFar] = field(default_factory=dict[str, ReadSoFar])
    troubles: Mapping[str, Trouble] = field(default_factory=dict[str, Trouble])
    pending: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp])
    beside: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp])
    rewritten: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp])
    looks: int = 0

    def audit(self) -> Audit | None:
        """Audit all that was read; None while no token of it counts."""
        if not self.total.tokens:
            return None
        files = [
            FileRead(Path(name), one.rows, one.tokens, RunInfo.from_dict(one.info)) for name, one in self.files.items()
        ]
        found = Scanned(self.total.sums, tuple(files), self.total.notes)
        return replace(answer(found), diagnosis=diagnosing.answer(found) if "doctor" in found.sums else None)

    def then(self, name: str, found: Measured, one: ReadSoFar) -> "Watched":
        """Add more of a file."""
        troubles = {k: v for k, v in self.troubles.items() if k != name}
        return replace(self, total=self.total + found, files={**self.files, name: one}, troubles=troubles)


@dataclass(frozen=True)
class Memory:
    """The file where a watch keeps what it knows, so that a new one goes on from there.

    Attributes:
        path: the file.
        identity: what is watched and asked, by name. A state of another identity is refused.
        types: dataclasses that the sums are made of.
    """

    path: Path
    identity: Mapping[str, Any]
    types: tuple[type, ...] = ()

    @classmethod
    def of(cls, path: Path, folder: Path, job: Job) -> "Memory":
        """Make the memory of a watch of this folder."""
        identity: dict[str, Any] = {
            "version of reweigh": __version__,
            "version of the state": STATE_VERSION,
            "folder": str(folder.resolve()),
            **{name: value for one in job.families for name, value in one.identity.items()},
            "--keep-going": job.keep_going,
            "--reader": job.reader,
        }
        return cls(path, identity, types_of(job))

    def save(self, watched: Watched) -> None:
        """Write it whole or not at all: to a file beside it, then by renaming."""
        files = {
            name: [*astuple(one.stamp), one.upto, one.rows, one.tokens, one.lines, dict(one.info)]
            for name, one in watched.files.items()
        }
        troubles = {name: [*astuple(one.stamp), one.reason, one.tries] for name, one in watched.troubles.items()}
        stamps = [
            {name: list(astuple(stamp)) for name, stamp in table.items()}
            for table in (watched.pending, watched.beside, watched.rewritten)
        ]
        total = watched.total
        sums = [total.rows, total.tokens, total.sums, total.notes, total.names]
        data = pack([dict(self.identity), sums, files, troubles, stamps, watched.looks], self.types)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, data)

    def check(self) -> None:
        """Refuse to stand where something else does.

        Raises:
            ValueError: the file is there, and is no state.
        """
        if self.path.exists() and identity_at(self.path) is None:
            raise ValueError(
                f"{self.path}: is there, and is not the state of a watch: it is neither read nor replaced\n"
                "hint: name another file with --state."
            )

    def load(self) -> Watched:
        """Read it; nothing known if there is no such file.

        Raises:
            ValueError: it is not a state file, or of another folder or question; with what differs.
        """
        if not self.path.exists():
            return Watched()
        try:
            identity, sums, files, troubles, stamps, looks = unpack(self.path.read_bytes(), self.types)
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(
                f"{self.path}: not the state of a watch by this version of reweigh: {e}\n"
                "hint: --fresh reads everything anew; --state names another file."
            ) from None
        for name in {**self.identity, **identity}:
            was, now = identity.get(name), self.identity.get(name)
            if was != now:
                raise ValueError(
                    f"{self.path}: the state is of another watch: {name} was {was}, and is {now}\n"
                    "hint: give the same folder and options to go on with it; --fresh reads everything anew."
                )
        pending, beside, rewritten = ({name: Stamp(*x) for name, x in table.items()} for table in stamps)
        return Watched(
            Measured(*sums),
            {name: ReadSoFar(Stamp(x[0], x[1]), *x[2:]) for name, x in files.items()},
            {name: Trouble(Stamp(x[0], x[1]), *x[2:]) for name, x in troubles.items()},
            pending,
            beside,
            rewritten,
            looks,
        )


MAX_FILES = 16  # read in one look, so that a full folder shows numbers soon
MAX_TRIES = 3  # of a file that does not change; then it is left alone until it does
SETTLED_SECONDS = 60.0  # a file that has not changed for so long is whole, though it is seen for the first time
_PARQUET = (".parquet", ".pq")
_ENDINGS = tuple(dict.fromkeys((*_PARQUET, *(end for one in FORMATS.values() for end in one.endings), ".jsonl.gz")))
_MAGIC = b"PAR1"


@dataclass(frozen=True, eq=False)
class Look:
    """The outcome of a look.

    Attributes:
        watched: what is known now.
        read: names of the files that were read, or read further.
        waiting: names of the files that are still being written.
        more: whether there is more to read at once.
        news: whether anything is other than before: numbers, or the list of bad files.
    """

    watched: Watched
    read: tuple[str, ...]
    waiting: tuple[str, ...]
    more: bool
    news: bool


def look(
    watched: Watched,
    folder: Path,
    job: Job,
    clock: float,
    most: int = MAX_FILES,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
) -> Look:
    """Look at the folder once. What was read is not read again; of JSON lines, what was appended is.

    A file that cannot be read is named and tried again, at most `MAX_TRIES` times as it is, and whenever it changes.
    Files that vanish keep their place in the sums.

    Args:
        watched: what was known before.
        folder: what is watched, with its subfolders.
        job: what is asked of each file.
        clock: seconds since the epoch.
        most: files to read.
        engine: what reads each: this process alone if not given.

    Raises:
        FileNotFoundError: the folder is gone.
    """
    there = files_of(folder)
    before, now = watched, replace(watched, looks=watched.looks + 1)
    rewritten = dict(now.rewritten)
    for name, one in now.files.items():
        stamp = there.get(name, one.stamp)
        if stamp != one.stamp and (stamp.size < one.upto or not grows(Path(name))):
            rewritten[name] = stamp
    now = replace(now, rewritten=rewritten)
    read: list[str] = []
    pending: dict[str, Stamp] = {}
    more = False
    for name, stamp in _unread(now, there):
        if len(read) == most:
            more = True
            pending |= {name: before.pending[name]} if name in before.pending else {}
            continue
        trouble = before.troubles.get(name)
        last = before.pending.get(name) or (None if trouble is None else trouble.stamp)
        path, old = Path(name), now.files.get(name)
        whole = is_whole(path, stamp, last, clock)
        if not (whole or grows(path) or is_stuck(stamp, last, clock)):
            pending[name] = stamp
            continue
        try:
            first = Leader(path) if old is not None else leader(path, job.reader)
            if first.path != path:  # it is read with that one, or is no dump
                troubles = {k: v for k, v in now.troubles.items() if k != name}
                now = replace(now, beside={**now.beside, name: stamp}, troubles=troubles)
                continue
            ready = not first.shared or _rests(path, there, before, clock)
            more_read = _read(path, stamp, old, job, whole, engine, now.total) if ready else None
        except FileNotFoundError:  # gone since it was listed
            continue
        except (ValueError, OSError) as e:
            now = _in_trouble(now, name, stamp, e)
            continue
        if more_read is None:
            pending[name] = stamp
            continue
        now = now.then(name, *more_read)
        read.append(name)
        if grows(path) and more_read[1].upto < stamp.size:
            pending[name] = stamp
    now = replace(now, pending=pending)
    news = bool(read) or now.troubles != before.troubles or now.rewritten != before.rewritten
    waiting = tuple(name for name in pending if name not in now.troubles)
    return Look(now, tuple(read), waiting, more, news)


def _unread(watched: Watched, there: dict[str, Stamp]) -> Iterator[tuple[str, Stamp]]:
    for name, stamp in there.items():
        one, trouble = watched.files.get(name), watched.troubles.get(name)
        if one is not None and not (grows(Path(name)) and stamp.size > one.upto and name not in watched.rewritten):
            continue
        if trouble is not None and trouble.stamp == stamp and trouble.tries >= MAX_TRIES:
            continue
        if watched.beside.get(name) != stamp:
            yield name, stamp


def _rests(path: Path, there: dict[str, Stamp], before: Watched, clock: float) -> bool:
    """Whether no file beside it is new or changing: other ranks' files may belong to it."""
    beside = {name: stamp for name, stamp in there.items() if Path(name).parent == path.parent}
    known = {**before.beside, **before.pending}
    return all(
        name in before.files or is_whole(Path(name), stamp, known.get(name), clock) for name, stamp in beside.items()
    )


def _read(
    path: Path, stamp: Stamp, old: ReadSoFar | None, job: Job, settled: bool, engine: Engine, before: Measured
) -> tuple[Measured, ReadSoFar] | None:
    """Read what is new of a file, all of it or nothing; None if no line of it is whole."""
    known = formats(job.reader)
    job = replace(job, formats=known)
    if not grows(path):
        parts, lines, upto = cut([path], PART_TOKENS, formats=known), 0, stamp.size
    else:
        start = old.upto if old else 0
        upto = last_line_end(path, start, stamp.size)
        if upto == start and settled:  # a last line without its end, and nobody who writes it
            upto = stamp.size
        if upto == start:
            return None
        lines = old.lines if old else 0
        parts = [FilePart(path, start, upto, first_row=old.rows if old else 0, first_line=lines + 1)]
        lines += _count_lines(path, start, upto)
    total, seen = Measured(), Measured(names=before.names)
    tasks = [Task((part,)) for part in parts]
    for task, measured in zip(tasks, engine(tasks, job), strict=True):
        measured = measure_next(seen, measured, task, job)
        total += measured
        seen += Measured(names=measured.names)
    info = old.info if old else read_info(path, known).to_dict()
    rows, tokens = (old.rows, old.tokens) if old else (0, 0)
    return total, ReadSoFar(stamp, upto, rows + total.rows, tokens + total.tokens, lines, info)


def _count_lines(path: Path, start: int, stop: int) -> int:
    with open(path, "rb") as file:
        file.seek(start)
        left, count = stop - start, 0
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            left -= len(block)
            count += block.count(b"\n")
    return count


def _in_trouble(watched: Watched, name: str, stamp: Stamp, error: Exception) -> Watched:
    old = watched.troubles.get(name)
    reason = str(error).partition("\nhint: ")[0].removeprefix(f"{name}: ").removeprefix(name)
    tries = old.tries + 1 if old is not None and old.stamp == stamp else 1
    one = Trouble(stamp, " ".join(reason.split()), tries)
    return replace(watched, troubles={**watched.troubles, name: one})


def files_of(folder: Path) -> dict[str, Stamp]:
    """List files with a name that a reader takes, in subfolders too, but hidden ones and those of hidden folders.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder\nhint: name the folder that the run writes its dumps to.")
    files: dict[str, Stamp] = {}
    for path in folder.rglob("*"):
        if not path.name.endswith(_ENDINGS) or is_hidden(path, folder):
            continue
        try:
            if path.is_file():
                files[str(path)] = Stamp.of(path)
        except FileNotFoundError:  # a writer renamed or removed it meanwhile
            continue
    return dict(sorted(files.items()))


def grows(path: Path) -> bool:
    """Whether what is whole of it can be read while more is appended: plain JSON lines."""
    return path.name.endswith(".jsonl")


def is_whole(path: Path, now: Stamp, before: Stamp | None, clock: float) -> bool:
    """Whether a file can be read: Parquet has its footer; others have not changed since the last look, or for long.

    Args:
        path: the file.
        now: its stamp.
        before: its stamp at the last look; None if it was not there.
        clock: seconds since the epoch.
    """
    if path.name.endswith(_PARQUET):
        # Parquet ends with its footer, the footer's length in four bytes, and its magic word
        if now.size < 3 * len(_MAGIC):
            return False
        with open(path, "rb") as file:
            file.seek(now.size - 2 * len(_MAGIC))
            tail = file.read(2 * len(_MAGIC))
        return tail[4:] == _MAGIC and int.from_bytes(tail[:4], "little") + 3 * len(_MAGIC) <= now.size
    return now == before or clock - now.time / 1e9 >= SETTLED_SECONDS


def is_stuck(now: Stamp, before: Stamp | None, clock: float) -> bool:
    """Whether a file has rested for so long that nobody can be writing it: what is missing of it will not come."""
    return now == before and clock - now.time / 1e9 >= SETTLED_SECONDS


@dataclass(frozen=True)
class Leader:
    """The file that another is read with.

    Attributes:
        path: the file that stands for all that are read together; None if it is no dump, or is only read beside one.
        shared: whether files beside it may belong to it: those of other ranks.
    """

    path: Path | None
    shared: bool = False


def leader(path: Path, reader: str | None) -> Leader:
    """Tell by its content what a file is read with.

    Raises:
        UnreadableFileError: it is damaged.
    """
    try:
        one = recognise(path) if reader is None else named(reader)
    except UnknownFormatError:
        return Leader(None)
    return Leader(path) if one is None else Leader(one.lead(path), one.lead is not itself)


def last_line_end(path: Path, start: int, size: int) -> int:
    """Find where the last whole line before `size` ends, in bytes; `start` if none does after it."""
    step, end = 1 << 16, size
    with open(path, "rb") as file:
        while end > start:
            begin = max(start, end - step)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                return begin + at + 1
            end = begin
    return start
