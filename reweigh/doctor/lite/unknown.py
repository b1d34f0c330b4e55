"""Says what a history of scalars cannot tell, and what would."""

from collections.abc import Collection, Mapping

from reweigh.doctor.causes import ABOUT, BENIGN, CAUSES, CauseId
from reweigh.doctor.diagnosis import CannotTell, InputNote
from reweigh.doctor.lite.names import FRAMEWORKS, Signal
from reweigh.doctor.lite.signals import Signals

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
    """Signals that are not there, and what is lost without them."""
    return tuple(_note(signals, signal, lost) for signal, lost in _LOST.items() if signals.get(signal) is None)


def _note(signals: Signals, signal: Signal, lost: str) -> InputNote:
    there = signals.readings.get(signal)
    names = [k.name for k in FRAMEWORKS[signals.framework] if k.signal == signal and k.usable]
    rule = f"no usable {signal}: lost is {lost}"
    if there is not None:
        rule = (
            f"{there.name} cannot be used for {signal}: {there.caveat or 'it does not fit the others'}; lost is {lost}"
        )
    if signals.framework == "trl" and signal == "mean_ratio":
        rule = f"sampling/importance_sampling_ratio is logged after clamp and mask; lost is {lost}"
    hint = f"log {' or '.join(names)}" if names else f"{signals.framework} logs none; reweigh's own logging does"
    return InputNote(rule, 1, "metrics", hint=hint)


def cannot_tell(
    signals: Signals, named: Collection[CauseId], excluded: Collection[CauseId], moves: bool
) -> tuple[CannotTell, ...]:
    """Every cause that is neither named for sure nor ruled out.

    Args:
        signals: what there is.
        named: causes that are named with a confidence of 0.5 or more.
        excluded: causes that a test rules out.
        moves: whether the level grows, jumps or falls back over the run.
    """
    settled = {*named, *excluded, *BENIGN}
    return tuple(_one(cause, signals, moves) for cause in CAUSES if cause not in settled)


def _one(cause: CauseId, signals: Signals, moves: bool) -> CannotTell:
    absent = [s for s in _TAKES.get(cause, ()) if signals.get(s) is None]
    if absent:
        reason = f"it takes {' and '.join(absent)}, which {signals.framework}'s history does not have"
    elif cause in _MOVING and not moves:
        reason = "the gap does not move over the run, but updates may be too small or too few for it to show"
    else:
        reason = ABOUT[cause].unseen
    return CannotTell(cause, reason, ABOUT[cause].needs, ABOUT[cause].experiment)
