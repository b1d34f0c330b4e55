"""Pictures as coordinates: what a small SVG template needs to draw bars, lines, bands and marked values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Scale:
    """A linear map from values to SVG units; values outside land on the ends."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Where a value is."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(part, 0.0), 1.0) * (self.stop - self.start), 1)


@dataclass(frozen=True)
class Rect:
    """A bar, and what to say of it to who points at it."""

    x: float
    y: float
    width: float
    height: float
    tip: str


@dataclass(frozen=True)
class Mark:
    """A value marked across the picture, or a tick beside it.

    Attributes:
        at: where, in SVG units.
        label: its text.
        shift: of the label downwards, so that neighbours do not meet.
        anchor: which end of the label is there.
    """

    at: float
    label: str
    shift: float = 0.0
    anchor: Anchor = "middle"


@dataclass(frozen=True)
class Frame:
    """A picture's size, and the area of it that is drawn on, in SVG units."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float


WIDE = Frame(720.0, 290.0, 78.0, 708.0, 14.0, 240.0)
SMALL = Frame(236.0, 150.0, 34.0, 230.0, 8.0, 128.0)


@dataclass(frozen=True)
class Plot:
    """One picture, ready to be drawn.

    Attributes:
        title: what it shows.
        text: the same in words, with the numbers that matter, for who cannot see it.
        x_label: what the horizontal axis is, with its unit.
        y_label: the vertical one.
        frame: its size.
        x_ticks: along the bottom.
        y_ticks: along the left.
        bars: in SVG units.
        line: points "x,y x,y ...".
        band: the same around an area.
        dots: centres of points on the line, with what to say of them.
        marks: vertical lines.
        level: a horizontal line, None if there is none.
    """

    title: str
    text: str
    x_label: str
    y_label: str
    frame: Frame = WIDE
    x_ticks: tuple[Mark, ...] = ()
    y_ticks: tuple[Mark, ...] = ()
    bars: tuple[Rect, ...] = ()
    line: str = ""
    band: str = ""
    dots: tuple[Rect, ...] = ()
    marks: tuple[Mark, ...] = ()
    level: float | None = None


def points(pairs: Sequence[tuple[float, float]]) -> str:
    """As SVG writes them."""
    return " ".join(f"{x},{y}" for x, y in pairs)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values in [low, high], about `count` of them, at steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> ticks(0.0, 0.93)
        [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(i * step, decimals) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]
