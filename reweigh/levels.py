"""Values of single tokens, and the levels that fold them into one value for each unit that a weight belongs to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh import native
from reweigh.batch import Batch
from reweigh.layout import Layout, may_look
from reweigh.native import walk

# Each statistic is a module-level function of a Batch, so that an estimator that holds one pickles and prints.
# All are 0 off the mask, detached, and in float32 or better.


def log_ratio(batch: Batch) -> Float[Tensor, "*tok"]:
    """`log pi - log mu`, nats. Its mean over samples of mu is minus KL(mu||pi)."""
    return batch.log_ratio


def k1(batch: Batch) -> Float[Tensor, "*tok"]:
    """`-log r`, nats: unbiased for KL(mu||pi), of either sign.

    Also called: `k1` in verl; AReaL's `kl_k1` has the other sign. Source: Schulman (2020), Approximating KL Divergence.
    """
    return -batch.log_ratio


def k2(batch: Batch) -> Float[Tensor, "*tok"]:
    """`(log r)^2 / 2`, nats: never negative, biased, symmetric in the two policies.

    Source: Schulman (2020), Approximating KL Divergence.
    """
    return batch.log_ratio.square() / 2


def k3(batch: Batch) -> Float[Tensor, "*tok"]:
    """`r - 1 - log r`, nats: unbiased for KL(mu||pi) and never negative.

    Also called: `k3` in verl and slime, `mismatch_kl` in prime-rl. AReaL's `kl_k3` is `1/r - 1 + log r`: the other KL's
    formula on the same samples. Source: Schulman (2020), Approximating KL Divergence.
    """
    return torch.expm1(batch.log_ratio) - batch.log_ratio


def prob_diff(batch: Batch) -> Float[Tensor, "*tok"]:
    """`pi - mu` of the sampled token, a probability difference in [-1, 1].

    Its absolute value is a lower bound of the total variation between the policies at that token's state.

    Also called: binary TV in DPPO, prime-rl and SkyRL (absolute value).
    """
    log_mu = torch.where(batch.layout.mask, batch.log_mu.detach(), 0).to(batch.log_ratio.dtype)
    return torch.exp(log_mu + batch.log_ratio) - torch.exp(log_mu)


def prob_gap(batch: Batch) -> Float[Tensor, "*tok"]:
    """`|pi - mu|` of the sampled token, in [0, 1]: a lower bound of the total variation at that token's state.

    Also called: `abs_probs_diff` in prime-rl, `tv` in OpenRLHF.
    """
    return prob_diff(batch).abs()


def binary_kl(batch: Batch) -> Float[Tensor, "*tok"]:
    """`mu log(mu/pi) + (1 - mu) log((1 - mu)/(1 - pi))`, nats: KL(mu||pi) of "this token or another one".

    A lower bound of KL(mu||pi) at that token's state (data processing). Infinite where pi is 1 and mu is not.

    Also called: `binary_kl` in SkyRL, OpenRLHF and DPPO.
    """
    both = (batch.log_mu.detach(), batch.log_pi.detach())
    # Near p = 1 the digits are in log p itself: log mu + log ratio would have lost them, as 1 - exp(log p) would.
    # Rounding can leave a log-prob just over 0; that is certainty, and no NaN.
    log_mu, log_pi = (torch.where(batch.layout.mask, x, -1).to(batch.log_ratio.dtype).clamp(max=0) for x in both)
    rest_mu, rest_pi = -torch.expm1(log_mu), -torch.expm1(log_pi)
    rest = torch.where(rest_mu > 0, rest_mu * (torch.log(rest_mu) - torch.log(rest_pi)), 0)
    return torch.where(batch.layout.mask, rest - log_mu.exp() * batch.log_ratio, 0)


def reverse_binary_kl(batch: Batch) -> Float[Tensor, "*tok"]:
    """`pi log(pi/mu) + (1 - pi) log((1 - pi)/(1 - mu))`, nats: KL(pi||mu) of "this token or another one".

    `binary_kl` with the policies changed round: infinite where mu is 1 and pi is not.
    """
    return binary_kl(Batch(batch.log_mu, batch.log_pi, batch.layout, given=-batch.log_ratio))


def signed_gap_of_sequence(batch: Batch) -> Float[Tensor, "*tok"]:
    """The sequence's mean of `|r - 1|` on each of its tokens, with the sign of the token's log ratio.

    Half of that mean is an estimate of the total variation between the policies at the states of the sequence.
    """
    gap = batch.layout.spread(_geometric(torch.expm1(batch.log_ratio).abs(), batch.layout))
    return torch.where(batch.layout.mask, gap * batch.log_ratio.sign(), 0)


def signed_binary_kl(batch: Batch) -> Float[Tensor, "*tok"]:
    """`binary_kl` with the sign of the log ratio: positive where pi gives the token more than mu did, nats."""
    return torch.copysign(binary_kl(batch), batch.log_ratio)


Unit = Literal["token", "turn", "sequence"]


@dataclass(frozen=True)
class Level:
    """A name, the unit that a weight belongs to, and the fold from token values to unit values.

    A fold takes values that are 0 off the mask, as every statistic of `reweigh.levels` is.

    Units of a "sequence" level are `[S]`. Units of a "token" or "turn" level are token-shaped; a turn's value stands
    on each of its tokens, and the turn is counted once, at its first token (`heads`).

    Attributes:
        name: as it is written in factors and specifications.
        unit: what a value belongs to.
        fold: from token values to unit values.
        instead: the unit's value had its own token been another: `(x, others, layout)` with others `[..., k]` gives
            `[..., k]`. None where the value depends on tokens that come later too, so that nobody knows.
    """

    name: str
    unit: Unit
    fold: Callable[[Tensor, Layout], Tensor] = field(repr=False)
    instead: Callable[[Tensor, Tensor, Layout], Tensor] | None = field(repr=False, default=None)

    def valid(self, layout: Layout) -> Tensor:
        """Mark the units that exist: tokens of the mask, or sequences and turns with at least one."""
        return layout.lengths > 0 if self.unit == "sequence" else layout.mask


def heads(layout: Layout) -> Tensor:
    """Token-shaped, True at the first live token of each turn."""
    starts, live = _turn_starts(layout), layout.mask.flatten().long()
    place = torch.arange(len(starts), device=starts.device)
    first = torch.where(starts, place, 0).cummax(0).values
    count = live.cumsum(0)
    return layout.mask & (count - (count - live)[first] == 1).view(layout.mask.shape)


def _turn_starts(layout: Layout) -> Tensor:
    """Flat, True at the first slot of each turn."""
    if layout.turn is None:
        raise ValueError(
            "TURN: the batch has no turns.\n"
            "hint: pass turn= (an integer a token) to Batch.padded, packed or from_lists."
        )
    seq = layout.spread(torch.arange(layout.num_seqs, device=layout.mask.device)).flatten()
    turn = layout.turn.flatten()
    changes = (seq[1:] != seq[:-1]) | (turn[1:] != turn[:-1])
    return torch.cat([torch.ones_like(seq[:1], dtype=torch.bool), changes])


def _token(x: Tensor, layout: Layout) -> Tensor:
    return x


def _prefix(x: Tensor, layout: Layout) -> Tensor:
    return layout.cumsum_zeroed(x)


def _suffix(x: Tensor, layout: Layout) -> Tensor:
    # In float64: the sum up to a token is taken from that of all, and may be of any size.
    return (layout.spread(layout.sum_zeroed(x.double())) - layout.cumsum_zeroed(x.double()) + x).to(x.dtype)


def _turn(x: Tensor, layout: Layout) -> Tensor:
    unit = _turn_starts(layout).long().cumsum(0) - 1
    slots = torch.zeros_like(unit).index_add(0, unit, torch.ones_like(unit))
    # Not by index_add: a compiler has been seen to fuse one with the gather of its result, which then reads too early.
    return torch.segment_reduce(x.flatten(), "sum", lengths=slots, unsafe=True)[unit].view(layout.mask.shape)


def _sequence(x: Tensor, layout: Layout) -> Tensor:
    return layout.sum_zeroed(x)


def _geometric(x: Tensor, layout: Layout) -> Tensor:
    return layout.sum_zeroed(x) / layout.lengths.clamp(min=1)  # an empty sequence is no unit; 0 keeps its slot finite


def _worst(x: Tensor, layout: Layout) -> Tensor:
    return layout.max(x)


def _token_instead(x: Tensor, others: Tensor, layout: Layout) -> Tensor:
    return others


def _prefix_instead(x: Tensor, others: Tensor, layout: Layout) -> Tensor:
    return (layout.cumsum_zeroed(x) - x)[..., None] + others


def _places(layout: Layout, dtype: torch.dtype) -> Tensor:
    """Number the tokens of each sequence from 1 on; at least 1 elsewhere, so that one may divide by it."""
    return layout.cumsum_zeroed(layout.mask.to(dtype)).clamp(min=1)


def _prefix_mean(x: Tensor, layout: Layout) -> Tensor:
    return layout.cumsum_zeroed(x) / _places(layout, x.dtype)


def _prefix_mean_instead(x: Tensor, others: Tensor, layout: Layout) -> Tensor:
    return _prefix_instead(x, others, layout) / _places(layout, x.dtype)[..., None]


def _prefix_root(x: Tensor, layout: Layout) -> Tensor:
    return layout.cumsum_zeroed(x) / _places(layout, x.dtype).sqrt()


def _prefix_root_instead(x: Tensor, others: Tensor, layout: Layout) -> Tensor:
    return _prefix_instead(x, others, layout) / _places(layout, x.dtype).sqrt()[..., None]


def _least_before(x: Tensor, layout: Layout) -> Tensor:
    """Take the least of the earlier tokens of the sequence; 0 at its first."""
    seq = layout.spread(torch.arange(layout.num_seqs, device=x.device)).flatten()
    least = -layout.cummax_floored(torch.where(layout.mask, -x, -torch.inf)).flatten()
    before = torch.cat([torch.full_like(least[:1], torch.inf), least[:-1]])
    starts = torch.cat([torch.ones_like(seq[:1], dtype=torch.bool), seq[1:] != seq[:-1]])
    before = torch.where(starts, torch.inf, before).view(x.shape)
    return torch.where(layout.mask & before.isfinite(), before, 0)


def _prefix_least(x: Tensor, layout: Layout) -> Tensor:
    return x + _least_before(x, layout)


def _prefix_least_instead(x: Tensor, others: Tensor, layout: Layout) -> Tensor:
    return _least_before(x, layout)[..., None] + others


_SPENT = 1e3  # a statistic from here on is taken for this much: it is over any budget, and running sums stay exact


@dataclass(frozen=True)
class _Budget:
    """What a token's move away from mu takes: its own weighed share, or what is over the prefix's budget, if more."""

    mean: float
    floor: float

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        place = _places(layout, x.dtype)
        last = layout.spread(layout.lengths).to(x.dtype) - 1
        weight = torch.where(layout.mask, 1 - (1 - self.floor) * (place - 1) / last.clamp(min=1), 0)
        own = weight * x.abs().clamp(max=_SPENT)
        over = layout.cumsum_zeroed(own) - self.mean * (layout.cumsum_zeroed(weight) - weight)
        return torch.where(x > 0, torch.maximum(own, over), -torch.inf)


TOKEN = Level("token", "token", _token, _token_instead)
"""Each token on its own: x_t."""
PREFIX = Level("prefix", "token", _prefix, _prefix_instead)
"""The running sum up to and including the token: x_0 + ... + x_t."""
PREFIX_MEAN = Level("prefix_mean", "token", _prefix_mean, _prefix_mean_instead)
"""The mean up to and including the token: (x_1 + ... + x_t) / t; of log ratios, the log of their geometric mean."""
PREFIX_ROOT = Level("prefix_root", "token", _prefix_root, _prefix_root_instead)
"""The running sum over the root of its number of tokens: (x_1 + ... + x_t) / sqrt(t), of one size at every t."""
PREFIX_LEAST = Level("prefix_least", "token", _prefix_least, _prefix_least_instead)
"""The token's value and the least of earlier ones: x_t + min_{s < t} x_s; the first token's own alone."""
SUFFIX = Level("suffix", "token", _suffix)
"""The sum from the token to the end: x_t + ... + x_{T-1}."""
TURN = Level("turn", "turn", _turn)
"""The sum over the token's turn."""
SEQUENCE = Level("sequence", "sequence", _sequence)
"""The sum over the sequence; of log ratios, the log of the product: "sequence" is always the product."""
GEOMETRIC = Level("geometric", "sequence", _geometric)
"""The mean over the sequence's tokens; of log ratios, the log of the geometric mean."""
WORST = Level("worst", "sequence", _worst)
"""The maximum over the sequence's tokens."""

LEVELS = (TOKEN, PREFIX, PREFIX_MEAN, PREFIX_ROOT, PREFIX_LEAST, SUFFIX, TURN, SEQUENCE, GEOMETRIC, WORST)
"""Every level without numbers of its own, from the finest unit to the coarsest."""


def prefix_budget(mean: float, floor: float = 0.8) -> Level:
    """Make the level of a token's share of what its prefix may move: for a gate such as `AtMost(bound)`.

    With weights `v_t` that fall from 1 at the first token to `floor` at the last, x positive where pi moves away from
    mu, it is `max(v_t x_t, sum_{s <= t} v_s |x_s| - mean sum_{s < t} v_s)` there, and minus infinity elsewhere, which
    passes every bound. A `|x|` over 1,000 counts as that much.

    Args:
        mean: what the weighed `|x|` of a prefix may be on average.
        floor: weight of the last token, in (0, 1].

    Raises:
        ValueError: a number outside of that.

    Source: Mao et al. (2026), CPPO, 2606.10968, eq. 8 to 10.
    """
    if not (0 < floor <= 1 and mean >= 0):
        raise ValueError(f"prefix_budget: floor must be in (0, 1] and mean at least 0, got floor={floor}, mean={mean}")
    return Level(f"prefix_budget({mean:g}, {floor:g})", "token", _Budget(mean, floor))


def folded(batch: Batch, of: Callable[[Batch], Tensor], level: Level, scale: float) -> Float[Tensor, " S"] | None:
    """Fold a statistic to one value a sequence by the compiled walk; None where that is not possible.

    It is the same as `level.fold(of(batch) * scale, batch.layout)`, made without a value of the tokens' size.
    """
    if of not in (log_ratio, k1, k2, k3) or level not in (SEQUENCE, GEOMETRIC, WORST) or not may_look(batch.log_pi):
        return None
    layout, plain = batch.layout, of in (log_ratio, k1)
    if level == WORST:
        if not plain and scale < 0:  # the smallest of l^2 or k3 is not at the smallest or the largest l
            return None
        found = walk.sums(batch.log_pi, batch.log_mu, batch.given, layout.mask, layout.runs, native.ALL)
        if found is None:
            return None
        ends = [torch.where(layout.lengths > 0, found[0][:, i], 0).to(batch.dtype) for i in (4, 5)]
        values = [
            x * x / 2 if of is k2 else torch.expm1(x) - x if of is k3 else x if of is log_ratio else -x for x in ends
        ]
        worst = torch.maximum(values[0] * scale, values[1] * scale)
        return torch.where(layout.lengths > 0, worst, -torch.inf)
    if plain and batch.seen is not None and batch.seen.is_of(batch):
        total = batch.seen.log_ratio
    else:
        columns = native.FEW if plain else native.ALL
        found = walk.sums(batch.log_pi, batch.log_mu, batch.given, layout.mask, layout.runs, columns)
        if found is None:
            return None
        total = found[0][:, 1 if plain else 2 if of is k2 else 3]
    factor = scale * (-1 if of is k1 else 0.5 if of is k2 else 1)
    total = (total if factor == 1 else total * factor).to(batch.dtype)
    return total / layout.lengths.clamp(min=1) if level == GEOMETRIC else total
