"""The gate: bounds on the numbers of an audit, absolute and against a baseline, for continuous integration."""

from reweigh.gate.check import Check, Decision, Gate, decide, gate
from reweigh.gate.numbers import LevelNumbers, Run, read_baseline, read_run
from reweigh.gate.policy import Bound, Policy, draft, read_policy

__all__ = [
    "Bound",
    "Check",
    "LevelNumbers",
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
