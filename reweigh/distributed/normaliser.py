"""Sums of weights that merge, for a self-normalisation over more than one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh.estimators import Weights
from reweigh.levels import heads


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Sum and number of the kept weights, for a self-normalisation over micro-batches (`+`) and ranks (`all_reduce`).

    Attributes:
        shift: 0-d, nats: the largest log-weight; -inf if no unit is kept.
        total: 0-d: sum of `e^(log_w - shift)`.
        count: 0-d: kept units.

    Example:
        >>> import torch
        >>> from reweigh import Batch, seq_is, snis
        >>> from reweigh.distributed import Normaliser
        >>> full = lambda x: torch.full((2, 1), x)
        >>> parts = [Batch.padded(full(x), full(-2.0), full(1)) for x in (-1.0, -2.0)]
        >>> one, other = (Normaliser.of(seq_is()(part)) for part in parts)
        >>> weights = snis()(parts[0], (one + other).log)
        >>> round(float(weights.per_token[0, 0]), 3)  # e / ((e + e + 1 + 1) / 4)
        1.462
    """

    shift: Tensor
    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, weights: Weights) -> "Normaliser":
        """Sums of the weights of an estimator *before* self-normalisation; all float64."""
        units = weights.keep & heads(weights.layout) if weights.unit == "turn" else weights.keep
        log_w = torch.where(units, weights.log_w, -torch.inf).double().flatten()
        shift = torch.cat([log_w, log_w.new_full((1,), -torch.inf)]).max()
        return cls(shift, torch.exp(log_w - _finite(shift)).sum(), units.sum().double())

    def __add__(self, other: "Normaliser") -> "Normaliser":
        """The sums of both."""
        shift = torch.maximum(self.shift, other.shift)
        a, b = self.scaled(shift), other.scaled(shift)
        return Normaliser(shift, a + b, self.count + other.count)

    @property
    def log(self) -> Tensor:
        """`log(sum of weights / number)`, 0-d nats: what `estimator(batch, it)` subtracts. 0 if no unit is kept."""
        return torch.where(self.count > 0, _finite(self.shift) + (self.total / self.count).log(), 0)

    def scaled(self, shift: Tensor) -> Tensor:
        """The total written with another shift, no smaller than its own."""
        return torch.where(torch.isfinite(self.shift), self.total * torch.exp(self.shift - shift), 0)


def _finite(shift: Tensor) -> Tensor:
    return torch.where(torch.isfinite(shift), shift, 0)
