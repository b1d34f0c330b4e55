"""Two worlds in which the obvious choice of level is wrong, at lengths of up to two thousand tokens."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reweigh.lab.policies import MAX_SLOTS, Policies
from reweigh.lab.world import World

STOP, GO = 0, 1
MOST = math.isqrt(MAX_SLOTS) - 1  # tokens: T + 1 sequences of up to T tokens each


def trap_a(length: int, pi_failure: float = 0.002, mu_failure: float = 0.012) -> World:
    """Token-level weights point the wrong way: small per-token gaps add up to another best first step.

    The first token is a choice of even odds: stop, for a reward of 1/2, or go on, for a reward of 1 if no step fails
    until the end. Every step fails with a chance of 0.2% under pi and 1.2% under mu, which ends the sequence without a
    reward. Going on is right while pi gets through more often than not, and token IS judges it by how often mu does:
    from 59 tokens on it points the other way.

    Args:
        length: T, 1 to 2,047.
        pi_failure: chance of a failure a step under pi.
        mu_failure: chance of a failure a step under mu.

    Raises:
        ValueError: on a length outside that or a chance outside (0, 1).

    Example:
        >>> from reweigh import seq_tis, token_is
        >>> from reweigh.lab import Reward, exact, trap_a
        >>> world = trap_a(100)
        >>> print([round(exact(world, e, Reward("value")).cosine, 2) for e in (token_is(), seq_tis(2.0))])
        [-0.23, 0.99]
    """
    return _world("trap_a", length, pi_failure, mu_failure, _reward_a)


def trap_b(length: int, pi_failure: float = 0.05, mu_failure: float = 0.1) -> World:
    """Sequence-level weights are noise: all that matters is decided by the first token, and the gap comes after it.

    As `trap_a`, but the reward is 1 for going on, whatever comes of it. Token IS has no bias at all, and the sequence
    ratio multiplies its one informative factor by those of tokens that do not matter.

    Args:
        length: T, 1 to 2,047.
        pi_failure: chance of a failure a step under pi.
        mu_failure: chance of a failure a step under mu.

    Raises:
        ValueError: on a length outside that or a chance outside (0, 1).

    Example:
        >>> from reweigh import seq_is, token_is
        >>> from reweigh.lab import Reward, exact, trap_b
        >>> world = trap_b(100)
        >>> print([f"{exact(world, e, Reward('value')).efficiency(64):.2f}" for e in (token_is(), seq_is())])
        ['0.99', '0.41']
    """
    return _world("trap_b", length, pi_failure, mu_failure, _reward_b)


def trap_b_of_fixed_length(length: int, shift: float = 0.5) -> World:
    """`trap_b` with sequences of one length: even odds under pi, and under mu from the second token on tilted ones.

    It has 2^T sequences, so it is for some 17 tokens at most.

    Args:
        length: T.
        shift: nats, added to a logit of mu after the first token.
    """
    flat = torch.zeros(3 if length > 1 else 1, 2, dtype=torch.float64)
    tilted = flat.clone()
    tilted[1:, 1] = shift
    return World.scored(Policies.softmax(flat, tilted, length, memory=1), _reward_b)


def _world(
    name: str, length: int, pi_failure: float, mu_failure: float, reward: Callable[[tuple[int, ...]], float]
) -> World:
    """A first choice of even odds, to stop or to go on, and then the same chance of a failure at every step."""
    for which, chance in (("pi_failure", pi_failure), ("mu_failure", mu_failure)):
        if not 0 < chance < 1:
            raise ValueError(f"{name}: {which} must be a chance in (0, 1), got {chance}")
    if length > MOST:
        raise ValueError(
            f"{name}: length must be at most {MOST:,}, got {length:,}: it has as many sequences as tokens, and all "
            "their tokens are held at once.\nhint: reweigh.lab.chain has chi2, KL and Hellinger of its policies at any "
            "length."
        )
    policies = Policies(_table(length, pi_failure), _table(length, mu_failure), length, memory=1, eos=STOP)
    return World.scored(policies, reward)


def _table(length: int, failure: float) -> Tensor:
    rows = [[math.log(0.5), math.log(0.5)], [math.log(failure), math.log1p(-failure)]]
    return torch.tensor(rows[: min(length, 2)], dtype=torch.float64)


def _reward_a(tokens: tuple[int, ...]) -> float:
    return 0.5 if tokens == (STOP,) else float(tokens[-1] == GO)


def _reward_b(tokens: tuple[int, ...]) -> float:
    return float(tokens[0] == GO)
