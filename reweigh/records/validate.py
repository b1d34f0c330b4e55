"""Checking every rule of the record format on whole files, and counting what breaks which."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reweigh.records.formats import Formats
from reweigh.records.packed import stable_hashes
from reweigh.records.paths import Paths
from reweigh.records.read import MAX_TOKENS, RECORDS, read_info, read_names, read_raw
from reweigh.records.rows import unknown_name
from reweigh.records.rules import check_counts, check_values
from reweigh.records.schema import BY_NAME, REQUIRED
from reweigh.records.table import aligned, check_names, conform, single
from reweigh.records.violation import Origin, Report, Tally, UnreadableFileError, Violation


@dataclass(frozen=True)
class Validation:
    """What `validate` found.

    Attributes:
        files: those that were named.
        rows: rows read.
        violations: one a rule that is broken.
        notes: things worth knowing that break no rule.
        unreadable: messages of files that cannot be read to their end.
    """

    files: tuple[Path, ...]
    rows: int
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every file was read and no rule is broken."""
        return not self.violations and not self.unreadable

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "ok": self.ok,
            "files": [str(path) for path in self.files],
            "rows": self.rows,
            "violations": [
                {"rule": v.rule, "count": v.count, "counted": v.counted, "place": v.place}
                | {"detail": v.detail, "hint": v.hint}
                for v in self.violations
            ],
            "notes": list(self.notes),
            "unreadable": list(self.unreadable),
        }


def validate(paths: Paths, on_rows: Callable[[int], None] | None = None, *, formats: Formats = RECORDS) -> Validation:
    """Read all files and report every rule that is broken; a damaged file does not hide what is wrong with another.

    Args:
        paths: files, folders or globs.
        on_rows: called with the number of rows just read, for a progress bar.
        formats: what files may be.
    """
    files = formats.expand(paths)
    tally = Tally()
    seen: set[int] = set()
    notes: dict[str, None] = {}
    unreadable: list[str] = []
    rows = 0
    for path in files:
        try:
            notes.update(dict.fromkeys(_notes(path, formats)))
            names = read_names(path, formats)
            if names:
                check_names(names, REQUIRED, str(path), tally)
            for raw, origin in read_raw(path, None, MAX_TOKENS, tally, formats):
                _check_table(raw, origin, seen, tally)
                rows += raw.num_rows
                if on_rows is not None:
                    on_rows(raw.num_rows)
        except UnreadableFileError as e:
            unreadable.append(str(e))
    return Validation(tuple(files), rows, tuple(tally.by_rule.values()), tuple(notes), tuple(unreadable))


def _check_table(raw: pa.Table, origin: Origin, seen: set[int], report: Report) -> None:
    table = conform(raw, origin, report)
    if "sequence_id" in table.schema.names:
        _check_unique(single(table, "sequence_id"), origin, seen, report)
    whole = aligned(table, origin, REQUIRED, report)
    table, origin = table.filter(pa.array(whole)), origin.keep(np.flatnonzero(whole).tolist())
    check_values(table, origin, report)
    check_counts(table, origin, report)


def _check_unique(ids: pa.Array, origin: Origin, seen: set[int], report: Report) -> None:
    again: list[int] = []
    null = ids.is_null().to_numpy(zero_copy_only=False)
    for row, key in enumerate(stable_hashes(ids, "sequence").tolist()):
        if null[row]:
            continue
        if key in seen:
            again.append(row)
        seen.add(key)
    if again:
        detail = f"sequence_id {ids[again[0]].as_py()!r} was used before"
        hint = "a response that is read twice counts twice; drop the copy, or add the step or rank to the id."
        report(Violation("sequence_id: duplicated", origin.place(again[0]), detail, hint, len(again)))


def _notes(path: Path, formats: Formats) -> list[str]:
    notes = [
        f"{path}: {unknown_name(name)}; it is ignored" for name in read_names(path, formats) if name not in BY_NAME
    ]
    info = read_info(path, formats)
    if info.schema_version is None:
        notes.append(f"{path}: no run metadata (engine, trainer, temperature, ...); it is all taken as unknown")
    elif info.logprobs_mode == "raw" and info.temperature not in (None, 1.0):
        notes.append(
            f"{path}: log_mu is raw and temperature was {info.temperature:g}: it is not of the distribution that "
            "was sampled from"
        )
    return notes
