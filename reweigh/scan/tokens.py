"""Some rows of records as every family of sums reads them: as a batch, and as arrays of tokens; each made once."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import POSITIVE_TOLERANCE, Batch
from reweigh.estimators import Estimator, Factor, Statistic
from reweigh.layout import Layout, Packed, Tiles
from reweigh.levels import Level
from reweigh.records.arrays import arrow, numbers
from reweigh.records.files import RecordBatch, slices_of
from reweigh.records.schema import Origin
from reweigh.records.table import Ragged, batch_of, groups_of, lengths_of, single, stable_hashes, token_values
from reweigh.stats.sums import NUM_BINS, bucket_of, length_bin

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MISSING = -(2**62)  # stands for the number of what the records do not say
ENGINE_ALONE = b"reweigh: the engine's prefill stands in for log_pi"  # of a table's metadata
PIECE_TOKENS = 1 << 16  # of a piece: its arrays of float64 stay in a processor's own cache


class Part:
    """Some rows of one file as every family reads them.

    Attributes:
        table: the rows that can be used, in canonical types, with the columns that were asked for.
        origin: where they came from.
        names: `[rows]`: fingerprint of each response, by which it is known again; none if it is not asked for.
        before: about how many tokens of the records stand before them.
    """

    def __init__(
        self,
        table: pa.Table,
        origin: Origin,
        names: NDArray[np.uint64] | None = None,
        whole: Bools | None = None,
        before: int = 0,
    ) -> None:
        self.table, self.origin, self.before = table, origin, before
        self.names = np.empty(0, np.uint64) if names is None else names
        self._whole = whole

    @property
    def path(self) -> Path:
        """Name the file."""
        return self.origin.path

    @cached_property
    def records(self) -> RecordBatch:
        """See them as a Batch with the columns beside it."""
        return RecordBatch(batch_of(self.table), self.table, self.origin)

    @cached_property
    def _counted(self) -> tuple[Batch, int]:
        batch, positive = _without_positive(self.records.batch)
        return batch.with_ratio(), positive

    @property
    def batch(self) -> Batch:
        """Give the tokens that count, with their log ratios; a log-prob that cannot be one takes its token out."""
        return self._counted[0]

    @property
    def positive(self) -> int:
        """Count the tokens that are left out of the batch because a log-prob is over 0."""
        return self._counted[1]

    @cached_property
    def shared(self) -> "Shared":
        """See the batch with sums that are made once."""
        return Shared.of(self.batch)

    def column(self, name: str) -> NDArray[Any] | None:
        """Give a column of one value a row, see `RecordBatch.column`."""
        return self.records.column(name)

    def per_token(self, name: str) -> NDArray[Any] | None:
        """Give a column of one value a token, see `RecordBatch.tokens`."""
        return self.records.tokens(name)

    @cached_property
    def lag(self) -> Ints | None:
        """Count `[N]` by how many versions each token is behind, see `Now.lags`; None if no token says it."""
        versions, now = self.per_token("versions"), self._now
        if versions is None or now is None:
            return None
        return now.lags(np.repeat(np.arange(len(now.version)), self.shared.runs.sizes), versions.astype(np.int64))

    @property
    def steps_stand_in(self) -> int:
        """Count the rows whose lag is counted from their step, for want of the trainer's version."""
        if self.lag is None or self._now is None:
            return 0
        known = self.shared.runs.reduce(np.maximum, (self.lag != MISSING).view(np.uint8), 0)
        return int((self._now.by_step & (known > 0)).sum())

    @property
    def _now(self) -> "Now | None":
        return Now.of(self.whole_numbers("trainer_version"), self.whole_numbers("step"))

    def whole_numbers(self, name: str) -> Ints | None:
        """Give a column of integers, one a row, `MISSING` where it has none; None if no row has one."""
        return _row_numbers(self.table, name)

    @cached_property
    def turns(self) -> Ints:
        """Number `[N]` the turns of each response from 0: they begin where the records say, and after a gap in the
        mask; those without a token in the mask are not counted."""
        runs, live = self.shared.runs, self.per_token("mask")
        live = np.ones(len(runs.mask), np.bool_) if live is None else live
        position = np.arange(len(live)) - np.repeat(runs.starts, runs.sizes)
        count = np.cumsum(_turn_starts(position, live, self.per_token("turns")) & live)
        before = np.concatenate([[0], count])[runs.starts]
        return np.maximum(count - np.repeat(before, runs.sizes) - 1, 0)

    def pieces(self, share: float = 1.0) -> Iterator["Tokens"]:
        """See the tokens in the mask as they are, of rows in which no column is out of step, a piece at a time: some
        whole responses of at most `PIECE_TOKENS` tokens, unless one response has more.

        Args:
            share: of the pieces, spread evenly over all records; which ones does not depend on what reads them.
        """
        table = self.table if self._whole is None else self.table.filter(arrow(self._whole, pa.bool_()))
        ends = np.concatenate([[0], np.cumsum(lengths_of(single(table, "log_mu")))]) + self.before
        pack = _pack_order(_row_numbers(table, "pack_index"))
        for first, count in slices_of(np.diff(ends), PIECE_TOKENS):
            begin, end = (int(ends[row] * share / PIECE_TOKENS) for row in (first, first + count))
            if share >= 1 or end > begin:
                packed = None if pack is None else pack[first : first + count]
                yield tokens_of(table.slice(first, count), packed)


def _without_positive(batch: Batch) -> tuple[Batch, int]:
    """Take tokens with a log-prob over 0 out of the mask; NaN and infinity are out already."""
    layout = batch.layout
    if all(x.numel() == 0 or x.numpy().max() <= POSITIVE_TOLERANCE for x in (batch.log_pi, batch.log_mu)):
        return batch, 0  # as a rule; a NaN is not under the bound, and so does not hide one over it
    wrong = layout.mask & ((batch.log_pi > POSITIVE_TOLERANCE) | (batch.log_mu > POSITIVE_TOLERANCE))
    count = int(wrong.sum())
    if count == 0:
        return batch, 0
    mask = layout.mask & ~wrong
    return replace(batch, layout=layout.masked(mask)), count


@dataclass(frozen=True)
class Now:
    """What lags are counted from.

    Attributes:
        version: `[S]`: the trainer's version; where it is not recorded the step, which most runs count weights by;
            `MISSING` without either.
        by_step: `[S]`: where it is the step.
    """

    version: Ints
    by_step: Bools

    @classmethod
    def of(cls, trainer: Ints | None, step: Ints | None) -> "Now | None":
        """Choose for each response; None if neither is recorded."""
        if trainer is None:
            return None if step is None else cls(step, np.ones(len(step), np.bool_))
        by_step = np.zeros(len(trainer), np.bool_) if step is None else trainer == MISSING
        return cls(trainer if step is None else np.where(by_step, step, trainer), by_step)

    def lags(self, seq: Ints, version: Ints) -> Ints:
        """Subtract the version that sampled each token: the one lag.

        `MISSING` where either is not recorded, and where a step is below the version: so it does not count versions.

        Args:
            seq: response of each token.
            version: that sampled it, below 0 where it is not recorded.
        """
        now = self.version[seq]
        lag = now - version
        return np.where((version >= 0) & (now != MISSING) & ((lag >= 0) | ~self.by_step[seq]), lag, MISSING)


def step_of(step: Ints | None, trainer: Ints | None) -> Ints | None:
    """Say which training step a row is of: its step, or the trainer's version where it has none."""
    if step is None or trainer is None:
        return trainer if step is None else step
    return np.where(step == MISSING, trainer, step)


_Memory = dict[Any, tuple[Any, Tensor]]


@final
class Runs(Layout):
    """The runs of a `Packed` layout. What depends on a sequence is computed from its own tokens alone.

    So its sums are the same to the last bit however sequences are put together into batches. It is several times as
    fast as indexing, but of no use where a device must not wait: it is for records in memory, not for training.

    Attributes:
        sizes: `[S]`: tokens of each sequence, masked ones included.
        starts: `[S]`: place of each sequence's first token.
    """

    def __init__(self, packed: Packed) -> None:
        self.mask, self.turn, self.lengths = packed.mask, packed.turn, packed.lengths
        self._packed = packed
        offsets = packed.offsets.numpy()
        self.sizes: NDArray[np.int64] = np.diff(offsets)
        self.starts: NDArray[np.int64] = offsets[:-1]
        self._some = np.flatnonzero(self.sizes)  # reduceat has no sum of nothing
        self._memory: _Memory = {}

    @property
    def num_seqs(self) -> int:
        """Number of sequences."""
        return len(self.sizes)

    @property
    def runs(self) -> Tensor:
        """Those of the packed layout."""
        return self._packed.runs

    def reduce(self, with_: np.ufunc, x: NDArray[Any], empty: float, dtype: Any = None) -> NDArray[Any]:
        """One value a sequence: all its tokens' values joined by a ufunc such as `np.add`."""
        out = np.full(self.num_seqs, empty, x.dtype if dtype is None else dtype)
        if len(self._some):
            out[self._some] = with_.reduceat(x, self.starts[self._some], dtype=out.dtype)
        return out

    def count(self, x: Tensor) -> NDArray[np.float64]:
        """How many are True in each sequence."""
        return self.reduce(np.add, x.numpy().view(np.uint8), 0, np.uint32).astype(np.float64)

    def sum_zeroed(self, x: Tensor) -> Tensor:
        """Sum over each run of tokens."""
        return self._once("sum", x, lambda: self.reduce(np.add, x.numpy(), 0))

    def max_floored(self, x: Tensor) -> Tensor:
        """Maximum of each run of tokens."""
        return self._once("max", x, lambda: self.reduce(np.maximum, x.numpy(), -np.inf))

    def cumsum_zeroed(self, x: Tensor) -> Tensor:
        """Running sum within each run of tokens."""
        return self._once("cumsum", x, lambda: self._cumsum(x))

    def cummax_floored(self, x: Tensor) -> Tensor:
        """Running maximum within each run of tokens."""
        return self._once("cummax", x, lambda: self._packed.cummax_floored(x).numpy())

    def spread(self, s: Tensor) -> Tensor:
        """Repeat each sequence's value."""
        return self._once("spread", s, lambda: np.repeat(s.numpy(), self.sizes))

    def spread_by_torch(self, s: Tensor) -> Tensor:
        """Repeat each sequence's value on its tokens."""
        return torch.where(self.mask, self.spread(s), 0)

    def masked(self, mask: Tensor) -> "Runs":
        """The same runs with another mask."""
        return Runs(self._packed.masked(mask))

    def sequences(self, which: slice) -> Layout:
        """Some of the runs."""
        return self._packed.sequences(which)

    def parts(self, slots: int) -> list[tuple[slice, slice]]:
        """One part: what is remembered is of the whole."""
        return [(slice(0, len(self.mask)), slice(0, self.num_seqs))]

    def all_tiles(self) -> Tiles:
        """Those of the packed layout."""
        return self._packed.all_tiles()

    def _cumsum(self, x: Tensor) -> NDArray[Any]:
        # In float64, so that what earlier sequences added cancels without a trace.
        total = x.double().cumsum(0).numpy()
        before = np.concatenate([[0.0], total])[self.starts]
        return (total - np.repeat(before, self.sizes)).astype(x.numpy().dtype)

    def _once(self, name: str, x: Tensor, make: Callable[[], NDArray[Any]]) -> Tensor:
        return _remembered(self._memory, (name, id(x)), x, lambda: torch.from_numpy(make()))


@dataclass(frozen=True, eq=False)
class Shared:
    """A batch as several estimators read it, each sum and statistic made once.

    Attributes:
        batch: with `Runs` for its layout.
        runs: that layout.
        bins: `[S]`: length bin of each sequence.
        cells: `[S]`: sign of its mean advantage (0: negative, 1: none, 2: positive) times the number of bins, plus bin.
        in_cell: `[S, 3 bins]` float64: 1 in the cell of the sequence, so that `rows @ in_cell` sums rows by cell.
    """

    batch: Batch
    runs: Runs
    bins: NDArray[np.int64]
    cells: NDArray[np.int64]
    in_cell: NDArray[np.float64]
    _memory: _Memory = field(default_factory=dict[Any, tuple[Any, Tensor]], repr=False)

    @classmethod
    def of(cls, batch: Batch) -> "Shared":
        """Of a packed batch on CPU."""
        assert isinstance(batch.layout, Packed)
        runs = Runs(batch.layout)
        bins = length_bin(runs.lengths).numpy()
        sign = np.ones(runs.num_seqs, np.int64)
        if batch.advantage is not None:
            total = runs.reduce(np.add, torch.where(runs.mask, batch.advantage, 0).numpy(), 0, np.float64)
            sign += (total > 0).astype(np.int64) - (total < 0)
        cells = sign * NUM_BINS + bins
        return cls(replace(batch, layout=runs), runs, bins, cells, np.eye(3 * NUM_BINS)[cells])

    def estimator(self, estimator: Estimator) -> Estimator:
        """The same estimator, for this batch alone: it looks up what another has read from it."""
        return _OfShared(estimator.factors, estimator.normalise, self)

    def remember(self, of: Statistic, level: Level, values: Tensor) -> None:
        """Keep a statistic's values at a level that were made elsewhere, for all estimators to come."""
        self._memory[of, level] = (of, values)

    def fold(self, factor: Factor) -> Tensor:
        """Fold a factor's statistic to its level, once for all factors."""
        of, level, scale = factor.of, factor.level, factor.scale
        if scale == 1:
            return _remembered(self._memory, (of, level), of, lambda: level.fold(self._statistic(of), self.runs))
        if scale > 0 and (of, level) in self._memory:
            return self._memory[of, level][1] * scale
        return level.fold(self._statistic(of) * scale, self.runs)

    def _statistic(self, of: Statistic) -> Tensor:
        return _remembered(self._memory, of, of, lambda: of(self.batch))


@dataclass(frozen=True)
class _OfShared(Estimator):
    shared: Shared | None = field(default=None, repr=False)

    def _units(self, batch: Batch) -> list[Tensor]:
        assert self.shared is not None
        assert batch is self.shared.batch
        return [self.shared.fold(factor) for factor in self.factors]


def _remembered(memory: _Memory, key: Any, holds: Any, make: Callable[[], Tensor]) -> Tensor:
    # What an id belongs to is held, so that no other tensor can come to have it.
    if key not in memory:
        memory[key] = (holds, make())
    return memory[key][1]


def take(batch: Batch, tokens: NDArray[np.bool_]) -> Batch:
    """Keep only some of the tokens of the same sequences; what has none left is an empty sequence."""
    layout = batch.layout
    assert isinstance(layout, Packed)
    places = np.flatnonzero(tokens)
    ends = np.searchsorted(places, layout.offsets.numpy())
    return _gathered(batch, torch.from_numpy(places), torch.from_numpy(ends), batch.group)


def take_sequences(batch: Batch, chosen: NDArray[np.bool_]) -> Batch:
    """Only some of the sequences."""
    layout = batch.layout
    assert isinstance(layout, Packed)
    if chosen.all():
        return batch
    offsets = layout.offsets.numpy()
    sizes, starts = np.diff(offsets)[chosen], offsets[:-1][chosen]
    ends = np.concatenate([[0], sizes.cumsum()])
    places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes)
    group = None if batch.group is None else batch.group[torch.from_numpy(chosen)]
    return _gathered(batch, torch.from_numpy(places), torch.from_numpy(ends), group)


def _gathered(batch: Batch, places: Tensor, offsets: Tensor, group: Tensor | None) -> Batch:
    mask = batch.layout.mask if batch.dropped is None else batch.layout.mask | batch.dropped
    log_pi, log_mu, mask = (x.index_select(0, places) for x in (batch.log_pi, batch.log_mu, mask))
    return Batch.packed(log_pi, log_mu, offsets, mask, group=group, check=False)  # bad values are counted elsewhere


FLOOR = 1e-3  # of 1 - p: below it a gap is all rounding of the float32 that it came in


@dataclass(frozen=True, eq=False)
class Rows:
    """What holds for whole responses, one entry a response.

    Attributes:
        group: hash of the prompt (of the response where none is given).
        bucket: the cluster, 0 to 63, by hash of the response. Not by prompt: without a fault, ratios
            and surprises of one prompt's responses are independent, and few prompts leave few degrees of freedom.
        step: training step; None if not known.
        trainer_version: weight version that log_pi is of; None if not known.
        prompt_length: tokens before the response; None if not known.
        pack: place in its packed row, from 0; None if not known.
        env: name of the environment, None where there is none; None if no response has one.
        sizes: tokens in the response, masked ones included.
        key: hash of the response.
        prompt: name of the prompt; None if no response has one.
        finish: why sampling ended; None if no response says it.
        engine_alone: the engine's prefill stands in for log_pi.
    """

    group: Ints
    key: Ints
    bucket: Ints
    sizes: Ints
    step: Ints | None
    trainer_version: Ints | None
    prompt_length: Ints | None
    pack: Ints | None
    env: NDArray[Any] | None
    prompt: NDArray[Any] | None
    finish: NDArray[Any] | None
    engine_alone: bool = False


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens in the mask, in order, one entry each; optional columns are None where the records have not got them.

    Attributes:
        log_pi: nats, as is; may be anything until `structure` has looked at it.
        log_mu: nats.
        seq: index of the response in `rows`.
        position: place in the response, from 0.
        turn_start: first token of a turn, or of what follows a gap in the mask.
        last: last token of its response.
        token_id: id.
        version: weight version that sampled it.
        entropy: of pi, nats.
        repeat: log_pi a second time.
        prefill: log_mu by the engine's prefill.
        advantage: of the token; None if not known.
        log_mass: log of pi's mass on what the sampler kept, nats.
        heads: of the sampler's likeliest tokens at the place, with the fields of `HEADS`.
        rows: what holds for whole responses.
    """

    log_pi: Array
    log_mu: Array
    seq: Ints
    position: Ints
    turn_start: Bools
    last: Bools
    token_id: Ints | None
    version: Ints | None
    entropy: Array | None
    repeat: Array | None
    prefill: Array | None
    advantage: Array | None
    log_mass: Array | None
    heads: NDArray[Any] | None
    rows: Rows

    def __len__(self) -> int:
        """How many."""
        return len(self.log_pi)

    def take(self, which: Bools) -> "Tokens":
        """Keep some of them."""
        if which.all():
            return self
        at = np.flatnonzero(which)
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        return replace(self, **{name: None if x is None else x.take(at) for name, x in columns.items()})

    @cached_property
    def gap(self) -> Array:
        """`log pi - log mu`, nats."""
        with np.errstate(invalid="ignore"):  # of two infinities: NaN, as a log-prob that is none
            return self.log_pi - self.log_mu

    @cached_property
    def squares(self) -> Array:
        """The square of `gap`."""
        return self.gap**2

    @cached_property
    def distance(self) -> Array:
        """`|gap|`, nats."""
        return np.abs(self.gap)

    @cached_property
    def relative(self) -> Array:
        """`distance` over `scale`."""
        return self.distance / self.scale

    @cached_property
    def bucket(self) -> Ints:
        """Cluster of each token."""
        return self.rows.bucket[self.seq]

    @cached_property
    def scale(self) -> Array:
        """`1 - p`, p between both policies' probabilities: what benign noise of a log-prob is proportional to."""
        return np.maximum(-np.expm1(np.minimum((self.log_pi + self.log_mu) / 2, 0.0)), FLOOR)

    @cached_property
    def counts(self) -> Ints:
        """`[rows]`: tokens of each response that are here."""
        return np.bincount(self.seq, minlength=len(self.rows.sizes))

    @cached_property
    def first(self) -> Ints:
        """Index of the first token of its response that is here."""
        return (np.cumsum(self.counts) - self.counts)[self.seq]

    @cached_property
    def place(self) -> Ints:
        """Place among those of its response that are here, from 0."""
        return np.arange(len(self)) - self.first

    @cached_property
    def step(self) -> Ints | None:
        """Training step, or the trainer's version where there is none; `MISSING` where neither is known."""
        found = step_of(self.rows.step, self.rows.trainer_version)
        return None if found is None else found[self.seq]

    @cached_property
    def turn(self) -> Ints:
        """Number of the turn in its response, from 0, among turns with a token that is here."""
        turn = np.cumsum(self.turn_start, dtype=np.int64)
        return turn - turn[self.first] if len(self) else turn

    @cached_property
    def lag(self) -> Ints | None:
        """See `Now.lags`; None if no token says it."""
        now = None if self.version is None else Now.of(self.rows.trainer_version, self.rows.step)
        return None if self.version is None or now is None else now.lags(self.seq, self.version)


def tokens_of(table: pa.Table, pack: Ints | None = None) -> Tokens:
    """Read the tokens in the mask of a canonical table whose lists line up.

    Args:
        table: some rows.
        pack: place of each in its packed row, where it is known.
    """
    sizes = lengths_of(single(table, "log_mu"))
    seq = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum(sizes) - sizes
    position = np.arange(int(sizes.sum())) - first[seq]

    def column(name: str, kind: type) -> NDArray | None:  # type: ignore[type-arg]
        if name not in table.schema.names or single(table, name).null_count == table.num_rows:
            return None
        return numbers(token_values(single(table, name), sizes)).astype(kind)

    mask = column("mask", np.bool_)
    live = np.ones(len(seq), np.bool_) if mask is None else mask
    turns = column("turns", np.int64)
    start = _turn_starts(position, live, turns)
    log_pi, log_mu = column("log_pi", np.float64), column("log_mu", np.float64)
    if log_pi is None or log_mu is None:  # a table without a row has null lists
        log_pi = log_mu = np.zeros(len(seq))
    keys = stable_hashes(single(table, "sequence_id"), "sequence")
    rows = Rows(
        groups_of(table),
        keys,
        _clusters(keys),
        sizes,
        _row_numbers(table, "step"),
        _row_numbers(table, "trainer_version"),
        _row_numbers(table, "prompt_length"),
        pack,
        _names(table, "env"),
        _names(table, "prompt_id"),
        _names(table, "finish_reason"),
        ENGINE_ALONE in (table.schema.metadata or {}),
    )
    whole = Tokens(
        log_pi,
        log_mu,
        seq,
        position,
        start,
        position == sizes[seq] - 1,
        column("token_ids", np.int64),
        column("versions", np.int64),
        _within(column("entropy_pi", np.float64), 0.0, np.inf),
        _within(column("log_pi_repeat", np.float64), -np.inf, 0.0),
        _within(column("log_mu_prefill", np.float64), -np.inf, 0.0),
        column("advantage", np.float64),
        _within(column("log_support_pi", np.float64), -np.inf, 0.0),
        _heads(table, sizes),
        rows,
    )
    return whole.take(live)


HEADS = ("n", "xx", "xy", "yy", "agree", "tv")
"""Of the candidates of a place that both policies give a log-prob: how many; sums of squares and products of x = log mu
and y = log pi about their means; whether both have the same likeliest one; the least total variation they leave."""


def _heads(table: pa.Table, sizes: Ints) -> NDArray[Any] | None:
    """Compare both policies at the sampler's likeliest tokens; a place with fewer than two is all 0."""
    names = ("top_log_mu", "top_log_pi")
    if any(n not in table.schema.names or single(table, n).null_count == table.num_rows for n in names):
        return None
    mu, pi = (Ragged.of(single(table, name), sizes) for name in names)
    out = np.zeros(len(mu.counts), [(name, np.float64) for name in HEADS])
    same = mu.counts == pi.counts  # a place whose lists differ is of two kinds of candidates
    x, y = (v.values[same[v.owner]].astype(np.float64) for v in (mu, pi))
    at = mu.owner[same[mu.owner]]
    good = np.isfinite(x) & np.isfinite(y) & (np.maximum(x, y) <= POSITIVE_TOLERANCE)
    x, y, at = x[good], y[good], at[good]
    n = np.bincount(at, minlength=len(out))
    some = n >= 2
    x, y, at = x[some[at]], y[some[at]], at[some[at]]
    if not len(x):
        return out

    def total(values: Array) -> Array:
        return np.bincount(at, weights=values, minlength=len(out)).astype(np.float64, copy=False)

    count = np.maximum(n, 1)
    dx, dy, p, q = x - (total(x) / count)[at], y - (total(y) / count)[at], np.exp(x), np.exp(y)
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    likeliest = [np.maximum.reduceat(v, starts) for v in (x, y)]
    best_of_mu = x == np.repeat(likeliest[0], n[some])
    best_of_pi = y == np.repeat(likeliest[1], n[some])
    out["n"], out["xx"], out["xy"], out["yy"] = np.where(some, n, 0), total(dx * dx), total(dx * dy), total(dy * dy)
    out["agree"] = total(best_of_mu & best_of_pi) > 0
    out["tv"] = 0.5 * (total(np.abs(p - q)) + np.abs(total(p - q)))
    return out


def _turn_starts(position: Ints, live: Bools, turns: NDArray[Any] | None) -> Bools:
    """Mark where a turn begins, or sampling begins again after a gap in the mask."""
    start = position == 0
    start[1:] |= live[1:] & ~live[:-1]
    if turns is not None:
        start[1:] |= turns[1:] != turns[:-1]
    return start


def windows(tokens: Tokens, size: int) -> tuple[Ints, int]:
    """Number of each token's window of `size` tokens of one response, and how many windows there are."""
    per_seq = -(-tokens.counts // size)
    return (np.cumsum(per_seq) - per_seq)[tokens.seq] + tokens.place // size, int(per_seq.sum())


def _within(x: Array | None, low: float, high: float) -> Array | None:
    """NaN where a value cannot be one; that it is there is counted where the table is checked."""
    if x is None:
        return None
    return np.where((x >= low - POSITIVE_TOLERANCE) & (x <= high + POSITIVE_TOLERANCE) & np.isfinite(x), x, np.nan)


def _clusters(hashes: Ints) -> Ints:
    return bucket_of(torch.from_numpy(hashes)).numpy()


def _row_numbers(table: pa.Table, name: str) -> Ints | None:
    if name not in table.schema.names:
        return None
    values = single(table, name)
    if values.null_count == len(values):
        return None
    return numbers(values, MISSING).astype(np.int64)


def _names(table: pa.Table, name: str) -> NDArray[Any] | None:
    if name not in table.schema.names:
        return None
    values = single(table, name)
    return None if values.null_count == len(values) else np.array([*values.to_pylist(), None], dtype=object)[:-1]


def _pack_order(pack: Ints | None) -> Ints | None:
    """Place of each response in its packed row: its rows follow each other and have one number; or the number counts
    places itself, 0, 1, 2, 0, 1, ... A packed row that lies in two batches counts as two: one in thousands."""
    if pack is None or len(pack) < 2:
        return None
    same = pack[1:] == pack[:-1]
    if not same.any():
        rises = pack[1:] == pack[:-1] + 1
        restarts = pack[1:] == 0
        counts = bool((rises | restarts).all()) and bool(restarts.any()) and pack[0] == 0
        return pack if counts else None
    start = np.concatenate([[True], ~same])
    first = np.maximum.accumulate(np.where(start, np.arange(len(pack)), 0))
    return np.arange(len(pack)) - first
