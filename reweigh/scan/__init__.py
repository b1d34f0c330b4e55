"""One reading of the records for every command: a pass over files that adds up families of sums."""

from reweigh.scan.cuts import BYS, By
from reweigh.scan.engines import Engine, OnRay, Workers
from reweigh.scan.measure import Family, Job, Measured, measure
from reweigh.scan.run import FileRead, Known, Progress, Report, Scanned, look, scan
from reweigh.scan.tokens import Part, Tokens

__all__ = [
    "BYS",
    "By",
    "Engine",
    "Family",
    "FileRead",
    "Job",
    "Known",
    "Measured",
    "OnRay",
    "Part",
    "Progress",
    "Report",
    "Scanned",
    "Tokens",
    "Workers",
    "look",
    "measure",
    "scan",
]
