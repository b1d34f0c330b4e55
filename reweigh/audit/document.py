"""An audit as plain values for JSON: version 2 of a schema that programs can rely on."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from reweigh.audit.headline import headline
from reweigh.audit.lengths import length_columns
from reweigh.audit.outcomes import MEANINGS, numbers_of
from reweigh.audit.pictures import Density, Histogram, Tail, WorstSequence
from reweigh.audit.result import Audit, FileRead, TrialRow
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import Outcome
from reweigh.audit.where import KNOWN_BEFORE, Cut, Stratum
from reweigh.stats.intervals import Number
from reweigh.stats.summary import Summary
from reweigh.stats.sums import NUM_BINS
from reweigh.stats.verdict import Verdict

DOCUMENT_VERSION = 2
SLICE_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "token": ("mean_ratio", "kl_k3", "mean_abs", "tv"),
    "sequence": ("mean_ratio", "mean_abs", "tv", "ess_fraction"),
}
MAX_OUTSIDE = 0.005  # share of sequences that may lie beyond the bars
_NO_INTERVAL = "no interval: fewer than two prompts"
_TOO_LARGE = "beyond what a float64 holds"


def document(audit: Audit) -> dict[str, Any]:
    """The audit as JSON values; numbers that JSON has not got are null, with the reason beside them."""
    top = headline(audit)
    return {
        "reweigh_audit": DOCUMENT_VERSION,
        "summary": {"sentence": top.sentence, "todo": list(top.todo), "why": list(top.why), "use": top.use or None},
        "verdict": _verdict(audit.verdict),
        "diagnosis": None if audit.diagnosis is None else audit.diagnosis.to_dict(),
        "files": [_file(file) for file in audit.files],
        "notes": list(audit.notes),
        "left_out": {"not_finite": audit.levels["token"].dropped, "positive": audit.positive},
        "levels": {name: _level(summary) for name, summary in audit.levels.items()},
        "estimators": [_trial(trial) for trial in audit.trials],
        "estimator_meanings": dict(MEANINGS),
        "slices": {by: [_slice(row) for row in rows] for by, rows in audit.slices.items()},
        "where": {cut: _where(cut, rows) for cut, rows in audit.strata.items()},
        "histograms": {name: _histogram(name, x) for name, x in audit.histograms.items()},
        "density": _density(audit.density),
        "tails": {name: _tail(tail) for name, tail in audit.tails.items()},
        "worst": [_worst(one) for one in audit.worst],
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
    return _outcome(outcome) | {"numbers": {name: _number(x) for name, x in numbers_of(trial, outcome).items()}}


def _where(cut: Cut, rows: tuple[Stratum, ...]) -> dict[str, Any]:
    meanings = {name: x.meaning for name, x in rows[0].token.items()}
    return {"ratio_must_be_1": cut in KNOWN_BEFORE, "meanings": meanings, "rows": [_stratum(row) for row in rows]}


def _stratum(row: Stratum) -> dict[str, Any]:
    def plain(numbers: Mapping[str, Number]) -> dict[str, Any]:
        return {name: _number(x) for name, x in numbers.items()}

    return {
        "label": row.label,
        "start": row.start,
        "tokens": row.tokens,
        "sequences": row.sequences,
        "token": plain(row.token),
        "sequence": None if row.sequence is None else plain(row.sequence),
    }


def _histogram(name: str, histogram: Histogram) -> dict[str, Any]:
    n = histogram.n
    bins = 32 if name == "token" or n >= 1000 else 16 if n >= 200 else 8  # on each side of 0
    bars = histogram.linear(bins, 0.0 if name == "token" else MAX_OUTSIDE)
    used = np.flatnonzero(bars.counts)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (bins - 1, bins - 1)
    return {
        "n": n,
        "width": bars.width,
        "first": (first - bins + 1) * bars.width,
        "counts": bars.counts[first : last + 1].tolist(),
        "outside": bars.outside,
    }


def _density(density: Density) -> dict[str, Any]:
    return {
        "minus_log_mu": density.column_edges(),
        "log_ratio": density.row_edges(),
        "counts": density.counts.tolist(),
    }


def _tail(tail: Tail) -> dict[str, Any]:
    return {
        "n": tail.n,
        "khat": _finite(tail.khat),
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
