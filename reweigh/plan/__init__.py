"""Say what a mode and a threshold would do at a KL and a length, before a run or on its records."""

from reweigh.plan.model import ROOT, Band, Centred, Expected, MixedRatio, Part, expect, length_band
from reweigh.plan.run import Advice, AtLength, Plan, Row, plan, plan_records

__all__ = [
    "ROOT",
    "Advice",
    "AtLength",
    "Band",
    "Centred",
    "Expected",
    "MixedRatio",
    "Part",
    "Plan",
    "Row",
    "expect",
    "length_band",
    "plan",
    "plan_records",
]
