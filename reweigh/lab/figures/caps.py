"""Error against the cap: a U whose bottom moves with the batch size, and where every rule for the cap lands."""

from typing import TYPE_CHECKING

import numpy as np

from reweigh import seq_mis, seq_tis
from reweigh.bounds import tis_mse
from reweigh.caps import Balance, Cubic, Post, PostBatch, SqrtN, Tradeoff, mis_balance_cap
from reweigh.lab.distances import norms, ratio_law
from reweigh.lab.exact import Reward, exact
from reweigh.lab.figures.compared import SEQ_MIS, SEQ_TIS
from reweigh.lab.figures.style import FONT, Line, legend, name, new
from reweigh.lab.world import random_world
from reweigh.planner import FiniteRatio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = (16, 64, 1024)
CAPS = np.geomspace(0.25, 512, 45)


def cap_figure() -> "Figure":
    """Exact error of Seq-TIS and Seq-MIS in one world, the worst case over all rewards, and the rules' caps below."""
    world = random_world(3, 7, memory=1, gap=1.0, reward="binary", seed=0)
    law, scale = ratio_law(world), float(world.gradient.square().sum())
    worst = norms(world).integrand
    tis = [exact(world, seq_tis(c), Reward("value")) for c in CAPS]
    mis = [exact(world, seq_mis(high=c), Reward("value")) for c in CAPS]
    figure, panels = new(len(BATCHES), height=5.1, heights=(3, 2))
    for i, n in enumerate(BATCHES):
        axes, strip = panels[i], panels[len(BATCHES) + i]
        error, masked = ([e.mse(n) / scale for e in at] for at in (tis, mis))
        Line("MSE of Seq-TIS", SEQ_TIS.line.colour, "-").draw(axes, CAPS, error)
        Line("MSE of Seq-MIS", SEQ_MIS.line.colour, "-.").draw(axes, CAPS, masked)
        bound = [tis_mse(worst, law.excess(c), law.min2(c), n) / scale for c in CAPS]
        Line("worst case of Seq-TIS over rewards", "0.45", ":").draw(axes, CAPS, bound)
        rules = {"least MSE here": float(CAPS[np.argmin(error)]), **rule_caps(law, n)}
        for row, (rule, cap) in enumerate(rules.items()):
            colour = SEQ_MIS.line.colour if "MIS" in rule else SEQ_TIS.line.colour
            marker = "*" if "least" in rule else "<" if "MIS" in rule else "o"
            Line("", colour, "none", marker).draw(strip, [cap], [row], markersize=8 if marker == "*" else 5)
            axes.axvline(cap, color="0.8", linewidth=0.6, zorder=0)
        for panel in (axes, strip):
            panel.set_xscale("log")
            panel.set_xlim(CAPS[0], CAPS[-1])
        axes.set_yscale("log")
        name(axes, f"N = {n:,}", "", "MSE / |g|² (no unit)" if i == 0 else "")
        name(strip, "", "cap C (ratio pi/mu)", "")
        axes.tick_params(labelbottom=False)
        strip.set_yticks(range(len(rules)), list(rules) if i == 0 else [""] * len(rules))
        strip.set_ylim(len(rules) - 0.4, -0.6)
    title = f"Markov world, V = 3, T = 7, 1 + χ² = {law.m2:.1f}: error of a batch's gradient, and what each rule picks"
    figure.suptitle(title, fontsize=FONT, x=0.02, ha="left")
    legend(figure, 3)
    return figure


def rule_caps(law: FiniteRatio, n: int) -> dict[str, float]:
    """The cap of every rule, of truncation first."""
    return {
        "post": Post().of_chi2(law.chi2),
        "post, for N": PostBatch(n=n).of_chi2(law.chi2),
        "cubic": Cubic(n=n).of_chi2(law.chi2),
        "√N": SqrtN(n=n).of_law(law),
        "balance": Balance(n=n).of_law(law),
        "tradeoff": Tradeoff(n=n).of_law(law),
        "balance of MIS": mis_balance_cap(law, n),
    }
