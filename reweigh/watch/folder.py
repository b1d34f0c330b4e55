"""One look at a folder that grows: what is new and whole is read and added, the rest is waited for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from reweigh.dumps import formats
from reweigh.dumps.form import itself
from reweigh.dumps.open import FORMATS, UnknownFormatError, named, recognise
from reweigh.records import read_info
from reweigh.records.files import FilePart, cut
from reweigh.scan import Engine, Job, Measured, Workers
from reweigh.scan.engines import Task
from reweigh.scan.run import PART_TOKENS
from reweigh.watch.state import Read, Stamp, Trouble, Watched

MAX_FILES = 16  # read in one look, so that a full folder shows numbers soon
MAX_TRIES = 3  # of a file that does not change; then it is left alone until it does
SETTLED_SECONDS = 60.0  # a file that has not changed for so long is whole, though it is seen for the first time
_PARQUET = (".parquet", ".pq")
_ENDINGS = tuple(dict.fromkeys((*_PARQUET, *(end for one in FORMATS.values() for end in one.endings), ".jsonl.gz")))
_MAGIC = b"PAR1"


@dataclass(frozen=True, eq=False)
class Look:
    """What a look found.

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
    now = replace(now, rewritten={**now.rewritten, **_rewritten(now, there)})
    read: list[str] = []
    pending: dict[str, Stamp] = {}
    more = False
    for name, stamp in _unread(now, there):
        if len(read) == most:
            more = True
            pending |= {name: before.pending[name]} if name in before.pending else {}
            continue
        path, old, last = Path(name), now.files.get(name), _seen(before, name)
        whole = is_whole(path, stamp, last, clock)
        if not (whole or grows(path) or is_stuck(stamp, last, clock)):
            pending[name] = stamp
            continue
        try:
            first = Leader(path) if old is not None else leader(path, job.reader)
            if first.path != path:
                now = _set_aside(now, name, stamp)
                continue
            ready = not first.shared or _rests(path, there, before, clock)
            found = _read(path, stamp, old, job, whole, engine) if ready else None
        except FileNotFoundError:  # gone since it was listed
            continue
        except (ValueError, OSError) as e:
            now = _in_trouble(now, name, stamp, e)
            continue
        if found is None:
            pending[name] = stamp
            continue
        now = now.then(name, *found)
        read.append(name)
        if grows(path) and found[1].upto < stamp.size:
            pending[name] = stamp
    now = replace(now, pending=pending)
    news = bool(read) or now.troubles != before.troubles or now.rewritten != before.rewritten
    waiting = tuple(name for name in pending if name not in now.troubles)
    return Look(now, tuple(read), waiting, more, news)


def _seen(watched: Watched, name: str) -> Stamp | None:
    trouble = watched.troubles.get(name)
    return watched.pending.get(name) or (None if trouble is None else trouble.stamp)


def _unread(watched: Watched, there: dict[str, Stamp]) -> Iterator[tuple[str, Stamp]]:
    for name, stamp in there.items():
        one, trouble = watched.files.get(name), watched.troubles.get(name)
        if one is not None and not (grows(Path(name)) and stamp.size > one.upto and name not in watched.rewritten):
            continue
        if trouble is not None and trouble.stamp == stamp and trouble.tries >= MAX_TRIES:
            continue
        if watched.beside.get(name) != stamp:
            yield name, stamp


def _rewritten(watched: Watched, there: dict[str, Stamp]) -> dict[str, Stamp]:
    found: dict[str, Stamp] = {}
    for name, one in watched.files.items():
        stamp = there.get(name)
        if stamp is None or stamp == one.stamp:
            continue
        if not grows(Path(name)) or stamp.size < one.upto:
            found[name] = stamp
    return found


def _rests(path: Path, there: dict[str, Stamp], before: Watched, clock: float) -> bool:
    """Whether no file beside it is new or changing: other ranks' files may belong to it."""
    beside = {name: stamp for name, stamp in there.items() if Path(name).parent == path.parent}
    known = {**before.beside, **before.pending}
    return all(
        name in before.files or is_whole(Path(name), stamp, known.get(name), clock) for name, stamp in beside.items()
    )


def _read(
    path: Path, stamp: Stamp, old: Read | None, job: Job, settled: bool, engine: Engine
) -> tuple[Measured, Read] | None:
    """What is new of a file, all of it or nothing; None if no line of it is whole."""
    found_by = formats(job.reader)
    job = replace(job, formats=found_by)
    if not grows(path):
        parts, lines, upto = cut([path], PART_TOKENS, formats=found_by), 0, stamp.size
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
    total = Measured()
    for found in engine([Task(part) for part in parts], job):
        total += found
    info = old.info if old else read_info(path, found_by).to_dict()
    rows, tokens = (old.rows, old.tokens) if old else (0, 0)
    return total, Read(stamp, upto, rows + total.rows, tokens + total.tokens, lines, info)


def _count_lines(path: Path, start: int, stop: int) -> int:
    with open(path, "rb") as file:
        file.seek(start)
        left, count = stop - start, 0
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            left -= len(block)
            count += block.count(b"\n")
    return count


def _set_aside(watched: Watched, name: str, stamp: Stamp) -> Watched:
    troubles = {k: v for k, v in watched.troubles.items() if k != name}
    return replace(watched, beside={**watched.beside, name: stamp}, troubles=troubles)


def _in_trouble(watched: Watched, name: str, stamp: Stamp, error: Exception) -> Watched:
    old = watched.troubles.get(name)
    reason = str(error).partition("\nhint: ")[0].removeprefix(f"{name}: ").removeprefix(name)
    tries = old.tries + 1 if old is not None and old.stamp == stamp else 1
    one = Trouble(stamp, " ".join(reason.split()), tries)
    return replace(watched, troubles={**watched.troubles, name: one})


def files_of(folder: Path) -> dict[str, Stamp]:
    """Files with a name that a reader takes, in subfolders too; hidden ones and those of hidden folders are left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder\nhint: name the folder that the run writes its dumps to.")
    return dict(sorted(_found(folder)))


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
        return _has_footer(path, now.size)
    return now == before or clock - now.time / 1e9 >= SETTLED_SECONDS


def is_stuck(now: Stamp, before: Stamp | None, clock: float) -> bool:
    """Whether a file has rested for so long that nobody can be writing it: what is missing of it will not come."""
    return now == before and clock - now.time / 1e9 >= SETTLED_SECONDS


@dataclass(frozen=True)
class Leader:
    """What a file is read with.

    Attributes:
        path: the file that stands for all that are read together; None if it is no dump, or is only read beside one.
        shared: whether files beside it may belong to it: those of other ranks.
    """

    path: Path | None
    shared: bool = False


def leader(path: Path, reader: str | None) -> Leader:
    """What a file is read with, by its content.

    Raises:
        UnreadableFileError: it is damaged.
    """
    try:
        one = recognise(path) if reader is None else named(reader)
    except UnknownFormatError:
        return Leader(None)
    return Leader(path) if one is None else Leader(one.lead(path), one.lead is not itself)


def last_line_end(path: Path, start: int, size: int) -> int:
    """Where the last whole line before `size` ends, in bytes; `start` if none does after it."""
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


def _found(folder: Path) -> Iterator[tuple[str, Stamp]]:
    for path in folder.rglob("*"):
        inner = path.relative_to(folder).parts
        if not path.name.endswith(_ENDINGS) or any(part.startswith((".", "_")) for part in inner):
            continue
        try:
            if path.is_file():
                yield str(path), Stamp.of(path)
        except FileNotFoundError:  # a writer renamed or removed it meanwhile
            continue


def _has_footer(path: Path, size: int) -> bool:
    """Parquet ends with its footer, the footer's length in four bytes, and its magic word."""
    if size < 3 * len(_MAGIC):
        return False
    with open(path, "rb") as file:
        file.seek(size - 2 * len(_MAGIC))
        tail = file.read(2 * len(_MAGIC))
    return tail[4:] == _MAGIC and int.from_bytes(tail[:4], "little") + 3 * len(_MAGIC) <= size
