"""Diagnoses a run from the history of its metrics alone, and says what that cannot tell: whether log-probs can be of
what was sampled, how large the gap is, and how it moves over the run.

A cause is named only where the numbers show it, at .8 or more; what they only fit is a suspicion, below .5, and a run
with nothing but suspicions is not decided.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reweigh.doctor.causes import ABOUT, BENIGN, ENGINES, PROGRAMS, CauseId, fix_for
from reweigh.doctor.diagnosis import NAMED, CannotTell, Diagnosis, Finding, InputNote
from reweigh.doctor.metrics.course import SMALL, Size, compare, shape, sizes_of
from reweigh.doctor.metrics.read import read_history
from reweigh.doctor.metrics.sampled import Answer, Clue, identity, surprise
from reweigh.doctor.metrics.signals import FRAMEWORKS, Signal, Signals, translate
from reweigh.doctor.metrics.steps import FEW

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
        verdict=named[0] if named else "not_decided",
        causes=tuple(findings),
        cannot_tell=cannot_tell(signals, likely, named, excluded, moves),
        source="metrics",
        notes=(*notes, *missing(signals)),
        small=moves and not named and bool(sizes) and _small(sizes[0]),
    )


def _named(answer: Answer) -> bool:
    return any(c.confidence >= NAMED for c in answer.clues)


def _small(level: Size) -> bool:
    """Tells whether the level stays far below what rounding makes."""
    return float(level.series.values.max()) < SMALL * level.bands.rounding


def _remarks(level: Size, signals: Signals, moves: bool) -> list[InputNote]:
    """Says what keeps the level from saying more: too few steps, a run that ended before its log, a tiny gap."""
    notes: list[InputNote] = []
    n, end = len(level.series), float(level.series.steps[-1])
    if n < FEW:
        notes.append(
            InputNote(f"too few steps of {level.reading.name} for an interval", n, "steps", hint="log more steps")
        )
    if moves and _small(level):
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
