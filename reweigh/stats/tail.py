"""Refusals where the tail of the ratios forbids an answer, and bounds that hold under any tail."""

import math

import numpy as np
from numpy.typing import NDArray

from reweigh.stats.intervals import bernoulli_kl_end, clustered
from reweigh.stats.numerals import two
from reweigh.stats.sums import BLOCK_SIZES, CAPS, GRID_LOW, GRID_TOP, MIN_UNITS, HostSums

Array = NDArray[np.float64]
UNSEEN_OR_WRONG = "either rare large ratios were not drawn, or the log-probs are not of what was sampled"

MAX_KHAT = 0.7  # Vehtari et al. 2024: beyond it no practical sample size makes the mean reliable
MIN_BEHIND = 2  # units; with 5 it would refuse figures that are 0.8 to 0.9 of the truth (docs/intervals.md)
MAX_SHARE = 0.2  # heuristic: one unit with a fifth of all weight decides the estimate
# What matters: of a token 0.001, which a response of a thousand makes a factor of e; of whole units a twentieth.
IDENTITY_GAPS = {"token": 1e-3, "turn": 0.05, "sequence": 0.05}  # |mean ratio - 1|
IDENTITY_ALPHA = 1e-6  # 1,000 steps of three levels and some slices each: one honest run in a hundred at most
IDENTITY_SPREAD = 0.6  # nats^2 a token: beyond a KL of 0.3 the mean of honest runs drifts from 0.6 to 2 (docs/audit.md)
IDENTITY_RATES = (0.02, 0.1, 0.3, 0.6, 0.9)  # stakes of the test above 1, by factors that lose little between them
MAX_BLOCK_ERROR = 0.25  # relative standard error of a block's mean square that still makes it a check
MIN_BLOCK_RENYI2 = 0.1  # nats: below it the sample and the blocks both say "small"


def refusal_of(h: HostSums, khat: float | None, identity: bool, blocks: tuple[float, float] | None) -> str:
    """Say why moments of the ratio cannot be told from this sample: the first reason there is; empty if they can.

    Args:
        h: the sums.
        khat: tail index, None if it could not be had.
        identity: whether the mean ratio can be 1.
        blocks: `renyi2_by_blocks`.
    """
    reason = _tail_reason(h, khat, -2 * h.total["l"] / h.n)
    if reason:
        return reason
    if not identity:
        value = exp(h.log_power(1.0) - math.log(h.n))
        return f"the mean ratio {value:.4g} is not 1, so mu is not what was sampled from, or pi's support is wider"
    needed = log_needed_by_kl(h)
    if needed > math.log(h.n):
        return f"{h.n:,.0f} units are too few for a KL(pi||mu) like this sample's: it takes over {_many(needed)}"
    least = 0.0 if blocks is None else blocks[0] - 2 * blocks[1]
    if blocks is not None and least > 2 * h.renyi2 and least > MIN_BLOCK_RENYI2:
        return (
            f"log(1 + chi2) is {h.renyi2:.2g} in the sample but {blocks[0]:.2g} by blocks of tokens: its tail is unseen"
        )
    return ""


def _many(nats: float) -> str:
    """`e^nats` units, in words that can be read."""
    return f"{math.exp(nats):,.0f}" if nats < math.log(1e6) else "a million" if nats < math.log(1e9) else "a billion"


def drift_of(h: HostSums, blocks: tuple[float, float] | None) -> str:
    """Say what it means if the sample's figure is far over that of blocks: no refusal, as a sample is no model."""
    most = math.inf if blocks is None else blocks[0] + 2 * blocks[1]
    if h.renyi2 <= 2 * most or h.renyi2 <= MIN_BLOCK_RENYI2 or blocks is None:
        return ""
    return (
        f"log(1 + chi2) is {h.renyi2:.2g} in the sample and only {blocks[0]:.2g} by blocks of tokens: log ratios of a "
        "response drift together, and nothing here extrapolates to other lengths"
    )


def _tail_reason(h: HostSums, khat: float | None, twice_kl: float) -> str:
    """Say what of the tail forbids moments, the mean ratio apart.

    All but `twice_kl`, 2 KL(mu||pi) by k1, is the same for ratios that are all multiplied by one number.
    """
    n = h.n
    if n < MIN_UNITS:
        return f"{n:.0f} {'unit is' if n == 1 else 'units are'} too few (at least {MIN_UNITS})"
    limit = min(MAX_KHAT, 1 - 1 / math.log10(n))
    if khat is not None and not math.isfinite(khat):
        return "the tail index is not finite"
    if khat is not None and khat > limit:
        return f"tail index {two(khat)} is over {two(limit)}"
    share = exp(float(h.top[0]) - h.log_power(1.0))
    if share > MAX_SHARE:
        return f"one unit carries {share:.0%} of the weight"
    if khat is None and h.tail.unfit:
        return h.tail.unfit
    spread = max(h.variance, twice_kl)
    if spread > math.log(n):
        return f"{n:,.0f} units are too few for log ratios that spread so widely: it takes over {_many(spread)}"
    renyi2 = max(h.renyi2, twice_kl)
    if n * units_behind(renyi2) < MIN_BEHIND:
        return f"fewer than {MIN_BEHIND} of {n:.0f} units can be where a log(1 + chi2) of {renyi2:.2g} comes from"
    return ""


def units_behind(renyi2: float) -> float:
    """`Phi(-2 s)`, `s^2 = renyi2`: the share of units in the upper half of what makes up E r^2, if log r is normal.

    r^2 turns `log r ~ N(-s^2/2, s^2)` into N(3 s^2/2, s^2), whose middle is 2 s standard deviations up. A sample with
    next to no units there has not seen its second moment, and its own figure is too low, seldom too high.

    Source: normal tilting; the rule is ours.
    """
    return math.erfc(2 * math.sqrt(max(0.0, renyi2)) / math.sqrt(2)) / 2


def log_needed_by_kl(h: HostSums) -> float:
    """`mean r log r`, nats: importance sampling needs more than e^that many units (Chatterjee and Diaconis 2018).

    A sample's own figure hardly ever says so: under a mean ratio of 1 it cannot be over log n.
    """
    log_mean = h.log_power(1.0) - math.log(h.n)
    return exp(log_mean) * (kl_pi_mu(h) + log_mean) if log_mean < 709 else math.inf


def kl_pi_mu(h: HostSums) -> float:
    """`KL(pi||mu) = sum r log r / sum r - log mean r`, nats, self-normalised: between 0 and log n.

    Over 256 units, from the grid: by the second-order expansion of r log r around each cell's own mean. Cells are half
    octaves; the third order comes to less than 0.1% of the whole. Below the grid, at r < 1/16, it is coarser.
    """
    if h.tiny:  # by the series of r log r
        return h.renyi2 / 2
    log_total = h.log_power(1.0)
    log_mean = log_total - math.log(h.n)
    if h.n <= len(h.top) or not GRID_LOW < log_mean < GRID_TOP:
        # All units are in the list of the largest; or the others are taken as alike, which they are not.
        l = h.top[: int(min(h.n, len(h.top)))]
        p = np.exp(l - log_total)
        rest, others = max(0.0, 1 - float(p.sum())), h.n - len(l)
        alike = rest * math.log(rest * h.n / others) if others and rest else 0.0
        return min(max(0.0, float((p * (l - log_mean)).sum()) + alike), math.log(h.n))
    counts, sums, squares = (g.sum(0)[:-1] for g in h.grid)
    some = (counts > 0) & (sums > 0)
    n, total = counts[some], sums[some]
    mean = total / n
    body = float((total * np.log(mean) + (squares[some] - total * mean) / (2 * mean)).sum())
    far = h.top[h.top > GRID_TOP]
    share = float((np.exp(far - log_total) * far).sum())
    value = body * math.exp(-log_total) + share - log_mean
    return min(max(0.0, value), math.log(h.n))


_FAR = 300.0  # nats: of ratios below e^this even squares are inside a float64


def mean_ratio(h: HostSums, alpha: float = 0.05) -> tuple[float, float, float]:
    """Mean ratio and the ends of its clustered interval; infinite where it is more than a float64 can hold."""
    value = exp(h.log_power(1.0) - math.log(h.n))
    if h.shift_max < _FAR:
        low, high = clustered(h.clusters["w1"] * exp(h.shift_max), h.clusters["n"], alpha)
        return value, max(0.0, low), high
    # The ends as logarithms: cluster sums are in units of e^shift_max, which a float64 may not hold.
    low, high = clustered(h.clusters["w1"], h.clusters["n"], alpha)
    low, high = (exp(math.log(end) + h.shift_max) if end > 0 else 0.0 for end in (low, high))
    return value, low, high


def identity_holds(h: HostSums, khat: float | None) -> bool:
    """Tell whether the mean ratio can be 1, as it must be if the logged log-probs are those that were sampled from.

    It cannot be 1 if it is off by what matters and by what a run of 1,000 honest steps does not reach by chance. Above
    1 that is known under any tail: `log_odds_above_1`. A mean below 1 proves nothing where the tail is heavy, as the
    few large ratios that would make up for it are then missing from most samples (`mean_refusal`). Elsewhere there is a
    t interval, which knows nothing of them; nor does the sample's own standard deviation, which is small whenever the
    mean is: that of a log-normal ratio of the same spread is used where it is larger.
    """
    value, _, high = mean_ratio(h, IDENTITY_ALPHA)
    if abs(value - 1) <= IDENTITY_GAPS[h.level]:
        return True
    if value > 1:
        return log_odds_above_1(h) < math.log(1 / IDENTITY_ALPHA)
    if h.n < MIN_UNITS or high >= 1 or mean_refusal(h, khat):
        return True
    by_spread = exp(h.variance) - 1
    by_sample = exp(h.log_power(2.0) - math.log(h.n)) - value * value
    return value + (high - value) * math.sqrt(max(1.0, by_spread / max(by_sample, 1e-300))) >= 1


def mean_refusal(h: HostSums, khat: float | None) -> str:
    """Say why the sample's mean ratio tells nothing of the mean, as of chi2: its tail; empty if it does tell."""
    if h.n < MIN_UNITS:  # then the interval says how little is known
        return ""
    why = _tail_reason(h, khat, 0.0)  # not by k1: it is what a log mu that is not the one sampled from makes large
    if not why and h.level == "token" and h.variance > IDENTITY_SPREAD:
        why = f"the log ratio of a token has a variance of {two(h.variance)}, and over {IDENTITY_SPREAD:g} means drift"
    return why and f"{why}; {UNSEEN_OR_WRONG}"


def log_odds_above_1(h: HostSums) -> float:
    """log of what a fair bet on "the mean ratio is over 1" has won, nats: over log 1/a by chance in a of all samples.

    Each unit multiplies the stake by `1 + s (r - 1)`, which is worth no more than 1 before it is drawn if its mean
    ratio, given all that came before, is 1. So it is for the tokens of a response and for the responses of a prompt:
    neither their dependence nor the tail matters. The average over stakes `s` is as fair. From the grid each factor is
    known from below: by `log(1 + y) >= y - c y^2`, c taken at the edge of the cell, or by the chord. Two more bets
    multiply by r and by its root, so that a KL(mu||pi) that comes out negative is heard as well.

    Source: Ville (1939); Waudby-Smith and Ramdas (2024), section 4; `log(1 + y) >= y - c y^2` as Fan et al. (2015).
    """
    counts, sums, squares = (g.sum(0) for g in h.grid)
    edges = np.array([0.0, *CAPS])
    n, s, q, over = counts[:-1], sums[: len(CAPS)], squares[: len(CAPS)], float(counts[-1])
    x, x2 = s - n, np.maximum(0.0, q - 2 * s + n)
    low, high = edges[:-1] - 1, edges[1:] - 1
    won = [h.total["l"], h.total["l"] / 2]
    for rate in IDENTITY_RATES:
        foot, head = np.log1p(rate * low), np.log1p(rate * high)
        # (y - log(1 + y)) / y^2 falls in y, so that its value at the low edge serves the whole cell; it is 1/2 at 0.
        at = rate * np.where(np.abs(low) < 1e-9, 0.0, low)
        c = np.where(at == 0, 0.5, (at - np.log1p(at)) / np.where(at == 0, 1.0, at * at))
        curve = rate * x - c * rate * rate * x2
        chord = n * foot + (x - n * low) * (head - foot) / (high - low)
        won.append(float(np.maximum(curve, chord).sum()) + over * math.log1p(rate * (CAPS[-1] - 1)))
    return float(np.logaddexp.reduce(won)) - math.log(len(won))


def unseen_at_most(h: HostSums) -> float:
    """Certified upper bound of `1 - E_mu r`, pi's mass where mu has none: 1 less the lower end of E min(r, C), any C.

    No certified lower bound exists: any sample's mean ratio can be below 1 because the large ones are rare.
    """
    n_eff, alpha = h.effective_n, 0.05 / len([c for c in CAPS if c >= 1])
    counts, sums, _ = (g.sum(0) for g in h.grid)
    best = 0.0
    for i, cap in enumerate(CAPS):
        if cap < 1:  # E min(r, C) is then far below 1, whatever mu covers
            continue
        over = counts[i + 1 :].sum()
        mean = float(sums[: i + 1].sum() + cap * over) / h.n
        if mean > best:
            best = max(best, bernoulli_kl_end(min(mean, cap), n_eff, 0.0, cap, alpha))
        if over == 0:  # a higher cap has the same mean over a wider range
            break
    return max(0.0, 1 - best)


def exp(x: float) -> float:
    """e^x, infinite where a float64 cannot hold it."""
    return math.exp(x) if x < 709 else math.inf


def renyi2_by_blocks(h: HostSums) -> tuple[float, float] | None:
    """`(T / size) log mean r_block^2` and its error, of the largest blocks known to 25%; else None.

    Source: blocks as independent draws; the rule for the size is ours.
    """
    length = h.total["tokens"] / h.total["seqs"]
    for size, (rate, error) in reversed(block_rates(h).items()):
        if 2 * size <= length and error < MAX_BLOCK_ERROR:
            # The error of a log is the relative one, and there are that many blocks to a sequence.
            return rate * length / size, error * length / size
    return None


def block_rates(h: HostSums) -> dict[int, tuple[float, float]]:
    """Give `log mean r_block^2`, nats, and its standard error by block size; those of too few whole blocks left out."""
    rates: dict[int, tuple[float, float]] = {}
    for size, (count, squares, fourths, shift) in zip(BLOCK_SIZES, h.blocks, strict=True):
        if count >= MIN_UNITS and squares > 0:
            error = math.sqrt(max(0.0, fourths / squares / squares - 1 / count))
            rates[size] = float(math.log(squares / count) + 2 * shift), float(error)
    return rates


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
    tv_low = bernoulli_kl_end(h.total["tv"] / h.n, n_eff, 0.0, 1.0, 0.05 / tries)
    return max(best, math.log1p(4 * tv_low * tv_low))
