"""Diagnoses a run from the history of its metrics alone, and says what that cannot tell."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from reweigh.doctor.causes import ABOUT, BENIGN, CAUSES, ENGINES, PROGRAMS, CauseId, fix_for
from reweigh.doctor.diagnosis import NAMED, CannotTell, Diagnosis, Finding, InputNote
from reweigh.doctor.metrics.examine import Answer, Clue, compare, identity, level_of, shape, surprise, untested
from reweigh.doctor.metrics.read import read_history
from reweigh.doctor.metrics.signals import FRAMEWORKS, Signal, Signals, translate

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
    """Lists every cause that is neither named for sure nor ruled out.

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
    findings = _ranked(answers, signals.framework)
    named: list[CauseId] = [f.id for f in findings if f.confidence >= NAMED]
    excluded = _excluded(answers) - {f.id for f in findings}
    return Diagnosis(
        verdict=findings[0].id if findings else "none",
        causes=tuple(findings),
        cannot_tell=cannot_tell(signals, named, excluded, moves),
        source="metrics",
        notes=(*signals.notes, *missing(signals)),
    )


def _ranked(answers: Sequence[Answer], framework: str) -> list[Finding]:
    """Makes one finding a cause, the likeliest first; several clues for one cause keep the highest confidence."""
    by_cause: dict[CauseId, list[Clue]] = {}
    excluded = _excluded(answers)
    for clue in (c for a in answers for c in a.clues):
        if clue.id not in excluded or clue.confidence >= NAMED:
            by_cause.setdefault(clue.id, []).append(clue)
    findings = [_finding(cause, found, framework) for cause, found in by_cause.items()]
    strongest = max((f.confidence for f in findings if f.id not in ("none", "numerics")), default=0.0)
    calm = [f for f in findings if strongest < NAMED or f.id not in ("none", "numerics")]
    return sorted(calm, key=lambda f: -f.confidence)


def _excluded(answers: Sequence[Answer]) -> frozenset[CauseId]:
    none: frozenset[CauseId] = frozenset()
    return none.union(*(a.excluded for a in answers))


def _finding(cause: CauseId, found: Sequence[Clue], framework: str) -> Finding:
    ordered = sorted(found, key=lambda c: -c.confidence)
    evidence = tuple(dict.fromkeys(e for clue in ordered for e in clue.evidence))
    programs = (*ENGINES, framework) if framework in PROGRAMS else ENGINES
    return Finding(cause, ordered[0].confidence, None, evidence, ABOUT[cause].rules_out, fix_for(cause, programs))
