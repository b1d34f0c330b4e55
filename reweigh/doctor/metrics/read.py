"""Reads the history of a run: CSV, JSON lines, a trainer's JSON, Parquet, or a TensorBoard log directory."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false
# pyarrow and tensorboard ship no types.

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.diagnosis import InputNote

Array = NDArray[np.float64]

STEP_NAMES = (
    "step",
    "_step",
    "global_step",
    "training/global_step",
    "trainer/global_step",
    "train/global_step",
    "train/step",
    "rollout/step",
    "iteration",
    "rollout_id",
    "trainer/step",
)
"""Columns that count steps, the first one found wins; in any case of letters."""


@dataclass(frozen=True, eq=False)
class Series:
    """One metric: steps in rising order and a finite value at each."""

    steps: Array
    values: Array

    def __len__(self) -> int:
        """Counts the steps."""
        return len(self.steps)

    def with_(self, other: "Series") -> tuple["Series", "Series"]:
        """Returns two series at the steps that they share."""
        steps, a, b = np.intersect1d(self.steps, other.steps, assume_unique=True, return_indices=True)
        return Series(steps, self.values[a]), Series(steps, other.values[b])

    def scaled(self, factor: float) -> "Series":
        """Multiplies the values by a factor."""
        return Series(self.steps, self.values * factor)


@dataclass(frozen=True)
class Point:
    """One number as it was read: metric, step, value, and where it stands."""

    metric: str
    step: float
    value: float
    place: str


@dataclass(frozen=True, eq=False)
class History:
    """Metrics of one run by name, and notes on what was left out."""

    path: Path
    metrics: Mapping[str, Series]
    notes: tuple[InputNote, ...] = field(default=())

    @classmethod
    def of(cls, path: Path, cells: Iterable[Point]) -> "History":
        """Sorts, drops what is not finite, keeps the last of several values of a step; each counted.

        Raises:
            ValueError: there is not one number.
        """
        by_metric: dict[str, dict[float, float]] = {}
        bad: dict[str, list[str]] = {}
        twice: dict[str, list[str]] = {}
        for cell in cells:
            if not np.isfinite(cell.value):
                bad.setdefault(cell.metric, []).append(cell.place)
                continue
            seen = by_metric.setdefault(cell.metric, {})
            if cell.step in seen:
                twice.setdefault(cell.metric, []).append(cell.place)
            seen[cell.step] = cell.value
        if not by_metric:
            raise ValueError(
                f"diagnose_metrics: {path} has no numbers in it\n"
                "hint: give the history of a run: one row a step, one column a metric."
            )
        metrics: dict[str, Series] = {}
        for name, seen in by_metric.items():
            steps = np.array(sorted(seen), dtype=np.float64)
            metrics[name] = Series(steps, np.array([seen[s] for s in steps.tolist()], dtype=np.float64))
        notes = [
            InputNote(f"{name} {rule}", len(places), "steps", places[0], hint)
            for rule, hint, of in (
                ("is not finite", "left out; look for what made it so", bad),
                (
                    "has several values at one step",
                    "the last one counts; several runs in one file have to be split",
                    twice,
                ),
            )
            for name, places in of.items()
        ]
        return cls(path, metrics, tuple(notes))


def step_column(names: Iterable[str], place: str) -> str:
    """Finds the column that counts steps.

    Raises:
        ValueError: none does.
    """
    given = {name.strip().lower(): name for name in names}
    for name in STEP_NAMES:
        if name in given:
            return given[name]
    shown = ", ".join(sorted(given.values())[:8]) or "nothing"
    raise ValueError(
        f"diagnose_metrics: {place}: no column counts steps, got {shown}\n"
        f"hint: name one of them {', '.join(STEP_NAMES[:3])}."
    )


def number(value: Any) -> float | None:
    """Reads a number out of a cell: None if it is empty or no number, NaN and infinities as they are."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        try:
            return float(text)
        except ValueError:
            return None
    return float(value) if isinstance(value, (int, float, np.integer, np.floating)) else None


_RUN_METRIC = re.compile(r"^(?P<run>.+?) - (?P<metric>\S.*)$")  # a column of a chart exported from Weights & Biases
_LONG = ("tag", "metric", "name", "key")
_Row = tuple[str, Mapping[str, Any]]


def csv_cells(path: Path) -> Iterator[Point]:
    """Reads CSV: one row a step; or one row a number with columns step, tag, value."""
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


def jsonl_cells(path: Path) -> Iterator[Point]:
    """Reads JSON lines, one object a line; objects inside it join their names by "/"."""

    def rows() -> Iterator[_Row]:
        with path.open(encoding="utf-8") as file:
            for i, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{i}", _object(line, f"{path}:{i}")

    yield from _cells(path, rows())


def json_cells(path: Path) -> Iterator[Point]:
    """Reads JSON: a list of objects, or an object with one under "log_history", as in trainer_state.json."""
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


def parquet_cells(path: Path) -> Iterator[Point]:
    """Reads Parquet, one row a step, as `run.history()` and the history artifact of Weights & Biases have it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as e:
        raise ValueError(f"diagnose_metrics: {path} is no Parquet file: {e}\nhint: export the history again.") from None
    yield from _cells(path, ((f"{path}: row {i}", flat(row)) for i, row in enumerate(rows, 1)))


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


def _cells(path: Path, rows: Iterable[_Row]) -> Iterator[Point]:
    """Reads the numbers of rows. Rows need not have all columns: loggers write sparse ones."""
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
            export = _RUN_METRIC.match(name)
            if export:
                runs.add(export["run"])
                if len(runs) > 1:
                    raise ValueError(
                        f"diagnose_metrics: {path} has several runs: {', '.join(sorted(runs))}\n"
                        "hint: export one run; the doctor sees one at a time."
                    )
            yield Point(export["metric"] if export else name, at, value, place)
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


# 0: keep every point; the reader's default keeps a sample of them.
_GUIDANCE = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}


def is_event_file(path: Path) -> bool:
    """Tells whether TensorBoard wrote it, by its name."""
    return "tfevents" in path.name


def event_cells(path: Path) -> Iterator[Point]:
    """Reads every scalar under a log directory with one run in it, or of one event file.

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
            'hint: pip install "reweigh[tensorboard]", or export the history as CSV.'
        ) from e
    by_run: dict[Path, list[Point]] = {}
    for file in files:
        log = reader.EventAccumulator(str(file), size_guidance=_GUIDANCE)
        log.Reload()
        tags: dict[str, Any] = log.Tags()
        cells = [
            Point(tag, float(event.step), float(event.value), f"{file}: step {event.step}")
            for tag in tags["scalars"]
            for event in log.Scalars(tag)
        ]
        for tag in tags["tensors"]:
            for event in log.Tensors(tag):
                value = tensor_util.make_ndarray(event.tensor_proto)
                if value.size == 1 and value.dtype.kind in "fiu":
                    cells.append(Point(tag, float(event.step), float(value.item()), f"{file}: step {event.step}"))
        if cells:  # a directory of settings beside the run has none
            by_run.setdefault(file.parent, []).extend(cells)
    if len(by_run) > 1:
        homes = ", ".join(sorted(str(home.relative_to(path)) for home in by_run)[:5])
        raise ValueError(f"diagnose_metrics: {path} has several runs: {homes}\nhint: give the directory of one.")
    for cells in by_run.values():
        yield from cells


_BY_ENDING: dict[str, Callable[[Path], Iterator[Point]]] = {
    ".csv": csv_cells,
    ".jsonl": jsonl_cells,
    ".ndjson": jsonl_cells,
    ".json": json_cells,
    ".parquet": parquet_cells,
}


def read_history(path: str | Path) -> History:
    """Reads the metrics of one run.

    Args:
        path: CSV (also as Weights & Biases exports a chart), JSONL (one object a step, also nested), JSON (a list of
            objects, or a trainer's state with its log history), Parquet, or a TensorBoard log directory.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: what is there cannot be read; file, line and remedy are in the text.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"diagnose_metrics: no file {path}\nhint: give the history of a run.")
    if path.is_dir() or is_event_file(path):
        return History.of(path, event_cells(path))
    read = _BY_ENDING.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"diagnose_metrics: {path}: cannot tell what {path.suffix or 'a name without ending'} is\n"
            f"hint: give {', '.join(_BY_ENDING)}, or a TensorBoard log directory."
        )
    if not path.stat().st_size:
        raise ValueError(f"diagnose_metrics: {path} is empty\nhint: export the history again.")
    return History.of(path, read(path))
