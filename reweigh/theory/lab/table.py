"""The post's summary table, measured: exponents and constants that stand beside its big-O."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reweigh.estimators import Estimator
from reweigh.named import naive, seq_is, seq_tis, token_is, token_tis
from reweigh.theory.bounds import (
    post_naive_second_moment,
    post_quadratic_bias,
    post_seq_is_variance,
    post_tis_bias,
    post_tis_variance,
    post_token_second_moment,
)
from reweigh.theory.lab.closed_forms import RARE, SMOOTH, Counted, Extremes, growth_rate
from reweigh.theory.lab.distances import StateDistances
from reweigh.theory.lab.exact import Loss, PPOClip, exact, reinforce
from reweigh.theory.lab.world import World, random_policies, random_world

ROUNDING = 1e-9
"""A quantity below this is 0."""


@dataclass(frozen=True)
class Fit:
    """`constant x^exponent`, by least squares of logarithms.

    Attributes:
        exponent: NaN where the quantity is 0 somewhere.
        constant: NaN likewise.
        last: the quantity at the largest x.
        slack: the post's bound at the largest x over the quantity (of Seq-IS the whole second moment); infinite where
            that is 0.
    """

    exponent: float
    constant: float
    last: float
    slack: float


@dataclass(frozen=True)
class Spread:
    """Median and range of an exponent over random worlds; NaN where there is none."""

    median: float
    low: float
    high: float


def fit(x: Sequence[float], y: Sequence[float], bound: float) -> Fit:
    """Fit a power of x to y, with the bound at the last place."""
    exponent = slope(x, y)
    middle = np.exp(np.mean(np.log(y)) - exponent * np.mean(np.log(x))) if math.isfinite(exponent) else math.nan
    return Fit(exponent, float(middle), y[-1], bound / y[-1] if y[-1] > ROUNDING else math.inf)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Fit the slope of log y against log x, by least squares; NaN where y is 0 somewhere."""
    if min(y) <= ROUNDING:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def spread(slopes: Sequence[float]) -> Spread:
    """Take median and range of exponents, one a world."""
    known = [v for v in slopes if math.isfinite(v)]
    if len(known) < len(slopes):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(float(np.median(known)), min(known), max(known))


LENGTHS = (16, 32, 64, 128)
CAP, CAPS = 2.0, (2.0, 4.0, 8.0, 16.0)
RANDOM_LENGTHS = (3, 5, 7)  # odd ones: a majority of an even number is another event
RANDOM_SEEDS = range(12)
STEPS = 2 * len(LENGTHS) + 2 + 2 * len(RANDOM_SEEDS)
"""How often `post_table` counts."""
_EXPONENTIAL, _TIS = "(1+chi2)^T", ("T (1+chi2)/C", "T^2 C^2")
_GAP = 0.5  # nats, between the logits of the random worlds


@dataclass(frozen=True)
class Row:
    """One claim of the post's table, and what is measured.

    Attributes:
        estimator: whose.
        quantity: bias; second moment, which is at least the variance; or "E r^2", that of the ratio alone.
        of: what it grows with: T, the cap C, or m2 = (1 + chi2_max)^T, of which the exponent is then a power.
        post: what the post says, in its own letters.
        smooth: over all rewards with |R| <= 1, where every ratio is a little off.
        rare: the same, where mu hardly ever samples one token.
        random: over Markov worlds with two fixed rewards each.
    """

    estimator: str
    quantity: str
    of: str
    post: str
    smooth: Fit
    rare: Fit
    random: Spread

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it: what is not a number or infinite is None."""
        plain: dict[str, Any] = asdict(self)
        for part in ("smooth", "rare", "random"):
            plain[part] = {k: v if math.isfinite(v) else None for k, v in plain[part].items()}
        return plain


class _Place:
    """A gap of iid tokens at a length: where a bound of the post is evaluated."""

    def __init__(self, gap: tuple[tuple[float, ...], tuple[float, ...]], length: int) -> None:
        pi, mu = (np.array(p) / sum(p) for p in gap)
        self.length, self.counted = length, Counted.of(pi, mu, length)
        self.tv = float(np.abs(pi - mu).sum() / 2)
        self.token_m2 = float((pi**2 / mu).sum())
        self.m2 = self.token_m2**length
        self.f_max = self.counted.score_max * length


@dataclass(frozen=True)
class _Subject:
    """An estimator of the table, with what the post says of it and the bounds that it has for that, at cap C."""

    name: str
    estimator: Estimator
    bias: str
    variance: str
    bias_bound: Callable[[_Place], float]
    variance_bound: Callable[[_Place], float]
    loss: Loss = reinforce


def post_table(count: Callable[[int], None] = lambda _: None) -> list[Row]:
    """Measure all of it: some twenty seconds.

    Args:
        count: told of every step, of `STEPS`.
    """
    subjects, extremes = _subjects(), dict[tuple[int, int, int], Extremes]()
    places = [[_Place(gap, length) for length in LENGTHS] for gap in (SMOOTH, RARE)]
    for g, of_gap in enumerate(places):
        for t, place in enumerate(of_gap):
            for s, subject in enumerate(subjects):
                extremes[g, t, s] = place.counted.extremes(subject.estimator, subject.loss)
            count(1)
    random = _random(subjects, count)
    rows: list[Row] = []
    for s, subject in enumerate(subjects):
        fits: dict[str, list[Fit]] = {"bias": [], "second moment": []}
        for g, of_gap in enumerate(places):
            at = [extremes[g, t, s] for t in range(len(LENGTHS))]
            fits["bias"].append(fit(LENGTHS, [x.bias for x in at], subject.bias_bound(of_gap[-1])))
            x, y = LENGTHS, [x.second_moment for x in at]
            bound = subject.variance_bound(of_gap[-1])
            if subject.variance == _EXPONENTIAL:
                x, y = [p.m2 for p in of_gap], [p.counted.m2 for p in of_gap]
                bound *= y[-1] / at[-1].second_moment
            fits["second moment"].append(fit(x, y, bound))
        of, second = ("m2", "E r^2") if subject.variance == _EXPONENTIAL else ("T", "second moment")
        bias, moment = fits["bias"], fits["second moment"]
        rows += [
            Row(subject.name, "bias", "T", subject.bias, bias[0], bias[1], random[s, "bias"]),
            Row(subject.name, second, of, subject.variance, moment[0], moment[1], random[s, "second moment"]),
        ]
    return rows + _in_cap([of_gap[-1] for of_gap in places], count)


def _subjects() -> list[_Subject]:
    def quadratic(p: _Place) -> float:
        return post_quadratic_bias(1.0, p.counted.score_max, p.length, p.tv)

    def token(weight_m2: Callable[[_Place], float]) -> Callable[[_Place], float]:
        return lambda p: post_token_second_moment(1.0, p.counted.score_max, p.length, weight_m2(p))

    level = ("T^2 Delta", "T^2 (1+chi2)", quadratic)
    return [
        _Subject("Naive", naive(), *level, lambda p: post_naive_second_moment(1.0, p.counted.score_max, p.length)),
        _Subject("Token-IS", token_is(), *level, token(lambda p: p.token_m2)),
        _Subject("Token-TIS(2)", token_tis(CAP), *level, token(lambda _: CAP**2)),
        _Subject("PPO-clip(.2)", naive(), *level, token(lambda p: p.token_m2), PPOClip()),
        _Subject(
            "Seq-IS", seq_is(), "0", _EXPONENTIAL, lambda _: 0.0, lambda p: post_seq_is_variance(p.f_max, 1.0, p.m2, 0)
        ),
        _Subject("Seq-TIS(2)", seq_tis(CAP), *_TIS, lambda p: _tis_bias(p, CAP), lambda p: _tis_variance(p, CAP)),
    ]


def _tis_bias(p: _Place, cap: float) -> float:
    return post_tis_bias(p.f_max, p.m2 - 1, cap)


def _tis_variance(p: _Place, cap: float) -> float:
    return post_tis_variance(p.f_max, cap)


def _in_cap(places: list[_Place], count: Callable[[int], None]) -> list[Row]:
    """How Seq-TIS depends on its cap, at the largest length."""
    fits: dict[str, list[Fit]] = {"bias": [], "second moment": []}
    for p in places:
        at = [p.counted.extremes(seq_tis(cap)) for cap in CAPS]
        fits["bias"].append(fit(CAPS, [x.bias for x in at], _tis_bias(p, CAPS[-1])))
        fits["second moment"].append(fit(CAPS, [x.second_moment for x in at], _tis_variance(p, CAPS[-1])))
        count(1)
    slopes: dict[str, list[float]] = {"bias": [], "second moment": []}
    for seed in RANDOM_SEEDS:
        world = _worlds(seed, RANDOM_LENGTHS[-1])[0]
        at = [exact(world, seq_tis(cap)) for cap in CAPS]
        slopes["bias"].append(slope(CAPS, [x.bias_norm for x in at]))
        slopes["second moment"].append(slope(CAPS, [x.second_moment for x in at]))
        count(1)
    return [
        Row("Seq-TIS", quantity, "C", post, fits[quantity][0], fits[quantity][1], spread(slopes[quantity]))
        for quantity, post in zip(fits, _TIS, strict=True)
    ]


def _random(subjects: list[_Subject], count: Callable[[int], None]) -> dict[tuple[int, str], Spread]:
    slopes: dict[tuple[int, str], list[float]] = {}
    for seed in RANDOM_SEEDS:
        at = {length: _worlds(seed, length) for length in RANDOM_LENGTHS}
        for s, subject in enumerate(subjects):
            for kind in range(len(at[RANDOM_LENGTHS[0]])):
                x = [exact(at[length][kind], subject.estimator, loss=subject.loss) for length in RANDOM_LENGTHS]
                slopes.setdefault((s, "bias"), []).append(slope(RANDOM_LENGTHS, [e.bias_norm for e in x]))
                if subject.variance != _EXPONENTIAL:
                    y = [e.second_moment for e in x]
                    slopes.setdefault((s, "second moment"), []).append(slope(RANDOM_LENGTHS, y))
            if subject.variance == _EXPONENTIAL:
                policies = at[RANDOM_LENGTHS[-1]][0].policies
                largest = math.log1p(float(StateDistances.of(policies).chi2.max()))
                slopes.setdefault((s, "second moment"), []).append(growth_rate(policies) / largest)
        count(1)
    return {key: spread(values) for key, values in slopes.items()}


def _worlds(seed: int, length: int) -> list[World]:
    """Markov policies of three tokens that are the same at every length: one reward counts tokens, one is noise."""
    policies = random_policies(3, length, memory=1, gap=_GAP, seed=seed)
    noise = random_world(3, length, memory=1, gap=_GAP, reward="binary", seed=seed)
    return [World.scored(policies, lambda tokens: float(2 * tokens.count(0) > len(tokens))), noise]
