"""The worst case of any estimator at a length, for tokens sampled one by one: a sequence for each count of tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.lab.counts import all_counts, farthest, log_probability, number_of_counts, score_directions
from reweigh.lab.exact import Loss, reinforce
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST
from reweigh.planner import FiniteRatio

Array = NDArray[np.float64]
MAX_TOKENS = 1 << 22  # of all sequences that are gone through
SMOOTH = ((0.5, 0.3, 0.2), (0.49, 0.3, 0.21))
RARE = ((0.549, 0.45, 0.001), (0.5495, 0.45049, 0.00001))
"""(pi, mu) of three tokens: every ratio a little off, and one token that mu hardly ever samples."""
_ORDERLESS = {level.name for level in (TOKEN, SEQUENCE, GEOMETRIC, WORST)}


@dataclass(frozen=True)
class Extremes:
    """What the worst reward with |R| <= 1 does to an estimator.

    Attributes:
        bias: `sup_R |E_mu ghat - g|`.
        second_moment: `sup_R E_mu |ghat|^2`, of one sequence.
    """

    bias: float
    second_moment: float


@dataclass(frozen=True, eq=False)
class Counted:
    """Sequences of iid tokens, one for each way that tokens can be counted: in another order, nothing would change.

    Attributes:
        log_pi: `[K, T]` nats.
        log_mu: `[K, T]` nats.
        pi: `[K]`: probability under pi of all sequences with these counts.
        mu: `[K]`, under mu.
        score: `[K, T, d]`: of each token, in the d = V - 1 directions that scores have.
    """

    log_pi: Float[Tensor, "K T"]
    log_mu: Float[Tensor, "K T"]
    pi: Array
    mu: Array
    score: Array

    @classmethod
    def of(cls, pi: Array, mu: Array, length: int) -> "Counted":
        """All counts of two or three tokens.

        Args:
            pi: `[V]` probabilities, all over 0.
            mu: `[V]`, all over 0.
            length: T.

        Raises:
            ValueError: unless V is 2 or 3 and the counts are few enough.
        """
        vocab = len(pi)
        if vocab not in (2, 3) or pi.shape != mu.shape:
            raise ValueError(f"Counted: two or three tokens are needed, got shapes {pi.shape} and {mu.shape}")
        if length < 1 or number_of_counts(vocab, length) * length > MAX_TOKENS:
            raise ValueError(
                f"Counted: length must be 1 to some {'2,000' if vocab == 2 else '200'} for {vocab} tokens, got {length}"
            )
        counts = all_counts(vocab, length)
        upto = counts.cumsum(-1)[:, :-1]
        tokens = (np.arange(length)[None, :, None] >= upto[:, None, :]).sum(-1)
        score = (np.eye(vocab) - pi) @ score_directions(vocab)
        return cls(
            torch.from_numpy(np.log(pi)[tokens]),
            torch.from_numpy(np.log(mu)[tokens]),
            np.exp(log_probability(counts, pi)),
            np.exp(log_probability(counts, mu)),
            score[tokens],
        )

    def batch(self, advantage: float = 1.0) -> Batch:
        """All of them, with the same advantage on every token."""
        every = torch.ones_like(self.log_pi)
        return Batch.padded(self.log_pi, self.log_mu, every, advantage=advantage * every)

    @property
    def law(self) -> FiniteRatio:
        """The law of the sequence ratio, for the rules that choose a cap."""
        return FiniteRatio((self.log_pi - self.log_mu).sum(-1).numpy(), self.mu)

    @property
    def m2(self) -> float:
        """`E_mu r^2`."""
        log_ratio = (self.log_pi - self.log_mu).sum(-1).numpy()
        return float(np.square(np.sqrt(self.mu) * np.exp(log_ratio)).sum())  # the root first: see `extremes`

    @property
    def score_max(self) -> float:
        """`K_s`, the largest norm of the score of a token."""
        return float(np.linalg.norm(self.score, axis=-1).max())

    @property
    def gradient(self) -> float:
        """`sup_R |g|`."""
        true = self.pi[:, None] * self.score.sum(1)
        return farthest(true, -true)

    @property
    def score2_pi(self) -> float:
        """`E_pi |S|^2`."""
        return float(self.pi @ np.square(self.score.sum(1)).sum(-1))

    def mean_weight(self, estimator: Estimator) -> float:
        """`E_mu w`: the share of the mass that an estimator with one weight a sequence retains; 1 for Seq-IS."""
        self._check(estimator)
        return float(self.mu @ estimator(self.batch()).per_unit.numpy())

    def extremes(self, estimator: Estimator, loss: Loss = reinforce) -> Extremes:
        """The largest bias and second moment of the loss's gradient, over all rewards with |R| <= 1.

        Both are largest where every reward is 1 or -1 (or, for the bias, 0): the loss is linear in the advantage for
        each of its signs, and may treat the signs differently, as PPO's does.

        Raises:
            ValueError: if the estimator depends on the order of tokens, or on other sequences.
        """
        self._check(estimator)
        up, down = (self._slopes(estimator, loss, sign) for sign in (1.0, -1.0))
        true, root = self.pi[:, None] * self.score.sum(1), np.sqrt(self.mu)[:, None]
        return Extremes(
            bias=farthest(self.mu[:, None] * up - true, self.mu[:, None] * down + true),
            # The root first: a ratio of e^400 has a square that no float64 holds, and next to no probability.
            second_moment=float(np.maximum(*(np.square(root * x).sum(-1) for x in (up, down))).sum()),
        )

    def _slopes(self, estimator: Estimator, loss: Loss, advantage: float) -> Array:
        batch = self.batch(advantage)
        log_pi = batch.log_pi.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(log_pi, batch, estimator(batch)), log_pi)
        return np.einsum("kt,ktd->kd", -slope.numpy(), self.score)

    def _check(self, estimator: Estimator) -> None:
        if estimator.reads_batch or any(f.level.name not in _ORDERLESS for f in estimator.factors):
            raise ValueError(f"Counted: {estimator} must read one sequence, and no order of its tokens")
