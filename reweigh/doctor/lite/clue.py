"""What a test of a history says: causes with a confidence and evidence, and causes that it excludes."""

from collections.abc import Iterable
from dataclasses import dataclass

from reweigh.doctor.causes import CauseId
from reweigh.doctor.diagnosis import Evidence
from reweigh.doctor.lite.serial import Estimate


@dataclass(frozen=True)
class Clue:
    """One cause with what speaks for it.

    Attributes:
        id: the cause.
        confidence: 0 to 1; scalars rarely prove, so that none is over 0.8.
        evidence: the numbers.
    """

    id: CauseId
    confidence: float
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Answer:
    """What one test says.

    Attributes:
        clues: for causes.
        excluded: causes that it rules out.
    """

    clues: tuple[Clue, ...] = ()
    excluded: frozenset[CauseId] = frozenset()


def clues(evidence: Iterable[Evidence], **confidence: float) -> tuple[Clue, ...]:
    """Several causes for one set of numbers."""
    shown = tuple(evidence)
    return tuple(Clue(cause, c, shown) for cause, c in confidence.items())  # pyright: ignore[reportArgumentType]


def shown(name: str, estimate: Estimate, meaning: str) -> Evidence:
    """An estimate over steps as evidence."""
    low, high = estimate.ends
    return Evidence(name, estimate.value, f"{meaning} (n counts steps)", low, high, estimate.n)
