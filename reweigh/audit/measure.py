"""The map of an audit: one part of a file -> its sums; a pure function, run in this process or in any other."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from reweigh.audit.accumulate import Plan, Sums
from reweigh.audit.pack import pack, unpack
from reweigh.audit.pictures import WORST_COLUMNS
from reweigh.audit.slices import COLUMNS_OF
from reweigh.audit.where import CUT_COLUMNS
from reweigh.batch import POSITIVE_TOLERANCE, Batch
from reweigh.dumps import formats
from reweigh.records import Violation
from reweigh.records.files import FilePart, read_part
from reweigh.records.table import check_values

BATCH_TOKENS = 1 << 19  # of one batch: enough that a call's own cost is nothing, little enough for memory to stay small


@dataclass(frozen=True)
class Job:
    """What is done with each part.

    Attributes:
        plan: what is asked of the records.
        keep_going: leave out tokens whose log-prob cannot be one, and count them; otherwise they are an error.
        batch_tokens: tokens that are worked on at a time.
        reader: name of the files' format; recognised by their content if None.
    """

    plan: Plan
    keep_going: bool = False
    batch_tokens: int = BATCH_TOKENS
    reader: str | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """The sums of some records, and how many rows and counted tokens they are of; `a + b` is both."""

    rows: int = 0
    tokens: int = 0
    sums: Sums = field(default_factory=Sums)

    def __add__(self, other: "Measured") -> "Measured":
        """Both."""
        return Measured(self.rows + other.rows, self.tokens + other.tokens, self.sums + other.sums)

    def to_bytes(self) -> bytes:
        """For another process."""
        return pack([self.rows, self.tokens, self.sums])

    @classmethod
    def from_bytes(cls, data: bytes) -> "Measured":
        """What `to_bytes` gave."""
        return cls(*unpack(data))


Engine = Callable[[Sequence[FilePart], Job], Generator[Measured, None, None]]
"""What runs `measure` on parts: gives the result of each, in the order of the parts, so that merging them in turn gives
the same to the last bit whatever ran them."""


def measure(part: FilePart, job: Job) -> Measured:
    """Read one part and add it up."""
    asked = (c for by in job.plan.by for c in COLUMNS_OF.get(by, ()))
    columns = tuple(dict.fromkeys((*CUT_COLUMNS, *WORST_COLUMNS, *asked)))
    found = Measured()
    for records in read_part(part, columns=columns, max_tokens=job.batch_tokens, formats=formats(job.reader)):
        if not job.keep_going:
            check_values(records.table, records.origin, partial(_refuse, records.path))
        batch, positive = _without_positive(records.batch)
        sums = Sums.of(batch, records, job.plan, positive)
        found += Measured(batch.layout.num_seqs, int(batch.layout.lengths.sum()), sums)
    return found


def _refuse(path: Path, violation: Violation) -> None:
    if violation.rule.startswith(("log_mu:", "log_pi:")):
        raise ValueError(
            f"{violation} `reweigh records validate {path}` lists all there are; "
            "`reweigh audit --keep-going` leaves such tokens out and counts them."
        )


def _without_positive(batch: Batch) -> tuple[Batch, int]:
    """Take tokens with a log-prob over 0 out of the mask; NaN and infinity are out already."""
    layout = batch.layout
    if all(x.numel() == 0 or x.numpy().max() <= POSITIVE_TOLERANCE for x in (batch.log_pi, batch.log_mu)):
        return batch, 0  # as a rule; a NaN is not under the bound, and so does not hide one over it
    wrong = layout.mask & ((batch.log_pi > POSITIVE_TOLERANCE) | (batch.log_mu > POSITIVE_TOLERANCE))
    count = int(wrong.sum())
    if count == 0:
        return batch, 0
    mask = layout.mask & ~wrong
    return replace(batch, layout=layout.masked(mask)), count
