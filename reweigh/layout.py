"""How tokens are stored, padded or packed: turns, sequences, and the rows of 64 slots that sums go over."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from reweigh.native import walk

Differentiate = Callable[..., tuple[Tensor | None, ...]]
Keep = Callable[[Any, tuple[Any, ...], Any], None]


def operator(
    name: str,
    function: Callable[..., Any],
    signature: str,
    shapes: Callable[..., Any],
    differentiate: tuple[Differentiate, Keep] | None = None,
) -> Callable[..., Any]:
    """Make `torch.ops.reweigh.<name>`.

    Args:
        name: of the operator.
        function: what it does, without gradients.
        signature: in torch's language for operators.
        shapes: makes empty outputs from the same arguments.
        differentiate: its backward pass, and what saves the inputs for it.
    """
    try:  # a second import of the package must not replace what the first one still calls
        return getattr(torch.ops.reweigh, name).default
    except AttributeError:
        made = torch.library.custom_op(f"reweigh::{name}", function, mutates_args=(), schema=signature)
    made.register_fake(shapes)
    if differentiate is not None:
        made.register_autograd(differentiate[0], setup_context=differentiate[1])
    return getattr(torch.ops.reweigh, name).default


WIDTH = 64
CHUNK_SLOTS = 1 << 16  # slots worked on at a time: the few float32 arrays in use fit a core's second-level cache
CHUNK_ROWS = CHUNK_SLOTS // WIDTH


def may_look(x: Tensor) -> bool:
    """Whether values may decide what is computed: on a CPU, where reading one waits for nothing, and not compiling.

    The result is the same either way; looking only lets work be left out.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def in_a_graph(x: Tensor) -> bool:
    """Whether this is being compiled for a CPU: what the compiler does slowly there is called as one operator."""
    return x.device.type == "cpu" and torch.compiler.is_compiling()


def owners(ends: Int[Tensor, " S"], slots: int) -> Int[Tensor, " slots"]:
    """Count, for each slot, the runs that end at or before it: the run that it is in; without a host sync.

    Args:
        ends: where each run ends, rising.
        slots: number of slots, at least the last end.
    """
    bump = torch.zeros(slots + 1, dtype=torch.int64, device=ends.device)
    return bump.index_add(0, ends, torch.ones_like(ends)).cumsum(0)[:-1]


def ones_of(mask: Bool[Tensor, "*tok"], dtype: torch.dtype) -> Tensor:
    """1.0 where the mask is True, else 0.0; by way of bytes, which eager mode converts fast and a compiler does not."""
    return (mask.view(torch.uint8) if may_look(mask) else mask).to(dtype)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Rows of a batch. Each begins at a multiple of 64 slots from its sequence's first, wherever that lies.

    So what is summed over a row, and then over the rows of a sequence, does not depend on how the batch was cut.

    Attributes:
        start: `[R]`, flat slot of the row's first element.
        seq: `[R]`, its sequence; rising.
        place: `[R]`, its number in the sequence.
        size: `[R]`, slots of the row that belong to the sequence: 64 but at its end, 0 if the row is not in use.
        each: slots of every sequence, if these are all rows of sequences of one length.
        partial: `[P]`, rows of less than 64 slots; None if values may not be looked at, as are the next three.
        inside: `[P, 64]`, which elements of those belong to the sequence.
        seqs: the sequences from that of the first row to that of the last.
        run: flat slots from the first row to the last, if rows lie end to end and are whole; else None.
    """

    start: Int[Tensor, " R"]
    seq: Int[Tensor, " R"]
    place: Int[Tensor, " R"]
    size: Int[Tensor, " R"]
    each: int | None = None
    partial: Int[Tensor, " P"] | None = field(init=False, repr=False, default=None)
    inside: Bool[Tensor, "P 64"] | None = field(init=False, repr=False, default=None)
    seqs: slice | None = field(init=False, repr=False, default=None)
    run: slice | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        """Look at what lets `take` be fast."""
        if not may_look(self.size) or len(self) == 0:
            return
        partial = (self.size < WIDTH).nonzero().squeeze(1)
        inside = torch.arange(WIDTH) < self.size[partial][:, None]
        low, high = int(self.start[0]), int(self.start[-1])
        together = len(partial) == 0 and high - low == (len(self) - 1) * WIDTH
        object.__setattr__(self, "partial", partial)
        object.__setattr__(self, "inside", inside)
        object.__setattr__(self, "seqs", slice(int(self.seq[0]), int(self.seq[-1]) + 1))
        object.__setattr__(self, "run", slice(low, high + WIDTH) if together else None)

    @classmethod
    def of(cls, offsets: Int[Tensor, " S_plus_1"], slots: int, each: int | None = None) -> "Tiles":
        """Make all rows of sequences that lie end to end.

        Args:
            offsets: sequence i is at flat slots `offsets[i] : offsets[i + 1]`, rising from 0.
            slots: number of slots in all.
            each: slots of every sequence, if they are the same.
        """
        num_seqs, device = len(offsets) - 1, offsets.device
        lengths = offsets.diff()
        per_seq = (lengths + (WIDTH - 1)) // WIDTH
        ends = per_seq.cumsum(0)
        if each is not None:
            rows = -(-each // WIDTH)
            seq = torch.arange(num_seqs, device=device)[:, None].expand(num_seqs, rows).reshape(-1)
        elif may_look(offsets):
            seq = torch.repeat_interleave(per_seq)
        else:
            # A bound that shapes alone give: the number of rows is a value, and reading it would stop the device.
            seq = owners(ends, slots // WIDTH + num_seqs).clamp(max=max(0, num_seqs - 1))
        place = torch.arange(len(seq), device=device) - (ends - per_seq)[seq]
        size = (lengths[seq] - place * WIDTH).clamp(0, WIDTH)
        return cls(offsets[seq] + place * WIDTH, seq, place, size, each)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.start)

    def __getitem__(self, rows: slice | Tensor) -> "Tiles":
        """Take some of the rows."""
        return Tiles(self.start[rows], self.seq[rows], self.place[rows], self.size[rows])

    def take(self, x: Tensor) -> Tensor:
        """Read the rows of a token-shaped tensor: `[R, 64]`, 0 beyond the end of a sequence; maybe a view of it."""
        x = x.detach()
        if self.partial is None or self.inside is None or self.seqs is None:
            if self.each is None:
                return self._one_by_one(x)
            short = -self.each % WIDTH
            return (torch.nn.functional.pad(x, (0, short)) if short else x).unflatten(-1, (-1, WIDTH)).flatten(0, 1)
        first, flat = 0, x
        if x.dim() == 2:  # of a view with gaps, only the sequences at hand are copied
            first, flat = self.seqs.start * x.shape[1], x[self.seqs].reshape(-1)
        if self.run is not None:
            return flat[self.run.start - first : self.run.stop - first].view(-1, WIDTH)  # nothing to copy
        size = len(flat) - WIDTH
        if size < 0:
            return self._one_by_one(x)
        # A view of all windows, of which index_select copies some: much faster than an index an element.
        start = self.start - first if first else self.start
        out = flat.unfold(0, WIDTH, 1).index_select(0, start.clamp(max=size))
        if len(self.partial):
            out[self.partial] = torch.where(self.inside, out[self.partial], torch.zeros((), dtype=x.dtype))
            over = self.partial[start[self.partial] > size]  # windows that would end behind the last slot
            if len(over):
                out[over] = self[over]._one_by_one(x)
        return out

    def _one_by_one(self, x: Tensor) -> Tensor:
        inside = torch.arange(WIDTH, device=x.device)
        spots = (self.start[:, None] + inside).clamp(max=max(0, x.numel() - 1))
        values = x[spots // x.shape[1], spots % x.shape[1]] if x.dim() == 2 else x[spots]
        return torch.where(inside < self.size[:, None], values, torch.zeros((), dtype=x.dtype, device=x.device))

    def count(self, mask: Bool[Tensor, "*tok"]) -> Int[Tensor, " R"]:
        """Count the tokens of each row."""
        if not may_look(mask):
            return self.take(mask).sum(-1)
        counts: list[Tensor] = []
        for rows in (part.take(mask) for part in self.parts):
            if rows.storage_offset() % 8:  # a view of what was given, and not where a number of eight bytes can begin
                rows = rows.clone()
            # Eight slots at a time: a byte holds the count of 64.
            counts.append(rows.view(torch.int64).sum(1).view(torch.uint8).view(-1, 8).sum(1))
        return torch.cat(counts)

    @property
    def parts(self) -> "tuple[Tiles, ...]":
        """Parts of whole sequences that fit the cache; one part if values may not be looked at."""
        return self._parts if may_look(self.size) else (self,)

    @cached_property
    def _parts(self) -> "tuple[Tiles, ...]":
        if len(self) <= CHUNK_ROWS:
            return (self,)
        out: list[Tiles] = []
        a, total = 0, len(self)
        while a < total:
            b = min(a + CHUNK_ROWS, total)
            if b < total:  # back to where a sequence begins, or on to where the only one ends
                cut = int(torch.searchsorted(self.seq, self.seq[b]))
                b = cut if cut > a else int(torch.searchsorted(self.seq, self.seq[b], right=True))
            out.append(self[slice(a, b)])
            a = b
        return tuple(out)


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

    @property
    @abstractmethod
    def runs(self) -> Int[Tensor, " S_plus_1"] | None:
        """Offsets of sequences that lie end to end, safe whatever was given; None if each is a row."""

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
    def cummax_floored(self, x: Tensor) -> Tensor:
        """Running maximum, inclusive, that starts again in each sequence, of something that is -inf off the mask."""

    @abstractmethod
    def spread(self, s: Tensor) -> Tensor:
        """Give each token its sequence's value: `[S]` -> tokens."""

    def spread_zeroed(self, s: Tensor) -> Tensor:
        """Give each token of the mask its sequence's value, and the other slots 0."""
        made = walk.spread(s, self.mask, self.runs) if may_look(s) else None
        return self.spread_by_torch(s) if made is None else made

    @abstractmethod
    def spread_by_torch(self, s: Tensor) -> Tensor:
        """Give each token of the mask its sequence's value, and the other slots 0, without the compiled kernel."""

    @abstractmethod
    def masked(self, mask: Tensor) -> "Layout":
        """Give the same tokens another mask."""

    @abstractmethod
    def sequences(self, which: slice) -> "Layout":
        """Take some of the sequences alone."""

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
        if may_look(self.mask):
            return self._tiles_seen
        tiles = self.all_tiles()
        return tiles, tiles.count(self.mask)

    @cached_property
    def _tiles_seen(self) -> tuple[Tiles, Tensor]:
        tiles = self.all_tiles()
        count = tiles.count(self.mask)
        some = count.nonzero().squeeze(1)
        return (tiles, count) if len(some) == len(count) else (tiles[some], count[some])

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
        lengths = walk.counts(self.mask, None) if may_look(self.mask) else None
        if lengths is None:
            # float32 counts exactly up to 2^24 tokens in one sequence.
            seen = may_look(self.mask)
            fast = self.mask.view(torch.uint8).sum(-1, dtype=torch.int32) if seen else self.mask.float().sum(-1)
            lengths = fast.long()
        object.__setattr__(self, "lengths", lengths)

    @property
    def num_seqs(self) -> int:
        """Count the rows."""
        return self.mask.shape[0]

    @property
    def runs(self) -> None:
        """Each sequence is a row."""
        return None

    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum each row's slots."""
        return x.sum(-1)

    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum of each row."""
        return x.amax(-1) if x.shape[-1] else x.new_full((x.shape[0],), -torch.inf)

    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum along each row."""
        return x.cumsum(-1)

    def cummax_floored(self, x: Tensor) -> Tensor:
        """Running maximum along each row."""
        return x.cummax(-1).values if x.shape[-1] else x

    def spread(self, s: Tensor) -> Tensor:
        """Repeat a row's value along the row."""
        return s[:, None].expand(self.mask.shape)

    def spread_by_torch(self, s: Tensor) -> Tensor:
        """Repeat a row's value on its tokens."""
        if not may_look(s) or not math.isfinite(float(s.sum())):
            return torch.where(self.mask, self.spread(s), 0)
        out = torch.empty(self.mask.shape, dtype=s.dtype)
        for rows, _ in self.parts(CHUNK_SLOTS):  # to select is slow, and to multiply is not
            torch.mul(ones_of(self.mask[rows], s.dtype), s[rows, None], out=out[rows])
        return out

    def masked(self, mask: Tensor) -> "Padded":
        """Give the same rows another mask."""
        return Padded(mask, self.turn)

    def sequences(self, which: slice) -> "Padded":
        """Take those rows alone."""
        return Padded(self.mask[which], None if self.turn is None else self.turn[which])

    def parts(self, slots: int) -> list[tuple[slice, slice]]:
        """Cut between two rows."""
        if not may_look(self.mask) or slots >= self.mask.numel():
            return [(slice(0, self.num_seqs), slice(0, self.num_seqs))]
        step = max(1, slots // max(1, self.mask.shape[1]))
        places = [slice(a, min(a + step, self.num_seqs)) for a in range(0, self.num_seqs, step)]
        return [(p, p) for p in places]

    def all_tiles(self) -> Tiles:
        """Every row from its first slot on."""
        num_seqs, each = self.mask.shape
        return Tiles.of(torch.arange(num_seqs + 1, device=self.mask.device) * each, self.mask.numel(), each)


_BANDS = (2.0**20, 2.0**45, 2.0**70)  # sizes that are summed apart: within one, float64 holds a sum to a nat


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
        if may_look(self.mask) and (counted := walk.counts(self.mask, offsets)) is not None:
            object.__setattr__(self, "lengths", counted)
            return
        tiles, count = self.tiles
        lengths = torch.zeros(self.num_seqs, dtype=torch.int64, device=self.mask.device)
        object.__setattr__(self, "lengths", lengths.index_add(0, tiles.seq, count.long()))

    @property
    def num_seqs(self) -> int:
        """Number of offsets less one."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def runs(self) -> Int[Tensor, " S_plus_1"]:
        """Sequences lie end to end."""
        return self.offsets

    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum over each run of tokens."""
        tiles, total = self.tiles[0], x.new_zeros(self.num_seqs, dtype=torch.float64)
        rows = torch.cat([part.take(x).sum(-1) for part in tiles.parts])
        return total.index_add(0, tiles.seq, rows.double()).to(x.dtype)

    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum of each run of tokens."""
        return torch.segment_reduce(x, "max", lengths=self.offsets.diff(), unsafe=True, initial=-torch.inf)

    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum within each run of tokens."""
        # In float64, so that what earlier sequences added cancels without a trace; what is so large that a sum of it
        # would lose the rest is summed apart, and so adds nothing at all to later sequences.
        x64 = x.double()
        if may_look(x) and (not x.numel() or float(x64.abs().amax()) < _BANDS[0]):
            return self._running(x64).to(x.dtype)
        size, total = x64.abs(), torch.zeros_like(x64)
        for low, high in zip((0.0, *_BANDS), (*_BANDS, torch.inf), strict=True):
            total += self._running(torch.where((size >= low) & (size < high), x64, 0))
        return total.to(x.dtype)

    def cummax_floored(self, x: Tensor) -> Tensor:
        """Running maximum within each run of tokens."""
        # Of ranks, with those of a later run above all of earlier ones: integers, so that no value is rounded.
        ordered, order = x.sort()
        place = torch.arange(len(x), device=x.device)
        above = self.spread(torch.arange(self.num_seqs, device=x.device)) * len(x)
        return ordered[(torch.empty_like(order).scatter(0, order, place) + above).cummax(0).values - above]

    def _running(self, x: Tensor) -> Tensor:
        total = x.cumsum(0)
        before = torch.cat([total.new_zeros(1), total])[self.offsets[:-1]]
        return total - self.spread(before)

    def spread(self, s: Tensor) -> Tensor:
        """Repeat a run's value along the run."""
        if may_look(s):
            out, sizes = s.new_empty(self.mask.shape), self.offsets.diff()
            for tokens, seqs in self.parts(CHUNK_SLOTS):  # an index is twice as large as what it makes
                index = torch.repeat_interleave(sizes[seqs], output_size=tokens.stop - tokens.start)
                torch.index_select(s[seqs], 0, index, out=out[tokens])
            return out
        return s[owners(self.offsets[1:-1], self.mask.shape[0])]

    def spread_by_torch(self, s: Tensor) -> Tensor:
        """Repeat a run's value on its tokens."""
        out = self.spread(s)
        if may_look(s) and int(self.lengths.sum()) == self.mask.numel():
            return out
        return torch.where(self.mask, out, 0)

    def masked(self, mask: Tensor) -> "Packed":
        """Give the same runs of tokens another mask."""
        return Packed(mask, self.cu_seqlens, self.turn)

    def sequences(self, which: slice) -> "Packed":
        """Take those runs of tokens alone."""
        offsets = self.offsets[which.start : which.stop + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        turn = None if self.turn is None else self.turn[tokens]
        return Packed(self.mask[tokens], offsets - offsets[0], turn)

    def parts(self, slots: int) -> list[tuple[slice, slice]]:
        """Cut between runs of tokens."""
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
