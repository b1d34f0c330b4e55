"""Merging sums over many processes: two collectives of tens of kilobytes, whatever the batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Factor, Normaliser, Weights
from reweigh.layout import Padded
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST
from reweigh.stats.sums import RatioStats

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
        >>> from reweigh.estimators import Normaliser
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
    """A part that goes into both collectives, and how it is made anew of what comes back."""

    @abstractmethod
    def maxima(self) -> list[Tensor]:
        """Tensors to take the maximum of over ranks."""

    @abstractmethod
    def sums(self, maxima: list[Tensor]) -> list[Tensor]:
        """Tensors to sum over ranks, given everybody's maxima."""

    @abstractmethod
    def merged(self, maxima: list[Tensor], sums: list[Tensor]) -> Part:
        """Make the part over all ranks."""


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
    """Count how many of its largest ratios each rank sends: `[P]`, from what each shows, `[P, places]`."""
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


def context_weights(
    estimator: Estimator, batch: Batch, process_group: dist.ProcessGroup | None, log_normaliser: Tensor | None = None
) -> Weights:
    """`estimator(batch)` where each rank of a context-parallel group holds a slice of the same sequences.

    One collective of `[1 + statistics, S]` float64 (16 bytes a sequence if all factors fold the log ratio): the slices'
    lengths and sums. A factor at the WORST level adds one maximum of 4 bytes a sequence. Token-level factors need
    nothing, and an estimator of them alone nothing at all. Slices may be cut anywhere, in any order, and be empty.

    Args:
        estimator: any product at TOKEN, SEQUENCE, GEOMETRIC and WORST levels.
        batch: this rank's tokens, of the same sequences in the same order as on the group's other ranks.
        process_group: the ranks that share the sequences; None is the default group.
        log_normaliser: as for `estimator(batch, log_normaliser)`. Of weights per sequence every rank has all, so a mean
            over this group, over all ranks, or over one rank of each group is the same.

    Returns:
        Weights of this rank's tokens; weights per sequence are on every rank the same, and counted on every rank.

    Raises:
        ValueError: on PREFIX, SUFFIX or TURN levels, which need the order of the slices; on a self-normalised estimator
            per token without `log_normaliser`; on a gate by the advantage's sign whose transform reads the batch.

    Source: the layout is that of Jacobs et al. (2023), DeepSpeed-Ulysses, and Liu, Zaharia, Abbeel (2023), Ring
    Attention.
    """
    for f in estimator.factors:
        if f.level not in (TOKEN, *_WHOLE):
            raise ValueError(
                f"context_weights: level must be TOKEN, SEQUENCE, GEOMETRIC or WORST, got {f.level.name.upper()}\n"
                "hint: it needs whole sequences in their order: whole_sequences(batch, group)."
            )
        if f.sign and f.transform.reads_batch:
            raise ValueError(f"context_weights: a factor with a sign must not read the whole batch, got {f}")
    if estimator.unit != "sequence" and estimator.normalise and log_normaliser is None:
        raise ValueError(
            "context_weights: self-normalised weights per token need log_normaliser\n"
            "hint: all_reduce(Normaliser.of(context_weights(raw, batch, group)), group).log, raw before "
            "self-normalisation."
        )
    layout, whole = batch.layout, [f for f in estimator.factors if f.level in _WHOLE]
    if not whole:
        return estimator(batch, log_normaliser)
    lengths, folded = _folds(whole, batch, process_group)
    given = [replace(f, of=_Given(x[:, None]), scale=1.0) for f, x in zip(whole, folded, strict=True) if not f.sign]
    # A sequence of one token has the same sequence ratio, geometric ratio and worst token.
    zero = torch.zeros_like(folded[0])[:, None]
    slots = Batch.padded(zero, zero, (lengths > 0)[:, None], group=batch.group)
    if estimator.unit == "sequence":
        w = Estimator(tuple(given), estimator.normalise)(slots, log_normaliser)
        return Weights(w.log_w, w.keep, w.bounded, w.valid, "sequence", layout)
    gates = [
        replace(f, level=TOKEN, of=_Given(torch.where(layout.mask, layout.spread(x), 0)), scale=1.0)
        for f, x in zip(whole, folded, strict=True)
        if f.sign
    ]
    tokens = Estimator(tuple(f for f in estimator.factors if f.level == TOKEN) + tuple(gates))(batch)
    log_w, keep, bounded = tokens.log_w, tokens.keep, tokens.bounded
    if given:
        seqs = Estimator(tuple(given))(slots)
        log_w, keep = log_w + layout.spread(seqs.log_w), keep & layout.spread(seqs.keep)
        bounded = (bounded | layout.spread(seqs.bounded)) & keep
    if estimator.normalise and log_normaliser is not None:
        log_w = log_w - (layout.spread(log_normaliser) if log_normaliser.dim() else log_normaliser)
    return Weights(log_w, keep, bounded, tokens.valid, "token", layout)


def whole_sequences(
    batch: Batch, process_group: dist.ProcessGroup | None = None, position: Tensor | None = None
) -> Batch:
    """Whole sequences from slices of them on the ranks of a context-parallel group, each sequence on one rank.

    For statistics, `RatioStats.of(whole_sequences(batch, group), level)`, whose hybrid sums, blocks and lengths are of
    whole sequences, and for PREFIX and TURN levels. Rank r of P gets sequences r, r + P, ...; so an `all_reduce` over
    all ranks counts each once. One gather of 12 bytes a token (log-probs and mask), and 4 more each for turns,
    advantages and positions.

    Args:
        batch: this rank's slices, padded, of one width on all ranks: `[S, T / P]`, of the same sequences in one order.
        process_group: the ranks that share the sequences; None is the default group.
        position: `[T / P]` or `[S, T / P]` integers, the place of each slot in its sequence, for slices that are not
            in the order of ranks (as those that balance causal attention).

    Raises:
        ValueError: if the batch is packed.

    Also called: gathering the outputs of context, sequence or Ulysses parallelism.
    """
    if not isinstance(batch.layout, Padded):
        raise ValueError(
            "whole_sequences: slices must be padded, got a packed batch\n"
            "hint: Batch.padded with rows of one width on all ranks; slots without a token are masked."
        )
    world, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    # A dropped token goes along, so that it is dropped and counted there.
    mask = batch.layout.mask if batch.dropped is None else batch.layout.mask | batch.dropped
    dtype, shape = batch.log_ratio.dtype, mask.shape
    place = None if position is None else position.expand(shape)
    given = {"advantage": batch.advantage, "turn": batch.layout.turn, "place": place}
    extra = {name: x for name, x in given.items() if x is not None}
    # Log-probs are anything off the mask, but a copy is all that is made of them.
    mine = torch.stack([x.detach().to(dtype) for x in (batch.log_pi, batch.log_mu, mask, *extra.values())])
    slices = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(slices, mine, group=process_group)
    rows = torch.cat(slices, -1)[:, rank::world]
    names = ("log_pi", "log_mu", "mask", *extra)
    if place is not None:
        order = rows[names.index("place")].argsort(stable=True, dim=-1)
        rows = rows.gather(-1, order.expand(rows.shape))
    x = dict(zip(names, rows, strict=True))
    return Batch.padded(
        x["log_pi"],
        x["log_mu"],
        x["mask"],
        advantage=x.get("advantage"),
        group=None if batch.group is None else batch.group[rank::world],
        turn=x["turn"].long() if "turn" in x else None,
    )


_WHOLE = (SEQUENCE, GEOMETRIC, WORST)


@dataclass(frozen=True, eq=False)
class _Given:
    """A statistic that is known already."""

    value: Tensor
    __name__: str = "given"

    def __call__(self, batch: Batch) -> Tensor:
        return self.value


def _folds(factors: Sequence[Factor], batch: Batch, group: dist.ProcessGroup | None) -> tuple[Tensor, list[Tensor]]:
    """Lengths of the whole sequences, and each factor's fold over them."""
    layout, values = batch.layout, {(f.of, f.scale): f.of(batch) * f.scale for f in factors}
    summed = list(dict.fromkeys((f.of, f.scale) for f in factors if f.level != WORST))
    topped = list(dict.fromkeys((f.of, f.scale) for f in factors if f.level == WORST))
    sums = torch.stack([layout.lengths.double(), *(layout.sum(values[key]).double() for key in summed)])
    dist.all_reduce(sums, dist.ReduceOp.SUM, group=group)
    lengths, out = sums[0], dict[object, Tensor]()
    for key, total in zip(summed, sums[1:], strict=True):
        out[key, SEQUENCE] = total.to(values[key].dtype)
        out[key, GEOMETRIC] = (total / lengths.clamp(min=1)).to(values[key].dtype)
    if topped:
        tops = torch.stack([layout.max(values[key]) for key in topped])
        dist.all_reduce(tops, dist.ReduceOp.MAX, group=group)
        out |= {(key, WORST): top for key, top in zip(topped, tops, strict=True)}
    return lengths, [out[(f.of, f.scale), f.level] for f in factors]


__all__ = ["Normaliser", "all_reduce", "context_weights", "log_normaliser", "whole_sequences"]
