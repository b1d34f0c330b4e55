"""How the figures look: lines that differ in dash and marker as well as in colour, and legends beside the axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

WIDTH = 7.2  # inches, of every figure
FONT = 9.0  # points: legible where a figure fills a page's width
DPI = 200  # of a PNG
COLOURS = 192  # of a PNG: every line keeps its own, at half of the size


@dataclass(frozen=True)
class Line:
    """How one thing is drawn in every figure.

    Attributes:
        label: its name.
        colour: of the eight of Okabe and Ito (2008), which differ for all eyes.
        dash: line style.
        marker: at every point, or every few.
    """

    label: str
    colour: str
    dash: Any = "-"
    marker: str = ""

    def draw(self, axes: "Axes", x: "ArrayLike", y: "ArrayLike", **more: Any) -> None:
        """Plot it."""
        style: dict[str, Any] = {"linewidth": 1.4, "markersize": 4.0, **more}
        axes.plot(x, y, color=self.colour, linestyle=self.dash, marker=self.marker, label=self.label, **style)


def new(columns: int, height: float, heights: Sequence[float] = (1,)) -> "tuple[Figure, list[Axes]]":
    """A figure with some axes side by side, row by row.

    Args:
        columns: axes in a row.
        height: inches.
        heights: of the rows, relative to each other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=list(heights))
    return figure, [figure.add_subplot(grid[r, c]) for r in range(len(heights)) for c in range(columns)]


def name(axes: "Axes", title: str, x: str, y: str) -> None:
    """Title and labels."""
    axes.set_title(title, fontsize=FONT, loc="left")
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_ylabel(y, fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.6)


def by_length(axes: "Axes", lengths: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are these lengths, or every other one of many, and no others."""
    axes.set_xscale("log", base=2)
    some = lengths if len(lengths) < 7 else lengths[::2]
    axes.set_xticks(some, [f"{v:,g}" for v in some])


def legend(figure: "Figure", columns: int = 4) -> None:
    """One legend for all axes, under them."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label:
                found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=columns,
        fontsize=FONT - 1,
        frameon=False,
        handlelength=3.2,
    )


def save(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Write it as SVG and as PNG; their paths."""
    from PIL import Image  # matplotlib needs it too

    svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
    figure.savefig(svg, metadata={"Date": None})
    figure.savefig(png, dpi=DPI)
    with Image.open(png) as image:
        image.convert("RGB").quantize(COLOURS).save(png, optimize=True)
    return svg, png
