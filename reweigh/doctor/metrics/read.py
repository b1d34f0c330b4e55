"""Reads the history of a run: tables, JSON, trackers' stores, TensorBoard folders, and what was printed."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false
# pyarrow and tensorboard ship no types.

import csv
import io
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from reweigh.doctor.metrics.console import read_console
from reweigh.doctor.metrics.history import STEP_NAMES, History, Point, number

_EXPORTED = " - "  # between run and metric in a column of a chart exported from Weights & Biases
_LONG = ("tag", "metric", "name", "key")
_RUNS = ("run", "run_name", "run_id", "run_uuid")
_Row = tuple[str, Mapping[str, Any]]


def csv_cells(path: Path) -> Iterator[Point]:
    """Reads CSV: one row a step; one row a number with columns step, tag, value; or one row a metric."""
    text = path.read_text(encoding="utf-8-sig")
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        raise _empty(path) from None
    rows = ((f"{path}:{reader.line_num}", _row(path, reader, header, row)) for row in reader)
    steps = [re.fullmatch(r"(?:step[_ ]?)?(\d+)", name, re.IGNORECASE) for name in header[1:]]
    if steps and header[0].lower() in _LONG and all(steps):
        for place, row in rows:
            for name, step in zip(header[1:], steps, strict=True):
                if step and (value := number(row.get(name))) is not None:
                    yield Point(str(row[header[0]]), float(step[1]), value, place)
        return
    yield from table_cells(path, rows)


def _row(path: Path, reader: Any, header: Sequence[str], row: Sequence[str]) -> Mapping[str, Any]:
    if row and len(row) != len(header):
        raise ValueError(
            f"diagnose_metrics: {path}:{reader.line_num}: {len(row)} values, but {len(header)} columns\n"
            "hint: the file is cut off, or a comma stands inside a value that is not in quotes."
        )
    return dict(zip(header, row, strict=True)) if row else {}


def jsonl_cells(path: Path) -> Iterator[Point]:
    """Reads JSON lines, one object a line; objects inside it join their names by "/"."""

    def rows() -> Iterator[_Row]:
        with path.open(encoding="utf-8") as file:
            for i, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{i}", _object(line, f"{path}:{i}")

    yield from table_cells(path, rows())


def json_cells(path: Path) -> Iterator[Point]:
    """Reads JSON: a list of objects (or an object that holds one, as trainer_state.json does under "log_history"), an
    object of metrics each with its values by step, or of columns."""
    try:
        loaded: Any = json.loads(path.read_text(encoding="utf-8") or "[]")
    except ValueError:
        yield from jsonl_cells(path)  # JSON lines under the name of JSON
        return
    if isinstance(loaded, dict):
        members = cast("dict[str, Any]", loaded)
        lists = [v for v in members.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        by_step = {k: v for k, v in members.items() if isinstance(v, dict) and v and all(map(_is_step, v))}
        columns = {k: v for k, v in members.items() if isinstance(v, list) and v and not isinstance(v[0], (dict, list))}
        if by_step and not lists:
            for name, values in by_step.items():
                for step, value in values.items():
                    if (read := number(value)) is not None:
                        yield Point(name, float(step), read, f"{path}: {name}, step {step}")
            return
        if columns and not lists and len({len(v) for v in columns.values()}) == 1:
            n = len(next(iter(columns.values())))
            loaded = [{"step": i, **{k: v[i] for k, v in columns.items()}} for i in range(n)]
        elif len(lists) == 1:
            loaded = lists[0]
    entries = cast("list[Any]", loaded) if isinstance(loaded, list) else [loaded]
    rows = ((f"{path}: entry {i}", flat(entry)) for i, entry in enumerate(entries, 1) if isinstance(entry, dict))
    yield from table_cells(path, rows)


def _is_step(name: str) -> bool:
    return name.isdecimal() and len(name) < 20


def parquet_cells(path: Path) -> Iterator[Point]:
    """Reads Parquet, one row a step, as `run.history()` and the history artifact of Weights & Biases have it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as e:
        raise ValueError(f"diagnose_metrics: {path} is no Parquet file: {e}\nhint: export the history again.") from None
    yield from table_cells(path, ((f"{path}: row {i}", _unpacked(row)) for i, row in enumerate(rows, 1)))


def _unpacked(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a row, also where one column holds the metrics as JSON, as trackio keeps them."""
    packed = row.get("metrics")
    if isinstance(packed, str) and packed.lstrip().startswith("{"):
        row = {**{k: v for k, v in row.items() if k != "metrics"}, **json.loads(packed)}
    return flat(row)


def sqlite_cells(path: Path) -> Iterator[Point]:
    """Reads the store of MLflow (a row a number) or of trackio (a row a call, metrics as JSON)."""
    try:
        base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        names = [row[1] for row in base.execute("PRAGMA table_info(metrics)")]
        if not names:
            raise ValueError(
                f"diagnose_metrics: {path} has no table of metrics\n"
                "hint: give the store of MLflow or trackio, or export the history as CSV."
            )
        order = "timestamp, step" if "key" in names else "id" if "id" in names else "rowid"
        found = base.execute(f"SELECT {', '.join(names)} FROM metrics ORDER BY {order}").fetchall()
        base.close()
    except sqlite3.Error as e:
        raise ValueError(f"diagnose_metrics: {path} is no database: {e}\nhint: export the history as CSV.") from None
    rows: list[_Row] = []
    for i, values in enumerate(found, 1):
        row = dict(zip(names, values, strict=True))
        if row.pop("is_nan", False):
            row["value"] = "nan"
        rows.append((f"{path}: row {i}", _unpacked(row)))
    yield from table_cells(path, rows)


def mlflow_cells(path: Path) -> Iterator[Point]:
    """Reads a run of MLflow's file store: a file a metric, with a line "time value step" a number.

    Raises:
        ValueError: several runs are there, or a line is of another form.
    """
    homes = [path] if path.name == "metrics" else sorted(p for p in path.rglob("metrics") if p.is_dir())
    if len(homes) > 1:
        shown = ", ".join(str(home.parent.relative_to(path)) for home in homes[:5])
        raise ValueError(f"diagnose_metrics: {path} has several runs: {shown}\nhint: give the directory of one.")
    for file in sorted(p for p in homes[0].rglob("*") if p.is_file()):
        name = file.relative_to(homes[0]).as_posix()
        for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            parts = line.split()
            value, step = (
                (number(parts[1]), number(parts[2]) if len(parts) > 2 else 0.0) if len(parts) > 1 else (None,) * 2
            )
            if value is None or step is None:
                raise ValueError(
                    f"diagnose_metrics: {file}:{i}: must be a time, a value and a step, got {line!r:.60}\n"
                    "hint: give the folder of a run of MLflow, or export the history as CSV."
                )
            yield Point(name, step, value, f"{file}:{i}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested objects, names joined by "/".

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


def table_cells(path: Path, rows: Iterable[_Row]) -> Iterator[Point]:
    """Reads the numbers of rows. Rows need not have all columns: loggers write sparse ones.

    A row without a training step, in a table that has them, is of the training step before it: Weights & Biases makes
    a row of each call of the logger.

    Raises:
        ValueError: no column counts steps, a step is no number, or there are several runs.
    """
    table = [(place, row) for place, row in rows if row]
    if not table:
        raise _empty(path)
    found = Counter(name for _, row in table for name, value in row.items() if value is not None and value != "")
    steps = _step_columns(found, table[0][0])
    counts_calls = [name for name in steps if _plain(name) == "_step"]
    trained = [name for name in steps if name not in counts_calls]
    _one_run_only(path, table)
    at: float | None = None
    for place, row in table:
        here = next((name for name in trained or steps if row.get(name) not in (None, "")), None)
        if here is not None:
            at = number(row[here])
        if (here is not None and (at is None or at != at)) or (at is None and not counts_calls):
            raise ValueError(
                f"diagnose_metrics: {place}: {here or steps[0]} must be a number, got {row.get(here or steps[0])!r}\n"
                "hint: every row needs the step that its values are of."
            )
        if at is None:  # rows before the first training step
            continue
        long = next((n for n in _LONG if n in row and "value" in row), None)
        pairs = [(str(row[long]), row["value"])] if long else row.items()
        for name, raw in pairs:
            value = number(raw)
            if name not in steps and value is not None:
                yield Point(name.rsplit(_EXPORTED, 1)[-1], at, value, place)


def _one_run_only(path: Path, table: Sequence[_Row]) -> None:
    exported = {name.rsplit(_EXPORTED, 1)[0] for _, row in table for name in row if _EXPORTED in name}
    said = {str(row[name]) for _, row in table for name in row if name.lower() in _RUNS and row[name] not in (None, "")}
    for runs in (exported, said):
        if len(runs) > 1:
            raise ValueError(
                f"diagnose_metrics: {path} has several runs: {', '.join(sorted(runs)[:8])}\n"
                "hint: export one run; the doctor sees one at a time."
            )


def _plain(name: str) -> str:
    """Returns a column's name without its run, in small letters."""
    return name.rsplit(_EXPORTED, 1)[-1].strip().lower()


def _step_columns(found: Collection[str], place: str) -> list[str]:
    """Lists the columns that count steps, the best first.

    Raises:
        ValueError: there is none.
    """
    names = {n.lower() for n in found}
    if "wall time" in names and names <= {"wall time", "step", "value"}:
        raise ValueError(
            f"diagnose_metrics: {place}: one metric without its name, as TensorBoard's page downloads it\n"
            "hint: give the log directory instead; it has all metrics with their names."
        )
    order = {name: i for i, name in enumerate(STEP_NAMES)}
    columns = sorted((n for n in found if _plain(n) in order), key=lambda n: order[_plain(n)])
    ends = ("step", "global_step", "_step")
    nested = [n for n in found if "/" in n and n.rsplit("/", 1)[-1].lower() in ends and n not in columns]
    if not columns and len(nested) == 1:
        return nested
    if not columns:
        shown = ", ".join(sorted(found)[:8]) or "nothing"
        raise ValueError(
            f"diagnose_metrics: {place}: no column counts steps, got {shown}\n"
            "hint: name one of them step, _step, global_step."
        )
    return columns


# 0: keep every point; the reader's default keeps a sample of them.
_GUIDANCE = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}


def is_event_file(path: Path) -> bool:
    """Tells whether TensorBoard wrote it, by its name."""
    return "tfevents" in path.name


def event_cells(path: Path) -> Iterator[Point]:
    """Reads every scalar under a log directory with one run in it, or of one event file.

    The files of a folder are read as one, so that points which a resumed run purged are gone.

    Raises:
        ValueError: no event file, or several runs.
        ModuleNotFoundError: the package that reads them is not there.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and is_event_file(p))
    if not files:
        raise ValueError(
            f"diagnose_metrics: no event file under {path}\n"
            "hint: give the directory that holds events.out.tfevents..., or a CSV, JSONL or Parquet file."
        )
    try:
        from tensorboard.backend.event_processing import event_accumulator as reader
        from tensorboard.util import tensor_util
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            "diagnose_metrics: reading event files needs the package tensorboard\n"
            "hint: pip install tensorboard, or export the history as CSV."
        ) from e
    by_run: dict[Path, list[Point]] = {}
    for home in [path] if path.is_file() else sorted({file.parent for file in files}):
        log = reader.EventAccumulator(str(home), size_guidance=_GUIDANCE)
        log.Reload()
        tags: dict[str, Any] = log.Tags()
        cells = [
            Point(tag, float(event.step), float(event.value), f"{home}: step {event.step}")
            for tag in tags["scalars"]
            for event in log.Scalars(tag)
        ]
        for tag in tags["tensors"]:
            for event in log.Tensors(tag):
                value = tensor_util.make_ndarray(event.tensor_proto)
                if value.size == 1 and value.dtype.kind in "fiu":
                    cells.append(Point(tag, float(event.step), float(value.item()), f"{home}: step {event.step}"))
        if cells:  # a directory of settings beside the run has none
            by_run[home] = cells
    if len(by_run) > 1:
        homes = ", ".join(sorted(str(home.relative_to(path)) for home in by_run)[:5])
        raise ValueError(f"diagnose_metrics: {path} has several runs: {homes}\nhint: give the directory of one.")
    for cells in by_run.values():
        yield from cells


_BY_ENDING: dict[str, Callable[[Path], Iterator[Point]]] = {
    ".csv": csv_cells,
    ".tsv": csv_cells,
    ".jsonl": jsonl_cells,
    ".ndjson": jsonl_cells,
    ".json": json_cells,
    ".parquet": parquet_cells,
    ".db": sqlite_cells,
    ".sqlite": sqlite_cells,
    ".sqlite3": sqlite_cells,
}
_PRINTED = (".log", ".txt", ".out", ".err", "")


def read_history(path: str | Path) -> History:
    """Reads the metrics of one run.

    Args:
        path: CSV (also as Weights & Biases exports a chart), JSONL (one object a step, also nested), JSON (a list of
            objects, a trainer's state with its log history, metrics by step), Parquet, the store of MLflow or trackio,
            a TensorBoard log directory, or what a trainer printed (.log, .txt, .out).

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: what is there cannot be read; file, line and remedy are in the text.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"diagnose_metrics: no file {path}\nhint: give the history of a run.")
    if path.is_dir() and (path.name == "metrics" or any(p.is_dir() for p in path.rglob("metrics"))):
        return History.of(path, mlflow_cells(path))
    if path.is_dir() or is_event_file(path):
        return History.of(path, event_cells(path))
    read = _BY_ENDING.get(path.suffix.lower())
    if read is None and path.suffix.lower() not in _PRINTED:
        raise ValueError(
            f"diagnose_metrics: {path}: cannot tell what {path.suffix} is\n"
            f"hint: give {', '.join(_BY_ENDING)}, a console log (.log, .txt, .out), or a TensorBoard log directory."
        )
    if not path.stat().st_size:
        raise ValueError(f"diagnose_metrics: {path} is empty\nhint: export the history again.")
    if read is None:
        return read_console(path)
    return History.of(path, read(path))
