"""The map of a scan: a part of a file -> the sums of each family; a pure function, run in this process or any other."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from reweigh.dumps import formats
from reweigh.levels import LEVELS, Level
from reweigh.records.arrays import arrow, numbers
from reweigh.records.files import OF_BATCH, FilePart, Formats, slices_of
from reweigh.records.schema import REQUIRED, Origin, Report, Tally, Violation, fail
from reweigh.records.table import (
    aligned,
    check_counts,
    check_names,
    check_values,
    conform,
    lengths_of,
    single,
    stable_hashes,
    token_values,
)
from reweigh.scan.tokens import ENGINE_ALONE, Part
from reweigh.stats.sums import RatioStats

COPY = "sequence_id: read twice"  # the rule of rows that were read before
BATCH_TOKENS = 1 << 19  # of one batch: enough that a call's own cost is nothing, little enough for memory to stay small


class Sums(Protocol):
    """What a family adds up; of a size that does not depend on how many records there are."""

    def __add__(self, other: Any, /) -> Any:
        """Add those of other records."""
        ...


@dataclass(frozen=True)
class Family:
    """A family of sums: a value, which pickles.

    Attributes:
        name: what its sums are called in what a scan gives back.
        measure: adds up some records; a function of a module, or one with its first arguments given.
        columns: what it reads beside the columns of a batch; None for all columns. Values of columns that are named
            here must be of the right type and length in every row, unless bad values are left out.
        types: dataclasses that its sums are made of, so that they can be read back from bytes.
        identity: what is asked, by the name of the option: what a state file is of.
        without_pi: it has a use for rows without log_pi that have the engine's prefill: that stands in for it, if all
            families of the scan say so.
    """

    name: str
    measure: Callable[[Part], Sums]
    columns: tuple[str, ...] | None = ()
    types: tuple[type, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    without_pi: bool = False


@dataclass(frozen=True)
class Job:
    """What is done with each part.

    Attributes:
        families: what is added up.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        batch_tokens: tokens that are worked on at a time.
        reader: name of the files' format; recognised by their content if None.
        formats: what files may be, with what is known of them already; made of `reader` if not given.
    """

    families: tuple[Family, ...]
    keep_going: bool = False
    batch_tokens: int = BATCH_TOKENS
    reader: str | None = None
    formats: Formats | None = None

    @property
    def columns(self) -> tuple[str, ...] | None:
        """What is read of the files; None for all columns."""
        if any(family.columns is None for family in self.families):
            return None
        return self.strict_columns

    @property
    def strict_columns(self) -> tuple[str, ...]:
        """Columns in which nothing may be of another type or length, unless that is left out."""
        return tuple(dict.fromkeys((*OF_BATCH, *(c for one in self.families for c in one.columns or ()))))


def no_keys() -> "np.ndarray[Any, Any]":
    """Make an empty table of keys."""
    return np.empty((0, 2), np.uint64)


@dataclass(frozen=True, eq=False)
class Measured:
    """The sums of some records; `a + b` is of both.

    Attributes:
        rows: responses.
        tokens: tokens that count.
        sums: by name of the family.
        notes: rules that do not hold, by rule.
        keys: two numbers a row, which tell it from others, see `keys_of`.
    """

    rows: int = 0
    tokens: int = 0
    sums: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: Mapping[str, Violation] = field(default_factory=dict[str, Violation])
    keys: "np.ndarray[Any, Any]" = field(default_factory=no_keys)

    def __add__(self, other: "Measured") -> "Measured":
        """Add up both."""
        sums = dict(self.sums)
        for name, x in other.sums.items():
            sums[name] = sums[name] + x if name in sums else x
        tally = Tally(dict(self.notes))
        for violation in other.notes.values():
            tally(violation)
        keys = np.concatenate([self.keys, other.keys]) if len(other.keys) else self.keys
        return Measured(self.rows + other.rows, self.tokens + other.tokens, sums, tally.by_rule, keys)

    def to_bytes(self, job: Job) -> bytes:
        """Write them for another process."""
        return pack([self.rows, self.tokens, self.sums, self.notes, self.keys], types_of(job))

    @classmethod
    def from_bytes(cls, data: bytes, job: Job) -> "Measured":
        """Read what `to_bytes` gave."""
        return cls(*unpack(data, types_of(job)))


def measure(part: FilePart, job: Job, before: int = 0, copies: Sequence[int] = ()) -> Measured:
    """Read one part and add it up.

    Args:
        part: some rows of a file.
        job: what is done with them.
        before: about how many tokens stand before the part.
        copies: keys of rows that were counted before, in another part: they are left out.
    """
    total, tally = Measured(), Tally()
    known = Copies(set(copies), tally)
    for one in read(part, job, tally, before, known):
        sums = {family.name: family.measure(one) for family in job.families}
        total += Measured(one.table.num_rows, int(one.batch.layout.lengths.sum()), sums)
    return total + Measured(notes=tally.by_rule, keys=known.keys)


def keys_of(table: pa.Table) -> "np.ndarray[Any, Any]":
    """Make two numbers a row: of its name, and of its name with its length and all its log-probs.

    A copy of a row has both; another response under the same name has the first. The numbers are the same in every
    process, and whatever the file's format.
    """
    lengths = lengths_of(single(table, "log_mu"))
    names = stable_hashes(single(table, "sequence_id"), "sequence").view(np.uint64)
    ends = np.cumsum(lengths)
    place = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.uint64) - np.repeat(
        (ends - lengths).astype(np.uint64), lengths
    )
    word = np.zeros(len(place), np.uint64)
    for name, odd in (("log_mu", 0x9E3779B97F4A7C15), ("log_pi", 0xC2B2AE3D27D4EB4F)):
        if name in table.schema.names:
            values = np.array(numbers(token_values(single(table, name), lengths)), np.float32) + np.float32(0)  # no -0
            word += (values.view(np.uint32).astype(np.uint64) + np.uint64(1)) * np.uint64(odd)
    word = (word ^ (word >> np.uint64(29))) * (2 * place + np.uint64(0xBF58476D1CE4E5B9))
    some = lengths > 0
    whole = names + lengths.astype(np.uint64) * np.uint64(0x94D049BB133111EB)
    if some.any():
        whole[some] += np.add.reduceat(word, (ends - lengths)[some])
    whole = (whole ^ (whole >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return np.stack([names, whole], 1)


@dataclass
class Copies:
    """Rows of one part, and which of them are copies of others.

    Attributes:
        known: keys of rows that were counted.
        tally: told of copies.
        keys: of the rows that are counted now.
    """

    known: set[int]
    tally: Tally
    keys: "np.ndarray[Any, Any]" = field(default_factory=no_keys)

    def left_out(self, table: pa.Table, origin: Origin) -> "np.ndarray[Any, Any]":
        """Tell which rows to count, as booleans."""
        keys = keys_of(table)
        whole = keys[:, 1].tolist()
        good = np.ones(len(whole), bool)
        for i, key in enumerate(whole):
            if key in self.known:
                good[i] = False
            self.known.add(key)
        if not good.all():
            at = int(np.argmin(good))
            name = single(table, "sequence_id")[at].as_py()
            self.tally(
                Violation(
                    COPY,
                    origin.place(at),
                    f"{name!r} was read before, with the same log-probs",
                    "each copy is left out; name the files of one run once, or delete the copy.",
                    int((~good).sum()),
                )
            )
        self.keys = np.concatenate([self.keys, keys[good]])
        return good


def read(part: FilePart, job: Job, tally: Tally, before: int = 0, copies: "Copies | None" = None) -> Iterator[Part]:
    """Read a part of a file, some rows at a time.

    Args:
        part: which rows.
        job: which columns, and what to do about bad values.
        tally: counts what is not as it should be.
        before: about how many tokens stand before the part.
        copies: what was counted, so that nothing is counted twice; without it, all rows are.

    Raises:
        ValueError: a value that breaks a rule, unless such are left out, or a column is missing; with file, row and
            remedy.
    """
    source = (job.formats or formats(job.reader)).source(part.path)
    rule = _Rule(frozenset() if job.keep_going else frozenset(job.strict_columns), tally)
    lenient = any(family.columns is None for family in job.families)
    for raw, origin in source.read(part, job.columns, job.batch_tokens, rule):
        table, origin, whole = _usable(raw, origin, job, rule)
        good = np.ones(table.num_rows, bool) if copies is None else copies.left_out(table, origin)
        if not good.all():
            table, origin = _rows(table, origin, good)
            whole = None if whole is None else whole[good]
        lengths = lengths_of(single(table, "log_mu"))
        for first, count in slices_of(lengths, job.batch_tokens):
            some, here = table.slice(first, count), origin.slice(first, count)
            kept = None if whole is None else whole[first : first + count]
            good, place = (some, here) if kept is None else _rows(some, here, kept)
            check_values(good, place, tally if job.keep_going else partial(_refuse, part.path, tally))
            if lenient:
                check_counts(good, place, tally)
            yield Part(some, here, kept, before)
            before += int(lengths[first : first + count].sum())


def _usable(
    raw: pa.Table, origin: Origin, job: Job, rule: "_Rule"
) -> tuple[pa.Table, Origin, "np.ndarray[Any, Any] | None"]:
    """The rows that line up; and which of them do so in all columns, None if all."""
    table = conform(raw, origin, rule)
    if all(family.without_pi for family in job.families):
        table = _prefill_for_pi(table, origin, rule)
    for name in REQUIRED:
        if f"{name}: wrong type" in rule.tally.by_rule:
            fail(rule.tally.by_rule[f"{name}: wrong type"])
    # a JSONL file may drop a column part of the way
    check_names(table.schema.names, REQUIRED, origin.place(0), fail)
    strict = [name for name in table.schema.names if name in job.strict_columns]
    some = aligned(table.select(strict), origin, REQUIRED, rule)
    if not some.all():
        table, origin = _rows(table, origin, some)
    if len(strict) == len(table.schema.names):
        return table, origin, None
    others = _Rule(frozenset(), rule.tally, frozenset(strict))
    whole = aligned(table, origin, REQUIRED, others)
    return table, origin, None if whole.all() else whole


def _prefill_for_pi(table: pa.Table, origin: Origin, report: Report) -> pa.Table:
    """Let the engine's prefill stand in for a log_pi that no row has, and say so."""
    names = table.schema.names
    lacks = "log_pi" not in names or single(table, "log_pi").null_count == table.num_rows
    if not lacks or not table.num_rows or "log_mu_prefill" not in names:
        return table
    prefill = single(table, "log_mu_prefill")
    if prefill.null_count == table.num_rows:
        return table
    report(
        Violation(
            "the engine's prefill stands in for log_pi",
            origin.place(0),
            "log_pi is missing and log_mu_prefill is there",
            "only the engine is looked at: its decoding against its own prefill.",
            table.num_rows,
            "rows",
        )
    )
    whole = table.drop_columns(["log_pi"]) if "log_pi" in names else table
    return whole.append_column("log_pi", prefill).replace_schema_metadata({ENGINE_ALONE: b"1"})


def _rows(table: pa.Table, origin: Origin, which: "np.ndarray[Any, Any]") -> tuple[pa.Table, Origin]:
    return table.filter(arrow(which, pa.bool_())), origin.keep([int(i) for i in np.flatnonzero(which)])


@dataclass(frozen=True)
class _Rule:
    """The one rule for what is wrong with records: an error in some columns, counted in the others.

    Attributes:
        strict: columns where it is an error.
        tally: counts the rest.
        known: columns whose faults were counted before.
    """

    strict: frozenset[str]
    tally: Tally
    known: frozenset[str] = frozenset()

    def __call__(self, violation: Violation) -> None:
        """Report a fault of type or length."""
        column = violation.rule.partition(":")[0]
        if column in self.strict:
            fail(violation)
        if column not in self.known:
            self.tally(violation)


def _refuse(path: Path, report: Report, violation: Violation) -> None:
    if not violation.rule.startswith(("log_mu:", "log_pi:")):
        report(violation)
        return
    raise ValueError(
        f"{violation} `reweigh records validate {path}` lists all there are; "
        "--keep-going leaves such tokens out and counts them."
    )


# Sums as bytes: how they travel between processes and into a file. Reading them runs no code.

_MAGIC = b"reweigh2"
_TYPES: tuple[type, ...] = (RatioStats, Violation)
_LEVELS: Mapping[str, Level] = {level.name: level for level in LEVELS}


def types_of(job: Job) -> tuple[type, ...]:
    """Which dataclasses the sums of a job are made of."""
    return tuple(dict.fromkeys((*_TYPES, *(t for family in job.families for t in family.types))))


def pack(value: Any, types: Sequence[type] = ()) -> bytes:
    """Write a tree of dicts, lists, tuples, plain values, arrays and sums: a JSON header, then the arrays' numbers.

    Args:
        value: the tree.
        types: dataclasses that may be in it.

    Raises:
        TypeError: something else is in it.
    """
    arrays: list[np.ndarray[Any, Any]] = []
    head = json.dumps(_tree(value, arrays, frozenset((*_TYPES, *types)))).encode()
    body = b"".join(array.tobytes() for array in arrays)
    return b"".join((_MAGIC, len(head).to_bytes(8, "little"), head, body))


def unpack(data: bytes, types: Sequence[type] = ()) -> Any:
    """Read what `pack` was given.

    Raises:
        ValueError: it is not what `pack` writes, or not all of it.
        KeyError: a dataclass is in it that is not among the types.
    """
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    if data[: len(_MAGIC)] != _MAGIC or len(data) < end:
        raise ValueError(f"unpack: not sums of a scan, or cut short: {len(data)} bytes that start {data[:8]!r}")
    known = {_name(t): t for t in (*_TYPES, *types)}
    return _value(json.loads(data[start:end]), _Body(memoryview(data)[end:]), known)


_MOST_HEAD = 1 << 28


def head_of(file: IO[bytes]) -> Any:
    """Read the first member of a list that `pack` wrote, if it is plain: None if it is not what `pack` writes."""
    start = file.read(len(_MAGIC) + 8)
    size = int.from_bytes(start[len(_MAGIC) :], "little")
    if start[: len(_MAGIC)] != _MAGIC or not 0 < size < _MOST_HEAD:
        return None
    try:
        tree = json.loads(file.read(size))
        first = next(iter(tree.values()))[0]
        return _value(first, _Body(memoryview(b"")), {})
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, StopIteration, RecursionError):
        return None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _tree(value: Any, arrays: list[Any], types: frozenset[type]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value.numpy() if isinstance(value, torch.Tensor) else value
        arrays.append(array)
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return {kind: array.dtype.str, "shape": list(array.shape)}
    if isinstance(value, Level):
        return {"level": value.name}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_tree(x, arrays, types) for x in value]}  # type: ignore[reportUnknownVariableType]
    if isinstance(value, Mapping):
        pairs = value.items()  # type: ignore[reportUnknownVariableType]
        return {"dict": [[_tree(k, arrays, types), _tree(x, arrays, types)] for k, x in pairs]}  # type: ignore[reportUnknownVariableType]
    if is_dataclass(value) and type(value) in types:
        inner = {f.name: _tree(getattr(value, f.name), arrays, types) for f in fields(value)}
        return {"type": _name(type(value)), "fields": inner}
    raise TypeError(f"pack: cannot write {type(value).__name__}")


class _Body:
    """The numbers, taken from the front."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, dtype: str, shape: list[int]) -> "np.ndarray[Any, Any]":
        """Take the next array."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise ValueError(f"unpack: cut short: {size} bytes wanted at {self._at}, {len(piece)} there")
        self._at += size
        return np.frombuffer(piece, dtype).reshape(shape).copy()


def _value(tree: Any, body: _Body, types: Mapping[str, type]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return torch.from_numpy(body.take(tree["tensor"], tree["shape"]))
    if "array" in tree:
        return body.take(tree["array"], tree["shape"])
    if "level" in tree:
        return _LEVELS[tree["level"]]
    for kind, make in (("list", list), ("tuple", tuple)):
        if kind in tree:
            return make(_value(x, body, types) for x in tree[kind])
    if "dict" in tree:
        return {_value(k, body, types): _value(x, body, types) for k, x in tree["dict"]}
    return types[tree["type"]](**{name: _value(x, body, types) for name, x in tree["fields"].items()})
