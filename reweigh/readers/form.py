"""What a reader of a foreign dump must offer, and what it says of a record that is no good."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reweigh.records.reader import FilePart
from reweigh.records.schema import RunInfo
from reweigh.records.violation import UnreadableFileError, Violation

Row = Mapping[str, Any]
"""Values by column of the record schema; `prompt_ids` beside them, where the dump has them, is for a rescoring."""


class BadRecordError(ValueError):
    """One record of a dump that cannot be a row; the records around it are not touched by that.

    Attributes:
        rule: what is wrong, in words that are the same for every record of which it is.
        detail: names and values.
        hint: what to do.
    """

    def __init__(self, rule: str, detail: str, hint: str) -> None:
        super().__init__(f"{detail}\nhint: {hint}")
        self.rule, self.detail, self.hint = rule, detail, hint


@dataclass(frozen=True)
class Item:
    """One record of a dump before it is looked at.

    Attributes:
        load: its rows, most often one; raises BadRecordError.
        line: the line it stands on, from 1, in formats that have lines.
        number: which record of the file it is, from 0.
    """

    load: Callable[[], Sequence[Row]]
    number: int
    line: int | None = None

    def place(self, path: Path) -> str:
        """File and line, or file and record."""
        return f"{path} record {self.number}" if self.line is None else f"{path}:{self.line}"


@dataclass(frozen=True)
class Format:
    """How the dumps of one framework are recognised, found, cut and read.

    Attributes:
        name: as `--reader` takes it.
        title: what the files are, for a list of what was tried.
        both_sides: whether the framework writes log_pi too; if not, `reweigh rescore` adds it.
        endings: how the files' names end.
        recognises: whether a file is one, from what stands in it.
        items: the records of a part.
        info: what a file says of the run.
        parts: the parts of a file that can be read apart, of about so many tokens.
        lead: the file that stands for all that are read together with this one: itself, or the first of its ranks;
            None if it is only ever read beside another.
        decimals: decimals that the framework rounds log-probs to when it writes them; None if it does not.
    """

    name: str
    title: str
    both_sides: bool
    endings: tuple[str, ...]
    recognises: "Callable[[Head], bool]"
    items: Callable[[FilePart], Iterator[Item]]
    info: Callable[[Path], RunInfo]
    parts: Callable[[Path, int], Iterator[FilePart]]
    lead: Callable[[Path], Path | None]
    decimals: int | None = None


@dataclass(frozen=True)
class Head:
    """What recognition looks at.

    Attributes:
        path: the file.
        kind: "json", "torch", "pickle", "sqlite" or "other", by its first bytes.
        first: the first JSON object, or the object of a torch file; empty if there is none.
        start: the first bytes.
    """

    path: Path
    kind: str
    first: Mapping[str, Any]
    start: bytes


@dataclass
class Skipped:
    """The report that goes on: which records were left out, and why.

    Attributes:
        count: how many.
        listed: the first of them, at most `keep`.
        keep: how many to list.
    """

    keep: int = 100
    count: int = 0
    listed: list[Violation] = field(default_factory=list[Violation])

    def __call__(self, violation: Violation) -> None:
        """Count one more."""
        self.count += violation.count
        if len(self.listed) < self.keep:
            self.listed.append(violation)

    def lines(self) -> list[str]:
        """One line a record, and one for those that are not listed."""
        lines = [f"{v.place}: {v.detail}" for v in self.listed]
        if self.count > len(self.listed):
            lines.append(f"and {self.count - len(self.listed):,} more")
        return lines


LINES = (".jsonl", ".jsonl.gz")
JSON = (*LINES, ".json", ".json.gz")
TORCH = (".pt", ".pth")


def whole(path: Path, tokens: int) -> Iterator[FilePart]:
    """A file that is one object cannot be cut."""
    yield FilePart(path)


def itself(path: Path) -> Path:
    """A file that is read alone."""
    return path


def unknown_version(path: Path, name: str, known: str, got: object) -> UnreadableFileError:
    """The error for a file that another version of the framework wrote."""
    return UnreadableFileError(
        f"{path}: {name} must be {known}, got {got!r}\n"
        "hint: another version of the framework wrote it, and what its fields mean there is not known here."
    )
