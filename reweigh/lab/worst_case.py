"""The largest bias that any reward of size 1 can give a token-level estimator, exactly, at lengths of thousands."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.lab.counts import all_counts, farthest, log_probability, number_of_counts, score_directions
from reweigh.levels import TOKEN

Array = NDArray[np.float64]
MAX_COUNTS = 3_000_000  # ways that tokens can be counted, up to which they are gone through


@dataclass(frozen=True)
class WorstCase:
    """What iid tokens and the worst reward with |R| <= 1 do to an estimator that weighs each token by itself.

    Attributes:
        length: T.
        bias: `sup_R |E_mu ghat - g|`.
        gradient: `sup_R |g|`.
        second_moment: `sup_R E_mu |ghat|^2`, for one sequence.
        score2: `E_pi |S|^2`.
        log_m2: `log(1 + chi2)` of the sequence, nats.
    """

    length: int
    bias: float
    gradient: float
    second_moment: float
    score2: float
    log_m2: float


def worst_case(pi: Tensor, mu: Tensor, length: int, estimator: Estimator) -> WorstCase:
    """Go through the counts of each token, on which alone sequences of iid tokens depend, and choose R for each.

    The largest length of a sum of vectors, each with a sign of one's choice, is the farthest corner of a zonotope: in a
    plane it is found by sorting. So there may be two or three tokens.

    Args:
        pi: `[V]` probabilities of two or three tokens.
        mu: `[V]`, all over 0.
        length: T.
        estimator: of token level: `naive()`, `token_is()`, `token_tis(cap)`, `token_mis(low, high)`.

    Raises:
        ValueError: unless the probabilities are such, T >= 1 and the estimator weighs each token by itself.

    Example:
        >>> import torch
        >>> from reweigh import naive
        >>> from reweigh.lab import worst_case
        >>> pi, mu = torch.tensor([[0.5, 0.3, 0.2], [0.49, 0.3, 0.21]], dtype=torch.float64)
        >>> print(f"{worst_case(pi, mu, 256, naive()).bias / worst_case(pi, mu, 64, naive()).bias:.1f}")
        4.0
    """
    if pi.shape != mu.shape or pi.dim() != 1 or pi.numel() not in (2, 3):
        raise ValueError(
            f"worst_case: pi and mu must be the probabilities of two or three tokens, got shapes {tuple(pi.shape)} and "
            f"{tuple(mu.shape)}.\nhint: merge tokens with like ratios; the ratio is what matters."
        )
    for name, p in (("pi", pi), ("mu", mu)):
        if not bool((p > 0).all()) or abs(float(p.double().sum()) - 1) > 1e-9:
            raise ValueError(
                f"worst_case: {name} must be positive and add up to 1, got {p.tolist()}.\n"
                "hint: write them in float64, or float32 rounds them."
            )
    if length < 1:
        raise ValueError(f"worst_case: length must be >= 1, got {length}")
    if number_of_counts(pi.numel(), length) > MAX_COUNTS:
        raise ValueError(
            f"worst_case: {pi.numel()} tokens at length {length:,} can be counted in more than {MAX_COUNTS:,} ways.\n"
            "hint: with two tokens, any length up to some millions works."
        )
    if estimator.reads_batch or any(f.level.name != TOKEN.name for f in estimator.factors):
        raise ValueError(f"worst_case: {estimator} must weigh each token by itself")
    w = _token_weights(pi, mu, estimator)
    p, q = pi.double().numpy(), mu.double().numpy()
    counts = all_counts(len(p), length)
    prob_pi, prob_mu = np.exp(log_probability(counts, p)), np.exp(log_probability(counts, q))
    score = (np.eye(len(p)) - p) @ score_directions(len(p))  # of each token
    true, weighed = prob_pi[:, None] * (counts @ score), counts @ (w[:, None] * score)
    gap = prob_mu[:, None] * weighed - true
    return WorstCase(
        length,
        bias=farthest(gap, -gap),
        gradient=farthest(true, -true),
        second_moment=float(prob_mu @ np.square(weighed).sum(-1)),
        score2=float(prob_pi @ np.square(counts @ score).sum(-1)),
        log_m2=length * math.log(float((p * p / q).sum())),
    )


def _token_weights(pi: Tensor, mu: Tensor, estimator: Estimator) -> Array:
    """The library's weight of each token, from a batch with one sequence of one token for each."""
    log_pi, log_mu = pi.double().log()[:, None], mu.double().log()[:, None]
    batch = Batch.padded(log_pi, log_mu, torch.ones_like(log_pi), advantage=torch.ones_like(log_pi))
    return estimator(batch).per_token[:, 0].numpy()
