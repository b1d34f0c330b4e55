"""How tokens are stored, padded or packed, and how they group into turns and sequences."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from reweigh.tiles import CHUNK_SLOTS, Tiles, may_look, ones_of, owners


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

    def spread_zeroed(self, s: Tensor) -> Tensor:
        """The same, but 0 off the mask."""
        out = self.spread(s)
        if may_look(s) and int(self.lengths.sum()) == self.mask.numel():
            return out
        return torch.where(self.mask, out, 0)

    @abstractmethod
    def masked(self, mask: Tensor) -> "Layout":
        """The same tokens with another mask."""

    @abstractmethod
    def sequences(self, which: slice) -> "Layout":
        """Some of the sequences alone."""

    @abstractmethod
    def parts(self, slots: int) -> list[tuple[slice, slice]]:
        """Cut between sequences into parts of about that many slots, so that what is made of one stays in the cache.

        Returns:
            For each part: where its tokens are along the first axis, and which sequences they are of. There is one part
            where values may not be looked at.
        """

    @abstractmethod
    def all_tiles(self) -> Tiles:
        """Rows of 64 slots, those without a token too."""

    @property
    def tiles(self) -> tuple[Tiles, Tensor]:
        """Rows of 64 slots, and the number of tokens in each; without empty rows where values may be looked at."""
        return self._tiles_seen if may_look(self.mask) else self._all_tiles_counted()

    @cached_property
    def _tiles_seen(self) -> tuple[Tiles, Tensor]:
        tiles, count = self._all_tiles_counted()
        some = count.nonzero().squeeze(1)
        return (tiles, count) if len(some) == len(count) else (tiles[some], count[some])

    def _all_tiles_counted(self) -> tuple[Tiles, Tensor]:
        tiles = self.all_tiles()
        return tiles, tiles.count(self.mask)

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
        # float32 counts exactly up to 2^24 tokens in one sequence.
        fast = (
            self.mask.view(torch.uint8).sum(-1, dtype=torch.int32) if may_look(self.mask) else self.mask.float().sum(-1)
        )
        object.__setattr__(self, "lengths", fast.long())

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

    def spread_zeroed(self, s: Tensor) -> Tensor:
        """Repeat a row's value on its tokens."""
        if not may_look(s) or not math.isfinite(float(s.sum())):
            return torch.where(self.mask, self.spread(s), 0)
        out = torch.empty(self.mask.shape, dtype=s.dtype)
        for rows, _ in self.parts(CHUNK_SLOTS):  # to select is slow, and to multiply is not
            torch.mul(ones_of(self.mask[rows], s.dtype), s[rows, None], out=out[rows])
        return out

    def masked(self, mask: Tensor) -> "Padded":
        """The same rows with another mask."""
        return Padded(mask, self.turn)

    def sequences(self, which: slice) -> "Padded":
        """Those rows alone."""
        return Padded(self.mask[which], None if self.turn is None else self.turn[which])

    def parts(self, slots: int) -> list[tuple[slice, slice]]:
        """Whole rows."""
        if not may_look(self.mask) or slots >= self.mask.numel():
            return [(slice(0, self.num_seqs), slice(0, self.num_seqs))]
        step = max(1, slots // max(1, self.mask.shape[1]))
        places = [slice(a, min(a + step, self.num_seqs)) for a in range(0, self.num_seqs, step)]
        return [(p, p) for p in places]

    def all_tiles(self) -> Tiles:
        """Every row from its first slot on."""
        num_seqs, each = self.mask.shape
        return Tiles.of(torch.arange(num_seqs + 1, device=self.mask.device) * each, self.mask.numel(), each)


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
        lengths: `[S]`.
    """

    mask: Bool[Tensor, " N"]
    cu_seqlens: Int[Tensor, " S_plus_1"]
    turn: Int[Tensor, " N"] | None = None
    offsets: Int[Tensor, " S_plus_1"] = field(init=False, repr=False)
    lengths: Int[Tensor, " S"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the offsets safe and count the tokens once, without a host sync."""
        num_tokens = self.mask.shape[0]
        inner = self.cu_seqlens[1:-1].long().clamp(0, num_tokens).cummax(0).values
        ends = inner.new_full((1,), num_tokens)
        offsets = torch.cat([torch.zeros_like(ends), inner, ends]) if self.num_seqs else torch.zeros_like(ends)
        object.__setattr__(self, "offsets", offsets)
        tiles, count = self.tiles
        lengths = torch.zeros(self.num_seqs, dtype=torch.int64, device=self.mask.device)
        object.__setattr__(self, "lengths", lengths.index_add(0, tiles.seq, count.long()))

    @property
    def num_seqs(self) -> int:
        """Number of offsets less one."""
        return self.cu_seqlens.shape[0] - 1

    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum over each run of tokens."""
        rows = self.tiles[0].map(lambda part: part.take(x).sum(-1))
        return (
            x.new_zeros(self.num_seqs, dtype=torch.float64).index_add(0, self.tiles[0].seq, rows.double()).to(x.dtype)
        )

    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum of each run of tokens."""
        return torch.segment_reduce(x, "max", lengths=self.offsets.diff(), unsafe=True, initial=-torch.inf)

    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum within each run of tokens."""
        # In float64, so that what earlier sequences added cancels without a trace.
        total = x.double().cumsum(0)
        before = torch.cat([total.new_zeros(1), total])[self.offsets[:-1]]
        return (total - self.spread(before)).to(x.dtype)

    def spread(self, s: Tensor) -> Tensor:
        """Repeat a run's value along the run."""
        if may_look(s):
            out, sizes = s.new_empty(self.mask.shape), self.offsets.diff()
            for tokens, seqs in self.parts(CHUNK_SLOTS):  # an index is twice as large as what it makes
                index = torch.repeat_interleave(sizes[seqs], output_size=tokens.stop - tokens.start)
                torch.index_select(s[seqs], 0, index, out=out[tokens])
            return out
        return s[owners(self.offsets[1:-1], self.mask.shape[0])]

    def masked(self, mask: Tensor) -> "Packed":
        """The same runs with another mask."""
        return Packed(mask, self.cu_seqlens, self.turn)

    def sequences(self, which: slice) -> "Packed":
        """Those runs alone."""
        offsets = self.offsets[which.start : which.stop + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        turn = None if self.turn is None else self.turn[tokens]
        return Packed(self.mask[tokens], offsets - offsets[0], turn)

    def parts(self, slots: int) -> list[tuple[slice, slice]]:
        """Whole runs of tokens."""
        if not may_look(self.mask) or slots >= self.mask.numel():
            return [(slice(0, self.mask.shape[0]), slice(0, self.num_seqs))]
        offsets, out, a = self.offsets, [], 0
        while a < self.num_seqs:
            b = max(a + 1, int(torch.searchsorted(offsets, offsets[a] + slots, right=True)) - 1)
            out.append((slice(int(offsets[a]), int(offsets[b])), slice(a, b)))
            a = b
        return out

    def all_tiles(self) -> Tiles:
        """Every run from its first slot on."""
        return Tiles.of(self.offsets, self.mask.shape[0])
