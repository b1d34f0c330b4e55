"""How verl writes its thresholds and rejection options."""

from typing import Any

from reweigh.estimators import Statistic
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, Level, k1, k2, k3
from reweigh.rosetta.profile import Options, RefusedError

LEVELS: dict[str, Level] = {"token": TOKEN, "seq_sum": SEQUENCE, "seq_mean": GEOMETRIC, "seq_max": WORST}
STATISTICS: dict[str, Statistic] = {"k1": k1, "k2": k2, "k3": k3}
SCREENS = tuple(f"{level}_{k}" for level in LEVELS for k in STATISTICS if (level, k) != ("seq_max", "k1"))
SAFE = 20.0  # nats, its SAFETY_BOUND


def band(text: Any) -> tuple[float, float]:
    """Bounds of `"low_high"`, or of one number, whose low bound is its inverse."""
    low, _, high = str(text).rpartition("_")
    return (float(low), float(high)) if low else (1 / float(high), float(high))


def screens_of(o: Options) -> list[tuple[str, str]]:
    """Each rejection option with its threshold."""
    names = [n.strip() for n in str(o.get("rollout_rs") or "").split(",") if n.strip()]
    thresholds = [t.strip() for t in str(o.get("rollout_rs_threshold")).split(",") if t.strip()]
    unknown = [n for n in names if n not in SCREENS]
    if unknown:
        raise RefusedError(f"verl: no rollout_rs {unknown[0]!r}\nhint: {', '.join(SCREENS)}")
    if names and o.get("rollout_rs_threshold") is None:
        raise RefusedError("verl: rollout_rs needs rollout_rs_threshold\nhint: one value, or one for each option")
    if len(thresholds) == 1:
        thresholds *= max(1, len(names))
    if names and len(thresholds) != len(names):
        raise RefusedError(
            f"verl: {len(names)} rollout_rs options, {len(thresholds)} thresholds\nhint: one value, or one for each"
        )
    return list(zip(names, thresholds, strict=False))
