"""The same statistics for slices of the records."""

from dataclasses import dataclass

from torch import Tensor

from reweigh.batch import Batch
from reweigh.levels import SEQUENCE, TOKEN, Level
from reweigh.scan.cuts import (
    NAMES,
    OTHER,
    By,
    Codes,
    Key,
    coarse,
    codes,
    in_ranges,
    label,
    merge,
    names_of,
    width_of,
    without,
)
from reweigh.scan.tokens import MISSING, Part, take, take_sequences
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import RatioStats

MAX_RANGES = 16  # steps, lags and turns are grouped into ranges of 2, 4, 8, ... until there are no more than these
MAX_NAMES = 1000  # environments or files counted one by one; of more, those with the lowest hash, and the rest together
MAX_NAMES_SHOWN = 15  # those with most tokens; the rest is merged


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
    def of(cls, by: By, part: Part) -> "Slices":
        """Cut some records."""
        batch, by_code = part.batch, codes(by, part)
        if by_code.token is None:
            assert by_code.sequence is not None
            live = by_code.sequence[batch.layout.lengths > 0]
            width = width_of(by, live.unique().tolist(), MAX_RANGES)
            token, sequence = _of_sequences(batch, coarse(by_code.sequence, width))
            return cls(by, _named(by, token, by_code), _named(by, sequence, by_code), width)._merged()
        width = width_of(by, by_code.token[batch.layout.mask].unique().tolist(), MAX_RANGES)
        token = {key: RatioStats.of(x, TOKEN) for key, x in _split(batch, coarse(by_code.token, width))}
        if by_code.sequence is None:
            return cls(by, token, {}, width)
        return cls(by, token, _of_sequences(batch, coarse(by_code.sequence, width), (SEQUENCE,))[-1], width)

    def __add__(self, other: "Slices") -> "Slices":
        """Add up both, slice by slice."""
        width = max(self.width, other.width)
        a, b = self._at(width), other._at(width)
        both = Slices(self.by, merge(a.token, b.token), merge(a.sequence, b.sequence), width)
        return both._at(max(width, width_of(self.by, both.token, MAX_RANGES)))._merged()

    def rows(self) -> list["SliceRow"]:
        """Work out the numbers of each slice, in order; environments with most tokens first."""
        if self.by in NAMES:
            most = sorted(self.token, key=lambda k: (-float(self.token[k].moments[0].sum()), str(k)))
            shown = _keep(self, set(most[:MAX_NAMES_SHOWN]))
            keys = sorted(shown.token, key=lambda k: (k == OTHER, k is None, most.index(k) if k in most else 0))
        else:
            shown = self
            keys = sorted(self.token, key=lambda k: (k is None, k if isinstance(k, int) else 0))
        return [
            SliceRow(
                label(self.by, key, self.width),
                summarise(shown.token[key]),
                summarise(shown.sequence[key]) if key in shown.sequence else None,
            )
            for key in keys
        ]

    def _at(self, width: int) -> "Slices":
        if width == self.width:
            return self
        return Slices(self.by, in_ranges(self.token, width), in_ranges(self.sequence, width), width)

    def _merged(self) -> "Slices":
        kept = names_of(self.by, self.token, MAX_NAMES)
        return self if kept is None else _keep(self, kept)


@dataclass(frozen=True)
class SliceRow:
    """One slice: its label, and its numbers by token and, unless sliced by position, by sequence."""

    label: str
    token: Summary
    sequence: Summary | None


def _named(by: By, stats: dict[Key, RatioStats], by_code: Codes) -> dict[Key, RatioStats]:
    return {by_code.names[i]: x for i, x in stats.items() if isinstance(i, int)} if by in NAMES else stats


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
