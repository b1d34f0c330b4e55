"""Diagnoses a run from the history of its metrics alone, and says what that cannot tell: whether log-probs can be of
what was sampled, how large the gap is, and how it moves over the run.

A cause is named only where the numbers show it, at .8 or more; what they only fit is a suspicion, below .5, and a run
with nothing but suspicions is not decided.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from reweigh.doctor.causes import ABOUT, BENIGN, ENGINES, PROGRAMS, CauseId, fix_for
from reweigh.doctor.diagnosis import NAMED, NOT_DECIDED, CannotTell, Diagnosis, Evidence, Finding, InputNote
from reweigh.doctor.metrics.read import Array, Series, read_history
from reweigh.doctor.metrics.signals import FRAMEWORKS, Reading, Signal, Signals, translate
from reweigh.doctor.metrics.steps import (
    FEW,
    GROWS,
    SURE,
    OverSteps,
    Period,
    blocks,
    correlation,
    deviation,
    falls,
    fold,
    jump,
    logs,
    mean,
    onset,
    period,
    ranks,
    spikes,
)


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
_TWICE = 0.85
_OPEN = 0.45  # the likeliest of what scalars cannot tell apart


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


def untested(signals: Signals) -> dict[str, float]:
    """Lists causes that this history has not what it takes to test, with how likely they are in any run with a gap."""
    if signals.get("mean_ratio") is not None:
        return {}
    truncated = {"truncated_sampling": 0.3}
    return truncated if signals.get("k1") is not None else {"raw_logprobs": 0.42, **truncated}


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
            return Answer(clues(evidence, shift=_OPEN, wrong_token=0.3), deviates=True)
        return Answer(clues(evidence, raw_logprobs=0.35, shift=0.25), deviates=True)
    if gap and b is None and (size := signals.get("mean_abs")):
        return _by_size(gap, mean(size.series.values), evidence)
    one_sided = any(e.name == "one_sided" and e.value > ONE_SIDED for e in evidence)
    if gap is None and one_sided and a and a.low > MATERIAL_K1:
        if a.value > MOST_TRUNCATION:
            return Answer(
                clues(evidence, wrong_token=0.4, placeholder_logprob=0.35, unmasked_context=0.3), deviates=True
            )
        return Answer(clues(evidence, truncated_sampling=_OPEN, vocab_padding=0.4), deviates=True)
    if gap is None and (bounded := _bounded(signals)):
        return Answer(clues([*evidence, *bounded], truncated_sampling=_OPEN, vocab_padding=0.4), deviates=True)
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
    return Answer(clues(evidence, shift=_OPEN, wrong_token=0.3), deviates=True)


def _negative(k1: OverSteps, gap: OverSteps | None, evidence: list[Evidence]) -> Answer:
    if k1.agreed < AGREED_BLOCKS:
        return Answer(clues(evidence, raw_logprobs=0.4), deviates=True)
    if gap is None:
        return Answer(clues(evidence, raw_logprobs=SHOWN), deviates=True)
    if gap.value > 20 * -k1.value:  # of the same two distributions chi-square is some 2 KL
        return Answer(clues(evidence, shift=0.4, raw_logprobs=0.35), deviates=True)
    if gap.low > 0:
        return Answer(clues(evidence, raw_logprobs=_TWICE), deviates=True)
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
        return Answer(clues(evidence, truncated_sampling=_OPEN, vocab_padding=0.4, wrong_token=0.3), deviates=True)
    if gap.value > size.value**2 * 5:  # chi-square is near mean of the squared log ratio
        return Answer(clues(evidence, shift=_OPEN, wrong_token=0.3), deviates=True)
    return Answer(clues(evidence, raw_logprobs=SHOWN if steady else 0.4), deviates=True)


def _below_one(k1: Reading | None, k3: Reading | None, evidence: list[Evidence], sure: bool) -> Answer:
    if k1 is None or k3 is None:
        return Answer(clues(evidence, truncated_sampling=_OPEN), deviates=True)
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
        return Answer(clues(evidence, **(other | {first: _OPEN})), deviates=True)
    if constant < CONSTANT:  # flat distributions under top-p keep much the same mass everywhere, as padding does
        return Answer(clues(evidence, truncated_sampling=_OPEN, vocab_padding=0.43), deviates=True)
    return Answer(clues(evidence, truncated_sampling=SHOWN if sure else _OPEN, vocab_padding=0.3), deviates=True)


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
        return Answer(clues(evidence, both_raw=SHOWN if sure else _OPEN), deviates=sure)
    return Answer(clues(evidence, trainer_temperature=_OPEN))


@dataclass(frozen=True)
class Bands:
    """Ends of the bands that a level is put into.

    Attributes:
        zero: below it there is no gap.
        rounding: up to here bf16 and other kernels make it.
        bits: up to here fp8 and experts make it.
        large: from here on it takes another computation.
        less: what to take off the metric first; with `falls`, what to take the metric off.
        source: who says so.
        noisy: values of single steps may be below 0 by chance, and their mean near 0 though the gap is large.
        falls: True if the metric is 1 without a gap, and less with one.
    """

    zero: float
    rounding: float
    bits: float
    large: float
    less: float
    source: str
    noisy: bool = False
    falls: bool = False


_K3 = "prime-rl: floor 0.0015, target below 0.01; verl#7519: fp8 0.010 to 0.031"
BANDS: dict[Signal, Bands] = {
    "k3": Bands(1e-7, 3e-3, 1e-2, 5e-2, 0, _K3),
    "mean_abs": Bands(
        1e-6, 0.03, 0.06, 0.2, 0, "miles: up to 0.03; TRL#5312: 0.010 to 0.018, 0.201 when weights roll back"
    ),
    "mean_prob_diff": Bands(1e-7, 0.005, 0.01, 0.05, 0, "verl's FAQ: below 0.005 is usual, over 0.01 is the engine"),
    "mult_error": Bands(1e-6, 0.05, 0.1, 0.3, 1, "NeMo-RL: below 1.05, its nightly runs below 1.1"),
    "k2": Bands(1e-7, 3e-3, 1e-2, 5e-2, 0, "as k3, which is the same for small gaps"),
    "correlation": Bands(1e-6, 2e-3, 2e-2, 0.2, 1, "verl: 0.999 is usual; verl#7519: fp8 0.986 to 0.874", falls=True),
    "k1": Bands(1e-7, 3e-3, 1e-2, 5e-2, 0, "as k3, which has the same mean", True),
}
"""In the order of preference; k1 last, because it is the noisiest."""
_TEMPLATE = (0.5, 1.2)  # nats of mean |log ratio|: miles' guide, "about 0.8 per token on an instruct model"
_SMALL = 0.1  # of the end of the rounding band: below it no cause is worth a fix


@dataclass(frozen=True, eq=False)
class Size:
    """A signal that says how large the gap is.

    Attributes:
        signal: which.
        reading: its metric.
        series: values, 0 for no gap.
        bands: what they are compared with.
    """

    signal: Signal
    reading: Reading
    series: Series
    bands: Bands

    def band(self, value: float) -> int:
        """Says which band a value is in: 0 no gap, 1 rounding, 2 more than rounding, 3 few bits or experts, 4 large."""
        b = self.bands
        zero = max(b.zero, 5e-5) if self.reading.rounded else b.zero
        return sum(value > end for end in (zero, b.rounding, b.bits, b.large))

    @property
    def name(self) -> str:
        """Its name in evidence."""
        less = f"{self.bands.less:g}"
        if self.bands.falls:
            return f"{less} less {self.reading.name}"
        return f"{self.reading.name} less {less}" if self.bands.less else self.reading.name


def sizes_of(signals: Signals) -> list[Size]:
    """Lists the signals of size that there are, the best first."""
    out: list[Size] = []
    for signal, bands in BANDS.items():
        reading = signals.get(signal)
        if reading is not None:
            values = bands.less - reading.series.values if bands.falls else reading.series.values - bands.less
            out.append(Size(signal, reading, Series(reading.series.steps, values), bands))
    return out


def compare(sizes: Sequence[Size], calm: Array | None, signals: Signals) -> Answer:
    """Lists what makes a gap of this size.

    Args:
        sizes: signals of size, the best first.
        calm: values of the best one at the steps before weights moved apart, if it moves; None if it does not.
        signals: what else there is.
    """
    level = sizes[0]
    estimate = mean(level.series.values if calm is None else calm)
    size = float(np.median(level.series.values if calm is None else calm))
    where = "" if calm is None else "calmest steps of "
    evidence = [shown("level", estimate, f"{where}{level.name}; known levels: {level.bands.source}")]
    band = level.band(size)
    if level.bands.noisy and abs(level.series.values).max() > level.bands.zero:
        band = max(band, 1)  # a mean near 0 is no sign of no gap
    others = [(one, one.band(float(np.median(one.series.values)))) for one in sizes[1:] if not one.bands.noisy]
    for one, _ in others if calm is None else ():
        evidence.append(shown(f"level_{one.signal}", mean(one.series.values), f"{one.name}; {one.bands.source}"))
    steady = calm is None and estimate.n >= FEW
    if calm is not None and band <= 1:  # what is left when the weights are closest is no cause of what moves
        return Answer((), _NOT_SO_SMALL if band else _NOT_WITHOUT_GAP)
    if band == 0:
        return Answer(clues(evidence, none=SHOWN if steady else 0.4), _NOT_WITHOUT_GAP)
    if band == 1:
        agree = all(b <= 1 for _, b in others) or (len(others) > 1 and all(b <= 2 for _, b in others))
        unsure = level.bands.noisy and not estimate.low > 0.75 * estimate.value  # its interval would hide a movement
        late = _behind(signals) == "by some"  # a lag adds to rounding what a mean does not tell from it
        if not steady or unsure or not agree or late:
            return Answer(clues(evidence, numerics=0.4, **({"stale_weights": 0.4} if late else {})))
        return Answer(clues(evidence, numerics=SHOWN), _NOT_SO_SMALL)
    open_ = untested(signals)
    behind = {"stale_weights": {"by none": 0.0, "unknown": 0.3, "by some": _OPEN}[_behind(signals)]}
    behind = {cause: confidence for cause, confidence in behind.items() if confidence}
    if band == 2:
        return Answer(clues(evidence, numerics=0.4, quantised_rollout=0.35, moe_routing=0.35, **behind))
    if band == 3:
        weighed = {"quantised_rollout": 0.4, "moe_routing": 0.4, "engine_decode": 0.25, "numerics": 0.2}
        return Answer(clues(evidence, **weighed, **behind, **open_))
    if level.signal == "correlation":  # pairs that are not of the same tokens have a correlation near 0
        wrong = {"shift": 0.4, "wrong_token": 0.35, "retokenisation": 0.35, "template_prefix": 0.3, "weight_sync": 0.3}
        return Answer(clues(evidence, **wrong, **behind, dropout=0.25, position_encoding=0.25))
    template = level.signal == "mean_abs" and _TEMPLATE[0] < size < _TEMPLATE[1]
    return Answer(
        clues(
            evidence,
            dropout=0.35,
            template_prefix=0.4 if template else 0.3,
            packing_leak=0.25,
            position_encoding=0.25,
            unmasked_context=0.25,
            retokenisation=0.25,
            moe_routing=0.2,
            **behind,
            **open_,
        )
    )


def _behind(signals: Signals) -> Literal["by none", "by some", "unknown"]:
    """Says whether the sampler is some updates behind, where the lag is logged."""
    lag = signals.get("lag")
    if lag is None:
        return "unknown"
    return (
        "by some" if float(np.median(lag.series.values)) > 0.5 else "unknown" if lag.series.values.any() else "by none"
    )


_NOT_SO_SMALL: frozenset[CauseId] = frozenset({"wrong_token", "shift", "dropout"})
_NOT_WITHOUT_GAP: frozenset[CauseId] = frozenset(
    {
        "wrong_token",
        "shift",
        "dropout",
        "raw_logprobs",
        "truncated_sampling",
        "vocab_padding",
        "trainer_temperature",
        "template_prefix",
        "packing_leak",
        "position_encoding",
        "moe_routing",
        "quantised_rollout",
        "placeholder_logprob",
        "retokenisation",
    }
)
WITH_LAG = 0.5  # correlation
_FOLLOWS = 0.8  # rank correlation of the level with the length or the entropy
_LONGER = 1.2  # times that the length has to grow for the level to go with it
_MANY_SPIKES = 0.05  # share of the steps


@dataclass(frozen=True, eq=False)
class Course:
    """A level's course over the run.

    Attributes:
        answer: what that says.
        calm: values of the steps at which weights are closest; None if the level stays where it is.
        from_step: the step from which the level is another one, if there is one.
        notes: what goes with it.
    """

    answer: Answer
    calm: Array | None
    from_step: float | None = None
    notes: tuple[InputNote, ...] = ()


@dataclass(frozen=True, eq=False)
class _Context:
    """What is known beside the gap.

    Attributes:
        frozen: True if the learning rate is 0 all along: weights do not move.
        lag: updates that the sampler is behind, if logged.
        prompt: True if the lag is 0 all along.
        fixed: True if the lag never changes.
    """

    frozen: bool = False
    lag: Reading | None = None
    prompt: bool = False
    fixed: bool = False
    excluded: frozenset[CauseId] = field(default_factory=frozenset[CauseId])

    @classmethod
    def of(cls, signals: Signals, steps: Array) -> "_Context":
        rate, lag = signals.get("learning_rate"), signals.get("lag")
        frozen = False
        if rate is not None and len(steps):
            inside = rate.series.values[(rate.series.steps >= steps[0]) & (rate.series.steps <= steps[-1])]
            frozen = len(inside) > 0 and not inside.any()
        prompt = lag is not None and not lag.series.values.any()
        fixed = lag is not None and float(np.ptp(lag.series.values)) == 0
        out: set[CauseId] = set(_OF_WEIGHTS if frozen else ())
        if prompt:
            out.add("stale_weights")
        return cls(frozen, lag, prompt, fixed, frozenset(out))


_OF_WEIGHTS: tuple[CauseId, ...] = ("stale_weights", "weight_sync", "update_below_precision", "stale_kv")


def shape(sizes: Sequence[Size], signals: Signals) -> Course:
    """Tests how the level moves. Updates that do not arrive, arrive late or are rounded away look alike."""
    level = sizes[0]
    series, noisy = level.series, level.bands.noisy
    context = _Context.of(signals, series.steps)
    trend, lag = fold(series, noisy), context.lag
    calm: Array | None = None
    given: list[Clue] = []
    notes: list[InputNote] = []
    follows = False
    if lag:
        together = correlation(logs(series), lag.series)
        follows = together.low > 0.1 and together.value > WITH_LAG
        if follows:
            text = "correlation of changes of the level's logarithm with changes of the lag"
            strong = together.low > 0.3 and together.n >= 16
            given += clues([shown("with_lag", together, text)], stale_weights=_TWICE if strong else _OPEN)
            calm = series.values[
                np.argsort(lag.series.with_(series)[0].values, kind="stable")[: max(1, len(series) // 5)]
            ]
    if noisy:
        fallen, ends, jumped, first, changed, at, repeats = None, [], None, 0, None, 0.0, None
    else:
        rate = signals.get("learning_rate")
        fallen, ends = falls(series)
        jumped, first = onset(series, rate.series if rate else None)
        changed, at = jump(series)
        repeats = period(series)
    with_data = _with_epochs(repeats, signals) if repeats else None
    if fallen and not follows and not with_data:
        calm = series.values[np.isin(series.steps, ends)]
        given += clues([fallen], stale_weights=0.42, stale_kv=0.4, weight_sync=0.25)
    if repeats and not follows:
        low = np.sort(series.values)[: max(1, len(series) // 4)]
        calm = low if calm is None else calm
        if with_data:
            causes = {"engine_decode": 0.4, "retokenisation": 0.35, "placeholder_logprob": 0.3}
            given += clues([repeats.evidence, with_data], **causes)
        elif repeats.climbs:
            given += clues([repeats.evidence], stale_weights=_OPEN, stale_kv=0.3)
        else:
            given += clues([repeats.evidence], stale_weights=0.4, engine_decode=0.3)
    if jumped:
        calm = series.values[:first]
        after = level.band(float(np.median(series.values[first:])))
        shows = context.prompt and after >= 2 and jumped.value > 3
        given += clues([jumped], weight_sync=SHOWN if shows else _OPEN, stale_weights=0.4)
    elif changed and not fallen and not repeats and not follows:
        before, later = series.values[series.steps < at], series.values[series.steps >= at]
        calm = min(before, later, key=lambda v: float(np.median(v)))
        given += clues([changed], weight_sync=0.35, stale_kv=0.3, engine_decode=0.3, stale_weights=0.3)
    elif not fallen and not repeats and trend.low > SURE and trend.value > GROWS:
        grown = shown("growth", trend, f"{level.name} at the end of the run over its start")
        calm = blocks(series.values)[0] if calm is None else calm
        given += _growth(grown, level, signals, context, follows)
    elif trend.high < 1 / SURE and trend.value < 1 / GROWS and level.band(float(series.values.max())) > 1:
        causes = {"stale_weights": 0.35, "weight_sync": 0.25, "quantised_rollout": 0.25}
        fallen_to = shown("growth", trend, f"{level.name} at the end of the run over its start")
        calm = blocks(series.values)[-1] if calm is None else calm
        given += clues([fallen_to], **causes)
        rate = signals.get("learning_rate")
        if rate is not None and len(both := level.series.with_(rate.series)[0]) >= 2 * FEW:
            lower = fold(rate.series)
            if ranks(both.values, rate.series.with_(series)[0].values) > _FOLLOWS and lower.value < 1 / GROWS:
                text = f"{rate.name} at the end over its start: the gap goes with the size of the updates"
                given += clues([fallen_to, shown("with_learning_rate", lower, text)], stale_weights=_OPEN)
    if calm is None and not noisy:
        places, most = spikes(series)
        if places:
            where = ", ".join(f"{p:g}" for p in places[:4]) + (" ..." if len(places) > 4 else "")
            hint = "look at what was sampled there"
            notes.append(
                InputNote(
                    f"{level.name} is up to {most:.2g} times its median", len(places), "steps", f"steps {where}", hint
                )
            )
        large = any(level.band(float(series.values[series.steps == p][0])) >= 4 for p in places)
        if len(places) > max(2.0, _MANY_SPIKES * len(series)) or (large and len(places) > 2):
            calm = series.values[~np.isin(series.steps, places)]
            text = f"steps at which {level.name} is over 3 times its median (n counts steps)"
            spiked = Evidence("spikes", float(len(places)), text, n=len(series))
            given += clues([spiked], engine_decode=0.4, placeholder_logprob=0.3, retokenisation=0.3)
    if calm is None and not noisy:
        scattered = _scatter(sizes)
        if scattered is not None:
            calm = np.sort(series.values)[: max(1, len(series) // 5)]
            given += clues([scattered], stale_weights=0.4, engine_decode=0.25, moe_routing=0.2)
    spacing = float(np.median(np.diff(series.steps))) if len(series) > 1 else 1.0
    notes += _goes_on([*ends[1:], *([at] if changed else [])], signals, spacing)
    given = [c for c in given if c.id not in context.excluded]
    return Course(Answer(tuple(given), context.excluded), calm, at if changed else None, tuple(notes))


_SCATTERS = 0.3  # standard deviation of a step's logarithm, of a mean |log ratio|: rounding has 0.1 on 1,000 tokens
_SQUARES: frozenset[Signal] = frozenset({"k2", "k3", "correlation"})  # go with the square of the log ratio


def _scatter(sizes: Sequence[Size]) -> Evidence | None:
    """Finds a level that differs from step to step more than rounding does; None if one of the signals is steady."""
    least: tuple[float, Size] | None = None
    for one in sizes:
        level = logs(one.series)
        if one.bands.noisy or one.reading.rounded or len(level) < 8:
            continue
        by_step = deviation(np.diff(level.values)) / (2 if one.signal in _SQUARES else 1)
        if least is None or by_step < least[0]:
            least = (by_step, one)
    if least is None or least[0] < _SCATTERS:
        return None
    text = f"standard deviation of the logarithm of {least[1].name} from step to step, as of a mean |log ratio|"
    return Evidence("scatter", least[0], f"{text} (n counts steps)", n=len(least[1].series))


def _with_epochs(repeats: Period, signals: Signals) -> Evidence | None:
    """Tells whether a level repeats itself with the epochs: then it follows the data, not the weights."""
    epoch = signals.get("epoch")
    if epoch is None or len(epoch.series) <= FEW:
        return None
    each = float(np.median(np.diff(epoch.series.values) / np.diff(epoch.series.steps)))
    if not each > 0 or abs(repeats.evidence.value * each - 1) > 0.15:
        return None
    text = f"steps of an epoch, by {epoch.name}: the level follows the data, not the weights"
    return Evidence("epoch", 1 / each, text, n=len(epoch.series))


def _goes_on(places: Iterable[float], signals: Signals, spacing: float) -> list[InputNote]:
    """Says which of some steps are those from which the run went on from a checkpoint."""
    found = sorted({r for p in places for r in signals.resumed if 0 <= p - r <= 2 * spacing})
    if not found:
        return []
    at = ", ".join(f"{r:g}" for r in found[:4])
    hint = "what a start sets up anew (engine, caches, weights) is what changed"
    return [
        InputNote("the gap changes where the run went on from a checkpoint", len(found), "steps", f"steps {at}", hint)
    ]


def _growth(grown: Evidence, level: Size, signals: Signals, context: _Context, follows: bool) -> list[Clue]:
    """Says what a level that grows may come from: weights, if they move; longer responses, if it goes with them."""
    given: list[Clue] = []
    if not context.frozen:
        end = float(np.median(level.series.values[-max(1, len(level.series) // 5) :]))
        scale = 1.0 if level.band(end) >= 2 else 0.7  # growth within what rounding makes
        less = 0.3 if context.fixed or follows else 1.0
        given += clues(
            [grown],
            stale_weights=0.42 * scale * (less if context.fixed else 1.0),
            weight_sync=0.4 * scale * (less if follows else 1.0),
            update_below_precision=0.3 * scale,
            stale_kv=0.25 * scale,
        )
    else:
        rate = signals.get("learning_rate")
        text = f"{rate.name if rate else 'learning rate'}: weights do not move, so that the growth is not of them"
        frozen = Evidence("learning_rate", 0.0, text, n=len(level.series))
        given += clues([grown, frozen], engine_decode=0.35, position_encoding=0.3, moe_routing=0.2)
    beside_it: tuple[tuple[Signal, dict[str, float]], ...] = (
        ("length", {"position_encoding": 0.4, "engine_decode": 0.42}),
        ("entropy", {"numerics": 0.35, "moe_routing": 0.3}),
    )
    for signal, causes in beside_it:
        beside = signals.get(signal)
        if beside is None:
            continue
        a, b = level.series.with_(beside.series)
        if len(a) < 2 * FEW:
            continue
        longer, r = fold(b), ranks(a.values, b.values)
        if r > _FOLLOWS and longer.low > _LONGER:
            text = f"{beside.name} at the end over its start: the gap goes with it (rank correlation {r:.2g})"
            given += clues([grown, shown(f"with_{signal}", longer, text)], **causes)
    return given


_MOVING: frozenset[CauseId] = frozenset({"stale_weights", "weight_sync", "update_below_precision"})
_TAKES: Mapping[CauseId, tuple[Signal, ...]] = {
    "raw_logprobs": ("k1", "mean_ratio"),
    "truncated_sampling": ("k1", "k3", "mean_ratio"),
    "vocab_padding": ("k1", "k3", "mean_ratio"),
    "wrong_token": ("k1", "k3", "mean_ratio"),
    "shift": ("k1", "k3", "mean_ratio"),
    "both_raw": ("log_ppl_pi", "entropy"),
    "trainer_temperature": ("log_ppl_pi", "entropy"),
}
_LOST: Mapping[Signal, str] = {
    "k1": "its sign, which tells log-probs from before temperature",
    "mean_ratio": "whether the log-probs can be those that were sampled from",
    "entropy": "whether both sides log before temperature",
    "log_ppl_pi": "whether both sides log before temperature",
    "lag": "whether the gap follows the lag",
}


def missing(signals: Signals) -> tuple[InputNote, ...]:
    """Lists signals that are not there, and what is lost without them."""
    notes: list[InputNote] = []
    for signal, lost in _LOST.items():
        if signals.get(signal) is not None:
            continue
        there = signals.readings.get(signal)
        names = [k.name for k in FRAMEWORKS[signals.framework] if k.signal == signal and k.usable]
        rule = f"no usable {signal}:"
        if there is not None:
            rule = f"{there.name} cannot be used for {signal}: {there.caveat or 'it does not fit the others'};"
        if signals.framework == "trl" and signal == "mean_ratio":
            rule = "sampling/importance_sampling_ratio is logged after clamp and mask;"
        hint = (
            ""
            if there is not None
            else f"log {' or '.join(names)}"
            if names
            else f"{signals.framework} logs none; reweigh's own logging does"
        )
        notes.append(InputNote(f"{rule} lost is {lost}", 1, "metrics", hint=hint))
    return tuple(notes)


def cannot_tell(
    signals: Signals, likely: Sequence[CauseId], named: Collection[CauseId], excluded: Collection[CauseId], moves: bool
) -> tuple[CannotTell, ...]:
    """Lists every cause that is neither named for sure nor ruled out, the suspected ones first.

    Args:
        signals: what there is.
        likely: causes that are suspected, the likeliest first.
        named: causes that are named.
        excluded: causes that a test rules out.
        moves: whether the level grows, jumps or falls back over the run.
    """
    settled = {*named, *excluded, *BENIGN}
    out: list[CannotTell] = []
    for cause in dict.fromkeys((*likely, *ABOUT)):
        if cause in settled:
            continue
        about = ABOUT[cause]
        reason = about.unseen
        if cause in _MOVING and not moves:
            reason = "the gap does not move over the run, but updates may be too small or too few for it to show"
        if absent := [s for s in _TAKES.get(cause, ()) if signals.get(s) is None]:
            reason = f"it takes {' and '.join(absent)}, which {signals.framework}'s history does not have"
        out.append(CannotTell(cause, reason, about.needs, about.experiment))
    return tuple(out)


def diagnose_metrics(path: str | Path, framework: str | None = None) -> Diagnosis:
    """Diagnoses a run from the history of its metrics: k3 - k1 = mean ratio - 1, and what else scalars can show.

    For runs of which no log-probs were kept. Scalars rarely prove: what they do not show is "not_decided", with what it
    may be and the experiment that would tell. `reweigh.records` of one step say more than the history of all.

    Args:
        path: CSV, JSONL, JSON or Parquet with one row a step, the store of MLflow or trackio, a TensorBoard log
            directory, or what the trainer printed.
        framework: whose metric names they are: "reweigh", "verl", "slime" (miles too), "nemo-rl", "prime-rl", "trl"
            (Unsloth too), "skyrl", "ms-swift", "openrlhf", "tinker", "open-instruct", "areal", "roll"; None to
            recognise them.

    Returns:
        A diagnosis with `source="metrics"`. The n of its evidence counts steps, and intervals are from means of blocks
        of steps, since steps are not independent.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it cannot be read, or no metric in it is known.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> rows = ["step,rollout_corr/kl,rollout_corr/k3_kl"]
        >>> rows += [f"{i},{-0.20 - 0.01 * (i % 3)},{0.18 + 0.01 * (i % 2)}" for i in range(12)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "run.csv"
        ...     _ = file.write_text(chr(10).join(rows))
        ...     diagnosis = diagnose_metrics(file)
        >>> print(diagnosis.verdict, diagnosis.causes[0].confidence)
        raw_logprobs 0.85
    """
    return diagnose_signals(translate(read_history(path), framework))


def diagnose_signals(signals: Signals) -> Diagnosis:
    """Diagnoses a run from signals that have been read."""
    sizes = sizes_of(signals)
    course = shape(sizes, signals) if sizes else None
    notes = [*signals.notes, *(course.notes if course else ())]
    first = identity(signals)
    if course and course.from_step is not None and not _named(first):
        later = identity(signals.between(course.from_step, math.inf))
        if _named(later):
            first = later
            hint = f"the verdict is on the steps from {course.from_step:g} on"
            notes.append(
                InputNote("the gap is another one from a step on", 1, "step", f"step {course.from_step:g}", hint)
            )
    broken = _named(first)
    answers = (
        [first] if broken else [first, surprise(signals, first.deviates)]
    )  # a broken identity shifts the surprise too
    moves = False
    if sizes and course:
        answers.append(course.answer)
        moves = course.calm is not None
        if not broken:  # else its size is that of the fault, and says nothing of other causes
            answers.append(compare(sizes, course.calm, signals))
        notes += _remarks(sizes[0], signals, moves)
    excluded = frozenset[CauseId]().union(*(a.excluded for a in answers))
    given = [c for a in answers for c in a.clues]
    if any(a.deviates for a in answers):  # whatever it is, it is not rounding
        given = [replace(c, confidence=min(c.confidence, 0.4)) if c.id in BENIGN else c for c in given]
    findings = _ranked(given, excluded, signals.framework)
    named: list[CauseId] = [f.id for f in findings if f.confidence >= NAMED]
    likely: list[CauseId] = [f.id for f in findings if f.confidence < NAMED]
    excluded -= {f.id for f in findings}
    return Diagnosis(
        verdict=named[0] if named else NOT_DECIDED,
        causes=tuple(findings),
        cannot_tell=cannot_tell(signals, likely, named, excluded, moves),
        source="metrics",
        notes=(*notes, *missing(signals)),
    )


def _named(answer: Answer) -> bool:
    return any(c.confidence >= NAMED for c in answer.clues)


def _remarks(level: Size, signals: Signals, moves: bool) -> list[InputNote]:
    """Says what keeps the level from saying more: too few steps, a run that ended before its log, a tiny gap."""
    notes: list[InputNote] = []
    n, end = len(level.series), float(level.series.steps[-1])
    if n < FEW:
        notes.append(
            InputNote(f"too few steps of {level.reading.name} for an interval", n, "steps", hint="log more steps")
        )
    if moves and float(level.series.values.max()) < _SMALL * level.bands.rounding:
        hint = "no cause is worth a fix at this size"
        notes.append(InputNote(f"{level.name} moves, but stays far below what rounding makes", n, "steps", hint=hint))
    spacing = float(np.median(np.diff(level.series.steps))) if n > 1 else 1.0
    if signals.last > end + 2 * spacing:
        hint = "what is said is of the steps before"
        notes.append(InputNote(f"{level.reading.name} ends before the run", 1, "metrics", f"step {end:g}", hint))
    return notes


def _ranked(given: Sequence[Clue], excluded: Collection[CauseId], framework: str) -> list[Finding]:
    """Makes one finding a cause, the likeliest first; several clues for one cause keep the highest confidence."""
    by_cause: dict[CauseId, list[Clue]] = {}
    for clue in given:
        if clue.id not in excluded or clue.confidence >= NAMED:
            by_cause.setdefault(clue.id, []).append(clue)
    programs = (*ENGINES, framework) if framework in PROGRAMS else ENGINES
    findings: list[Finding] = []
    for cause, ones in by_cause.items():
        ones.sort(key=lambda c: -c.confidence)
        evidence = tuple(dict.fromkeys(e for clue in ones for e in clue.evidence))
        fix = fix_for(cause, programs)
        findings.append(Finding(cause, ones[0].confidence, None, evidence, ABOUT[cause].rules_out, fix))
    strongest = max((f.confidence for f in findings if f.id not in BENIGN), default=0.0)
    return sorted((f for f in findings if strongest < NAMED or f.id not in BENIGN), key=lambda f: -f.confidence)
