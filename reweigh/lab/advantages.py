"""What multiplies the score: the reward, less a constant, or an advantage of either policy, exactly."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reweigh.lab.sequences import Sequences
from reweigh.lab.world import World


@dataclass(frozen=True)
class Reward:
    """`R - baseline` on every token: a terminal reward, less the same constant for all.

    Args:
        baseline: a number, or "value" for `J(mu) = E_mu R`, which the mean reward of a large group tends to.
    """

    baseline: float | Literal["value"] = 0.0

    def of(self, world: World) -> Float[Tensor, "sampled T"]:
        """For every token of what mu can sample."""
        b = world.value_mu if self.baseline == "value" else self.baseline
        return (world.sampled_reward - b)[:, None].expand(world.sampled.mask.shape)


@dataclass(frozen=True)
class Advantage:
    """`A(s_t, y_t) = Q(s_t, y_t) - V(s_t)` of one of the policies, as a perfect critic would give it.

    With the advantage of mu, the mean of token IS is that with the raw reward; only one of pi removes what is wrong
    with the returns, and nobody has it without a critic.

    Args:
        policy: whose returns.
    """

    policy: Literal["pi", "mu"]

    def of(self, world: World) -> Float[Tensor, "sampled T"]:
        """For every token of what mu can sample."""
        s = world.sequences
        values = prefix_values(s, s.log_pi if self.policy == "pi" else s.log_mu, world.reward)
        return torch.where(s.mask, values.diff(dim=-1), 0)[s.sampled]


@dataclass(frozen=True, eq=False)
class PerSequence:
    """Any advantage that is one number a sequence.

    Args:
        values: `[sampled]`, for what mu can sample.
    """

    values: Float[Tensor, " sampled"]

    def of(self, world: World) -> Float[Tensor, "sampled T"]:
        """For every token of what mu can sample."""
        return self.values[:, None].expand(world.sampled.mask.shape)


AnyAdvantage = Reward | Advantage | PerSequence
"""What may multiply the score in the lab."""


def prefix_values(sequences: Sequences, log_p: Tensor, reward: Tensor) -> Float[Tensor, "L T_plus_1"]:
    """`E[R | y_<t]` for t = 0 to T, when a policy with these log-probs goes on from the prefix."""
    columns: list[Tensor] = []
    for t in range(log_p.shape[1] + 1):
        group, count = prefixes(sequences, t)
        rest = log_p[:, t:].sum(-1).exp()  # not p(y) / p(prefix): a prefix may be very improbable
        columns.append(rest.new_zeros(count).index_add(0, group, rest * reward)[group])
    return torch.stack(columns, -1)


def prefixes(sequences: Sequences, t: int) -> tuple[Int[Tensor, " L"], int]:
    """Which sequences share their first t tokens: a number for each, and how many numbers there are."""
    tokens = sequences.tokens
    # In lexicographic order those that share a prefix are neighbours.
    new = (tokens[1:, :t] != tokens[:-1, :t]).any(-1)
    group = torch.cat([new.new_zeros(1), new]).long().cumsum(0)
    return group, int(group[-1]) + 1
