"""Numbers of a table, each with what to say of it to who points at it or moves to it with the keyboard."""

import math
from dataclasses import dataclass

from reweigh.audit.labels import cells
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import two


@dataclass(frozen=True)
class Cell:
    """A text, and its tip; none if that is empty."""

    text: str
    tip: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: heading, rows whose first cell heads them; `below` is what to say under it."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    below: tuple[str, ...] = ()


def tip(number: Number, n: int, unit: str, shown: str = "") -> str:
    """`0.0016 nats`, its 95% interval, what it was computed from, and what it means, in lines."""
    if number.value is None:
        sample = f"; {two(number.sample)} in this sample" if number.sample is not None else ""
        first = f"refused: {number.refused or 'too few units, or all alike'}{sample}"
    else:
        first = f"{shown or two(number.value)} {'' if '%' in shown else number.unit}".strip()
    return "\n".join(x for x in (first, _ends(number), f"n = {n:,} {unit}{'' if n == 1 else 's'}", number.meaning) if x)


def _ends(number: Number) -> str:
    low, high = number.low, number.high
    if number.value is None:
        return ""
    if low is None and high is None:
        return "no interval: a fact about these units"
    if low is not None and high is not None and not (math.isfinite(low) and math.isfinite(high)):
        return "no interval: fewer than two prompts"
    if high is None or low is None:
        return "a bound at 95%"
    return f"95% interval [{two(low)}, {two(high)}]"


def pair(name: str, number: Number, n: int, unit: str) -> tuple[Cell, Cell]:
    """Value, with its tip, and interval."""
    value, ends = cells(name, number)
    return Cell(value, tip(number, n, unit, value)), Cell(ends)
