"""A fault: a cause of mismatch that can be committed, as a change of what engine, log and trainer do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from reweigh.doctor.diagnosis import CauseId
from reweigh.doctor.inject.specs import Specs
from reweigh.doctor.inject.worlds import WorldName

Level = Literal["weak", "medium", "strong"]
"""Names of the strengths at which a fault is committed."""
LEVELS: tuple[Level, ...] = ("weak", "medium", "strong")
"""Them all, the weakest first."""
DENSE: tuple[WorldName, ...] = ("tiny", "smollm2")
Change = Callable[[Specs, float], Specs]
Fields = Callable[[float], dict[str, Any]]


@dataclass(frozen=True)
class Fault:
    """One way of committing a cause.

    Attributes:
        id: the cause.
        variant: which way.
        what: it does, in a sentence.
        unit: what a strength means.
        weak, medium, strong: strengths; medium is what is met in practice.
        change: of the specs, given a strength.
        worlds: in which it can be committed.
    """

    id: CauseId
    variant: str
    what: str
    unit: str
    weak: float
    medium: float
    strong: float
    change: Change
    worlds: tuple[WorldName, ...] = DENSE

    @property
    def name(self) -> str:
        """Cause and variant: "raw_logprobs-cooler"."""
        return f"{self.id}-{self.variant}"

    def strength(self, level: Level) -> float:
        """The strength of a level."""
        return {"weak": self.weak, "medium": self.medium, "strong": self.strong}[level]


def engine(fields: Fields) -> Change:
    """A change of the engine: the fields that a strength gives."""
    return lambda specs, strength: replace(specs, engine=replace(specs.engine, **fields(strength)))


def log(fields: Fields) -> Change:
    """A change of the log."""
    return lambda specs, strength: replace(specs, log=replace(specs.log, **fields(strength)))


def trainer(fields: Fields) -> Change:
    """A change of the trainer."""
    return lambda specs, strength: replace(specs, trainer=replace(specs.trainer, **fields(strength)))


def training(fields: Fields) -> Change:
    """A change of what lies between versions."""
    return lambda specs, strength: replace(specs, **fields(strength))


def both(first: Change, second: Change) -> Change:
    """One change after the other, of one strength."""
    return lambda specs, strength: second(first(specs, strength), strength)
