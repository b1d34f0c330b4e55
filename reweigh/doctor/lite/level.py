"""Compares how large the gap is with what causes are known to make."""

from collections.abc import Mapping
from dataclasses import dataclass

from reweigh.doctor.causes import CauseId
from reweigh.doctor.lite.clue import Answer, clues, shown
from reweigh.doctor.lite.history import Array, Series
from reweigh.doctor.lite.names import Signal
from reweigh.doctor.lite.serial import mean
from reweigh.doctor.lite.signals import Reading, Signals


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
class Level:
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
        """0 no gap, 1 rounding, 2 more than rounding, 3 few bits or experts, 4 large."""
        b = self.bands
        return sum(value > end for end in (b.zero, b.rounding, b.bits, b.large))


def level_of(signals: Signals) -> Level | None:
    """The best signal of size that there is."""
    for signal, bands in BANDS.items():
        reading = signals.get(signal)
        if reading is not None:
            series = Series(reading.series.steps, reading.series.values - bands.less)
            return Level(signal, reading, series, bands)
    return None


def compare(level: Level, calm: Array | None, untested: Mapping[str, float]) -> Answer:
    """What makes a gap of this size.

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
