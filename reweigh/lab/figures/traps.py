"""The two traps by length: in one, token weights point the wrong way; in the other, sequence weights are noise."""

from typing import TYPE_CHECKING

from reweigh import geo_rs, naive, seq_is, seq_mis, seq_tis, token_is
from reweigh.caps import balance_cap
from reweigh.lab.distances import ratio_law
from reweigh.lab.exact import Reward, exact
from reweigh.lab.figures.style import (
    FONT,
    GEO_RS,
    NAIVE,
    SEQ_IS,
    SEQ_MIS,
    SEQ_TIS,
    SEQ_TIS_BALANCE,
    TOKEN_IS,
    legend,
    name,
    new,
)
from reweigh.lab.traps import trap_a, trap_b

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = tuple(range(10, 201, 10))
BATCH = 64  # sequences
LINES = (
    (NAIVE, naive()),
    (TOKEN_IS, token_is()),
    (SEQ_IS, seq_is()),
    (SEQ_TIS, seq_tis(2.0)),
    (SEQ_MIS, seq_mis(high=2.0)),
    (GEO_RS, geo_rs()),
)


def trap_figure() -> "Figure":
    """Left: the angle between the mean of an estimator and the gradient. Right: Gamma."""
    figure, (left, right) = new(2, height=4.0)
    value = Reward("value")
    a, b = [trap_a(t) for t in LENGTHS], [trap_b(t) for t in LENGTHS]
    for line, estimator in LINES:
        line.draw(left, LENGTHS, [exact(world, estimator, value).cosine for world in a], markevery=2)
        gamma = [exact(world, estimator, value).efficiency(BATCH) for world in b]
        line.draw(right, LENGTHS, gamma, markevery=2)
    gamma = [exact(w, seq_tis(balance_cap(ratio_law(w), BATCH)), value).efficiency(BATCH) for w in b]
    SEQ_TIS_BALANCE.draw(right, LENGTHS, gamma, markevery=2)
    cosine = [exact(w, seq_tis(balance_cap(ratio_law(w), BATCH)), value).cosine for w in a]
    SEQ_TIS_BALANCE.draw(left, LENGTHS, cosine, markevery=2)
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set_ylim(-1.06, 1.06)
    right.set_ylim(-0.02, 1.04)
    name(left, "A: small gaps change the best first step", "length T (tokens)", "cos(mean, gradient)")
    name(right, "B: only the first token matters", "length T (tokens)", f"Γ at N = {BATCH} (no unit)")
    figure.suptitle(
        "Two traps: neither level is right everywhere; Geo-RS keeps 0.999 to 1.001", fontsize=FONT, x=0.02, ha="left"
    )
    legend(figure, 4)
    return figure
