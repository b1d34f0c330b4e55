"""The gate: bounds on the numbers of an audit, absolute and against a baseline, for continuous integration."""

from reweigh.gate.check import gate
from reweigh.gate.decide import Decision, decide
from reweigh.gate.draft import draft
from reweigh.gate.policy import Bound, Policy
from reweigh.gate.policy_file import read_policy
from reweigh.gate.result import Check, Gate
from reweigh.gate.run import Cut, Run, read_baseline, read_run

__all__ = [
    "Bound",
    "Check",
    "Cut",
    "Decision",
    "Gate",
    "Policy",
    "Run",
    "decide",
    "draft",
    "gate",
    "read_baseline",
    "read_policy",
    "read_run",
]
