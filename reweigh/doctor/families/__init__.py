"""Lists the families of causes, in the order in which they are tested: structure first, noise last."""

from reweigh.doctor.families.distribution import NORMALISATION, PROPER
from reweigh.doctor.families.noise import NOISE
from reweigh.doctor.families.place import PLACE, VERSIONS
from reweigh.doctor.families.records import STRUCTURAL
from reweigh.doctor.families.responses import RESPONSES
from reweigh.doctor.family import Family

FAMILIES: tuple[Family, ...] = (STRUCTURAL, NORMALISATION, PROPER, PLACE, VERSIONS, RESPONSES, NOISE)
