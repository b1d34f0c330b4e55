"""Reads the history of a run from whatever file it stands in."""

from collections.abc import Callable, Iterator
from pathlib import Path

from reweigh.doctor.lite.events import event_cells, is_event_file
from reweigh.doctor.lite.history import Cell, History
from reweigh.doctor.lite.tables import csv_cells, json_cells, jsonl_cells, parquet_cells

_BY_ENDING: dict[str, Callable[[Path], Iterator[Cell]]] = {
    ".csv": csv_cells,
    ".jsonl": jsonl_cells,
    ".ndjson": jsonl_cells,
    ".json": json_cells,
    ".parquet": parquet_cells,
}


def read_history(path: str | Path) -> History:
    """The metrics of one run.

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
