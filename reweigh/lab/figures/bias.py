"""Bias against length, of every estimator: the worst case over rewards beside the post's T squared; random worlds."""

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from reweigh import seq_tis
from reweigh.bounds import post_quadratic_bias
from reweigh.caps import Balance
from reweigh.lab.distances import ratio_law
from reweigh.lab.exact import exact
from reweigh.lab.figures.compared import (
    BALANCE,
    BY_POSITION,
    SEQ_MIS,
    SEQ_TIS,
    SNIS,
    TOKEN_LEVEL,
    Compared,
    geo_rs_within,
)
from reweigh.lab.figures.style import FONT, Line, by_length, legend, name, new
from reweigh.lab.iid import RARE, SMOOTH, Counted
from reweigh.lab.snis import exact_snis
from reweigh.lab.world import World, random_world

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTHS = (4, 8, 16, 32, 64, 128)
SHORT_LENGTHS = (2, 3, 4, 5, 6, 7)
BATCH = 64  # sequences, for the balance cap and for SNIS
SEEDS = range(12)
GEO_RS = geo_rs_within(0.98, 1.02)
ORDERLESS = (GEO_RS, *TOKEN_LEVEL, SEQ_TIS, SEQ_MIS)


def bias_figure() -> "Figure":
    """Exact; biases of 0 up to rounding are not drawn."""
    figure, (smooth, rare, random) = new(3, height=4.8)
    worst_cases(smooth, "shared gap", SMOOTH)
    worst_cases(rare, "rare token", RARE)
    smooth.set_ylabel("largest bias (reward per nat)", fontsize=FONT)
    random_worlds(random)
    figure.suptitle(
        "Left, middle: largest bias of any reward with |R| ≤ 1, iid tokens. Right: median bias of "
        f"{len(SEEDS)} Markov worlds.\nSeq-IS has none. Geo-RS keeps 0.98 to 1.02; balance and SNIS: N = {BATCH}",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure


def worst_cases(axes: "Axes", title: str, gap: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    """Of estimators that read one sequence, and no order of its tokens."""
    pi, mu = (np.array(p) / sum(p) for p in gap)
    at = [Counted.of(pi, mu, t) for t in LENGTHS]
    tv = float(np.abs(pi - mu).sum()) / 2
    post = [post_quadratic_bias(1.0, c.score_max, t, tv) for c, t in zip(at, LENGTHS, strict=True)]
    Line("the post's bound, 2 K T² Δ", "0.45", (0, (1, 2))).draw(axes, LENGTHS, post)
    Line("largest gradient", "0.45", (0, (6, 2))).draw(axes, LENGTHS, [c.gradient for c in at])
    for order, e in enumerate(ORDERLESS):
        _draw(axes, e.line, LENGTHS, [c.extremes(e.estimator, e.loss).bias for c in at], order)
    balanced = [c.extremes(seq_tis(Balance(n=BATCH).of_law(c.law))).bias for c in at]
    _draw(axes, BALANCE, LENGTHS, balanced, len(ORDERLESS))
    by_length(axes, LENGTHS)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1e3)
    name(axes, f"{title}, Δ = {tv:.2g}", "length T (tokens)", "")


def random_worlds(axes: "Axes") -> None:
    """Of all estimators, where the bias depends on the reward: two rewards of each seed, over the gradient."""
    kinds: dict[Line, Callable[[World], float]] = {e.line: _bias_of(e) for e in (*ORDERLESS, *BY_POSITION)}
    kinds[BALANCE] = lambda w: exact(w, seq_tis(Balance(n=BATCH).of_law(ratio_law(w)))).bias_norm
    kinds[SNIS] = lambda w: exact_snis(w, BATCH).bias_norm
    at = {t: [random_world(3, t, memory=1, gap=0.3, reward="uniform", seed=s) for s in SEEDS] for t in SHORT_LENGTHS}
    for order, (line, bias) in enumerate(kinds.items()):
        values = [median(bias(w) / float(w.gradient.norm()) for w in at[t]) for t in SHORT_LENGTHS]
        _draw(axes, line, SHORT_LENGTHS, values, order)
    axes.set_yscale("log")
    axes.set_xticks(SHORT_LENGTHS)
    name(axes, "random rewards", "length T (tokens)", "|bias| / |g| (no unit)")


def _bias_of(e: Compared) -> Callable[[World], float]:
    return lambda world: exact(world, e.estimator, loss=e.loss).bias_norm


def _draw(axes: "Axes", line: Line, x: tuple[int, ...], bias: list[float], order: int) -> None:
    size = max(3.5, 8 - 0.9 * order)  # what coincides stays visible inside what was drawn before
    line.draw(axes, x, [b if b > 1e-9 else np.nan for b in bias], markersize=size, markerfacecolor="white")
