"""A world small enough to enumerate: two policies, every sequence they can make, and a reward for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.batch import Batch
from reweigh.lab.policies import MAX_SLOTS, Policies, count_sequences, shown
from reweigh.lab.sequences import Sequences

RewardKind = Literal["normal", "uniform", "binary"]


@dataclass(frozen=True, eq=False)
class World:
    """Policies, and the reward of each of their sequences, in lexicographic order.

    What the library's estimators do here is a sum and not an estimate: see `exact`.

    Attributes:
        policies: pi and mu.
        reward: `[L]`, one for each of `sequences`.
        turn_length: tokens a turn, for estimators of turn level; None if there are no turns.

    Raises:
        ValueError: if there are too many sequences, a reward is missing or not finite, or a turn has no token.

    Example:
        >>> from reweigh import seq_is, token_is
        >>> from reweigh.lab import exact, random_world
        >>> world = random_world(vocab=2, length=4, gap=0.5)
        >>> print(f"{exact(world, seq_is()).bias_norm:.2f}, {exact(world, token_is()).bias_norm:.2f}")
        0.00, 0.09
    """

    policies: Policies
    reward: Float[Tensor, " L"]
    turn_length: int | None = None

    def __post_init__(self) -> None:
        """Refuse rewards that do not fit."""
        self.policies.check_enumerable()
        if self.turn_length is not None and self.turn_length < 1:
            raise ValueError(f"World: turn_length must be >= 1, got {self.turn_length}")
        shape = (self.policies.num_sequences,)
        if tuple(self.reward.shape) != shape:
            raise ValueError(
                f"World: reward must have one value for each of the {shape[0]:,} sequences, in lexicographic order, "
                f"got shape {tuple(self.reward.shape)}"
            )
        bad = ~torch.isfinite(self.reward)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"World: every reward must be finite, and {int(bad.sum())} of {len(bad):,} are not; "
                f"the first is {float(self.reward[first])} at sequence {first}"
            )

    @classmethod
    def scored(cls, policies: Policies, reward: Callable[[tuple[int, ...]], float]) -> "World":
        """A world whose reward is a function of the tokens of a sequence."""
        sequences = Sequences.of(policies)
        rows: list[list[int]] = sequences.tokens.tolist()
        values = [float(reward(tuple(a for a in row if a >= 0))) for row in rows]
        return cls(policies, torch.tensor(values, dtype=torch.float64))

    @cached_property
    def sequences(self) -> Sequences:
        """All sequences."""
        return Sequences.of(self.policies)

    @cached_property
    def sampled(self) -> Sequences:
        """Those that mu can sample: all of them, unless its support is truncated."""
        every = self.sequences
        return every if bool(every.sampled.all()) else every.take(every.sampled)

    @cached_property
    def mu(self) -> Float[Tensor, " sampled"]:
        """Probability under mu of what it can sample."""
        return self.sampled.mu

    @property
    def sampled_reward(self) -> Float[Tensor, " sampled"]:
        """Reward of what mu can sample."""
        return self.reward[self.sequences.sampled]

    @cached_property
    def batch(self) -> Batch:
        """What mu can sample, as one batch without an advantage."""
        return self.batch_with(None)

    def batch_with(self, advantage: Tensor | None) -> Batch:
        """What mu can sample, as one batch, for the estimators and losses of the library.

        Args:
            advantage: `[sampled, T]`, or `[sampled]` for one a sequence.
        """
        s = self.sampled
        turn = None
        if self.turn_length is not None:
            turn = (torch.arange(s.mask.shape[1]) // self.turn_length).expand(s.mask.shape)
        return Batch.padded(s.log_pi, s.log_mu, s.mask, advantage=advantage, turn=turn)

    @cached_property
    def gradient(self) -> Float[Tensor, " params"]:
        """`g = grad E_pi R = E_pi[R S]`, over all sequences."""
        s = self.sequences
        return s.total((s.pi * self.reward)[:, None].expand(s.mask.shape))

    @property
    def value_pi(self) -> float:
        """`J(pi) = E_pi R`."""
        return float(self.sequences.pi @ self.reward)

    @property
    def value_mu(self) -> float:
        """`J(mu) = E_mu R`: what the mean reward of a group estimates."""
        return float(self.mu @ self.sampled_reward)


def random_policies(
    vocab: int = 3,
    length: int = 3,
    memory: int | None = None,
    eos: int | None = None,
    gap: float = 0.5,
    masked: float = 0.0,
    seed: int = 0,
) -> Policies:
    """Policies with normal logits, of standard deviation 1 for pi and `gap` for the difference to mu's.

    Args:
        vocab: V.
        length: T.
        memory: tokens of context; None is the whole prefix.
        eos: the token that ends a sequence.
        gap: nats.
        masked: the chance that mu cannot sample a token of a context; one token of each stays.
        seed: of the generator; equal arguments give equal policies.
    """
    shape = (_num_contexts(vocab, length, memory, eos), vocab)
    if shape[0] > MAX_SLOTS:
        raise ValueError(
            f"random_policies: {vocab} tokens at length {length} have {shown(shape[0])} contexts and "
            f"{shown(count_sequences(vocab, length, eos))} sequences, too many for a table (at most {MAX_SLOTS:,}).\n"
            "hint: memory=1 makes them Markov, with a context for each token; reweigh.lab.chain then works at any "
            "length."
        )
    g = torch.Generator().manual_seed(seed)
    pi = torch.randn(shape, generator=g, dtype=torch.float64)
    mu = pi + gap * torch.randn(shape, generator=g, dtype=torch.float64)
    support = torch.rand(shape, generator=g, dtype=torch.float64) >= masked
    support = support.scatter(-1, torch.randint(vocab, (shape[0], 1), generator=g), True)
    return Policies.softmax(pi, mu, length, memory, eos, support)


def random_world(
    vocab: int = 3,
    length: int = 3,
    memory: int | None = None,
    eos: int | None = None,
    gap: float = 0.5,
    masked: float = 0.0,
    reward: RewardKind = "normal",
    seed: int = 0,
) -> World:
    """`random_policies` with a random reward for each sequence.

    Args:
        vocab: V.
        length: T.
        memory: tokens of context; None is the whole prefix.
        eos: the token that ends a sequence.
        gap: nats, between the logits of pi and mu.
        masked: the chance that mu cannot sample a token of a context.
        reward: normal(0, 1), uniform(-1, 1), or binary: 0 or 1 with even chance.
        seed: of the generator.
    """
    policies = random_policies(vocab, length, memory, eos, gap, masked, seed)
    policies.check_enumerable()
    g = torch.Generator().manual_seed(seed + 1_000_003)  # another stream than that of the policies
    size = (policies.num_sequences,)
    if reward == "normal":
        return World(policies, torch.randn(size, generator=g, dtype=torch.float64))
    uniform = torch.rand(size, generator=g, dtype=torch.float64)
    return World(policies, 2 * uniform - 1 if reward == "uniform" else (uniform < 0.5).double())


def _num_contexts(vocab: int, length: int, memory: int | None, eos: int | None) -> int:
    inner = vocab - (eos is not None)
    depth = length - 1 if memory is None else min(memory, length - 1)
    return sum(inner**k for k in range(depth + 1))
