"""Switches that several profiles share."""

from collections.abc import Callable
from dataclasses import replace

from reweigh.estimators import Factor, Statistic
from reweigh.levels import binary_kl, prob_diff, signed_binary_kl
from reweigh.rosetta.parts import (
    Rule,
    binary_kl_of_clamped,
    prob_diff_from_probs,
    prob_gap,
    prob_gap_from_probs,
    prob_gap_of_clamped,
    signed_binary_kl_from_probs,
)
from reweigh.rosetta.plan import Plan
from reweigh.rosetta.profile import Situation

Apply = Callable[[Plan, Situation], Plan]
_AS_THEY_ARE: dict[Statistic, Statistic] = {
    prob_gap: prob_gap_from_probs,
    prob_diff: prob_diff_from_probs,
    signed_binary_kl: signed_binary_kl_from_probs,
}
_CLAMPED: dict[Statistic, Statistic] = {prob_gap: prob_gap_of_clamped, binary_kl: binary_kl_of_clamped}


def probabilities_as_they_are(plan: Plan) -> Plan:
    """Statistics of probabilities from the probabilities themselves, one of which may be 0."""
    return swapped(plan, _AS_THEY_ARE)


def probabilities_clamped(plan: Plan, _: Situation) -> Plan:
    """Statistics of probabilities after a clamp to [1e-6, 1 - 1e-6]."""
    return swapped(plan, _CLAMPED)


def swapped(plan: Plan, statistics: dict[Statistic, Statistic]) -> Plan:
    """The plan with statistics replaced."""

    def change(f: Factor) -> Factor:
        return replace(f, of=statistics.get(f.of, f.of))

    return plan.mapped(change)


def zero_is(sign: int) -> Apply:
    """An advantage of 0 counts as one of this sign."""

    def apply(plan: Plan, _: Situation) -> Plan:
        return replace(plan, zero_advantage=sign)

    return apply


def ruled(rule: Rule) -> Apply:
    """Log ratios of weights and screens go through a rule, and metrics treat them as the framework does."""

    def apply(plan: Plan, _: Situation) -> Plan:
        return replace(plan, rule=rule, screen_rule=rule, metrics_as_they=True)

    return apply
