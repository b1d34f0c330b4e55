"""Exact values computed elsewhere, recomputed here quantity by quantity."""

from reweigh.lab.golden.check import GoldenCheck, check_golden
from reweigh.lab.golden.compare import Tally

__all__ = ["GoldenCheck", "Tally", "check_golden"]
