"""Work out what estimators do to ratios of a known law: its moments, bands, caps, and how far to believe it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.caps import Balance, CapRule, Cubic, Post, PostBatch, SecondMomentRule, SqrtN, Tradeoff, mis_balance_cap
from reweigh.estimators import Estimator, Factor, weigh
from reweigh.layout import Layout
from reweigh.levels import Level, log_ratio
from reweigh.named import geo_rs, seq_mis, seq_tis, token_is
from reweigh.rosetta.config import nearest
from reweigh.rosetta.frameworks import PROFILES
from reweigh.theory.laws import LogNormalRatio
from reweigh.transforms import Clip, Identity, Reject, Screen, Transform

# Three rates with the mean and the variance of a log-normal one: Gauss-Hermite nodes and weights.
_NODES = ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6))


@final
@dataclass(frozen=True)
class LengthPart:
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

    parts: tuple[LengthPart, ...]

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
        return cls(tuple(LengthPart(p * w, t, 2 * kl * rate / mean) for t, p in lengths for rate, w in rates))

    def mean(self, of: Callable[[LengthPart], float], *, by_token: bool = False) -> float:
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


Trust = Literal["good", "rough", "refused"]
CHI2_TRUSTED = 1.0  # of the sequence ratio: up to it the log-normal model is good to 4 to 30% (see `LogNormalRatio`)
SMALLEST = 1e-4  # a rough share below it is only known to be small


@final
@dataclass(frozen=True)
class Figure:
    """A figure of the model.

    Attributes:
        value: None if refused; one significant digit if rough.
        trust: "good": within 4 to 30%; "rough": the ratio's tail is beyond what the model was checked on, read it as an
            order of magnitude; "refused": not known, but for `below`.
        below: what it is under, where it is refused and that is known.
    """

    value: float | None
    trust: Trust = "good"
    below: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"value": self.value, "trust": self.trust} | ({} if self.below is None else {"below": self.below})


def figure(x: float | None, chi2: float) -> Figure:
    """A figure that is as good as the model is at this chi-square of the ratio that it is of.

    Example:
        >>> figure(0.2143, chi2=0.5), figure(0.2143, chi2=9.0)
        (Figure(value=0.2143, trust='good', below=None), Figure(value=0.2, trust='rough', below=None))
        >>> figure(3e-9, chi2=1e8)
        Figure(value=None, trust='refused', below=0.0001)
    """
    if x is None or not math.isfinite(x):
        return Figure(None, "refused")
    if chi2 <= CHI2_TRUSTED or x in (0.0, 1.0):  # these are by construction
        return Figure(x)
    if x < SMALLEST:
        return Figure(None, "refused", SMALLEST)
    return Figure(float(f"{x:.0e}") if x < 1 - 0.05 else x, "rough")


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
        """Compute it for each token; 0 off the mask."""
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
        """By framework: the options that make exactly this band, alone or (where it has no other) with token ratios.

        None where the band has no end below or above that a trainer could take: it is as wide as all ratios.
        """
        options: dict[str, Mapping[str, Any]] = {}
        if self.low == 0 or math.log(self.high) >= LARGEST:
            return options
        for profile in PROFILES:
            for wanted in (geo_rs(self.low, self.high), geo_rs(self.low, self.high) * token_is()):
                near = nearest(wanted, profile)
                if near.exact and profile.name not in options:
                    options[profile.name] = near.options
        return options

    def _rounded(self, sign: int) -> float:
        half = self.width / math.sqrt(self.length)
        places = 9 if half == 0 else min(9, max(2, 2 - math.floor(math.log10(half))))
        return round(math.exp(min(-self.kl + sign * half, LARGEST)), places)


LARGEST = 690.0  # nats: e to it is still a float64
_ROUNDING = 1e-12  # of sums in float64
_PREFIXES = 64  # of a sequence, over which a prefix estimator is averaged: by the midpoint rule


@final
@dataclass(frozen=True)
class Expected:
    """The effect of an estimator on a unit, on average.

    Attributes:
        kept: share of units that are not dropped.
        capped: share of units that are kept with their ratio moved to a bound.
        retained: mean weight over all units, dropped ones at 0. What the mean step is multiplied by, if the loss is
            divided by all units.
        square: mean squared weight over all units.
    """

    kept: float
    capped: float
    retained: float
    square: float

    @property
    def dropped(self) -> float:
        """Share of units that are dropped."""
        return 1 - self.kept if self.kept < 1 - _ROUNDING else 0.0

    @property
    def over_kept(self) -> float | None:
        """Mean weight over kept units: the factor on the step if the loss is divided by these; None if none is left."""
        return self.retained / self.kept if self.kept > 0 else None

    @property
    def ess(self) -> float:
        """`(mean w)^2 / mean w^2`: effective share of all units; 0 if none is left."""
        if not self.square > 0:
            return 0.0
        return min(1.0, self.retained**2 / self.square)


def expect(estimator: Estimator, law: MixedRatio, turns: float | None = None) -> Expected | None:
    """`P(keep)`, `P(moved)`, `E w` and `E w^2` of an estimator, when token ratios are independent with the law's s2.

    In a product, a token and its long sequence are taken as independent given the part, which they nearly are.

    Args:
        estimator: factors at TOKEN, TURN, PREFIX or SEQUENCE with `Identity`, `Clip`, `Reject` or `Screen` of the
            log ratio; `Screen` at GEOMETRIC; `length_band`. Products of token factors with those of one other level;
            at one level, of screens and at most one ratio. A self-normalised one is in the limit of many units.
        law: of the ratios.
        turns: how many a sequence has; without it an estimator of turns has no closed form.

    Returns:
        None if there is no closed form.

    Example:
        >>> from reweigh import seq_tis
        >>> from reweigh.plan import MixedRatio, expect
        >>> found = expect(seq_tis(2.0), MixedRatio.of_lengths(1e-3, [(1024, 1.0)]))
        >>> print(f"{found.retained:.2f}")
        0.64

    Source: closed forms of `LogNormalRatio`.
    """
    parts = [_of_part(estimator, part, turns) for part in law.parts]
    by_token = estimator.unit != "sequence"
    weights = [p.share * p.length if by_token else p.share for p in law.parts]
    total = sum(weights)
    sums = [0.0] * 4
    for weight, one in zip(weights, parts, strict=True):
        if one is None:
            return None
        values = (one.kept, one.capped, one.retained, one.square)
        sums = [s + weight / total * x for s, x in zip(sums, values, strict=True)]
    kept, capped, retained, square = sums
    if estimator.normalise and retained > 0:  # over kept units the mean weight is 1
        retained, square = kept, square * (kept / retained) ** 2
    return Expected(kept, capped, retained, square)


def _of_part(estimator: Estimator, part: LengthPart, turns: float | None) -> Expected | None:
    kept = retained = square = 1.0
    capped = 0.0
    factors = _joined(estimator.factors)
    if factors is None:
        return None
    for factor in factors:
        one = _of_factor(factor, part, turns)
        if one is None:
            return None
        capped = capped * one.kept + kept * one.capped - capped * one.capped
        kept, retained, square = kept * one.kept, retained * one.retained, square * one.square
    return Expected(kept, capped, retained, square)


def _joined(factors: tuple[Factor, ...]) -> tuple[Factor, ...] | None:
    """At most one factor a level; None if two of them follow from one ratio in a way that has no closed form here."""
    by_level: dict[str, Factor] = {}
    for f in factors:
        other = by_level.get(f.level.name)
        transform = f.transform if other is None else _both(other.transform, f.transform)
        if transform is None or (other is not None and (other.of, other.sign, other.scale) != (f.of, f.sign, f.scale)):
            return None
        by_level[f.level.name] = replace(f, transform=transform)
    return tuple(by_level.values()) if len(by_level.keys() - {"token"}) <= 1 else None


def _both(a: Transform, b: Transform) -> Transform | None:
    """Find the transform that does both to one ratio."""
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Screen) and isinstance(y, (Screen, Reject)):
            low, high = max(x.low, y.low), min(x.high, y.high)
            return type(y)(low, high) if low <= high else None
        if isinstance(x, Screen) and (isinstance(y, Identity) or y == Clip()):
            return Reject(x.low, x.high)
    return None


def _of_factor(f: Factor, part: LengthPart, turns: float | None) -> Expected | None:
    t = f.transform
    if isinstance(f.of, Centred) and isinstance(t, Screen) and f.level.name == "root":
        root = math.sqrt(part.length)
        ends = (-f.of.kl * part.length + root * math.log(x) for x in (t.low, t.high))
        return _screened(_normal_within(part.s2 * part.length, *ends))
    if f.of is not log_ratio or f.sign or f.scale != 1:
        return None
    if f.level.name == "geometric":
        if not isinstance(t, Screen):
            return None
        low = t.low if t.low > 0 else 1e-300  # a ratio that no mean of log ratios reaches
        high = t.high if t.high < math.inf else 1e300
        return _screened(part.ratio(part.length).geo_accept(low, high, part.length))
    if f.level.name == "prefix":
        step = part.length / _PREFIXES
        prefixes = [_of_ratio(t, part.ratio((i + 0.5) * step)) for i in range(_PREFIXES)]
        known = [(x.kept, x.capped, x.retained, x.square) for x in prefixes if x is not None]
        if len(known) < _PREFIXES:
            return None
        return Expected(*(sum(column) / _PREFIXES for column in zip(*known, strict=True)))
    if f.level.name == "turn":
        return None if turns is None else _of_ratio(t, part.ratio(part.length / turns))
    tokens = {"token": 1.0, "sequence": part.length}.get(f.level.name)
    return None if tokens is None else _of_ratio(t, part.ratio(tokens))


def _of_ratio(t: Transform, law: LogNormalRatio) -> Expected | None:
    """Work out what a transform does to a ratio with this law; None if there is no closed form."""
    if isinstance(t, Identity):
        return Expected(1, 0, 1, 1 + law.chi2)
    if isinstance(t, Clip):
        below = t.low + law.excess(t.low) - 1  # E (low - r)_+
        over = 0.0 if math.isinf(t.high) else law.excess(t.high)
        square = 1 + law.chi2 if math.isinf(t.high) else law.min2(t.high)
        square += t.low**2 - law.min2(t.low)
        return Expected(1, law.above(t.high) + 1 - law.above(t.low), 1 + below - over, square)
    if isinstance(t, Reject):
        upto = 1 + law.chi2 if math.isinf(t.high) else law.mis_m2(t.high)
        retained = law.lost(t.low) - law.lost(t.high)
        return Expected(law.within(t.low, t.high), 0, retained, upto - law.mis_m2(t.low))
    if isinstance(t, Screen):
        return _screened(law.within(t.low, t.high))
    return None


def _normal_within(s2: float, low: float, high: float) -> float:
    """`P(low <= X <= high)` of `X ~ N(-s2/2, s2)`."""
    if s2 == 0:
        return 1.0 if low <= 0 <= high else 0.0
    below, upto = (math.erfc(-(x + s2 / 2) / math.sqrt(2 * s2)) / 2 for x in (low, high))
    return upto - below


def _screened(kept: float) -> Expected:
    return Expected(kept, 0, kept, kept)


@final
@dataclass(frozen=True)
class Capping:
    """The cap that one rule sets.

    Attributes:
        rule: its name in `reweigh.caps`.
        cap: under the model; a ratio pi/mu.
        expected: what truncation at it (for `mis_balance`: rejection) does under the model; None where there is no cap.
        on_data: the cap from the records' sequences; None without records, or where no sample can tell.
    """

    rule: str
    cap: Figure
    expected: Expected | None
    on_data: float | None


def cappings(law: MixedRatio, n: float, log_ratio: NDArray[np.float64] | None = None) -> tuple[Capping, ...]:
    """Set the cap of the sequence ratio by every rule.

    Args:
        law: the model.
        n: sequences in a step, at least 1.
        log_ratio: of the records' sequences, nats.

    Raises:
        ValueError: if n is below 1.
    """
    trust: Trust = "good" if law.chi2 <= CHI2_TRUSTED else "rough"
    rules: Mapping[str, CapRule | None] = {
        "balance": Balance(n=n),
        "mis_balance": None,  # no sample can tell it
        "tradeoff": Tradeoff(n=n),
        "sqrt_n": SqrtN(n=n),
        "post": Post(n=n),
        "post_batch": PostBatch(n=n),
        "cubic": Cubic(n=n),
    }
    set_caps: list[Capping] = []
    for name, rule in rules.items():
        if rule is None:
            cap = Figure(mis_balance_cap(law, n), trust)
        elif isinstance(rule, SqrtN):
            cap = Figure(rule.of_law(law))
        elif isinstance(rule, SecondMomentRule):
            # It follows from the chi-square itself, which the model does not know once it is over 1.
            cap = Figure(None, "refused") if trust == "rough" else Figure(rule.of_law(law))
        else:
            cap = Figure(rule.of_law(law), trust)
        estimator = None
        if cap.value is not None:
            estimator = seq_mis(0.0, cap.value) if rule is None else seq_tis(cap.value)
        on_data = None
        if log_ratio is not None and rule is not None:
            l = torch.as_tensor(log_ratio, dtype=torch.float64)
            on_data = float(rule.log_cap(l, torch.ones_like(l, dtype=torch.bool)).exp())
        set_caps.append(Capping(name, cap, None if estimator is None else expect(estimator, law), on_data))
    return tuple(set_caps)
