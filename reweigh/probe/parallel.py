"""Work on many jobs at once in threads that a stop need not wait for."""

import threading
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Yield each job with its result, in the order they are done.

    The threads are daemons, unlike those of `concurrent.futures`: after Ctrl-C, or once the generator is closed, no new
    job is begun, and the process may end without waiting for those under way (a request may take minutes).

    Raises:
        Exception: whatever a job raised, as soon as it has.
    """
    todo: SimpleQueue[Job] = SimpleQueue()
    done: SimpleQueue[tuple[Job, Result] | Exception] = SimpleQueue()
    stop = threading.Event()
    for job in jobs:
        todo.put(job)

    def loop() -> None:
        while not stop.is_set():
            try:
                job = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((job, work(job)))
            except Exception as error:
                done.put(error)

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=loop, daemon=True).start()
    try:
        for _ in jobs:
            outcome = done.get()
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
    finally:
        stop.set()
