"""Reads histories out of a TensorBoard log directory."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false
# tensorboard ships no types.

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reweigh.doctor.lite.history import Cell

_ALL = 0  # keep every point; the reader's default keeps a sample of them
_GUIDANCE = {"scalars": _ALL, "tensors": _ALL, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}


def is_event_file(path: Path) -> bool:
    """True for what TensorBoard writes."""
    return "tfevents" in path.name


def event_cells(path: Path) -> Iterator[Cell]:
    """Every scalar under a log directory with one run in it, or of one event file.

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
    found: dict[Path, list[Cell]] = {}
    for file in files:
        log = reader.EventAccumulator(str(file), size_guidance=_GUIDANCE)
        log.Reload()
        tags: dict[str, Any] = log.Tags()
        cells = [
            Cell(tag, float(event.step), float(event.value), f"{file}: step {event.step}")
            for tag in tags["scalars"]
            for event in log.Scalars(tag)
        ]
        for tag in tags["tensors"]:
            for event in log.Tensors(tag):
                value = tensor_util.make_ndarray(event.tensor_proto)
                if value.size == 1 and value.dtype.kind in "fiu":
                    cells.append(Cell(tag, float(event.step), float(value.item()), f"{file}: step {event.step}"))
        if cells:  # a directory of settings beside the run has none
            found.setdefault(file.parent, []).extend(cells)
    if len(found) > 1:
        homes = ", ".join(sorted(str(home.relative_to(path)) for home in found)[:5])
        raise ValueError(f"diagnose_metrics: {path} has several runs: {homes}\nhint: give the directory of one.")
    for cells in found.values():
        yield from cells
