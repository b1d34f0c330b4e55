"""Describing a set of record files, and checking every rule of the format on it."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reweigh.records.arrays import arrow, valid
from reweigh.records.files import MAX_TOKENS, RECORDS, FilePart, Formats, Paths, Source, read_info, read_tables
from reweigh.records.schema import (
    BY_NAME,
    COLUMNS,
    REQUIRED,
    ROLLOUT_REQUIRED,
    Origin,
    Report,
    RunInfo,
    Tally,
    UnreadableFileError,
    Violation,
)
from reweigh.records.table import (
    aligned,
    check_counts,
    check_names,
    check_units,
    check_values,
    conform,
    lengths_of,
    single,
    stable_hashes,
    token_values,
    unknown_name,
)

# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.


@dataclass(frozen=True)
class Described:
    """Counts over all files together.

    Attributes:
        files: in the order read.
        infos: what each file says of its run.
        rows: responses.
        tokens: response tokens; `tokens_counted` of them are in the mask.
        lengths: shortest, median and longest response, in tokens; None without rows.
        null_rows: rows in which a column is null, for each column that has a value somewhere.
        prompts: distinct prompt ids; None if no row has one.
        steps: first and last; None if no row has one.
        envs: rows in each environment.
        broken: rules on values that do not hold, such as a log-prob that is not there.
    """

    files: tuple[Path, ...]
    infos: tuple[RunInfo, ...]
    rows: int
    tokens: int
    tokens_counted: int
    lengths: tuple[int, float, int] | None
    null_rows: dict[str, int]
    prompts: int | None
    steps: tuple[int, int] | None
    envs: dict[str, int]
    broken: tuple[Violation, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        shortest, median, longest = self.lengths or (None, None, None)
        return {
            "files": [str(path) for path in self.files],
            "rows": self.rows,
            "tokens": self.tokens,
            "tokens_counted": self.tokens_counted,
            "lengths": {"min": shortest, "median": median, "max": longest},
            "columns": {name: {"null_rows": n, "null_share": n / self.rows} for name, n in self.null_rows.items()},
            "prompts": self.prompts,
            "steps": self.steps and {"first": self.steps[0], "last": self.steps[1]},
            "envs": self.envs,
            "broken": [_plain(v) for v in self.broken],
            "metadata": [info.to_dict() for info in self.infos],
        }


def describe(paths: Paths, on_rows: Callable[[int], None] | None = None, *, formats: Formats = RECORDS) -> Described:
    """Read all files once and count. Rollouts without log_pi are described too.

    Args:
        paths: files, folders or globs.
        on_rows: called with the number of rows just read, for a progress bar.
        formats: what files may be.
    """
    files = formats.expand(paths)
    lengths: list[np.ndarray] = []
    prompts: set[int] = set()
    values_of = dict.fromkeys((c.name for c in COLUMNS), 0)
    envs: dict[str, int] = {}
    steps: list[int] = []
    tokens_counted = 0
    tally = Tally()
    for table, origin in read_tables(files, required=ROLLOUT_REQUIRED, formats=formats):
        lengths.append(lengths_of(single(table, "log_mu")))
        tokens_counted += int(
            token_values(single(table, "mask"), lengths[-1]).true_count
            if "mask" in table.schema.names
            else lengths[-1].sum()
        )
        for name in table.schema.names:
            values_of[name] += table.num_rows - table.column(name).null_count
        if "prompt_id" in table.schema.names:
            prompts.update(stable_hashes(single(table, "prompt_id").drop_null(), "prompt").tolist())
        if "step" in table.schema.names:
            span = pc.min_max(table.column("step")).as_py()
            steps += [x for x in (span["min"], span["max"]) if x is not None]
        if "env" in table.schema.names:
            for pair in pc.value_counts(single(table, "env").drop_null()).to_pylist():
                envs[pair["values"]] = envs.get(pair["values"], 0) + pair["counts"]
        check_values(table, origin, tally)
        check_units(table, origin, tally)
        if on_rows is not None:
            on_rows(table.num_rows)
    length = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    for one in formats.left_out():
        tally(one)
    return Described(
        files=tuple(files),
        infos=tuple(read_info(path, formats) for path in files),
        rows=len(length),
        tokens=int(length.sum()),
        tokens_counted=tokens_counted,
        lengths=(int(length.min()), float(np.median(length)), int(length.max())) if len(length) else None,
        null_rows={name: len(length) - n for name, n in values_of.items() if n},
        prompts=len(prompts) or None,
        steps=(min(steps), max(steps)) if steps else None,
        envs=dict(sorted(envs.items())),
        broken=tuple(tally.by_rule.values()),
    )


def _plain(v: Violation) -> dict[str, Any]:
    return {
        "rule": v.rule,
        "count": v.count,
        "counted": v.counted,
        "place": v.place,
        "detail": v.detail,
        "hint": v.hint,
    }


@dataclass(frozen=True)
class Validation:
    """The outcome of `validate`.

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
            "violations": [_plain(v) for v in self.violations],
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
            source = formats.source(path)
            notes.update(dict.fromkeys(_notes(source)))
            names = source.names()
            if names:
                check_names(names, REQUIRED, str(path), tally)
            for raw, origin in source.read(FilePart(path), None, MAX_TOKENS, tally):
                table = conform(raw, origin, tally)
                if "sequence_id" in table.schema.names:
                    _check_unique(single(table, "sequence_id"), origin, seen, tally)
                whole = aligned(table, origin, REQUIRED, tally)
                table, origin = table.filter(arrow(whole, pa.bool_())), origin.keep(np.flatnonzero(whole).tolist())
                check_values(table, origin, tally)
                check_units(table, origin, tally)
                check_counts(table, origin, tally)
                rows += raw.num_rows
                if on_rows is not None:
                    on_rows(raw.num_rows)
        except UnreadableFileError as e:
            unreadable.append(str(e))
    for one in formats.left_out():
        tally(one)
    return Validation(tuple(files), rows, tuple(tally.by_rule.values()), tuple(notes), tuple(unreadable))


def _check_unique(ids: pa.Array, origin: Origin, seen: set[int], report: Report) -> None:
    again: list[int] = []
    null = ~valid(ids)
    for row, key in enumerate(stable_hashes(ids, "sequence").tolist()):
        if null[row]:
            continue
        if key in seen:
            again.append(row)
        seen.add(key)
    if again:
        detail = f"sequence_id {ids[again[0]].as_py()!r} was used before"
        hint = "commands count a response with equal log-probs once; drop the copy, or add the step or rank to the id."
        report(Violation("sequence_id: duplicated", origin.place(again[0]), detail, hint, len(again)))


def _notes(source: Source) -> list[str]:
    path, info = source.path, source.info()
    notes = [f"{path}: {unknown_name(name)}; it is ignored" for name in source.names() if name not in BY_NAME]
    if info.schema_version is None:
        notes.append(f"{path}: no run metadata (engine, trainer, temperature, ...); it is all taken as unknown")
    elif info.logprobs_mode == "raw" and info.temperature not in (None, 1.0):
        notes.append(
            f"{path}: log_mu is raw and temperature was {info.temperature:g}: it is not of the distribution that "
            "was sampled from"
        )
    return notes
