"""Gamma, the share of the progress that a step can promise, against the batch size: the median of random worlds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from reweigh import seq_tis
from reweigh.caps import Balance, Tradeoff
from reweigh.lab.advantages import Advantage
from reweigh.lab.distances import ratio_law
from reweigh.lab.exact import Reward, exact
from reweigh.lab.figures.compared import (
    BALANCE,
    BY_POSITION,
    NAIVE,
    PREFIX_TIS,
    SEQUENCE_LEVEL,
    SNIS,
    TOKEN_LEVEL,
    TRADEOFF,
    geo_rs_within,
)
from reweigh.lab.figures.style import FONT, Line, by_length, legend, name, new
from reweigh.lab.snis import exact_snis
from reweigh.lab.world import World, random_world

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Efficiency = Callable[[int], float]
BATCHES = tuple(4**k for k in range(8))
SEEDS = range(12)
GAPS = (0.25, 0.7, 1.2)
VALUE = Reward("value")
CRITIC = replace(PREFIX_TIS.line, label="Prefix-TIS and a critic of pi", dash="-", marker="H")
BAND = (0.8, 1.25)


def efficiency_figure() -> "Figure":
    """Binary rewards less their mean under mu, as a group's mean gives them; a column for each size of the gap."""
    figure, panels = new(len(GAPS), height=6.6, heights=(1, 1))
    for i, gap in enumerate(GAPS):
        worlds = [random_world(3, 6, memory=1, gap=gap, reward="binary", seed=seed) for seed in SEEDS]
        m2 = float(np.median([ratio_law(world).m2 for world in worlds]))
        for row, of in enumerate((by_token, by_sequence)):
            axes = panels[row * len(GAPS) + i]
            gamma: dict[Line, list[list[float]]] = {}
            for world in worlds:
                for line, efficiency in of(world).items():
                    gamma.setdefault(line, []).append([efficiency(n) for n in BATCHES])
            for line, values in gamma.items():
                line.draw(axes, BATCHES, np.median(values, axis=0))
            by_length(axes, BATCHES)
            axes.set_ylim(-0.02, 1.02)
            label = ("by token: Γ (no unit)", "by sequence: Γ (no unit)")[row]
            name(
                axes,
                "" if row else f"1 + χ² = {m2:,.3g}",
                "batch size N (sequences)" if row else "",
                label if i == 0 else "",
            )
    figure.suptitle(
        f"Efficiency Γ, median of {len(SEEDS)} Markov worlds, V = 3, T = 6, binary rewards less their mean\n"
        f"Geo-RS keeps {BAND[0]} to {BAND[1]}; balance and tradeoff are given the law of the ratio",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure


def by_token(world: World) -> Mapping[Line, Efficiency]:
    """Gamma, as a function of N, of what weighs tokens one by one or by their position."""
    return {
        CRITIC: exact(world, PREFIX_TIS.estimator, Advantage("pi")).efficiency,
        **{e.line: exact(world, e.estimator, VALUE, loss=e.loss).efficiency for e in (*TOKEN_LEVEL, *BY_POSITION)},
    }


def by_sequence(world: World) -> Mapping[Line, Efficiency]:
    """Gamma, as a function of N, of what has one weight a sequence; rules for the cap are given the exact law."""
    law = ratio_law(world)
    fixed = (NAIVE, *SEQUENCE_LEVEL, geo_rs_within(*BAND))
    return {
        **{e.line: exact(world, e.estimator, VALUE).efficiency for e in fixed},
        BALANCE: lambda n: exact(world, seq_tis(Balance(n=n).of_law(law)), VALUE).efficiency(n),
        TRADEOFF: lambda n: exact(world, seq_tis(Tradeoff(n=n).of_law(law)), VALUE).efficiency(n),
        SNIS: lambda n: exact_snis(world, n, advantage=VALUE).efficiency,
    }
