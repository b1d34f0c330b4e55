"""Levels: how the tokens' values become one value for each unit that is weighted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from reweigh.layout import Layout

Unit = Literal["token", "turn", "sequence"]


@dataclass(frozen=True)
class Level:
    """A name, the unit that a weight belongs to, and the fold from token values to unit values.

    A fold takes values that are 0 off the mask, as every statistic of `reweigh.divergences` is.

    Units of a "sequence" level are `[S]`. Units of a "token" or "turn" level are token-shaped; a turn's value stands
    on each of its tokens, and the turn is counted once, at its first token (`heads`).
    """

    name: str
    unit: Unit
    fold: Callable[[Tensor, Layout], Tensor] = field(repr=False)

    def valid(self, layout: Layout) -> Tensor:
        """Which units exist: tokens of the mask, or sequences and turns with at least one."""
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
    return layout.spread(layout.sum_zeroed(x)) - layout.cumsum_zeroed(x) + x


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


TOKEN = Level("token", "token", _token)
"""Each token on its own: x_t."""
PREFIX = Level("prefix", "token", _prefix)
"""The running sum up to and including the token: x_0 + ... + x_t."""
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

LEVELS = (TOKEN, PREFIX, SUFFIX, TURN, SEQUENCE, GEOMETRIC, WORST)
"""All of them."""
