"""Audit of records: how large the gap between sampler and trainer is, and what estimators would do about it."""

from reweigh.audit.result import Audit, FileRead, TrialRow
from reweigh.audit.run import Progress, Report, audit
from reweigh.audit.slices import By, SliceRow
from reweigh.audit.trial import Outcome, default_estimators

__all__ = [
    "Audit",
    "By",
    "FileRead",
    "Outcome",
    "Progress",
    "Report",
    "SliceRow",
    "TrialRow",
    "audit",
    "default_estimators",
]
