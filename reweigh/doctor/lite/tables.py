"""Reads histories out of tables: CSV, JSON lines, a trainer's JSON, Parquet."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyarrow ships no types.

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from reweigh.doctor.lite.history import Cell, number, step_column

_RUN_METRIC = re.compile(r"^(?P<run>.+?) - (?P<metric>\S.*)$")  # a column of a chart exported from Weights & Biases
_LONG = ("tag", "metric", "name", "key")
Row = tuple[str, Mapping[str, Any]]


def csv_cells(path: Path) -> Iterator[Cell]:
    """One row a step; or one row a number with columns step, tag, value."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            header = [name.strip() for name in next(reader)]
        except StopIteration:
            raise _empty(path) from None
        yield from _cells(path, ((f"{path}:{reader.line_num}", _row(path, reader, header, row)) for row in reader))


def _row(path: Path, reader: Any, header: Sequence[str], row: Sequence[str]) -> Mapping[str, Any]:
    if row and len(row) != len(header):
        raise ValueError(
            f"diagnose_metrics: {path}:{reader.line_num}: {len(row)} values, but {len(header)} columns\n"
            "hint: the file is cut off, or a comma stands inside a value that is not in quotes."
        )
    return dict(zip(header, row, strict=True)) if row else {}


def jsonl_cells(path: Path) -> Iterator[Cell]:
    """One object a line; objects inside it join their names by "/"."""

    def rows() -> Iterator[Row]:
        with path.open(encoding="utf-8") as file:
            for i, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{i}", _object(line, f"{path}:{i}")

    yield from _cells(path, rows())


def json_cells(path: Path) -> Iterator[Cell]:
    """A list of objects, or an object with one under "log_history", as in trainer_state.json."""
    try:
        loaded: Any = json.loads(path.read_text(encoding="utf-8") or "[]")
    except ValueError:
        yield from jsonl_cells(path)  # JSON lines under the name of JSON
        return
    if isinstance(loaded, dict) and "log_history" in loaded:
        loaded = cast("dict[str, Any]", loaded)["log_history"]
    entries = cast("list[Any]", loaded) if isinstance(loaded, list) else [loaded]
    rows = ((f"{path}: entry {i}", flat(entry)) for i, entry in enumerate(entries, 1) if isinstance(entry, dict))
    yield from _cells(path, rows)


def parquet_cells(path: Path) -> Iterator[Cell]:
    """One row a step, as `run.history()` and the history artifact of Weights & Biases have it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as e:
        raise ValueError(f"diagnose_metrics: {path} is no Parquet file: {e}\nhint: export the history again.") from None
    yield from _cells(path, ((f"{path}: row {i}", flat(row)) for i, row in enumerate(rows, 1)))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, names joined by "/".

    Example:
        >>> flat({"step": 3, "data": {"actor": {"entropy": 0.5}}})
        {'step': 3, 'data/actor/entropy': 0.5}
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= flat(cast("dict[str, Any]", value), f"{prefix}{name}/")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        value: Any = json.loads(line)
    except ValueError as e:
        raise ValueError(
            f"diagnose_metrics: {place}: not JSON: {e}\nhint: one object a line; the last line may be cut off."
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"diagnose_metrics: {place}: must be an object, got {value!r:.60}\nhint: one object a line.")
    return flat(cast("dict[str, Any]", value))


def _empty(path: Path) -> ValueError:
    return ValueError(f"diagnose_metrics: {path} is empty\nhint: export the history again.")


def _cells(path: Path, rows: Iterable[Row]) -> Iterator[Cell]:
    """Numbers of rows. Rows need not have all columns: loggers write sparse ones."""
    step: str | None = None
    runs: set[str] = set()
    for place, row in rows:
        if not row:
            continue
        if step is None or step not in row:
            step = _step(row, step, place)
        at = number(row.get(step))
        if at is None or at != at:
            raise ValueError(
                f"diagnose_metrics: {place}: {step} must be a number, got {row.get(step)!r}\n"
                "hint: every row needs the step that its values are of."
            )
        long = next((n for n in _LONG if n in row and "value" in row), None)
        pairs = [(str(row[long]), row["value"])] if long else row.items()
        for name, raw in pairs:
            value = number(raw)
            if name == step or value is None:
                continue
            found = _RUN_METRIC.match(name)
            if found:
                runs.add(found["run"])
                _one_run(path, runs)
            yield Cell(found["metric"] if found else name, at, value, place)
    if step is None:
        raise _empty(path)


def _step(row: Mapping[str, Any], before: str | None, place: str) -> str:
    if before is not None and any(n in row for n in ("epoch", "_runtime", "train_runtime")):
        return step_column(row, place)
    names = {n.lower() for n in row}
    if "wall time" in names and names <= {"wall time", "step", "value"}:
        raise ValueError(
            f"diagnose_metrics: {place}: one metric without its name, as TensorBoard's page downloads it\n"
            "hint: give the log directory instead; it has all metrics with their names."
        )
    nested = [n for n in row if n.rsplit("/", 1)[-1].lower() in ("step", "global_step", "_step")]
    try:
        return step_column(row, place)
    except ValueError:
        if len(nested) == 1:
            return nested[0]
        raise


def _one_run(path: Path, runs: set[str]) -> None:
    if len(runs) > 1:
        raise ValueError(
            f"diagnose_metrics: {path} has several runs: {', '.join(sorted(runs))}\n"
            "hint: export one run; the doctor sees one at a time."
        )
