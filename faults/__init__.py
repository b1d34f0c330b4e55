"""Commits a fault for real on a real language model, and gives the records that a run with it would leave."""

from faults.case import Case, Logged, clean, commit, logged, pair, run_table, world_of
from faults.catalogue import CLEAN, FAULTS, LEVELS, PAIRS, Clean, Fault, Level, find
from faults.engine import Job, Models, Sample, in_format, processed, sample
from faults.models import Decoder, Experts, Options, Shape, keep_bits
from faults.specs import EngineSpec, LogSpec, Specs, TrainerSpec
from faults.trainer import Row, Score, prefill, score, versions
from faults.worlds import RECIPES, Prompt, World, WorldName, decoder_of, moe_world, smollm2_world, tiny_world

__all__ = [
    # faults, and cases of them
    "FAULTS",
    "PAIRS",
    "LEVELS",
    "CLEAN",
    "Fault",
    "Level",
    "Clean",
    "Case",
    "find",
    "commit",
    "pair",
    "clean",
    # worlds to commit them in
    "World",
    "WorldName",
    "RECIPES",
    "Prompt",
    "world_of",
    "tiny_world",
    "moe_world",
    "smollm2_world",
    # the rig: specs, model, engine, log, trainer
    "Specs",
    "EngineSpec",
    "LogSpec",
    "TrainerSpec",
    "Shape",
    "Options",
    "Decoder",
    "Experts",
    "keep_bits",
    "decoder_of",
    "Job",
    "Sample",
    "Models",
    "in_format",
    "processed",
    "sample",
    "Logged",
    "logged",
    "Row",
    "Score",
    "prefill",
    "score",
    "versions",
    "run_table",
]
