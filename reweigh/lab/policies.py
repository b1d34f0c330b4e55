"""Two tabular policies over the same contexts: one that trains, and one that samples."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
            _check_rows(name, table)
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
                "hint: at any length reweigh.lab.chain has chi2, KL and Hellinger exactly for Markov and iid contexts, "
                "worst_case the largest bias for iid ones; trap_a and trap_b have no more sequences than tokens + 1."
            )


def count_sequences(vocab: int, length: int, eos: int | None) -> int:
    """How many sequences so many tokens make at a length, or up to it with an eos."""
    inner = vocab - (eos is not None)
    return inner**length if eos is None else sum(inner**k for k in range(length)) + inner**length


def shown(count: int) -> str:
    """A number to read, however large."""
    return f"{count:,}" if count < 10**12 else f"about 10^{math.log10(count):.0f}"


def _check_rows(name: str, table: Tensor) -> None:
    if table.dtype != torch.float64:
        raise ValueError(f"Policies: {name} must be float64, got {table.dtype}")
    mass = table.exp().sum(-1)
    bad = ~((mass - 1).abs() <= ROUNDING)  # NaN is bad too
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"Policies: {name} does not normalise: the probabilities of {int(bad.sum())} of {len(mass)} rows do not "
            f"add up to 1; those of row {row} to {float(mass[row]):.12g}.\n"
            "hint: pass log-probabilities in float64, or logits to Policies.softmax."
        )
