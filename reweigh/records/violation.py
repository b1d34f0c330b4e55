"""One broken rule of the record format: what, how often, where first, and what to do about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold.

    Attributes:
        rule: the rule's short name; violations of one rule are counted together.
        place: file, and row or line, of the first one.
        detail: names and values at that place.
        hint: what to do.
        count: how many values, rows or files break it.
        counted: what `count` counts.
    """

    rule: str
    place: str
    detail: str
    hint: str
    count: int = 1
    counted: str = "rows"

    def __str__(self) -> str:
        """As an error message."""
        more = f" ({self.count} {self.counted} in this batch)" if self.count > 1 else ""
        return f"{self.place}: {self.detail}{more}\nhint: {self.hint}"


Report = Callable[[Violation], None]


def fail(violation: Violation) -> None:
    """The report of everything that only wants good records: raise on the first violation."""
    raise ValueError(str(violation))


@dataclass
class Tally:
    """The report that counts: one violation a rule, with the first place and the total."""

    by_rule: dict[str, Violation] = field(default_factory=dict)

    def __call__(self, violation: Violation) -> None:
        """Count one more."""
        seen = self.by_rule.get(violation.rule)
        first = violation if seen is None else seen
        count = violation.count + (0 if seen is None else seen.count)
        self.by_rule[violation.rule] = Violation(
            first.rule, first.place, first.detail, first.hint, count, first.counted
        )


class UnreadableFileError(ValueError):
    """A file that is not, or no longer, what its name says: truncated, corrupt, or another format."""


@dataclass(frozen=True)
class Origin:
    """Where rows came from: row 0 of a table is row `first_row` of the file, or line `lines[0]` of a JSONL file."""

    path: Path
    first_row: int
    lines: Sequence[int] | None = None
    kept: Sequence[int] | None = None  # which rows are left, if some were taken out

    def place(self, row: int) -> str:
        """File and row (counted from 0), or file and line (from 1)."""
        row = row if self.kept is None else self.kept[row]
        if self.lines is not None:
            return f"{self.path}:{self.lines[row]}"
        return f"{self.path} row {self.first_row + row}"

    def slice(self, start: int, length: int) -> "Origin":
        """The origin of `table.slice(start, length)`."""
        if self.kept is not None:
            return replace(self, kept=self.kept[start : start + length])
        lines = None if self.lines is None else self.lines[start : start + length]
        return Origin(self.path, self.first_row + start, lines)

    def keep(self, rows: Sequence[int]) -> "Origin":
        """The origin of a table that has only these rows of it."""
        return replace(self, kept=rows)
