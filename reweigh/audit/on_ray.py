"""An audit's parts on a Ray cluster: the same map, run by Ray Data, which also sees to what dies on the way."""
# pyright: reportMissingImports=false, reportUntypedFunctionDecorator=false

import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from reweigh.audit.measure import Job, Measured, measure
from reweigh.processes import single_threaded
from reweigh.records.files import FilePart


@dataclass(frozen=True)
class OnRay:
    """Measure parts on Ray Data, one processor each. A worker or a node that dies costs its parts a
    retry, of which Ray allows a task three.

    Every node must see the files under the same paths and have reweigh installed, of one version. Results are merged
    here, in the order of the parts.

    Args:
        address: of a running cluster, for example "auto" or "ray://head:10001"; None starts one on this machine alone,
            without dashboard and usage reports, and stops it afterwards.
        workers: how many parts are measured at a time; as many as the cluster has processors if not given.

    Raises:
        ModuleNotFoundError: Ray is not installed: `pip install "reweigh[ray]"`.
    """

    address: str | None = None
    workers: int | None = None

    def __call__(self, parts: Sequence[FilePart], job: Job) -> Generator[Measured, None, None]:
        """The result of each part, in the order of the parts."""
        import ray

        mine = not ray.is_initialized()
        if mine:
            self._connect()
        try:
            yield from _in_order(parts, job, self.workers)
        finally:
            if mine:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        # Read when a cluster starts: nothing of an audit is anyone else's to count.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            ray.init("local", include_dashboard=False, num_cpus=self.workers, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=self.address, **quiet)


def _in_order(parts: Sequence[FilePart], job: Job, workers: int | None) -> Generator[Measured, None, None]:
    import ray.data

    if not parts:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"index": i, **asdict(part), "path": str(part.path)} for i, part in enumerate(parts)]
    # A block a part: what is lost with a worker is the part that it was at.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _measured,  # pyright: ignore[reportArgumentType] - its second argument is in fn_args
        fn_args=(job,),
        compute=ray.data.TaskPoolStrategy(size=workers),
        num_cpus=1,
    )
    for expected, row in enumerate(dataset.iter_rows()):
        if row["index"] != expected:
            raise RuntimeError(f"audit: Ray gave part {row['index']} in the place of part {expected}")
        if row["error"]:
            raise ValueError(row["error"])
        yield Measured.from_bytes(row["measured"])


def _measured(row: dict[str, Any], job: Job) -> dict[str, Any]:
    single_threaded()
    part = replace(FilePart(**{f.name: row[f.name] for f in fields(FilePart)}), path=Path(row["path"]))
    try:
        return {"index": row["index"], "measured": measure(part, job).to_bytes(), "error": ""}
    except ValueError as e:  # of the records: an answer, and no reason to try again or to show where it was raised
        return {"index": row["index"], "measured": b"", "error": str(e)}
    except OSError as e:
        error = f"{e}\nhint: every node of the cluster must see the files under the same paths."
        return {"index": row["index"], "measured": b"", "error": error}
