"""Estimators where several ranks hold slices of the same sequences (context or sequence parallelism)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Factor, Weights
from reweigh.layout import Padded
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST


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
