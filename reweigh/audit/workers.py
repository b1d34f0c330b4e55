"""An audit's parts on the cores of one machine: in this process, or in one process a core."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from reweigh.audit.measure import Job, Measured, measure
from reweigh.processes import cores, in_order
from reweigh.records.files import FilePart

# Below this one process is done before others have imported torch; for `Workers(None)`.
WORTH_STARTING = 1 << 25  # tokens


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

    def __call__(self, parts: Sequence[FilePart], job: Job) -> Generator[Measured, None, None]:
        """The result of each part, in the order of the parts."""
        count = min(self._wanted(parts), len(parts))
        if count <= 1:
            return (measure(part, job) for part in parts)
        return _in_processes(parts, job, count)

    def _wanted(self, parts: Sequence[FilePart]) -> int:
        if self.count is not None:
            return self.count
        known = sum(part.tokens or 0 for part in parts)
        whole = any(part.tokens is None for part in parts)  # a gzipped file: it may be long
        return cores() if known >= WORTH_STARTING or (whole and len(parts) > 1) else 1


def _in_processes(parts: Sequence[FilePart], job: Job, count: int) -> Generator[Measured, None, None]:
    hint = "run the same command with --resume, and fewer --workers if memory was short."
    with closing(in_order(partial(_measured, job), parts, count, "audit", hint)) as found:
        for data in found:
            yield Measured.from_bytes(data)


def _measured(job: Job, part: FilePart) -> bytes:
    return measure(part, job).to_bytes()
