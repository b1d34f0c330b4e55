"""Tests how the gap moves over the run: growth, a jump after the first update, falls back, and with lag."""

import math
from dataclasses import dataclass

import numpy as np

from reweigh.doctor.diagnosis import Evidence
from reweigh.doctor.lite.clue import Answer, Clue, clues, shown
from reweigh.doctor.lite.history import Array, Series
from reweigh.doctor.lite.level import Level
from reweigh.doctor.lite.serial import FEW, blocks, correlation, fold
from reweigh.doctor.lite.signals import Signals

GROWS = 1.5  # times over the run that matter
SURE = 1.2  # what the lower end of the interval has to be over
JUMP = 2.0  # times, at the first update or at a fall
NOISE = 4.0  # standard deviations of a step's logarithm that a jump has to be over
WITH_LAG = 0.5  # correlation
CLIMB = 0.8  # rank correlation with time between falls: a level that only scatters has 0


@dataclass(frozen=True, eq=False)
class Course:
    """How the level moves.

    Attributes:
        answer: what that says.
        calm: values of the steps at which weights are closest; None if the level stays where it is.
    """

    answer: Answer
    calm: Array | None


def shape(level: Level, signals: Signals) -> Course:
    """What the course of the level says. Updates that do not arrive, arrive late or are rounded away look alike."""
    series, noisy = level.series, level.bands.noisy
    trend, lag = fold(series, noisy), signals.get("lag")
    calm: Array | None = None
    found: list[Clue] = []
    follows = _with_lag(series, lag.series) if lag else None
    if follows:
        found += clues([follows], stale_weights=0.65)
    falls, ends = (None, []) if noisy else _falls(series)
    if falls:
        calm = series.values[np.isin(series.steps, ends)]
        found += clues([falls], stale_kv=0.4, stale_weights=0.35)
    rate = signals.get("learning_rate")
    jump, first = (None, 0) if noisy else _onset(series, rate.series if rate else None)
    fixed = lag is not None and float(np.ptp(lag.series.values)) == 0
    if jump:
        calm = series.values[:first]
        found += clues([jump], weight_sync=0.5 if fixed else 0.4, stale_weights=0.1 if fixed else 0.35)
    if not falls and trend.low > SURE and trend.value > GROWS:
        text = f"{level.reading.name} at the end of the run over its start"
        grown = shown("growth", trend, text)
        calm = blocks(series.values)[0] if calm is None else calm
        end = float(series.values[-max(1, len(series) // 5) :].mean())
        scale = 1.0 if level.band(end) >= 2 else 0.7  # growth within what rounding makes
        less = 0.3 if fixed or follows else 1.0
        found += clues(
            [grown],
            stale_weights=0.42 * scale * (less if fixed else 1.0),
            weight_sync=0.4 * scale * (less if follows else 1.0),
            update_below_precision=0.3 * scale,
            stale_kv=0.25 * scale,
        )
    return Course(Answer(tuple(found)), calm)


def _logs(series: Series) -> tuple[Array, Array]:
    keep = series.values > 0
    return series.steps[keep], np.log(series.values[keep])


def _deviation(changes: Array) -> float:
    """Standard deviation of a step's value out of changes between neighbours, by their median: falls do not count."""
    return 1.4826 * float(np.median(np.abs(changes - np.median(changes)))) / math.sqrt(2)


def _onset(series: Series, rate: Series | None) -> tuple[Evidence | None, int]:
    """The jump at the first update, and how many steps stand before it."""
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
    """Climbs and falls, and the steps at which it is down."""
    steps, logs = _logs(series)
    if len(logs) < 8:
        return None, []
    changes = np.diff(logs)
    down = changes < -max(math.log(JUMP), NOISE * math.sqrt(2) * _deviation(changes))
    places = np.flatnonzero(down)
    ends = [0, *(places + 1).tolist()]
    climbs = [_climb(logs[a:b]) for a, b in zip(ends, [*ends[1:], len(logs)], strict=True) if b - a >= FEW]
    if len(places) < 2 or len(climbs) < 2 or float(np.median(climbs)) < CLIMB:
        return None, []
    at = ", ".join(f"{steps[p + 1]:g}" for p in places[:4])
    text = f"times that the level climbs and falls back by half or more, at steps {at}: a restart, an update, a cache"
    return Evidence("falls_back", float(len(places)), text, n=len(logs)), [float(steps[e]) for e in ends]


def _climb(logs: Array) -> float:
    """Rank correlation with time."""
    return float(np.corrcoef(np.argsort(np.argsort(logs)), np.arange(len(logs)))[0, 1])


def _with_lag(series: Series, lag: Series) -> Evidence | None:
    steps, logs = _logs(series)
    together = correlation(Series(steps, logs), lag)
    if not (together.low > 0.1 and together.value > WITH_LAG):
        return None
    return shown("with_lag", together, "correlation of changes of the level's logarithm with changes of the lag")
