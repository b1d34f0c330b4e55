"""Measure, explain and correct the gap between the policy that samples and the policy that trains.

Data -> levels and transforms -> estimators -> losses; and data -> statistics -> verdict.
"""

from reweigh.batch import Batch
from reweigh.batchwise import MeanAtMost, ParetoSmooth
from reweigh.caps import post_cap
from reweigh.distributed import all_reduce, log_normaliser
from reweigh.divergences import binary_kl, k1, k2, k3, log_ratio, prob_diff, signed_binary_kl
from reweigh.estimators import Estimator, Factor, Weights, for_advantage, self_normalised, weigh
from reweigh.intervals import bernoulli_kl, clustered, empirical_bernstein
from reweigh.layout import Layout, Packed, Padded
from reweigh.levels import GEOMETRIC, LEVELS, PREFIX, SEQUENCE, SUFFIX, TOKEN, TURN, WORST, Level
from reweigh.losses import (
    cispo,
    gspo,
    num_kept,
    num_sequences,
    num_tokens,
    per_sequence_mean,
    policy_gradient,
    ppo_clip,
)
from reweigh.named import (
    NAMED,
    cispo_cap,
    dppo_kl,
    dppo_tv,
    geo_is,
    geo_mis,
    geo_rs,
    group_snis,
    k1_rs,
    k3_rs,
    m2po,
    naive,
    opsm,
    prefix_is,
    prefix_tis,
    psis,
    seq_is,
    seq_mis,
    seq_tis,
    shrunk_seq_is,
    snis,
    suffix_is,
    token_is,
    token_mis,
    token_tis,
    trm,
    turn_tis,
    vespo,
)
from reweigh.stats import RatioStats
from reweigh.summary import Number, Summary, excess, summarise
from reweigh.testing import check_estimator
from reweigh.transforms import (
    AtMost,
    Clip,
    Identity,
    Power,
    Reject,
    Screen,
    Shrink,
    SoftKernel,
    Transform,
    Truncate,
)
from reweigh.verdict import Finding, Verdict, judge

__version__ = "0.1.0"

# fmt: off
__all__ = [
    # data
    "Batch", "Layout", "Packed", "Padded",
    # per-token statistics
    "binary_kl", "k1", "k2", "k3", "log_ratio", "prob_diff", "signed_binary_kl",
    # levels and transforms
    "GEOMETRIC", "LEVELS", "PREFIX", "SEQUENCE", "SUFFIX", "TOKEN", "TURN", "WORST", "Level",
    "AtMost", "Clip", "Identity", "MeanAtMost", "ParetoSmooth", "Power", "Reject", "Screen", "Shrink", "SoftKernel",
    "Transform", "Truncate",
    # estimators, and the field's names for them
    "Estimator", "Factor", "Weights", "check_estimator", "for_advantage", "self_normalised", "weigh",
    "NAMED", "geo_is", "group_snis", "naive", "prefix_is", "seq_is", "snis", "suffix_is", "token_is",
    "cispo_cap", "post_cap", "prefix_tis", "seq_tis", "token_tis", "turn_tis",
    "dppo_kl", "dppo_tv", "geo_mis", "geo_rs", "k1_rs", "k3_rs", "m2po", "opsm", "seq_mis", "token_mis", "trm",
    "psis", "shrunk_seq_is", "vespo",
    # losses and their denominators
    "cispo", "gspo", "policy_gradient", "ppo_clip",
    "num_kept", "num_sequences", "num_tokens", "per_sequence_mean",
    # statistics and the verdict
    "Number", "RatioStats", "Summary", "all_reduce", "excess", "log_normaliser", "summarise",
    "bernoulli_kl", "clustered", "empirical_bernstein", "Finding", "Verdict", "judge",
]
# fmt: on
