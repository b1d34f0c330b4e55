"""From sums to numbers: each with its interval, its n, and a refusal where the data cannot tell it."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reweigh.stats.intervals import Interval, Method, Number, bernoulli_kl, bounded, clustered, root_mean, t_quantile
from reweigh.stats.sums import BLOCK_SIZES, CAPS, GRID_LOW, GRID_STEP, MIN_UNITS, HostSums, RatioStats
from reweigh.stats.tail import (
    MAX_BLOCK_ERROR,
    block_rates,
    drift_of,
    exp,
    identity_holds,
    kl_pi_mu,
    mean_ratio,
    mean_refusal,
    refusal_of,
    renyi2_by_blocks,
    renyi2_lower,
    unseen_at_most,
)

NO_UPPER_BOUND = (
    "no upper bound of the largest TV of a state can come from samples: one token is drawn at each state, and most "
    "states are never visited; a lower bound can"
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
        identity: whether the mean ratio can be 1; False if it is off by what matters, and not by chance.
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
        """Give the number of that name."""
        return self.numbers[name]

    def value(self, name: str) -> float | None:
        """Give the value of the number of that name, or None if it is refused."""
        return self.numbers[name].value


def summarise(stats: RatioStats) -> Summary:
    """Numbers of the stats, with intervals and refusals. The one host sync.

    Bounded quantities (TV; `excess`, `lost` and `min2`) have Chernoff intervals at the effective
    number of units that clustering leaves, joined by empirical Bernstein ones from 4,000 units on; means have clustered
    t intervals. Moments of the ratio itself (chi-square, the population's
    effective sample size) are refused when the sample cannot carry them, and then only certified bounds are given.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats, summarise
        >>> batch = Batch.padded(torch.full((30, 4), -1.0), torch.full((30, 4), -1.0), torch.ones(30, 4))
        >>> summarise(RatioStats.of(batch, SEQUENCE)).value("tv")
        0.0
    """
    h = stats.host
    base = Summary(h.level, int(h.n), int(h.total["seqs"]), int(h.total["tokens"]), int(h.dropped))
    if h.n == 0:
        return replace(base, refusal="there are no units")
    khat = h.tail.khat
    blocks = renyi2_by_blocks(h) if h.level == "sequence" else None
    identity = identity_holds(h, khat)
    means = _means(h, mean_refusal(h, khat) if identity else "")
    refusal = refusal_of(h, khat, identity, blocks)
    what = "Pareto tail index of the ratio; its variance exists below 0.5."
    if h.tail.plateau and khat is not None:
        what += f" {h.tail.plateau} of the largest ratios are a plateau of equal ones, and not in the fit."
    tail = {"khat": Number(khat, sample=khat, refused=h.tail.unfit, meaning=what)}
    if blocks is not None:
        what = "renyi2 extrapolated from shorter blocks of tokens: a model, as a check."
        value, error = blocks
        tail["renyi2_by_blocks"] = Number(value, value - 2 * error, value + 2 * error, value, "nats", what)
    numbers = means | _moments(h, refusal) | _capped(h) | tail
    numbers |= _token(h) if h.level == "token" else _hybrid(h, refusal) if h.level == "sequence" else {}
    return replace(base, numbers=numbers, identity=identity, refusal=refusal, note=drift_of(h, blocks))


def _interval(h: HostSums, combine: Callable[[dict[str, Array]], Array]) -> tuple[float, float]:
    return clustered(combine(h.clusters), h.clusters["n"])


def _means(h: HostSums, untold: str) -> dict[str, Number]:
    k1 = -h.total["l"] / h.n
    mean, low, high = mean_ratio(h)
    mean_abs = h.total["abs"] / h.n
    spread = math.sqrt(max(0.0, h.total["l2"] / h.n - k1 * k1))
    what = "Mean of pi/mu; 1 if the logged log-probs are those that were sampled from."
    out = {"mean_ratio": Number(mean, low, high, mean, "ratio", what)}
    what = "pi's mass where mu has none: 1 - mean r."
    out["unseen"] = Number(1 - mean, 1 - high, 1 - low, 1 - mean, "", what)
    if untold:
        out = {name: replace(x, value=None, low=None, high=None, refused=untold) for name, x in out.items()}
    most = unseen_at_most(h)
    what = "An upper bound of pi's mass where mu has none, under any tail (95%)."
    out["unseen_at_most"] = Number(most, None, most, most, "", what)
    what = "KL(mu||pi) by -log r: unbiased; below 0 only by noise or a fault."
    out["kl_k1"] = Number(k1, *_interval(h, lambda c: -c["l"]), k1, "nats", what)
    if h.level == "token":
        scale, k3 = exp(h.shift_max), h.total["l2"] / h.n / 2 if h.tiny else mean - 1 + k1
        if h.tiny:
            ends = _interval(h, lambda c: c["l2"] / 2)
        else:
            ends = _interval(h, lambda c: c["w1"] * scale - c["n"] - c["l"]) if h.shift_max < 300 else (0.0, math.inf)
        what = "KL(mu||pi) by r - 1 - log r: less noise for small gaps."
        out["kl_k3"] = Number(k3, *ends, k3, "nats", what)
    out["mean_abs"] = Number(mean_abs, *_interval(h, lambda c: c["abs"]), mean_abs, "nats", "Mean |log ratio|.")
    out["sd"] = Number(spread, sample=spread, unit="nats", meaning="Standard deviation of the log ratio.")
    tv = h.total["tv"] / h.n
    series = -(h.total["l"] / 2 + h.total["l2"] / 8) / h.n
    hellinger = max(0.0, series if h.tiny else 1 - exp(h.log_power(0.5) - math.log(h.n)))
    what = "Total variation between pi and mu: E (1 - r)_+, bounded, so honest under any tail."
    # Two upper bounds, each at 97.5%: the squared Hellinger distance is at most the total variation.
    low, high = root_mean(1 - hellinger, h.effective_n, 0.025)
    most = max(hellinger, min(1 - low, h.tv_interval[1]))
    out["tv"] = Number(tv, *h.tv_interval, tv, "", what)
    what = "Squared Hellinger distance: 1 - E sqrt(r)."
    out["hellinger"] = Number(hellinger, 1 - high, most, hellinger, "", what)
    return out


def _moments(h: HostSums, refusal: str) -> dict[str, Number]:
    log1, log2 = h.log_power(1.0), h.log_power(2.0)
    ess, share = exp(2 * log1 - log2), exp(float(h.top[0]) - log1)
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


VERDICT_CAP = 2.0  # ratio; the field's most common cap: what it leaves of the weights decides which level serves


def _capped(h: HostSums) -> dict[str, Number]:
    """Say what truncation at 2 leaves: bounded means, and so honest under any tail."""
    left = _truncated(h, VERDICT_CAP, 1)
    mean, square = left.value / h.n, _truncated(h, VERDICT_CAP, 2).value / h.n
    low, high = left.interval(h, "best")
    effective = mean * mean / square if square > 0 else 0.0
    what = "Mean weight that a cap of 2 leaves: what is missing from 1 is the most of a gradient that it can miss."
    kept = Number(mean, min(low, mean), max(high, mean), mean, "", what)
    what = "Effective share of the weights under a cap of 2."
    return {"kept_2": kept, "effective_2": Number(effective, None, None, effective, "", what)}


def _hybrid(h: HostSums, refusal: str) -> dict[str, Number]:
    """Bound the bias of token importance sampling, from sequences: see `bounds.token_is_bias_by_hybrids`."""
    hybrid = h.total["hybrid"] / h.n
    variance = max(0.0, h.total["hybrid2"] / h.n - hybrid * hybrid)
    n_eff = h.effective_n
    half = t_quantile(0.975, int(n_eff) - 1) * math.sqrt(variance / (n_eff - 1)) if n_eff >= 2 else math.inf
    # E (r - 1) T = E (r - 1) (T - c) for every c, as E r = 1; with the mean length for c, equal lengths give 0 exactly
    # and others much less noise. Ratios over the grid count as its top in the sum that is corrected, so here too.
    counts, sums, _ = (g.sum(0) for g in h.grid)
    mean = float(sums.sum() + counts[-1] * CAPS[-1]) / h.n
    longer = h.total["longer"] / h.n - (mean - 1) * h.total["tokens"] / h.n
    gap = max(0.0, 2 * hybrid + longer)
    what = "Sum over tokens of E (r_t - r)_+: with one length for all, half of token_is_gap."
    out = {"hybrid": Number(hybrid, max(0.0, hybrid - half), hybrid + half, hybrid, "", what)}
    what = "How many tokens longer pi's responses are than mu's on average."
    out["longer"] = Number(None if refusal else longer, None, None, longer, "tokens", what, refusal)
    what = "2 hybrid + longer: times half the reward's range and the largest score norm, a bound of Token-IS's bias."
    out["token_is_gap"] = Number(None if refusal else gap, None, None, gap, "", what, refusal)
    return out


def _token(h: HostSums) -> dict[str, Number]:
    low, high, peak = h.total["pd"] / h.n, h.total["pu"] / h.n, float(h.peaks[2])
    length = h.total["tokens"] / h.total["seqs"]
    tv = h.total["tv"] / h.n
    least, most = (length * x for x in h.tv_interval)
    counts = h.grid[0].sum(0)
    # The first cell of the grid over 1/2, and over 2.
    half, two = (1 + round((math.log(cap) - GRID_LOW) / GRID_STEP) for cap in (0.5, 2.0))
    far = float(counts[two:].sum() + counts[:half].sum()) / h.n
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
        # At a visited state |pi(y) - mu(y)| <= TV <= 1 - min(pi(y), mu(y)) for the token y that was drawn, and the
        # latter is nearly 1 unless the token is nearly certain: so the largest TV of a state has a lower end only.
        # `max |r_t - 1| / 2` is no estimate of it: it can be over 1, and grows with the number of tokens.
        "delta_max": Number(
            None,
            peak,
            None,
            peak,
            "",
            "Largest total variation of a state: at least the largest |pi - mu| of a sampled token.",
            NO_UPPER_BOUND,
        ),
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


def excess(stats: RatioStats, cap: float, method: Method = "best") -> Number:
    """`b(C) = E_mu (r - C)_+ = 1 - E_mu min(r, C)`, the weight that truncation at `cap` loses, with its interval.

    The mean of min(r, C) is bounded, and so its interval is honest under any tail; it needs `E_mu r = 1`. At a cap of
    1 it is the total variation. Between two caps of the grid (half octaves) the value is interpolated, exact to the
    spread within half an octave, and the interval covers all that the cell of the grid could hide.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
        method: as `reweigh.stats.intervals.bounded`: "best", "chernoff" or "bernstein". Choose before you look.

    Returns:
        A number in [0, 1]; refused without units.

    Raises:
        ValueError: unless 0 < cap < inf.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats
        >>> from reweigh.stats.summary import excess
        >>> log_mu = torch.full((40, 1), -5.0)
        >>> log_ratio = torch.tensor([0.25, 1.75]).log().repeat(20)[:, None]
        >>> lost = excess(RatioStats.of(Batch.padded(log_mu + log_ratio, log_mu, torch.ones(40, 1)), SEQUENCE), 1.0)
        >>> print(f"{lost.value:.3f} in [{lost.low:.3f}, {lost.high:.3f}]")
        0.375 in [0.191, 0.589]

    Also called: hockey-stick divergence of order C.

    Source: `E_mu r = 1`; the interval as `bernoulli_kl`. Interpolation in C is from below, as min is concave.
    """
    h = stats.host
    what = f"Mean weight that truncation at {cap:g} cuts off."
    return _missing(h, _truncated(h, cap, 1), method, what)


def excess_plain(stats: RatioStats, cap: float) -> Number:
    """`mean (r - C)_+` over the sample: less noisy than `excess` under a light tail, far too low under a heavy one.

    It differs from `excess` by the mean ratio less 1, and so has no interval that holds under any tail. Where the two
    disagree, trust `excess`.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
    """
    h = stats.host
    mean = _truncated(h, cap, 1)
    what = f"Mean of (r - {cap:g})_+ in this sample; low under a heavy tail."
    if not h.n:
        return Number(None, meaning=what, refused="there are no units")
    log_mean = h.log_power(1.0) - math.log(h.n)
    value = max(0.0, (math.exp(log_mean) if log_mean < 709 else math.inf) - mean.value / h.n)
    return Number(value, None, None, value, "ratio", what)


def lost(stats: RatioStats, cap: float, method: Method = "best") -> Number:
    """`P_pi(r > C) = 1 - E_mu r 1{r <= C}`, the weight that rejection over `cap` loses, with its interval.

    Times sup |f| it bounds the bias of `seq_mis`. As `excess`, it needs `E_mu r = 1` and holds under any tail. A ratio
    that equals the cap to the last bits may be counted on either side.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
        method: as `excess`.

    Raises:
        ValueError: unless 0 < cap < inf.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats
        >>> log_mu = torch.full((40, 1), -5.0)
        >>> log_ratio = torch.tensor([0.25, 1.75]).log().repeat(20)[:, None]
        >>> stats = RatioStats.of(Batch.padded(log_mu + log_ratio, log_mu, torch.ones(40, 1)), SEQUENCE)
        >>> print(f"{lost(stats, 1.0).value:.3f} {lost(stats, 2.0).value:.3f}")
        0.875 0.000
    """
    h = stats.host
    return _missing(h, _rejected(h, cap), method, f"Mean weight that rejection over {cap:g} loses.")


def min2(stats: RatioStats, cap: float, method: Method = "best") -> Number:
    """`E_mu min(r, C)^2`, the second moment that truncation at `cap` leaves, with its interval.

    With `excess` it is what the error of a truncated estimator is made of: `|f|^2 (b(C)^2 + E min^2 / N)` at most. Its
    lower end bounds 1 + chi2 from below, for a cap that was chosen beforehand. It needs no `E_mu r = 1`.

    Args:
        stats: at any level.
        cap: C, a ratio pi/mu over 0.
        method: as `excess`; values are in [0, C^2], so that at large caps neither is narrow.

    Raises:
        ValueError: unless 0 < cap < inf.
    """
    h = stats.host
    what = f"Mean square of weights truncated at {cap:g}."
    if not h.n:
        return Number(None, unit="ratio^2", meaning=what, refused="there are no units")
    mean = _truncated(h, cap, 2)
    low, high = mean.interval(h, method)
    value = mean.value / h.n
    return Number(value, min(low, value), max(high, value), value, "ratio^2", what)


def states_beyond(stats: RatioStats, delta: float) -> Number:
    """`P_mu(TV(s) > delta) <= mean TV / delta`: the share of visited states with a total variation over delta, at most.

    It stands in for the largest total variation of a state, which no sample can bound: where a proof asks for that
    maximum, this says how much of the sampled path can be beyond it.

    Args:
        stats: at TOKEN level.
        delta: in (0, 1].

    Returns:
        value: the bound with the sample's mean; high: with the upper end of its 95% interval; low: 0.

    Raises:
        ValueError: at another level, or unless 0 < delta <= 1.

    Example:
        >>> import torch
        >>> from reweigh import TOKEN, Batch, RatioStats
        >>> log_mu = torch.full((100, 50), -3.0)
        >>> log_ratio = torch.tensor([0.98, 1.02]).log().repeat(100, 25)
        >>> batch = Batch.padded(log_mu + log_ratio, log_mu, torch.ones(100, 50))
        >>> beyond = states_beyond(RatioStats.of(batch, TOKEN), 0.2)
        >>> print(f"{beyond.value:.3f}, at most {beyond.high:.3f}")
        0.050, at most 0.064

    Source: Markov's inequality; `E (1 - r_t)_+` is the mean over visited states of their total variation.
    """
    if stats.level.name != "token":
        raise ValueError(f"states_beyond: stats must be at TOKEN level, got {stats.level.name.upper()}")
    if not 0 < delta <= 1:
        raise ValueError(f"states_beyond: delta must be over 0 and at most 1, got {delta}")
    h = stats.host
    what = f"Share of visited states with a total variation over {delta:g}, at most."
    if not h.n:
        return Number(None, meaning=what, refused="there are no units")
    tv = h.total["tv"] / h.n
    value, high = (min(1.0, x / delta) for x in (tv, h.tv_interval[1]))
    return Number(value, 0.0, high, value, "", what)


@dataclass(frozen=True)
class _GridSum:
    """A sum over units of values in [0, top], between sums that the grid gives exactly, with bounds of the squares."""

    value: float
    least: float
    most: float
    least_squares: float
    most_squares: float
    top: float

    def interval(self, h: HostSums, method: Method) -> tuple[float, float]:
        """Interval of the mean: its lower end for the least values, its upper one for the most."""
        n, n_eff, top = h.n, h.effective_n, self.top
        low, high = bounded(min(self.least / n, top), self.least_squares / n, n, n_eff, top, method)
        if self.most > self.least:
            high = bounded(min(self.most / n, top), self.most_squares / n, n, n_eff, top, method)[1]
        return low, high


def _missing(h: HostSums, left: _GridSum, method: Method, what: str) -> Number:
    if not h.n:
        return Number(None, unit="ratio", meaning=what, refused="there are no units")
    low, high = left.interval(h, method)
    value = max(0.0, 1 - left.value / h.n)
    # A sample whose mean ratio is over 1 can leave 1 - low below 0, where nothing is missing.
    return Number(value, max(0.0, 1 - high), max(0.0, 1 - low), value, "ratio", what)


def _split(cap: float) -> tuple[int, float, float]:
    """Count the cells wholly below the cap; and give both edges of the next, which the cap is in or at the foot of."""
    if not 0 < cap < math.inf:
        raise ValueError(f"cap must be over 0 and finite, got {cap}")
    below = bisect.bisect_right(CAPS, cap * (1 + 1e-9))
    edges = (0.0, *CAPS, math.inf)
    return below, edges[below], edges[below + 1]


def _truncated(h: HostSums, cap: float, power: Literal[1, 2]) -> _GridSum:
    """Sum min(r, C)^power over the units."""
    counts, sums, squares = (g.sum(0) for g in h.grid)
    rows = sums if power == 1 else squares
    below, foot, head = _split(cap)
    top, a, b = cap**power, foot**power, head**power
    inside, over = float(counts[below]), float(counts[below + 1 :].sum())
    known, rest = float(rows[:below].sum()), top * over
    # In the cap's own cell min(x, top) lies above its chord from (a, a) to (b, top), and below top.
    slope = max(0.0, top - a) / (b - a) if b < math.inf else 0.0
    chord = inside * a + max(0.0, float(rows[below]) - inside * a) * slope
    if power == 1:
        known_squares = float(squares[:below].sum())
    else:  # x^4 is at most x^2 times the square of its cell's upper edge
        known_squares = float((squares[:below] * np.square(CAPS[:below])).sum())
    tail_squares = top * rest + inside * top * top
    value = known + chord + rest
    return _GridSum(
        value, value, known + inside * top + rest, known_squares + tail_squares, known_squares + tail_squares, top
    )


def _rejected(h: HostSums, cap: float) -> _GridSum:
    """Sum r 1{r <= C} over the units."""
    _, sums, squares = (g.sum(0) for g in h.grid)
    counts = h.grid[0].sum(0)
    below, foot, head = _split(cap)
    known, known_squares = float(sums[:below].sum()), float(squares[:below].sum())
    if cap <= foot * (1 + 1e-9):  # a cap of the grid
        return _GridSum(known, known, known, known_squares, known_squares, cap)
    inside = float(counts[below])
    share = math.log(cap / foot) / math.log(head / foot) if foot and head < math.inf else 0.0
    value = known + share * min(float(sums[below]), inside * cap)
    return _GridSum(value, known, known + inside * cap, known_squares, known_squares + inside * cap * cap, cap)


def renyi2_at(stats: RatioStats, length: float) -> Number:
    """`log(1 + chi2)` of sequences of `length` tokens, nats, extrapolated: `(T / h) log mean r_block^2`.

    The value is that of the largest blocks whose mean square is known to 25%; blocks are taken for independent, which
    they are not. The ends are no 95% interval but the spread between the models of `renyi2_models` (and two standard
    errors of the blocks): read a wide one as "the models do not agree".

    Args:
        stats: at SEQUENCE level.
        length: T, tokens.

    Returns:
        A number in nats; refused if no block size can be trusted.

    Raises:
        ValueError: at another level, or unless length > 0.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, Batch, RatioStats
        >>> g = torch.Generator().manual_seed(0)
        >>> log_mu = torch.full((4000, 256), -3.0, dtype=torch.float64)
        >>> log_ratio = 0.05 * torch.randn(4000, 256, generator=g, dtype=torch.float64) - 0.05**2 / 2
        >>> stats = RatioStats.of(Batch.padded(log_mu + log_ratio, log_mu, torch.ones(4000, 256)), SEQUENCE)
        >>> print(f"{renyi2_at(stats, 1024).value:.2f} and the truth is {1024 * 0.05**2:.2f}")
        2.51 and the truth is 2.56

    Source: blocks as independent draws; the rule for the size is ours.
    """
    h = _sequences(stats, length)
    what = f"renyi2 of sequences of {length:g} tokens by blocks; the ends are the spread between models."
    rates = {} if not h.n else block_rates(h)
    known = [size for size, (_, error) in rates.items() if error < MAX_BLOCK_ERROR]
    if not known:
        return Number(
            None,
            unit="nats",
            meaning=what,
            refused=f"no block size has {MIN_UNITS} blocks and a mean square that is known to {MAX_BLOCK_ERROR:.0%}",
        )
    size = max(known)
    value, error = (x * length / size for x in rates[size])
    models = renyi2_models(stats, length).values()
    low = max(0.0, min(value - 2 * error, *models))
    return Number(value, low, max(value + 2 * error, *models), value, "nats", what)


def renyi2_models(stats: RatioStats, length: float) -> dict[str, float]:
    """`log(1 + chi2)` of sequences of `length` tokens, nats, by each model that the sums allow.

    "variance": `Var(log r) T / mean T` and "kl": `2 KL T`, both right if log r is normal; "block_16", "block_128" and
    "block_1024": `(T / h) log mean r_block^2`, for sizes with 25 whole blocks.

    Args:
        stats: at SEQUENCE level.
        length: T, tokens.

    Raises:
        ValueError: at another level, or unless length > 0.
    """
    h = _sequences(stats, length)
    if not h.n:
        return {}
    k1 = -h.total["l"] / h.n
    per_token = h.n / h.total["tokens"]
    models = {
        "variance": max(0.0, h.total["l2"] / h.n - k1 * k1) * per_token * length,
        "kl": max(0.0, 2 * k1 * per_token * length),
    }
    rates = block_rates(h)
    models |= {f"block_{size}": rates[size][0] * length / size for size in BLOCK_SIZES if size in rates}
    return {name: x for name, x in models.items() if math.isfinite(x)}


def _sequences(stats: RatioStats, length: float) -> HostSums:
    if stats.level.name != "sequence":
        raise ValueError(f"renyi2_at: stats must be at SEQUENCE level, got {stats.level.name.upper()}")
    if not length > 0:
        raise ValueError(f"renyi2_at: length must be over 0, got {length}")
    return stats.host


DRAWS = 1000  # the ends of a 95% interval then move by about 2% of its width from seed to seed (Efron 1987)
Columns = dict[str, Array]


def bootstrap(stats: RatioStats, alpha: float = 0.05, draws: int = DRAWS, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals of the numbers of `summarise` that are ratios of sums, by resampling whole clusters.

    Clusters are the 64 buckets of prompts (or of sequences, if the batch has no `group`) that stats keep, so that it
    merges: the intervals of `a + b` are those of one batch. **Optimistic**: nothing that the sample has not seen can be
    in it. For the total variation it covers nearly as often as it says; for `renyi2` and `ess_fraction` of a heavy
    tail hardly ever (docs/intervals.md has the shares). It never overrules a refusal.

    Args:
        stats: at any level.
        alpha: one minus the coverage that it aims at.
        draws: resamples.
        seed: of the resamples; the same one gives the same intervals.

    Returns:
        By name: mean_ratio, unseen, kl_k1, kl_k3, mean_abs, sd, tv, renyi2 and ess_fraction; kl_k3 at TOKEN level
        only. (-inf, inf) each with fewer than two clusters.

    Raises:
        ValueError: unless 0 < alpha < 1 and draws >= 1.

    Example:
        >>> import torch
        >>> from reweigh import TOKEN, Batch, RatioStats
        >>> g = torch.Generator().manual_seed(0)
        >>> log_mu = -2 - torch.rand(64, 100, generator=g)
        >>> batch = Batch.padded(log_mu + 0.1 * torch.randn(64, 100, generator=g), log_mu, torch.ones(64, 100))
        >>> low, high = bootstrap(RatioStats.of(batch, TOKEN))["mean_abs"]
        >>> print(f"{low:.3f} {high:.3f}")
        0.079 0.082

    Source: Efron (1979); whole clusters as Davison and Hinkley (1997), section 3.8.
    """
    h = stats.host
    scale = exp(h.shift_max)
    log_scale = h.shift_max

    def of(statistic: Callable[[Columns], Array]) -> Interval:
        return resample(h.clusters, h.clusters["n"], statistic, alpha, draws, seed)

    def renyi2(c: Columns) -> Array:
        if h.tiny:
            return np.maximum(0.0, c["l2"] / c["n"] - (c["l"] / c["n"]) ** 2)
        return np.maximum(0.0, np.log(c["n"]) + np.log(c["w2"]) - 2 * np.log(c["w1"]))

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        out = {
            "mean_ratio": of(lambda c: np.exp(np.log(c["w1"] / c["n"]) + log_scale)),
            "unseen": of(lambda c: 1 - np.exp(np.log(c["w1"] / c["n"]) + log_scale)),
            "kl_k1": of(lambda c: -c["l"] / c["n"]),
            "mean_abs": of(lambda c: c["abs"] / c["n"]),
            "sd": of(lambda c: np.sqrt(np.maximum(0.0, c["l2"] / c["n"] - (c["l"] / c["n"]) ** 2))),
            "tv": of(lambda c: c["tv"] / c["n"]),
            "renyi2": of(renyi2),
            "ess_fraction": of(lambda c: np.exp(-renyi2(c))),
        }
        if h.level == "token":
            out["kl_k3"] = of(lambda c: c["l2"] / c["n"] / 2 if h.tiny else (c["w1"] * scale - c["l"]) / c["n"] - 1)
    return out


def resample(
    columns: Columns,
    count: Array,
    statistic: Callable[[Columns], Array],
    alpha: float = 0.05,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any function of cluster sums: clusters drawn with replacement, as many as there are.

    Args:
        columns: by name, the sum over each cluster, `[G]`.
        count: units of each cluster, `[G]`; clusters of none are left out.
        statistic: from sums by name, each `[draws]`, to values `[draws]`.
        alpha: one minus the coverage that it aims at.
        draws: resamples.
        seed: of the resamples.

    Returns:
        (low, high); (-inf, inf) with fewer than two clusters.

    Raises:
        ValueError: unless 0 < alpha < 1 and draws >= 1.

    Example:
        >>> import numpy as np
        >>> values = {"x": np.arange(30.0), "n": np.ones(30)}
        >>> low, high = resample(values, values["n"], lambda c: c["x"] / c["n"])
        >>> print(f"{low:.1f} {high:.1f}")
        11.5 17.6
    """
    if not 0 < alpha < 1 or draws < 1:
        raise ValueError(f"bootstrap: 0 < alpha < 1 and draws >= 1 are needed, got alpha={alpha}, draws={draws}")
    some = count > 0
    groups = int(some.sum())
    if groups < 2:
        return -math.inf, math.inf
    sums = _times(groups, draws, seed) @ np.stack([x[some] for x in columns.values()], -1)
    values = statistic(dict(zip(columns, sums.T, strict=True)))
    low, high = np.quantile(values, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _times(groups: int, draws: int, seed: int) -> Array:
    """Draw how often each cluster is in each resample, `[draws, groups]`."""
    times = np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, size=draws)
    return times.astype(np.float64)
