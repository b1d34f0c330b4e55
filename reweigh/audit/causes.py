"""Puts a diagnosis into sentences, in the order in which a reader needs them."""

import math

from reweigh.doctor.causes import ABOUT
from reweigh.doctor.diagnosis import NAMED, Diagnosis, Evidence, Finding
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import interval


def first_cause(diagnosis: Diagnosis | None) -> Finding | None:
    """The cause that the verdict names, if there is something to be said for it."""
    if diagnosis is None:
        return None
    return next((one for one in diagnosis.causes if one.id == diagnosis.verdict), None)


def cause_sentence(diagnosis: Diagnosis) -> str:
    """`likely cause: the engine logs before temperature`."""
    found = first_cause(diagnosis)
    if diagnosis.verdict == "none":
        return ABOUT["none"].title
    sure = found is None or found.confidence >= NAMED
    return f"{'likely' if sure else 'possible'} cause: {ABOUT[diagnosis.verdict].title}"


def evidence_value(one: Evidence) -> tuple[str, str]:
    """Value and interval as shown; `-` if it could not be had."""
    if not math.isfinite(one.value):
        return "-", ""
    return interval(Number(one.value, one.low, one.high))


def evidence_sentence(one: Evidence) -> str:
    """`mean_ratio 1.052 [1.041, 1.063]: mean token ratio, which must be 1`."""
    return f"{' '.join(x for x in (one.name, *evidence_value(one)) if x)}: {one.meaning}"
