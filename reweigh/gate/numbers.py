"""Which numbers a gate can bound, and an interval for each of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, get_args

from reweigh.bootstrap import bootstrap
from reweigh.capped import excess
from reweigh.host import HostSums, to_host
from reweigh.intervals import bernoulli_kl
from reweigh.number import Number
from reweigh.stats import RatioStats
from reweigh.summary import Summary, summarise

LevelName = Literal["token", "sequence", "turn"]
LEVEL_NAMES: tuple[LevelName, ...] = get_args(LevelName)
Worse = Literal["more", "less", "either"]

_CAP = 2.0  # ratio; the field's most common cap, as in the audit
_TAIL_SAMPLE = 7225  # units: no more of the tail than 3 sqrt(7225) points is kept (`reweigh.tail`)
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Kind:
    """What a gate must know of a number before it can bound it.

    Attributes:
        worse: which way is bad.
        low: the smallest value that it can have.
        high: the largest.
        levels: where it exists.
        exact: true of a fact about the very records: it has no error, and says nothing of any other records.
        rate: its interval narrows as n^-rate.
    """

    worse: Worse
    low: float = -math.inf
    high: float = math.inf
    levels: tuple[LevelName, ...] = LEVEL_NAMES
    exact: bool = False
    rate: float = 0.5

    @property
    def scale(self) -> bool:
        """Whether "1.2 times the baseline" means something: it is never negative, and 0 is as good or bad as can be."""
        return self.low == 0 and self.worse != "either"


_TOKEN: tuple[LevelName, ...] = ("token",)
_SEQUENCE: tuple[LevelName, ...] = ("sequence",)
KINDS: Mapping[str, Kind] = {
    "mean_ratio": Kind("either", 0.0),
    "kl_k3": Kind("more", 0.0, levels=_TOKEN),
    "kl_k1": Kind("more"),
    "mean_abs": Kind("more", 0.0),
    "sd": Kind("more", 0.0),
    "tv": Kind("more", 0.0, 1.0),
    "tv_sum": Kind("more", 0.0, levels=_TOKEN),
    "hellinger": Kind("more", 0.0, 1.0),
    "beyond_2x": Kind("more", 0.0, 1.0, levels=_TOKEN),
    "prob_gap": Kind("more", 0.0, 1.0, levels=_TOKEN),
    "excess_2": Kind("more", 0.0, 1.0),
    "unseen": Kind("more", high=1.0),
    "renyi2": Kind("more", 0.0),
    "ess_fraction": Kind("less", 0.0, 1.0),
    # The error of a tail index goes with the points of the tail, and there are 3 sqrt(n) of them.
    "khat": Kind("more", rate=0.25),
    "hybrid": Kind("more", 0.0, levels=_SEQUENCE),
    "ess": Kind("less", 0.0, exact=True),
    "largest_share": Kind("more", 0.0, 1.0, exact=True),
    "largest_gap": Kind("more", 0.0, 1.0, levels=_TOKEN, exact=True),
}
"""Numbers that can be bounded, by name."""

INSTEAD: Mapping[str, str] = {
    "unseen_at_most": "it is one end of an interval, and a bound on it could never be broken: bound unseen",
    "renyi2_at_least": "it is one end of an interval: bound renyi2, which is broken if even this end is beyond",
    "renyi2_by_blocks": "it is a model, for a check: bound renyi2",
    "kl_pi_mu": "it has no interval: bound renyi2, which is at least as large",
    "state_tv_at_most": "it has no interval, and goes with the prompts more than with the gap: bound prob_gap",
    "longer": "it has no interval: bound hybrid",
    "token_is_gap": "it has no interval: bound hybrid",
    "delta_max": "no sample can tell it: bound largest_gap or beyond_2x",
}
"""Numbers of the audit that cannot be bounded: why, and what to bound in their place."""


def measured(stats: RatioStats) -> tuple[Summary, dict[str, Number]]:
    """The summary of the stats, and every number that can be bounded, with its 95% interval.

    To what `summarise` gives this adds: bootstrap intervals of `sd`, `renyi2` and `ess_fraction` over whole prompts,
    `renyi2` never below its certified lower bound; a Chernoff interval of `prob_gap`, a mean of values in [0, 1]; and
    for `khat` the standard error (1 + k) / sqrt(m) of m tail points. Where a moment is refused, the end that holds
    under any tail is kept: a bound can still be broken for certain. With one prompt alone there is no interval.

    Source: Smith (1987) for the tail index, with the m of Vehtari et al. (2024).
    """
    summary = summarise(stats)
    if summary.n == 0:
        return summary, {}
    h = to_host(stats)
    found = dict(summary.numbers)
    cut = excess(stats, _CAP)
    if not summary.identity:  # it is what is missing from a mean of 1
        cut = replace(cut, value=None, low=None, high=None, refused="the mean ratio is not 1")
    found["excess_2"] = cut
    boot, least = bootstrap(stats), summary["renyi2_at_least"].low or 0.0
    found["sd"] = _around(found["sd"], *boot["sd"])
    if summary.refusal:
        found["renyi2"] = replace(found["renyi2"], low=least, high=None)
        found["ess_fraction"] = replace(found["ess_fraction"], low=None, high=math.exp(-least))
    else:
        low, high = boot["renyi2"]
        found["renyi2"] = _around(found["renyi2"], max(low, least), high)
        low, high = boot["ess_fraction"]
        found["ess_fraction"] = _around(found["ess_fraction"], max(0.0, low), min(high, math.exp(-least)))
    if "prob_gap" in found:
        mean = found["prob_gap"].value or 0.0
        found["prob_gap"] = _around(found["prob_gap"], *bernoulli_kl(min(mean, 1.0), h.effective_n))
    found["khat"] = _tail(found["khat"], h)
    alone = int((h.clusters["n"] > 0).sum()) < 2  # tokens of one response tell nothing of another
    for name, kind in KINDS.items():
        if name not in found:
            continue
        if kind.exact:
            found[name] = replace(found[name], low=found[name].value, high=found[name].value)
        elif alone:
            found[name] = replace(found[name], low=-math.inf, high=math.inf)
        elif found[name].low is not None and found[name].high is not None:
            found[name] = _around(found[name], found[name].low or 0.0, found[name].high or 0.0)
    return summary, {name: found[name] for name in KINDS if name in found}


def _around(number: Number, low: float, high: float) -> Number:
    """With this interval, stretched to the value where rounding or a skewed resample leaves it out."""
    if number.value is None:
        return replace(number, low=low, high=high)
    return replace(number, low=min(low, number.value), high=max(high, number.value))


def _tail(number: Number, h: HostSums) -> Number:
    k = number.value
    if k is None:
        return replace(number, refused=number.refused or "too few units, or all alike")
    n = min(h.effective_n, _TAIL_SAMPLE)
    half = _Z * (1 + max(k, -0.5)) / math.sqrt(min(n / 5, 3 * math.sqrt(n)))
    return replace(number, low=k - half, high=k + half)
