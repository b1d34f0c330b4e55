"""The two traps by length: in one, token weights point the wrong way; in the other, sequence weights are noise."""

from typing import TYPE_CHECKING

from reweigh import seq_tis
from reweigh.caps import Balance
from reweigh.lab.distances import ratio_law
from reweigh.lab.exact import Exact, Reward, exact
from reweigh.lab.figures.compared import BALANCE, NAIVE, SEQUENCE_LEVEL, TOKEN_IS, geo_rs_within
from reweigh.lab.figures.style import FONT, Line, legend, name, new
from reweigh.lab.traps import trap_a, trap_b
from reweigh.lab.world import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = tuple(range(10, 201, 10))
BATCH = 64  # sequences
BAND = (0.999, 1.001)


def trap_figure() -> "Figure":
    """Left: the angle between the mean of an estimator and the gradient. Right: Gamma."""
    figure, (left, right) = new(2, height=4.0)
    in_a, in_b = (_by_length([make(t) for t in LENGTHS]) for make in (trap_a, trap_b))
    for line in in_a:
        line.draw(left, LENGTHS, [found.cosine for found in in_a[line]], markevery=2)
        line.draw(right, LENGTHS, [found.efficiency(BATCH) for found in in_b[line]], markevery=2)
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set_ylim(-1.06, 1.06)
    right.set_ylim(-0.02, 1.04)
    name(left, "A: small gaps change the best first step", "length T (tokens)", "cos(mean, gradient)")
    name(right, "B: only the first token matters", "length T (tokens)", f"Γ at N = {BATCH} (no unit)")
    figure.suptitle(
        f"Two traps: neither level is right everywhere; Geo-RS keeps {BAND[0]} to {BAND[1]}",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure


def _by_length(worlds: list[World]) -> dict[Line, list[Exact]]:
    """Each estimator in each world, with a baseline."""
    value = Reward("value")
    found = {
        e.line: [exact(w, e.estimator, value) for w in worlds]
        for e in (NAIVE, TOKEN_IS, *SEQUENCE_LEVEL, geo_rs_within(*BAND))
    }
    return {**found, BALANCE: [exact(w, seq_tis(Balance(n=BATCH).of_law(ratio_law(w))), value) for w in worlds]}
