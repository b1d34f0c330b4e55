"""Stats, normalisers and counts of all ranks in one maximum and one sum."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor

from reweigh.distributed.normaliser import Normaliser
from reweigh.estimators import Weights
from reweigh.stats import RatioStats

Part = RatioStats | Normaliser | Tensor
T = TypeVar("T", bound=Part | tuple[Part, ...])


def all_reduce(stats: T, process_group: dist.ProcessGroup | None = None) -> T:
    """Stats of all ranks' units, on every rank. Ranks may have any number of units, none included.

    Two collectives in all, however many stats are given at once: a maximum and a sum. At P ranks and float64, a
    `RatioStats` adds 160 + 40 P bytes to the first and at most 37 kB to the second, a `Normaliser` 8 and 16 bytes, a
    tensor itself to the second. No host sync. Every rank of the group must call it, with stats of the same kinds in the
    same order.

    Args:
        stats: this rank's `RatioStats` (`RatioStats.empty(level)` if it saw nothing), `Normaliser`, or tensor to be
            summed, such as a count of tokens; or a tuple of them.
        process_group: None is the default group.

    Returns:
        The same, over all ranks.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, all_reduce, seq_is, snis
        >>> from reweigh.distributed import Normaliser
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # a launcher does it for you
        >>> batch = Batch.padded(torch.full((2, 3), -1.0), torch.full((2, 3), -1.5), torch.ones(2, 3))
        >>> mine = RatioStats.of(batch, TOKEN), RatioStats.of(batch, SEQUENCE), Normaliser.of(seq_is()(batch))
        >>> token, sequence, normaliser, tokens = all_reduce((*mine, batch.layout.lengths.sum()))
        >>> weights = snis()(batch, normaliser.log)
        >>> int(tokens), round(float(normaliser.log), 3)
        (6, 1.5)
        >>> dist.destroy_process_group()
    """
    parts = cast("tuple[Part, ...]", stats if isinstance(stats, tuple) else (stats,))
    world, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    merges = [_merge_of(part, world, rank) for part in parts]
    highest = _reduce([m.maxima() for m in merges], dist.ReduceOp.MAX, process_group)
    sums = [m.sums(h) for m, h in zip(merges, highest, strict=True)]
    totals = _reduce(sums, dist.ReduceOp.SUM, process_group)
    merged = tuple(m.merged(h, t) for m, h, t in zip(merges, highest, totals, strict=True))
    return cast("T", merged if isinstance(stats, tuple) else merged[0])


def log_normaliser(weights: Weights, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """`log(sum of weights / number)` over the kept units of all ranks, 0-d nats, for `self_normalised(e)(batch, it)`.

    Two collectives of one and two numbers. 0 if no rank keeps a unit. Over micro-batches too, or with stats in the same
    two collectives: `Normaliser`.

    Args:
        weights: of the estimator *before* self-normalisation.
        process_group: None is the default group.
    """
    return all_reduce(Normaliser.of(weights), process_group).log.to(weights.log_w.dtype)


class _Merge(ABC):
    """What one part takes to both collectives, and makes of what comes back."""

    @abstractmethod
    def maxima(self) -> list[Tensor]:
        """For the maximum."""

    @abstractmethod
    def sums(self, maxima: list[Tensor]) -> list[Tensor]:
        """For the sum, given everybody's maxima."""

    @abstractmethod
    def merged(self, maxima: list[Tensor], sums: list[Tensor]) -> Part:
        """The part over all ranks."""


@final
@dataclass(frozen=True)
class _Sum(_Merge):
    x: Tensor

    def maxima(self) -> list[Tensor]:
        return []

    def sums(self, maxima: list[Tensor]) -> list[Tensor]:
        return [self.x.detach().double()]

    def merged(self, maxima: list[Tensor], sums: list[Tensor]) -> Tensor:
        return sums[0].to(self.x.dtype)


@final
@dataclass(frozen=True)
class _Normaliser(_Merge):
    own: Normaliser

    def maxima(self) -> list[Tensor]:
        return [self.own.shift]

    def sums(self, maxima: list[Tensor]) -> list[Tensor]:
        return [self.own.scaled(maxima[0]), self.own.count]

    def merged(self, maxima: list[Tensor], sums: list[Tensor]) -> Normaliser:
        return Normaliser(maxima[0], sums[0], sums[1])


@final
@dataclass(frozen=True)
class _Stats(_Merge):
    own: RatioStats
    world: int
    rank: int

    def maxima(self) -> list[Tensor]:
        own = self.own
        places = _places(own.top)
        rows = own.top.new_full((self.world, len(places)), -torch.inf)
        rows[self.rank] = own.top[places - 1]
        return [own.shift, own.blocks[:, 3], own.peaks, rows]

    def sums(self, maxima: list[Tensor]) -> list[Tensor]:
        shift, block_shift, _, rows = maxima
        own = self.own.rescaled(shift, block_shift)
        slots = _slots(own.top, _shares(rows, own.top), self.rank)
        return [own.moments, own.powers, own.grid, own.blocks[:, :3], own.clusters, own.dropped, slots]

    def merged(self, maxima: list[Tensor], sums: list[Tensor]) -> RatioStats:
        shift, block_shift, peaks, _ = maxima
        moments, powers, grid, blocks, clusters, dropped, slots = sums
        return RatioStats(
            self.own.level,
            moments=moments,
            shift=shift,
            powers=powers,
            grid=grid,
            blocks=torch.cat([blocks, block_shift[:, None]], 1),
            peaks=peaks,
            top=slots.topk(self.own.top.numel()).values,
            clusters=clusters,
            dropped=dropped,
        )


def _merge_of(part: Part, world: int, rank: int) -> _Merge:
    if isinstance(part, RatioStats):
        return _Stats(part, world, rank)
    return _Normaliser(part) if isinstance(part, Normaliser) else _Sum(part)


def _reduce(
    groups: list[list[Tensor]], operation: dist.ReduceOp.RedOpType, process_group: dist.ProcessGroup | None
) -> list[list[Tensor]]:
    """All tensors in one collective, or in none if there are none."""
    tensors = [t for group in groups for t in group]
    if not tensors:
        return groups
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, operation, group=process_group)
    pieces = iter(flat.split([t.numel() for t in tensors]))
    return [[next(pieces).view(t.shape) for t in group] for group in groups]


# The largest ratios of all ranks are to be found without gathering every rank's whole list. In the first collective
# each rank shows its list at a few places (1st, 4th, 16th, ...). Take all shown values in falling order until they
# stand for as many ratios as the list is long: those ratios are there, so what lies below cannot be among the largest.
# A rank's list is then needed only down to before its first shown value that was not taken. A place stands for at most
# 3/4 of the list and the next one is 4 times as far, so all ranks together need less than 7 lists, wherever the
# largest ratios are; and since every rank knows every share, each has slots of its own in the sum.
_STEP = 4


def _places(top: Tensor) -> Tensor:
    """Places in the list of largest ratios that every rank shows, counted from 1; made on the device."""
    count = 1
    while _STEP ** (count - 1) < top.numel():
        count += 1
    return (_STEP ** torch.arange(count, device=top.device)).clamp(max=top.numel())


def _shares(rows: Tensor, top: Tensor) -> Tensor:
    """How many of its largest ratios each rank sends: `[P]`, from what each shows, `[P, places]`."""
    places = _places(top)
    stands_for = places.diff(prepend=places.new_zeros(1)).repeat(rows.shape[0])
    # Stable, so that of equal values of one rank the earlier place comes first.
    order = rows.flatten().argsort(descending=True, stable=True)
    before = stands_for[order].cumsum(0) - stands_for[order]
    taken = torch.zeros_like(before, dtype=torch.bool).scatter(0, order, before < top.numel()).view(rows.shape)
    return torch.cat([places - 1, places[-1:]])[taken.sum(1)]


def _slots(top: Tensor, shares: Tensor, rank: int) -> Tensor:
    """This rank's share in its own slots, 0 in those of others, and -inf in those that nobody needs."""
    count = min(shares.numel(), 2 * _STEP - 1) * top.numel()
    place, slot = torch.arange(top.numel(), device=top.device), torch.arange(count + 1, device=top.device)
    slots = torch.where(slot < shares.sum(), 0.0, -torch.inf).to(top.dtype)
    index = torch.where(place < shares[rank], shares[:rank].sum() + place, count)
    return slots.scatter(0, index, top)[:count]
