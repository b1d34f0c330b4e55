"""What the tail of the ratios allows one to say: its index, refusals, and bounds that hold under any tail."""

import math

import numpy as np

from reweigh.batchwise import smoothed_tail
from reweigh.host import HostSums
from reweigh.intervals import bernoulli_kl_end, clustered
from reweigh.sums import BLOCK_SIZES, CAPS

MIN_UNITS = 25  # fewer leave under five tail points for the tail index (Vehtari et al. 2024)
MAX_KHAT = 0.7  # Vehtari et al. 2024: beyond it no practical sample size makes the mean reliable
MAX_SHARE = 0.2  # heuristic: one unit with a fifth of all weight decides the estimate
MIN_IDENTITY_GAP = 1e-3  # |mean ratio - 1| below which a million tokens would flag trivia
IDENTITY_ALPHA = 1e-3  # it is tested at every step and for every slice: at 5%, honest runs would fail every day
MAX_BLOCK_ERROR = 0.25  # relative standard error of a block's mean square that still makes it a check
MIN_BLOCK_RENYI2 = 0.1  # nats: below it the sample and the blocks both say "small"


def refusal_of(h: HostSums, khat: float | None, identity: bool, blocks: tuple[float, float] | None) -> str:
    """Why moments of the ratio cannot be told from this sample; empty if they can (first reason found).

    Args:
        h: the sums.
        khat: tail index, None if it could not be had.
        identity: whether the mean ratio can be 1.
        blocks: `renyi2_by_blocks`.
    """
    n = h.n
    if n < MIN_UNITS:
        return f"{n:.0f} {'unit is' if n == 1 else 'units are'} too few (at least {MIN_UNITS})"
    limit = min(MAX_KHAT, 1 - 1 / math.log10(n))
    if khat is not None and khat > limit:
        return f"tail index {khat:.2f} is over {limit:.2f}"
    share = math.exp(h.top[0] - h.log_power(1.0))
    if share > MAX_SHARE:
        return f"one unit carries {share:.0%} of the weight"
    k1 = -h.total("l") / n
    s2 = max(h.total("l2") / n - k1 * k1, 2 * k1)
    if s2 > math.log(n):
        return f"{n:.0f} units are fewer than exp({s2:.1f}), what a log-ratio spread like this one needs"
    if not identity:
        value = exp(h.log_power(1.0) - math.log(n))
        return f"the mean ratio {value:.3g} is not 1, so mu is not what was sampled from, or pi's support is wider"
    least = 0.0 if blocks is None else blocks[0] - 2 * blocks[1]
    if blocks is not None and least > 2 * h.renyi2 and least > MIN_BLOCK_RENYI2:
        return (
            f"log(1 + chi2) is {h.renyi2:.2g} in the sample but {blocks[0]:.2g} by blocks of tokens: its tail is unseen"
        )
    return ""


def mean_ratio(h: HostSums, alpha: float = 0.05) -> tuple[float, float, float]:
    """Mean ratio and the ends of its clustered interval; infinite where it is more than a float64 can hold."""
    scale = exp(h.shift_max)
    if math.isinf(scale):
        return scale, 0.0, scale
    low, high = clustered(h.clusters["w1"] * scale, h.clusters["n"], alpha)
    return exp(h.log_power(1.0) - math.log(h.n)), max(0.0, low), high


def identity_holds(h: HostSums) -> bool:
    """Whether the mean ratio can be 1, as it must be if the logged log-probs are those that were sampled from."""
    value, low, high = mean_ratio(h, IDENTITY_ALPHA)
    return low <= 1 <= high or abs(value - 1) <= MIN_IDENTITY_GAP


def exp(x: float) -> float:
    """e^x, infinite where a float64 cannot hold it."""
    return math.exp(x) if x < 709 else math.inf


def renyi2_by_blocks(h: HostSums) -> tuple[float, float] | None:
    """`(T / size) log mean r_block^2` of the largest blocks whose mean square is known to 25%; else None.

    Source: blocks as independent draws; the rule for the size is ours.
    """
    length = h.total("tokens") / h.total("seqs")
    for size, (count, squares, fourths, shift) in reversed(list(zip(BLOCK_SIZES, h.blocks, strict=True))):
        if count < MIN_UNITS or squares <= 0 or 2 * size > length:
            continue
        error = math.sqrt(max(0.0, fourths / squares**2 - 1 / count))
        if error < MAX_BLOCK_ERROR:
            blocks = length / size
            # The error of a log is the relative one, and there are that many blocks to a sequence.
            return float(blocks * (math.log(squares / count) + 2 * shift)), float(blocks * error)
    return None


def renyi2_lower(h: HostSums) -> float:
    """log of a certified lower bound of 1 + chi2: the best over the grid of E min(r, C)^2 and of 1 + 4 TV^2."""
    tries, n_eff = len(CAPS) + 1, h.effective_n
    counts, _, squares = (g.sum(0) for g in h.grid)
    best = 0.0
    for i, cap in enumerate(CAPS):
        over = counts[i + 1 :].sum()
        mean = (squares[: i + 1].sum() + cap * cap * over) / h.n
        if mean <= math.exp(best):  # its lower bound is lower still
            continue
        low = bernoulli_kl_end(min(mean, cap * cap), n_eff, 0.0, cap * cap, 0.05 / tries)
        best = max(best, math.log(low) if low > 0 else 0.0)
        if over == 0:  # a higher cap has the same mean over a wider range
            break
    tv_low = bernoulli_kl_end(h.total("tv") / h.n, n_eff, 0.0, 1.0, 0.05 / tries)
    return max(best, math.log1p(4 * tv_low * tv_low))


def tail_index(h: HostSums) -> tuple[float | None, str]:
    """Tail index from the largest log ratios; None, and why, if it cannot be had."""
    top = h.top[np.isfinite(h.top)]
    n = int(min(h.n, 7225))  # the sample size whose tail, 3 sqrt(n) = 255 points, is the one that was kept
    if n < MIN_UNITS:
        return None, ""
    # Only the tail is read, so what stands for the body may be anything below it.
    body = np.full(n, top[-1] - 1.0)
    body[: min(n, len(top))] = top[:n]
    try:
        fit = smoothed_tail(body)
    except ModuleNotFoundError:
        return None, 'the tail index needs arviz-stats: pip install "reweigh[audit]"'
    return None if fit is None else fit[1], ""
