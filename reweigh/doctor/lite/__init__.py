"""The doctor for runs of which only metrics were kept."""

from reweigh.doctor.lite.diagnose import diagnose_metrics
from reweigh.doctor.lite.names import FRAMEWORKS

__all__ = ["FRAMEWORKS", "diagnose_metrics"]
