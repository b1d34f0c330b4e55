"""A quantity as far as the data can tell it: a value with its interval, or the reason why there is none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A quantity as far as the data can tell it.

    Attributes:
        value: the estimate; None if refused.
        low: lower end of its 95% interval; None if it has none.
        high: upper end.
        sample: the plug-in figure of this very sample, also when the value is refused: a fact about these units, and no
            estimate of anything beyond them.
        unit: what it is measured in.
        meaning: one sentence.
        refused: why there is no value; empty if there is one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    sample: float | None = None
    unit: str = ""
    meaning: str = ""
    refused: str = ""
