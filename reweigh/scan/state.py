"""The state file of a scan: what was merged so far, so that an interrupted scan goes on where it stopped."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reweigh import __version__
from reweigh.records.files import FilePart
from reweigh.scan.measure import Job, Measured, pack, types_of, unpack

SAVE_SECONDS = 10.0  # between two writings of the state: the most work that a killed process loses


@dataclass(frozen=True, eq=False)
class Merged:
    """What the first `parts` parts add up to.

    Attributes:
        parts: how many are in it; they are merged in their order.
        files: rows and counted tokens of each file.
        total: the sums, with all rows and tokens.
    """

    parts: int = 0
    files: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    total: Measured = field(default_factory=Measured)

    def then(self, part: FilePart, found: Measured) -> "Merged":
        """With the next part."""
        name = str(part.path)
        rows, tokens = self.files.get(name, (0, 0))
        files = {**self.files, name: (rows + found.rows, tokens + found.tokens)}
        return Merged(self.parts + 1, files, self.total + found)


@dataclass(frozen=True)
class StateFile:
    """Where the state of one scan is kept.

    Attributes:
        path: the file.
        identity: what the scan is of and asks, by name. A state of another identity is refused.
        types: dataclasses that its sums are made of.
    """

    path: Path
    identity: dict[str, Any]
    types: tuple[type, ...] = ()

    @classmethod
    def of(cls, path: Path, parts: Sequence[FilePart], job: Job) -> "StateFile":
        """Name what a scan of these parts is of."""
        identity: dict[str, Any] = {
            "version of reweigh": __version__,
            "families": [one.name for one in job.families],
            **{name: value for one in job.families for name, value in one.identity.items()},
            "--keep-going": job.keep_going,
            **job.rows.identity,
            "--reader": job.reader,
            "tokens of a batch": job.batch_tokens,
            "files": [str(p) for p in dict.fromkeys(part.path for part in parts)],
        }
        for file in dict.fromkeys(part.path for part in parts):
            stat = file.stat()
            identity[f"size of {file}"] = stat.st_size
            identity[f"time of change of {file}"] = stat.st_mtime_ns
            cuts = [(part.start, part.stop) for part in parts if part.path == file]
            identity[f"parts of {file}"] = [len(cuts), cuts[0][1]]
        return cls(path, identity, types_of(job))

    def save(self, merged: Merged) -> None:
        """Write it whole or not at all: to a file beside it, then by renaming."""
        files = {name: list(counts) for name, counts in merged.files.items()}
        total = merged.total
        found = [total.rows, total.tokens, total.sums, total.notes, total.names]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, pack([self.identity, merged.parts, files, found], self.types))

    def load(self) -> Merged:
        """Read it; nothing merged if there is no such file.

        Raises:
            ValueError: it is not a state file, or of other files or another question; with what differs.
        """
        if not self.path.exists():
            return Merged()
        try:
            identity, parts, files, found = unpack(self.path.read_bytes(), self.types)
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(
                f"{self.path}: not a state of this version of reweigh: {e}\nhint: start anew without --resume."
            ) from None
        for name in {**self.identity, **identity}:
            was, now = identity.get(name), self.identity.get(name)
            if was != now:
                raise ValueError(
                    f"{self.path}: the state is of another question: {name} was {_short(was)}, and is {_short(now)}\n"
                    "hint: give the same files and options to go on with it; start anew without --resume."
                )
        counts = {name: (n[0], n[1]) for name, n in files.items()}
        return Merged(parts, counts, Measured(*found))

    def remove(self) -> None:
        """Delete it, once the work is done."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Keeper:
    """Saves a state now and then, by the clock.

    Attributes:
        file: where; None to save nothing.
        saved: when it was saved last, in seconds of `time.monotonic`.
    """

    file: StateFile | None
    saved: float

    @classmethod
    def start(cls, file: StateFile | None) -> "Keeper":
        """From now on."""
        return cls(file, time.monotonic())

    def keep(self, merged: Merged) -> "Keeper":
        """Save if it is time."""
        if self.file is None or time.monotonic() - self.saved < SAVE_SECONDS:
            return self
        self.file.save(merged)
        return replace(self, saved=time.monotonic())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a reader sees what was there before, or all of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
