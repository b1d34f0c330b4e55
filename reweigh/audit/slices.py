"""The same statistics for parts of the records: by step, environment, length, position or lag."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from reweigh.audit.keys import (
    MISSING,
    OTHER,
    Key,
    bin_label,
    coarse,
    first_by_hash,
    in_ranges,
    integers,
    lags,
    largest_lag,
    range_label,
    width_of,
    without,
)
from reweigh.audit.parts import merge, positions, take, take_sequences
from reweigh.batch import Batch
from reweigh.levels import SEQUENCE, TOKEN, Level
from reweigh.records import RecordBatch
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import RatioStats, length_bin

By = Literal["step", "env", "length", "position", "lag"]
"""What an audit can be cut by."""
BYS: tuple[By, ...] = get_args(By)
COLUMNS_OF: Mapping[By, tuple[str, ...]] = {"step": ("step",), "env": ("env",), "lag": ("versions", "trainer_version")}

MAX_RANGES = 16  # steps and lags are grouped into ranges of 2, 4, 8, ... until there are no more than these
MAX_ENVS = 1000  # environments counted one by one; of more, those with the lowest hash, and the others together
MAX_ENVS_SHOWN = 15  # those with most tokens; the rest is merged


@dataclass(frozen=True, eq=False)
class Slices:
    """Stats of each slice, by key; `a + b` is the slices of both.

    Attributes:
        by: what the records are cut by.
        token: stats of the tokens of a slice. The key is the first number of a range, the name of an environment, an
            index of a bin of lengths, or None where the records do not say.
        sequence: stats of the sequences of a slice; none by position. By lag, a sequence counts at its largest.
        width: of a range of steps or lags.
    """

    by: By
    token: dict[Key, RatioStats]
    sequence: dict[Key, RatioStats]
    width: int = 1

    @classmethod
    def of(cls, by: By, batch: Batch, part: RecordBatch) -> "Slices":
        """Slices of one part of the records; `batch` has its tokens."""
        if by == "env":
            return cls(by, *_by_name(batch, part))._merged()
        tokens, seqs = _codes(by, batch, part)
        if tokens is None:
            assert seqs is not None
            width = width_of(seqs[batch.layout.lengths > 0].unique().tolist(), MAX_RANGES) if by == "step" else 1
            token, sequence = _of_sequences(batch, coarse(seqs, width))
            return cls(by, token, sequence, width)
        width = width_of(tokens[batch.layout.mask].unique().tolist(), MAX_RANGES) if by == "lag" else 1
        token = {key: RatioStats.of(x, TOKEN) for key, x in _split(batch, coarse(tokens, width))}
        if seqs is None:
            return cls(by, token, {}, width)
        return cls(by, token, _of_sequences(batch, coarse(seqs, width), (SEQUENCE,))[-1], width)

    def __add__(self, other: "Slices") -> "Slices":
        """The slices of both."""
        width = max(self.width, other.width)
        a, b = self._at(width), other._at(width)
        both = Slices(self.by, merge(a.token, b.token), merge(a.sequence, b.sequence), width)
        return both._at(max(width, width_of([k for k in both.token if isinstance(k, int)], MAX_RANGES)))._merged()

    def rows(self) -> list["SliceRow"]:
        """The slices as numbers, in order; environments with most tokens first."""
        if self.by == "env":
            most = sorted(self.token, key=lambda k: (-float(self.token[k].moments[0].sum()), str(k)))
            shown = _keep(self, set(most[:MAX_ENVS_SHOWN]))
            keys = sorted(shown.token, key=lambda k: (k == OTHER, k is None, most.index(k) if k in most else 0))
        else:
            shown = self
            keys = sorted(self.token, key=lambda k: (k is None, k if isinstance(k, int) else 0))
        return [
            SliceRow(
                _label(self.by, key, self.width),
                summarise(shown.token[key]),
                summarise(shown.sequence[key]) if key in shown.sequence else None,
            )
            for key in keys
        ]

    def _at(self, width: int) -> "Slices":
        if self.by not in ("step", "lag") or width == self.width:
            return self
        return Slices(self.by, in_ranges(self.token, width), in_ranges(self.sequence, width), width)

    def _merged(self) -> "Slices":
        if self.by != "env" or len(self.token) <= MAX_ENVS + 1:
            return self
        # By hash and not by who came first: the same ones are kept however the records are cut.
        return _keep(self, first_by_hash(self.token, MAX_ENVS))


@dataclass(frozen=True)
class SliceRow:
    """One slice: its label, and its numbers by token and, unless sliced by position, by sequence."""

    label: str
    token: Summary
    sequence: Summary | None


def _codes(by: By, batch: Batch, part: RecordBatch) -> tuple[Tensor | None, Tensor | None]:
    """The number of each token, None if it is its sequence's; and of each sequence, None if it has none."""
    layout = batch.layout
    if by == "length":
        return None, length_bin(layout.lengths)
    if by == "position":
        return length_bin(positions(batch)), None
    if by == "step":
        return None, torch.from_numpy(integers(part.column("step"), layout.num_seqs))
    lag = lags(batch, part)
    return lag, largest_lag(lag, batch)


def _by_name(batch: Batch, part: RecordBatch) -> tuple[dict[Key, RatioStats], dict[Key, RatioStats]]:
    values = part.column("env")
    names: list[Key] = [None] * batch.layout.num_seqs if values is None else values.tolist()
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    keys = list(index)
    both = _of_sequences(batch, torch.tensor([index[name] for name in names], dtype=torch.int64))
    token, sequence = ({keys[i]: stats for i, stats in level.items() if isinstance(i, int)} for level in both)
    return token, sequence


def _of_sequences(
    batch: Batch, codes: Tensor, levels: tuple[Level, ...] = (TOKEN, SEQUENCE)
) -> tuple[dict[Key, RatioStats], ...]:
    """Stats at each level of the sequences of each number."""
    found: tuple[dict[Key, RatioStats], ...] = tuple({} for _ in levels)
    numbers: list[int] = codes[batch.layout.lengths > 0].unique().tolist()
    for n in numbers:
        some = take_sequences(batch, codes.numpy() == n)
        for stats, one in zip(found, RatioStats.of_levels(some, levels), strict=True):
            stats[None if n == MISSING else n] = one
    return found


def _split(batch: Batch, codes: Tensor) -> list[tuple[Key, Batch]]:
    numbers: list[int] = codes[batch.layout.mask].unique().tolist()
    return [(None if n == MISSING else n, take(batch, codes.numpy() == n)) for n in numbers]


def _keep(slices: Slices, keys: set[Key]) -> Slices:
    return Slices(slices.by, without(slices.token, keys), without(slices.sequence, keys), slices.width)


def _label(by: By, key: Key, width: int) -> str:
    if by in ("length", "position") and isinstance(key, int):
        return bin_label(key, 1 if by == "length" else 0)
    if by == "env":
        return "other" if key == OTHER else range_label(key, 1)
    return range_label(key, width)
