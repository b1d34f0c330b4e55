"""Draw what the lab computes, for the pages and for a paper: labelled, readable in grey, as SVG and PNG.

python docs/lab_figures.py                   # redraws those of the pages, in docs/images; prints the paths
python docs/lab_figures.py --out DIR all     # all of them, to a folder; about a minute
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from reweigh import (
    geo_rs,
    naive,
    prefix_is,
    prefix_tis,
    seq_is,
    seq_mis,
    seq_tis,
    suffix_is,
    token_is,
    token_mis,
    token_tis,
)
from reweigh.caps import balance_cap, cubic_cap, mis_balance_cap, post_batch_cap, post_cap, sqrt_n_cap, tradeoff_cap
from reweigh.estimators import Estimator
from reweigh.theory.bounds import post_m2, post_quadratic_bias, tis_mse
from reweigh.theory.lab.closed_forms import RARE, SMOOTH, Counted, chain
from reweigh.theory.lab.distances import norms, ratio_law
from reweigh.theory.lab.exact import Advantage, Exact, Loss, PPOClip, Reward, exact, exact_snis, reinforce
from reweigh.theory.lab.world import Policies, World, random_world, trap_a, trap_b
from reweigh.theory.laws import FiniteRatio

IMAGES = Path(__file__).parent / "images"
WIDTH = 7.2  # inches, of every figure
FONT = 9.0  # points: legible where a figure fills a page's width
DPI = 200  # of a PNG
COLOURS = 192  # of a PNG: every line keeps its own, at half of the size


@dataclass(frozen=True)
class Line:
    """How one thing is drawn in every figure.

    Attributes:
        label: its name.
        colour: of the eight of Okabe and Ito (2008), which differ for all eyes.
        dash: line style.
        marker: at every point, or every few.
    """

    label: str
    colour: str
    dash: Any = "-"
    marker: str = ""

    def draw(self, axes: Axes, x: ArrayLike, y: ArrayLike, **more: Any) -> None:
        """Plot it."""
        style: dict[str, Any] = {"linewidth": 1.4, "markersize": 4.0, **more}
        axes.plot(x, y, color=self.colour, linestyle=self.dash, marker=self.marker, label=self.label, **style)


def new(columns: int, height: float, heights: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure with some axes side by side, row by row.

    Args:
        columns: axes in a row.
        height: inches.
        heights: of the rows, relative to each other.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=list(heights))
    return figure, [figure.add_subplot(grid[r, c]) for r in range(len(heights)) for c in range(columns)]


def name(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and labels."""
    axes.set_title(title, fontsize=FONT, loc="left")
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_ylabel(y, fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.6)


def by_length(axes: Axes, lengths: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are these lengths, or every other one of many, and no others."""
    axes.set_xscale("log", base=2)
    some = lengths if len(lengths) < 7 else lengths[::2]
    axes.set_xticks(some, [f"{v:,g}" for v in some])


def legend(figure: Figure, columns: int = 4) -> None:
    """One legend for all axes, under them."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label:
                found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=columns,
        fontsize=FONT - 1,
        frameon=False,
        handlelength=3.2,
    )


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write it as SVG and as PNG; their paths."""
    svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
    figure.savefig(svg, metadata={"Date": None})
    figure.savefig(png, dpi=DPI)
    with Image.open(png) as image:
        image.convert("RGB").quantize(COLOURS).save(png, optimize=True)
    return svg, png


CAP = 2.0
"""Of everything that is truncated or rejected at a number."""


@dataclass(frozen=True)
class Compared:
    """An estimator and its line.

    Attributes:
        line: how it is drawn.
        estimator: its weights.
        loss: what they are put into.
    """

    line: Line
    estimator: Estimator
    loss: Loss = reinforce


def geo_rs_within(low: float, high: float) -> Compared:
    """Geo-RS with a band: the caption is to say which."""
    return Compared(Line("Geo-RS", "#B8A800", (0, (5, 1, 1, 1, 1, 1)), ">"), geo_rs(low, high))


NAIVE = Compared(Line("Naive", "#000000", "-", "o"), naive())
TOKEN_IS = Compared(Line("Token-IS", "#0072B2", "--", "s"), token_is())
TOKEN_TIS = Compared(Line(f"Token-TIS, C = {CAP:g}", "#56B4E9", ":", "D"), token_tis(CAP))
TOKEN_MIS = Compared(Line(f"Token-MIS, C = {CAP:g}", "#8C6BB1", (0, (3, 1, 1, 1)), "p"), token_mis(0.0, CAP))
PPO = Compared(Line("PPO-clip, 0.2", "#999999", "-.", "v"), naive(), PPOClip())
PREFIX_IS = Compared(Line("Prefix-IS", "#7A3E00", (0, (4, 1.5)), "+"), prefix_is())
PREFIX_TIS = Compared(Line(f"Prefix-TIS, C = {CAP:g}", "#7A3E00", (0, (1, 1)), "d"), prefix_tis(CAP))
SUFFIX_IS = Compared(Line("Suffix-IS", "#CC79A7", (0, (2, 1)), "1"), suffix_is())
SEQ_IS = Compared(Line("Seq-IS", "#D55E00", "-", "^"), seq_is())
SEQ_TIS = Compared(Line(f"Seq-TIS, C = {CAP:g}", "#009E73", "-", "x"), seq_tis(CAP))
SEQ_MIS = Compared(Line(f"Seq-MIS, C = {CAP:g}", "#CC79A7", "-.", "<"), seq_mis(high=CAP))

TOKEN_LEVEL = (NAIVE, TOKEN_IS, TOKEN_TIS, TOKEN_MIS, PPO)
"""Those that weigh each token by itself."""
BY_POSITION = (PREFIX_IS, PREFIX_TIS, SUFFIX_IS)
"""Those in which the order of tokens matters."""
SEQUENCE_LEVEL = (SEQ_IS, SEQ_TIS, SEQ_MIS)
"""Those with one weight a sequence; Geo-RS is another, its band differs by figure."""

SNIS = Line("SNIS", "#E69F00", "--", "P")
BALANCE = Line("Seq-TIS, balance", "#009E73", ":", "*")
TRADEOFF = Line("Seq-TIS, tradeoff", "#004D40", "--", "X")
"""Of what depends on the batch size: self-normalised, and with the cap of a rule that is given the exact law."""


CAP_BATCHES = (16, 64, 1024)
CAPS = np.geomspace(0.25, 512, 45)


def cap_figure() -> Figure:
    """Exact error of Seq-TIS and Seq-MIS in one world, the worst case over all rewards, and the rules' caps below."""
    world = random_world(3, 7, memory=1, gap=1.0, reward="binary", seed=0)
    law, scale = ratio_law(world), float(world.gradient.square().sum())
    worst = norms(world).integrand
    tis = [exact(world, seq_tis(c), Reward("value")) for c in CAPS]
    mis = [exact(world, seq_mis(high=c), Reward("value")) for c in CAPS]
    figure, panels = new(len(CAP_BATCHES), height=5.1, heights=(3, 2))
    for i, n in enumerate(CAP_BATCHES):
        axes, strip = panels[i], panels[len(CAP_BATCHES) + i]
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
        "post": post_cap(law.chi2),
        "post, for N": post_batch_cap(law.chi2, n),
        "cubic": cubic_cap(law.chi2, n),
        "√N": sqrt_n_cap(n),
        "balance": balance_cap(law, n),
        "tradeoff": tradeoff_cap(law, n),
        "balance of MIS": mis_balance_cap(law, n),
    }


GROWTH_LENGTHS = range(1, 257)
GROWTH_POST_LENGTH = 200
POST_CHI2 = (0.01, 0.05)
"""The post calls them a mismatch of 1% and of 5% a token."""


def growth_figure() -> Figure:
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
            left, GROWTH_LENGTHS, [post_m2(chi2, t) for t in GROWTH_LENGTHS]
        )
    for chi2, marker in zip(POST_CHI2, "os", strict=True):
        at = post_m2(chi2, GROWTH_POST_LENGTH)
        shown = f"{at:.1f}" if at < 10 else f"{int(at):,}"
        Line(f"the post's “{100 * chi2:g}%”: {shown}×", "black", "none", marker).draw(
            left, [GROWTH_POST_LENGTH], [at], markersize=7, markerfacecolor="white", zorder=5
        )
    left.set_yscale("log")
    name(left, "every token alike", "length T (tokens)", "E r² = 1 + χ² of the sequence (no unit)")
    policies = rare_state()
    found = chain(policies)
    chi2 = float(((policies.log_pi.exp() - policies.log_mu.exp()).square() / policies.log_mu.exp()).sum(-1).max())
    Line("(1 + largest χ²)ᵀ", "0.45", (0, (5, 1, 1, 1))).draw(
        right, GROWTH_LENGTHS, [post_m2(chi2, t) for t in GROWTH_LENGTHS]
    )
    Line("exact", "#D55E00", (0, (3, 1))).draw(right, GROWTH_LENGTHS, np.exp(found.renyi2))
    Line("exp KL(pi‖mu), a lower bound", "#0072B2", (0, (1, 1.5))).draw(right, GROWTH_LENGTHS, np.exp(found.kl_pi_mu))
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
    return Policies(pi.log(), mu.log(), int(GROWTH_LENGTHS[-1]), memory=1)


BIAS_LENGTHS = (4, 8, 16, 32, 64, 128)
BIAS_SHORT_LENGTHS = (2, 3, 4, 5, 6, 7)
BIAS_BATCH = 64  # sequences, for the balance cap and for SNIS
BIAS_SEEDS = range(12)
BIAS_GEO_RS = geo_rs_within(0.98, 1.02)
ORDERLESS = (BIAS_GEO_RS, *TOKEN_LEVEL, SEQ_TIS, SEQ_MIS)


def bias_figure() -> Figure:
    """Exact; biases of 0 up to rounding are not drawn."""
    figure, (smooth, rare, random) = new(3, height=4.8)
    worst_cases(smooth, "shared gap", SMOOTH)
    worst_cases(rare, "rare token", RARE)
    smooth.set_ylabel("largest bias (reward per nat)", fontsize=FONT)
    random_worlds(random)
    figure.suptitle(
        "Left, middle: largest bias of any reward with |R| ≤ 1, iid tokens. Right: median bias of "
        f"{len(BIAS_SEEDS)} Markov worlds.\n"
        f"Seq-IS has none. Geo-RS keeps 0.98 to 1.02; balance and SNIS: N = {BIAS_BATCH}",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure


def worst_cases(axes: Axes, title: str, gap: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    """Of estimators that read one sequence, and no order of its tokens."""
    pi, mu = (np.array(p) / sum(p) for p in gap)
    at = [Counted.of(pi, mu, t) for t in BIAS_LENGTHS]
    tv = float(np.abs(pi - mu).sum()) / 2
    post = [post_quadratic_bias(1.0, c.score_max, t, tv) for c, t in zip(at, BIAS_LENGTHS, strict=True)]
    Line("the post's bound, 2 K T² Δ", "0.45", (0, (1, 2))).draw(axes, BIAS_LENGTHS, post)
    Line("largest gradient", "0.45", (0, (6, 2))).draw(axes, BIAS_LENGTHS, [c.gradient for c in at])
    for order, e in enumerate(ORDERLESS):
        _draw_bias(axes, e.line, BIAS_LENGTHS, [c.extremes(e.estimator, e.loss).bias for c in at], order)
    balanced = [c.extremes(seq_tis(balance_cap(c.law, BIAS_BATCH))).bias for c in at]
    _draw_bias(axes, BALANCE, BIAS_LENGTHS, balanced, len(ORDERLESS))
    by_length(axes, BIAS_LENGTHS)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1e3)
    name(axes, f"{title}, Δ = {tv:.2g}", "length T (tokens)", "")


def random_worlds(axes: Axes) -> None:
    """Of all estimators, where the bias depends on the reward: two rewards of each seed, over the gradient."""
    kinds: dict[Line, Callable[[World], float]] = {e.line: _bias_of(e) for e in (*ORDERLESS, *BY_POSITION)}
    kinds[BALANCE] = lambda w: exact(w, seq_tis(balance_cap(ratio_law(w), BIAS_BATCH))).bias_norm
    kinds[SNIS] = lambda w: exact_snis(w, BIAS_BATCH).bias_norm
    at = {
        t: [random_world(3, t, memory=1, gap=0.3, reward="uniform", seed=s) for s in BIAS_SEEDS]
        for t in BIAS_SHORT_LENGTHS
    }
    for order, (line, bias) in enumerate(kinds.items()):
        values = [median(bias(w) / float(w.gradient.norm()) for w in at[t]) for t in BIAS_SHORT_LENGTHS]
        _draw_bias(axes, line, BIAS_SHORT_LENGTHS, values, order)
    axes.set_yscale("log")
    axes.set_xticks(BIAS_SHORT_LENGTHS)
    name(axes, "random rewards", "length T (tokens)", "|bias| / |g| (no unit)")


def _bias_of(e: Compared) -> Callable[[World], float]:
    return lambda world: exact(world, e.estimator, loss=e.loss).bias_norm


def _draw_bias(axes: Axes, line: Line, x: tuple[int, ...], bias: list[float], order: int) -> None:
    size = max(3.5, 8 - 0.9 * order)  # what coincides stays visible inside what was drawn before
    line.draw(axes, x, [b if b > 1e-9 else np.nan for b in bias], markersize=size, markerfacecolor="white")


SNIS_BATCHES = tuple(4**k for k in range(8))
SNIS_GAPS = (
    (0.25, "#000000", "-", "o"),
    (0.5, "#0072B2", "--", "s"),
    (1.0, "#009E73", "-.", "^"),
    (1.5, "#D55E00", ":", "D"),
)


def snis_figure() -> Figure:
    """Left: the effective number of sequences, exactly. Right: root mean square error in the worst of these worlds."""
    figure, (left, right) = new(2, height=3.9)
    Line("all N", "0.6", "-").draw(left, SNIS_BATCHES, SNIS_BATCHES)
    worlds = [random_world(3, 6, memory=1, gap=gap, reward="binary", seed=3) for gap, *_ in SNIS_GAPS]
    found = [[exact_snis(world, n, advantage=Reward("value")) for n in SNIS_BATCHES] for world in worlds]
    for (_, colour, dash, marker), world, at in zip(SNIS_GAPS, worlds, found, strict=True):
        m2 = ratio_law(world).m2
        Line(f"1 + χ² = {m2:,.3g}", colour, dash, marker).draw(left, SNIS_BATCHES, [1 / x.inverse_ess for x in at])
    by_length(left, SNIS_BATCHES)
    left.set_yscale("log")
    name(left, "effective number of sequences", "batch size N (sequences)", "1 / E[Σw² / (Σw)²] (sequences)")
    world, at, m2 = worlds[-1], found[-1], ratio_law(worlds[-1]).m2
    scale = float(world.gradient.square().sum())
    unnormalised = exact(world, SEQ_IS.estimator, Reward("value"))
    SNIS.draw(right, SNIS_BATCHES, [(x.mse / scale) ** 0.5 for x in at])
    first = [(float(x.delta_bias.square().sum()) + x.delta_trace_cov) / scale for x in at]
    Line("SNIS, first order in 1/N", "0.75", "-").draw(right, SNIS_BATCHES, [v**0.5 for v in first], linewidth=5)
    SEQ_IS.line.draw(right, SNIS_BATCHES, [(unnormalised.mse(n) / scale) ** 0.5 for n in SNIS_BATCHES])
    by_length(right, SNIS_BATCHES)
    right.set_yscale("log")
    name(right, f"error where 1 + χ² = {m2:,.3g}", "batch size N (sequences)", "root mean square error / |g| (no unit)")
    figure.suptitle("Self-normalised weights, Markov worlds, V = 3, T = 6", fontsize=FONT, x=0.02, ha="left")
    legend(figure, 4)
    return figure


MASS_LENGTHS = (1, 4, 16, 64, 256, 1024)
MASS_MOST = 10  # tokens of the sequences that end by themselves
MASS_SEEDS = range(20)
MASS_PI, MASS_MU = np.array([0.5, 0.5]), np.array([0.45, 0.55])
MASS_BANDS = ((0.8, 1.25), (0.98, 1.02))
"""That Geo-RS keeps, in each panel."""


def mass_figure() -> Figure:
    """Left: sequences that end by themselves, mean of random worlds. Right: iid tokens at lengths of use."""
    figure, (left, right) = new(2, height=3.7)
    worlds = [random_world(3, MASS_MOST, memory=1, eos=2, gap=0.5, seed=seed) for seed in MASS_SEEDS]
    at = [Counted.of(MASS_PI, MASS_MU, length) for length in MASS_LENGTHS]
    geo_left, geo_right = (geo_rs_within(*band) for band in MASS_BANDS)
    for of_left, of_right in (*((e, e) for e in SEQUENCE_LEVEL), (geo_left, geo_right)):
        retained = np.mean([retained_mass(world, of_left.estimator) for world in worlds], axis=0)
        of_left.line.draw(left, range(1, MASS_MOST + 1), retained)
        of_right.line.draw(right, MASS_LENGTHS, [c.mean_weight(of_right.estimator) for c in at])
    for axes in (left, right):
        axes.set_ylim(-0.04, 1.34)
    name(
        left,
        "sequences that end by themselves",
        "length of the sequence (tokens)",
        "retained mass (1 = mass under pi)",
    )
    left.set_xticks(range(2, MASS_MOST + 1, 2))
    by_length(right, MASS_LENGTHS)
    rms = float(np.sqrt(((MASS_PI - MASS_MU) ** 2 / MASS_MU).sum()))
    name(right, f"iid tokens, ratios off by {100 * rms:.0f}% (rms)", "length T (tokens)", "")
    low, high = MASS_BANDS
    figure.suptitle(
        f"What is left of each length; Geo-RS keeps {low[0]} to {low[1]} (left), {high[0]} to {high[1]} (right)",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure


def retained_mass(world: World, estimator: Estimator) -> list[float]:
    """`E_mu[w 1{length}] / pi(length)` for each length from 1: all 1 without truncation or rejection."""
    weight, every = estimator(world.batch).per_unit, world.sequences
    lengths = range(1, world.policies.length + 1)
    kept = (float(world.mu[world.sampled.lengths == t] @ weight[world.sampled.lengths == t]) for t in lengths)
    return [k / float(every.pi[every.lengths == t].sum()) for k, t in zip(kept, lengths, strict=True)]


Efficiency = Callable[[int], float]
EFFICIENCY_BATCHES = tuple(4**k for k in range(8))
EFFICIENCY_SEEDS = range(12)
EFFICIENCY_GAPS = (0.25, 0.7, 1.2)
EFFICIENCY_VALUE = Reward("value")
CRITIC = replace(PREFIX_TIS.line, label="Prefix-TIS and a critic of pi", dash="-", marker="H")
EFFICIENCY_BAND = (0.8, 1.25)


def efficiency_figure() -> Figure:
    """Binary rewards less their mean under mu, as a group's mean gives them; a column for each size of the gap."""
    figure, panels = new(len(EFFICIENCY_GAPS), height=6.6, heights=(1, 1))
    for i, gap in enumerate(EFFICIENCY_GAPS):
        worlds = [random_world(3, 6, memory=1, gap=gap, reward="binary", seed=seed) for seed in EFFICIENCY_SEEDS]
        m2 = float(np.median([ratio_law(world).m2 for world in worlds]))
        for row, of in enumerate((by_token, by_sequence)):
            axes = panels[row * len(EFFICIENCY_GAPS) + i]
            gamma: dict[Line, list[list[float]]] = {}
            for world in worlds:
                for line, efficiency in of(world).items():
                    gamma.setdefault(line, []).append([efficiency(n) for n in EFFICIENCY_BATCHES])
            for line, values in gamma.items():
                line.draw(axes, EFFICIENCY_BATCHES, np.median(values, axis=0))
            by_length(axes, EFFICIENCY_BATCHES)
            axes.set_ylim(-0.02, 1.02)
            label = ("by token: Γ (no unit)", "by sequence: Γ (no unit)")[row]
            name(
                axes,
                "" if row else f"1 + χ² = {m2:,.3g}",
                "batch size N (sequences)" if row else "",
                label if i == 0 else "",
            )
    figure.suptitle(
        f"Efficiency Γ, median of {len(EFFICIENCY_SEEDS)} Markov worlds, V = 3, T = 6, binary rewards less their mean\n"
        f"Geo-RS keeps {EFFICIENCY_BAND[0]} to {EFFICIENCY_BAND[1]}; "
        "balance and tradeoff are given the law of the ratio",
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
        **{
            e.line: exact(world, e.estimator, EFFICIENCY_VALUE, loss=e.loss).efficiency
            for e in (*TOKEN_LEVEL, *BY_POSITION)
        },
    }


def by_sequence(world: World) -> Mapping[Line, Efficiency]:
    """Gamma, as a function of N, of what has one weight a sequence; rules for the cap are given the exact law."""
    law = ratio_law(world)
    fixed = (NAIVE, *SEQUENCE_LEVEL, geo_rs_within(*EFFICIENCY_BAND))
    return {
        **{e.line: exact(world, e.estimator, EFFICIENCY_VALUE).efficiency for e in fixed},
        BALANCE: lambda n: exact(world, seq_tis(balance_cap(law, n)), EFFICIENCY_VALUE).efficiency(n),
        TRADEOFF: lambda n: exact(world, seq_tis(tradeoff_cap(law, n)), EFFICIENCY_VALUE).efficiency(n),
        SNIS: lambda n: exact_snis(world, n, advantage=EFFICIENCY_VALUE).efficiency,
    }


TRAP_LENGTHS = tuple(range(10, 201, 10))
TRAP_BATCH = 64  # sequences
TRAP_BAND = (0.999, 1.001)


def trap_figure() -> Figure:
    """Left: the angle between the mean of an estimator and the gradient. Right: Gamma."""
    figure, (left, right) = new(2, height=4.0)
    in_a, in_b = (_in_worlds([make(t) for t in TRAP_LENGTHS]) for make in (trap_a, trap_b))
    for line in in_a:
        line.draw(left, TRAP_LENGTHS, [found.cosine for found in in_a[line]], markevery=2)
        line.draw(right, TRAP_LENGTHS, [found.efficiency(TRAP_BATCH) for found in in_b[line]], markevery=2)
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set_ylim(-1.06, 1.06)
    right.set_ylim(-0.02, 1.04)
    name(left, "A: small gaps change the best first step", "length T (tokens)", "cos(mean, gradient)")
    name(right, "B: only the first token matters", "length T (tokens)", f"Γ at N = {TRAP_BATCH} (no unit)")
    figure.suptitle(
        f"Two traps: neither level is right everywhere; Geo-RS keeps {TRAP_BAND[0]} to {TRAP_BAND[1]}",
        fontsize=FONT,
        x=0.02,
        ha="left",
    )
    legend(figure, 4)
    return figure


def _in_worlds(worlds: list[World]) -> dict[Line, list[Exact]]:
    """Each estimator in each world, with a baseline."""
    value = Reward("value")
    found = {
        e.line: [exact(w, e.estimator, value) for w in worlds]
        for e in (NAIVE, TOKEN_IS, *SEQUENCE_LEVEL, geo_rs_within(*TRAP_BAND))
    }
    return {**found, BALANCE: [exact(w, seq_tis(balance_cap(ratio_law(w), TRAP_BATCH)), value) for w in worlds]}


FIGURES: dict[str, Callable[[], Figure]] = {
    "mse-of-cap": cap_figure,
    "second-moment": growth_figure,
    "bias": bias_figure,
    "snis": snis_figure,
    "retained-mass": mass_figure,
    "efficiency": efficiency_figure,
    "traps": trap_figure,
}
"""By file name."""
ON_PAGES = ("traps", "mse-of-cap", "efficiency")


def draw_figures(out: Path, names: Iterable[str] = ()) -> Iterator[tuple[Path, Path]]:
    """Compute and write figures, as `NAME.svg` and `NAME.png`; their paths, as each is drawn.

    Args:
        out: a directory; made if it is not there.
        names: of `FIGURES`; all if empty.

    Raises:
        ValueError: on a name that is no figure's.
    """
    chosen = tuple(names) or tuple(FIGURES)
    if unknown := [n for n in chosen if n not in FIGURES]:
        raise ValueError(f"lab_figures: there is no figure {unknown[0]!r}.\nhint: one of {', '.join(FIGURES)}.")
    out.mkdir(parents=True, exist_ok=True)
    return (save(FIGURES[figure](), out / figure) for figure in chosen)


def main() -> int:
    """Draw, and print the path of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said = f"of {', '.join(FIGURES)}, or all; {', '.join(ON_PAGES)} if none"
    parser.add_argument("names", nargs="*", metavar="NAME", default=ON_PAGES, help=said)
    parser.add_argument("--out", type=Path, metavar="DIR", default=IMAGES, help="a folder; made if it is not there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for paths in draw_figures(args.out, () if "all" in args.names else args.names):
            print(*paths, sep="\n", flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
