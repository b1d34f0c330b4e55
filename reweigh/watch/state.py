"""What a watch knows: the sums of all that was read, what was read of each file, and which files are in trouble."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from reweigh import __version__
from reweigh.audit import Audit, answer
from reweigh.records import RunInfo
from reweigh.scan import FileRead, Job, Measured, Scanned
from reweigh.scan.measure import pack, types_of, unpack
from reweigh.scan.state import write_whole

STATE_VERSION = 2


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


@dataclass(frozen=True)
class Read:
    """What was read of one file.

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
    """A frozen value; `reweigh.watch.look` makes the next one of it.

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
    files: Mapping[str, Read] = field(default_factory=dict[str, Read])
    troubles: Mapping[str, Trouble] = field(default_factory=dict[str, Trouble])
    pending: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp])
    beside: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp])
    rewritten: Mapping[str, Stamp] = field(default_factory=dict[str, Stamp])
    looks: int = 0

    def audit(self) -> Audit | None:
        """Of all that was read; None while no token of it counts."""
        if not self.total.tokens:
            return None
        files = [
            FileRead(Path(name), one.rows, one.tokens, RunInfo.from_dict(one.info)) for name, one in self.files.items()
        ]
        return answer(Scanned(self.total.sums, tuple(files), self.total.notes))

    def then(self, name: str, found: Measured, one: Read) -> "Watched":
        """With more of a file."""
        troubles = {k: v for k, v in self.troubles.items() if k != name}
        return replace(self, total=self.total + found, files={**self.files, name: one}, troubles=troubles)


@dataclass(frozen=True)
class Memory:
    """Where a watch keeps what it knows, so that a new one goes on from there.

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
        """The memory of a watch of this folder."""
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
        tables = [
            {name: [*astuple(one.stamp), one.upto, one.rows, one.tokens, one.lines, dict(one.info)] for name, one in x}
            for x in [watched.files.items()]
        ]
        troubles = {name: [*astuple(one.stamp), one.reason, one.tries] for name, one in watched.troubles.items()}
        stamps = [
            {name: list(astuple(stamp)) for name, stamp in table.items()}
            for table in (watched.pending, watched.beside, watched.rewritten)
        ]
        total = watched.total
        found = [total.rows, total.tokens, total.sums, total.notes]
        data = pack([dict(self.identity), found, tables[0], troubles, stamps, watched.looks], self.types)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, data)

    def load(self) -> Watched:
        """Read it; nothing known if there is no such file.

        Raises:
            ValueError: it is not a state file, or of another folder or question; with what differs.
        """
        if not self.path.exists():
            return Watched()
        try:
            identity, found, files, troubles, stamps, looks = unpack(self.path.read_bytes(), self.types)
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
            Measured(*found),
            {name: Read(Stamp(x[0], x[1]), *x[2:]) for name, x in files.items()},
            {name: Trouble(Stamp(x[0], x[1]), *x[2:]) for name, x in troubles.items()},
            pending,
            beside,
            rewritten,
            looks,
        )
