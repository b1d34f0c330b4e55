"""From sums to numbers: each with its interval, its n, and a refusal where the data cannot tell."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from reweigh.host import HostSums, to_host
from reweigh.intervals import bernoulli_kl, clustered
from reweigh.stats import RatioStats
from reweigh.sums import CAPS
from reweigh.tail import exp, identity_holds, mean_ratio, refusal_of, renyi2_by_blocks, renyi2_lower, tail_index

Array = NDArray[np.float64]


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
        identity: whether the mean ratio can be 1, at a confidence of 99.9%.
        refusal: why moments of the ratio are refused; empty if they are not.
        note: what kept a check from being made; empty as a rule.
    """

    level: str
    n: int
    sequences: int
    tokens: int
    dropped: int
    numbers: dict[str, Number] = field(default_factory=dict[str, Number])
    identity: bool = True
    refusal: str = ""
    note: str = ""

    def __getitem__(self, name: str) -> Number:
        """The number of that name."""
        return self.numbers[name]

    def get(self, name: str) -> float | None:
        """Its value, or None if refused."""
        return self.numbers[name].value


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
    h = to_host(stats)
    base = Summary(h.level, int(h.n), int(h.total("seqs")), int(h.total("tokens")), int(h.dropped))
    if h.n == 0:
        return replace(base, refusal="there are no units")
    khat, note = tail_index(h)
    means = _means(h)
    blocks = renyi2_by_blocks(h) if h.level == "sequence" else None
    identity = identity_holds(h)
    refusal = refusal_of(h, khat, identity, blocks)
    tail = {"khat": Number(khat, sample=khat, meaning="Pareto tail index of the ratio; its variance exists below 0.5.")}
    if blocks is not None:
        what = "renyi2 extrapolated from shorter blocks of tokens: a model, as a check."
        value, error = blocks
        tail["renyi2_by_blocks"] = Number(value, value - 2 * error, value + 2 * error, value, "nats", what)
    numbers = means | _bounded(h) | _moments(h, refusal) | tail | (_token(h) if h.level == "token" else {})
    return replace(base, numbers=numbers, identity=identity, refusal=refusal, note=note)


def excess(stats: RatioStats, cap: float) -> Number:
    """`b(C) = E_mu (r - C)_+`, the weight that truncation at `cap` loses, with its interval.

    Estimated as `1 - mean min(r, C)`, which is bounded, and so honest under any tail; it needs `E_mu r = 1`. Between
    two caps of the grid the sample mean of min(r, C) is interpolated, which is exact to the spread within half an
    octave.
    """
    return _excess(to_host(stats), cap)


def _interval(h: HostSums, combine: Callable[[dict[str, Array]], Array]) -> tuple[float, float]:
    return clustered(combine(h.clusters), h.clusters["n"])


def _means(h: HostSums) -> dict[str, Number]:
    k1 = -h.total("l") / h.n
    mean, low, high = mean_ratio(h)
    mean_abs = h.total("abs") / h.n
    spread = math.sqrt(max(0.0, h.total("l2") / h.n - k1 * k1))
    what = "Mean of pi/mu; 1 if the logged log-probs are those that were sampled from."
    out = {"mean_ratio": Number(mean, low, high, mean, "ratio", what)}
    what = "KL(mu||pi) by -log r: unbiased; below 0 only by noise or a fault."
    out["kl_k1"] = Number(k1, *_interval(h, lambda c: -c["l"]), k1, "nats", what)
    if h.level == "token":
        scale, k3 = exp(h.shift_max), h.total("l2") / h.n / 2 if h.tiny else mean - 1 + k1
        if h.tiny:
            ends = _interval(h, lambda c: c["l2"] / 2)
        else:
            ends = _interval(h, lambda c: c["w1"] * scale - c["n"] - c["l"]) if scale < math.inf else (0.0, math.inf)
        what = "KL(mu||pi) by r - 1 - log r: less noise for small gaps."
        out["kl_k3"] = Number(k3, *ends, k3, "nats", what)
    out["mean_abs"] = Number(mean_abs, *_interval(h, lambda c: c["abs"]), mean_abs, "nats", "Mean |log ratio|.")
    out["sd"] = Number(spread, sample=spread, unit="nats", meaning="Standard deviation of the log ratio.")
    return out


def _bounded(h: HostSums) -> dict[str, Number]:
    tv = h.total("tv") / h.n
    series = -(h.total("l") / 2 + h.total("l2") / 8) / h.n
    hellinger = max(0.0, series if h.tiny else 1 - math.exp(h.log_power(0.5) - math.log(h.n)))
    what = "Total variation between pi and mu: E (1 - r)_+, bounded, so honest under any tail."
    return {
        "tv": Number(tv, *bernoulli_kl(tv, h.effective_n), tv, "", what),
        "hellinger": Number(hellinger, sample=hellinger, meaning="Squared Hellinger distance: 1 - E sqrt(r)."),
    }


def _moments(h: HostSums, refusal: str) -> dict[str, Number]:
    log1, log2 = h.log_power(1.0), h.log_power(2.0)
    ess, share = math.exp(2 * log1 - log2), math.exp(h.top[0] - log1)
    least = renyi2_lower(h)

    def told(value: float, unit: str, meaning: str) -> Number:
        return Number(None if refusal else value, None, None, value, unit, meaning, refusal)

    return {
        "renyi2": told(
            h.renyi2, "nats", "log(1 + chi-square) of pi from mu, as log(n / ESS): the variance that weights add."
        ),
        "renyi2_at_least": Number(least, least, None, least, "nats", "A lower bound of renyi2 under any tail (95%)."),
        "ess_fraction": told(
            ess / h.n, "", "Effective share of units under importance sampling: 1 / (1 + chi-square)."
        ),
        "ess": Number(ess, None, None, ess, "units", "Effective number of units in this sample: (sum w)^2 / sum w^2."),
        "largest_share": Number(share, None, None, share, "", "Share of all weight that the largest unit carries."),
    }


def _excess(h: HostSums, cap: float) -> Number:
    counts, sums, _ = (g.sum(0) for g in h.grid)
    # Mean of min(r, C) at the caps of the grid; between them it is concave, and the chord is below it.
    at_caps = [(sums[: i + 1].sum() + c * counts[i + 1 :].sum()) / h.n for i, c in enumerate(CAPS)]
    mean = float(np.interp(cap, [0.0, *CAPS], [0.0, *at_caps]))
    low, high = bernoulli_kl(min(mean, cap), h.effective_n, cap)
    value = max(0.0, 1 - mean)
    what = f"Mean weight that truncation at {cap:g} cuts off."
    # A sample whose mean ratio is over 1 can leave 1 - low below 0, where no excess is.
    return Number(value, max(0.0, 1 - high), max(0.0, 1 - low), value, "ratio", what)


def _token(h: HostSums) -> dict[str, Number]:
    low, high, peak = h.total("pd") / h.n, h.total("pu") / h.n, float(h.peaks[2])
    counts = h.grid[0].sum(0)
    far = float(counts[_cell_above(2.0) :].sum() + counts[: _cell_above(0.5)].sum()) / h.n
    return {
        "prob_gap": Number(
            low, None, None, low, "", "Mean |pi - mu| of sampled tokens: the mean TV of states is at least it."
        ),
        "state_tv_at_most": Number(
            high, None, None, high, "", "Mean 1 - min(pi, mu): the mean TV of states is at most it."
        ),
        "largest_gap": Number(
            peak, None, None, peak, "", "Largest |pi - mu|: the largest TV of a state is at least it."
        ),
        "beyond_2x": Number(
            far, *bernoulli_kl(min(far, 1.0), h.effective_n), far, "", "Share of tokens with a ratio outside [1/2, 2]."
        ),
    }


def _cell_above(cap: float) -> int:
    """The first cell of the grid whose ratios are over the cap, which is one of the grid's."""
    return 1 + min(range(len(CAPS)), key=lambda i: abs(CAPS[i] - cap))
