"""The second moment of sequence ratios at a length of your choice, by several models, and how far they disagree."""

import math

from reweigh.host import HostSums, to_host
from reweigh.number import Number
from reweigh.stats import RatioStats
from reweigh.sums import BLOCK_SIZES
from reweigh.tail import MAX_BLOCK_ERROR, MIN_UNITS, block_rates


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
    models = _models(h, length).values()
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
    return _models(h, length) if h.n else {}


def _models(h: HostSums, length: float) -> dict[str, float]:
    k1 = -h.total("l") / h.n
    per_token = h.n / h.total("tokens")
    models = {
        "variance": max(0.0, h.total("l2") / h.n - k1 * k1) * per_token * length,
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
    return to_host(stats)
