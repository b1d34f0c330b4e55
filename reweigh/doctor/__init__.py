"""Names the cause of a mismatch: from paired log-probs, or from a run's logged scalars alone."""

from reweigh.doctor.causes import CAUSES, CauseId
from reweigh.doctor.diagnosis import CannotTell, Diagnosis, Evidence, Finding, InputNote
from reweigh.doctor.run import doctor

__all__ = ["doctor", "Diagnosis", "Finding", "Evidence", "CannotTell", "InputNote", "CauseId", "CAUSES"]
