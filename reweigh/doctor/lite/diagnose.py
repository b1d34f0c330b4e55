"""Diagnoses a run from the history of its metrics alone."""

from collections.abc import Sequence
from pathlib import Path

from reweigh.doctor.causes import ABOUT, ENGINES, PROGRAMS, CauseId, fix_for
from reweigh.doctor.diagnosis import Diagnosis, Finding
from reweigh.doctor.lite.clue import Answer, Clue
from reweigh.doctor.lite.identity import identity, untested
from reweigh.doctor.lite.level import compare, level_of
from reweigh.doctor.lite.read import read_history
from reweigh.doctor.lite.shape import shape
from reweigh.doctor.lite.signals import Signals, translate
from reweigh.doctor.lite.surprise import surprise
from reweigh.doctor.lite.unknown import cannot_tell, missing

NAMED = 0.5  # confidence from which a cause is named, as in `Finding`


def diagnose_metrics(path: str | Path, framework: str | None = None) -> Diagnosis:
    """Diagnose a run from the history of its metrics: k3 - k1 = mean ratio - 1, and what else scalars can show.

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
    """The same for signals that have been read."""
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
    """One finding a cause, the likeliest first; several clues for one cause keep the highest confidence."""
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
