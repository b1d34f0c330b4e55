"""The rules on values: log-probs that can be log-probs, token ids that can be ids, rows that count something."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reweigh.batch_rules import POSITIVE_TOLERANCE
from reweigh.records.schema import COLUMNS
from reweigh.records.table import lengths_of, single, token_values
from reweigh.records.violation import Origin, Report, Violation


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
        ("log_mu", "log_pi", "log_pi_repeat", "log_mu_prefill"),
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
_SCALARS = ("sequence_id", "prompt_length", "pack_index")


def check_values(table: pa.Table, origin: Origin, report: Report) -> None:
    """Report every rule on values that a canonical table with aligned rows breaks."""
    names = set(table.schema.names)
    for name in _SCALARS:
        if name in names:
            _check_scalar(single(table, name), name, origin, report)
    if "log_mu" not in names:
        return
    lengths = lengths_of(single(table, "log_mu"))
    for column in COLUMNS:
        rules = [rule for rule in _TOKEN_RULES if column.name in rule.columns]
        if not rules or column.name not in names:
            continue
        lists = single(table, column.name)
        values = token_values(lists, lengths).to_numpy(zero_copy_only=False)
        for rule in rules:
            if _clean(values, rule):
                continue
            bad = rule.broken(values)
            bad &= _mask(table)[1] & np.repeat(lists.is_valid().to_numpy(zero_copy_only=False), lengths)
            count = int(bad.sum())
            if count:
                token, ends = int(np.argmax(bad)), np.cumsum(lengths)
                row = int(np.searchsorted(ends, token, side="right"))
                index = token - int(ends[row] - lengths[row])
                detail = f"{column.name}[{index}] = {values[token]:.6g} is {rule.word}"
                name = f"{column.name}: {rule.word}"
                report(Violation(name, origin.place(row), detail, rule.hint, count, "tokens"))


def _clean(values: np.ndarray, rule: _TokenRule) -> bool:
    """Whether no value breaks a rule, even off the mask: each is about too large, too small or not finite."""
    if values.size == 0:
        return True
    ends = np.array([values.min(), values.max()])  # NaN if there is one
    return bool(np.isfinite(ends).all() and not rule.broken(ends).any())


def check_counts(table: pa.Table, origin: Origin, report: Report) -> None:
    """Report rows in which no token counts: harmless to a Batch, but nothing that a record is for."""
    if "log_mu" not in table.schema.names:
        return
    lengths, mask = _mask(table)
    counted = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[mask], minlength=len(lengths))
    empty = counted == 0
    if empty.any():
        row = int(np.argmax(empty))
        detail = f"no token counts: {lengths[row]} tokens in the response, 0 in the mask"
        hint = "leave out responses with nothing to weigh; the mask is true on response tokens that were sampled."
        report(Violation("mask: no token counts", origin.place(row), detail, hint, int(empty.sum())))


def _mask(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    lengths = lengths_of(single(table, "log_mu"))
    if "mask" not in table.schema.names:
        return lengths, np.ones(int(lengths.sum()), dtype=bool)
    return lengths, token_values(single(table, "mask"), lengths).to_numpy(zero_copy_only=False)


def _check_scalar(values: pa.Array, name: str, origin: Origin, report: Report) -> None:
    is_id = name == "sequence_id"
    wrong = pc.equal(values, "") if is_id else pc.less(values, 0)
    bad = pc.fill_null(wrong, False).to_numpy(zero_copy_only=False)
    if bad.any():
        row = int(np.argmax(bad))
        word = "empty" if is_id else "negative"
        detail = f"{name} is {word}" + ("" if is_id else f": {values[row]}")
        hint = "name each response." if is_id else f"{name} counts from 0; null if it is not known."
        report(Violation(f"{name}: {word}", origin.place(row), detail, hint, int(bad.sum())))
