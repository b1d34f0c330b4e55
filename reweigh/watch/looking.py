"""One look at a folder that grows: what is new and whole is read and added, the rest is waited for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from reweigh.audit.measure import Job, Measured, measure
from reweigh.audit.run import PART_TOKENS
from reweigh.dumps import formats
from reweigh.records import read_info
from reweigh.records.files import FilePart, cut
from reweigh.watch.folder import Leader, Stamp, files_of, grows, is_stuck, is_whole, last_line_end, leader
from reweigh.watch.state import Read, Trouble, Watched

MAX_FILES = 16  # read in one look, so that a full folder shows numbers soon
MAX_TRIES = 3  # of a file that does not change; then it is left alone until it does


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


def look(watched: Watched, folder: Path, job: Job, clock: float, most: int = MAX_FILES) -> Look:
    """Look at the folder once. What was read is not read again; of JSON lines, what was appended is.

    A file that cannot be read is named and tried again, at most `MAX_TRIES` times as it is, and whenever it changes.
    Files that vanish keep their place in the sums.

    Args:
        watched: what was known before.
        folder: what is watched, with its subfolders.
        job: what is asked of each file.
        clock: seconds since the epoch.
        most: files to read.

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
            found = _read(path, stamp, old, job, whole) if ready else None
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


def _read(path: Path, stamp: Stamp, old: Read | None, job: Job, settled: bool) -> tuple[Measured, Read] | None:
    """What is new of a file, all of it or nothing; None if no line of it is whole."""
    found_by = formats(job.reader)
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
    for part in parts:
        total += measure(part, job)
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
