"""Audit of records: how large the gap between sampler and trainer is, and what estimators would do about it."""

from reweigh.audit.on_ray import OnRay
from reweigh.audit.recommend import Headline, Recommendation
from reweigh.audit.result import Audit, FileRead
from reweigh.audit.run import Progress, Report, audit
from reweigh.audit.slices import By, SliceRow
from reweigh.audit.trial import Outcome, TrialRow, default_estimators
from reweigh.audit.workers import Workers

__all__ = [
    "Audit",
    "By",
    "FileRead",
    "Headline",
    "OnRay",
    "Outcome",
    "Progress",
    "Recommendation",
    "Report",
    "SliceRow",
    "TrialRow",
    "Workers",
    "audit",
    "default_estimators",
]
