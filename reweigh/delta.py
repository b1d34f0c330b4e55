"""The total variation of single states: what sampled tokens can certify, and what they cannot tell."""

from reweigh.host import HostSums, to_host
from reweigh.number import Number
from reweigh.stats import RatioStats

NO_UPPER_BOUND = (
    "no upper bound of the largest TV of a state can come from samples: one token is drawn at each state, and most "
    "states are never visited; a lower bound can"
)


def delta_max(h: HostSums) -> Number:
    """`max_s TV(s) >= max_t |pi_t - mu_t|`: the largest total variation of a state, from below only.

    At a visited state `|pi(y) - mu(y)| <= TV <= 1 - min(pi(y), mu(y))` for the token y that was drawn, and the latter
    is nearly 1 unless the token is nearly certain. `max |r_t - 1| / 2` is no estimate: it can be over 1, and grows
    with the number of tokens.

    Source: the total variation is at least the gap on any event, and at most 1 less any overlap.
    """
    peak = float(h.peaks[2])
    what = "Largest total variation of a state: at least the largest |pi - mu| of a sampled token."
    return Number(None, peak, None, peak, "", what, NO_UPPER_BOUND)


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
    h = to_host(stats)
    what = f"Share of visited states with a total variation over {delta:g}, at most."
    if not h.n:
        return Number(None, meaning=what, refused="there are no units")
    tv = h.total("tv") / h.n
    value, high = (min(1.0, x / delta) for x in (tv, h.tv_interval[1]))
    return Number(value, 0.0, high, value, "", what)
