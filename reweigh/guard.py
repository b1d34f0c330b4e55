"""What stands between this process and files of other people: limits that are checked before memory is taken, JSON that
means one thing, and text that cannot steer a terminal."""

import io
import json
import math
import os
import re
import stat
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

LINE_BYTES = 128 << 20  # of one line or JSON value: a response of a million tokens with five columns takes 100 MB
PACKED_TIMES = 10  # what is packed may take so many times its size for one line,
PACKED_FREE = 8 << 20  # or this much, whichever is more;
PACKED_TOTAL_TIMES = 200  # and all lines together so many times
PACKED_TOTAL_FREE = 256 << 20
BLANK_LINES = 100_000  # in a row; nobody writes so many, and reading on would take hours of a packed file
_BYTES_OF_BRACKET = 8  # a list or object for so many bytes of text: an empty one takes 64 bytes of memory
_BRACKETS_FREE = 100_000

# Control characters but for tab and line feed; what turns the direction of text, hides in it, or is half a character.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_UNSEEN_OR_BREAK = re.compile(f"[\t\n]|{_UNSEEN.pattern}")


class UnreadableFileError(ValueError):
    """A file that is not, or no longer, what its name says: truncated, corrupt, another format, or unsafe to read."""


def shown(text: str, one_line: bool = False) -> str:
    r"""Write characters that steer a terminal, turn text around or cannot be printed as escapes such as \x1b or \u202e.

    Args:
        text: of a file, of a server or of ourselves.
        one_line: escape line breaks and tabs too, as in a name.

    Example:
        >>> print(shown("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return (_UNSEEN_OR_BREAK if one_line else _UNSEEN).sub(_escaped, text)


def _escaped(found: "re.Match[str]") -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def opened_regular(path: Path) -> int:
    """Open a regular file and return its descriptor.

    Raises:
        UnreadableFileError: it is a pipe, a socket or a device: reading it could take for ever.
        OSError: as `os.open` does.
    """
    check_name(path)
    # without waiting: opening a pipe would, for somebody to write to it
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, "Is a directory", str(path))
        kind = next((word for test, word in _KINDS if test(mode)), "no regular file")
        raise UnreadableFileError(
            f"{path}: is {kind}, not a file\nhint: write what it gives to a file, and name that file."
        )
    return number


_KINDS = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading bytes; see `opened_regular`."""
    return io.BufferedReader(io.FileIO(opened_regular(path), "rb"), 1 << 16)


def check_name(path: Path) -> None:
    """Refuse a name with line breaks, which would let it write lines of our messages.

    Raises:
        UnreadableFileError: it has one.
    """
    if any(mark in str(path) for mark in "\n\r"):
        raise UnreadableFileError(
            f"{shown(str(path), one_line=True)}: the name of the file has a line break\nhint: rename the file."
        )


class LimitError(ValueError):
    """JSON that is not read though it may be JSON: it means two things, or takes much more memory than its text."""


def loads(text: bytes | str) -> Any:
    """Read one JSON value that means one thing and does not take much more memory than its text.

    Raises:
        LimitError: a name stands twice in one object, it is nested too deeply, has an integer of thousands of digits,
            or is made of brackets.
        ValueError: it is not JSON.
    """
    brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if brackets > _BRACKETS_FREE and brackets * _BYTES_OF_BRACKET > len(text):
        raise LimitError(f"{brackets} lists and objects in {len(text)} bytes: more than values are")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise LimitError("lists or objects are nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError, LimitError):
        raise
    except ValueError:  # of Python, which hints at a setting of its own
        raise LimitError("an integer has thousands of digits") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LimitError(f"{shown(twice, one_line=True)!r} stands twice in one object")
    return found


def limited_lines(file: IO[bytes], path: Path, packed: bool | None = None) -> Iterator[bytes]:
    """Give the lines of a file, as long as none takes more memory than a line can have use for.

    Args:
        file: open, at the beginning of a line.
        path: what it is called.
        packed: whether it is unpacked while it is read, so that a small file may be large lines; by its name if None.

    Raises:
        UnreadableFileError: a line, or all of what was packed, is too long.
    """
    packed = path.suffix == ".gz" if packed is None else packed
    size = os.stat(path).st_size if packed else 0
    most = min(LINE_BYTES, max(PACKED_FREE, PACKED_TIMES * size)) if packed else LINE_BYTES
    whole = max(PACKED_TOTAL_FREE, PACKED_TOTAL_TIMES * size)
    number = taken = blank = 0
    while line := file.readline(most + 1):
        number += 1
        taken += len(line)
        if len(line) > most:
            _refuse(path, f"line {number} has more than {most >> 20} MB" + f", and the file {size:,} bytes" * packed)
        if packed and taken > whole:
            _refuse(path, f"is over {whole >> 20} MB once it is unpacked, and has {size:,} bytes")
        blank = blank + 1 if len(line) < 3 and not line.strip() else 0
        if blank > BLANK_LINES:
            _refuse(path, f"has {BLANK_LINES:,} blank lines in a row at line {number}")
        yield line


def _refuse(path: Path, what: str) -> NoReturn:
    raise UnreadableFileError(
        f"{path}: {what}: not read, as it may be made to fill the memory\n"
        "hint: if it is a good file, unpack it first (gzip -d) or write one response a line."
    )


def read_packed(file: IO[bytes], path: Path, most: int) -> bytes:
    """Read a whole file that is one value, unless it is too long; see `limited_lines`."""
    size = os.stat(path).st_size
    packed = path.suffix == ".gz"
    most = min(most, max(PACKED_FREE, PACKED_TIMES * size)) if packed else most
    text = file.read(most + 1)
    if len(text) > most:
        _refuse(path, f"one JSON value of more than {most >> 20} MB" + f" in {size:,} bytes" * packed)
    return text


def finite(value: Any) -> bool:
    """Whether a value is a number that a float64 holds: no NaN, infinity or integer of hundreds of digits."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


PARTIAL = re.compile(
    r"partial-\d+-.+|.+\.partial\.[a-z.]+|\..+"
)  # names of what a writer has not finished, or does not show
_HEAD = 1 << 16  # bytes of a file in which a mark of ours stands


def is_unfinished(path: Path) -> bool:
    """Whether a file's name says that it is hidden, or the part of a file whose writer was stopped."""
    return PARTIAL.fullmatch(path.name) is not None


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all: a reader sees what was there before, or all of it, also on a full disk.

    Args:
        path: the file, or a pipe or device, which is written to as it is; what a link leads to is written, and the
            link stays.
        data: bytes, or text to be UTF-8.
    """
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.write(data)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(beside, stat.S_IMODE(path.stat().st_mode))
        os.replace(beside, path)
    except OSError as e:
        e.filename = str(path)  # not the name of a part that nobody asked for
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def written_to(path: Path, part: Path | None = None) -> Generator[None, None, None]:
    """Name the file in the error of a write that fails: Python and Arrow say only that there is no room.

    Args:
        path: the file that was asked for.
        part: what is really written to, until it is whole.
    """
    try:
        yield
    except OSError as e:
        if e.errno is None or (e.filename is not None and str(e.filename) != str(part)):
            raise
        raise OSError(e.errno, os.strerror(e.errno), str(path)) from None


def live_with(parent: int, begin: str) -> None:
    """Begin a worker process, which ends when the one that started it has ended in whatever way, SIGKILL too.

    It stands here, where little is imported: a worker that is still importing what it needs has begun to look.

    Args:
        parent: the process that started it.
        begin: what else is to be done, as module:function.
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
    module, _, function = begin.partition(":")
    getattr(import_module(module), function)()


@contextmanager
def claimed(path: Path) -> Generator[None, None, None]:
    """Hold a name for this process while it writes there; another one that wants it is told.

    Raises:
        ValueError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # on Windows, where what is open cannot be replaced anyway
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    number = os.open(lock, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{path}: another process is writing it\nhint: wait until it has ended, or name another output."
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(number)


def check_output(path: Path, option: str, marks: tuple[bytes, ...], inputs: Iterable[Path] = ()) -> None:
    """Refuse to write where something stands that this command did not make.

    Args:
        path: where it is to write.
        option: that named it.
        marks: what the beginning of such a file has if one of ours wrote it; any of them.
        inputs: files that are read.

    Raises:
        ValueError: it is an input, or another file, or a folder.
    """
    if not path.exists():
        return
    another = f"hint: give {option} another name."
    if path.is_dir():
        raise ValueError(f"{path}: {option} must name a file, and this is a folder\n{another}")
    if not path.is_file():  # a pipe or a device
        return
    if any(_same(path, one) for one in inputs):
        raise ValueError(f"{path}: is an input, and {option} would replace it\n{another}")
    with open_regular(path) as file:
        head = file.read(_HEAD)
    if head.strip() and not any(mark in head for mark in marks):
        raise ValueError(f"{path}: is there, and was not written by {option} of an earlier command\n{another}")


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False
