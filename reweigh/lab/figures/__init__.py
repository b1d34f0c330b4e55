"""Figures of what the lab computes, for a paper: labelled, readable in grey, as SVG and PNG."""

from collections.abc import Callable, Iterable, Iterator
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


def select_figures(names: Iterable[str] = ()) -> tuple[str, ...]:
    """The figures of these names; all if none is given.

    Raises:
        ValueError: on a name that is no figure's.
    """
    wanted = tuple(names)
    if unknown := [n for n in wanted if n not in FIGURES]:
        raise ValueError(f"lab figures: there is no figure {unknown[0]!r}.\nhint: one of {', '.join(FIGURES)}.")
    return wanted or tuple(FIGURES)


def draw_figures(out: Path, names: Iterable[str] = ()) -> Iterator[tuple[Path, Path]]:
    """Compute and write figures, as `NAME.svg` and `NAME.png`; their paths, as each is drawn.

    Args:
        out: a directory; made if it is not there.
        names: of `FIGURES`; all if empty.

    Raises:
        ValueError: on a name that is no figure's.
        ModuleNotFoundError: without matplotlib, of the extra `lab`.
    """
    chosen = select_figures(names)
    import_module("matplotlib.figure")  # so that without it nothing is computed, and no directory made

    out.mkdir(parents=True, exist_ok=True)
    return (save(FIGURES[figure](), out / figure) for figure in chosen)
