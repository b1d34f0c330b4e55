"""What an estimator retains of each length: truncation loses long sequences, a geometric band short ones."""

from typing import TYPE_CHECKING

import numpy as np

from reweigh.lab.figures.compared import SEQUENCE_LEVEL, geo_rs_within
from reweigh.lab.figures.style import FONT, by_length, legend, name, new
from reweigh.lab.iid import Counted
from reweigh.lab.world import World, random_world

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reweigh.estimators import Estimator

LENGTHS = (1, 4, 16, 64, 256, 1024)
MOST = 10  # tokens of the sequences that end by themselves
SEEDS = range(20)
PI, MU = np.array([0.5, 0.5]), np.array([0.45, 0.55])
BANDS = ((0.8, 1.25), (0.98, 1.02))
"""That Geo-RS keeps, in each panel."""


def mass_figure() -> "Figure":
    """Left: sequences that end by themselves, mean of random worlds. Right: iid tokens at lengths of use."""
    figure, (left, right) = new(2, height=3.7)
    worlds = [random_world(3, MOST, memory=1, eos=2, gap=0.5, seed=seed) for seed in SEEDS]
    at = [Counted.of(PI, MU, length) for length in LENGTHS]
    geo_left, geo_right = (geo_rs_within(*band) for band in BANDS)
    for of_left, of_right in (*((e, e) for e in SEQUENCE_LEVEL), (geo_left, geo_right)):
        retained = np.mean([retained_mass(world, of_left.estimator) for world in worlds], axis=0)
        of_left.line.draw(left, range(1, MOST + 1), retained)
        of_right.line.draw(right, LENGTHS, [c.mean_weight(of_right.estimator) for c in at])
    for axes in (left, right):
        axes.set_ylim(-0.04, 1.34)
    name(
        left,
        "sequences that end by themselves",
        "length of the sequence (tokens)",
        "retained mass (1 = mass under pi)",
    )
    left.set_xticks(range(2, MOST + 1, 2))
    by_length(right, LENGTHS)
    rms = float(np.sqrt(((PI - MU) ** 2 / MU).sum()))
    name(right, f"iid tokens, ratios off by {100 * rms:.0f}% (rms)", "length T (tokens)", "")
    low, high = BANDS
    figure.suptitle(
        f"What is left of each length; Geo-RS keeps {low[0]} to {low[1]} (left), {high[0]} to {high[1]} (right)",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure


def retained_mass(world: World, estimator: "Estimator") -> list[float]:
    """`E_mu[w 1{length}] / pi(length)` for each length from 1: all 1 without truncation or rejection."""
    weight, every = estimator(world.batch).per_unit, world.sequences
    lengths = range(1, world.policies.length + 1)
    kept = (float(world.mu[world.sampled.lengths == t] @ weight[world.sampled.lengths == t]) for t in lengths)
    return [k / float(every.pi[every.lengths == t].sum()) for k, t in zip(kept, lengths, strict=True)]
