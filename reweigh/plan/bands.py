"""Bands on the geometric ratio that drop the same share of sequences at every length."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, final

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, weigh
from reweigh.layout import Layout
from reweigh.levels import Level
from reweigh.named import geo_rs, token_is
from reweigh.rosetta.catalogue import PROFILES
from reweigh.rosetta.nearest import nearest
from reweigh.transforms import Screen


def _root(x: Tensor, layout: Layout) -> Tensor:
    return layout.sum_zeroed(x) / layout.lengths.clamp(min=1).sqrt()


ROOT = Level("root", "sequence", _root)
"""`(sum_t x_t) / sqrt(T)`: of independent tokens with mean 0 its spread is the same at every length."""


@final
@dataclass(frozen=True)
class Centred:
    """`log r_t + KL`, nats: the log ratio less its mean under mu.

    Attributes:
        kl: KL(mu||pi) of a token, nats.
    """

    kl: float

    @property
    def __name__(self) -> str:
        """As a factor prints it."""
        return f"(log_ratio + {self.kl:g})"

    def __call__(self, batch: Batch) -> Tensor:
        """Of each token; 0 off the mask."""
        return torch.where(batch.layout.mask, batch.log_ratio + self.kl, 0)


def length_band(kl: float, width: float) -> Estimator:
    """`w = 1{|mean_t log r_t + KL| <= width / sqrt(T)}`: a band on the geometric ratio, by each sequence's own length.

    When: responses differ in length. A band of one width drops short ones by chance alone, as the mean of few tokens
    varies more. Multiply with a weight to correct those that stay. Cost: one mean a sequence.

    Args:
        kl: KL(mu||pi) of a token, nats, at least 0: where the mean log ratio lies under mu.
        width: nats, at least 0: `z sqrt(2 KL)` keeps a share of `2 Phi(z) - 1`; see `Band`.

    Raises:
        ValueError: if one of the two is negative or not finite.

    Example:
        >>> import torch
        >>> from reweigh import Batch
        >>> from reweigh.plan import length_band
        >>> l = torch.tensor([[0.02, 0.02, 0.02, 0.02], [0.02, 0.0, 0.0, 0.0]])
        >>> mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
        >>> length_band(0.0, 0.03)(Batch.padded(l - 1, torch.full((2, 4), -1.0), mask)).keep.tolist()
        [False, True]

    Source: FSPO (2025), 2509.09177, scales its clip with sqrt(T), CTPO (2026), 2605.07331, with sqrt(t); the centre
    at -KL is ours.
    """
    for name, value in (("kl", kl), ("width", width)):
        if not 0 <= value < math.inf:
            raise ValueError(f"length_band: {name} must be >= 0 and finite, got {value}")
    return weigh(ROOT, Screen(math.exp(-width), math.exp(width)), of=Centred(kl))


@final
@dataclass(frozen=True)
class Band:
    """`exp(-KL -+ width / sqrt(T))`: bounds on the geometric ratio at one length.

    Attributes:
        length: tokens.
        kl: KL(mu||pi) of a token, nats.
        width: half the width times sqrt(T), nats.

    Example:
        >>> band = Band.keeping(0.95, kl=1e-3, length=4096)
        >>> print(band.low, band.high)
        0.99763 1.00037
    """

    length: float
    kl: float
    width: float

    @classmethod
    def keeping(cls, share: float, kl: float, length: float, variance: float | None = None) -> "Band":
        """The band that keeps this share of sequences.

        Args:
            share: over 0 and under 1.
            kl: KL(mu||pi) of a token, nats.
            length: tokens.
            variance: of a sequence's log ratio over its tokens, nats squared; 2 KL if not given.
        """
        z = NormalDist().inv_cdf((1 + share) / 2)
        return cls(length, kl, z * math.sqrt(2 * kl if variance is None else variance))

    @property
    def low(self) -> float:
        """Ratio pi/mu, rounded to a hundredth of the width."""
        return self._rounded(-1)

    @property
    def high(self) -> float:
        """Ratio pi/mu, rounded to a hundredth of the width."""
        return self._rounded(+1)

    @property
    def code(self) -> str:
        """The call that makes it."""
        return f"geo_rs({self.low:.9g}, {self.high:.9g})"

    def options(self) -> dict[str, Mapping[str, Any]]:
        """By framework: the options that make exactly this band, alone or (where it has no other) with token ratios."""
        found: dict[str, Mapping[str, Any]] = {}
        for profile in PROFILES:
            for wanted in (geo_rs(self.low, self.high), geo_rs(self.low, self.high) * token_is()):
                near = nearest(wanted, profile)
                if near.exact and profile.name not in found:
                    found[profile.name] = near.options
        return found

    def _rounded(self, sign: int) -> float:
        half = self.width / math.sqrt(self.length)
        places = 9 if half == 0 else min(9, max(2, 2 - math.floor(math.log10(half))))
        return round(math.exp(-self.kl + sign * half), places)
