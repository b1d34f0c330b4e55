"""What runs a scan's map: this process, the cores of this machine, or a Ray cluster; results in the parts' order."""
# pyright: reportMissingImports=false, reportUntypedFunctionDecorator=false

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch

from reweigh.guard import live_with
from reweigh.records.files import FilePart
from reweigh.scan.measure import Job, Measured, Task, measure

_WRITTEN = 5.0  # seconds, by which the results that are being written are
P = TypeVar("P")
R = TypeVar("R")

# Below this one process is done before others have imported torch; for `Workers(None)`.
WORTH_STARTING = 1 << 25  # tokens


Engine = Callable[[Sequence[Task], Job], Generator[Measured, None, None]]
"""What runs `measure` on parts: gives the result of each, in the order of the parts, so that merging them in turn gives
the same to the last bit whatever ran them."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def single_threaded() -> None:
    """Leave the other cores to the other processes."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)


def in_order(work: Callable[[P], R], parts: Iterable[P], count: int, name: str, hint: str) -> Generator[R, None, None]:
    """`work` of each part, in the order of the parts, by `count` processes of one thread each.

    What starts them (`spawn`) imports the main module again, so a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        work: a function of a module; it and its results must pickle.
        parts: what it is given, one at a time.
        count: processes.
        name: of what is being done, for an error message.
        hint: what to do when a process dies.

    Raises:
        ChildProcessError: a process died.
    """
    pool = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),
        initializer=live_with,
        initargs=(os.getpid(), f"{__name__}:{_begin.__name__}"),
    )
    waiting: deque[Future[R]] = deque()
    try:
        for part in parts:
            with _children_ignore_interrupts():
                waiting.append(pool.submit(work, part))
            if len(waiting) > 2 * count:  # no further ahead, so that results which wait their turn stay few
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ChildProcessError(
            f"{name}: one of {count} worker processes died, most likely killed for want of memory\nhint: {hint}"
        ) from None
    except BaseException:
        _end(pool)  # what they are at is of no use to anybody: Ctrl-C need not wait for it
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _children_ignore_interrupts() -> Generator[None, None, None]:
    """What is started here does not hear Ctrl-C, not even while it is still importing what it needs; this process hears
    it afterwards, as one that is ignored is lost."""
    if threading.current_thread() is not threading.main_thread():  # only there may a handler be set
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if sys.platform == "win32" else lambda n, _: heard.append(n))
    mask: Collection[int] = ()
    if sys.platform != "win32":  # what is started inherits what is held back
        resource_tracker.ensure_running()  # when it starts by itself it lets SIGINT through again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the workers of a pool at once, but none in the middle of a result: who reads that would wait for the rest."""
    # No public way before Python 3.14. A result is written under a lock that all workers share.
    processes: dict[int, Any] = getattr(pool, "_processes", None) or {}
    writing: Any = getattr(getattr(pool, "_result_queue", None), "_wlock", None)
    held = False if writing is None else bool(writing.acquire(timeout=_WRITTEN))
    for process in list(processes.values()):
        process.kill()
    if writing is not None and held:
        writing.release()


def _begin() -> None:
    # Ctrl-C reaches every process of the terminal: the one that merges decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    single_threaded()


@dataclass(frozen=True)
class Workers:
    """Measure parts in this many processes, one thread each.

    What starts them (`spawn`) imports the main module again, so a script that calls `audit(engine=Workers(8))` needs
    the usual `if __name__ == "__main__":`.

    Args:
        count: processes; 1 is this process alone, None as many as there are cores if there is work enough for them.

    Raises:
        ValueError: unless count is at least 1.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        """Refuse a number that would do nothing."""
        if self.count is not None and self.count < 1:
            raise ValueError(f"Workers: count must be at least 1, got {self.count}")

    def __call__(self, tasks: Sequence[Task], job: Job) -> Generator[Measured, None, None]:
        """Give the result of each part, in the order of the parts."""
        count = min(self._wanted(tasks), len(tasks))
        if count <= 1:
            return (measure(one, job) for one in tasks)
        return _in_processes(tasks, job, count)

    def _wanted(self, tasks: Sequence[Task]) -> int:
        if self.count is not None:
            return self.count
        known = sum(one.tokens or 0 for one in tasks)
        whole = any(one.tokens is None for one in tasks)  # a gzipped file: it may be long
        return cores() if known >= WORTH_STARTING or (whole and len(tasks) > 1) else 1


def _in_processes(tasks: Sequence[Task], job: Job, count: int) -> Generator[Measured, None, None]:
    hint = "run the same command with --resume, and fewer --workers if memory was short."
    with closing(in_order(partial(_measured, job), tasks, count, job.families[0].name, hint)) as found:
        for data in found:
            yield Measured.from_bytes(data, job)


def _measured(job: Job, task: Task) -> bytes:
    return measure(task, job).to_bytes(job)


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
        ModuleNotFoundError: Ray is not installed: `pip install "ray[data]"`.
    """

    address: str | None = None
    workers: int | None = None

    def __call__(self, tasks: Sequence[Task], job: Job) -> Generator[Measured, None, None]:
        """Give the result of each part, in the order of the parts."""
        import ray

        mine = not ray.is_initialized()
        if mine:
            self._connect()
        try:
            yield from _by_ray(tasks, job, self.workers)
        finally:
            if mine:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        # Read when a cluster starts: nothing of a scan is anyone else's to count.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            ray.init("local", include_dashboard=False, num_cpus=self.workers, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=self.address, **quiet)


def _by_ray(tasks: Sequence[Task], job: Job, workers: int | None) -> Generator[Measured, None, None]:
    import ray.data

    if not tasks:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [
        {"index": i, "before": one.before, "parts": json.dumps([asdict(part) for part in one.parts], default=str)}
        for i, one in enumerate(tasks)
    ]
    # A block a task: what is lost with a worker is the task that it was at.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _of_row,  # pyright: ignore[reportArgumentType] - its second argument is in fn_args
        fn_args=(job,),
        compute=ray.data.TaskPoolStrategy(size=workers and min(workers, len(rows))),
        num_cpus=1,
    )
    for expected, row in enumerate(dataset.iter_rows()):
        if row["index"] != expected:
            raise RuntimeError(f"{job.families[0].name}: Ray gave task {row['index']} in the place of task {expected}")
        if row["error"]:
            raise ValueError(row["error"])
        yield Measured.from_bytes(row["measured"], job)


def _of_row(row: dict[str, Any], job: Job) -> dict[str, Any]:
    single_threaded()
    given: list[dict[str, Any]] = json.loads(row["parts"])
    parts = tuple(FilePart(Path(part.pop("path")), **part) for part in given)
    try:
        return {"index": row["index"], "measured": measure(Task(parts, row["before"]), job).to_bytes(job), "error": ""}
    except ValueError as e:  # of the records: an answer, and no reason to try again or to show where it was raised
        return {"index": row["index"], "measured": b"", "error": str(e)}
    except OSError as e:
        error = f"{e}\nhint: every node of the cluster must see the files under the same paths."
        return {"index": row["index"], "measured": b"", "error": error}
