"""Where the gap sits: mean and spread of log ratios by what tokens and sequences have in common."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.walked import Walked
from reweigh.scan.cuts import (
    OTHER,
    Key,
    bin_label,
    codes,
    in_ranges,
    largest_lag,
    merge,
    names_of,
    range_label,
    width_of,
    without,
)
from reweigh.scan.tokens import MISSING, Part, Shared
from reweigh.stats.intervals import Number, clustered
from reweigh.stats.sums import NUM_BUCKETS, bucket

Array = NDArray[np.float64]
ROWS = ("n", "l", "abs", "l2", "excess")  # 1, log ratio l, |l|, l^2, r - 1; each 0 where the mask is off
POSITION_BINS = 53  # 0-3, 4-7, 8-11, 12-15, then a quarter of an octave each up to 65,536 and over
_SAFE = 80.0  # nats; beyond it e^l is computed in float64


def position_start(index: int) -> int:
    """Give the first position of a bin."""
    octave, quarter = divmod(index - 4, 4)
    return index * 4 if index < 4 else (4 + quarter) << (octave + 2)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Runs of tokens, each of one sequence, with their sums.

    Attributes:
        seq: `[P]`: which sequence.
        code: `[P]`: what the tokens of a piece have in common.
        sums: `[5, P]` float64, see `ROWS`.
    """

    seq: NDArray[np.int64]
    code: NDArray[np.int64]
    sums: Array


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of a batch.

    Attributes:
        shared: the batch.
        buckets: `[S]`: hash of each sequence's prompt.
        walked: sums that were made already.
    """

    shared: Shared
    buckets: NDArray[np.int64]
    walked: Walked | None = None

    @classmethod
    def of(cls, shared: Shared, walked: Walked | None = None) -> "TokenRows":
        """Take those of a batch on CPU."""
        return cls(shared, bucket(shared.batch).numpy() if walked is None else walked.buckets, walked)

    @cached_property
    def values(self) -> tuple[NDArray[np.generic], ...]:
        """Give `[N]` each, in the order of `ROWS`; a ratio over e^709 is infinite, and so are the sums it is in."""
        log_ratio = self.shared.batch.log_ratio
        l = log_ratio.numpy()
        large = bool(len(l)) and l.max() > _SAFE
        excess = torch.expm1(log_ratio.double() if large else log_ratio).numpy()
        return self.shared.runs.mask.numpy().view(np.uint8), l, np.abs(l), np.square(l), excess

    def by_position(self) -> Pieces:
        """Cut by place in the response, masked tokens counted along; see `POSITION_BINS`."""
        runs, first = self.shared.runs, np.array([position_start(i) for i in range(POSITION_BINS)])
        many = np.searchsorted(first, runs.sizes)  # bins that each sequence reaches
        seq = np.repeat(np.arange(runs.num_seqs), many)
        code = np.arange(len(seq)) - np.repeat(many.cumsum() - many, many)
        return Pieces(seq, code, self._sums(runs.starts[seq] + first[code]))

    def by_code(self, codes: NDArray[np.int64]) -> Pieces:
        """Cut into pieces of equal codes, `[N]`."""
        runs = self.shared.runs
        some = np.flatnonzero(runs.sizes)
        starts = np.union1d(runs.starts[some], np.flatnonzero(np.diff(codes)) + 1)
        seq = some[np.searchsorted(runs.starts[some], starts, side="right") - 1]
        return Pieces(seq, codes[starts], self._sums(starts))

    def by_sequence(self, pieces: Pieces) -> Array:
        """Add up each sequence's pieces: `[5, S]`."""
        rows = [np.bincount(pieces.seq, row, self.shared.runs.num_seqs) for row in pieces.sums]
        return np.stack(rows).astype(np.float64)

    def _sums(self, starts: NDArray[np.int64]) -> Array:
        if not len(starts):
            return np.zeros((len(ROWS), 0))
        return np.stack([np.add.reduceat(x, starts, dtype=np.float64) for x in self.values])


Cut = Literal["position", "probability", "length", "turn", "lag", "env", "step"]
CUTS: tuple[Cut, ...] = get_args(Cut)

PROBABILITY_BINS = 25  # a quarter of a decade each from 1 down to 1e-6, then everything below
MAX_TURNS = 32  # told apart; later ones count as one
MAX_RANGES = 64  # of steps and of lags
MAX_ENVS = 256  # environments added up one by one; of more, those with the lowest hash, and the others together
MAX_SHOWN = 20  # environments with most tokens; the rest is merged
# Known before the token is drawn, so that the mean ratio must be 1 in each of its parts. The length of a response and
# the probability of the token that came out are not.
KNOWN_BEFORE: frozenset[Cut] = frozenset({"position", "turn", "lag", "env", "step"})


@dataclass(frozen=True, eq=False)
class Strata:
    """Sums by one cut; `a + b` is of both.

    Attributes:
        cut: what the tokens are cut by.
        token: by key, `[5, 64]` float64: the sums `ROWS` over tokens, by hash of the prompt.
        sequence: by key, `[4, 64]`: the first four of them over sequences, each with its sum of log ratios. Empty where
            a sequence has no one key.
        width: of a range of steps or lags.
    """

    cut: Cut
    token: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    sequence: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    width: int = 1

    def __add__(self, other: "Strata") -> "Strata":
        """Add up both."""
        width = max(self.width, other.width)
        a, b = self._at(width), other._at(width)
        both = Strata(self.cut, merge(a.token, b.token), merge(a.sequence, b.sequence), width)
        return both.limited()

    def _at(self, width: int) -> "Strata":
        if width == self.width:
            return self
        return Strata(self.cut, in_ranges(self.token, width), in_ranges(self.sequence, width), width)

    def limited(self) -> "Strata":
        """Merge keys until there are no more than are told apart."""
        if self.cut in ("step", "lag"):
            return self._at(max(self.width, width_of(self.cut, self.token, MAX_RANGES)))
        kept = names_of(self.cut, self.token, MAX_ENVS)
        return self if kept is None else self._kept(kept)

    def _kept(self, keys: set[Key]) -> "Strata":
        return Strata(self.cut, without(self.token, keys), without(self.sequence, keys), self.width)

    def rows(self) -> list["Stratum"]:
        """Work out the numbers, in order; environments with most tokens first."""
        shown, keys = self, list(self.token)
        if self.cut == "env":
            keys.sort(key=lambda k: (k == OTHER, -float(self.token[k][0].sum()), str(k)))
            shown = self._kept(set(keys[:MAX_SHOWN]))
            keys = [k for k in dict.fromkeys([*keys[:MAX_SHOWN], OTHER]) if k in shown.token]
        else:
            keys.sort(key=lambda k: (k is None, k if isinstance(k, int) else 0))
        return [
            Stratum(
                _label(self.cut, key, self.width),
                key if isinstance(key, int) and self.cut != "env" else None,
                _numbers(shown.token[key].numpy(), self.cut in KNOWN_BEFORE),
                _numbers(shown.sequence[key].numpy(), False) if key in shown.sequence else None,
                int(shown.token[key][0].sum()),
                int(shown.sequence[key][0].sum()) if key in shown.sequence else 0,
            )
            for key in keys
        ]


@dataclass(frozen=True)
class Stratum:
    """One part of a cut.

    Attributes:
        label: what it is.
        start: its first number, for a picture; None of names.
        token: numbers of its tokens: "mean" and "mean_abs" and "sd" of the log ratio, and "mean_ratio" where it must be
            1.
        sequence: the same of its sequences' log ratios; None where they have no one part.
        tokens: how many.
        sequences: how many.
    """

    label: str
    start: int | None
    token: Mapping[str, Number]
    sequence: Mapping[str, Number] | None
    tokens: int
    sequences: int


def all_strata(rows: TokenRows, part: Part) -> dict[Cut, Strata]:
    """Add up by each cut that the records allow."""
    shared = rows.shared
    batch, runs = shared.batch, shared.runs
    if rows.walked is None:
        pieces = rows.by_position()
        by_sequence = rows.by_sequence(pieces)
        by_position, by_probability = _by_piece(pieces, rows.buckets), _by_probability(rows)
    else:
        by_sequence = rows.walked.sequences
        by_position = _split(np.arange(POSITION_BINS), list(rows.walked.positions.swapaxes(0, 1)))
        four = list(rows.walked.probabilities.swapaxes(0, 1))
        by_probability = _split(np.arange(PROBABILITY_BINS), [*four, np.zeros_like(four[0])])
    whole = Pieces(np.arange(runs.num_seqs), np.zeros(0, np.int64), by_sequence)
    found = {
        "position": Strata("position", by_position),
        "probability": Strata("probability", by_probability),
        "length": _of_sequences("length", shared.bins, whole, rows.buckets),
    }
    if runs.turn is not None:
        found["turn"] = Strata(
            "turn", _by_piece(_numbered(rows.by_code(runs.turn.numpy().astype(np.int64))), rows.buckets)
        )
    if (lag := part.lag) is not None:
        by_token = Strata("lag", _by_piece(rows.by_code(lag), rows.buckets))
        largest = largest_lag(torch.from_numpy(lag), batch).numpy()
        by_largest = _of_sequences("lag", largest, whole, rows.buckets)
        found["lag"] = Strata("lag", by_token.token, by_largest.sequence).limited()
    if (steps := part.whole_numbers("step")) is not None:
        found["step"] = _of_sequences("step", steps, whole, rows.buckets).limited()
    if part.column("env") is not None:
        by_name = codes("env", part)
        assert by_name.sequence is not None
        by_index = _of_sequences("env", by_name.sequence.numpy(), whole, rows.buckets)
        token, sequence = (
            {by_name.names[k]: x for k, x in level.items() if isinstance(k, int)}
            for level in (by_index.token, by_index.sequence)
        )
        found["env"] = Strata("env", token, sequence).limited()
    return found  # type: ignore[return-value]


def _of_sequences(cut: Cut, codes: NDArray[np.int64], whole: Pieces, buckets: NDArray[np.int64]) -> Strata:
    """Add up where all tokens of a sequence have its code."""
    n, l, *_ = whole.sums
    live = (n > 0).astype(np.float64)
    each = np.stack([live, l, np.abs(l), np.square(l)])
    token, sequence = (_by_piece(Pieces(whole.seq, codes, sums), buckets) for sums in (whole.sums, each))
    return Strata(cut, token, sequence)


def _by_piece(pieces: Pieces, buckets: NDArray[np.int64]) -> dict[Key, Tensor]:
    known, place = np.unique(pieces.code, return_inverse=True)
    index = place * NUM_BUCKETS + buckets[pieces.seq]
    return _split(known, [np.bincount(index, row, len(known) * NUM_BUCKETS) for row in pieces.sums])


def _split(codes: NDArray[np.int64], rows: Sequence[NDArray[Any]]) -> dict[Key, Tensor]:
    """Make a table of each key, without those that have no token."""
    tables = torch.from_numpy(np.stack(rows).reshape(len(rows), len(codes), NUM_BUCKETS)).transpose(0, 1)
    pairs = zip(codes.tolist(), tables, strict=True)
    return {None if code == MISSING else code: table.contiguous() for code, table in pairs if table[0].any()}


def _numbered(turns: Pieces) -> Pieces:
    """Number turns among those of their sequence that have a token that counts."""
    live = turns.sums[0] > 0
    before = np.concatenate([[0], live.cumsum()])[:-1]
    first = np.concatenate([[True], turns.seq[1:] != turns.seq[:-1]])[: len(live)]
    start = np.maximum.accumulate(np.where(first, before, 0)) if len(live) else before
    return Pieces(turns.seq, np.minimum(before - start, MAX_TURNS).astype(np.int64), turns.sums)


def _by_probability(rows: TokenRows) -> dict[Key, Tensor]:
    shared = rows.shared
    quarters = shared.batch.log_mu.numpy().astype(np.float32, copy=False) * np.float32(-4 / math.log(10))
    quarters.clip(0, PROBABILITY_BINS - 1, out=quarters)
    np.copyto(quarters, PROBABILITY_BINS, where=~shared.runs.mask.numpy())
    width = PROBABILITY_BINS + 1  # the last bin is of masked tokens
    index = quarters.astype(np.int64) + np.repeat(rows.buckets * width, shared.runs.sizes)
    sums = [np.bincount(index, x, NUM_BUCKETS * width) for x in rows.values[1:4]]
    # r - 1 is not added up: its mean is no test of anything here.
    table = [np.bincount(index, minlength=NUM_BUCKETS * width).astype(np.float64), *sums, np.zeros(NUM_BUCKETS * width)]
    by_bin = [x.reshape(NUM_BUCKETS, width)[:, :-1].T.ravel() for x in table]
    return _split(np.arange(PROBABILITY_BINS), by_bin)


def _numbers(sums: Array, ratio: bool) -> dict[str, Number]:
    rows = dict(zip(ROWS, sums, strict=False))
    counts = rows["n"]
    n = counts.sum()
    mean, mean_abs = rows["l"].sum() / n, rows["abs"].sum() / n
    square = rows["l2"] - 2 * mean * rows["l"] + mean * mean * counts
    sd = math.sqrt(max(0.0, square.sum() / n))
    (low, high), of_square = clustered(rows["abs"], counts), clustered(square, counts)
    # Name, value, interval, unit, meaning.
    found: list[tuple[str, float, Sequence[float], str, str]] = [
        ("mean", mean, clustered(rows["l"], counts), "nats", "Mean log ratio; minus KL(mu||pi) by k1."),
        ("mean_abs", mean_abs, (max(0.0, low), high), "nats", "Mean |log ratio|."),
        ("sd", sd, [math.sqrt(max(0.0, x)) for x in of_square], "nats", "Standard deviation of the log ratio."),
    ]
    if ratio:
        what = "Mean of pi/mu; 1 in every such part if the logged log-probs are those that were sampled from."
        over = rows["excess"].sum() / n
        low, high = clustered(rows["excess"], counts) if math.isfinite(over) else (-math.inf, math.inf)
        found.append(("mean_ratio", 1 + over, (max(0.0, 1 + low), 1 + high), "ratio", what))
    return {
        name: Number(float(value), low, high, float(value), unit, meaning)
        for name, value, (low, high), unit, meaning in found
    }


def _label(cut: Cut, key: Key, width: int) -> str:
    if not isinstance(key, int):
        return range_label(key, width)
    if cut == "position":
        first, last = position_start(key), position_start(key + 1) - 1
        return f"{first:,}+" if key == POSITION_BINS - 1 else f"{first:,}-{last:,}"
    if cut == "probability":
        if key == PROBABILITY_BINS - 1:
            return f"below {10 ** (-key / 4):.2g}"
        return f"{10 ** (-(key + 1) / 4):.2g} to {10 ** (-key / 4):.2g}"
    if cut == "length":
        return bin_label(key, 1)
    if cut == "turn":
        return f"{MAX_TURNS + 1}+" if key == MAX_TURNS else str(key + 1)
    return "other" if cut == "env" else range_label(key, width)
