"""Work on parts in several processes of this machine, with the results in the order of the parts."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
import torch

P = TypeVar("P")
R = TypeVar("R")


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
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)
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
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _children_ignore_interrupts() -> Generator[None, None, None]:
    """What is started here does not hear Ctrl-C, not even while it is still importing what it needs."""
    if threading.current_thread() is not threading.main_thread():  # only there may a handler be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin() -> None:
    # Ctrl-C reaches every process of the terminal: the one that merges decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    single_threaded()
