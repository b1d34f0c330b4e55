"""A check of our compositions against what frameworks' own functions returned."""

from reweigh.conformance.check import Checked, check, check_case, loss_of
from reweigh.conformance.recorded import Case, RecordedBatch, Recording, matrix, read_recording

__all__ = [
    "read_recording",
    "Recording",
    "RecordedBatch",
    "Case",
    "check",
    "check_case",
    "Checked",
    "loss_of",
    "matrix",
]
