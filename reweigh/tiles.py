"""Tokens in rows of 64 slots, each row of one sequence: so padded and packed batches are summed alike, and fast."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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
    """For each slot, how many runs end at or before it, and so which run it is in; without a host sync.

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
        """All rows of sequences that lie end to end.

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
        """Number of rows."""
        return len(self.start)

    def __getitem__(self, rows: slice | Tensor) -> "Tiles":
        """Some of the rows."""
        return Tiles(self.start[rows], self.seq[rows], self.place[rows], self.size[rows])

    def take(self, x: Tensor) -> Tensor:
        """The rows of a token-shaped tensor: `[R, 64]`, 0 beyond the end of a sequence. It may be a view of `x`."""
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

    def map(self, of: Callable[["Tiles"], Tensor]) -> Tensor:
        """What is made of each part, joined along the rows, which are the last axis."""
        parts = [of(part) for part in self.parts]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0] if parts else of(self)

    def count(self, mask: Bool[Tensor, "*tok"]) -> Int[Tensor, " R"]:
        """Tokens of each row."""
        if not may_look(mask):
            return self.take(mask).sum(-1)
        return self.map(lambda part: _count_bytes(part.take(mask)))

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


def _count_bytes(mask: Tensor) -> Tensor:
    """Of each row of 64, how many are True: eight slots at a time, as a byte holds the count of 64."""
    if mask.storage_offset() % 8:  # a view of what was given, and not where a number of eight bytes can begin
        mask = mask.clone()
    return mask.view(torch.int64).sum(1).view(torch.uint8).view(-1, 8).sum(1)
