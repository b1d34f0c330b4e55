"""An audit as plain values for JSON: version 1 of a schema that programs can rely on."""

import math
from collections.abc import Mapping
from typing import Any

from reweigh.audit.lengths import length_columns
from reweigh.audit.result import Audit, FileRead, TrialRow
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import Outcome
from reweigh.summary import Number, Summary
from reweigh.sums import NUM_BINS
from reweigh.verdict import Verdict

DOCUMENT_VERSION = 1
SLICE_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "token": ("mean_ratio", "kl_k3", "mean_abs", "tv"),
    "sequence": ("mean_ratio", "mean_abs", "tv", "ess_fraction"),
}
_NO_INTERVAL = "no interval: fewer than two prompts"
_TOO_LARGE = "beyond what a float64 holds"


def document(audit: Audit) -> dict[str, Any]:
    """The audit as JSON values; numbers that JSON has not got are null, with the reason beside them."""
    return {
        "reweigh_audit": DOCUMENT_VERSION,
        "verdict": _verdict(audit.verdict),
        "files": [_file(file) for file in audit.files],
        "notes": list(audit.notes),
        "left_out": {"not_finite": audit.levels["token"].dropped, "positive": audit.positive},
        "levels": {name: _level(summary) for name, summary in audit.levels.items()},
        "estimators": [_trial(trial) for trial in audit.trials],
        "slices": {by: [_slice(row) for row in rows] for by, rows in audit.slices.items()},
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    findings = [{"severity": f.severity, "reason": f.reason, "hint": f.hint} for f in verdict.findings]
    return {"level": verdict.level, "reason": verdict.reason, "hint": verdict.hint, "findings": findings}


def _file(file: FileRead) -> dict[str, Any]:
    return {"path": str(file.path), "rows": file.rows, "tokens": file.tokens, "run": file.info.to_dict()}


def _level(summary: Summary) -> dict[str, Any]:
    return {
        "n": summary.n,
        "sequences": summary.sequences,
        "tokens": summary.tokens,
        "refused": summary.refusal,
        "numbers": {name: _number(x) | {"meaning": x.meaning} for name, x in summary.numbers.items()},
    }


def _number(number: Number) -> dict[str, Any]:
    value, low, high, sample = (_finite(x) for x in (number.value, number.low, number.high, number.sample))
    refused = number.refused
    if number.value is not None and value is None:
        refused = _TOO_LARGE
    elif low is None and number.low is not None:
        refused = _NO_INTERVAL
    elif number.value is None and not refused:
        refused = "too few units, or all alike"
    return {"value": value, "low": low, "high": high, "sample": sample, "unit": number.unit, "refused": refused}


def _trial(trial: TrialRow) -> dict[str, Any]:
    lengths = [
        {"low": column.low, "high": column.high} | _outcome(column.of(trial))
        for column in length_columns([trial], NUM_BINS)
    ]
    return {"name": trial.name, "unit": trial.unit, "all": _outcome(trial.all), "by_length": lengths}


def _outcome(x: Outcome) -> dict[str, Any]:
    return {
        "units": x.units,
        "kept": x.kept,
        "bounded": x.bounded,
        "tokens": x.tokens,
        "kept_tokens": x.kept_tokens,
        "mean_weight": _exp(x.log_mean_weight),
        "log_mean_weight": _finite(x.log_mean_weight),
        "largest_weight": _exp(x.log_largest),
        "log_largest_weight": _finite(x.log_largest),
    }


def _slice(row: SliceRow) -> dict[str, Any]:
    found: dict[str, Any] = {"label": row.label}
    for level, summary in (("token", row.token), ("sequence", row.sequence)):
        found[level] = None
        if summary is not None:
            numbers = {name: _number(summary[name]) for name in SLICE_NUMBERS[level]}
            found[level] = {"n": summary.n, "refused": summary.refusal, "numbers": numbers}
    return found


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def _exp(log_x: float) -> float | None:
    """None where it overflows; its logarithm stands beside it."""
    return math.exp(log_x) if log_x < 709 else None
