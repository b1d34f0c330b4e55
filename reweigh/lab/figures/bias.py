"""Worst-case bias against length, of every estimator that reads one sequence, beside the post's T squared."""

from typing import TYPE_CHECKING

import numpy as np

from reweigh import geo_rs, naive, seq_mis, seq_tis, token_is, token_tis
from reweigh.bounds import post_quadratic_bias
from reweigh.caps import balance_cap
from reweigh.lab.exact import PPOClip, reinforce
from reweigh.lab.figures.style import (
    FONT,
    GEO_RS,
    NAIVE,
    PPO,
    SEQ_MIS,
    SEQ_TIS,
    SEQ_TIS_BALANCE,
    TOKEN_IS,
    TOKEN_TIS,
    Line,
    by_length,
    legend,
    name,
    new,
)
from reweigh.lab.iid import Counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = (4, 8, 16, 32, 64, 128)
BATCH = 64  # sequences, for the balance cap
GAPS = (
    ("every ratio a little off", (0.5, 0.3, 0.2), (0.49, 0.3, 0.21)),
    ("one token that mu hardly samples", (0.549, 0.45, 0.001), (0.5495, 0.45049, 0.00001)),
)


def bias_figure() -> "Figure":
    """Exact, for iid tokens; biases of 0 up to rounding are not drawn."""
    figure, panels = new(2, height=4.2)
    for axes, (title, pi, mu) in zip(panels, GAPS, strict=True):
        p, q = (np.array(x) / sum(x) for x in (pi, mu))
        at = [Counted.of(p, q, t) for t in LENGTHS]
        tv = float(np.abs(p - q).sum()) / 2
        post = [post_quadratic_bias(1.0, c.score_max, t, tv) for c, t in zip(at, LENGTHS, strict=True)]
        Line("the post's bound, 2 K T² Δ", "0.45", (0, (1, 2))).draw(axes, LENGTHS, post)
        Line("largest gradient", "0.45", (0, (6, 2))).draw(axes, LENGTHS, [c.gradient for c in at])
        lines = (
            (GEO_RS, geo_rs(0.98, 1.02), reinforce),
            (NAIVE, naive(), reinforce),
            (TOKEN_IS, token_is(), reinforce),
            (TOKEN_TIS, token_tis(2.0), reinforce),
            (PPO, naive(), PPOClip()),
            (SEQ_TIS, seq_tis(2.0), reinforce),
            (SEQ_MIS, seq_mis(high=2.0), reinforce),
        )
        for order, (line, estimator, loss) in enumerate(lines):
            bias = [c.extremes(estimator, loss).bias for c in at]
            size = max(4.0, 9 - 1.2 * order)  # what coincides stays visible inside what was drawn before
            line.draw(
                axes, LENGTHS, [b if b > 1e-9 else np.nan for b in bias], markersize=size, markerfacecolor="white"
            )
        balanced = [c.extremes(seq_tis(balance_cap(c.law, BATCH))).bias for c in at]
        SEQ_TIS_BALANCE.draw(axes, LENGTHS, [b if b > 1e-9 else np.nan for b in balanced])
        by_length(axes, LENGTHS)
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1e3)
        name(
            axes,
            f"{title}, Δ = {tv:.2g}",
            "length T (tokens)",
            "largest bias (reward per nat)" if axes is panels[0] else "",
        )
    figure.suptitle(
        "Largest bias that any reward with |R| ≤ 1 can give; Seq-IS has none; Geo-RS keeps 0.98 to 1.02",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure
