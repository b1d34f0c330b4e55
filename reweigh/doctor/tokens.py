"""A table of records as the doctor reads it: one array a column, one entry a token, and what is not there is None."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reweigh.batch import POSITIVE_TOLERANCE
from reweigh.doctor.cells import Array, Ints
from reweigh.records.table import groups_of, lengths_of, single, stable_hashes, token_values
from reweigh.stats.sums import NUM_BUCKETS

FLOOR = 1e-3  # of 1 - p: below it a gap is all rounding of the float32 that it came in
UNKNOWN = -(2**31)  # stands for a null number


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
        sizes: tokens in the response, masked ones included.
    """

    group: Ints
    bucket: Ints
    sizes: Ints
    step: Ints | None
    trainer_version: Ints | None
    prompt_length: Ints | None
    pack: Ints | None


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
        rows: what holds for whole responses.
    """

    log_pi: Array
    log_mu: Array
    seq: Ints
    position: Ints
    turn_start: NDArray[np.bool_]
    last: NDArray[np.bool_]
    token_id: Ints | None
    version: Ints | None
    entropy: Array | None
    repeat: Array | None
    prefill: Array | None
    rows: Rows

    def __len__(self) -> int:
        """How many."""
        return len(self.log_pi)

    def take(self, which: NDArray[np.bool_]) -> "Tokens":
        """Some of them."""
        if which.all():
            return self
        names = (f.name for f in fields(self) if f.name != "rows")
        columns = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if x is None else x[which] for name, x in columns.items()})

    @property
    def gap(self) -> Array:
        """`log pi - log mu`, nats."""
        return self.log_pi - self.log_mu

    @property
    def bucket(self) -> Ints:
        """Cluster of each token."""
        return self.rows.bucket[self.seq]

    @property
    def scale(self) -> Array:
        """`1 - p`, p between both policies' probabilities: what benign noise of a log-prob is proportional to."""
        return np.maximum(-np.expm1(np.minimum((self.log_pi + self.log_mu) / 2, 0.0)), FLOOR)

    @property
    def step(self) -> Ints | None:
        """Training step, or the trainer's version where there is none; `UNKNOWN` where neither is known."""
        step, version = self.rows.step, self.rows.trainer_version
        if step is None or version is None:
            found = version if step is None else step
            return None if found is None else found[self.seq]
        return np.where(step == UNKNOWN, version, step)[self.seq]

    @property
    def lag(self) -> Ints | None:
        """Trainer's version (or step, where that may be it) less the token's, at least 0; -1 where it is not known."""
        if self.version is None:
            return None
        trainer, step = self.rows.trainer_version, self.rows.step
        if trainer is None and step is None:
            return None
        if trainer is None:
            trainer = np.full(len(self.rows.sizes), UNKNOWN)
        if step is not None:  # most runs count weights by steps
            trainer = np.where(trainer == UNKNOWN, step, trainer)
        lag = trainer[self.seq] - self.version
        known = (trainer[self.seq] != UNKNOWN) & (self.version >= 0)
        return np.where(known & (lag >= 0), lag, -1)


def tokens_of(table: pa.Table) -> Tokens:
    """The tokens in the mask of a canonical table whose lists line up."""
    sizes = lengths_of(single(table, "log_mu"))
    seq = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum(sizes) - sizes
    position = np.arange(int(sizes.sum())) - first[seq]

    def column(name: str, kind: type) -> NDArray | None:  # type: ignore[type-arg]
        if name not in table.schema.names or single(table, name).null_count == table.num_rows:
            return None
        return token_values(single(table, name), sizes).to_numpy(zero_copy_only=False).astype(kind)

    mask = column("mask", np.bool_)
    live = np.ones(len(seq), np.bool_) if mask is None else mask
    turns = column("turns", np.int64)
    start = position == 0
    start[1:] |= live[1:] & ~live[:-1]
    if turns is not None:
        start[1:] |= turns[1:] != turns[:-1]
    log_pi, log_mu = column("log_pi", np.float64), column("log_mu", np.float64)
    if log_pi is None or log_mu is None:  # a table without a row has null lists
        log_pi = log_mu = np.zeros(len(seq))
    groups = groups_of(table)
    rows = Rows(
        groups,
        bucket_of(stable_hashes(single(table, "sequence_id"), "sequence")),
        sizes,
        _row_numbers(table, "step"),
        _row_numbers(table, "trainer_version"),
        _row_numbers(table, "prompt_length"),
        _pack_order(_row_numbers(table, "pack_index")),
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
        rows,
    )
    return whole.take(live)


def windows(tokens: Tokens, size: int) -> tuple[Ints, int]:
    """Number of each token's window of `size` tokens of one response, and how many windows there are."""
    counts = np.bincount(tokens.seq, minlength=len(tokens.rows.sizes))
    local = np.arange(len(tokens)) - (np.cumsum(counts) - counts)[tokens.seq]
    per_seq = -(-counts // size)
    return (np.cumsum(per_seq) - per_seq)[tokens.seq] + local // size, int(per_seq.sum())


def _within(x: Array | None, low: float, high: float) -> Array | None:
    """NaN where a value cannot be one; that it is there is counted where the table is checked."""
    if x is None:
        return None
    return np.where((x >= low - POSITIVE_TOLERANCE) & (x <= high + POSITIVE_TOLERANCE) & np.isfinite(x), x, np.nan)


def bucket_of(group: Ints) -> Ints:
    """Cluster of a group, as `reweigh.stats.sums.bucket` has it."""
    with np.errstate(over="ignore"):
        return ((group.astype(np.int64) * np.int64(0x9E3779B97F4A7C1)) >> 40) % NUM_BUCKETS


def _row_numbers(table: pa.Table, name: str) -> Ints | None:
    if name not in table.schema.names:
        return None
    values = single(table, name)
    if values.null_count == len(values):
        return None
    return values.fill_null(UNKNOWN).to_numpy(zero_copy_only=False).astype(np.int64)


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
