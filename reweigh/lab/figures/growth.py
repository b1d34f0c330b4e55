"""Second moment of the sequence ratio against length: the post's two points, and what gap they stand for."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from reweigh.bounds import post_m2
from reweigh.lab.chain import chain
from reweigh.lab.figures.style import FONT, Line, legend, name, new
from reweigh.lab.policies import Policies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = range(1, 257)
POST_LENGTH = 200
POST_CHI2 = (0.01, 0.05)
"""The post calls them a mismatch of 1% and of 5% a token."""


def growth_figure() -> "Figure":
    """Left: tokens with one chi-square each. Right: a gap in one state only, against the bound that ignores that."""
    figure, (left, right) = new(2, height=3.9)
    gaps = (
        (0.05, "-", "#D55E00"),
        (0.01, "--", "#0072B2"),
        (0.05**2, "-.", "#009E73"),
        (0.01**2, ":", "#000000"),
    )
    for chi2, dash, colour in gaps:
        Line(f"χ² = {chi2:g}: {100 * chi2**0.5:.3g}% off (rms)", colour, dash).draw(
            left, LENGTHS, [post_m2(chi2, t) for t in LENGTHS]
        )
    for chi2, marker in zip(POST_CHI2, "os", strict=True):
        at = post_m2(chi2, POST_LENGTH)
        shown = f"{at:.1f}" if at < 10 else f"{int(at):,}"
        Line(f"the post's “{100 * chi2:g}%”: {shown}×", "black", "none", marker).draw(
            left, [POST_LENGTH], [at], markersize=7, markerfacecolor="white", zorder=5
        )
    left.set_yscale("log")
    name(left, "every token alike", "length T (tokens)", "E r² = 1 + χ² of the sequence (no unit)")
    policies = rare_state()
    found = chain(policies)
    chi2 = float(((policies.log_pi.exp() - policies.log_mu.exp()).square() / policies.log_mu.exp()).sum(-1).max())
    Line("(1 + largest χ²)ᵀ", "0.45", (0, (5, 1, 1, 1))).draw(right, LENGTHS, [post_m2(chi2, t) for t in LENGTHS])
    Line("exact", "#D55E00", (0, (3, 1))).draw(right, LENGTHS, np.exp(found.renyi2))
    Line("exp KL(pi‖mu), a lower bound", "#0072B2", (0, (1, 1.5))).draw(right, LENGTHS, np.exp(found.kl_pi_mu))
    right.set_yscale("log")
    name(right, f"χ² = {chi2:.2g}, in a state entered 1 time in 100", "length T (tokens)", "")
    legend(figure, 3)
    figure.suptitle(
        "Second moment of the sequence ratio; “off” is the root mean square of a token's ratio less 1",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    return figure


def rare_state() -> Policies:
    """Two tokens, Markov: the policies differ only after the second, which first comes 1 time in 100 and then stays."""
    start = [0.99, 0.01]
    pi = torch.tensor([start, start, [0.1, 0.9]], dtype=torch.float64)
    mu = torch.tensor([start, start, [0.2, 0.8]], dtype=torch.float64)
    return Policies(pi.log(), mu.log(), int(LENGTHS[-1]), memory=1)
