"""Any Arrow table that means records -> the canonical one: known columns, exact types, equal list lengths."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import difflib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reweigh.records.schema import BY_NAME, COLUMNS, Column
from reweigh.records.violation import Origin, Report, Violation

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
    return pa.concat_arrays(chunks) if chunks else pa.array([], table.schema.field(name).type)


def lengths_of(lists: pa.Array) -> np.ndarray:
    """Length of each list, 0 for a null one."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def token_values(lists: pa.Array, lengths: np.ndarray) -> pa.Array:
    """The values of a list column end to end, `lengths` of them a row, and none null.

    A float that is null becomes NaN, an integer -1, a mask true, each also where the whole list is null. If nothing is
    null this is a view of the column's own buffer.
    """
    # flatten() respects slices and skips what may lie under a null list
    flat = lists.flatten()
    if flat.null_count:
        flat = pc.fill_null(flat, _fill(flat.type))
    if lists.null_count == 0:
        return flat
    present = np.repeat(lists.is_valid().to_numpy(zero_copy_only=False), lengths)
    some = flat.to_numpy(zero_copy_only=False)
    values = np.full(len(present), _fill(flat.type), dtype=some.dtype)
    values[present] = some
    return pa.array(values, flat.type)


def _fill(value_type: pa.DataType) -> float | int | bool:
    if pa.types.is_floating(value_type):
        return float("nan")
    return True if pa.types.is_boolean(value_type) else FILL


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
        raw = single(table, column.name)
        if column.name == "advantage" and not _is_list(raw.type) and "log_mu" in arrays:
            raw = _spread(raw, arrays["log_mu"])
        cast = _cast(raw, column, origin, report)
        if cast is not None:
            arrays[column.name] = cast
    return pa.table(arrays)


def aligned(table: pa.Table, origin: Origin, required: Sequence[str], report: Report) -> np.ndarray:
    """Report rows whose lists do not line up; returns which rows are whole, as booleans.

    A row is whole if every required value is there, every list has log_mu's length, and no mask entry is null.
    """
    whole = np.ones(table.num_rows, dtype=bool)
    for name in required:
        if name in table.schema.names:
            null = single(table, name).is_null().to_numpy(zero_copy_only=False)
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
        differs = (lengths != reference) & lists.is_valid().to_numpy(zero_copy_only=False) & whole
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
    return pa.types.is_floating(raw) or pa.types.is_integer(raw)  # pandas holds integers with gaps as floats


def _cast(raw: pa.Array, column: Column, origin: Origin, report: Report) -> pa.Array | None:
    if raw.type == column.type:
        return raw
    rule, hint = f"{column.name}: wrong type", f"write {column.name} as {column.type}."
    if not _is_castable(raw.type, column.type):
        detail = f"{column.name} must be {column.type}, got {raw.type}"
        report(Violation(rule, origin.place(0) if len(raw) else str(origin.path), detail, hint, counted="batches"))
        return None
    try:
        return _cast_values(raw, column)
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
    # Rounding a float is what the cast is for; an integer that does not fit is an error.
    return raw.cast(column.type, safe=not pa.types.is_floating(column.value_type))


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
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), per_row.take(pa.array(row)), mask=null)
