"""Tests by scalars whether log-probs can be of what was sampled: what must hold of a mean ratio, k1, k3 and entropy."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reweigh.doctor.causes import CauseId
from reweigh.doctor.diagnosis import Evidence
from reweigh.doctor.metrics.signals import Reading, Signals
from reweigh.doctor.metrics.steps import FEW, OverSteps, mean


@dataclass(frozen=True)
class Clue:
    """One cause with what speaks for it.

    Attributes:
        id: the cause.
        confidence: 0 to 1: from `SHOWN` on it is shown, below `NAMED` only suspected, nothing between.
        evidence: the numbers.
    """

    id: CauseId
    confidence: float
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Answer:
    """One test's word.

    Attributes:
        clues: for causes.
        excluded: causes that it rules out.
        deviates: True if what must hold of sampled tokens does not, whatever the cause.
    """

    clues: tuple[Clue, ...] = ()
    excluded: frozenset[CauseId] = frozenset()
    deviates: bool = False


SHOWN = 0.8
"""Confidence of a cause that scalars show; 0.85 where two of them do, independently."""
TWICE = 0.85
OPEN = 0.45  # the likeliest of what scalars cannot tell apart


def clues(evidence: Iterable[Evidence], **confidence: float) -> tuple[Clue, ...]:
    """Makes clues for several causes out of one set of numbers."""
    shown = tuple(evidence)
    return tuple(Clue(cause, c, shown) for cause, c in confidence.items())  # pyright: ignore[reportArgumentType]


def shown(name: str, estimate: OverSteps, meaning: str) -> Evidence:
    """Puts an estimate over steps into words."""
    low, high = estimate.ends
    return Evidence(name, estimate.value, f"{meaning} (n counts steps)", low, high, estimate.n)


MATERIAL = 1e-3  # |mean ratio - 1| below which nothing is said, however many steps show it
MATERIAL_K1 = 3e-4  # nats, likewise
SHARE_OF_K3 = 0.1  # a sample of heavy tails misses their end: k3 of 1 nat comes with a mean ratio of 0.98
UNRELATED = 1.0  # nats of k3: two unrelated log-probs side by side; an honest gap has a k1 as large as k3
FEW_LARGE = 0.2  # k3 / k1 over this: top-p p bounds it by -log(p) / 2, 0.18 at p = 0.7
CONSTANT = 1.05  # k3 over that of one and the same log ratio at every token
VARIES = 1.15  # likewise, where k3 is not logged and rounding adds to it
BOUNDS_TAKE = 3.0  # times k3: clamping ratios at 2 or more takes 1.25 k3 off their mean at most, a mask on [0.5, 5] 2.6
MOST_TRUNCATION = 0.4  # nats: top-p 0.67; beyond it is no truncation that anyone samples with
SHARE_OF_SIZE = 0.2  # of mean |log ratio|: an honest gap of 0.1 nats keeps the mean ratio within 0.01
ONE_SIDED = 0.95  # k1 / mean |log ratio|
AGREED_BLOCKS = 0.9  # share of the blocks of steps that have to show it, so that no single step decides
_BROKEN: frozenset[CauseId] = frozenset({"raw_logprobs", "truncated_sampling", "vocab_padding", "wrong_token", "shift"})


def identity(signals: Signals) -> Answer:
    """Tests k1, k3, the mean ratio and mean |log ratio| against what must hold of sampled tokens.

    Logged from what was sampled, and normalised on the same ids, log-probs have mean e^Delta = 1 and k1 >= 0 whatever
    the weights. Raw log-probs have k1 < 0 and a mean ratio of 1 + chi-square; a sampler that drops tokens has a mean
    ratio of the mass that it kept.
    """
    k1, k3, ratio = (signals.get(s) for s in ("k1", "k3", "mean_ratio"))
    a = mean(k1.series.values) if k1 else None
    b = mean(k3.series.values) if k3 else None
    gap = mean(ratio.series.values - 1) if ratio else None
    evidence: list[Evidence] = []
    if ratio and gap:
        caveat = f"; {ratio.caveat}" if ratio.caveat else ""
        evidence.append(shown("mean_ratio_minus_1", gap, f"{ratio.name}, less 1; 0 for what was sampled{caveat}"))
    if k1 and a:
        evidence.append(shown("k1", a, f"{k1.name}, nats; a KL divergence, so that it cannot be below 0"))
    if k3 and b:
        evidence.append(shown("k3", b, f"{k3.name}, nats"))
    evidence += _one_sided(signals)
    trusted = _trusted(ratio, gap, b)
    level = float(np.median(k3.series.values)) if k3 else 0.0  # a single step may have any k3
    if k1 and a and b and level > UNRELATED and abs(float(np.median(k1.series.values))) < SHARE_OF_K3 * level:
        return _unrelated(evidence, b)
    if a and a.high < -MATERIAL_K1 / 2 and a.value < -max(MATERIAL_K1, 0.05 * level):
        return _negative(a, gap, evidence)
    if gap and b and gap.high < 0 and -gap.value > max(MATERIAL, SHARE_OF_K3 * level):
        return _below_one(k1, k3, evidence, trusted and gap.agreed >= AGREED_BLOCKS)
    if gap and b and gap.low > 0 and gap.value > max(MATERIAL, 0.5 * level):
        if level > UNRELATED:
            return Answer(clues(evidence, shift=OPEN, wrong_token=0.3), deviates=True)
        return Answer(clues(evidence, raw_logprobs=0.35, shift=0.25), deviates=True)
    if gap and b is None and (size := signals.get("mean_abs")):
        return _by_size(gap, mean(size.series.values), evidence)
    one_sided = any(e.name == "one_sided" and e.value > ONE_SIDED for e in evidence)
    if gap is None and one_sided and a and a.low > MATERIAL_K1:
        if a.value > MOST_TRUNCATION:
            return Answer(
                clues(evidence, wrong_token=0.4, placeholder_logprob=0.35, unmasked_context=0.3), deviates=True
            )
        return Answer(clues(evidence, truncated_sampling=OPEN, vocab_padding=0.4), deviates=True)
    if gap is None and (bounded := _bounded(signals)):
        return Answer(clues([*evidence, *bounded], truncated_sampling=OPEN, vocab_padding=0.4), deviates=True)
    if gap and b and math.isfinite(gap.low):
        room = max(MATERIAL, SHARE_OF_K3 * b.value)
        if max(abs(gap.low), abs(gap.high)) < 2 * room and trusted:
            return Answer((), _BROKEN)
    return Answer()


def _trusted(ratio: Reading | None, gap: OverSteps | None, k3: OverSteps | None) -> bool:
    """Returns False where the mean ratio may be of weights after bounds, which could take it below 1."""
    if ratio is None or gap is None or "bounds" not in ratio.caveat:
        return True
    return gap.value > 0 or (k3 is not None and -gap.value > BOUNDS_TAKE * k3.value)


def _unrelated(evidence: Sequence[Evidence], k3: OverSteps) -> Answer:
    """Tells of pairs that are not of the same tokens: log-probs with the same mean that differ by nats."""
    if k3.n >= FEW:
        return Answer(clues(evidence, shift=SHOWN, wrong_token=0.3, retokenisation=0.3), deviates=True)
    return Answer(clues(evidence, shift=OPEN, wrong_token=0.3), deviates=True)


def _negative(k1: OverSteps, gap: OverSteps | None, evidence: list[Evidence]) -> Answer:
    if k1.agreed < AGREED_BLOCKS:
        return Answer(clues(evidence, raw_logprobs=0.4), deviates=True)
    if gap is None:
        return Answer(clues(evidence, raw_logprobs=SHOWN), deviates=True)
    if gap.value > 20 * -k1.value:  # of the same two distributions chi-square is some 2 KL
        return Answer(clues(evidence, shift=0.4, raw_logprobs=0.35), deviates=True)
    if gap.low > 0:
        return Answer(clues(evidence, raw_logprobs=TWICE), deviates=True)
    return Answer(clues(evidence, raw_logprobs=0.4, wrong_token=0.2), deviates=True)


def _by_size(gap: OverSteps, size: OverSteps, evidence: list[Evidence]) -> Answer:
    """Tests the mean ratio against mean |log ratio|, where neither k1 nor k3 is logged.

    Where the sampler's log-prob is the higher one at every token, k1 is mean |log ratio|, and k3 follows.
    """
    evidence = [*evidence, shown("mean_abs", size, "mean |log ratio|, nats")]
    if abs(gap.value) < max(MATERIAL, SHARE_OF_SIZE * size.value) or gap.low <= 0 <= gap.high:
        return Answer()
    steady = gap.agreed >= AGREED_BLOCKS
    if gap.value < 0:
        k3 = max(size.value + gap.value, 0.0)
        constant = k3 / (math.expm1(-size.value) + size.value)
        one_sided = -gap.value > (1 - FEW_LARGE) * size.value and size.value < MOST_TRUNCATION
        if one_sided and constant > VARIES and steady:
            return Answer(clues(evidence, truncated_sampling=SHOWN, vocab_padding=0.3), deviates=True)
        return Answer(clues(evidence, truncated_sampling=OPEN, vocab_padding=0.4, wrong_token=0.3), deviates=True)
    if gap.value > size.value**2 * 5:  # chi-square is near mean of the squared log ratio
        return Answer(clues(evidence, shift=OPEN, wrong_token=0.3), deviates=True)
    return Answer(clues(evidence, raw_logprobs=SHOWN if steady else 0.4), deviates=True)


def _below_one(k1: Reading | None, k3: Reading | None, evidence: list[Evidence], sure: bool) -> Answer:
    if k1 is None or k3 is None:
        return Answer(clues(evidence, truncated_sampling=OPEN), deviates=True)
    x, y = k1.series.with_(k3.series)
    large = float(y.values.mean() / x.values.mean())
    constant = float(np.median(y.values / (np.expm1(-x.values) + x.values)))
    evidence = [
        *evidence,
        Evidence("k3_over_k1", large, "k3 / k1: small if many tokens are off by a little", n=len(x)),
        Evidence(
            "constancy",
            constant,
            "k3 over what it would be were the log ratio the same at every token: 1 if it is",
            n=len(x),
        ),
    ]
    if large > FEW_LARGE:
        first = "wrong_token" if x.values.mean() > MOST_TRUNCATION else "placeholder_logprob"
        other = {"wrong_token": 0.35, "placeholder_logprob": 0.35, "unmasked_context": 0.3, "truncated_sampling": 0.3}
        return Answer(clues(evidence, **(other | {first: OPEN})), deviates=True)
    if constant < CONSTANT:  # flat distributions under top-p keep much the same mass everywhere, as padding does
        return Answer(clues(evidence, truncated_sampling=OPEN, vocab_padding=0.43), deviates=True)
    return Answer(clues(evidence, truncated_sampling=SHOWN if sure else OPEN, vocab_padding=0.3), deviates=True)


def _one_sided(signals: Signals) -> list[Evidence]:
    k1, size = signals.get("k1"), signals.get("mean_abs")
    if k1 is None or size is None or k1.over != size.over:
        return []
    a, b = mean(k1.series.values), mean(size.series.values)
    if not b.value > 0:
        return []
    low, high = (a.low / b.value, a.high / b.value) if math.isfinite(a.low) else (None, None)
    text = "k1 over mean |log ratio|: 1 if the sampler's log-prob is the higher one at every token (n counts steps)"
    return [Evidence("one_sided", a.value / b.value, text, low, high, min(a.n, b.n))]


BOUNDED = 4.0  # max over mean |log ratio|: rounding has over 10 on a few hundred tokens, top-p 2 or 3


def _bounded(signals: Signals) -> list[Evidence]:
    """Finds a largest log ratio that is hardly larger than their mean, as one that top-p bounds by -log p."""
    most, size = signals.get("max_abs"), signals.get("mean_abs")
    if most is None or size is None:
        return []
    x, y = most.series.with_(size.series)
    if len(x) < FEW or float(np.median(y.values)) < MATERIAL:
        return []
    times = float(np.median(x.values / np.maximum(y.values, 1e-300)))
    text = "largest |log ratio| over their mean: small if something bounds them, as top-p does (n counts steps)"
    return [Evidence("max_over_mean", times, text, n=len(x))] if times < BOUNDED else []


AGREED = 1e-3  # nats of k3 below which both sides log the same distribution
LEAST = 0.02  # nats between surprise and entropy that matter
OTHER_MEANS = 0.15  # of the entropy, where one is a mean over tokens and the other over sequences
SAME_MEANS = 0.05


def surprise(signals: Signals, broken: bool = False) -> Answer:
    """Tests mean -log pi less mean entropy: 0 when sampled from pi, negative at a temperature below 1 or under top-p.

    With a log ratio near 0 the two sides agree on a distribution that nobody sampled from: both log before temperature.
    With one that is not, the trainer may leave the temperature out. By Cauchy and Schwarz a distribution at k3 nats
    shifts the surprise by up to sqrt(2 k3 Var), so that this is tested against sqrt(2 k3).

    Args:
        signals: what there is.
        broken: whether the log-probs are known not to be of what was sampled, which shifts the surprise too.
    """
    log_ppl, entropy = signals.get("log_ppl_pi"), signals.get("entropy")
    if log_ppl is None or entropy is None:
        return Answer()
    x, y = log_ppl.series.with_(entropy.series)
    if len(x) >= FEW:
        difference, h = mean(x.values - y.values), float(y.values.mean())
    else:  # two means of which nothing is known together: half widths add
        a, b = mean(log_ppl.series.values), mean(entropy.series.values)
        difference, h = OverSteps(a.value - b.value, a.low - b.high, a.high - b.low, min(a.n, b.n)), b.value
    k3, size = signals.get("k3"), signals.get("mean_abs")
    level = float(np.median(k3.series.values)) if k3 else None
    if level is None and size:  # half the square of mean |log ratio|: no k3 is much smaller
        level = float(np.median(size.series.values)) ** 2 / 2
    if level is None or not h > 0 or not math.isfinite(difference.low):
        return Answer()
    same = log_ppl.over == entropy.over
    room = max(LEAST, (SAME_MEANS if same else OTHER_MEANS) * h, math.sqrt(2 * max(level, 0.0)) / 2)
    caveat = "" if same else f"; one is a mean over {log_ppl.over}, the other over {entropy.over}"
    text = f"{log_ppl.name} less {entropy.name}, nats; 0 if tokens are sampled from what the trainer scores{caveat}"
    evidence = [shown("surprise_minus_entropy", difference, text)]
    if abs(difference.value) < room or difference.low <= 0 <= difference.high:
        settled = same and level < AGREED
        return Answer((), frozenset({"both_raw"}) if settled else frozenset())
    if difference.value > 0:  # what is sampled surprises the trainer: no sharper sampler does that
        return Answer()
    if level < AGREED:
        sure = not broken and difference.agreed >= AGREED_BLOCKS and (same or -difference.value > 2 * room)
        return Answer(clues(evidence, both_raw=SHOWN if sure else OPEN), deviates=sure)
    return Answer(clues(evidence, trainer_temperature=OPEN))
