"""From sums to numbers: each with its interval, its n, and a refusal where the data cannot tell."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from reweigh.intervals import bernoulli_kl, clustered, design_effect
from reweigh.stats import BLOCK_SIZES, CAPS, CLUSTER, MOMENTS, POWERS, RatioStats

Array = NDArray[np.float64]
Status = Literal["ok", "refused"]

MIN_UNITS = 25  # fewer leave under five tail points for the tail index (Vehtari et al. 2024)
MAX_KHAT = 0.7  # Vehtari et al. 2024: beyond it no practical sample size makes the mean reliable
MAX_SHARE = 0.2  # heuristic: one unit with a fifth of all weight decides the estimate


@dataclass(frozen=True)
class Number:
    """A quantity as far as the data can tell it.

    Attributes:
        value: the estimate; None if refused.
        low: lower end of its 95% interval; None if it has none.
        high: upper end.
        sample: the plug-in figure of this very sample, also when the value is refused: a fact about these units, and no
            estimate of anything beyond them.
        unit: what it is measured in.
        meaning: one sentence.
        refused: why there is no value; empty if there is one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    sample: float | None = None
    unit: str = ""
    meaning: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Summary:
    """The numbers of one level, and what was needed to trust them.

    Attributes:
        level: "token", "turn" or "sequence".
        n: units.
        sequences: sequences with a unit.
        tokens: tokens.
        dropped: tokens of the mask with a non-finite log-prob.
        numbers: by name, in reading order.
        refusal: why moments of the ratio are refused; empty if they are not.
        note: what kept a check from being made; empty as a rule.
    """

    level: str
    n: int
    sequences: int
    tokens: int
    dropped: int
    numbers: dict[str, Number] = field(default_factory=dict)
    refusal: str = ""
    note: str = ""

    def __getitem__(self, name: str) -> Number:
        """The number of that name."""
        return self.numbers[name]

    def get(self, name: str) -> float | None:
        """Its value, or None if refused."""
        return self.numbers[name].value


@dataclass(frozen=True)
class _Host:
    """The sums as NumPy arrays on the host."""

    level: str
    moments: dict[str, Array]
    shift: Array
    powers: Array
    grid: Array
    blocks: Array
    peaks: Array
    top: Array
    clusters: dict[str, Array]
    dropped: float

    @property
    def n(self) -> float:
        return float(self.moments["n"].sum())

    @property
    def shift_max(self) -> float:
        return float(self.shift.max())

    def total(self, name: str) -> float:
        return float(self.moments[name].sum())

    def log_power(self, k: float) -> float:
        """log of the sum of r^k over all units, nats; -inf if there are none."""
        row = self.powers[POWERS.index(k)]
        top = k * self.shift_max
        total = float((row * np.exp(k * self.shift - top)).sum())
        return math.log(total) + top if total > 0 else -math.inf


def host(stats: RatioStats) -> _Host:
    """Bring the sums over: one copy, one synchronisation."""
    names = ("moments", "shift", "powers", "grid", "blocks", "peaks", "top", "clusters", "dropped")
    tensors = [getattr(stats, name) for name in names]
    flat = torch.cat([t.reshape(-1) for t in tensors]).cpu().numpy()
    parts = np.split(flat, np.cumsum([t.numel() for t in tensors])[:-1])
    a = {name: part.reshape(tuple(t.shape)) for name, part, t in zip(names, parts, tensors, strict=True)}
    return _Host(
        stats.level.name,
        dict(zip(MOMENTS, a["moments"], strict=True)),
        a["shift"],
        a["powers"],
        a["grid"],
        a["blocks"],
        a["peaks"],
        a["top"],
        dict(zip(CLUSTER, a["clusters"].T, strict=True)),
        float(a["dropped"]),
    )


def summarise(stats: RatioStats) -> Summary:
    """Numbers of the stats, with intervals and refusals. The one host sync.

    Bounded quantities (TV, excess, retained mass) have Chernoff intervals at the effective number of units that
    clustering leaves; means have clustered t intervals. Moments of the ratio itself (chi-square, the population's
    effective sample size) are refused when the sample cannot carry them, and then only certified bounds are given.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats, summarise
        >>> batch = Batch.padded(torch.full((30, 4), -1.0), torch.full((30, 4), -1.0), torch.ones(30, 4))
        >>> summarise(RatioStats.of(batch, SEQUENCE)).get("tv")
        0.0
    """
    h = host(stats)
    base = Summary(h.level, int(h.n), int(h.total("seqs")), int(h.total("tokens")), int(h.dropped))
    if h.n == 0:
        return Summary(**{**vars(base), "refusal": "there are no units"})
    khat, note = _khat(h)
    numbers = _means(h) | _bounded(h)
    blocks = _renyi2_by_blocks(h) if h.level == "sequence" else None
    refusal = _refusal(h, khat, numbers["mean_ratio"], blocks)
    numbers |= _moments(h, refusal)
    if blocks is not None:
        numbers["renyi2_by_blocks"] = Number(
            blocks,
            sample=blocks,
            unit="nats",
            meaning="renyi2 extrapolated from shorter blocks of tokens: a model, as a check.",
        )
    numbers["khat"] = Number(
        khat, sample=khat, unit="", meaning="Pareto tail index of the ratio; its variance is finite below 0.5."
    )
    if h.level == "token":
        numbers |= _token(h)
    return Summary(**{**vars(base), "numbers": numbers, "refusal": refusal, "note": note})


def excess(stats: RatioStats, cap: float) -> Number:
    """`b(C) = E_mu (r - C)_+`, the weight that truncation at `cap` loses, with its interval.

    Estimated as `1 - mean min(r, C)`, which is bounded, and so honest under any tail; it needs `E_mu r = 1`. Between
    two caps of the grid the sample mean of min(r, C) is interpolated, which is exact to the spread within half an octave.
    """
    return _excess(host(stats), cap)


def _interval(h: _Host, combine: Callable[[dict[str, Array]], Array]) -> tuple[float, float]:
    return clustered(combine(h.clusters), h.clusters["n"])


def _means(h: _Host) -> dict[str, Number]:
    n, scale = h.n, math.exp(min(h.shift_max, 700.0))
    k1 = -h.total("l") / n
    mean = math.exp(min(h.log_power(1.0) - math.log(n), 700.0))
    spread = math.sqrt(max(0.0, h.total("l2") / n - k1 * k1))
    lo_m, hi_m = _interval(h, lambda c: c["w1"] * scale)
    lo_k, hi_k = _interval(h, lambda c: -c["l"])
    lo_a, hi_a = _interval(h, lambda c: c["abs"])
    out = {
        "mean_ratio": Number(
            mean,
            lo_m,
            hi_m,
            mean,
            "ratio",
            "Mean of pi/mu; 1 if the logged log-probs are those that were sampled from.",
        ),
        "kl_k1": Number(
            k1, lo_k, hi_k, k1, "nats", "KL(mu||pi) by -log r: unbiased; below 0 only by noise or a fault."
        ),
    }
    if h.level == "token":
        lo_3, hi_3 = _interval(h, lambda c: c["w1"] * scale - c["n"] - c["l"])
        value = mean - 1 + k1
        out["kl_k3"] = Number(
            value, lo_3, hi_3, value, "nats", "KL(mu||pi) by r - 1 - log r: less noise for small gaps."
        )
    mean_abs = h.total("abs") / n
    out["mean_abs"] = Number(mean_abs, lo_a, hi_a, mean_abs, "nats", "Mean |log ratio|.")
    out["sd"] = Number(spread, sample=spread, unit="nats", meaning="Standard deviation of the log ratio.")
    return out


def _effective_n(h: _Host, name: str, variance: float) -> float:
    return h.n / design_effect(h.clusters[name], h.clusters["n"], h.n, variance)


def _bounded(h: _Host) -> dict[str, Number]:
    n = h.n
    tv = h.total("tv") / n
    n_eff = _effective_n(h, "tv", max(0.0, h.total("tv2") / n - tv * tv))
    half = math.exp(h.log_power(0.5) - math.log(n))
    return {
        "tv": Number(
            tv,
            *bernoulli_kl(tv, n_eff),
            tv,
            "",
            "Total variation between pi and mu: E (1 - r)_+, bounded, so always honest.",
        ),
        "hellinger": Number(
            max(0.0, 1 - half), None, None, max(0.0, 1 - half), "", "Squared Hellinger distance: 1 - E sqrt(r)."
        ),
    }


def _refusal(h: _Host, khat: float | None, mean: Number, blocks: float | None) -> str:
    """Why moments of the ratio cannot be told from this sample; empty if they can (first reason found)."""
    n = h.n
    if n < MIN_UNITS:
        return f"{n:.0f} units are too few (at least {MIN_UNITS})"
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
    if (
        mean.low is not None
        and mean.high is not None
        and not mean.low <= 1 <= mean.high
        and abs((mean.value or 0) - 1) > 1e-3
    ):
        return f"the mean ratio {mean.value:.3g} is not 1, so mu is not what was sampled from, or pi's support is wider"
    plug_in = h.log_power(2.0) - math.log(n)
    if blocks is not None and blocks > 2 * plug_in and blocks > 0.1:  # noqa: PLR2004 - 10%: below it both say "small"
        return (
            f"log(1 + chi2) is {plug_in:.2g} in the sample and {blocks:.2g} by blocks of tokens: the tail was not seen"
        )
    return ""


def _renyi2_by_blocks(h: _Host) -> float | None:
    """`(T / size) log mean r_block^2` with the largest blocks whose mean square is known to 25%; None if there are none.

    Source: blocks as independent draws; the rule for the size is ours.
    """
    length = h.total("tokens") / h.total("seqs")
    for size, (count, squares, fourths, shift) in reversed(list(zip(BLOCK_SIZES, h.blocks, strict=True))):
        if count < MIN_UNITS or squares <= 0 or 2 * size > length:
            continue
        error = math.sqrt(max(0.0, fourths / squares**2 - 1 / count))
        if error < 0.25:  # noqa: PLR2004 - see the docstring
            return float(length / size * (math.log(squares / count) + 2 * shift))
    return None


def _moments(h: _Host, refusal: str) -> dict[str, Number]:
    n = h.n
    log1, log2 = h.log_power(1.0), h.log_power(2.0)
    renyi2, ess = log2 - math.log(n), math.exp(2 * log1 - log2)
    fraction, share = ess / n, math.exp(h.top[0] - log1)
    told = None if refusal else 1.0
    certified = _renyi2_lower(h)
    return {
        "renyi2": Number(
            None if told is None else renyi2,
            sample=renyi2,
            unit="nats",
            refused=refusal,
            meaning="log(1 + chi-square) of pi from mu: how much variance importance sampling adds.",
        ),
        "renyi2_at_least": Number(
            certified, certified, None, certified, "nats", "A lower bound of renyi2 that holds under any tail (95%)."
        ),
        "ess": Number(
            ess, sample=ess, unit="units", meaning="Effective number of units in this very sample: (sum w)^2 / sum w^2."
        ),
        "ess_fraction": Number(
            None if told is None else fraction,
            sample=fraction,
            refused=refusal,
            meaning="Effective share of units that importance sampling leaves: 1 / (1 + chi-square).",
        ),
        "largest_share": Number(share, sample=share, meaning="Share of all weight that the largest unit carries."),
    }


def _renyi2_lower(h: _Host) -> float:
    """log of a certified lower bound of 1 + chi2: the best over the grid of E min(r, C)^2 and of 1 + 4 TV^2."""
    tries, n = len(CAPS) + 1, h.n
    counts, sums, squares = (g.sum(0) for g in h.grid)
    best = 0.0
    for i, cap in enumerate(CAPS):
        over = counts[i + 1 :].sum()
        mean = (squares[: i + 1].sum() + cap * cap * over) / n
        low, _ = bernoulli_kl(min(mean, cap * cap), n, cap * cap, 0.05 / tries)
        best = max(best, math.log(low) if low > 0 else 0.0)
    tv_low, _ = bernoulli_kl(h.total("tv") / n, n, 1.0, 0.05 / tries)
    return max(best, math.log1p(4 * tv_low * tv_low))


def _excess(h: _Host, cap: float) -> Number:
    n = h.n
    counts, sums, _ = (g.sum(0) for g in h.grid)
    # Mean of min(r, C) at the caps of the grid; r below the grid is linear in C there.
    at_caps = [(sums[: i + 1].sum() + c * counts[i + 1 :].sum()) / n for i, c in enumerate(CAPS)]
    mean = float(np.interp(cap, [0.0, *CAPS], [0.0, *at_caps]))
    n_eff = _effective_n(h, "tv", max(0.0, h.total("tv2") / n - (h.total("tv") / n) ** 2))
    low, high = bernoulli_kl(min(mean, cap), n_eff, cap)
    return Number(
        max(0.0, 1 - mean),
        max(0.0, 1 - high),
        min(1.0, 1 - low),
        max(0.0, 1 - mean),
        "ratio",
        f"Mean weight that truncation at {cap:g} cuts off.",
    )


def _token(h: _Host) -> dict[str, Number]:
    n = h.n
    low, high, peak = h.total("pd") / n, h.total("pu") / n, float(h.peaks[2])
    counts = h.grid[0].sum(0)
    far = float(counts[_cap_index(2.0) + 1 :].sum() + counts[: _cap_index(0.5) + 1].sum()) / n
    return {
        "prob_gap": Number(
            low, sample=low, meaning="Mean |pi - mu| of sampled tokens: the mean per-state TV is at least this."
        ),
        "tv_state_at_most": Number(
            high, sample=high, meaning="Mean 1 - min(pi, mu): the mean per-state TV is at most this."
        ),
        "largest_gap": Number(
            peak, sample=peak, meaning="Largest |pi - mu| seen: the largest per-state TV is at least this."
        ),
        "beyond_2x": Number(
            far, *bernoulli_kl(min(far, 1.0), n), far, "", "Share of tokens with a ratio outside [1/2, 2]."
        ),
    }


def _cap_index(cap: float) -> int:
    return min(range(len(CAPS)), key=lambda i: abs(CAPS[i] - cap))


def _khat(h: _Host) -> tuple[float | None, str]:
    """Tail index from the largest log ratios; None, and why, if it cannot be had."""
    top = h.top[np.isfinite(h.top)]
    n = int(min(h.n, 7225))  # the sample size whose tail, 3 sqrt(n) = 255 points, is the one that was kept
    tail = n // 5 if n <= 225 else int(3 * math.sqrt(n))  # Vehtari et al. 2024
    if n < MIN_UNITS or top[0] - top[tail - 1] < 1e-12:  # too few units, or all the largest are equal: no tail
        return None, ""
    try:
        from arviz_stats.base import array_stats
    except ModuleNotFoundError:
        return None, 'the tail index needs arviz-stats: pip install "reweigh[audit]"'
    # Only the tail is read, so what stands for the body may be anything below it.
    body = np.full(n, top[-1] - 1.0)
    body[: min(n, len(top))] = top[:n]
    return float(array_stats.psislw(-body)[1]), ""
