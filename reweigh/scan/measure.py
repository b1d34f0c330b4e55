"""The map of a scan: a part of a file -> the sums of each family; a pure function, run in this process or any other."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from reweigh.dumps import formats
from reweigh.levels import LEVELS, Level
from reweigh.records.arrays import arrow, numbers, valid
from reweigh.records.files import OF_BATCH, FilePart, Formats, slices_of
from reweigh.records.schema import BY_NAME, COLUMNS, RECORDS_LOST, REQUIRED, Origin, Report, Tally, Violation, fail
from reweigh.records.table import (
    aligned,
    check_counts,
    check_names,
    check_values,
    conform,
    lengths_of,
    replayed,
    single,
    stable_hashes,
    token_values,
)
from reweigh.scan.rows import EVERY, Rows
from reweigh.scan.tokens import ENGINE_ALONE, Part
from reweigh.stats.sums import RatioStats

ENGINE_STANDS_IN = "the engine's prefill stands in for log_pi"  # a rule of the notes
BATCH_TOKENS = 1 << 20  # of one batch: enough that the own cost of calls is small, little enough for memory to stay so


Names = NDArray[np.uint64]


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
        columns: what it reads beside the columns of a batch; None for all columns of at most one value a token. Values
            of columns that are named here must be of the right type and length in every row, unless bad values are
            left out.
        many: columns of many values a token that it also reads: they are most of a file that has them.
        types: dataclasses that its sums are made of, so that they can be read back from bytes.
        identity: what is asked, by the name of the option: what a state file is of.
        per_file: it asks which file rows are from, so that rows of several are not put together.
        without_pi: it has a use for rows without log_pi that have the engine's prefill: that stands in for it, if all
            families of the scan say so.
    """

    name: str
    measure: Callable[[Part], Sums]
    columns: tuple[str, ...] | None = ()
    types: tuple[type, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    without_pi: bool = False
    many: tuple[str, ...] = ()
    per_file: bool = False


@dataclass(frozen=True)
class Task:
    """What is measured in one go.

    Attributes:
        parts: a part, or some small ones; their tables are put together where they have the same columns, since each
            call on the way costs as much for a thousand tokens as for a hundred thousand.
        before: about how many tokens of the records stand before it.
    """

    parts: tuple[FilePart, ...]
    before: int = 0

    @property
    def tokens(self) -> int | None:
        """Add up the tokens, about; None if only reading tells."""
        some = [part.tokens for part in self.parts]
        return None if None in some else sum(n or 0 for n in some)

    @property
    def rows(self) -> int | None:
        """Add up the rows; None if only reading tells."""
        some = [part.rows for part in self.parts]
        return None if None in some else sum(n or 0 for n in some)


@dataclass(frozen=True)
class Job:
    """What is done with each part.

    Attributes:
        families: what is added up.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        batch_tokens: tokens that are worked on at a time.
        reader: name of the files' format; recognised by their content if None.
        formats: what files may be, with what is known of them already; made of `reader` if not given.
        rows: which rows are read.
    """

    families: tuple[Family, ...]
    keep_going: bool = False
    batch_tokens: int = BATCH_TOKENS
    reader: str | None = None
    formats: Formats | None = None
    rows: Rows = EVERY

    @property
    def per_file(self) -> bool:
        """Whether it is asked which file rows are from."""
        return any(one.per_file for one in self.families) or "source" in {one.column for one in self.rows.where}

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of the files."""
        many = tuple(name for family in self.families for name in family.many)
        if any(family.columns is None for family in self.families):
            plain = (c.name for c in COLUMNS if not c.many)
            return tuple(dict.fromkeys((*plain, *self.strict_columns, *many)))
        return tuple(dict.fromkeys((*self.strict_columns, *many)))

    @property
    def strict_columns(self) -> tuple[str, ...]:
        """Columns in which nothing may be of another type or length, unless that is left out."""
        asked = (c for one in self.families for c in one.columns or ())
        return tuple(dict.fromkeys((*OF_BATCH, *asked, *self.rows.columns)))


@dataclass(frozen=True, eq=False)
class Measured:
    """The sums of some records; `a + b` is of both.

    Attributes:
        rows: responses.
        tokens: tokens that count.
        sums: by name of the family.
        notes: rules that do not hold, by rule.
        names: fingerprints of the responses, see `fingerprints`; sorted, in arrays each of less than half of the one
            before, so that adding up many files sorts no number often.
        files: rows and counted tokens of each file, by name.
    """

    rows: int = 0
    tokens: int = 0
    sums: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: Mapping[str, Violation] = field(default_factory=dict[str, Violation])
    names: tuple[Names, ...] = ()
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def __add__(self, other: "Measured") -> "Measured":
        """Add up both."""
        files = dict(self.files)
        for name, (rows, tokens) in other.files.items():
            before = files.get(name, (0, 0))
            files[name] = (before[0] + rows, before[1] + tokens)
        sums = dict(self.sums)
        for name, x in other.sums.items():
            sums[name] = sums[name] + x if name in sums else x
        tally = Tally(dict(self.notes))
        for violation in other.notes.values():
            tally(violation)
        names = list(self.names)
        for more in other.names:
            while names and 2 * len(more) > len(names[-1]):
                more = np.sort(np.concatenate([names.pop(), more]), kind="stable")  # which merges what is sorted
            names.append(more)
        return Measured(self.rows + other.rows, self.tokens + other.tokens, sums, tally.by_rule, tuple(names), files)

    def has(self, names: Names) -> NDArray[np.bool_]:
        """Tell which responses are among these."""
        found = np.zeros(len(names), np.bool_)
        for known in self.names:
            found |= known[np.searchsorted(known, names).clip(max=len(known) - 1)] == names
        return found

    def shared(self, other: "Measured") -> Names:
        """Give the responses that are in both."""
        return np.concatenate([np.empty(0, np.uint64), *(names[self.has(names)] for names in other.names)])

    def to_bytes(self, job: Job) -> bytes:
        """Write them for another process."""
        return pack([self.rows, self.tokens, self.sums, self.notes, self.names, self.files], types_of(job))

    @classmethod
    def from_bytes(cls, data: bytes, job: Job) -> "Measured":
        """Read what `to_bytes` gave."""
        return cls(*unpack(data, types_of(job)))


def measure(task: Task, job: Job, known: Names | None = None, most: int | None = None) -> Measured:
    """Read some parts and add them up. A response that stands in them twice is counted once.

    Args:
        task: the parts.
        job: what is done with them.
        known: fingerprints of responses that were read before, in another part, and are left out.
        most: responses that are read at most.
    """
    before_it = np.empty(0, np.uint64) if known is None else np.sort(known)
    total, tally = Measured(), Tally()
    seen = Measured(names=(before_it,) if len(before_it) else ())

    def has(names: Names) -> NDArray[np.bool_]:
        return seen.has(names)  # as it is by then

    for one in read(task, job, tally, has, most):
        sums = {family.name: family.measure(one) for family in job.families}
        names = np.unique(one.names)
        here = Measured(names=(names[names != 0],) if names.any() else ())
        seen += here
        lengths = one.batch.layout.lengths.numpy()
        found = Measured(one.table.num_rows, int(lengths.sum()), sums, files=_by_file(one.origin, lengths))
        total += found + here
    return total + Measured(notes=tally.by_rule)


def _by_file(origin: Origin, lengths: NDArray[np.int64]) -> dict[str, tuple[int, int]]:
    """Give rows and tokens of each file that rows of these lengths are from."""
    if len(origin.files) == 1:
        return {str(origin.path): (len(lengths), int(lengths.sum()))}
    found: dict[str, tuple[int, int]] = {}
    for row, length in enumerate(lengths.tolist()):
        name = str(origin.file_of(row))
        rows, tokens = found.get(name, (0, 0))
        found[name] = (rows + 1, tokens + length)
    return found


def measure_next(before: Measured, found: Measured, task: Task, job: Job) -> Measured:
    """Give what a task adds to what was read before: what was found in it, or, if some of its responses were read
    before, say because a folder holds a merged file beside its pieces, what is found without these; and no more
    responses than the job's limit has left.

    Args:
        before: what was read before.
        found: what was found in its parts.
        task: the parts.
        job: what is done with it.
    """
    again = before.shared(found)
    most = None if job.rows.limit is None else job.rows.limit - before.rows
    return measure(task, job, again, most) if len(again) or (most or found.rows) < found.rows else found


_HEAD = 64  # tokens of a response that its fingerprint is of
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # of xxHash: their bits look random


def fingerprints(table: pa.Table) -> Names:
    """Give a number for each response: of its id, its length and both log-probs of its first tokens, bit by bit.

    Two rows that share one are the same response, read twice: ids that begin anew at each step do not make responses
    equal, and equal short responses have different ids. 0 for a row without an id, which may be equal to another.
    """
    ids = single(table, "sequence_id")
    lengths = lengths_of(single(table, "log_mu"))
    if not len(lengths):
        return np.empty(0, np.uint64)
    starts = np.cumsum(lengths) - lengths
    rows = np.repeat(np.arange(len(lengths)), np.minimum(lengths, _HEAD))
    first = np.cumsum(np.minimum(lengths, _HEAD)) - np.minimum(lengths, _HEAD)
    place = np.arange(len(rows)) - first[rows]
    bits = np.zeros(len(rows), np.uint64)
    for name, odd in zip(("log_mu", "log_pi"), _ODD, strict=True):
        values = numbers(token_values(single(table, name), lengths)).astype(np.float32, copy=False)
        bits = (bits ^ values[starts[rows] + place].view(np.uint32)) * odd
        bits ^= bits >> np.uint64(29)
    mixed = np.zeros(len(lengths), np.uint64)
    np.add.at(mixed, rows, bits * (2 * place + 1).astype(np.uint64))
    mixed ^= stable_hashes(ids, "sequence").view(np.uint64) + lengths.astype(np.uint64) * _ODD[0]
    return np.where(valid(ids), np.maximum(mixed, 1), 0).astype(np.uint64)


def _once(names: Names, known: Callable[[Names], NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Which rows are read for the first time."""
    first = np.zeros(len(names), np.bool_)
    first[np.unique(names, return_index=True)[1]] = True
    return (first & ~known(names)) | (names == 0)


def _never(names: Names) -> NDArray[np.bool_]:
    return np.zeros(len(names), np.bool_)


def read(
    task: Task,
    job: Job,
    tally: Tally,
    known: Callable[[Names], NDArray[np.bool_]] = _never,
    most: int | None = None,
) -> Iterator[Part]:
    """Read parts of files, some rows at a time.

    Args:
        task: which rows.
        job: which columns, and what to do about bad values.
        tally: counts what is not as it should be.
        known: which responses were read before, by fingerprint: they are left out, and counted.
        most: rows that are read at most.

    Raises:
        ValueError: a value that breaks a rule, unless such are left out, or a column is missing; with file, row and
            remedy.
    """
    strict = () if job.keep_going else job.strict_columns
    rule = _Rule(frozenset(strict), tally, records=not job.keep_going)
    lenient = any(family.columns is None for family in job.families)
    before = task.before
    for table, origin, whole in _tables(task, job, rule):
        lengths = lengths_of(single(table, "log_mu"))
        for first, count in slices_of(lengths, job.batch_tokens):
            some, here = table.slice(first, count), origin.slice(first, count)
            size = int(lengths[first : first + count].sum())
            kept = None if whole is None else whole[first : first + count]
            wanted = job.rows.chosen(some, here.path)
            if not wanted.all():
                tally(_not_chosen(job.rows, here, wanted))
            names = fingerprints(some)
            once = _once(names, known) | ~wanted
            if not once.all():
                tally(_again(some, here, once))
            wanted &= once
            if most is not None:
                wanted &= np.cumsum(wanted) <= most
                most -= int(wanted.sum())
            if not wanted.all():
                kept = None if kept is None else kept[wanted]
                some, here = _rows(some, here, wanted)
                names = names[wanted]
                if not some.num_rows:
                    before += size
                    continue
            if job.rows.replay:
                some = _replayed(some, here)
            good, place = (some, here) if kept is None else _rows(some, here, kept)
            check_values(good, place, tally if job.keep_going else partial(_refuse, here, tally))
            if lenient:
                check_counts(good, place, tally)
            yield Part(some, here, names, kept, before)
            before += size


_Usable = tuple[pa.Table, Origin, "np.ndarray[Any, Any] | None"]


def _tables(task: Task, job: Job, rule: "_Rule") -> Iterator[_Usable]:
    """Read what can be used of the parts, one after the other; small tables that follow each other as one.

    They are put together before they are looked at where no cast can fail, so that what is reported of a column of a
    file is of this file; the others after that.
    """
    known = job.formats or formats(job.reader)
    raw = (
        (table, origin, None)
        for part in task.parts
        for table, origin in known.source(part.path).read(part, job.columns, job.batch_tokens, rule)
    )
    apart = job.per_file or len(task.parts) == 1
    joined = raw if apart else _joined(raw, job.batch_tokens, _certain)
    usable = (_usable(table, origin, job, rule) for table, origin, _ in joined)
    return usable if apart else _joined(usable, job.batch_tokens)


def _joined(
    tables: Iterable[_Usable], most: int, may: Callable[[pa.Table], bool] = lambda table: True
) -> Iterator[_Usable]:
    """Put tables that follow each other together, up to so many tokens, where they may be and have the same columns."""
    held: list[_Usable] = []
    tokens = 0
    for one in tables:
        fits = may(one[0])
        size = int(lengths_of(single(one[0], "log_mu")).sum()) if fits else 0
        if held and (not fits or tokens + size > most or not _alike(held[0][0], one[0])):
            yield _as_one(held)
            held, tokens = [], 0
        if fits:
            held.append(one)
            tokens += size
        else:
            yield one
    if held:
        yield _as_one(held)


def _certain(table: pa.Table) -> bool:
    """Whether a raw table has the required columns with values, and all columns in types that are cast without fail."""
    names = table.schema.names
    if len(set(names)) < len(names) or not all(
        name in names and single(table, name).null_count < table.num_rows for name in REQUIRED
    ):
        return False
    return all(f.name in BY_NAME and _cast_for_certain(f.type, BY_NAME[f.name].type) for f in table.schema)


def _cast_for_certain(raw: pa.DataType, to: pa.DataType) -> bool:
    if raw == to or (pa.types.is_string(to) and pa.types.is_large_string(raw)):
        return True
    lists = pa.types.is_list(raw) and pa.types.is_list(to)
    return lists and pa.types.is_floating(raw.value_type) and pa.types.is_floating(to.value_type)


def _alike(a: pa.Table, b: pa.Table) -> bool:
    """Whether rows of both are told apart by nothing; numbers of packed rows begin anew in each file."""
    return (
        a.schema.equals(b.schema)
        and a.schema.metadata == b.schema.metadata
        and not any("pack_index" in x.schema.names and single(x, "pack_index").null_count < x.num_rows for x in (a, b))
    )


def _as_one(held: list[_Usable]) -> _Usable:
    if len(held) == 1:
        return held[0]
    tables, origins, wholes = zip(*held, strict=True)
    rows = [table.num_rows for table in tables]
    whole = None
    if any(one is not None for one in wholes):
        whole = np.concatenate([np.ones(n, np.bool_) if x is None else x for n, x in zip(rows, wholes, strict=True)])
    return pa.concat_tables(tables).combine_chunks(), Origin.joined(origins, rows), whole


def _replayed(table: pa.Table, origin: Origin) -> pa.Table:
    if "log_support_pi" not in table.schema.names or single(table, "log_support_pi").null_count:
        raise ValueError(
            f"{origin.place(0)}: --replay needs log_support_pi in every row: the log of the mass that pi has on what "
            "the sampler kept\n"
            "hint: have the engine return what it kept (support_ids), and `reweigh rescore` compute it."
        )
    return replayed(table)


NOT_CHOSEN = "rows that were not asked for"


def _not_chosen(rows: Rows, origin: Origin, chosen: NDArray[np.bool_]) -> Violation:
    row = int(np.flatnonzero(~chosen)[0])
    hint = "--where and --sample say which rows are read."
    return Violation(NOT_CHOSEN, origin.place(row), f"it is not of: {rows}", hint, int((~chosen).sum()), "rows")


def _again(table: pa.Table, origin: Origin, once: NDArray[np.bool_]) -> Violation:
    row = int(np.flatnonzero(~once)[0])
    name = single(table, "sequence_id")[row].as_py()
    return Violation(
        "sequence_id: a response that was read before, so that it stands here twice",
        origin.place(row),
        f"{name!r} has the same log-probs in a row before, of this file or another",
        "each response is counted once; is a merged file, or a copy, in one folder with what it was made of?",
        int((~once).sum()),
        "rows",
    )


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
            ENGINE_STANDS_IN,
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
        records: whether a record of a dump that is no good is an error, whatever is wrong with it.
    """

    strict: frozenset[str]
    tally: Tally
    known: frozenset[str] = frozenset()
    records: bool = False

    def __call__(self, violation: Violation) -> None:
        """Report a fault of type or length."""
        column = violation.rule.partition(":")[0]
        if column in self.strict or (self.records and violation.counted == RECORDS_LOST):
            fail(violation)
        if column not in self.known:
            self.tally(violation)


def _refuse(origin: Origin, report: Report, violation: Violation) -> None:
    if not violation.rule.startswith(("log_mu:", "log_pi:")):
        report(violation)
        return
    paths = [str(one) for one in origin.files]
    path = next((path for path in paths if violation.place.startswith((f"{path} row ", f"{path}:"))), paths[0])
    raise ValueError(
        f"{violation} `reweigh records validate {path}` lists all there are; "
        "--keep-going leaves such tokens out and counts them."
    )


# Sums as bytes: how they travel between processes and into a file. Reading them runs no code.

_MAGIC = b"reweigh4"
_BEFORE = len(_MAGIC) + 4 + 8  # bytes: a checksum of all that follows it, and the size of the header
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
    rest = b"".join((len(head).to_bytes(8, "little"), head, body))
    return b"".join((_MAGIC, zlib.crc32(rest).to_bytes(4, "little"), rest))


def unpack(data: bytes, types: Sequence[type] = ()) -> Any:
    """Read what `pack` was given.

    Raises:
        ValueError: it is not what `pack` writes, not all of it, or damaged.
        KeyError: a dataclass is in it that is not among the types.
    """
    magic = len(_MAGIC)
    end = _BEFORE + int.from_bytes(data[magic + 4 : _BEFORE], "little")
    if data[:magic] != _MAGIC or len(data) < end:
        raise ValueError(f"unpack: not sums of a scan, or cut short: {len(data)} bytes that start {data[:8]!r}")
    if zlib.crc32(data[magic + 4 :]) != int.from_bytes(data[magic : magic + 4], "little"):
        raise ValueError(f"unpack: damaged: the checksum of its {len(data)} bytes is another one")
    known = {_name(t): t for t in (*_TYPES, *types)}
    return _value(json.loads(data[_BEFORE:end]), _Body(memoryview(data)[end:]), known)


_MOST_HEAD = 1 << 28


def head_of(file: IO[bytes]) -> Any:
    """Read the first member of a list that `pack` wrote, if it is plain: None if it is not what `pack` writes."""
    start = file.read(_BEFORE)
    size = int.from_bytes(start[len(_MAGIC) + 4 :], "little")
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
