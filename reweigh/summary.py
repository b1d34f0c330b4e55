"""From sums to numbers: each with its interval, its n, and a refusal where the data cannot tell."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from reweigh.capped import excess as excess
from reweigh.delta import delta_max
from reweigh.host import HostSums, to_host
from reweigh.intervals import bernoulli_kl, clustered, root_mean, t_quantile
from reweigh.number import Number as Number
from reweigh.stats import RatioStats
from reweigh.sums import CAPS
from reweigh.tail import (
    drift_of,
    exp,
    identity_holds,
    kl_pi_mu,
    mean_ratio,
    refusal_of,
    renyi2_by_blocks,
    renyi2_lower,
    tail_index,
    unseen_at_most,
)

Array = NDArray[np.float64]


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
        note: what kept a check from being made, or what two figures that disagree mean; empty as a rule.
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

    Bounded quantities (TV; `excess`, `lost` and `min2` of `reweigh.capped`) have Chernoff intervals at the effective
    number of units that clustering leaves, joined by empirical Bernstein ones from 4,000 units on; means have clustered
    t intervals. Moments of the ratio itself (chi-square, the population's
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
    identity = identity_holds(h, khat)
    refusal = refusal_of(h, khat, identity, blocks)
    tail = {"khat": Number(khat, sample=khat, meaning="Pareto tail index of the ratio; its variance exists below 0.5.")}
    if blocks is not None:
        what = "renyi2 extrapolated from shorter blocks of tokens: a model, as a check."
        value, error = blocks
        tail["renyi2_by_blocks"] = Number(value, value - 2 * error, value + 2 * error, value, "nats", what)
    numbers = means | _bounded(h) | _moments(h, refusal) | tail
    numbers |= _token(h) if h.level == "token" else _hybrid(h, refusal) if h.level == "sequence" else {}
    notes = (note, drift_of(h, blocks))
    return replace(base, numbers=numbers, identity=identity, refusal=refusal, note="; ".join(x for x in notes if x))


def _interval(h: HostSums, combine: Callable[[dict[str, Array]], Array]) -> tuple[float, float]:
    return clustered(combine(h.clusters), h.clusters["n"])


def _means(h: HostSums) -> dict[str, Number]:
    k1 = -h.total("l") / h.n
    mean, low, high = mean_ratio(h)
    mean_abs = h.total("abs") / h.n
    spread = math.sqrt(max(0.0, h.total("l2") / h.n - k1 * k1))
    what = "Mean of pi/mu; 1 if the logged log-probs are those that were sampled from."
    out = {"mean_ratio": Number(mean, low, high, mean, "ratio", what)}
    what = "pi's mass where mu has none: 1 - mean r; under a heavy tail also mass that this sample missed."
    out["unseen"] = Number(1 - mean, 1 - high, 1 - low, 1 - mean, "", what)
    most = unseen_at_most(h)
    what = "An upper bound of pi's mass where mu has none, under any tail (95%)."
    out["unseen_at_most"] = Number(most, None, most, most, "", what)
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
    # Two upper bounds, each at 97.5%: the squared Hellinger distance is at most the total variation.
    low, high = root_mean(1 - hellinger, h.effective_n, 0.025)
    most = max(hellinger, min(1 - low, h.tv_interval[1]))
    return {
        "tv": Number(tv, *h.tv_interval, tv, "", what),
        "hellinger": Number(hellinger, 1 - high, most, hellinger, "", "Squared Hellinger distance: 1 - E sqrt(r)."),
    }


def _moments(h: HostSums, refusal: str) -> dict[str, Number]:
    log1, log2 = h.log_power(1.0), h.log_power(2.0)
    ess, share = math.exp(2 * log1 - log2), math.exp(h.top[0] - log1)
    least, reverse = renyi2_lower(h), kl_pi_mu(h)

    def told(value: float, unit: str, meaning: str) -> Number:
        return Number(None if refusal else value, None, None, value, unit, meaning, refusal)

    return {
        "renyi2": told(
            h.renyi2, "nats", "log(1 + chi-square) of pi from mu, as log(n / ESS): the variance that weights add."
        ),
        "renyi2_at_least": Number(least, least, None, least, "nats", "A lower bound of renyi2 under any tail (95%)."),
        "kl_pi_mu": told(reverse, "nats", "KL(pi||mu): mean r log r, self-normalised; never over log n in a sample."),
        "ess_fraction": told(
            ess / h.n, "", "Effective share of units under importance sampling: 1 / (1 + chi-square)."
        ),
        "ess": Number(ess, None, None, ess, "units", "Effective number of units in this sample: (sum w)^2 / sum w^2."),
        "largest_share": Number(share, None, None, share, "", "Share of all weight that the largest unit carries."),
    }


def _hybrid(h: HostSums, refusal: str) -> dict[str, Number]:
    """What bounds the bias of token importance sampling, from sequences: see `bounds.token_is_bias_by_hybrids`."""
    hybrid = h.total("hybrid") / h.n
    variance = max(0.0, h.total("hybrid2") / h.n - hybrid * hybrid)
    n_eff = h.effective_n
    half = t_quantile(0.975, int(n_eff) - 1) * math.sqrt(variance / (n_eff - 1)) if n_eff >= 2 else math.inf
    # E (r - 1) T = E (r - 1) (T - c) for every c, as E r = 1; with the mean length for c, equal lengths give 0 exactly
    # and others much less noise. Ratios over the grid count as its top in the sum that is corrected, so here too.
    counts, sums, _ = (g.sum(0) for g in h.grid)
    mean = float(sums.sum() + counts[-1] * CAPS[-1]) / h.n
    longer = h.total("longer") / h.n - (mean - 1) * h.total("tokens") / h.n
    gap = max(0.0, 2 * hybrid + longer)
    what = "Sum over tokens of E (r_t - r)_+: with one length for all, half of token_is_gap."
    out = {"hybrid": Number(hybrid, max(0.0, hybrid - half), hybrid + half, hybrid, "", what)}
    what = "How many tokens longer pi's responses are than mu's on average."
    out["longer"] = Number(None if refusal else longer, None, None, longer, "tokens", what, refusal)
    what = "2 hybrid + longer: times half the reward's range and the largest score norm, a bound of Token-IS's bias."
    out["token_is_gap"] = Number(None if refusal else gap, None, None, gap, "", what, refusal)
    return out


def _token(h: HostSums) -> dict[str, Number]:
    low, high, peak = h.total("pd") / h.n, h.total("pu") / h.n, float(h.peaks[2])
    length = h.total("tokens") / h.total("seqs")
    tv = h.total("tv") / h.n
    least, most = (length * x for x in h.tv_interval)
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
        "delta_max": delta_max(h),
        "tv_sum": Number(
            tv * length,
            least,
            most,
            tv * length,
            "",
            "TV summed over a response of mean length: sequence TV is at most it.",
        ),
        "beyond_2x": Number(
            far, *bernoulli_kl(min(far, 1.0), h.effective_n), far, "", "Share of tokens with a ratio outside [1/2, 2]."
        ),
    }


def _cell_above(cap: float) -> int:
    """The first cell of the grid whose ratios are over the cap, which is one of the grid's."""
    return 1 + min(range(len(CAPS)), key=lambda i: abs(CAPS[i] - cap))
