"""Turns evidence into a confidence for each cause: a logistic regression a cause over named numbers, fitted on faults
that were really committed in worlds of many kinds.

`confidence.json` holds the weights; `benchmarks/doctor.py fit` writes it, and `benchmarks/doctor.py judge` measures it
on worlds that it was not fitted on. Every number that goes in is one that a diagnosis can print.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from reweigh.doctor.causes import CauseId
from reweigh.doctor.cells import Estimate, Keyed, ratio
from reweigh.doctor.diagnosis import CannotTell, Evidence, Suspicion, adjusted, confidence
from reweigh.doctor.families.distribution import BACKWARD, BOUNDED, FORWARD, GAP, SQUARES, UP, N
from reweigh.doctor.families.noise import size_of
from reweigh.doctor.families.place import sizes_by_step
from reweigh.doctor.families.responses import profile_of
from reweigh.doctor.family import Case

_LIMIT = 4.0  # of every number that goes in, either way: one that is far outside says no more than one that is outside

# Ratios, whose logs go in.
_RATIOS = (
    *("early_over_late", "later_over_first", "older_over_newer", "late_over_early", "after_change", "reused_over_new"),
)
# Numbers of about 1 and below, with what they are multiplied by.
_SCALES: Mapping[str, float] = {
    "trend_in_response": 8.0,
    "trend_in_context": 4.0,
    "neighbours": 5.0,
    "explained_by_content": 2.0,
    "slope": 3.0,
    "repeated_less_new": 10.0,
    "one_sided": 2.0,
    "certain_to_mu_only": 20.0,
    "likely_instead": 5.0,
    "likely_instead_back": 5.0,
    "share_over_1_nat": 2.0,
    "own_noise": 2.0,
    "decode_less_prefill": 2.0,
    "foreign_share": 50.0,
    "responses": 3.0,
    "turns_without_a_break": 3.0,
    "ahead_of_sampler": 5.0,
    "surprise": 3.0,
    "surprise_later": 2.0,
    "placeholder_share": 50.0,
}
# Sizes over several decades, whose decimal logs go in, less what is usual.
_SIZES: Mapping[str, float] = {
    "grown": -1.5,
    "own_rms": -1.5,
    "decode_rms": -1.5,
    "decode_over_trainer": 0.0,
    "over_own_noise": 0.2,
    "far_beyond": -3.5,
    "kurtosis": 1.0,
    "surprise_room": -1.0,
}


def features(case: Case, said: Sequence[Suspicion | CannotTell]) -> dict[str, float]:
    """Returns the numbers that the regressions read; one that cannot be had is missing.

    Args:
        case: the sums.
        said: what the families' tests concluded from them.
    """
    found: dict[str, float] = {}
    evidence: dict[str, Evidence] = {}
    suspicions = [x for x in said if isinstance(x, Suspicion)]
    for one in suspicions:
        for e in one.evidence:
            if math.isfinite(e.value):
                evidence.setdefault(e.name if e.name != "responses" else f"responses of {one.id}", e)
    for name, e in evidence.items():
        stem = "responses" if name.startswith("responses of") else name
        if name in _RATIOS:
            if e.value > 0:
                found[name] = 2 * math.log(e.value)
                found[f"{name}, sure"] = _sure(math.log(e.value), _error(e) / e.value)
        elif stem in _SCALES:
            found[name] = _SCALES[stem] * e.value
            if e.low is not None:
                found[f"{name}, sure"] = _sure(e.value, _error(e))
        elif name in _SIZES:
            found[name] = math.log10(max(e.value, 1e-9)) - _SIZES[name]
    # Of each cause: how sure its own test is, were it the only one.
    best: dict[CauseId, float] = {}
    for one, rate in zip(suspicions, adjusted([x.p_value for x in suspicions]), strict=True):
        best[one.id] = max(best.get(one.id, 0.0), confidence(rate, one.effect))
        if one.share is not None and f"share of {one.id}" not in found:
            found[f"share of {one.id}"] = 2 * one.share
    found.update({f"test of {cause}": 4 * value - 2 for cause, value in best.items()})
    found.update(_means(case))
    found.update(_sizes(case))
    profile = profile_of(case)
    found["step along responses"] = 2 * math.log(profile.times) if profile.kind == "step" else 0.0
    for name, sums in (("entropies", "tail"), ("ids", "seen"), ("packs", "pack")):
        known = sums in case.sums and (name != "entropies" or case.cells("tail").total[:, 0].sum() > 0)
        found[f"has {name}"] = float(known)
    for name in ("prefill", "repeat", "context"):
        found[f"has {name}"] = float(name in case.sums)
    found.update(_lags(case))
    return {name: x for name, x in found.items() if math.isfinite(x)}


def _error(e: Evidence) -> float:
    return math.inf if e.low is None or e.high is None else max((e.high - e.low) / 4, 1e-12)


def _sure(value: float, se: float) -> float:
    return 0.0 if not math.isfinite(se) else 2 * math.tanh(value / se / 5) if se > 0 else 0.0


def _means(case: Case) -> dict[str, float]:
    """Returns what the mean ratios are beside the gap's own size."""
    m = case.identity
    total = m.sum(0)
    if total[N] == 0 or total[SQUARES] <= 0:
        return {}
    half = 0.5 * total[SQUARES] / total[N]
    found: dict[str, float] = {}
    names = (("mean ratio", FORWARD), ("inverse", BACKWARD), ("log ratio", GAP), ("bounded", BOUNDED))
    for name, column in names:
        x: Estimate = ratio(m[:, column], m[:, N])
        found[name] = math.copysign(math.log1p(abs(x.value) / half), x.value)
        found[f"{name}, sure"] = _sure(x.value, x.se)
    found["up"] = 4 * float(total[UP] / total[SQUARES]) - 2
    return found


def _lags(case: Case) -> dict[str, float]:
    keyed = case.sums.get("lag")
    if not isinstance(keyed, Keyed):
        return {}
    lags = {lag for _, lag in keyed.data}
    return {"lags known": float(max(lags, default=-1) >= 0), "lags above 0": float(max(lags, default=-1) > 0)}


def limited(x: float) -> float:
    """Returns a number as the regressions take it."""
    return min(max(x, -_LIMIT), _LIMIT)


def _sizes(case: Case) -> dict[str, float]:
    """Returns sizes over decades, and how they move along the run."""
    m = case.identity.sum(0)
    found = {"tokens": math.log10(max(case.tokens, 1.0)) - 4}
    if m[N] == 0:
        return found
    middle, ninth = size_of(case), size_of(case, 0.9)
    found["mean square"] = 0.5 * math.log10(max(m[SQUARES] / m[N], 1e-16)) + 1.5
    found["size"] = math.log10(max(middle, 1e-8)) + 1.5
    found["ninth decile"] = math.log10(max(ninth, 1e-8)) + 1.0
    found["is there a gap"] = 2.0 if middle > 1e-5 else -2.0
    if m[SQUARES] > 0:
        found["not of the size"] = 0.5 * math.log10(max(m[SQUARES] / m[N], 1e-16) / max(ninth, 1e-8) ** 2)
    steps = sizes_by_step(case)
    if len(steps) >= 3:
        first, last, least, most = steps[0], steps[-1], steps.min(), steps.max()
        found["first step"] = math.log10(max(first, 1e-8)) + 2
        found["last over first"] = math.log10(max(last, 1e-8) / max(first, 1e-8))
        found["most over least"] = math.log10(max(most, 1e-8) / max(least, 1e-8)) - 0.5
    return found


@cache
def _weights() -> tuple[tuple[str, ...], dict[CauseId, np.ndarray]]:
    data = json.loads(Path(__file__).with_name("confidence.json").read_text(encoding="utf-8"))
    return tuple(data["features"]), {cause: np.asarray(row) for cause, row in data["weights"].items()}


def confidences(found: Mapping[str, float]) -> dict[CauseId, float]:
    """Returns `1 / (1 + exp(-(w0 + sum w x)))` of each cause, x the numbers of `features`, 0 where one is missing."""
    names, weights = _weights()
    x = np.array([1.0, *(limited(found.get(name, 0.0)) for name in names)])
    return {cause: float(1 / (1 + np.exp(-min(max(float(w @ x), -30), 30)))) for cause, w in weights.items()}
