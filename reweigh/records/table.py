"""From any Arrow table or rows that mean records to the canonical table, its rules, and a packed batch of it."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

import difflib
import hashlib
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from reweigh.batch import POSITIVE_TOLERANCE, Batch
from reweigh.guard import UnreadableFileError, shown
from reweigh.records.arrays import arrow, arrow_texts, numbers, valid
from reweigh.records.schema import BY_NAME, COLUMNS, Column, Origin, Report, Violation

# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.


NO_TOKEN = "mask: no token counts"  # the rule of rows that are for nothing
FILL = -1  # what stands for a null integer in a list
_RESCORE = (
    "this is a rollout that no trainer has rescored. Compute log_pi of its tokens with the trainer's forward, "
    "at the temperature and top-p of sampling (`reweigh rescore` does, with the model)."
)


def single(table: pa.Table, name: str) -> pa.Array:
    """A column as one array, without a copy if it is in one piece."""
    chunks = table.column(name).chunks
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.nulls(0, table.schema.field(name).type)


def lengths_of(lists: pa.Array) -> np.ndarray:
    """Length of each list, 0 for a null one."""
    return numbers(pc.list_value_length(lists)).astype(np.int64)


def token_values(lists: pa.Array, lengths: np.ndarray) -> pa.Array:
    """The values of a list column end to end, `lengths` of them a row, and none null.

    A float that is null becomes NaN, an integer -1, a mask true, each also where the whole list is null. If nothing is
    null this is a view of the column's own buffer.
    """
    # flatten() respects slices and skips what may lie under a null list
    flat, kind = lists.flatten(), lists.type.value_type
    fill = float("nan") if pa.types.is_floating(kind) else True if pa.types.is_boolean(kind) else FILL
    if lists.null_count == 0 and flat.null_count == 0:
        return flat
    some = numbers(flat, fill)
    if lists.null_count == 0:
        return arrow(some, kind)
    present = np.repeat(valid(lists), lengths)
    values = np.full(len(present), fill, dtype=some.dtype)
    values[present] = some
    return arrow(values, kind)


def check_names(names: Iterable[str], required: Sequence[str], place: str, report: Report) -> None:
    """Report each required column that a file does not have."""
    have = list(names)
    for name in required:
        if name in have:
            continue
        near = difflib.get_close_matches(name, have, n=1)
        hint = f"{name} is the {BY_NAME[name].meaning}. The file has: {', '.join(have) or 'no column'}."
        if name == "log_pi":
            hint = _RESCORE
        elif near:
            hint = f"rename {near[0]} to {name} if that is what it is. " + hint
        detail = f"column {name} is missing"
        report(Violation(f"{name}: column is missing", place, detail, hint, counted="files"))


def conform(table: pa.Table, origin: Origin, report: Report) -> pa.Table:
    """Cast each known column to its type and leave out the others; a column that cannot be cast is reported."""
    arrays: dict[str, pa.Array] = {}
    for column in COLUMNS:
        if column.name not in table.schema.names:
            continue
        if table.schema.names.count(column.name) > 1:
            raise twice(column.name, origin.path)
        raw = _plain(single(table, column.name))
        if column.name == "advantage" and "log_mu" in arrays and _is_castable(raw.type, column.value_type):
            raw = _spread(raw, arrays["log_mu"])
        if raw.type == column.type and not pa.types.is_string(raw.type):
            cast = raw
        else:
            cast = _cast(raw, column, origin, report)
        if cast is not None:
            arrays[column.name] = cast
    return pa.table(arrays)


def twice(name: str, path: Any) -> UnreadableFileError:
    """The error for a file that has two columns of one name."""
    return UnreadableFileError(
        f"{path}: column {name} stands twice in the file\n"
        "hint: which of the two is meant, nobody can tell: rename or drop one of them."
    )


def _plain(raw: pa.Array) -> pa.Array:
    """Take the lists out of what Ray Data makes of arrays.

    They are extension types where ray is imported, and where it is not what these stand on: lists, or for arrays of
    unequal lengths in one block structs of all the values of an array and of its shape.
    """
    if isinstance(raw, pa.ExtensionArray):
        raw = raw.storage
    kind = raw.type
    if pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"data", "shape"}:
        shapes = pc.struct_field(raw, "shape")
        flat = pc.all(pc.less_equal(pc.list_value_length(shapes), 1), skip_nulls=True).as_py()
        if flat is not False:
            return pc.struct_field(raw, "data")
    return raw


def aligned(table: pa.Table, origin: Origin, required: Sequence[str], report: Report) -> np.ndarray:
    """Report rows whose lists do not line up; returns which rows are whole, as booleans.

    A row is whole if every required value is there, every list has log_mu's length, and no mask entry is null.
    """
    whole = np.ones(table.num_rows, dtype=bool)
    for name in required:
        if name in table.schema.names:
            null = ~valid(single(table, name))
            whole &= ~null
            _report_rows(
                null,
                origin,
                report,
                f"{name}: value is null",
                lambda row, name=name: f"{name} is null",
                _RESCORE
                if name == "log_pi"
                else f"{name} is required in every row; leave the row out, or write its value.",
            )
    if "log_mu" not in table.schema.names:
        return whole
    reference = lengths_of(single(table, "log_mu"))
    for column in COLUMNS:
        if not column.per_token or column.name not in table.schema.names:
            continue
        lists = single(table, column.name)
        lengths = lengths_of(lists)
        differs = (lengths != reference) & valid(lists) & whole
        _report_rows(
            differs,
            origin,
            report,
            f"{column.name}: list length differs",
            lambda row, name=column.name, n=lengths: f"{name} has {n[row]} values, log_mu has {reference[row]}",
            "all list columns of a row have one length and cover the response tokens only, no prompt and no padding.",
        )
        whole &= ~differs
    if "mask" in table.schema.names:
        lists = single(table, "mask")
        if lists.flatten().null_count:
            null = np.zeros(len(lists), dtype=bool)
            null[[i for i, x in enumerate(lists) if x.is_valid and x.values.null_count]] = True
            rule, hint = "mask: entry is null", "write true or false for each token, or null for the whole list."
            _report_rows(null, origin, report, rule, lambda row: "the mask has a null entry", hint)
            whole &= ~null
    return whole


def _report_rows(
    bad: np.ndarray, origin: Origin, report: Report, rule: str, detail: Callable[[int], str], hint: str
) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        report(Violation(rule, origin.place(row), detail(row), hint, int(bad.sum())))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_castable(raw: pa.DataType, to: pa.DataType) -> bool:
    if pa.types.is_null(raw):
        return True
    if pa.types.is_dictionary(raw):
        return _is_castable(raw.value_type, to)
    if pa.types.is_list(to):
        return _is_list(raw) and _is_castable(raw.value_type, to.value_type)
    if pa.types.is_string(to):
        return pa.types.is_string(raw) or pa.types.is_large_string(raw) or pa.types.is_string_view(raw)
    if pa.types.is_boolean(to):
        return pa.types.is_boolean(raw) or pa.types.is_integer(raw)
    if pa.types.is_decimal(raw):  # what duckdb makes of numbers that stand in a query
        return pa.types.is_floating(to)
    return pa.types.is_floating(raw) or pa.types.is_integer(raw)  # pandas holds integers with gaps as floats


def _cast(raw: pa.Array, column: Column, origin: Origin, report: Report) -> pa.Array | None:
    rule, hint = f"{column.name}: wrong type", f"write {column.name} as {column.type}."
    if not _is_castable(raw.type, column.type):
        detail = f"{column.name} must be {column.type}, got {raw.type}"
        report(Violation(rule, origin.place(0) if len(raw) else str(origin.path), detail, hint, counted="batches"))
        return None
    try:
        return _cast_values(raw, column)
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
        detail = f"{column.name} must be {column.type}, got {raw.type}: {e}"
        report(Violation(rule, origin.place(0) if len(raw) else str(origin.path), detail, hint, counted="batches"))
        return None
    except pa.ArrowInvalid as e:
        row, reason = _first_failure(raw, column, e)
        detail = f"{column.name} must be {column.type}, got {raw.type}: {reason}"
        report(Violation(rule, origin.place(row), detail, hint, counted="batches"))
        return None


def _cast_values(raw: pa.Array, column: Column) -> pa.Array:
    if pa.types.is_boolean(column.value_type) and _is_list(raw.type) and pa.types.is_integer(raw.type.value_type):
        values = raw.flatten()
        if pc.any(pc.or_(pc.less(values, 0), pc.greater(values, 1))).as_py():
            raise pa.ArrowInvalid("an integer mask is 0 or 1")
    if pa.types.is_dictionary(raw.type) and pa.types.is_string(column.type):
        sizes = numbers(pc.binary_length(raw.dictionary))
        if len(sizes) and int(sizes[numbers(raw.indices.drop_null())].sum()) > _MOST_TEXT:
            raise pa.ArrowTypeError(f"more than {_MOST_TEXT >> 20} MB of text, most of it repeated")
    # Rounding a float is what the cast is for; an integer that does not fit is an error.
    found = raw.cast(column.type, safe=not pa.types.is_floating(column.value_type))
    if pa.types.is_string(column.type):  # which a file may say of any bytes
        return found.view(pa.binary()).cast(pa.string())
    return found


_MOST_TEXT = 1 << 30  # bytes of one column of a table


def _first_failure(raw: pa.Array, column: Column, whole: pa.ArrowInvalid) -> tuple[int, str]:
    for row in range(len(raw)):
        alone = pa.array(raw.slice(row, 1).to_pylist(), raw.type)  # a cast of a slice reads all of its buffer
        try:
            _cast_values(alone, column)
        except pa.ArrowInvalid as e:
            return row, str(e)
    return 0, str(whole)


def _spread(per_row: pa.Array, log_mu: pa.Array) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths_of(log_mu))])
    row = np.repeat(np.arange(len(per_row)), np.diff(offsets))
    null = per_row.is_null()
    return pa.ListArray.from_arrays(arrow(offsets, pa.int32()), per_row.take(arrow(row, pa.int64())), mask=null)


_INT32 = np.iinfo(np.int32)
_INT64 = np.iinfo(np.int64)


def table_of(rows: Sequence[Mapping[str, Any]], origin: Origin, report: Report) -> pa.Table:
    """Build the columns that any row has; a value of the wrong type is reported, and null in the table."""
    present = {name for row in rows for name in row}
    arrays: dict[str, pa.Array] = {}
    for column in COLUMNS:
        if column.name not in present:
            continue
        values: list[Any] = []
        for i, row in enumerate(rows):
            try:
                values.append(_value(row, column))
            except ValueError as e:
                rule, hint = f"{column.name}: wrong type", f"write {column.name} as {column.type}."
                report(Violation(rule, origin.place(i), str(e), hint))
                values.append(None)
        make = _many_lists if column.many else _lists if column.per_token else _scalars
        arrays[column.name] = make(values, column)
    return pa.table(arrays) if arrays else pa.table({"sequence_id": pa.nulls(len(rows), pa.string())})


def unknown_name(name: str) -> str:
    """Say of a column that the schema does not have it, and which it may be."""
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    return f"{name} is not a column of the schema" + (f"; did you mean {near[0]}?" if near else "")


def _lists(values: Sequence[np.ndarray | None], column: Column) -> pa.Array:
    lengths = np.array([0 if v is None else len(v) for v in values], dtype=np.int64)
    offsets = arrow(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    parts = [v for v in values if v is not None]
    flat = arrow(np.concatenate(parts) if parts else np.empty(0), column.value_type)
    null = arrow(np.array([v is None for v in values], dtype=np.bool_), pa.bool_())
    return pa.ListArray.from_arrays(offsets, flat, type=column.type, mask=null)


def _many_lists(values: Sequence[Sequence[np.ndarray | None] | None], column: Column) -> pa.Array:
    flat = [x for row in values if row is not None for x in row]
    lengths = np.array([0 if row is None else len(row) for row in values], dtype=np.int64)
    offsets = arrow(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    null = arrow(np.array([row is None for row in values], dtype=np.bool_), pa.bool_())
    inner = _lists(flat, replace(column, type=column.type.value_type))
    return pa.ListArray.from_arrays(offsets, inner, type=column.type, mask=null)


def _scalars(values: Sequence[Any], column: Column) -> pa.Array:
    if pa.types.is_string(column.type):
        return arrow_texts(values)
    there = np.array([v is not None for v in values], dtype=np.bool_)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, as in a list
        return arrow(np.array([0 if v is None else v for v in values]), column.type, there)


def _value(row: Mapping[str, Any], column: Column) -> Any:
    value = row.get(column.name)
    if value is None:
        return None
    if column.name == "advantage" and np.ndim(value) == 0:
        log_mu = row.get("log_mu")
        with np.errstate(over="ignore"):  # as in a list, and reported as that
            return np.full(0 if log_mu is None else len(log_mu), _number(value, column), dtype=np.float32)
    if column.many:
        return _many_arrays(value, column)
    if column.per_token:
        return _token_array(value, column)
    if pa.types.is_string(column.type):
        if not isinstance(value, str):
            raise ValueError(f"{column.name} must be a string, got {short(value)}")
        return value
    return _number(value, column)


def _number(value: Any, column: Column) -> float | int:
    integer = pa.types.is_integer(column.type)
    try:
        array = to_numpy(value)
    except (ValueError, TypeError):  # a list of something
        array = None
    if array is None or array.ndim or array.dtype.kind not in ("iu" if integer else "fiu"):
        raise ValueError(f"{column.name} must be {'an integer' if integer else 'a number'}, got {short(value)}")
    if integer and not _INT64.min <= int(array) <= _INT64.max:
        raise ValueError(f"{column.name} must fit in 64 bits, got {short(value)}")
    return array.item()


def _token_array(value: Any, column: Column) -> np.ndarray:
    try:
        array = to_numpy(value)
    except ValueError:
        raise ValueError(f"{column.name} must be a flat list, got {short(value)}") from None
    except TypeError:
        word = {"float": "numbers", "bool": "true and false (or 1 and 0)"}.get(str(column.value_type), "integers")
        raise ValueError(f"{column.name} must be a list of {word}, got {short(value)}") from None
    if array.ndim != 1:
        raise ValueError(f"{column.name} must be a flat list, got {short(value)}")
    if array.size == 0:
        array = array.astype(np.int8)  # an empty list says nothing of its type
    if pa.types.is_floating(column.value_type):
        if array.dtype.kind == "O" and all(v is None or isinstance(v, float | int) for v in array):
            try:
                array = array.astype(np.float64)  # None becomes NaN
            except OverflowError:
                raise ValueError(f"{column.name} must fit in a float, got an integer of hundreds of digits") from None
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{column.name} must be a list of numbers, got {short(value)}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as that
            return array.astype(np.float32)
    if pa.types.is_boolean(column.value_type):
        if array.dtype.kind not in "biu" or (array.dtype.kind != "b" and not np.isin(array, (0, 1)).all()):
            raise ValueError(f"{column.name} must be a list of true and false (or 1 and 0), got {short(value)}")
        return array.astype(bool)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{column.name} must be a list of integers, got {short(value)}")
    if array.size and (int(array.min()) < _INT32.min or int(array.max()) > _INT32.max):
        raise ValueError(f"{column.name} must fit in 32 bits, got {int(array.min())} to {int(array.max())}")
    return array.astype(np.int32)


def _many_arrays(value: Any, column: Column) -> list[np.ndarray | None]:
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim != 2 and len(value):
        raise ValueError(f"{column.name} must be a list of lists, one a token, got shape {tuple(value.shape)}")
    kinds = (list, tuple, np.ndarray, torch.Tensor)
    if not isinstance(value, kinds) or not all(x is None or isinstance(x, kinds) for x in value):
        raise ValueError(f"{column.name} must be a list of lists, one a token, got {short(value)}")
    flat = replace(column, type=column.type.value_type)
    if pa.types.is_floating(column.value_type):  # JSON writes -inf as null
        value = [[-math.inf if v is None else v for v in x] if isinstance(x, list) else x for x in value]
    return [None if x is None else _token_array(x, flat) for x in value]


def to_numpy(value: Any) -> np.ndarray:
    """Make an array of a list, an array or a tensor on any device; bfloat16, which NumPy lacks, becomes float32.

    Raises:
        ValueError: a list of lists.
        TypeError: a list of texts, or of anything else that is no number.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, list | tuple) and not _SCALARS_OF_LISTS.issuperset(kinds := _kinds(value)):
        # before NumPy looks into it: lists that hold one another may stand for any number of numbers
        if any(issubclass(kind, list | tuple) for kind in kinds):
            raise ValueError("a list of lists")
        if any(issubclass(kind, dict | set | str | bytes) for kind in kinds):
            raise TypeError("a list of what is no number")
    return np.asarray(value)


def _kinds(values: Sequence[Any]) -> set[type]:
    return set(map(type, values))


_SCALARS_OF_LISTS = frozenset((int, float, bool, type(None), np.float32, np.float64, np.int32, np.int64, np.bool_))
_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxlevel = 4
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


def short(value: Any) -> str:
    """Write a value of a file in at most 60 characters, however long it is and whatever holds itself in it."""
    some = value[:5].tolist() if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 1 else value
    text = shown(_REPR.repr(some), one_line=True)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class _TokenRule:
    columns: tuple[str, ...]
    word: str
    broken: Callable[[np.ndarray], np.ndarray]
    hint: str


_TOKEN_RULES = (
    _TokenRule(
        ("log_mu", "log_pi"),
        "not finite",
        lambda x: ~np.isfinite(x),
        "a NaN is a placeholder, a null or an overflow, and an infinite log-prob means top-p or top-k on one side only "
        "or a wrong token id; take such tokens out of the mask, or compute them again.",
    ),
    _TokenRule(
        ("log_mu", "log_pi", "log_pi_repeat", "log_mu_prefill", "log_support_pi"),
        "positive",
        lambda x: np.isfinite(x) & (x > POSITIVE_TOLERANCE),
        "a log-prob is at most 0; compute the log-softmax in float32, or check that these are not logits.",
    ),
    _TokenRule(
        ("entropy_pi", "entropy_mu"),
        "negative",
        lambda x: x < -POSITIVE_TOLERANCE,
        "an entropy is at least 0; the entropy of a distribution over tokens is -sum p log p.",
    ),
    _TokenRule(
        ("advantage",),
        "infinite",
        np.isinf,
        "look for a division by a group's zero standard deviation.",
    ),
    _TokenRule(
        ("token_ids", "versions"),
        "negative",
        lambda x: x < 0,
        "ids and versions count from 0; where there is none, take the token out of the mask or leave the list null.",
    ),
)
# By column of one value a row: which values are wrong, what that is called, and what to do.
_SCALARS: dict[str, tuple[Callable[[pa.Array], np.ndarray], str, str]] = {
    "sequence_id": (lambda ids: numbers(pc.binary_length(ids), 1) == 0, "empty", "name each response."),
    "prompt_length": (lambda n: numbers(n) < 0, "negative", "prompt_length counts from 0; null if it is not known."),
    "pack_index": (lambda n: numbers(n) < 0, "negative", "pack_index counts from 0; null if it is not known."),
}


_NOT_ROUNDING = 0.05  # nats over 0: more than a log-softmax in bfloat16 is off by
_UNIT_TOKENS = 4  # of fewer the unit cannot be told
_BASES = {"10": math.log(10), "2": math.log(2)}
_BASE_TOKENS = 16  # with a spread, of which the quotient of the two sides is one number
_BASE_SIZE = 0.1  # nats: below it a gap between engines is as large as the log-prob
_BASE_NEAR, _BASE_SPREAD = 0.04, 0.1  # of the median quotient to that of two bases, and of its quartiles to its median


@dataclass(frozen=True)
class Unit:
    """What stands under the name of log-probs: in a few words, in a sentence, and what to do."""

    kind: str
    text: str
    hint: str


def wrong_unit(values: np.ndarray) -> Unit | None:
    """Tell probabilities, logits and negated log-probs from log-probs by their signs; None if there is no doubt.

    Args:
        values: under the name of log-probs, of the tokens that count.
    """
    if not np.fmax.reduce(values, initial=-np.inf) > _NOT_ROUNDING:
        return None  # as a rule
    finite = values[np.isfinite(values)]
    over = int((finite > POSITIVE_TOLERANCE).sum())
    if len(finite) < _UNIT_TOKENS or not over or finite.max() <= _NOT_ROUNDING:
        return None
    of = f"{over} of {len(finite)} values are over 0"
    if 2 * over > len(finite) and finite.min() >= -POSITIVE_TOLERANCE:
        if finite.max() <= 1 + POSITIVE_TOLERANCE:
            text = f"these are probabilities ({of}, none over 1)"
            return Unit("probabilities, not log-probs", text, "write their natural logarithm: log p, not p.")
        return Unit(
            "log-probs with the sign turned, or logits",
            f"these are log-probs with the sign turned, or logits ({of}, up to {finite.max():.4g})",
            "write log p: negate what is -log p (a loss), and take the log-softmax of logits.",
        )
    if 10 * over > len(finite) and finite.max() > 1:
        return Unit(
            "logits, not log-probs",
            f"these are logits ({of}, up to {finite.max():.4g})",
            "take the log-softmax over the vocabulary, at the temperature of sampling.",
        )
    return None


def other_base(log_mu: np.ndarray, log_pi: np.ndarray) -> Unit | None:
    """Tell log-probs of base 10 or 2 on one side from the quotient of the sides; None if it is not plainly one number.

    A temperature on one side leaves the median quotient near 1 (0.8 to 1.2 at temperatures of 0.4 to 2.3, of random
    logits of any spread) and its quartiles apart, since it moves likely and unlikely tokens to different sides.
    """
    some = np.isfinite(log_mu) & np.isfinite(log_pi) & (np.maximum(log_mu, log_pi) < -_BASE_SIZE)
    if int(some.sum()) < _BASE_TOKENS:
        return None
    log_mu, log_pi = log_mu[some], log_pi[some]
    whole = float(log_pi.sum() / log_mu.sum())  # the same number, if it is one
    if not any(abs(whole * x - 1) < 2 * _BASE_SPREAD for factor in _BASES.values() for x in (factor, 1 / factor)):
        return None  # as a rule
    quotient, size = log_pi / log_mu, -log_mu
    if np.quantile(size, 0.9) < 5 * np.quantile(size, 0.1):
        return None
    low, middle, high = np.quantile(quotient, (0.25, 0.5, 0.75))
    if max(high / middle, middle / low) > 1 + _BASE_SPREAD:
        return None
    for base, factor in _BASES.items():
        for side, wanted in (("log_mu", factor), ("log_pi", 1 / factor)):
            if abs(middle / wanted - 1) <= _BASE_NEAR:
                return Unit(
                    f"{side}: of base {base}",
                    f"{side} is of base {base}: log_pi is {middle:.4g} times log_mu, token for token",
                    f"write natural logarithms: multiply {side} by {factor:.4f}.",
                )
    return None


def check_values(table: pa.Table, origin: Origin, report: Report) -> None:
    """Report every rule on values that a canonical table with aligned rows breaks."""
    names = set(table.schema.names)
    for name, (wrong, word, hint) in _SCALARS.items():
        if name in names:
            scalars = single(table, name)
            bad = wrong(scalars)
            if bad.any():
                row = int(np.argmax(bad))
                detail = f"{name} is {word}" + (f": {scalars[row]}" if word == "negative" else "")
                report(Violation(f"{name}: {word}", origin.place(row), detail, hint, int(bad.sum())))
    if "log_mu" not in names:
        return
    check_candidates(table, origin, report)
    lengths = lengths_of(single(table, "log_mu"))
    for column in COLUMNS:
        rules = [rule for rule in _TOKEN_RULES if column.name in rule.columns]
        if not rules or column.name not in names:
            continue
        lists = single(table, column.name)
        if lists.null_count == len(lists):
            continue  # nothing is said
        values = numbers(token_values(lists, lengths))
        ends = np.array([values.min(), values.max()] if values.size else [])  # NaN if there is one
        for rule in rules:
            # no value breaks it, even off the mask: each rule is about too large, too small or not finite
            if not ends.size or (np.isfinite(ends).all() and not rule.broken(ends).any()):
                continue
            live = _mask(table)[1] & np.repeat(valid(lists), lengths)
            bad = rule.broken(values) & live
            count = int(bad.sum())
            if count:
                token, stops = int(np.argmax(bad)), np.cumsum(lengths)
                row = int(np.searchsorted(stops, token, side="right"))
                index = token - int(stops[row] - lengths[row])
                detail, hint = f"{column.name}[{index}] = {values[token]:.6g} is {rule.word}", rule.hint
                unit = wrong_unit(values[live]) if rule.word == "positive" else None
                if unit is not None:
                    detail, hint = f"{detail}: {unit.text}", unit.hint
                name = f"{column.name}: {rule.word}"
                report(Violation(name, origin.place(row), detail, hint, count, "tokens"))


_MASS_TOLERANCE = 1e-2  # by which probabilities that were rounded may add up to more than 1
_ORDER_TOLERANCE = 1e-4  # nats by which a less likely token may stand before a likelier one: rounding


def check_candidates(table: pa.Table, origin: Origin, report: Report) -> None:
    """Report what cannot be true of the tokens that the sampler kept or thought likeliest, with row and place."""
    names = [c.name for c in COLUMNS if c.many and c.name in table.schema.names]
    names = [name for name in names if single(table, name).null_count < table.num_rows]
    if not names:
        return
    lengths, live = _mask(table)
    some = {name: Ragged.of(single(table, name), lengths) for name in names}
    rows = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths

    def say(rule: str, bad: np.ndarray, detail: Callable[[int], str], hint: str) -> None:
        bad = bad & live
        if bad.any():
            at = int(np.argmax(bad))
            place = f"{rule.partition(':')[0]}[{at - int(starts[rows[at]])}]"
            where = origin.place(int(rows[at]))
            report(Violation(rule, where, f"{place} {detail(at)}", hint, int(bad.sum()), "tokens"))

    for name in ("support_ids", "top_ids"):
        if name in some:
            ids = some[name]
            negative = ids.any(ids.values < 0)
            say(f"{name}: negative", negative, lambda at, x=ids: f"has the id {x.at(at).min()}", "ids count from 0.")
            twice = ids.any(ids.repeated())
            say(f"{name}: one id twice", twice, lambda at: "names an id twice", "each token of a place stands once.")
    if "support_ids" in some and "token_ids" in table.schema.names:
        tokens = single(table, "token_ids")
        sampled, there = numbers(token_values(tokens, lengths)), np.repeat(valid(tokens), lengths)
        kept = some["support_ids"]
        outside = kept.there & there & ~kept.any(kept.values == sampled[kept.owner])
        say(
            "support_ids: the sampled token is not among them",
            outside,
            lambda at: f"has {len(kept.at(at))} ids without {sampled[at]}, which was sampled there",
            "the sampler can only draw what it kept: are the lists of another place, or shifted by one?",
        )
    for name in ("top_log_mu", "top_log_pi"):
        if name not in some:
            continue
        one = some[name]
        if "top_ids" in some:
            differs = one.there & some["top_ids"].there & (one.counts != some["top_ids"].counts)
            say(
                f"{name}: not as many as top_ids",
                differs,
                lambda at, x=one: f"has {len(x.at(at))} values, top_ids has {len(some['top_ids'].at(at))}",
                "each id of a place has one log-prob under each policy.",
            )
        positive = one.any(~(one.values <= POSITIVE_TOLERANCE))
        say(
            f"{name}: no log-prob",
            positive,
            lambda at, x=one: f"has {x.at(at)[~(x.at(at) <= POSITIVE_TOLERANCE)][0]:.6g}",
            "a log-prob is a number of at most 0: the log-softmax, of which an impossible token has -inf.",
        )
        with np.errstate(over="ignore", invalid="ignore"):
            mass = np.bincount(one.owner, np.exp(one.values.astype(np.float64)), len(live))
        say(
            f"{name}: masses over 1",
            mass > 1 + _MASS_TOLERANCE,
            lambda at, x=mass: f"adds up to a mass of {x[at]:.6g}",
            "probabilities of one place add up to at most 1; are these logits, or of several places?",
        )
    if "top_log_mu" in some:
        one = some["top_log_mu"]
        rises = np.zeros(len(one.values), bool)
        with np.errstate(invalid="ignore"):
            rises[1:] = (np.diff(one.values) > _ORDER_TOLERANCE) & (np.diff(one.owner) == 0)
        say(
            "top_log_mu: not the likeliest first",
            one.any(rises),
            lambda at: "has a likelier token after a less likely one",
            "the sampler's likeliest tokens come first; one that was added because it was sampled is to be left out.",
        )


@dataclass(frozen=True, eq=False)
class Ragged:
    """Values of a column of many a token, end to end.

    Attributes:
        values: of all places.
        owner: place of each, counted over all rows.
        counts: how many each place has.
        there: which places have a list, be it empty.
    """

    values: np.ndarray
    owner: np.ndarray
    counts: np.ndarray
    there: np.ndarray

    @classmethod
    def of(cls, lists: pa.Array, lengths: np.ndarray) -> "Ragged":
        """Take a column apart; `lengths` are those of the responses."""
        inner = lists.flatten()  # of rows that are not null
        present = np.repeat(valid(lists), lengths)
        counts, there = np.zeros(len(present), np.int64), np.zeros(len(present), bool)
        counts[present], there[present] = lengths_of(inner), valid(inner)
        flat = inner.flatten()
        values = numbers(flat, -math.inf if pa.types.is_floating(flat.type) else FILL)  # JSON writes -inf as null
        return cls(values, np.repeat(np.arange(len(counts)), counts), counts, there)

    def any(self, which: np.ndarray) -> np.ndarray:
        """Tell in which places any of these values is."""
        found = np.zeros(len(self.counts), bool)
        found[self.owner[which]] = True
        return found

    def at(self, place: int) -> np.ndarray:
        """Give those of one place."""
        end = int(self.counts[: place + 1].sum())
        return self.values[end - int(self.counts[place]) : end]

    def repeated(self) -> np.ndarray:
        """Tell which values stand in their place a second time."""
        order = np.lexsort((self.values, self.owner))
        again = np.zeros(len(order), bool)
        same = (np.diff(self.values[order]) == 0) & (np.diff(self.owner[order]) == 0)
        again[order[1:][same]] = True
        return again

    def padded(self, fill: float) -> np.ndarray:
        """Lay them out as `[places, most]`."""
        width = int(self.counts.max()) if len(self.counts) else 0
        out = np.full((len(self.counts), width), fill, self.values.dtype)
        first = np.cumsum(self.counts) - self.counts
        out[self.owner, np.arange(len(self.values)) - first[self.owner]] = self.values
        return out


def replayed(table: pa.Table) -> pa.Table:
    """Take log_pi over the sampler's support: less `log_support_pi` at each token that has one.

    `entropy_pi`, which is of the whole vocabulary, is left out: tokens are not drawn from that; and the mass, which
    has been used.

    Raises:
        ValueError: the table has no such column.
    """
    lengths = lengths_of(single(table, "log_mu"))
    mass, log_pi = single(table, "log_support_pi"), single(table, "log_pi")
    less = np.nan_to_num(numbers(token_values(mass, lengths)), nan=0.0)
    values = numbers(token_values(log_pi, lengths)) - less
    offsets = arrow(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    null = arrow(~valid(log_pi), pa.bool_())
    flat = arrow(np.minimum(values, 0).astype(np.float32), pa.float32())
    there = pa.ListArray.from_arrays(offsets, flat, mask=null)
    found = table.set_column(table.schema.names.index("log_pi"), "log_pi", there)
    return found.drop_columns([name for name in ("entropy_pi", "log_support_pi") if name in found.schema.names])


def check_units(table: pa.Table, origin: Origin, report: Report) -> None:
    """Report that one side's log-probs are of another base than the other's, as their quotient tells."""
    if not {"log_mu", "log_pi"} <= set(table.schema.names):
        return
    lengths, mask = _mask(table)
    sides = (token_values(single(table, name), lengths).to_numpy(zero_copy_only=False) for name in ("log_mu", "log_pi"))
    log_mu, log_pi = (side[mask].astype(np.float64) for side in sides)
    wrong = other_base(log_mu, log_pi)
    if wrong is not None:
        place = origin.place(0) if table.num_rows else str(origin.path)
        report(Violation(wrong.kind, place, wrong.text, wrong.hint, len(log_mu), "tokens"))


def check_counts(table: pa.Table, origin: Origin, report: Report) -> None:
    """Report rows in which no token counts: harmless to a Batch, but nothing that a record is for."""
    if "log_mu" not in table.schema.names:
        return
    lengths, mask = _mask(table)
    counted = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[mask], minlength=len(lengths))
    _report_rows(
        counted == 0,
        origin,
        report,
        NO_TOKEN,
        lambda row: f"no token counts: {lengths[row]} tokens in the response, 0 in the mask",
        "leave out responses with nothing to weigh; the mask is true on response tokens that were sampled.",
    )


def _mask(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    lengths = lengths_of(single(table, "log_mu"))
    if "mask" not in table.schema.names:
        return lengths, np.ones(int(lengths.sum()), dtype=bool)
    return lengths, numbers(token_values(single(table, "mask"), lengths))


def stable_hashes(values: pa.Array, kind: str) -> np.ndarray:
    """One int64 a value, the same in every process and on every machine; 0 for null."""
    coded = values.dictionary_encode()
    person, unique = kind.encode(), list[int]()
    for text in coded.dictionary.to_pylist():
        digest = hashlib.blake2b(text.encode(), digest_size=8, person=person).digest()
        unique.append(int.from_bytes(digest, "little", signed=True))
    codes = numbers(coded.indices, len(unique))
    return np.array([*unique, 0], dtype=np.int64)[codes]


def batch_of(table: pa.Table) -> Batch:
    """The packed Batch of a canonical table, one sequence a row."""
    lengths = lengths_of(single(table, "log_mu"))
    cu_seqlens = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    def per_token(name: str) -> Tensor | None:
        if name not in table.schema.names:
            return None
        lists = single(table, name)
        if lists.null_count == len(lists):
            return None
        values = token_values(lists, lengths)
        if pa.types.is_boolean(values.type):
            return torch.from_numpy(numbers(values))
        return torch.from_dlpack(values)  # a view, and unlike from_numpy it takes Arrow's read-only buffers

    log_pi, log_mu = (token_values(single(table, name), lengths) for name in ("log_pi", "log_mu"))
    return Batch.packed(
        torch.from_dlpack(log_pi),
        torch.from_dlpack(log_mu),
        torch.from_numpy(cu_seqlens),
        per_token("mask"),
        advantage=per_token("advantage"),
        group=torch.from_numpy(groups_of(table)),
        turn=per_token("turns"),
        check=False,  # what is wrong with records is counted, with its place
    )


def groups_of(table: pa.Table) -> np.ndarray:
    """One int64 a row, equal for responses to one prompt in every file and process: the cluster they belong to."""
    ids = single(table, "sequence_id")
    if "prompt_id" not in table.schema.names:
        return stable_hashes(ids, "sequence")
    prompts = single(table, "prompt_id")
    groups = stable_hashes(prompts, "prompt")
    if prompts.null_count == 0:
        return groups
    return np.where(valid(prompts), groups, stable_hashes(ids, "sequence"))
