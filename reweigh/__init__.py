"""Measure, explain and correct the gap between the policy that samples and the policy that trains.

Data -> levels and transforms -> estimators -> losses; and data -> statistics -> verdict.
"""

from reweigh.batch import Batch, Layout, Packed, Padded
from reweigh.caps import post_cap
from reweigh.distributed import all_reduce, log_normaliser
from reweigh.divergences import binary_kl, k1, k2, k3, log_ratio, prob_diff, signed_binary_kl
from reweigh.estimators import Estimator, Factor, Weights, for_advantage, self_normalised, weigh
from reweigh.intervals import bernoulli_kl, clustered, empirical_bernstein
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
    MeanAtMost,
    ParetoSmooth,
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

__all__ = [
    # data
    *("Batch", "Layout", "Padded", "Packed"),
    # per-token statistics
    *("log_ratio", "k1", "k2", "k3", "prob_diff", "binary_kl", "signed_binary_kl"),
    # levels and transforms
    *("Level", "LEVELS", "TOKEN", "PREFIX", "SUFFIX", "TURN", "SEQUENCE", "GEOMETRIC", "WORST"),
    *("Transform", "Identity", "Clip", "Truncate", "Reject", "Screen", "AtMost", "MeanAtMost", "Shrink", "Power"),
    *("SoftKernel", "ParetoSmooth"),
    # estimators
    *("Estimator", "Factor", "Weights", "weigh", "self_normalised", "for_advantage", "check_estimator"),
    *("NAMED", "naive", "seq_is", "snis", "group_snis", "token_is", "prefix_is", "suffix_is", "geo_is"),
    *("token_tis", "prefix_tis", "turn_tis", "seq_tis", "cispo_cap", "post_cap"),
    *("seq_mis", "token_mis", "geo_rs", "geo_mis", "k1_rs", "k3_rs", "trm", "opsm", "dppo_tv", "dppo_kl", "m2po"),
    *("psis", "shrunk_seq_is", "vespo"),
    # losses and their denominators
    *("policy_gradient", "ppo_clip", "cispo", "gspo"),
    *("num_tokens", "num_sequences", "num_kept", "per_sequence_mean"),
    # statistics, verdict
    *("RatioStats", "all_reduce", "log_normaliser", "summarise", "excess", "Number", "Summary"),
    *("bernoulli_kl", "empirical_bernstein", "clustered", "judge", "Verdict", "Finding"),
]
