"""vime, the fork of slime that samples with vLLM: slime's options, whose sampler's log-probs are another engine's."""

from reweigh.rosetta.frameworks.slime import EQUALS, compose, helper_fails, mean_of_rows
from reweigh.rosetta.profile import read_profile

VIME = read_profile("vime", compose, quirks=(mean_of_rows, helper_fails), equals=EQUALS)
