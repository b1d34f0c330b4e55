"""An audit as plain values for JSON: version 2 of a schema that programs can rely on."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reweigh.audit.pictures import Tail, WorstSequence
from reweigh.audit.recommend import Recommendation
from reweigh.audit.result import Audit
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import MEANINGS, Outcome, TrialRow
from reweigh.audit.where import KNOWN_BEFORE, Stratum
from reweigh.report.words import length_columns
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import plain
from reweigh.stats.summary import Summary
from reweigh.stats.sums import NUM_BINS

DOCUMENT_VERSION = 2
SLICE_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "token": ("mean_ratio", "kl_k3", "mean_abs", "tv"),
    "sequence": ("mean_ratio", "mean_abs", "tv", "ess_fraction"),
}
_NO_INTERVAL = "no interval: fewer than two prompts"
_TOO_LARGE = "beyond what a float64 holds"


def document_of(audit: Audit) -> dict[str, Any]:
    """Turn an audit into JSON values; numbers that JSON has not got are null, with the reason beside them."""
    top, verdict = audit.headline, audit.verdict
    return {
        "reweigh_audit": DOCUMENT_VERSION,
        "summary": {"sentence": top.sentence, "todo": list(top.todo), "why": list(top.why), "use": top.use or None},
        "verdict": verdict.to_dict(),
        "normal": audit.place.to_dict(),
        "diagnosis": None if audit.diagnosis is None else replace(audit.diagnosis, advice=verdict).to_dict(),
        "files": [
            {"path": str(file.path), "rows": file.rows, "tokens": file.tokens, "run": file.info.to_dict()}
            for file in audit.files
        ],
        "notes": list(audit.notes),
        "left_out": {"not_finite": audit.levels["token"].dropped, "positive": audit.positive},
        "levels": {name: _level(summary) for name, summary in audit.levels.items()},
        "estimators": [_trial(trial) for trial in audit.trials],
        "estimator_meanings": dict(MEANINGS),
        "slices": {by: [_slice(row) for row in rows] for by, rows in audit.slices.items()},
        "where": {
            cut: {
                "ratio_must_be_1": cut in KNOWN_BEFORE,
                "meanings": {name: x.meaning for name, x in rows[0].token.items()},
                "rows": [_stratum(row) for row in rows],
            }
            for cut, rows in audit.strata.items()
        },
        "histograms": {name: x.drawn(name) for name, x in audit.histograms.items()},
        "density": {
            "minus_log_mu": audit.density.column_edges(),
            "log_ratio": audit.density.row_edges(),
            "counts": audit.density.counts.tolist(),
        },
        "tails": {name: _tail(tail) for name, tail in audit.tails.items()},
        "worst": [_worst(one) for one in audit.worst],
    }


def _level(summary: Summary) -> dict[str, Any]:
    return {
        "n": summary.n,
        "sequences": summary.sequences,
        "tokens": summary.tokens,
        "refused": summary.refusal,
        "numbers": {name: _number(x) | {"meaning": x.meaning} for name, x in summary.numbers.items()},
    }


def _number(number: Number) -> dict[str, Any]:
    value, low, high, sample = (plain(x) for x in (number.value, number.low, number.high, number.sample))
    refused = number.refused
    if number.value is not None and value is None:
        refused = _TOO_LARGE
    elif low is None and number.low is not None:
        refused = _NO_INTERVAL
    elif number.value is None and not refused:
        refused = "too few units, or all alike"
    return {"value": value, "low": low, "high": high, "sample": sample, "unit": number.unit, "refused": refused}


def _numbers(numbers: Mapping[str, Number]) -> dict[str, Any]:
    return {name: _number(x) for name, x in numbers.items()}


def _trial(trial: TrialRow) -> dict[str, Any]:
    lengths = [
        {"label": column.label, "low": column.low, "high": column.high} | _part(trial, column.of(trial))
        for column in length_columns([trial], NUM_BINS)
    ]
    signs = [{"sign": sign} | _part(trial, outcome) for sign, outcome in trial.by_sign.items() if outcome.units]
    return {
        "name": trial.name,
        "unit": trial.unit,
        "caps": trial.caps,
        "raw_effective_share": _number(trial.raw) | {"meaning": trial.raw.meaning},
        "all": _part(trial, trial.all),
        "by_length": lengths,
        "by_advantage": signs,
    }


def _part(trial: TrialRow, outcome: Outcome) -> dict[str, Any]:
    return {
        "units": outcome.units,
        "kept": outcome.kept,
        "bounded": outcome.bounded,
        "tokens": outcome.tokens,
        "kept_tokens": outcome.kept_tokens,
        "mean_weight": _exp(outcome.log_mean_weight),
        "log_mean_weight": plain(outcome.log_mean_weight),
        "largest_weight": _exp(outcome.log_largest),
        "log_largest_weight": plain(outcome.log_largest),
        "numbers": _numbers({name: trial.number(outcome, name) for name in MEANINGS}),
    }


def _stratum(row: Stratum) -> dict[str, Any]:
    return {
        "label": row.label,
        "start": row.start,
        "tokens": row.tokens,
        "sequences": row.sequences,
        "token": _numbers(row.token),
        "sequence": None if row.sequence is None else _numbers(row.sequence),
    }


def _tail(tail: Tail) -> dict[str, Any]:
    return {
        "n": tail.n,
        "khat": plain(tail.khat),
        "limit": tail.limit,
        "log_ratios": [float(f"{x:.6g}") for x in tail.log_ratios],
        "fitted": [float(f"{x:.6g}") for x in tail.fitted],
    }


def _worst(one: WorstSequence) -> dict[str, Any]:
    return {
        "sequence_id": one.name,
        "log_ratio": one.log_ratio,
        "tokens": one.tokens,
        "length": one.length,
        "first": one.first,
        "log_ratios": [_rounded(x) for x in one.log_ratios.tolist()],
        "log_mu": [_rounded(x) for x in one.log_mu.tolist()],
        "mask": one.mask.tolist(),
        "token_ids": None if one.token_ids is None else one.token_ids.tolist(),
        "text": one.text,
    }


def _rounded(x: float) -> float | None:
    return float(f"{x:.4g}") if math.isfinite(x) else None


def recommendation(found: Recommendation) -> dict[str, Any]:
    """Say which estimator to use and why, as JSON values."""
    return {
        "use": found.use,
        "reason": found.reason,
        "best_of_those_tried": found.best,
        "responses_of_a_step": found.n,
        "ranked": [
            {
                "name": x.name,
                "why_not": x.why_not or None,
                "worst_bias": _with_ends(x.limits.bias),
                "worst_second_moment": _with_ends(x.limits.second),
                "worst_error": _with_ends(x.error),
            }
            for x in found.ranked
        ],
        "refused": [{"name": name, "reason": reason} for name, reason in found.refused.items()],
        "guaranteed_progress": found.progress,
    }


def _with_ends(x: Number) -> dict[str, Any]:
    return {"value": plain(x.value), "low": plain(x.low), "high": plain(x.high), "unit": x.unit}


def _slice(row: SliceRow) -> dict[str, Any]:
    found: dict[str, Any] = {"label": row.label}
    for level, summary in (("token", row.token), ("sequence", row.sequence)):
        found[level] = None
        if summary is not None:
            numbers = {name: _number(summary[name]) for name in SLICE_NUMBERS[level]}
            found[level] = {"n": summary.n, "refused": summary.refusal, "numbers": numbers}
    return found


def _exp(log_x: float) -> float | None:
    """None where it overflows; its logarithm stands beside it."""
    return math.exp(log_x) if log_x < 709 else None
