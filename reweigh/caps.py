"""Rules that choose the cap of a truncated ratio."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class RatioLaw(Protocol):
    """The distribution under mu of a ratio r = pi/mu, as far as a rule for its cap asks.

    `LogNormalRatio` is a model, from one number; `FiniteRatio` the exact law of a world that can be enumerated.
    """

    def excess(self, cap: float) -> float:
        """`b(C) = E_mu (r - C)_+`: what truncation at C loses."""
        ...

    def lost(self, cap: float) -> float:
        """`P_pi(r > C) = E_mu r 1{r > C}`: what rejection over C loses."""
        ...

    def min2(self, cap: float) -> float:
        """`E_mu min(r, C)^2`: second moment of the truncated ratio."""
        ...


def post_cap(chi2: float) -> float:
    """`C = sqrt(2 (1 + chi2))`: the cap of the blog post, from the chi-square of pi from mu at the level to cap.

    It minimises the post's bound on the error of *one* sequence. It ignores the batch size (the same bounds give
    `sqrt(2 (1 + chi2)) N^(1/4)`), and its bound is four times that of no cap at all, so read it as a starting point.

    Args:
        chi2: at least 0; infinite gives no cap.

    Returns:
        A ratio pi/mu, at least sqrt(2).

    Raises:
        ValueError: if chi2 is negative or NaN: no chi-square is.

    Example:
        >>> post_cap(1.0)
        2.0

    Source: Li and Liu (2025), Part 2, The optimal balance.
    """
    if not chi2 >= 0:
        raise ValueError(f"post_cap: chi2 must be >= 0, got {chi2}")
    return math.sqrt(2 * (1 + chi2))


def post_batch_cap(chi2: float, n: float) -> float:
    """`C = sqrt(2 (1 + chi2)) N^(1/4)`: what the post's own bounds give when the variance is divided by the batch size.

    Args:
        chi2: of pi from mu, at the level to cap, at least 0.
        n: units averaged in one step, at least 1.

    Returns:
        A ratio pi/mu; `post_cap` at n = 1.

    Raises:
        ValueError: if chi2 is negative or n is below 1.

    Example:
        >>> post_batch_cap(1.0, 16)
        4.0

    Source: minimises `(2 (1 + chi2) / C)^2 + C^2 / N`, the bounds of Li and Liu (2025), Part 2.
    """
    return post_cap(chi2) * _batch("post_batch_cap", n) ** 0.25


def cubic_cap(chi2: float, n: float) -> float:
    """`C = (N (1 + chi2)^2)^(1/3) / 2`: minimises a closed-form bound on the batch's error, `tis_mse_cubic`.

    It uses the chi-square alone, so it is right in its rate and wide of `balance_cap` in its constant. Where `N >=
    64/27 (1 + chi2)` the bound without any cap is the smaller one: then do not truncate.

    Args:
        chi2: of pi from mu, at the level to cap, at least 0.
        n: units averaged in one step, at least 1.

    Returns:
        A ratio pi/mu.

    Raises:
        ValueError: if chi2 is negative or n is below 1.

    Example:
        >>> print(f"{cubic_cap(0.0, 64):.3f}")
        2.000

    Source: excess at most (1 + chi2) / (4 C) by the inequality of means, second moment at most C; ours.
    """
    if not chi2 >= 0:
        raise ValueError(f"cubic_cap: chi2 must be >= 0, got {chi2}")
    return (_batch("cubic_cap", n) * (1 + chi2) ** 2) ** (1 / 3) / 2


def sqrt_n_cap(n: float) -> float:
    """`C = sqrt(N)`: needs no estimate, and has the right rate whenever the chi-square is finite.

    Args:
        n: units averaged in one step, at least 1.

    Returns:
        A ratio pi/mu.

    Raises:
        ValueError: if n is below 1.

    Example:
        >>> sqrt_n_cap(64)
        8.0

    Source: Ionides (2008), Truncated importance sampling.
    """
    return math.sqrt(_batch("sqrt_n_cap", n))


def balance_cap(law: RatioLaw, n: float) -> float:
    """`C = N E_mu (r - C)_+`: the cap with the least worst-case error of a truncated estimator over N units.

    The unique minimum of `E_mu(r - C)_+^2 + E_mu min(r, C)^2 / N`, which is the worst of squared bias plus second
    moment over N among integrands of norm at most 1; and no other function of the ratio has a smaller worst case. It
    is a guard against the worst: on a given problem a smaller cap is often better still at small N.

    Args:
        law: of the ratio, such as `LogNormalRatio(s2)`. For a batch of ratios: `balance_cap_of_sample`.
        n: units averaged in one step, at least 1.

    Returns:
        A ratio pi/mu, in (0, N].

    Raises:
        ValueError: if n is below 1.

    Example:
        >>> from reweigh.planner import LogNormalRatio
        >>> print(f"{balance_cap(LogNormalRatio(4.0), 16):.1f}")
        5.9

    Source: stationary point of the bound above; ours.
    """
    return _crossing(lambda cap: n * law.excess(cap), _batch("balance_cap", n))


def mis_balance_cap(law: RatioLaw, n: float) -> float:
    """`C = 2 N P_pi(r > C)`: the cap with the least worst-case error of a rejecting estimator over N units.

    Minimises `P_pi(r > C)^2 + E_mu r^2 1{r <= C} / N`, as a rule at about twice the cap of truncation. There is no
    form of it from a sample: rejecting the largest of a sample's ratios leaves this sum exactly as it was, and
    rejecting any more raises it, so the sample says "reject nothing" whatever it is.

    Args:
        law: of the ratio, such as `LogNormalRatio(s2)`.
        n: units averaged in one step, at least 1.

    Returns:
        A ratio pi/mu, in (0, 2 N].

    Raises:
        ValueError: if n is below 1.

    Example:
        >>> from reweigh.planner import LogNormalRatio
        >>> print(f"{mis_balance_cap(LogNormalRatio(1.0), 64):.1f}")
        7.8

    Source: stationary point of the bound above; ours.
    """
    return _crossing(lambda cap: 2 * n * law.lost(cap), 2 * _batch("mis_balance_cap", n))


def balance_cap_of_sample(
    log_ratio: Float[Tensor, "*unit"], valid: Bool[Tensor, "*unit"] | None = None, n: float | Tensor | None = None
) -> Float[Tensor, ""]:
    """`C = max_k (r_(1) + ... + r_(k)) / (k + M / N)` over ratios in falling order: the root of `N mean(r - C)_+ = C`.

    `balance_cap` with the sample in place of the law, in closed form: k grows the maximand exactly while the next ratio
    is above it. No host sync, no tuning. Where the sample's mean ratio falls short of 1 for want of its tail, so does
    the cap: with a variance of log r of 4 or 9 its bound is 1.2 to 1.5 times the best one.

    Args:
        log_ratio: of the M units of the sample, nats, in any order.
        valid: which of them are units; all if None.
        n: units averaged in one step; M if None, for a cap chosen on the very batch that it will cap.

    Returns:
        log C, nats, float64: -inf if there are no units.

    Example:
        >>> import torch
        >>> print(f"{balance_cap_of_sample(torch.tensor([4.0, 1.0, 0.5]).log()).exp():.2f}")
        2.00

    Source: the empirical form of `balance_cap`; ours.
    """
    l = log_ratio.detach().double().flatten()
    if l.numel() == 0:
        return l.new_full((), -torch.inf)
    count = torch.full_like(l[0], l.numel())
    if valid is not None:
        l = torch.where(valid.flatten(), l, -torch.inf)
        count = valid.sum().clamp(min=1).double()
    return largest_mean(l.sort(descending=True).values, count if n is None else n, count).amax()


def largest_mean(falling: Float[Tensor, " k"], n: float | Tensor, count: float | Tensor) -> Float[Tensor, " k"]:
    """`log((r_(1) + ... + r_(k)) / (k + M / N))` for each k, from log ratios in falling order, nats.

    Each is at most the log of the balance cap, and the largest over all k is it.

    Args:
        falling: the largest log ratios, in falling order.
        n: N, units averaged in one step.
        count: M, units of the sample that they are the largest of.
    """
    k = torch.arange(1, len(falling) + 1, device=falling.device, dtype=falling.dtype)
    return torch.logcumsumexp(falling, 0) - torch.log(k + count / n)


def _crossing(falling: Callable[[float], float], most: float) -> float:
    """The C in (0, most] at which a function that does not grow meets C, by bisection of log C."""
    low, high = -745.0, math.log(most)  # e^-745 is the smallest float64
    for _ in range(80):  # 80 halvings of that range are far below the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if falling(math.exp(middle)) > math.exp(middle) else (low, middle)
    return math.exp(high)


def _batch(rule: str, n: float) -> float:
    if not n >= 1:
        raise ValueError(f"{rule}: n must be >= 1, got {n}")
    return n
