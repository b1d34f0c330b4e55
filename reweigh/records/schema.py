"""The rollout record: its columns, what a file says of its run, and what breaks a rule of it."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

import bisect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from reweigh.guard import UnreadableFileError as UnreadableFileError
from reweigh.guard import finite, loads

# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.


SCHEMA_VERSION = 2
"""Version of the columns, written into every file; 1 had none of candidates."""
_READ = (1, SCHEMA_VERSION)
METADATA_KEY = b"reweigh"
LogprobsMode = Literal["processed", "raw"]

_FLOATS, _INTS, _BOOLS = pa.list_(pa.float32()), pa.list_(pa.int32()), pa.list_(pa.bool_())
_MANY_FLOATS, _MANY_INTS = pa.list_(_FLOATS), pa.list_(_INTS)


@dataclass(frozen=True)
class Column:
    """One column: its name, the type it is written with, and what a value means."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    required: bool = False

    @property
    def per_token(self) -> bool:
        """True for the list columns: one value a response token."""
        return pa.types.is_list(self.type)

    @property
    def many(self) -> bool:
        """True for lists of lists: any number of values a response token."""
        return self.per_token and pa.types.is_list(self.type.value_type)

    @property
    def value_type(self) -> pa.DataType:
        """Type of one value: of a token in a list column, one of its many if it has many, of the row otherwise."""
        inner = self.type.value_type if self.per_token else self.type
        return inner.value_type if self.many else inner


COLUMNS = (
    Column("sequence_id", pa.string(), "name of the response, unique over all files read together", required=True),
    Column("prompt_id", pa.string(), "name of the prompt; equal for responses to one prompt"),
    Column("step", pa.int64(), "training step that used the response"),
    Column("env", pa.string(), "environment, task or data set"),
    Column("prompt_length", pa.int64(), "tokens in the prompt", "tokens"),
    Column("token_ids", _INTS, "the response's token ids"),
    Column("log_mu", _FLOATS, "log-prob of the token under the policy that sampled it", "nats", required=True),
    Column("log_pi", _FLOATS, "log-prob of the token under the policy that trains", "nats", required=True),
    Column("mask", _BOOLS, "true where the policy sampled the token and it counts; null = all do"),
    Column("advantage", _FLOATS, "advantage of the token; one number a row also reads"),
    Column("reward", pa.float32(), "reward of the response"),
    Column("versions", _INTS, "weight version that sampled the token"),
    Column("trainer_version", pa.int64(), "weight version that log_pi is of"),
    Column("turns", _INTS, "turn of the token; a turn is a run of equal values"),
    Column("entropy_pi", _FLOATS, "entropy of the trainer's distribution at the token", "nats"),
    Column("entropy_mu", _FLOATS, "entropy of the sampler's distribution at the token", "nats"),
    Column("log_pi_repeat", _FLOATS, "log_pi computed a second time, other batch or order", "nats"),
    Column("log_mu_prefill", _FLOATS, "log_mu from the sampling engine's prefill of the same tokens", "nats"),
    Column(
        "support_ids", _MANY_INTS, "ids that the sampler kept at the token's place (top-p, top-k, min-p); null = all"
    ),
    Column("log_support_pi", _FLOATS, "log of the mass that log_pi's distribution has on support_ids", "nats"),
    Column("top_ids", _MANY_INTS, "ids of the sampler's k likeliest tokens at the token's place, the likeliest first"),
    Column("top_log_mu", _MANY_FLOATS, "log-prob of each of top_ids under the policy that sampled", "nats"),
    Column("top_log_pi", _MANY_FLOATS, "log-prob of each of top_ids under the policy that trains", "nats"),
    Column("pack_index", pa.int64(), "which packed row or micro-batch the trainer put the response in"),
    Column("finish_reason", pa.string(), "why sampling ended: stop, length, abort, ..."),
    Column("text", pa.string(), "the response as text"),
)
"""Every column of the rollout record, in its order."""
BY_NAME: Mapping[str, Column] = {column.name: column for column in COLUMNS}
REQUIRED = tuple(column.name for column in COLUMNS if column.required)
ROLLOUT_REQUIRED = ("sequence_id", "log_mu")  # what a file has before a trainer has rescored it
"""Columns that a file has before a trainer has rescored it."""
ARROW_SCHEMA = pa.schema([pa.field(column.name, column.type) for column in COLUMNS])
"""The columns as an Arrow schema."""

_PER_FILE = ("created", "note", "seed")  # differ between shards of one run


@dataclass(frozen=True)
class RunInfo:
    """A run as the file that it wrote describes it; None is "not known".

    Attributes:
        schema_version: version of the columns; None for a file that no reweigh wrote.
        engine: what sampled, for example "vllm"; `engine_version` its version.
        trainer: what computed log_pi, for example "transformers"; `trainer_version` its version.
        model: name or path of the model.
        dtype_mu: number type that the sampler computed in; `dtype_pi` the trainer's.
        temperature: of sampling, as are top_p, top_k, min_p, repetition_penalty and seed.
        logprobs_mode: "processed" if log_mu is of the distribution after temperature and truncation, "raw" if before.
        decimals: that log-probs are rounded to in the file; None if they have all their digits.
        note: anything.
        created: when, ISO 8601.
    """

    schema_version: int | None = SCHEMA_VERSION
    engine: str | None = None
    engine_version: str | None = None
    trainer: str | None = None
    trainer_version: str | None = None
    model: str | None = None
    dtype_mu: str | None = None
    dtype_pi: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logprobs_mode: LogprobsMode | None = None
    seed: int | None = None
    decimals: int | None = None
    note: str | None = None
    created: str | None = None

    def __post_init__(self) -> None:
        """Refuse a version that these columns are not of, and values of another type."""
        if self.schema_version is not None and self.schema_version not in _READ:
            raise ValueError(
                f"RunInfo: schema_version must be {' or '.join(map(str, _READ))}, got {self.schema_version!r}\n"
                "hint: the file was written by another version of reweigh; use that one, or a newer one."
            )
        if self.logprobs_mode not in (None, "processed", "raw"):
            raise ValueError(f'RunInfo: logprobs_mode must be "processed", "raw" or None, got {self.logprobs_mode!r}')
        for names, types, word in _FIELD_TYPES:
            for name in names:
                value = getattr(self, name)
                if value is None:
                    continue
                if (
                    isinstance(value, bool)
                    or not isinstance(value, types)
                    or not (isinstance(value, str) or finite(value))
                ):
                    raise ValueError(f"RunInfo: {name} must be {word} or None, got {_short(value)}")

    def to_dict(self) -> dict[str, Any]:
        """The known fields, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunInfo":
        """Read what `to_dict` gave. Names that are not fields are the writer's own, and are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{"schema_version": None, **{k: v for k, v in values.items() if k in known}})

    def to_metadata(self) -> dict[bytes, bytes]:
        """As Parquet key-value metadata: one JSON object under the key `reweigh`."""
        return {METADATA_KEY: json.dumps(self.to_dict()).encode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> "RunInfo":
        """Read Parquet key-value metadata; all unknown if the key is not there."""
        raw = (metadata or {}).get(METADATA_KEY)
        if raw is None:
            return cls(schema_version=None)
        try:
            values = loads(raw)
        except ValueError as e:
            raise ValueError(f"RunInfo: the file's metadata under 'reweigh' must be JSON: {e}") from None
        if not isinstance(values, dict):
            raise ValueError(
                f"RunInfo: the file's metadata under 'reweigh' must be a JSON object, got {_short(values)}"
            )
        return cls.from_dict(values)

    def disagreements(self, other: "RunInfo") -> dict[str, tuple[Any, Any]]:
        """Fields that both know and that differ, other than those that belong to one file (seed, note, created)."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return {k: (a, b) for k, (a, b) in pairs.items() if k not in _PER_FILE and a != b and None not in (a, b)}

    def merged(self, other: "RunInfo") -> "RunInfo":
        """Keep what is true of both files: fields that differ become None."""
        same = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) == getattr(other, f.name)}
        return RunInfo.from_dict({**same, "schema_version": SCHEMA_VERSION})


_FIELD_TYPES: tuple[tuple[tuple[str, ...], type | tuple[type, ...], str], ...] = (
    (("schema_version", "top_k", "seed", "decimals"), int, "an integer"),
    (("temperature", "top_p", "min_p", "repetition_penalty"), (int, float), "a number"),
    (
        ("engine", "engine_version", "trainer", "trainer_version", "model", "dtype_mu", "dtype_pi", "note", "created"),
        str,
        "a string",
    ),
)


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "an integer of more than 64 bits"
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold.

    Attributes:
        rule: the rule's short name; violations of one rule are counted together.
        place: file, and row or line, of the first one.
        detail: names and values at that place.
        hint: what to do.
        count: how many values, rows or files break it.
        counted: what `count` counts.
    """

    rule: str
    place: str
    detail: str
    hint: str
    count: int = 1
    counted: str = "rows"

    def __str__(self) -> str:
        """As an error message."""
        more = f" ({self.count} {self.counted} in this batch)" if self.count > 1 else ""
        return f"{self.place}: {self.detail}{more}\nhint: {self.hint}"


RECORDS_LOST = "records"
"""What a violation counts that loses a whole record of a dump, whatever is wrong with it."""
Report = Callable[[Violation], None]


def fail(violation: Violation) -> None:
    """The report of everything that only wants good records: raise on the first violation."""
    raise ValueError(str(violation))


@dataclass
class Tally:
    """The report that counts: one violation a rule, with the first place and the total."""

    by_rule: dict[str, Violation] = field(default_factory=dict)

    def __call__(self, violation: Violation) -> None:
        """Count one more."""
        seen = self.by_rule.get(violation.rule)
        self.by_rule[violation.rule] = violation if seen is None else replace(seen, count=seen.count + violation.count)


@dataclass(frozen=True)
class Origin:
    """The place of rows: row 0 of a table is row `first_row` of the file, or line `lines[0]` of a JSONL file.

    Where tables of several files were put one behind the other, `others` has the first row of each, in order,
    and where its rows are from; `kept` then counts rows of the whole.
    """

    path: Path
    first_row: int
    lines: Sequence[int] | None = None
    kept: Sequence[int] | None = None  # which rows are left, if some were taken out
    others: tuple[tuple[int, "Origin"], ...] = ()

    @classmethod
    def joined(cls, origins: Sequence["Origin"], rows: Sequence[int]) -> "Origin":
        """The origin of tables of so many rows each, one behind the other."""
        starts = itertools.accumulate(rows[:-1], initial=0)
        each = tuple(zip(starts, origins, strict=True))
        return replace(origins[0], kept=range(sum(rows)), others=each) if len(each) > 1 else origins[0]

    def _whence(self, row: int) -> tuple["Origin", int]:
        """The table that a row is from, and its number there."""
        row = row if self.kept is None else self.kept[row]
        if not self.others:
            return self, row
        start, origin = self.others[bisect.bisect_right(self.others, row, key=lambda one: one[0]) - 1]
        return origin._whence(row - start)

    def file_of(self, row: int) -> Path:
        """Give the file that a row is from."""
        return self._whence(row)[0].path

    @property
    def files(self) -> tuple[Path, ...]:
        """Name the files that rows may be from."""
        each = (path for _, one in self.others for path in one.files) if self.others else (self.path,)
        return tuple(dict.fromkeys(each))

    def place(self, row: int) -> str:
        """File and row (counted from 0), or file and line (from 1); the file alone where no row is left."""
        if self.kept is not None and not len(self.kept):
            return str(self.path)
        origin, row = self._whence(row)
        if origin.lines is not None:
            return f"{origin.path}:{origin.lines[row]}"
        return f"{origin.path} row {origin.first_row + row}"

    def slice(self, start: int, length: int) -> "Origin":
        """The origin of `table.slice(start, length)`."""
        if self.kept is not None:
            return replace(self, kept=self.kept[start : start + length])
        lines = None if self.lines is None else self.lines[start : start + length]
        return Origin(self.path, self.first_row + start, lines)

    def keep(self, rows: Sequence[int]) -> "Origin":
        """The origin of a table that has only these rows of it."""
        return replace(self, kept=rows if self.kept is None else [self.kept[row] for row in rows])
