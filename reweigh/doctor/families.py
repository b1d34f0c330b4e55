"""The families of causes, in the order in which they are tested: structure first, noise last."""

from reweigh.doctor.family import Family
from reweigh.doctor.noise import NOISE
from reweigh.doctor.normalisation import NORMALISATION
from reweigh.doctor.places import PLACE
from reweigh.doctor.proper import PROPER
from reweigh.doctor.structural import STRUCTURAL
from reweigh.doctor.versions import VERSIONS

FAMILIES: tuple[Family, ...] = (STRUCTURAL, NORMALISATION, PROPER, PLACE, VERSIONS, NOISE)
