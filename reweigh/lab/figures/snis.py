"""Self-normalised importance sampling: how few of a batch's sequences count, and what that does to its error."""

from typing import TYPE_CHECKING

from reweigh.lab.distances import ratio_law
from reweigh.lab.exact import Reward, exact
from reweigh.lab.figures.compared import SEQ_IS, SNIS
from reweigh.lab.figures.style import FONT, Line, by_length, legend, name, new
from reweigh.lab.snis import exact_snis
from reweigh.lab.world import random_world

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = tuple(4**k for k in range(8))
GAPS = (
    (0.25, "#000000", "-", "o"),
    (0.5, "#0072B2", "--", "s"),
    (1.0, "#009E73", "-.", "^"),
    (1.5, "#D55E00", ":", "D"),
)


def snis_figure() -> "Figure":
    """Left: the effective number of sequences, exactly. Right: root mean square error in the worst of these worlds."""
    figure, (left, right) = new(2, height=3.9)
    Line("all N", "0.6", "-").draw(left, BATCHES, BATCHES)
    worlds = [random_world(3, 6, memory=1, gap=gap, reward="binary", seed=3) for gap, *_ in GAPS]
    found = [[exact_snis(world, n, advantage=Reward("value")) for n in BATCHES] for world in worlds]
    for (_, colour, dash, marker), world, at in zip(GAPS, worlds, found, strict=True):
        m2 = ratio_law(world).m2
        Line(f"1 + χ² = {m2:,.3g}", colour, dash, marker).draw(left, BATCHES, [1 / x.inverse_ess for x in at])
    by_length(left, BATCHES)
    left.set_yscale("log")
    name(left, "effective number of sequences", "batch size N (sequences)", "1 / E[Σw² / (Σw)²] (sequences)")
    world, at, m2 = worlds[-1], found[-1], ratio_law(worlds[-1]).m2
    scale = float(world.gradient.square().sum())
    unnormalised = exact(world, SEQ_IS.estimator, Reward("value"))
    SNIS.draw(right, BATCHES, [(x.mse / scale) ** 0.5 for x in at])
    first = [(float(x.delta_bias.square().sum()) + x.delta_trace_cov) / scale for x in at]
    Line("SNIS, first order in 1/N", "0.75", "-").draw(right, BATCHES, [v**0.5 for v in first], linewidth=5)
    SEQ_IS.line.draw(right, BATCHES, [(unnormalised.mse(n) / scale) ** 0.5 for n in BATCHES])
    by_length(right, BATCHES)
    right.set_yscale("log")
    name(right, f"error where 1 + χ² = {m2:,.3g}", "batch size N (sequences)", "root mean square error / |g| (no unit)")
    figure.suptitle("Self-normalised weights, Markov worlds, V = 3, T = 6", fontsize=FONT, x=0.02, ha="left")
    legend(figure, 4)
    return figure
