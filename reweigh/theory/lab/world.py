"""Worlds: two tabular policies, all sequences that they can sample, a reward for each; by hand, at random, or traps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reweigh.batch import Batch, Candidates

MAX_SLOTS = 1 << 22  # sequences times length: some hundreds of megabytes of float64 arrays
ROUNDING = 1e-9  # by how much a row of probabilities may miss 1


@dataclass(frozen=True, eq=False)
class Policies:
    """`pi(token | context)` and `mu(token | context)` for every context, over sequences of at most `length` tokens.

    A context is the last `memory` tokens (all of them, at the start of a sequence, where there are fewer). Its row in
    the tables follows from `contexts()`: shorter contexts first, then in lexicographic order. Gradients are with
    respect to the logits of pi, so a context shared by several positions is a shared parameter.

    Attributes:
        log_pi: `[contexts, V]` nats; finite.
        log_mu: `[contexts, V]` nats; -inf at tokens that mu never samples (top-p, top-k).
        length: T, the longest sequence; every sequence's length if there is no `eos`.
        memory: tokens of context: 0 is iid, m is Markov of order m, None is the whole prefix.
        eos: the token that ends a sequence, itself scored; None for sequences of a fixed length.

    Raises:
        ValueError: if a row does not normalise, a shape is wrong, or T < 1.
    """

    log_pi: Float[Tensor, "contexts V"]
    log_mu: Float[Tensor, "contexts V"]
    length: int
    memory: int | None = None
    eos: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no pair of policies."""
        if self.length < 1:
            raise ValueError(f"Policies: length must be >= 1, got {self.length}")
        if self.memory is not None and self.memory < 0:
            raise ValueError(f"Policies: memory must be >= 0, or None for the whole prefix, got {self.memory}")
        if self.log_pi.dim() != 2 or self.log_pi.shape != self.log_mu.shape:
            raise ValueError(
                "Policies: log_pi and log_mu must both be [contexts, V], "
                f"got {tuple(self.log_pi.shape)} and {tuple(self.log_mu.shape)}"
            )
        if self.eos is not None and not 0 <= self.eos < self.vocab:
            raise ValueError(f"Policies: eos must be a token, 0 to {self.vocab - 1}, got {self.eos}")
        if not self.inner:
            raise ValueError(f"Policies: {self.vocab} tokens with eos={self.eos} leave nothing to say before the end")
        if self.log_pi.shape[0] != self.num_contexts:
            raise ValueError(
                f"Policies: memory={self.memory}, length={self.length} and {self.vocab} tokens make "
                f"{self.num_contexts:,} contexts, but the tables have {self.log_pi.shape[0]:,} rows.\n"
                "hint: one row a context, in the order of `contexts()`; a context holds no eos."
            )
        for name, table in (("log_pi", self.log_pi), ("log_mu", self.log_mu)):
            if table.dtype != torch.float64:
                raise ValueError(f"Policies: {name} must be float64, got {table.dtype}")
            mass = table.exp().sum(-1)
            bad = ~((mass - 1).abs() <= ROUNDING)  # NaN is bad too
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                raise ValueError(
                    f"Policies: {name} does not normalise: the probabilities of {int(bad.sum())} of {len(mass)} rows "
                    f"do not add up to 1; those of row {row} to {float(mass[row]):.12g}.\n"
                    "hint: pass log-probabilities in float64, or logits to Policies.softmax."
                )
        if not bool(torch.isfinite(self.log_pi).all()):
            raise ValueError(
                "Policies: pi must give every token some probability, and log_pi has a -inf.\n"
                "hint: a softmax never reaches 0; mask tokens of mu to model a truncated sampler."
            )

    @classmethod
    def softmax(
        cls,
        pi_logits: Tensor,
        mu_logits: Tensor,
        length: int,
        memory: int | None = None,
        eos: int | None = None,
        mu_support: Bool[Tensor, "contexts V"] | None = None,
    ) -> "Policies":
        """Policies from logits, in float64.

        Args:
            pi_logits: `[contexts, V]`.
            mu_logits: `[contexts, V]`.
            length: T.
            memory: tokens of context.
            eos: the token that ends a sequence.
            mu_support: True where mu may sample; it renormalises over these, as top-p and top-k do. All if not given.

        Raises:
            ValueError: on logits that are not finite, or a context in which mu can sample nothing.
        """
        for name, logits in (("pi_logits", pi_logits), ("mu_logits", mu_logits)):
            if not bool(torch.isfinite(logits).all()):
                row = int((~torch.isfinite(logits)).any(-1).nonzero()[0])
                raise ValueError(f"Policies.softmax: {name} must be finite, and row {row} is {logits[row].tolist()}")
        mu = mu_logits.double()
        if mu_support is not None:
            if mu_support.shape != mu.shape:
                raise ValueError(
                    f"Policies.softmax: mu_support must be {tuple(mu.shape)}, got {tuple(mu_support.shape)}"
                )
            if not bool(mu_support.any(-1).all()):
                row = int((~mu_support.any(-1)).nonzero()[0])
                raise ValueError(f"Policies.softmax: mu_support leaves mu nothing to sample in row {row}")
            mu = torch.where(mu_support, mu, -torch.inf)
        return cls(pi_logits.double().log_softmax(-1), mu.log_softmax(-1), length, memory, eos)

    @property
    def vocab(self) -> int:
        """V, the number of tokens."""
        return self.log_pi.shape[1]

    @property
    def inner(self) -> tuple[int, ...]:
        """The tokens that a sequence can go on after."""
        return tuple(a for a in range(self.vocab) if a != self.eos)

    @property
    def depth(self) -> int:
        """Length of the longest context."""
        return self.length - 1 if self.memory is None else min(self.memory, self.length - 1)

    @property
    def num_contexts(self) -> int:
        """How many contexts there are."""
        return sum(len(self.inner) ** k for k in range(self.depth + 1))

    @property
    def num_sequences(self) -> int:
        """How many sequences there are, whatever their probability."""
        return count_sequences(self.vocab, self.length, self.eos)

    @property
    def num_params(self) -> int:
        """The dimension of a gradient: contexts times tokens."""
        return self.log_pi.numel()

    def contexts(self) -> list[tuple[int, ...]]:
        """The context of each row."""
        out: list[tuple[int, ...]] = [()]
        start = 0
        for _ in range(self.depth):
            level = out[start:]
            start = len(out)
            out += [(*c, a) for c in level for a in self.inner]
        return out

    def check_enumerable(self) -> None:
        """Raise if there are too many sequences to go through one by one.

        Raises:
            ValueError: with their number, and which exact method still works.
        """
        count = self.num_sequences
        if count * self.length > MAX_SLOTS:
            raise ValueError(
                f"lab: {shown(count)} sequences of {self.length} tokens are too many to enumerate "
                f"(at most {MAX_SLOTS // self.length:,} of that length).\n"
                "hint: at any length reweigh.theory.lab.chain has chi2, KL and Hellinger exactly for Markov and iid "
                "contexts, worst_case the largest bias for iid ones; trap_a and trap_b have no more sequences than "
                "tokens + 1."
            )


def count_sequences(vocab: int, length: int, eos: int | None) -> int:
    """Count the sequences that so many tokens make at a length, or up to it with an eos."""
    inner = vocab - (eos is not None)
    return inner**length if eos is None else sum(inner**k for k in range(length)) + inner**length


def shown(count: int) -> str:
    """Write a number to read, however large."""
    return f"{count:,}" if count < 10**12 else f"about 10^{math.log10(count):.0f}"


@dataclass(frozen=True, eq=False)
class Sequences:
    """Some or all sequences of a pair of policies, in lexicographic order.

    Attributes:
        policies: whose they are.
        tokens: `[L, T]`; -1 after the end.
        row: `[L, T]`: the context of each token; 0 after the end.
        log_pi: `[L, T]` nats; 0 after the end.
        log_mu: `[L, T]` nats; -inf where mu cannot sample; 0 after the end.
        slot: `[L, T]`: the first position of the sequence with the same context.
    """

    policies: Policies
    tokens: Int[Tensor, "L T"]
    row: Int[Tensor, "L T"]
    log_pi: Float[Tensor, "L T"]
    log_mu: Float[Tensor, "L T"]
    slot: Int[Tensor, "L T"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find which tokens of a sequence share a context."""
        place = torch.arange(self.row.shape[1])
        row, order = torch.where(self.mask, self.row, -1 - place).sort(dim=-1, stable=True)  # what is no token is apart
        starts = torch.ones_like(row, dtype=torch.bool)
        starts[:, 1:] = row[:, 1:] != row[:, :-1]
        first = order.gather(-1, torch.where(starts, place, 0).cummax(-1).values)
        object.__setattr__(self, "slot", torch.zeros_like(order).scatter(-1, order, first))

    @classmethod
    def of(cls, policies: Policies) -> "Sequences":
        """Go through all sequences of the policies.

        Raises:
            ValueError: if there are too many.
        """
        policies.check_enumerable()
        tokens, row = _grow(policies)
        live = tokens >= 0
        place = (row, tokens.clamp(min=0))
        return cls(
            policies,
            tokens,
            row,
            torch.where(live, policies.log_pi[place], 0),
            torch.where(live, policies.log_mu[place], 0),
        )

    @property
    def mask(self) -> Bool[Tensor, "L T"]:
        """Which slots hold a token."""
        return self.tokens >= 0

    @property
    def first(self) -> Bool[Tensor, "L T"]:
        """Which tokens are the first of their sequence in their context."""
        return self.mask & (self.slot == torch.arange(self.slot.shape[1]))

    @property
    def lengths(self) -> Float[Tensor, " L"]:
        """Number of tokens of each sequence."""
        return self.mask.sum(-1).double()

    @property
    def pi(self) -> Float[Tensor, " L"]:
        """Probability of each sequence under pi."""
        return self.log_pi.sum(-1).exp()

    @property
    def mu(self) -> Float[Tensor, " L"]:
        """Probability of each sequence under mu."""
        return self.log_mu.sum(-1).exp()

    @property
    def sampled(self) -> Bool[Tensor, " L"]:
        """Which sequences mu can sample."""
        return torch.isfinite(self.log_mu).all(-1)

    def take(self, rows: Tensor) -> "Sequences":
        """Take some of the sequences."""
        parts = {name: getattr(self, name)[rows] for name in ("tokens", "row", "log_pi", "log_mu")}
        return replace(self, **parts)

    def total(self, coef: Float[Tensor, "*lead L T"]) -> Float[Tensor, "*lead params"]:
        """`sum_l sum_t coef_lt s_lt` over sequences and tokens, with the score `s = grad log pi(y_t | context)`."""
        policies = self.policies
        live = torch.where(self.mask, coef, 0).flatten(-2)
        out = live.new_zeros(*live.shape[:-1], policies.num_params)
        out = out.index_add(-1, (self.row * policies.vocab + self.tokens.clamp(min=0)).flatten(), live)
        visits = out.unflatten(-1, policies.log_pi.shape).sum(-1, keepdim=True)
        return out - (visits * policies.log_pi.exp()).flatten(-2)

    def total_of_all(self, coef: Float[Tensor, "L T V"]) -> Float[Tensor, " params"]:
        """`sum_l sum_t sum_v coef_ltv s_ltv`, with the score of every token at every place, sampled or not."""
        policies = self.policies
        out = coef.new_zeros(policies.log_pi.shape)
        return out.index_add(0, self.row.flatten(), self._scored(coef).flatten(0, 1)).flatten()

    def each(self, coef: Tensor) -> Float[Tensor, "L T V"]:
        """`sum_t coef_lt s_lt` of each sequence, as one row a distinct context, at the context's first position.

        The other components of a sequence's gradient are 0, so this is all of it, at T rows a sequence in place of one
        for every context there is.

        Args:
            coef: `[L, T]`, of the sequence's own tokens, or `[L, T, V]`, of every token at each place.
        """
        if coef.dim() == 2:
            hot = torch.nn.functional.one_hot(self.tokens.clamp(min=0), self.policies.vocab).double()
            coef = torch.where(self.mask, coef, 0)[:, :, None] * hot
        s = self._scored(coef)
        return torch.zeros_like(s).scatter_add(1, self.slot[:, :, None].expand(s.shape), s)

    def _scored(self, coef: Float[Tensor, "L T V"]) -> Float[Tensor, "L T V"]:
        """Multiply the scores of all tokens at each place, in the parameters of its context."""
        live = torch.where(self.mask[:, :, None], coef, 0)
        return live - live.sum(-1, keepdim=True) * self.policies.log_pi.exp()[self.row]

    def square_norms(self, coef: Float[Tensor, "L T"]) -> Float[Tensor, " L"]:
        """`|sum_t coef_lt s_lt|^2` of each sequence."""
        return self.each(coef).square().sum((1, 2))

    def dense(self, coef: Tensor) -> Float[Tensor, "L params"]:
        """`sum_t coef_lt s_lt` of each sequence over all parameters: large, so for small worlds."""
        rows = self.each(coef)
        out = rows.new_zeros(len(rows), *self.policies.log_pi.shape)
        # A context's later positions hold zeros, so adding is placing.
        return out.scatter_add(1, self.row[:, :, None].expand(rows.shape), rows).flatten(1)


def _grow(policies: Policies) -> tuple[Tensor, Tensor]:
    """Tokens and context rows of every sequence, grown a token at a time."""
    inner = np.array(policies.inner)
    base, depth, length = len(inner), policies.depth, policies.length
    starts = np.cumsum([0] + [base**k for k in range(depth)])  # the first row of the contexts of each length
    alive = np.zeros((1, 0), dtype=np.int64)
    codes = np.zeros((1, 0), dtype=np.int64)  # the rows of the contexts so far
    last = np.zeros(1, dtype=np.int64)  # the last `depth` tokens as digits of one number
    ended: list[tuple[np.ndarray, np.ndarray]] = []
    for t in range(length):
        row = starts[min(t, depth)] + last
        codes = np.concatenate([codes, row[:, None]], 1)
        if policies.eos is not None:
            ended.append(_filled(np.concatenate([alive, np.full((len(alive), 1), policies.eos)], 1), codes, length))
        alive = np.concatenate([np.repeat(alive, base, 0), np.tile(inner, len(alive))[:, None]], 1)
        last = (np.repeat(last, base) * base + np.tile(np.arange(base), len(last))) % base**depth
        codes = np.repeat(codes, base, 0)
    ended.append(_filled(alive, codes, length))
    tokens = np.concatenate([e[0] for e in ended])
    order = np.lexsort(tokens.T[::-1])
    return torch.from_numpy(tokens[order]), torch.from_numpy(np.concatenate([e[1] for e in ended])[order])


def _filled(tokens: np.ndarray, codes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    short = ((0, 0), (0, length - tokens.shape[1]))
    return np.pad(tokens, short, constant_values=-1), np.pad(codes, short)


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
        >>> from reweigh.theory.lab import exact, random_world
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
        """All sequences of the policies."""
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
        """Everything that mu can sample, as one batch without an advantage."""
        return self.batch_with(None)

    def candidates(self, k: int | None = None) -> Candidates:
        """Tell what mu could have sampled at every place of what it can sample.

        Args:
            k: its so many likeliest tokens; all of its support, said to be complete, if not given.
        """
        s, policies = self.sampled, self.policies
        log_mu = policies.log_mu[s.row]
        chosen = log_mu.topk(policies.vocab if k is None else min(k, policies.vocab), -1)
        ids = torch.where(s.mask[:, :, None] & chosen.values.isfinite(), chosen.indices, -1)
        return Candidates(ids, chosen.values, policies.log_pi[s.row].gather(-1, chosen.indices), complete=k is None)

    def batch_with(self, advantage: Tensor | None, candidates: Candidates | None = None) -> Batch:
        """Make one batch of what mu can sample, for the estimators and losses of the library.

        Args:
            advantage: `[sampled, T]`, or `[sampled]` for one a sequence.
            candidates: for a centred estimator.
        """
        s = self.sampled
        turn = None
        if self.turn_length is not None:
            turn = (torch.arange(s.mask.shape[1]) // self.turn_length).expand(s.mask.shape)
        return Batch.padded(s.log_pi, s.log_mu, s.mask, advantage=advantage, turn=turn, candidates=candidates)

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
    inner, depth = vocab - (eos is not None), length - 1 if memory is None else min(memory, length - 1)
    shape = (sum(inner**k for k in range(depth + 1)), vocab)
    if shape[0] > MAX_SLOTS:
        raise ValueError(
            f"random_policies: {vocab} tokens at length {length} have {shown(shape[0])} contexts and "
            f"{shown(count_sequences(vocab, length, eos))} sequences, too many for a table (at most {MAX_SLOTS:,}).\n"
            "hint: memory=1 makes them Markov, with a context for each token; reweigh.theory.lab.chain then works at "
            "any length."
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
        >>> from reweigh.theory.lab import Reward, exact, trap_a
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
        >>> from reweigh.theory.lab import Reward, exact, trap_b
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
            "their tokens are held at once.\nhint: reweigh.theory.lab.chain has chi2, KL and Hellinger of its policies "
            "at any length."
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
