"""Diagnoses a run from the history of its metrics alone, and says what that cannot tell: whether log-probs can be of
what was sampled, how large the gap is, and how it moves over the run.

Steps depend on each other, so that intervals are from means of blocks of steps.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reweigh.doctor.causes import ABOUT, BENIGN, ENGINES, PROGRAMS, CauseId, fix_for
from reweigh.doctor.diagnosis import NAMED, CannotTell, Diagnosis, Evidence, Finding, InputNote
from reweigh.doctor.metrics.read import Array, Series, read_history
from reweigh.doctor.metrics.signals import FRAMEWORKS, Reading, Signal, Signals, translate
from reweigh.stats.intervals import t_quantile

FEW = 4  # steps below which nothing is said of a spread
_MOST_BLOCKS = 20


@dataclass(frozen=True)
class OverSteps:
    """A number with its 95% interval; both ends are infinite if there are too few steps for one.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: steps.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Ends of the interval as an `Evidence` has them."""
        return (self.low, self.high) if math.isfinite(self.low) else (None, None)


def blocks(values: Array) -> list[Array]:
    """Cuts steps into runs of neighbours, long enough that their means depend on each other little.

    Up to 8 steps each is its own block; after that there are sqrt(n) + 2 of them, at most 20.
    """
    n = len(values)
    count = n if n < 8 else min(_MOST_BLOCKS, math.isqrt(n) + 2)
    return [b for b in np.array_split(values, max(count, 1)) if len(b)]


def mean(values: Array) -> OverSteps:
    """Takes the mean over steps; its interval from the spread of block means, by Student's t.

    Example:
        >>> import numpy as np
        >>> e = mean(np.array([1.0, 2.0, 3.0, 4.0]))
        >>> print(f"{e.value:.1f} {e.low:.2f} {e.high:.2f}")
        2.5 0.45 4.55

    Source: batch means, for example Law (2015), section 9.5.3.
    """
    n = len(values)
    value = float(values.mean()) if n else math.nan
    if n < FEW:
        return OverSteps(value, -math.inf, math.inf, n)
    means = np.array([b.mean() for b in blocks(values)])
    half = t_quantile(0.975, len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return OverSteps(value, value - half, value + half, n)


def fold(series: Series, noisy: bool = False) -> OverSteps:
    """Divides the level at the end of the run by that at its start, by a line through block means of its logarithm.

    Args:
        series: a level, positive.
        noisy: it may be below 0 by chance: take the logarithm of block means then.
    """
    keep = np.ones(len(series), dtype=bool) if noisy else series.values > 0
    steps, values = series.steps[keep], series.values[keep]
    n = len(steps)
    x = np.array([b.mean() for b in blocks(steps)])
    y = np.array([b.mean() if noisy else np.log(b).mean() for b in blocks(values)])
    if noisy:
        x, y = x[y > 0], np.log(y[y > 0])
    spread = float(np.square(x - x.mean()).sum()) if len(x) else 0.0
    if len(x) < FEW + 1 or not spread > 0:
        return OverSteps(math.nan, -math.inf, math.inf, n)
    slope = float(((x - x.mean()) * y).sum() / spread)
    rest = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float(np.square(rest).sum()) / (len(x) - 2) / spread)
    half = t_quantile(0.975, len(x) - 2) * error
    span = float(steps[-1] - steps[0])
    low, middle, high = (math.exp(min(max(s * span, -700.0), 700.0)) for s in (slope - half, slope, slope + half))
    return OverSteps(middle, low, high, n)


def correlation(a: Series, b: Series) -> OverSteps:
    """Correlates the changes from step to step, so that two trends alone do not correlate.

    The interval is Fisher's, with half as many values as there are changes, because neighbouring ones share a step.
    """
    a, b = a.with_(b)
    x, y = np.diff(a.values), np.diff(b.values)
    n = len(x)
    if n < 10 or not (x.std() > 0 and y.std() > 0):
        return OverSteps(math.nan, -math.inf, math.inf, n)
    r = float(np.corrcoef(x, y)[0, 1])
    z, half = math.atanh(min(max(r, -0.999999), 0.999999)), 1.96 / math.sqrt(n / 2 - 3) if n > 8 else math.inf
    return OverSteps(r, math.tanh(z - half), math.tanh(z + half), n)


@dataclass(frozen=True)
class Clue:
    """One cause with what speaks for it.

    Attributes:
        id: the cause.
        confidence: 0 to 1; scalars rarely prove, so that none is over 0.8.
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
    """

    clues: tuple[Clue, ...] = ()
    excluded: frozenset[CauseId] = frozenset()


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
BOUNDS_TAKE = 3.0  # times k3: clamping ratios at 2 or more takes 1.25 k3 off their mean at most, a mask on [0.5, 5] 2.6
MOST_TRUNCATION = 0.4  # nats: top-p 0.67; beyond it is no truncation that anyone samples with
SHARE_OF_SIZE = 0.2  # of mean |log ratio|: an honest gap of 0.1 nats keeps the mean ratio within 0.01
ONE_SIDED = 0.95  # k1 / mean |log ratio|
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


def _trust(ratio: Reading | None, gap: OverSteps | None, k3: OverSteps | None) -> float:
    """Returns 1, or less where the mean ratio may be of weights after bounds, which could take it below 1."""
    if ratio is None or gap is None or "bounds" not in ratio.caveat:
        return 1.0
    return 0.9 if gap.value > 0 or (k3 is not None and -gap.value > BOUNDS_TAKE * k3.value) else 0.5


def _negative(k1: OverSteps, gap: OverSteps | None, evidence: list[Evidence], trust: float) -> Answer:
    if gap is None:
        return Answer(clues(evidence, raw_logprobs=0.65 * trust))
    if gap.value > 20 * -k1.value:  # of the same two distributions chi-square is some 2 KL
        return Answer(clues(evidence, shift=0.5 * trust, raw_logprobs=0.35 * trust))
    if gap.low > 0:
        return Answer(clues(evidence, raw_logprobs=0.8 * trust))
    return Answer(clues(evidence, raw_logprobs=0.5 * trust, wrong_token=0.2 * trust))


def _by_size(gap: OverSteps, size: OverSteps, evidence: list[Evidence]) -> Answer:
    """Tests the mean ratio against mean |log ratio|, where neither k1 nor k3 is logged."""
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


AGREED = 1e-3  # nats of k3 below which both sides log the same distribution
LEAST = 0.02  # nats between surprise and entropy that matter
OTHER_MEANS = 0.15  # of the entropy, where one is a mean over tokens and the other over sequences
SAME_MEANS = 0.05


def surprise(signals: Signals) -> Answer:
    """Tests mean -log pi less mean entropy: 0 when sampled from pi, negative at a temperature below 1 or under top-p.

    With a log ratio near 0 the two sides agree on a distribution that nobody sampled from: both log before temperature.
    With one that is not, the trainer may leave the temperature out. By Cauchy and Schwarz a distribution at k3 nats
    shifts the surprise by up to sqrt(2 k3 Var), so that this is tested against sqrt(2 k3).
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
    level = float(k3.series.values.mean()) if k3 else None
    if level is None and size:  # half the square of mean |log ratio|: no k3 is much smaller
        level = float(size.series.values.mean()) ** 2 / 2
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
    if level < AGREED:
        return Answer(clues(evidence, both_raw=0.7 if same else 0.6))
    return Answer(clues(evidence, trainer_temperature=0.45)) if difference.value < 0 else Answer()


@dataclass(frozen=True)
class Bands:
    """Ends of the bands that a level is put into.

    Attributes:
        zero: below it there is no gap.
        rounding: up to here bf16 and other kernels make it.
        bits: up to here fp8 and experts make it.
        large: from here on it takes another computation.
        less: what to take off the metric first.
        source: who says so.
        noisy: values of single steps may be below 0 by chance, and their mean near 0 though the gap is large.
    """

    zero: float
    rounding: float
    bits: float
    large: float
    less: float
    source: str
    noisy: bool = False


BANDS: dict[Signal, Bands] = {
    "k3": Bands(1e-7, 2e-3, 1e-2, 5e-2, 0, "prime-rl: floor 0.0015, target below 0.01; verl#7519: fp8 0.010 to 0.031"),
    "mean_abs": Bands(
        1e-6, 0.02, 0.05, 0.2, 0, "miles: up to 0.03; TRL#5312: 0.010 to 0.018, 0.201 when weights roll back"
    ),
    "mean_prob_diff": Bands(1e-7, 0.005, 0.01, 0.05, 0, "verl's FAQ: below 0.005 is usual, over 0.01 is the engine"),
    "mult_error": Bands(1e-6, 0.03, 0.1, 0.3, 1, "NeMo-RL: below 1.05, its nightly runs below 1.1"),
    "k1": Bands(1e-7, 2e-3, 1e-2, 5e-2, 0, "as k3, which has the same mean", True),
}
"""In the order of preference; k1 last, because it is the noisiest."""
_TEMPLATE = (0.5, 1.2)  # nats of mean |log ratio|: miles' guide, "about 0.8 per token on an instruct model"


@dataclass(frozen=True, eq=False)
class Size:
    """The signal that says how large the gap is.

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
        return sum(value > end for end in (b.zero, b.rounding, b.bits, b.large))


def level_of(signals: Signals) -> Size | None:
    """Picks the best signal of size that there is."""
    for signal, bands in BANDS.items():
        reading = signals.get(signal)
        if reading is not None:
            series = Series(reading.series.steps, reading.series.values - bands.less)
            return Size(signal, reading, series, bands)
    return None


def compare(level: Size, calm: Array | None, untested: Mapping[str, float]) -> Answer:
    """Lists what makes a gap of this size.

    Args:
        level: the signal of size.
        calm: values of the steps before weights moved apart, if the level moves; None if it does not.
        untested: causes that could not be tested, with their confidence.
    """
    estimate = mean(level.series.values if calm is None else calm)
    size = estimate.value
    where = "" if calm is None else "calmest steps of "
    less = f" less {level.bands.less:g}" if level.bands.less else ""
    evidence = [shown("level", estimate, f"{where}{level.reading.name}{less}; known levels: {level.bands.source}")]
    band = level.band(size)
    if level.bands.noisy and abs(level.series.values).max() > level.bands.zero:
        band = max(band, 1)  # a mean near 0 is no sign of no gap
    if band == 0:
        return Answer(clues(evidence, none=0.6), _NOT_WITHOUT_GAP)
    if band == 1:
        if level.bands.noisy:
            return Answer(clues(evidence, numerics=0.3 if calm is not None else 0.4))
        return Answer(clues(evidence, numerics=0.3 if calm is not None else 0.7), _NOT_SO_SMALL)
    if band == 2:
        return Answer(
            clues(evidence, numerics=0.4 if level.bands.noisy else 0.5, quantised_rollout=0.35, moe_routing=0.35)
        )
    if band == 3:
        return Answer(
            clues(evidence, quantised_rollout=0.4, moe_routing=0.4, engine_decode=0.25, numerics=0.2, **untested)
        )
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
            **untested,
        )
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


GROWS = 1.5  # times over the run that matter
SURE = 1.2  # what the lower end of the interval has to be over
JUMP = 2.0  # times, at the first update or at a fall
NOISE = 4.0  # standard deviations of a step's logarithm that a jump has to be over
WITH_LAG = 0.5  # correlation
CLIMB = 0.8  # rank correlation with time between falls: a level that only scatters has 0


@dataclass(frozen=True, eq=False)
class Course:
    """A level's course over the run.

    Attributes:
        answer: what that says.
        calm: values of the steps at which weights are closest; None if the level stays where it is.
    """

    answer: Answer
    calm: Array | None


def shape(level: Size, signals: Signals) -> Course:
    """Tests how the level moves. Updates that do not arrive, arrive late or are rounded away look alike."""
    series, noisy = level.series, level.bands.noisy
    trend, lag = fold(series, noisy), signals.get("lag")
    calm: Array | None = None
    given: list[Clue] = []
    follows = False
    if lag:
        together = correlation(Series(*_logs(series)), lag.series)
        follows = together.low > 0.1 and together.value > WITH_LAG
        if follows:
            text = "correlation of changes of the level's logarithm with changes of the lag"
            given += clues([shown("with_lag", together, text)], stale_weights=0.65)
    falls, ends = (None, []) if noisy else _falls(series)
    if falls:
        calm = series.values[np.isin(series.steps, ends)]
        given += clues([falls], stale_kv=0.4, stale_weights=0.35)
    rate = signals.get("learning_rate")
    jump, first = (None, 0) if noisy else _onset(series, rate.series if rate else None)
    fixed = lag is not None and float(np.ptp(lag.series.values)) == 0
    if jump:
        calm = series.values[:first]
        given += clues([jump], weight_sync=0.5 if fixed else 0.4, stale_weights=0.1 if fixed else 0.35)
    if not falls and trend.low > SURE and trend.value > GROWS:
        text = f"{level.reading.name} at the end of the run over its start"
        grown = shown("growth", trend, text)
        calm = blocks(series.values)[0] if calm is None else calm
        end = float(series.values[-max(1, len(series) // 5) :].mean())
        scale = 1.0 if level.band(end) >= 2 else 0.7  # growth within what rounding makes
        less = 0.3 if fixed or follows else 1.0
        given += clues(
            [grown],
            stale_weights=0.42 * scale * (less if fixed else 1.0),
            weight_sync=0.4 * scale * (less if follows else 1.0),
            update_below_precision=0.3 * scale,
            stale_kv=0.25 * scale,
        )
    return Course(Answer(tuple(given)), calm)


def _logs(series: Series) -> tuple[Array, Array]:
    keep = series.values > 0
    return series.steps[keep], np.log(series.values[keep])


def _deviation(changes: Array) -> float:
    """Estimates the deviation of a step's value by the median change between neighbours: falls do not count."""
    return 1.4826 * float(np.median(np.abs(changes - np.median(changes)))) / math.sqrt(2)


def _onset(series: Series, rate: Series | None) -> tuple[Evidence | None, int]:
    """Finds the jump at the first update, and how many steps stand before it."""
    steps, logs = _logs(series)
    first = 1
    if rate is not None and (rate.values > 0).any():
        moved = float(rate.steps[rate.values > 0][0])
        first = int(np.searchsorted(steps, moved, side="right"))
    before, after = logs[:first], logs[first : first + 10]
    if len(logs) < len(series) or len(before) < 1 or len(after) < FEW:
        return None, 0
    size = float(after.mean() - before.mean())
    noise = max(float(after.std(ddof=1)), _deviation(np.diff(logs[first:])))
    gradual = abs(float(after[0] - before[-1])) < size / 2
    if gradual or size < max(math.log(JUMP), NOISE * noise):
        return None, 0
    half = 1.96 * noise * math.sqrt(1 / len(before) + 1 / len(after))
    text = f"level after step {steps[first - 1]:g} over that before, the first update (n counts steps)"
    return Evidence("onset", math.exp(size), text, math.exp(size - half), math.exp(size + half), len(logs)), first


def _falls(series: Series) -> tuple[Evidence | None, list[float]]:
    """Finds climbs and falls, and the steps at which the level is down."""
    steps, logs = _logs(series)
    if len(logs) < 8:
        return None, []
    changes = np.diff(logs)
    down = changes < -max(math.log(JUMP), NOISE * math.sqrt(2) * _deviation(changes))
    places = np.flatnonzero(down)
    ends = [0, *(places + 1).tolist()]
    climbs = [  # rank correlations with time
        float(np.corrcoef(np.argsort(np.argsort(logs[a:b])), np.arange(b - a))[0, 1])
        for a, b in zip(ends, [*ends[1:], len(logs)], strict=True)
        if b - a >= FEW
    ]
    if len(places) < 2 or len(climbs) < 2 or float(np.median(climbs)) < CLIMB:
        return None, []
    at = ", ".join(f"{steps[p + 1]:g}" for p in places[:4])
    text = f"times that the level climbs and falls back by half or more, at steps {at}: a restart, an update, a cache"
    return Evidence("falls_back", float(len(places)), text, n=len(logs)), [float(steps[e]) for e in ends]


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
        hint = f"log {' or '.join(names)}" if names else f"{signals.framework} logs none; reweigh's own logging does"
        notes.append(InputNote(f"{rule} lost is {lost}", 1, "metrics", hint=hint))
    return tuple(notes)


def cannot_tell(
    signals: Signals, named: Collection[CauseId], excluded: Collection[CauseId], moves: bool
) -> tuple[CannotTell, ...]:
    """Lists every cause that is neither named for sure nor ruled out.

    Args:
        signals: what there is.
        named: causes that are named with a confidence of 0.5 or more.
        excluded: causes that a test rules out.
        moves: whether the level grows, jumps or falls back over the run.
    """
    settled = {*named, *excluded, *BENIGN}
    out: list[CannotTell] = []
    for cause, about in ABOUT.items():
        if cause in settled:
            continue
        reason = about.unseen
        if cause in _MOVING and not moves:
            reason = "the gap does not move over the run, but updates may be too small or too few for it to show"
        if absent := [s for s in _TAKES.get(cause, ()) if signals.get(s) is None]:
            reason = f"it takes {' and '.join(absent)}, which {signals.framework}'s history does not have"
        out.append(CannotTell(cause, reason, about.needs, about.experiment))
    return tuple(out)


def diagnose_metrics(path: str | Path, framework: str | None = None) -> Diagnosis:
    """Diagnoses a run from the history of its metrics: k3 - k1 = mean ratio - 1, and what else scalars can show.

    For runs of which no log-probs were kept. Scalars rarely prove: no confidence is over 0.8, and `cannot_tell` is
    long. `reweigh.records` of one step say more than the history of all.

    Args:
        path: CSV, JSONL, JSON or Parquet with one row a step, or a TensorBoard log directory.
        framework: whose metric names they are: "reweigh", "verl", "slime" (miles too), "nemo-rl", "prime-rl", "trl",
            "skyrl", "ms-swift", "openrlhf", "tinker", "open-instruct", "areal"; None to recognise them.

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
        raw_logprobs 0.8
    """
    return diagnose_signals(translate(read_history(path), framework))


def diagnose_signals(signals: Signals) -> Diagnosis:
    """Diagnoses a run from signals that have been read."""
    first = identity(signals)
    broken = any(c.confidence >= NAMED for c in first.clues)
    answers = [first] if broken else [first, surprise(signals)]  # a broken identity shifts the surprise too
    level, moves = level_of(signals), False
    if level is not None:
        course = shape(level, signals)
        answers.append(course.answer)
        moves = course.calm is not None
        if not broken:  # else its size is that of the fault, and says nothing of other causes
            answers.append(compare(level, course.calm, untested(signals)))
    excluded = frozenset[CauseId]().union(*(a.excluded for a in answers))
    findings = _ranked([c for a in answers for c in a.clues], excluded, signals.framework)
    named: list[CauseId] = [f.id for f in findings if f.confidence >= NAMED]
    excluded -= {f.id for f in findings}
    return Diagnosis(
        verdict=findings[0].id if findings else "none",
        causes=tuple(findings),
        cannot_tell=cannot_tell(signals, named, excluded, moves),
        source="metrics",
        notes=(*signals.notes, *missing(signals)),
    )


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
