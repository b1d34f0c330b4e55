"""Counting each response once, however many files have it: keys of what was counted, and a part without its copies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reweigh.records.schema import Violation
from reweigh.scan.engines import Task
from reweigh.scan.measure import Job, Measured, measure

TWICE = "sequence_id: of two responses"  # the rule of rows whose name another response has


@dataclass
class _Sorted:
    """A set of integers that grows by many at a time, in 8 bytes each: sorted runs, each twice as long as the next."""

    runs: list["np.ndarray[Any, Any]"] = field(default_factory=list["np.ndarray[Any, Any]"])

    def add(self, keys: "np.ndarray[Any, Any]") -> None:
        """Take in more."""
        run = np.sort(keys)
        while self.runs and len(self.runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self.runs.pop(), run]))
        self.runs.append(run)

    def has(self, keys: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Tell which of these are in it."""
        found = np.zeros(len(keys), bool)
        for run in self.runs:
            if len(run):
                at = np.minimum(np.searchsorted(run, keys), len(run) - 1)
                found |= run[at] == keys
        return found


@dataclass
class Seen:
    """Responses that were counted: 16 bytes each.

    Attributes:
        names: keys of their names.
        rows: keys of their names and numbers.
    """

    names: _Sorted = field(default_factory=_Sorted)
    rows: _Sorted = field(default_factory=_Sorted)

    @classmethod
    def of(cls, keys: "np.ndarray[Any, Any]") -> "Seen":
        """Begin with what was counted before."""
        seen = cls()
        seen.add(keys)
        return seen

    def add(self, keys: "np.ndarray[Any, Any]") -> None:
        """Take in more."""
        self.names.add(keys[:, 0])
        self.rows.add(keys[:, 1])


def once(found: Measured, seen: Seen, task: Task, job: Job) -> Measured:
    """Take the sums of a part without what was counted in an earlier one, and take in what it counts.

    If there is none, as a rule, these are the sums that are given; else the part is read again.

    Args:
        found: the sums of the part.
        seen: what was counted; more of it afterwards.
        task: the part.
        job: what is asked of it.
    """
    copies = seen.rows.has(found.keys[:, 1])
    if copies.any():
        keys: Sequence[int] = found.keys[copies, 1].tolist()
        found = measure(task.part, job, task.before, keys)
    used = _used_before(found.keys[:, 0], seen)
    seen.add(found.keys)
    if not used:
        return found
    place = f"{task.part.path}"
    detail = "another response was read under the same name"
    hint = "both are counted; add the step, the rank or the run to the name, so that a copy can be told."
    return found + Measured(notes={TWICE: Violation(TWICE, place, detail, hint, used, "responses")})


def _used_before(names: "np.ndarray[Any, Any]", seen: Seen) -> int:
    again = int(seen.names.has(names).sum())
    return again + len(names) - len(np.unique(names))
