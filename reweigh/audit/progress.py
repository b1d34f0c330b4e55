"""Estimators ranked by the progress that one step is sure to make, where the gradient of each token is at hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.intervals import t_quantile
from reweigh.levels import SEQUENCE
from reweigh.named import seq_is
from reweigh.number import Number
from reweigh.stats import RatioStats
from reweigh.summary import summarise
from reweigh.sums import NUM_BUCKETS, bucket

Array = NDArray[np.float64]
MEANING = (
    "Share of the possible gain of a step that is guaranteed: <g, m>_+^2 / (|g|^2 (|m|^2 + variance / N)), g the "
    "gradient of pi and m the estimator's mean."
)
_NOISE = "the gradient cannot be told from noise: more responses are needed"


@dataclass(frozen=True)
class Guaranteed:
    """An estimator and `Gamma_N`, the share of the possible gain that it is sure of; 1 for the gradient itself."""

    name: str
    gamma: Number


def progress(batch: Batch, estimators: Mapping[str, Estimator], gradients: Tensor, n: float) -> tuple[Guaranteed, ...]:
    """Estimators by guaranteed progress, the best first; those for which it is refused last.

    `Gamma_N` is estimated without the square of the sample's own noise: products of means are of different responses.
    The gradient of pi is that of the sequence ratio, so that all is refused where its tail cannot be trusted.

    Args:
        batch: one batch; responses of a prompt are one cluster if it has `group`.
        estimators: by the name to show; self-normalised ones too, as this is a batch.
        gradients: token-shaped with one more axis, `[*tok, d]`: reward or advantage times the gradient of log pi of
            the token, or a sketch of it (a random projection to d numbers keeps inner products in the mean).
        n: N, responses averaged in one step, at least 1.

    Returns:
        with 95% intervals by a jackknife over clusters.

    Raises:
        ValueError: gradients of another shape, or n below 1.

    Example:
        >>> import torch
        >>> from reweigh import Batch, naive, seq_tis
        >>> batch = Batch.padded(torch.full((64, 2), -1.0), torch.full((64, 2), -1.0), torch.ones(64, 2))
        >>> ranked = progress(batch, {"naive": naive(), "seq_tis(2)": seq_tis(2.0)}, torch.ones(64, 2, 3), n=64)
        >>> print(ranked[0].name, round(ranked[0].gamma.value, 3))
        naive 1.0

    Source: `reweigh.sga.Moments.efficiency`; Li and Liu (2025), Part 1, for the lemma.
    """
    layout = batch.layout
    if gradients.dim() != layout.mask.dim() + 1 or gradients.shape[:-1] != layout.mask.shape:
        raise ValueError(
            f"progress: gradients must be {[*layout.mask.shape, 'd']}, got {list(gradients.shape)}\n"
            "hint: one row a token: its reward or advantage times the gradient of its log pi."
        )
    if not n >= 1:
        raise ValueError(f"progress: n must be >= 1, got {n}")
    refusal = summarise(RatioStats.of(batch, SEQUENCE)).refusal
    where = bucket(batch).cpu().numpy()
    some = (layout.lengths > 0).cpu().numpy()
    true = _terms(batch, seq_is(), gradients)
    found: list[Guaranteed] = []
    for name, estimator in estimators.items():
        sums = _Sums.of(true[some], _terms(batch, estimator, gradients)[some], where[some])
        found.append(Guaranteed(name, _gamma(sums, n, refusal)))
    return tuple(sorted(found, key=lambda x: -math.inf if x.gamma.value is None else x.gamma.value, reverse=True))


@dataclass(frozen=True)
class _Sums:
    """By cluster, what the means, and the products of different responses, follow from."""

    n: Array  # [G]
    g: Array  # [G, d]
    m: Array  # [G, d]
    gm: Array  # [G]: of inner products of a response with itself
    gg: Array
    mm: Array

    @classmethod
    def of(cls, g: Array, m: Array, where: NDArray[np.int64]) -> "_Sums":
        each = np.eye(NUM_BUCKETS)[where].T
        each = each[each.sum(1) > 0]
        own = ((g * m).sum(1), (g * g).sum(1), (m * m).sum(1))
        return cls(each.sum(1), each @ g, each @ m, *(each @ x for x in own))

    def without(self, i: int) -> "_Sums":
        return _Sums(*(np.delete(x, i, 0) for x in (self.n, self.g, self.m, self.gm, self.gg, self.mm)))

    def gamma(self, batch: float) -> float:
        """NaN if a squared mean comes out as 0 or less."""
        n, g, m = float(self.n.sum()), self.g.sum(0), self.m.sum(0)
        pairs = n * (n - 1)
        if pairs <= 0:
            return math.nan
        along, gg, mm = (
            (float(x) - float(own.sum())) / pairs for x, own in ((g @ m, self.gm), (g @ g, self.gg), (m @ m, self.mm))
        )
        second = mm + max(0.0, float(self.mm.sum()) / n - mm) / batch
        return max(0.0, along) ** 2 / (gg * second) if gg > 0 and second > 0 else math.nan


def _gamma(sums: _Sums, n: float, refusal: str) -> Number:
    value = sums.gamma(n)
    if refusal or math.isnan(value):
        sample = None if math.isnan(value) else value
        return Number(None, sample=sample, meaning=MEANING, refused=refusal or _NOISE)
    groups = len(sums.n)
    left_out = np.array([sums.without(i).gamma(n) for i in range(groups)]) if groups > 2 else np.array([math.nan])
    if np.isnan(left_out).any():
        return Number(min(1.0, value), 0.0, 1.0, value, meaning=MEANING)
    error = math.sqrt((groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum()))
    half = t_quantile(0.975, groups - 1) * error
    return Number(min(1.0, value), max(0.0, value - half), min(1.0, value + half), value, meaning=MEANING)


def _terms(batch: Batch, estimator: Estimator, gradients: Tensor) -> Array:
    """`[S, d]`: each response's term of the estimated gradient."""
    layout = batch.layout
    weights = estimator(batch).per_token
    columns = [
        layout.sum(torch.where(layout.mask, weights * gradients[..., i], 0)).double()
        for i in range(gradients.shape[-1])
    ]
    return torch.stack(columns, -1).cpu().numpy()
