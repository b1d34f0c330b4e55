"""The exact distance between two policies at each visited state, from both rows of logits."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reweigh.layout import operator
from reweigh.logits.tokens import CHUNK, LEAST, LinearLogits, Place, autocasted, block_rows, dot, merged, places

Logits = Tensor | LinearLogits


@dataclass(frozen=True, eq=False)
class StateDivergences:
    """How far pi is from mu at each state: every sum is over the whole vocabulary.

    Attributes:
        tv: total variation, `sum |pi - mu| / 2`, in [0, 1].
        kl_mu_pi: `sum mu log(mu/pi)`, nats; inf where pi excludes a token that mu may give.
        kl_pi_mu: `sum pi log(pi/mu)`, nats; inf where mu excludes a token that pi may give (top-p, top-k).
        chi2: `sum (pi - mu)^2 / mu`, the variance of the ratio under mu; inf as `kl_pi_mu`, or if a ratio is one that
            the precision does not hold (e^700 in float64, e^80 in float32).
        hellinger2: `1 - sum sqrt(mu pi)`, in [0, 1].
        max_log_ratio: `max log(pi/mu)` over the vocabulary, nats; inf as `kl_pi_mu`.
    """

    tv: Float[Tensor, "*tok"]
    kl_mu_pi: Float[Tensor, "*tok"]
    kl_pi_mu: Float[Tensor, "*tok"]
    chi2: Float[Tensor, "*tok"]
    hellinger2: Float[Tensor, "*tok"]
    max_log_ratio: Float[Tensor, "*tok"]

    def totals(self, mask: Bool[Tensor, "*tok"]) -> "StateTotals":
        """Sums and maxima over the states of a mask; totals of parts add up."""
        sums = (self.tv, self.kl_mu_pi, self.kl_pi_mu, self.chi2, self.hellinger2)
        return StateTotals(
            mask.sum(),
            (mask & torch.isinf(self.kl_pi_mu)).sum(),
            *(torch.where(mask, x, 0).sum() for x in sums),
            *(_largest(x, mask) for x in (self.tv, self.max_log_ratio)),
        )


@dataclass(frozen=True, eq=False)
class StateTotals:
    """Sums over visited states, and two maxima: `+` merges micro-batches, ranks and files. Divide by `num_states`.

    Attributes:
        num_states: how many states.
        num_unsupported: at how many of them mu excludes a token that pi may give; there `kl_pi_mu` and chi2 are inf.
        tv: sum of total variations; over `num_states` the mean at a visited state, over the number of sequences the
            sum that the simulation lemma bounds the sequences' total variation by.
        kl_mu_pi: sum, nats; over the number of sequences it is KL(mu||pi) of sequences (chain rule).
        kl_pi_mu: sum, nats.
        chi2: sum; over `num_states` the chi2-bar of the bounds, at visited states.
        hellinger2: sum.
        max_tv: Delta at visited states: a lower bound of the one over all states.
        max_log_ratio: nats.
    """

    num_states: Tensor
    num_unsupported: Tensor
    tv: Tensor
    kl_mu_pi: Tensor
    kl_pi_mu: Tensor
    chi2: Tensor
    hellinger2: Tensor
    max_tv: Tensor
    max_log_ratio: Tensor

    def __add__(self, other: "StateTotals") -> "StateTotals":
        """Merge: sums add, maxima are compared."""
        values = {
            f.name: (torch.maximum if f.name.startswith("max_") else torch.add)(
                getattr(self, f.name), getattr(other, f.name)
            )
            for f in fields(self)
        }
        return StateTotals(**values)


def state_divergences(
    pi: Logits,
    mu: Logits,
    *,
    temperature_pi: float = 1.0,
    temperature_mu: float = 1.0,
    precision: torch.dtype = torch.float64,
    chunk: int = CHUNK,
) -> StateDivergences:
    """`TV(s)`, `KL`, `chi2`, `H^2` and the largest ratio between `softmax(z_pi / T_pi)` and `softmax(z_mu / T_mu)`.

    With them `Delta` (the largest total variation) and chi2-bar of the bounds are known at the visited states, where
    a sampled token alone gives lower bounds only. Reads a few rows at a time; temporaries stay in the processor's
    cache. Nothing is differentiated.

    Args:
        pi: trainer's logits, a tensor `[*tok, V]` or `LinearLogits` of the same tokens.
        mu: sampler's logits. -inf is a token that it cannot give (top-p, top-k, a grammar).
        temperature_pi: divides pi's logits.
        temperature_mu: divides mu's logits.
        precision: of everything inside and of the results. In float64 errors are 1e-15 nats, so that a KL of 1e-10
            has five digits; float32 is for devices without float64, and is blind below a total variation of 1e-6.
        chunk: how many logits a `LinearLogits` makes at once.

    Returns:
        One value a token, of `precision`; NaN where a row of logits has a NaN, or nothing but -inf.

    Raises:
        ValueError: if the shapes do not match or a temperature is not over 0.

    Example:
        >>> import torch
        >>> from reweigh.logits import state_divergences
        >>> mu = torch.tensor([[0.5, 0.5]]).log()
        >>> pi = torch.tensor([[0.75, 0.25]]).log()
        >>> d = state_divergences(pi, mu)
        >>> print(f"{d.tv.item():.3f} {d.chi2.item():.3f} {d.kl_mu_pi.item():.4f} {d.max_log_ratio.exp().item():.2f}")
        0.250 0.250 0.1438 1.50

    Source: Schulman et al. (2015), Trust region policy optimization, sec. 3 (the largest divergence over states).
    """
    for name, t in (("temperature_pi", temperature_pi), ("temperature_mu", temperature_mu)):
        if not t > 0:
            raise ValueError(f"state_divergences: {name} must be > 0, got {t}\nhint: for argmax pass -inf logits")
    lead = _lead_and_width(pi)
    if lead != _lead_and_width(mu):
        raise ValueError(
            f"state_divergences: pi and mu must be of the same tokens and vocabulary, got {lead} and "
            f"{_lead_and_width(mu)}\nhint: cut a padded vocabulary to the tokenizer's size"
        )
    sides = (*_parts(pi), temperature_pi, *_parts(mu), temperature_mu)
    with torch.autocast(sides[0].device.type, enabled=False):
        values = _operator(*sides, precision, chunk)
    return StateDivergences(*values.unbind(0))


def compared_in_blocks(
    rows_pi: Tensor,
    weight_pi: Tensor | None,
    bias_pi: Tensor | None,
    softcap_pi: float | None,
    multiply_in_pi: torch.dtype | None,
    temperature_pi: float,
    rows_mu: Tensor,
    weight_mu: Tensor | None,
    bias_mu: Tensor | None,
    softcap_mu: float | None,
    multiply_in_mu: torch.dtype | None,
    temperature_mu: float,
    precision: torch.dtype,
    chunk: int,
) -> Tensor:
    """Compute the six values of each token, `[6, *tok]`; rows are logits, or hidden states if there is a weight."""
    lead, parts = rows_pi.shape[:-1], []
    width = rows_pi.shape[-1] if weight_pi is None else weight_pi.shape[0]
    rows_pi, rows_mu = merged(rows_pi), merged(rows_mu)
    if rows_pi.shape[:-1] != rows_mu.shape[:-1]:  # one is a view of [N, .], the other a slice: walk both as they came
        rows_pi, rows_mu = (x.view(*lead, -1) for x in (rows_pi, rows_mu))
    at_once = rows_pi.shape[-2] if weight_pi is None and weight_mu is None else max(1, chunk // max(1, width))
    for outer in places(rows_pi.shape[:-1], at_once):
        z_pi = _logits(rows_pi, weight_pi, bias_pi, softcap_pi, multiply_in_pi, outer)
        z_mu = _logits(rows_mu, weight_mu, bias_mu, softcap_mu, multiply_in_mu, outer)
        for inner in places(z_pi.shape[:1], block_rows(width, z_pi.device)):
            x = _shifted(z_pi[inner], temperature_pi, precision)
            y = _shifted(z_mu[inner], temperature_mu, precision)
            parts.append(_compare(x, y))
    return (torch.cat(parts, -1) if parts else rows_pi.new_zeros(6, 0, dtype=precision)).view(6, *lead)


def _shapes(rows_pi: Tensor, *args: Any) -> Tensor:
    return rows_pi.new_empty((6, *rows_pi.shape[:-1]), dtype=args[-2])


_SIDE = (
    "Tensor rows_{0}, Tensor? weight_{0}, Tensor? bias_{0}, float? cap_{0}, ScalarType? multiply_in_{0}, float t_{0}"
)
_operator = operator(
    "state_divergences",
    compared_in_blocks,
    f"({_SIDE.format('pi')}, {_SIDE.format('mu')}, ScalarType precision, int chunk) -> Tensor",
    _shapes,
)


def _shifted(z: Tensor, temperature: float, precision: torch.dtype) -> Tensor:
    top = z.amax(-1, keepdim=True).to(precision)
    z = z.to(precision, copy=True).sub_(top)
    return z if temperature == 1 else z.div_(temperature)


def _compare(z_pi: Tensor, z_mu: Tensor) -> Tensor:
    # Each side is shifted to a largest logit of 0, so that the log ratio, up to its constant, is at least 0 where pi is
    # largest and at most 0 where mu is: a token that both exclude, with its 0, is no extreme. Both are scratch; what is
    # done with is let go at once, for the cache's sake.
    pi, mu = z_pi.exp(), z_mu.exp()  # up to their sums
    sum_pi, sum_mu = pi.sum(-1, keepdim=True), mu.sum(-1, keepdim=True)
    share = sum_mu / sum_pi
    l = z_pi.clamp_(min=LEAST).sub_(z_mu.clamp_(min=LEAST)).add_(share.log())
    top, least = l.amax(-1), l.amin(-1)
    kl_mu_pi = -dot(mu, l, z_mu) / sum_mu[:, 0]
    kl_pi_mu = dot(pi, l, z_mu) / sum_pi[:, 0]
    gap = torch.addcmul(mu, pi, share, value=-1, out=l)  # mu - pi, times mu's sum
    scratch = torch.abs(gap, out=z_mu)
    tv = scratch.sum(-1) / 2
    tiny, most = torch.finfo(mu.dtype).tiny, math.log(torch.finfo(mu.dtype).max) - 8
    chi2 = dot(gap, torch.div(gap, torch.clamp(mu, min=tiny, out=scratch), out=scratch), scratch)
    root = torch.addcmul(mu.sqrt_(), pi.sqrt_(), share.sqrt(), value=-1, out=gap)
    half = torch.stack([tv, chi2, dot(root, root, scratch) / 2]) / sum_mu[:, 0]
    unsupported, excluded = top > -LEAST / 2, least < LEAST / 2
    return torch.stack(
        [
            half[0],
            torch.where(excluded, torch.inf, kl_mu_pi),
            torch.where(unsupported, torch.inf, kl_pi_mu),
            torch.where(top > most, torch.inf, half[1]),
            half[2],
            torch.where(unsupported, torch.inf, top),
        ]
    )


def _largest(x: Tensor, mask: Tensor) -> Tensor:
    floor = x.new_full((1,), -torch.inf)  # so that a batch without states has a maximum
    return torch.cat([torch.where(mask, x, -torch.inf).flatten(), floor]).amax()


def _logits(
    rows: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    multiply_in: torch.dtype | None,
    place: Place,
) -> Tensor:
    return rows[place] if weight is None else LinearLogits(rows, weight, bias, softcap, multiply_in).at(place)


def _parts(x: Logits) -> tuple[Tensor, Tensor | None, Tensor | None, float | None, torch.dtype | None]:
    if not isinstance(x, LinearLogits):
        return x.detach(), None, None, None, None
    bias = None if x.bias is None else x.bias.detach()
    hidden, weight = autocasted(x.hidden.detach(), x.weight.detach(), x.multiply_in)
    return hidden, weight, bias, x.softcap, x.multiply_in


def _lead_and_width(x: Logits) -> tuple[int, ...]:
    return (*x.hidden.shape[:-1], x.weight.shape[0]) if isinstance(x, LinearLogits) else tuple(x.shape)
