"""Trainers' options in one vocabulary: a profile for each framework, words, and configurations read."""

from reweigh.rosetta.config import Nearest, Translated, nearest, parse_pairs, read_config, translate
from reweigh.rosetta.frameworks import PROFILES, profile_of
from reweigh.rosetta.plan import Plan, Reading, RefusedError, Situation, Tensors, run
from reweigh.rosetta.profile import Profile
from reweigh.rosetta.words import RATIOS, Meaning, all_words, code, example, formula, meanings

__all__ = [
    "PROFILES",
    "profile_of",
    "Profile",
    "translate",
    "Translated",
    "read_config",
    "parse_pairs",
    "Plan",
    "Reading",
    "RefusedError",
    "Situation",
    "Tensors",
    "run",
    "nearest",
    "Nearest",
    "formula",
    "code",
    "meanings",
    "Meaning",
    "all_words",
    "example",
    "RATIOS",
]
