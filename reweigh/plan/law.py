"""The model of a sequence's ratio: many small independent gaps, over sequences of several lengths and sizes of gap."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from reweigh.planner import LogNormalRatio

# Three rates with the mean and the variance of a log-normal one: Gauss-Hermite nodes and weights.
_NODES = ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6))


@final
@dataclass(frozen=True)
class Part:
    """Sequences of one length whose tokens have one variance of the log ratio.

    Attributes:
        share: of all sequences.
        length: tokens.
        s2: variance of a token's log ratio, nats squared: 2 KL.
    """

    share: float
    length: float
    s2: float

    def ratio(self, tokens: float) -> LogNormalRatio:
        """The law of a product of so many token ratios."""
        return LogNormalRatio(self.s2 * tokens)


@final
@dataclass(frozen=True)
class MixedRatio:
    """`log r ~ N(-s2 T/2, s2 T)` of each part: a mixture of log-normal laws; a `RatioLaw` for rules that choose a cap.

    Attributes:
        parts: their shares sum to 1.

    Example:
        >>> law = MixedRatio.of_lengths(1e-3, [(512, 0.5), (1536, 0.5)])
        >>> print(f"{law.length:.0f} {law.ess_fraction:.2f}")
        1024 0.08

    Source: `LogNormalRatio`, averaged over parts.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of_lengths(cls, kl: float, lengths: Iterable[tuple[float, float]], spread: float = 0.0) -> "MixedRatio":
        """Sequences of these lengths with a mean KL(mu||pi) of `kl` a token.

        Args:
            kl: nats a token, at least 0.
            lengths: tokens, and the share of the sequences.
            spread: squared coefficient of variation of a sequence's own KL a token, at least 0.
        """
        tau2 = math.log1p(spread)
        rates = [(math.exp(z * math.sqrt(tau2)), w) for z, w in _NODES] if spread > 0 else [(1.0, 1.0)]
        mean = sum(rate * w for rate, w in rates)
        return cls(tuple(Part(p * w, t, 2 * kl * rate / mean) for t, p in lengths for rate, w in rates))

    def mean(self, of: Callable[[Part], float], *, by_token: bool = False) -> float:
        """Average over sequences, or over their tokens."""
        weights = [p.share * p.length if by_token else p.share for p in self.parts]
        return sum(w * of(p) for w, p in zip(weights, self.parts, strict=True)) / sum(weights)

    @property
    def length(self) -> float:
        """Mean tokens a sequence."""
        return self.mean(lambda p: p.length)

    @property
    def kl(self) -> float:
        """KL(mu||pi) of a token, nats."""
        return self.mean(lambda p: p.s2 / 2, by_token=True)

    @property
    def s2(self) -> float:
        """Mean variance of a sequence's log ratio, nats squared."""
        return self.mean(lambda p: p.s2 * p.length)

    @property
    def chi2(self) -> float:
        """`E r^2 - 1` of sequences; infinite when no float64 holds it."""
        return self.mean(lambda p: p.ratio(p.length).chi2)

    @property
    def ess_fraction(self) -> float:
        """`1 / (1 + chi2)`: the effective share of sequences under importance sampling."""
        return 1 / (1 + self.chi2)

    def excess(self, cap: float) -> float:
        """`E_mu (r - C)_+`."""
        return self.mean(lambda p: p.ratio(p.length).excess(cap))

    def lost(self, cap: float) -> float:
        """`P_pi(r > C)`."""
        return self.mean(lambda p: p.ratio(p.length).lost(cap))

    def min2(self, cap: float) -> float:
        """`E_mu min(r, C)^2`."""
        return self.mean(lambda p: p.ratio(p.length).min2(cap))
