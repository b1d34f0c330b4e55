"""Every sequence that two tabular policies can make, with its probability under both and its score."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reweigh.lab.policies import Policies


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
        """All of them.

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
        """Number of tokens."""
        return self.mask.sum(-1).double()

    @property
    def pi(self) -> Float[Tensor, " L"]:
        """Probability under pi."""
        return self.log_pi.sum(-1).exp()

    @property
    def mu(self) -> Float[Tensor, " L"]:
        """Probability under mu."""
        return self.log_mu.sum(-1).exp()

    @property
    def sampled(self) -> Bool[Tensor, " L"]:
        """Which sequences mu can sample."""
        return torch.isfinite(self.log_mu).all(-1)

    def take(self, rows: Tensor) -> "Sequences":
        """Some of them."""
        parts = {name: getattr(self, name)[rows] for name in ("tokens", "row", "log_pi", "log_mu")}
        return replace(self, **parts)

    def total(self, coef: Float[Tensor, "*lead L T"]) -> Float[Tensor, "*lead params"]:
        """`sum_l sum_t coef_lt s_lt` over sequences and tokens, with the score `s = grad log pi(y_t | context)`."""
        policies = self.policies
        live = torch.where(self.mask, coef, 0).flatten(-2)
        out = live.new_zeros(*live.shape[:-1], policies.num_params)
        out = out.index_add(-1, (self.row * policies.vocab + self.tokens.clamp(min=0)).flatten(), live)
        return out - (out.unflatten(-1, policies.log_pi.shape).sum(-1, keepdim=True) * policies.log_pi.exp()).flatten(
            -2
        )

    def each(self, coef: Float[Tensor, "L T"]) -> Float[Tensor, "L T V"]:
        """`sum_t coef_lt s_lt` of each sequence, as one row a distinct context, at the context's first position.

        The other components of a sequence's gradient are 0, so this is all of it, at T rows a sequence in place of one
        for every context there is.
        """
        live = torch.where(self.mask, coef, 0)
        hot = torch.nn.functional.one_hot(self.tokens.clamp(min=0), self.policies.vocab).double()
        s = live[:, :, None] * (hot - self.policies.log_pi.exp()[self.row])
        return torch.zeros_like(s).scatter_add(1, self.slot[:, :, None].expand(s.shape), s)

    def square_norms(self, coef: Float[Tensor, "L T"]) -> Float[Tensor, " L"]:
        """`|sum_t coef_lt s_lt|^2` of each sequence."""
        return self.each(coef).square().sum((1, 2))

    def dense(self, coef: Float[Tensor, "L T"]) -> Float[Tensor, "L params"]:
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
