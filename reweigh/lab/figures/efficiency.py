"""Gamma, the share of the progress that a step can promise, against the batch size: the median of random worlds."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from reweigh import geo_rs, naive, prefix_tis, seq_is, seq_mis, seq_tis, token_is, token_tis
from reweigh.caps import balance_cap
from reweigh.lab.advantages import Advantage
from reweigh.lab.distances import ratio_law
from reweigh.lab.exact import Exact, PPOClip, Reward, exact
from reweigh.lab.figures.style import (
    CRITIC,
    FONT,
    GEO_RS,
    NAIVE,
    PPO,
    SEQ_IS,
    SEQ_MIS,
    SEQ_TIS,
    SEQ_TIS_BALANCE,
    SNIS,
    TOKEN_IS,
    TOKEN_TIS,
    Line,
    by_length,
    legend,
    name,
    new,
)
from reweigh.lab.snis import exact_snis
from reweigh.lab.world import World, random_world

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = tuple(4**k for k in range(8))
SEEDS = range(12)
GAPS = (0.25, 0.7, 1.2)
VALUE = Reward("value")


def efficiency_figure() -> "Figure":
    """Binary rewards less their mean under mu, as a group's mean gives them; one panel a size of the gap."""
    figure, panels = new(len(GAPS), height=4.3)
    for axes, gap in zip(panels, GAPS, strict=True):
        worlds = [random_world(3, 6, memory=1, gap=gap, reward="binary", seed=seed) for seed in SEEDS]
        gamma: dict[Line, list[list[float]]] = {}
        for world in worlds:
            for line, of in efficiencies(world).items():
                gamma.setdefault(line, []).append([of(n) for n in BATCHES])
        for line, values in gamma.items():
            line.draw(axes, BATCHES, np.median(values, axis=0))
        by_length(axes, BATCHES)
        axes.set_ylim(-0.02, 1.02)
        m2 = float(np.median([ratio_law(world).m2 for world in worlds]))
        name(axes, f"1 + χ² = {m2:,.3g}", "batch size N (sequences)", "Γ (no unit)" if axes is panels[0] else "")
    figure.suptitle(
        f"Efficiency Γ, median of {len(SEEDS)} Markov worlds, V = 3, T = 6", fontsize=FONT, x=0.02, ha="left"
    )
    legend(figure, 4)
    return figure


def efficiencies(world: World) -> dict[Line, Callable[[int], float]]:
    """Gamma of each estimator as a function of N."""
    law = ratio_law(world)
    fixed: dict[Line, Exact] = {
        CRITIC: exact(world, prefix_tis(2.0), Advantage("pi")),
        NAIVE: exact(world, naive(), VALUE),
        TOKEN_IS: exact(world, token_is(), VALUE),
        TOKEN_TIS: exact(world, token_tis(2.0), VALUE),
        PPO: exact(world, naive(), VALUE, loss=PPOClip()),
        SEQ_IS: exact(world, seq_is(), VALUE),
        SEQ_TIS: exact(world, seq_tis(2.0), VALUE),
        SEQ_MIS: exact(world, seq_mis(high=2.0), VALUE),
        GEO_RS: exact(world, geo_rs(0.8, 1.25), VALUE),
    }
    return {
        **{line: of.efficiency for line, of in fixed.items()},
        SEQ_TIS_BALANCE: lambda n: exact(world, seq_tis(balance_cap(law, n)), VALUE).efficiency(n),
        SNIS: lambda n: exact_snis(world, n, advantage=VALUE).efficiency,
    }
