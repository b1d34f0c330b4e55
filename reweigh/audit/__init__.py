"""Audit of records: how large the gap between sampler and trainer is, and what estimators would do about it."""

from reweigh.audit.recommend import Headline, Recommendation
from reweigh.audit.result import Audit
from reweigh.audit.run import answer, audit, question
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import Outcome, TrialRow, default_estimators
from reweigh.scan import By, FileRead, OnRay, Progress, Report, Workers

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
    "answer",
    "audit",
    "default_estimators",
    "question",
]
