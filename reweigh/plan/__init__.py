"""Say what a mode and a threshold would do at a KL and a length, before a run or on its records."""

from reweigh.plan.model import ROOT, Band, Centred, Expected, LengthPart, MixedRatio, expect, length_band
from reweigh.plan.run import AtLength, ModeRow, Plan, plan, plan_records

__all__ = [
    "ROOT",
    "AtLength",
    "Band",
    "Centred",
    "Expected",
    "MixedRatio",
    "LengthPart",
    "Plan",
    "ModeRow",
    "expect",
    "length_band",
    "plan",
    "plan_records",
]
