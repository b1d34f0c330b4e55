"""Worlds small enough to enumerate, in which what an estimator does is a sum and not an estimate."""

from reweigh.lab.advantages import Advantage, AnyAdvantage, PerSequence, Reward
from reweigh.lab.chain import Chain, chain, growth_rate
from reweigh.lab.distances import Distances, Norms, StateDistances, distances, norms, ratio_law
from reweigh.lab.exact import Exact, Loss, Outcome, PPOClip, coefficients, exact, reinforce
from reweigh.lab.groups import Group, exact_group_mean
from reweigh.lab.policies import Policies
from reweigh.lab.sequences import Sequences
from reweigh.lab.snis import ExactSNIS, exact_snis
from reweigh.lab.splits import TokenBias, TruncatedBias, token_bias, truncated_bias
from reweigh.lab.traps import trap_a, trap_b, trap_b_of_fixed_length
from reweigh.lab.world import World, random_policies, random_world
from reweigh.lab.worst_case import WorstCase, worst_case

# fmt: off
__all__ = [
    # worlds
    "Policies", "Sequences", "World", "random_policies", "random_world", "trap_a", "trap_b", "trap_b_of_fixed_length",
    # what an estimator does in one
    "Advantage", "AnyAdvantage", "Exact", "Loss", "Outcome", "PPOClip", "PerSequence", "Reward", "coefficients",
    "exact", "reinforce",
    "ExactSNIS", "Group", "exact_group_mean", "exact_snis",
    "TokenBias", "TruncatedBias", "token_bias", "truncated_bias",
    # how far its policies are apart, and how large things are
    "Distances", "Norms", "StateDistances", "distances", "norms", "ratio_law",
    # at any length
    "Chain", "WorstCase", "chain", "growth_rate", "worst_case",
]
# fmt: on
