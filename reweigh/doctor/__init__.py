"""Names the cause of a mismatch: from paired log-probs, or from a run's logged scalars alone."""

from reweigh.doctor.causes import CAUSES, CauseId
from reweigh.doctor.diagnose import answer, doctor, question
from reweigh.doctor.diagnosis import CannotTell, Diagnosis, Evidence, Finding, InputNote

__all__ = [
    "CAUSES",
    "CannotTell",
    "CauseId",
    "Diagnosis",
    "Evidence",
    "Finding",
    "InputNote",
    "answer",
    "doctor",
    "question",
]
