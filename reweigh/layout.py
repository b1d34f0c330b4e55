"""How tokens are stored, padded or packed, and how they group into turns and sequences."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Layout(ABC):
    """How tokens are stored. Every level, statistic and loss is built on these few operations.

    A slot that is not in `mask` (padding, a prompt or tool token) contributes nothing to any of them.
    """

    mask: Bool[Tensor, "*tok"]  # True where mu sampled the token and it counts
    turn: Int[Tensor, "*tok"] | None  # turn of each token, for the TURN level
    lengths: Int[Tensor, " S"]  # number of tokens in the mask, per sequence

    @property
    @abstractmethod
    def num_seqs(self) -> int:
        """Number of sequences, empty ones included."""

    @abstractmethod
    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum per sequence of floats that are 0 off the mask already: one pass less than `sum`."""

    @abstractmethod
    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum per sequence of something that is -inf off the mask already."""

    @abstractmethod
    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum, inclusive, that starts again in each sequence, of something that is 0 off the mask already."""

    @abstractmethod
    def spread(self, s: Tensor) -> Tensor:
        """Give each token its sequence's value: `[S]` -> tokens."""

    @abstractmethod
    def masked(self, mask: Tensor) -> "Layout":
        """The same tokens with another mask."""

    @abstractmethod
    def chunks(self, slots: int) -> list[tuple[slice, slice, "Layout"]]:
        """Cut into parts of about that many slots, so that what is made from one stays in the processor's cache.

        Returns:
            For each part: where its tokens are along the first axis, which sequences it is of, and its layout, on which
            all but `masked` work. A sequence may lie in several parts.
        """

    def sum(self, x: Tensor) -> Tensor:
        """Sum per sequence: tokens -> `[S]`; 0 for an empty sequence."""
        return self.sum_zeroed(torch.where(self.mask, x, 0))

    def cumsum(self, x: Tensor) -> Tensor:
        """Running sum, inclusive, that starts again in each sequence: tokens -> tokens."""
        return self.cumsum_zeroed(torch.where(self.mask, x, 0))

    def max(self, x: Tensor) -> Tensor:
        """Maximum per sequence: tokens -> `[S]`; -inf for an empty sequence."""
        return self.max_floored(torch.where(self.mask, x, -torch.inf))


@final
@dataclass(frozen=True, eq=False)
class Padded(Layout):
    """Tokens as `[S, T]`, one row a sequence; padding anywhere the mask is False."""

    mask: Bool[Tensor, "S T"]
    turn: Int[Tensor, "S T"] | None = None
    lengths: Int[Tensor, " S"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Count the tokens once."""
        object.__setattr__(self, "lengths", self.mask.sum(-1, dtype=torch.int32).long())

    @property
    def num_seqs(self) -> int:
        """Number of rows."""
        return self.mask.shape[0]

    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum over each row."""
        return x.sum(-1)

    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum of each row."""
        return x.amax(-1) if x.shape[-1] else x.new_full((x.shape[0],), -torch.inf)

    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum along each row."""
        return x.cumsum(-1)

    def spread(self, s: Tensor) -> Tensor:
        """Repeat a row's value along the row."""
        return s[:, None].expand(self.mask.shape)

    def masked(self, mask: Tensor) -> "Padded":
        """The same rows with another mask."""
        return Padded(mask, self.turn)

    def chunks(self, slots: int) -> list[tuple[slice, slice, Layout]]:
        """Whole rows."""
        if slots >= self.mask.numel():
            return [(slice(None), slice(None), self)]
        step = max(1, slots // max(1, self.mask.shape[1]))
        places = [slice(a, min(a + step, self.num_seqs)) for a in range(0, self.num_seqs, step)]
        return [(p, p, Padded(self.mask[p])) for p in places]


@final
@dataclass(frozen=True, eq=False)
class Packed(Layout):
    """Tokens as `[N]`, sequences end to end; sequence `i` is `cu_seqlens[i] : cu_seqlens[i + 1]`.

    Attributes:
        mask: `[N]`.
        cu_seqlens: `[S + 1]`, as given.
        turn: `[N]`.
        offsets: `[S + 1]`, the same forced to rise from 0 to N, so that no wrong offset can read beyond the tokens;
            `Batch.check()` tells where the given ones were wrong.
        seq: `[N]`, the sequence of each token.
        lengths: `[S]`.
    """

    mask: Bool[Tensor, " N"]
    cu_seqlens: Int[Tensor, " S_plus_1"]
    turn: Int[Tensor, " N"] | None = None
    offsets: Int[Tensor, " S_plus_1"] = field(init=False, repr=False)
    seq: Int[Tensor, " N"] = field(init=False, repr=False)
    lengths: Int[Tensor, " S"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find each token's sequence and count the tokens once, without a host sync."""
        num_tokens = self.mask.shape[0]
        inner = self.cu_seqlens[1:-1].long().clamp(0, num_tokens).cummax(0).values
        ends = inner.new_full((1,), num_tokens)
        offsets = torch.cat([torch.zeros_like(ends), inner, ends]) if self.num_seqs else torch.zeros_like(ends)
        bump = torch.zeros(num_tokens + 1, dtype=torch.int64, device=self.mask.device)
        seq = bump.index_add(0, inner, torch.ones_like(inner)).cumsum(0)[:num_tokens]
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "seq", seq)
        # float32 counts exactly up to 2^24 tokens in one sequence.
        object.__setattr__(self, "lengths", self.sum_zeroed(self.mask.float()).long())

    @property
    def num_seqs(self) -> int:
        """Number of offsets less one."""
        return self.cu_seqlens.shape[0] - 1

    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum over each run of tokens."""
        return torch.segment_reduce(x, "sum", lengths=self.offsets.diff(), unsafe=True)  # offsets are safe by making

    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum of each run of tokens."""
        return torch.segment_reduce(x, "max", lengths=self.offsets.diff(), unsafe=True, initial=-torch.inf)

    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum within each run of tokens."""
        # In float64, so that what earlier sequences added cancels without a trace.
        total = x.double().cumsum(0)
        before = torch.cat([total.new_zeros(1), total])[self.offsets[:-1]]
        return (total - before[self.seq]).to(x.dtype)

    def spread(self, s: Tensor) -> Tensor:
        """Gather each token's value."""
        return s[self.seq]

    def masked(self, mask: Tensor) -> "Packed":
        """The same runs with another mask."""
        return Packed(mask, self.cu_seqlens, self.turn)

    def chunks(self, slots: int) -> list[tuple[slice, slice, Layout]]:
        """Runs of tokens, cut anywhere; every part is of all sequences, most of them empty in it."""
        if slots >= self.mask.numel():
            return [(slice(None), slice(None), self)]
        num_tokens = self.mask.shape[0]
        places = [slice(a, min(a + slots, num_tokens)) for a in range(0, num_tokens, slots)]
        everyone = slice(0, self.num_seqs)
        return [(p, everyone, Packed(self.mask[p], self.offsets.clamp(p.start, p.stop) - p.start)) for p in places]
