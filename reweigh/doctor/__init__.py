"""Names the cause of a mismatch: from paired log-probs, or from a run's logged scalars alone."""

from reweigh.doctor.diagnosis import CAUSES, CannotTell, CauseId, Diagnosis, Evidence, Finding, InputNote
from reweigh.doctor.run import doctor

__all__ = ["doctor", "Diagnosis", "Finding", "Evidence", "CannotTell", "InputNote", "CauseId", "CAUSES"]
