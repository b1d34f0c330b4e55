"""What a group baseline (GRPO, RLOO) does to the mean of an estimator, exactly."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.estimators import Estimator
from reweigh.lab.advantages import PerSequence
from reweigh.lab.exact import coefficients
from reweigh.lab.world import World

Baseline = Literal["mean", "others", "std"]
MAX_OUTCOMES = 1_000_000  # ways that rewards can fall in a group, up to which they are gone through


@dataclass(frozen=True)
class Group:
    """A group of sequences of one prompt, and how their rewards become advantages.

    Args:
        size: G, sequences in the group; at least 2.
        baseline: "mean": `R_i - mean of all G` (Dr. GRPO); "others": `R_i - mean of the other G - 1` (RLOO); "std":
            `(R_i - mean) / (sd + eps)` (GRPO).
        eps: added to the standard deviation.
        unbiased: whether the standard deviation has G - 1 in its denominator, as `torch.std` has, or G.

    Raises:
        ValueError: if size < 2.
    """

    size: int
    baseline: Baseline = "mean"
    eps: float = 0.0
    unbiased: bool = True

    def __post_init__(self) -> None:
        """Refuse a group of one."""
        if self.size < 2:
            raise ValueError(f"Group: size must be >= 2, got {self.size}")

    def advantages(self, values: list[float], chances: list[float]) -> list[float]:
        """The expected advantage of a member with each reward, over the rewards of the others.

        Args:
            values: the rewards there are.
            chances: their probabilities under mu.

        Raises:
            ValueError: if "std" is asked for with more outcomes than can be gone through.
        """
        mean = math.fsum(v * p for v, p in zip(values, chances, strict=True))
        if self.baseline == "others":
            return [v - mean for v in values]
        if self.baseline == "mean":
            return [(1 - 1 / self.size) * (v - mean) for v in values]
        outcomes = math.comb(self.size - 2 + len(values), len(values) - 1)
        if outcomes > MAX_OUTCOMES:
            raise ValueError(
                f"Group: {len(values)} distinct rewards can fall in {outcomes:,} ways on the other {self.size - 1} "
                f"of a group, and at most {MAX_OUTCOMES:,} are gone through.\n"
                'hint: "mean" and "others" need no enumeration; binary rewards have few outcomes.'
            )
        total = [0.0] * len(values)
        for counts in _compositions(self.size - 1, len(values)):
            chance = _multinomial(counts, chances)
            for i, own in enumerate(values):
                total[i] += chance * self._standardised(own, counts, values)
        return total

    def _standardised(self, own: float, counts: tuple[int, ...], values: list[float]) -> float:
        mean = (own + sum(c * v for c, v in zip(counts, values, strict=True))) / self.size
        squares = (own - mean) ** 2 + sum(c * (v - mean) ** 2 for c, v in zip(counts, values, strict=True))
        sd = math.sqrt(squares / (self.size - self.unbiased))
        return (own - mean) / (sd + self.eps) if own != mean else 0.0


def exact_group_mean(world: World, estimator: Estimator, group: Group) -> Float[Tensor, " params"]:
    """`E (1/G) sum_i w_i A_i S_i` over groups of G sequences of mu: the mean gradient that a group baseline gives.

    What a sequence's reward becomes on average depends on that reward alone, so a group is a reward of its own shape.
    Where `E[w S] = 0` (on-policy, token IS, sequence IS) the mean keeps its direction; else the baseline changes it.

    Args:
        world: small enough to enumerate; its sequences are the responses to one prompt.
        estimator: any product that is not self-normalised. Gates read the sign of the expected advantage.
        group: its size and baseline.

    Raises:
        ValueError: if "std" is asked for with more outcomes than can be gone through.

    Source: Shao et al. (2024), DeepSeekMath (GRPO); Ahmadian et al. (2024) (RLOO); Liu et al. (2025) (Dr. GRPO).
    """
    values, index = world.sampled_reward.unique(return_inverse=True)
    chances = torch.zeros_like(values).index_add(0, index, world.mu)
    expected = torch.tensor(group.advantages(values.tolist(), chances.tolist()), dtype=torch.float64)
    coef = coefficients(world, estimator, PerSequence(expected[index]))
    return world.sampled.total(world.mu[:, None] * coef)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write total as a sum of parts numbers, in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def _multinomial(counts: tuple[int, ...], chances: list[float]) -> float:
    log_p = math.lgamma(sum(counts) + 1)
    for c, p in zip(counts, chances, strict=True):
        if c and p == 0:
            return 0.0
        log_p += (c * math.log(p) if c else 0.0) - math.lgamma(c + 1)
    return math.exp(log_p)
