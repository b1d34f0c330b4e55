"""Diagnoses runs of which only logged scalars were kept."""

from reweigh.doctor.metrics.examine import diagnose_metrics
from reweigh.doctor.metrics.signals import FRAMEWORKS

__all__ = ["FRAMEWORKS", "diagnose_metrics"]
