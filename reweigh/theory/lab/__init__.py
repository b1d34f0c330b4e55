"""Worlds small enough to enumerate, in which what an estimator does is a sum and not an estimate."""

from reweigh.theory.lab.closed_forms import Chain, WorstCase, chain, growth_rate, worst_case
from reweigh.theory.lab.distances import Distances, Norms, StateDistances, distances, norms, ratio_law
from reweigh.theory.lab.exact import (
    Advantage,
    AnyAdvantage,
    Exact,
    ExactSNIS,
    GradientMoments,
    Group,
    Loss,
    PerSequence,
    PPOClip,
    Reward,
    TokenBias,
    TruncatedBias,
    coefficients,
    exact,
    exact_group_mean,
    exact_snis,
    reinforce,
    token_bias,
    truncated_bias,
)
from reweigh.theory.lab.world import (
    Policies,
    Sequences,
    World,
    random_policies,
    random_world,
    trap_a,
    trap_b,
    trap_b_of_fixed_length,
)

# fmt: off
__all__ = [
    # worlds
    "Policies", "Sequences", "World", "random_policies", "random_world", "trap_a", "trap_b", "trap_b_of_fixed_length",
    # what an estimator does in one
    "Advantage", "AnyAdvantage", "Exact", "Loss", "GradientMoments", "PPOClip", "PerSequence", "Reward", "coefficients",
    "exact", "reinforce",
    "ExactSNIS", "Group", "exact_group_mean", "exact_snis",
    "TokenBias", "TruncatedBias", "token_bias", "truncated_bias",
    # how far its policies are apart, and how large things are
    "Distances", "Norms", "StateDistances", "distances", "norms", "ratio_law",
    # at any length
    "Chain", "WorstCase", "chain", "growth_rate", "worst_case",
]
# fmt: on
