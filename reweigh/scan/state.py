"""The state file of a scan: what was merged so far, so that an interrupted scan goes on where it stopped."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reweigh import __version__
from reweigh.guard import open_regular, write_whole
from reweigh.records.files import FilePart
from reweigh.scan.measure import Job, Measured, head_of, pack, types_of, unpack

SAVE_SECONDS = 10.0  # between two writings of the state: the most work that a killed process loses


@dataclass(frozen=True, eq=False)
class Merged:
    """What the first `parts` tasks add up to.

    Attributes:
        parts: how many are in it, each of which an engine measured in one go; they are merged in their order.
        total: the sums, with all rows and tokens.
    """

    parts: int = 0
    total: Measured = field(default_factory=Measured)

    def then(self, found: Measured) -> "Merged":
        """With the next task."""
        return Merged(self.parts + 1, self.total + found)


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

    def placed(self, resume: bool) -> "StateFile":
        """Find a place where nothing of anybody else is lost: the state of another question stays where it is.

        Args:
            resume: whether to go on from what is there.

        Raises:
            ValueError: something that is no state stands there.
        """
        if not self.path.exists():
            return self
        was = identity_at(self.path)
        if was is None:
            raise ValueError(
                f"{self.path}: is there, and is not a state of this version of reweigh: it is not replaced\n"
                "hint: name another file with --state."
            )
        beside = self.beside()
        if was == self.identity or (resume and not beside.path.exists()):  # `load` says what is other about it
            return self
        return beside

    def beside(self) -> "StateFile":
        """Name a place for this question alone: `x.state` -> `x-0123abcd.state`."""
        digest = hashlib.blake2b(json.dumps(self.identity, sort_keys=True, default=str).encode(), digest_size=4)
        return replace(self, path=self.path.with_name(f"{self.path.stem}-{digest.hexdigest()}{self.path.suffix}"))

    def save(self, merged: Merged) -> None:
        """Write it whole or not at all: to a file beside it, then by renaming."""
        total = merged.total
        found = [total.rows, total.tokens, total.sums, total.notes, total.names, total.files]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, pack([self.identity, merged.parts, found], self.types))

    def load(self) -> Merged:
        """Read it; nothing merged if there is no such file.

        Raises:
            ValueError: it is not a state file, or of other files or another question; with what differs.
        """
        if not self.path.exists():
            return Merged()
        try:
            identity, parts, found = unpack(self.path.read_bytes(), self.types)
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
        return Merged(parts, Measured(*found))

    def remove(self) -> None:
        """Delete it, once the work is done; what is not of this question stays."""
        if self.path.is_file() and identity_at(self.path) == self.identity:
            self.path.unlink(missing_ok=True)


def note_state(interrupt: KeyboardInterrupt, kept: StateFile | None) -> None:
    """Let Ctrl-C say which file the scan that it ended goes on from."""
    interrupt.__dict__["state"] = kept.path if kept is not None and kept.path.exists() else None


def noted_state(interrupt: KeyboardInterrupt, kept: Path) -> Path | None:
    """Tell which file a command that Ctrl-C ended goes on from; None if nothing was saved.

    Args:
        interrupt: that ended it.
        kept: where the state is, if it was not the scan that was ended but what came after it.
    """
    return interrupt.__dict__.get("state", kept if kept.exists() else None)


def identity_at(path: Path) -> Any:
    """Read what question a file is the state of; None if it is no state."""
    if not path.is_file():
        return None
    with open_regular(path) as file:
        return head_of(file)


@dataclass(frozen=True)
class Keeper:
    """Saves a state now and then, by the clock.

    Attributes:
        file: where; None to save nothing.
        saved: when it was saved last, in seconds of `time.monotonic`.
        trouble: why it can no longer be saved; empty if it can. That ends no scan.
    """

    file: StateFile | None
    saved: float
    trouble: str = ""

    @classmethod
    def start(cls, file: StateFile | None) -> "Keeper":
        """From now on."""
        return cls(file, time.monotonic())

    def keep(self, merged: Merged) -> "Keeper":
        """Save if it is time."""
        if self.file is None or time.monotonic() - self.saved < SAVE_SECONDS:
            return self
        try:
            self.file.save(merged)
        except OSError as e:
            return replace(self, file=None, trouble=f"{self.file.path}: {e.strerror or e}")
        return replace(self, saved=time.monotonic())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
