"""Figures of what the lab computes, for a paper: labelled, readable in grey, as SVG and PNG."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from reweigh.lab.figures.bias import bias_figure
from reweigh.lab.figures.caps import cap_figure
from reweigh.lab.figures.efficiency import efficiency_figure
from reweigh.lab.figures.growth import growth_figure
from reweigh.lab.figures.mass import mass_figure
from reweigh.lab.figures.snis import snis_figure
from reweigh.lab.figures.style import save
from reweigh.lab.figures.traps import trap_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: "dict[str, Callable[[], Figure]]" = {
    "mse-of-cap": cap_figure,
    "second-moment": growth_figure,
    "bias": bias_figure,
    "snis": snis_figure,
    "retained-mass": mass_figure,
    "efficiency": efficiency_figure,
    "traps": trap_figure,
}
"""By file name."""


def draw_figures(out: Path, names: Sequence[str] = (), count: Callable[[int], None] = lambda _: None) -> list[Path]:
    """Compute and write figures, as `NAME.svg` and `NAME.png`.

    Args:
        out: a directory; made if it is not there.
        names: of `FIGURES`; all if empty.
        count: told of every figure.

    Returns:
        What was written.

    Raises:
        ValueError: on a name that is no figure's.
        ModuleNotFoundError: without matplotlib, of the extra `lab`.
    """
    if unknown := [n for n in names if n not in FIGURES]:
        raise ValueError(f"lab figures: there is no figure {unknown[0]!r}.\nhint: one of {', '.join(FIGURES)}.")
    import_module("matplotlib.figure")  # so that without it nothing is computed, and no directory made

    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for figure in names or FIGURES:
        written += save(FIGURES[figure](), out / figure)
        count(1)
    return written
