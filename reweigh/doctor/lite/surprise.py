"""Tests whether sampled tokens are as surprising to the trainer as its own distribution says."""

import math

from reweigh.doctor.lite.clue import Answer, clues, shown
from reweigh.doctor.lite.serial import FEW, Estimate, mean, minus
from reweigh.doctor.lite.signals import Reading, Signals

AGREED = 1e-3  # nats of k3 below which both sides log the same distribution
LEAST = 0.02  # nats between surprise and entropy that matter
OTHER_MEANS = 0.15  # of the entropy, where one is a mean over tokens and the other over sequences
SAME_MEANS = 0.05


def surprise(signals: Signals) -> Answer:
    """Mean -log pi less mean entropy: 0 when sampled from pi, negative at a temperature below 1 or under top-p.

    With a log ratio near 0 the two sides agree on a distribution that nobody sampled from: both log before temperature.
    With one that is not, the trainer may leave the temperature out. By Cauchy and Schwarz a distribution at k3 nats
    shifts the surprise by up to sqrt(2 k3 Var), so that this is tested against sqrt(2 k3).
    """
    log_ppl, entropy = signals.get("log_ppl_pi"), signals.get("entropy")
    if log_ppl is None or entropy is None:
        return Answer()
    difference, h = _difference(log_ppl, entropy)
    k3 = signals.get("k3")
    level = float(k3.series.values.mean()) if k3 else _from_abs(signals)
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


def _difference(log_ppl: Reading, entropy: Reading) -> tuple[Estimate, float]:
    """Step by step where both have the same steps, else mean less mean."""
    x, y = log_ppl.series.with_(entropy.series)
    if len(x) >= FEW:
        return mean(x.values - y.values), float(y.values.mean())
    h = mean(entropy.series.values)
    return minus(mean(log_ppl.series.values), h), h.value


def _from_abs(signals: Signals) -> float | None:
    """Half the square of mean |log ratio|: no k3 is much smaller."""
    size = signals.get("mean_abs")
    return float(size.series.values.mean()) ** 2 / 2 if size else None
