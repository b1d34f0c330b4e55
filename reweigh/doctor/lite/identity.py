"""Tests whether logged log-probs can be those of the sampler: the mean ratio is 1, and no KL divergence is negative."""

import math

import numpy as np

from reweigh.doctor.causes import CauseId
from reweigh.doctor.diagnosis import Evidence
from reweigh.doctor.lite.clue import Answer, clues, shown
from reweigh.doctor.lite.serial import Estimate, mean
from reweigh.doctor.lite.signals import Reading, Signals

MATERIAL = 1e-3  # |mean ratio - 1| below which nothing is said, however many steps show it
MATERIAL_K1 = 3e-4  # nats, likewise
SHARE_OF_K3 = 0.1  # a sample of heavy tails misses their end: k3 of 1 nat comes with a mean ratio of 0.98
UNRELATED = 1.0  # nats of k3: two unrelated log-probs side by side; an honest gap has a k1 as large as k3
FEW_LARGE = 0.2  # k3 / k1 over this: top-p p bounds it by -log(p) / 2, 0.18 at p = 0.7
CONSTANT = 1.05  # k3 over that of one and the same log ratio at every token
BOUNDS_TAKE = 3.0  # times k3: clamping ratios at 2 or more takes 1.25 k3 off their mean at most, a mask on [0.5, 5] 2.6
MOST_TRUNCATION = 0.4  # nats: top-p 0.67; beyond it is no truncation that anyone samples with
SHARE_OF_SIZE = 0.2  # of mean |log ratio|: an honest gap of 0.1 nats keeps the mean ratio within 0.01
ONE_SIDED = 0.95  # k1 / mean |log ratio|
_BROKEN: frozenset[CauseId] = frozenset({"raw_logprobs", "truncated_sampling", "vocab_padding", "wrong_token", "shift"})


def untested(signals: Signals) -> dict[str, float]:
    """Causes that this history has not what it takes to test, with how likely they are in any run with a gap."""
    if signals.get("mean_ratio") is not None:
        return {}
    truncated = {"truncated_sampling": 0.3}
    return truncated if signals.get("k1") is not None else {"raw_logprobs": 0.42, **truncated}


def identity(signals: Signals) -> Answer:
    """What k1, k3, the mean ratio and mean |log ratio| say together.

    Logged from what was sampled, and normalised on the same ids, log-probs have mean e^Delta = 1 and k1 >= 0 whatever
    the weights. Raw log-probs have k1 < 0 and a mean ratio of 1 + chi-square; a sampler that drops tokens has a mean
    ratio of the mass that it kept.
    """
    k1, k3, ratio = (signals.get(s) for s in ("k1", "k3", "mean_ratio"))
    a = mean(k1.series.values) if k1 else None
    b = mean(k3.series.values) if k3 else None
    gap = mean(ratio.series.values - 1) if ratio else None
    evidence = [*_evidence(k1, a, k3, b, ratio, gap), *_one_sided(signals)]
    trust = _trust(ratio, gap, b)
    if a and a.high < -MATERIAL_K1 / 2 and a.value < -MATERIAL_K1:
        return _negative(a, gap, evidence, trust)
    if gap and b and gap.high < 0 and -gap.value > max(MATERIAL, SHARE_OF_K3 * b.value):
        return _below_one(k1, k3, evidence, trust)
    if a and gap and b and b.value > UNRELATED and abs(a.value) < SHARE_OF_K3 * b.value:
        return Answer(clues(evidence, shift=0.55 * trust, wrong_token=0.3 * trust))
    if gap and b and gap.low > 0 and gap.value > max(MATERIAL, 0.5 * b.value):
        if b.value > UNRELATED:
            return Answer(clues(evidence, shift=0.55 * trust, wrong_token=0.3 * trust))
        return Answer(clues(evidence, raw_logprobs=0.35 * trust))
    if gap and b is None and (size := signals.get("mean_abs")):
        return _by_size(gap, mean(size.series.values), evidence)
    one_sided = any(e.name == "one_sided" and e.value > ONE_SIDED for e in evidence)
    if gap is None and one_sided and a and a.low > MATERIAL_K1:
        if a.value > MOST_TRUNCATION:
            return Answer(clues(evidence, wrong_token=0.5, placeholder_logprob=0.35, unmasked_context=0.3))
        return Answer(clues(evidence, truncated_sampling=0.6, vocab_padding=0.35))
    if gap and b and math.isfinite(gap.low):
        room = max(MATERIAL, SHARE_OF_K3 * b.value)
        if max(abs(gap.low), abs(gap.high)) < 2 * room and trust == 1:
            return Answer((), _BROKEN)
    return Answer()


def _trust(ratio: Reading | None, gap: Estimate | None, k3: Estimate | None) -> float:
    """1, or less where the mean ratio may be of weights after bounds, which could explain what it is below 1 by."""
    if ratio is None or gap is None or "bounds" not in ratio.caveat:
        return 1.0
    return 0.9 if gap.value > 0 or (k3 is not None and -gap.value > BOUNDS_TAKE * k3.value) else 0.5


def _negative(k1: Estimate, gap: Estimate | None, evidence: list[Evidence], trust: float) -> Answer:
    if gap is None:
        return Answer(clues(evidence, raw_logprobs=0.65 * trust))
    if gap.value > 20 * -k1.value:  # of the same two distributions chi-square is some 2 KL
        return Answer(clues(evidence, shift=0.5 * trust, raw_logprobs=0.35 * trust))
    if gap.low > 0:
        return Answer(clues(evidence, raw_logprobs=0.8 * trust))
    return Answer(clues(evidence, raw_logprobs=0.5 * trust, wrong_token=0.2 * trust))


def _by_size(gap: Estimate, size: Estimate, evidence: list[Evidence]) -> Answer:
    """The mean ratio against mean |log ratio|, where neither k1 nor k3 is logged."""
    evidence = [*evidence, shown("mean_abs", size, "mean |log ratio|, nats")]
    if abs(gap.value) < max(MATERIAL, SHARE_OF_SIZE * size.value) or gap.low <= 0 <= gap.high:
        return Answer()
    if gap.value < 0:
        return Answer(clues(evidence, truncated_sampling=0.55, vocab_padding=0.4, wrong_token=0.2))
    if gap.value > size.value**2 * 5:  # chi-square is near mean of the squared log ratio
        return Answer(clues(evidence, shift=0.5, wrong_token=0.3))
    return Answer(clues(evidence, raw_logprobs=0.6))


def _below_one(k1: Reading | None, k3: Reading | None, evidence: list[Evidence], trust: float) -> Answer:
    if k1 is None or k3 is None:
        return Answer(clues(evidence, truncated_sampling=0.5 * trust))
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
        other = {"wrong_token": 0.35, "placeholder_logprob": 0.35, "unmasked_context": 0.3} | {first: 0.5}
        return Answer(clues(evidence, **{name: c * trust for name, c in other.items()}))
    if constant < CONSTANT:
        return Answer(clues(evidence, vocab_padding=0.6 * trust, truncated_sampling=0.35 * trust))
    less = 0.1 if constant < 1.3 else 0.0  # rounding on top of a constant looks like this too
    return Answer(clues(evidence, truncated_sampling=(0.75 - less) * trust, vocab_padding=(0.15 + less) * trust))


def _evidence(
    k1: Reading | None,
    a: Estimate | None,
    k3: Reading | None,
    b: Estimate | None,
    ratio: Reading | None,
    gap: Estimate | None,
) -> list[Evidence]:
    out: list[Evidence] = []
    if ratio and gap:
        caveat = f"; {ratio.caveat}" if ratio.caveat else ""
        out.append(shown("mean_ratio_minus_1", gap, f"{ratio.name}, less 1; 0 for what was sampled{caveat}"))
    if k1 and a:
        out.append(shown("k1", a, f"{k1.name}, nats; a KL divergence, so that it cannot be below 0"))
    if k3 and b:
        out.append(shown("k3", b, f"{k3.name}, nats"))
    return out


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
