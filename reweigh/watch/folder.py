"""Which files of a folder are there, which are whole, and which are still being written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reweigh.dumps.form import itself
from reweigh.dumps.open import FORMATS, UnknownFormatError, named, recognise

SETTLED_SECONDS = 60.0  # a file that has not changed for so long is whole, though it is seen for the first time
_PARQUET = (".parquet", ".pq")
_ENDINGS = tuple(dict.fromkeys((*_PARQUET, *(end for one in FORMATS.values() for end in one.endings), ".jsonl.gz")))
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Stamp:
    """What tells that a file has changed: its size and the time of its last change, in ns."""

    size: int
    time: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Of a file as it is now."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns)


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
