"""Says what a doctor found: causes with their evidence, ranked; a verdict; and what the data cannot tell.

Tests hand over `Suspicion`s and `CannotTell`s; `diagnose` controls false discoveries over all of them, weighs sizes,
and decides which cause comes first.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from reweigh.doctor.causes import ABOUT, BENIGN, CAUSES, CauseId, fix_for


@dataclass(frozen=True)
class Evidence:
    """One number that speaks for a cause.

    Attributes:
        name: short and fixed, for programs: "own_noise".
        value: the number; NaN if it cannot be had.
        meaning: a sentence for people, with units.
        low: lower end of its 95% interval, clustered by response; None if it is a count or has none.
        high: upper end.
        n: what it was computed from, in tokens unless the meaning says otherwise.
    """

    name: str
    value: float
    meaning: str
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values; what is not finite becomes None."""
        return {
            "name": self.name,
            "value": _plain(self.value),
            "low": _plain(self.low),
            "high": _plain(self.high),
            "n": self.n,
            "meaning": self.meaning,
        }


@dataclass(frozen=True)
class Suspicion:
    """One test's word for a cause.

    Attributes:
        id: the cause.
        p_value: of seeing this much if the cause were not there.
        effect: size in units of the least size that matters: from 1 on it is worth naming.
        share: of the squared log ratios that it explains: of all if it is structural, of those that are left without
            such faults otherwise; None if they do not show it.
        evidence: the weightiest first.
        proven: found token by token, not by a statistic: it comes before all that is not.
    """

    id: CauseId
    p_value: float
    effect: float
    share: float | None
    evidence: tuple[Evidence, ...]
    proven: bool = False


@dataclass(frozen=True)
class Finding:
    """A cause, how sure the doctor is of it, and why.

    Attributes:
        id: the cause.
        confidence: 0 to 1; from .5 on it is named, below it is a suspicion.
        explained_share: of the sum of squared log ratios, 0 to 1; None if the log ratio does not show it.
        evidence: the numbers, the weightiest first.
        rules_out: what would show that it is not this.
        fix: what to do, by program ("vllm", "sglang", "trl", "verl", "slime", "prime-rl", "skyrl", "nemo-rl"), and
            under "general" for all of them.
    """

    id: CauseId
    confidence: float
    explained_share: float | None
    evidence: tuple[Evidence, ...]
    rules_out: str = ""
    fix: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "id": self.id,
            "confidence": round(self.confidence, 4),
            "explained_share": _plain(self.explained_share),
            "evidence": [one.to_dict() for one in self.evidence],
            "rules_out": self.rules_out,
            "fix": dict(self.fix),
        }


@dataclass(frozen=True)
class CannotTell:
    """A cause that the data can neither show nor exclude.

    Attributes:
        id: the cause.
        reason: why not: a column that is not there, too few tokens, a heavy tail.
        needs: columns that would decide.
        experiment: the cheapest thing to do that would.
    """

    id: CauseId
    reason: str
    needs: tuple[str, ...] = ()
    experiment: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"id": self.id, "reason": self.reason, "needs": list(self.needs), "experiment": self.experiment}


@dataclass(frozen=True)
class InputNote:
    """Something wrong with the data itself, counted.

    Attributes:
        rule: what does not hold.
        count: how often.
        counted: what is counted: "tokens", "rows", "files".
        place: the first one.
        hint: what to do.
    """

    rule: str
    count: int
    counted: str
    place: str = ""
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return dict(vars(self))


NOT_DECIDED: Final = "not_decided"
"""The verdict where nothing is named: `causes` are then only what it may be."""
Verdict = CauseId | Literal["not_decided"]


@dataclass(frozen=True)
class Diagnosis:
    """A verdict, and what stands behind it.

    Attributes:
        verdict: the cause that comes first; "none" if there is no gap, "not_decided" if nothing is named.
        causes: every cause with something to be said for it, the likeliest first.
        cannot_tell: what the data cannot decide.
        source: what was looked at: "records" or "metrics".
        sequences: sequences read; 0 for metrics.
        tokens: counted tokens read; 0 for metrics.
        notes: what was wrong with the data.
        slices: verdict of each slice, by what it was cut by and its label.
    """

    verdict: Verdict
    causes: tuple[Finding, ...]
    cannot_tell: tuple[CannotTell, ...] = ()
    source: Literal["records", "metrics"] = "records"
    sequences: int = 0
    tokens: int = 0
    notes: tuple[InputNote, ...] = ()
    slices: Mapping[str, Mapping[str, "Diagnosis"]] = field(default_factory=dict[str, "Mapping[str, Diagnosis]"])

    @property
    def benign(self) -> bool:
        """True if nothing need be done about the verdict."""
        return self.verdict in BENIGN

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "schema_version": 1,
            "source": self.source,
            "verdict": self.verdict,
            "causes": [one.to_dict() for one in self.causes],
            "cannot_tell": [one.to_dict() for one in self.cannot_tell],
            "sequences": self.sequences,
            "tokens": self.tokens,
            "notes": [one.to_dict() for one in self.notes],
            "slices": {by: {k: d.to_dict() for k, d in cut.items()} for by, cut in self.slices.items()},
        }


def _plain(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else float(x)


NAMED = 0.5
"""Confidence from which a cause is named and not only suspected."""
_LIKELY = 0.35
_SUSPECTED = 0.15  # and shown
_LEAST_SHARE = 0.1  # of the squared log ratios: a cause of less is not what to look at first


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Returns the false discovery rate at which each test would be named, by Benjamini and Hochberg (1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    out, least = [1.0] * len(p_values), 1.0
    for rank, i in enumerate(order):
        least = min(least, p_values[i] * len(p_values) / (len(p_values) - rank))
        out[i] = least
    return out


def confidence(q: float, effect: float) -> float:
    """Returns 0 to 1: half where the effect is the least that matters, and nothing without significance."""
    if not math.isfinite(effect) or effect <= 0:
        return 0.0
    sure = max(0.0, 1 - q / 0.05) if q < 0.05 else 0.0
    return sure * effect / (1 + effect)


_LEAST_OWN = 0.03  # of a cause that a column of its own speaks for
_LAST = tuple(cause for cause in CAUSES if ABOUT[cause].order == "last")
_HALF_SURE = 50  # tokens from which "nothing else" is as likely as not
_HIDDEN_SHARE = 0.6  # rank of a cause that the log ratio does not show


@dataclass(frozen=True, eq=False)
class _Ranked:
    """A suspicion with its confidence.

    Attributes:
        named: whether it is sure and weighty enough to be named.
        told: the confidence that is shown: of what is not named, below that of a name.
        score: by which it is ranked.
    """

    of: Suspicion
    confidence: float
    named: bool = field(init=False)
    told: float = field(init=False)
    score: tuple[bool, bool, bool, float] = field(init=False)

    def __post_init__(self) -> None:
        one, share, sure = self.of, self.of.share, self.confidence
        least = _LEAST_OWN if ABOUT[one.id].order == "own evidence" else _LEAST_SHARE
        named = sure >= NAMED and (one.proven or share is None or share >= least)
        first = one.proven and (share is None or share >= _LEAST_SHARE)
        weight = sure * (_HIDDEN_SHARE if share is None else share)
        object.__setattr__(self, "named", named)
        object.__setattr__(self, "told", sure if named else min(sure, NAMED - 0.01))
        object.__setattr__(self, "score", (named, first, one.id not in _LAST, weight))


def diagnose(said: Sequence[Suspicion | CannotTell], tokens: int, programs: Collection[str] | None = None) -> Diagnosis:
    """Ranks what the tests said.

    Args:
        said: by all families, in the order in which they are to be tested.
        tokens: that were looked at: from a handful of them no cause can be excluded.
        programs: whose options to name in the fixes; all that are known if None.
    """
    suspicions = [x for x in said if isinstance(x, Suspicion) and x.id not in ("numerics", "none")]
    best: dict[CauseId, _Ranked] = {}
    for one, rate in zip(suspicions, adjusted([x.p_value for x in suspicions]), strict=True):
        ranked = _Ranked(one, confidence(rate, one.effect))
        if one.id not in best or best[one.id].score < ranked.score:
            best[one.id] = ranked

    # What explains any gap has the share that the others leave.
    causes = [x for x in best.values() if x.of.id not in _LAST]
    taken = sum(x.of.share or 0.0 for x in causes if x.named)
    doubt = 0.8 if any(x.named for x in causes) else 1.0
    for cause in _LAST:
        if cause in best:
            rest = best[cause]
            share = min(rest.of.share or 0.0, max(1 - taken, 0.0))
            rest = _Ranked(replace(rest.of, share=share), rest.confidence * doubt)
            causes.append(rest)
            taken += share if rest.named else 0.0

    # What a column of its own speaks for comes before what it is taken for.
    by_score = sorted(causes, key=lambda x: x.score, reverse=True)
    ordered = list(by_score)
    for one in by_score:
        for other in [x for x in by_score if one.named and x.named and x.of.id in ABOUT[one.of.id].looks_like]:
            if ordered.index(other) < ordered.index(one):
                ordered.remove(other)
                ordered.insert(ordered.index(one) + 1, other)
    named = [x for x in ordered if x.named]

    # "Nothing else": rounding if there is a gap.
    floor = next((x for x in said if isinstance(x, Suspicion) and x.id == "numerics"), None)
    gap = floor is not None and floor.effect > 0
    share = max(1 - sum(x.of.share or 0.0 for x in named), 0.0) if gap else None
    benign = _Ranked(
        Suspicion("numerics" if gap else "none", 1.0, 1.0, share, floor.evidence if floor else ()),
        max(1 - max((x.confidence for x in named), default=0.0), 0.01) * tokens / (tokens + _HALF_SURE),
    )

    suspected = [x for x in ordered if not x.named and x.confidence >= _SUSPECTED]
    # Beside a named cause a suspicion weighs more than "nothing else".
    likely = [x for x in suspected if named and x.confidence >= _LIKELY]
    shown = (*named, *likely, benign, *(x for x in suspected if x not in likely))
    cannot = {x.id: x for x in said if isinstance(x, CannotTell) and x.id not in {y.of.id for y in named}}
    return Diagnosis(
        (named[0] if named else benign).of.id,
        tuple(
            Finding(
                x.of.id,
                x.told,
                x.of.share,
                x.of.evidence,
                ABOUT[x.of.id].rules_out,
                fix_for(x.of.id, programs),
            )
            for x in shown
        ),
        tuple(replace(x, experiment=x.experiment or ABOUT[x.id].experiment) for x in cannot.values()),
    )
