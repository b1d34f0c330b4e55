"""The random worlds that several claims are tried on, and every inequality of the lab in each of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import median

import numpy as np
import torch
from torch import Tensor

from reweigh.theory.lab.distances import distances, norms
from reweigh.theory.lab.inequalities import Sides, inequalities
from reweigh.theory.lab.world import RewardKind, World, random_world
from reweigh.theory.laws import FiniteRatio

CAP = 2.0
BATCH = 64.0  # sequences
NUMBER = 60  # worlds

_MEMORIES = (None, 1, 0)
_GAPS = (0.3, 0.6, 1.0)  # nats
_REWARDS: tuple[RewardKind, ...] = ("normal", "uniform", "binary", "normal")


@dataclass(frozen=True)
class Evidence:
    """What a computation found.

    Attributes:
        holds: whether our verdict stands.
        text: what was computed, with its numbers.
    """

    holds: bool
    text: str


@cache
def worlds() -> tuple[World, ...]:
    """Three tokens, length 3 to 6, prefix, Markov and iid contexts, with and without an eos, three gaps."""
    return tuple(
        random_world(
            vocab=3,
            length=3 + i % 4,
            memory=_MEMORIES[i % 3],
            eos=0 if i % 5 == 4 else None,
            gap=_GAPS[i // 3 % 3],
            reward=_REWARDS[i // 9 % 4],
            seed=i,
        )
        for i in range(NUMBER)
    )


@cache
def _sides() -> dict[str, list[Sides]]:
    out: dict[str, list[Sides]] = {}
    for world in worlds():
        found = inequalities(world, distances(world), norms(world), CAP, (0.9, 1.1), BATCH)
        for name, pair in found.items():
            out.setdefault(name, []).append(pair)
    return out


def broken(name: str) -> int:
    """In how many worlds an inequality does not hold."""
    return sum(left > right + 1e-9 * abs(right) + 1e-12 for left, right in _sides()[name])


def slack(name: str) -> float:
    """Median over worlds of right side over left: 1 is tight."""
    return median(right / left for left, right in _sides()[name] if left > 1e-9)


def exponent(values: tuple[float, float], lengths: tuple[float, float]) -> float:
    """The power of the length between two lengths."""
    return math.log(values[1] / values[0]) / math.log(lengths[1] / lengths[0])


def iid_law(pi: float, mu: float, length: int) -> FiniteRatio:
    """The law under mu of the sequence ratio of iid tokens of two kinds; pi and mu give the chance of the first."""
    k = np.arange(length + 1)
    log_ways = np.array([math.lgamma(length + 1) - math.lgamma(i + 1) - math.lgamma(length - i + 1) for i in k])
    p = np.exp(log_ways + k * math.log(mu) + (length - k) * math.log1p(-mu))
    return FiniteRatio(k * math.log(pi / mu) + (length - k) * (math.log1p(-pi) - math.log1p(-mu)), p / p.sum())


def table(rows: list[list[float]]) -> Tensor:
    """Log-probs from a table of probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def value(world: World, logits: Tensor, reward: Tensor | None = None) -> Tensor:
    """`E R` under the softmax policy of these logits, `[..., contexts, V]`: for what is differentiated or stepped."""
    return log_prob(world, logits).exp() @ (world.reward if reward is None else reward)


def log_prob(world: World, logits: Tensor) -> Tensor:
    """log probability of each sequence under the softmax policy of these logits."""
    return token_log_prob(world, logits).sum(-1)


def token_log_prob(world: World, logits: Tensor) -> Tensor:
    """log probability of each token of each sequence; 0 after the end."""
    s = world.sequences
    return torch.where(s.mask, logits.log_softmax(-1)[..., s.row, s.tokens.clamp(min=0)], 0)


def relative(a: Tensor, b: Tensor) -> float:
    """`|a - b| / |b|`."""
    return float((a.flatten() - b.flatten()).norm() / b.norm())


def largest(values: Iterable[float]) -> float:
    """The largest, with 0 for none."""
    return max(values, default=0.0)


def tiny(x: float) -> str:
    """An upper bound of a difference, in which what is rounding looks the same on every machine."""
    return "1e-11" if x < 1e-11 else f"{x:.0e}"
