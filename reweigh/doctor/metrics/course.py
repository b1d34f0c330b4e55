"""Says what a gap of this size may come from, and what its course over the run does: growth, jumps, falls, periods."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from reweigh.doctor.causes import CauseId
from reweigh.doctor.diagnosis import Evidence, InputNote
from reweigh.doctor.metrics.history import Array, Series
from reweigh.doctor.metrics.sampled import OPEN, SHOWN, TWICE, Answer, Clue, clues, shown
from reweigh.doctor.metrics.signals import Reading, Signal, Signals
from reweigh.doctor.metrics.steps import (
    FEW,
    GROWS,
    SURE,
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


def untested(signals: Signals) -> dict[str, float]:
    """Lists causes that this history has not what it takes to test, with how likely they are in any run with a gap."""
    if signals.get("mean_ratio") is not None:
        return {}
    truncated = {"truncated_sampling": 0.3}
    return truncated if signals.get("k1") is not None else {"raw_logprobs": 0.42, **truncated}


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
        alone: up to here it is rounding where nothing else is logged that could tell.
    """

    zero: float
    rounding: float
    bits: float
    large: float
    less: float
    source: str
    noisy: bool = False
    falls: bool = False
    alone: float = math.inf


_K3 = "prime-rl: floor 0.0015, target below 0.01; verl#7519: fp8 0.010 to 0.031"
_ABS = "miles: up to 0.03; TRL#5312: 0.010 to 0.018, 0.201 when weights roll back"
BANDS: dict[Signal, Bands] = {
    "k3": Bands(1e-7, 3e-3, 1e-2, 5e-2, 0, _K3, alone=1.5e-3),
    "mean_abs": Bands(1e-6, 0.03, 0.06, 0.2, 0, _ABS, alone=0.02),
    "mean_prob_diff": Bands(1e-7, 0.005, 0.01, 0.05, 0, "verl's FAQ: below 0.005 is usual, over 0.01 is the engine"),
    "mult_error": Bands(1e-6, 0.05, 0.1, 0.3, 1, "NeMo-RL: below 1.05, its nightly runs below 1.1"),
    "k2": Bands(1e-7, 3e-3, 1e-2, 5e-2, 0, "as k3, which is the same for small gaps"),
    "correlation": Bands(1e-6, 2e-3, 2e-2, 0.2, 1, "verl: 0.999 is usual; verl#7519: fp8 0.986 to 0.874", falls=True),
    "k1": Bands(1e-7, 3e-3, 1e-2, 5e-2, 0, "as k3, which has the same mean", True),
}
"""In the order of preference; k1 last, because it is the noisiest."""
_TEMPLATE = (0.5, 1.2)  # nats of mean |log ratio|: miles' guide, "about 0.8 per token on an instruct model"
SMALL = 0.1  # of the end of the rounding band: below it no cause is worth a fix


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
        alone = not others and signals.get("mean_ratio") is None and size > level.bands.alone
        if not steady or unsure or not agree or late or alone:
            return Answer(clues(evidence, numerics=0.4, **({"stale_weights": 0.4} if late else {})))
        return Answer(clues(evidence, numerics=SHOWN), _NOT_SO_SMALL)
    open_ = untested(signals)
    behind = {"stale_weights": {"by none": 0.0, "unknown": 0.3, "by some": OPEN}[_behind(signals)]}
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
            given += clues([shown("with_lag", together, text)], stale_weights=TWICE if strong else OPEN)
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
            given += clues([repeats.evidence], stale_weights=OPEN, stale_kv=0.3)
        else:
            given += clues([repeats.evidence], stale_weights=0.4, engine_decode=0.3)
    if jumped:
        calm = series.values[:first]
        after = level.band(float(np.median(series.values[first:])))
        shows = context.prompt and after >= 2 and jumped.value > 3
        given += clues([jumped], weight_sync=SHOWN if shows else OPEN, stale_weights=0.4)
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
                given += clues([fallen_to, shown("with_learning_rate", lower, text)], stale_weights=OPEN)
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
