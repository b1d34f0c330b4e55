"""Says what a doctor found: causes with their evidence, ranked; a verdict; and what the data cannot tell.

Tests hand over `Suspicion`s and `CannotTell`s; `diagnose` controls false discoveries over all of them, weighs sizes,
and decides which cause comes first.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from reweigh.doctor.causes import ABOUT, BENIGN, CAUSES, WRONG, CauseId, fix_for
from reweigh.stats.verdict import Cause, Verdict


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
        confidence: 0 to 1; from .8 on it is named, below it is a candidate or a suspicion.
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
class Spread:
    """The few responses that carry nearly all of the gap.

    Attributes:
        responses: how many they are.
        of: how many were looked at.
        share: of the squared log ratios that they carry, each of a token counted as at most `(2 (1 - p))^2`.
        times: by how much their tokens' mean size exceeds that of the others.
        shared: what they have in common that hardly any other response has: "prompt", "env", "step", "turns", "length"
            (less than so many tokens), "finish reason", "version", with the values.
    """

    responses: int
    of: int
    share: float
    times: float
    shared: Mapping[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "responses": self.responses,
            "of": self.of,
            "share": _plain(self.share),
            "times": _plain(self.times),
            "shared": {name: list(values) for name, values in self.shared.items()},
        }


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


Decision = CauseId | Literal["not_decided"]
"""A verdict: a cause, or that none is sure enough."""


@dataclass(frozen=True)
class Diagnosis:
    """A verdict, and what stands behind it.

    Attributes:
        verdict: the cause that comes first; "none" if there is no gap; "not_decided" if no cause is sure enough.
        causes: every cause with something to be said for it, the likeliest first; candidates if nothing is decided.
        cannot_tell: what the data cannot decide.
        source: what was looked at: "records" or "metrics".
        sequences: sequences read; 0 for metrics.
        tokens: counted tokens read; 0 for metrics.
        notes: what was wrong with the data.
        slices: verdict of each slice, by what it was cut by and its label.
        spread: the few responses that carry nearly all of the gap, if it is so.
        small: whether the gap is too small to matter: then a cause is known, and need not be removed.
        ruled_out: causes that the evidence excludes, and why.
        advice: the one verdict on the same records, with this cause; None if both sides' log-probs are not there.
    """

    verdict: Decision
    causes: tuple[Finding, ...]
    cannot_tell: tuple[CannotTell, ...] = ()
    source: Literal["records", "metrics"] = "records"
    sequences: int = 0
    tokens: int = 0
    notes: tuple[InputNote, ...] = ()
    slices: Mapping[str, Mapping[str, "Diagnosis"]] = field(default_factory=dict[str, "Mapping[str, Diagnosis]"])
    spread: Spread | None = None
    small: bool = False
    ruled_out: Mapping[CauseId, str] = field(default_factory=dict[CauseId, str])
    advice: Verdict | None = None

    @property
    def cause(self) -> Cause | None:
        """Say of the cause what a verdict needs to know; None where there is nothing to be done about one."""
        if self.benign and not (self.verdict == "numerics" and not self.small):
            return None
        if self.verdict == "not_decided":
            some = [ABOUT[one.id].title for one in self.causes[:2] if one.id not in BENIGN]
            first = self.causes[0].id if self.causes else ""
            return Cause(" or ".join(some), "", "policy", sure=False, stale=first == "stale_weights")
        about = ABOUT[self.verdict]
        if self.verdict in BENIGN:
            return Cause(about.title, "", "benign")
        kind = "policy" if about.correctable else "wrong" if self.verdict in WRONG else "bug"
        return Cause(about.title, about.fix["general"], kind, stale=self.verdict == "stale_weights")

    @property
    def decided(self) -> bool:
        """True if a cause is named, or none is there."""
        return self.verdict != "not_decided"

    @property
    def benign(self) -> bool:
        """True if nothing need be done about the verdict: rounding, no gap, or one that is too small to matter."""
        return self.verdict in BENIGN or self.small

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "schema_version": 1,
            "source": self.source,
            "verdict": self.verdict,
            "advice": None if self.advice is None else self.advice.to_dict(),
            "too_small_to_matter": self.small,
            "few_responses": None if self.spread is None else self.spread.to_dict(),
            "causes": [one.to_dict() for one in self.causes],
            "cannot_tell": [one.to_dict() for one in self.cannot_tell],
            "ruled_out": dict(self.ruled_out),
            "sequences": self.sequences,
            "tokens": self.tokens,
            "notes": [one.to_dict() for one in self.notes],
            "slices": {by: {k: d.to_dict() for k, d in cut.items()} for by, cut in self.slices.items()},
        }


def _plain(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else float(x)


NAMED = 0.8
"""Confidence from which a cause is named and not only suspected."""
_LIKELY = 0.35
_SUSPECTED = 0.15  # and shown
_LEAST_SHARE = 0.1  # of the squared log ratios: a cause of less is not what to look at first
_CANDIDATES = 3  # shown where nothing is decided


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
_HIDDEN_SHARE = 0.6  # rank of a cause that the log ratio does not show
_ONE_OF_THEM = 0.75  # how often one that is not named is right, over its part, in worlds that nothing was fitted on
_POINTED = 0.79  # confidence of what the shape of the gap points to: the first candidate, and not named
_RULED_OUT = 0.01  # confidence of a cause that the evidence excludes
_PROVEN = 0.9  # and more, of what stands in the rows themselves


_LOUD, _SILENT = 0.85, 0.4  # of what a test alone makes of its cause
_BY_SIZE: tuple[CauseId, ...] = ("quantised_rollout", "numerics", "none")
_NOT_OF_THE_SAMPLED: tuple[CauseId, ...] = (
    *("wrong_units", "placeholder_logprob", "unmasked_context", "retokenisation", "shift", "wrong_token", "both_raw"),
)
_ECHOES: tuple[CauseId, ...] = ("moe_routing",)  # many other faults make single tokens stand out


def _alone(one: Suspicion, rate: float) -> float:
    return 0.0 if one.share is not None and one.share < _LEAST_SHARE else confidence(rate, one.effect)


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
    score: tuple[bool, bool, float] = field(init=False)

    @property
    def explains(self) -> bool:
        """True unless it explains hardly any of the squared log ratios."""
        return self.of.share is None or self.of.share >= _LEAST_OWN or self.of.id in BENIGN or self.of.proven

    def __post_init__(self) -> None:
        one, share, sure = self.of, self.of.share, self.confidence
        least = _LEAST_OWN if ABOUT[one.id].order == "own evidence" else _LEAST_SHARE
        named = sure >= NAMED and (
            (one.proven and one.effect >= 1) or share is None or share >= least or one.id in BENIGN
        )
        first = one.proven and (share is None or share >= _LEAST_SHARE)
        weight = sure * (_HIDDEN_SHARE if share is None else 0.5 + 0.5 * share)
        object.__setattr__(self, "named", named)
        object.__setattr__(self, "told", sure if named else min(sure, NAMED - 0.01))
        object.__setattr__(self, "score", (named, first, weight))


def diagnose(
    said: Sequence[Suspicion | CannotTell],
    weighed: Mapping[CauseId, float],
    programs: Collection[str] | None = None,
    *,
    ruled_out: Mapping[CauseId, str] | None = None,
    by_mean: Mapping[CauseId, str] | None = None,
    held_back: Collection[CauseId] = (),
    by_size: Mapping[CauseId, float] | None = None,
    to_test_first: Suspicion | None = None,
    spread: Spread | None = None,
    small: bool = False,
    tokens: int = 0,
) -> Diagnosis:
    """Ranks what the tests said.

    Args:
        said: by all families, in the order in which they are to be tested.
        weighed: confidence in each cause, all evidence together.
        programs: whose options to name in the fixes; all that are known if None.
        ruled_out: causes that the evidence excludes, and why.
        by_mean: causes that the mean ratio excludes, unless one that moves it is named, and why.
        held_back: causes that are candidates at most, however likely: what tells them from their likenesses is missing.
        by_size: confidence in rounding and in fewer bits, if nothing else has anything to be said for it.
        to_test_first: what the shape of the gap points to, though nothing here can prove it.
        spread: the few responses that carry the gap, if it is so.
        small: whether the gap is too small to matter.
        tokens: that were looked at.
    """
    ruled_out, by_mean, by_size = dict(ruled_out or {}), by_mean or {}, by_size or {}
    may_be: list[CauseId] = [x for x in CAUSES if x not in by_mean and x not in ruled_out]
    proven = {x.id for x in said if isinstance(x, Suspicion) and x.proven and x.effect >= 1}
    if not any(weighed.get(x, 0.0) >= NAMED or x in proven for x in may_be):
        ruled_out = {**by_mean, **ruled_out}
    suspicions = [x for x in said if isinstance(x, Suspicion)]
    best: dict[CauseId, _Ranked] = {}
    rates: dict[CauseId, float] = {}
    for one, rate in zip(suspicions, adjusted([x.p_value for x in suspicions]), strict=True):
        sure = min(weighed.get(one.id, 0.0), 0.99)
        if one.proven and one.effect >= 1:
            sure = max(sure, min(_PROVEN + (1 - _PROVEN) * confidence(rate, one.effect), 0.99))
        if one.id in ruled_out and not one.proven:
            sure = min(sure, _RULED_OUT)
        if one.id in held_back and not one.proven:
            sure = min(sure, _POINTED)
        ranked = _Ranked(one, sure)
        if one.id not in best or (best[one.id].score, best[one.id].of.effect) < (ranked.score, one.effect):
            best[one.id], rates[one.id] = ranked, rate
    # A test that speaks loudly where all others are silent is heard, whatever worlds the regressions have seen.
    loud: dict[CauseId, float] = {
        x: _alone(best[x].of, rates[x]) for x in best if x not in ruled_out and x not in _BY_SIZE
    }
    heard: list[CauseId] = [x for x, sure in loud.items() if sure >= _SILENT]
    if len(heard) == 1 and loud[heard[0]] >= _LOUD and heard[0] not in (*_ECHOES, *held_back):
        one = best[heard[0]]
        best[heard[0]] = _Ranked(one.of, max(one.confidence, min(loud[heard[0]], _PROVEN)))
    elif set(heard) <= {*by_size, *held_back} and all(
        x.confidence < 0.5 for name, x in best.items() if name not in (*_BY_SIZE, *by_size, *held_back)
    ):
        for name, sure in by_size.items():
            if name in best and name not in ruled_out:
                best[name] = _Ranked(best[name].of, max(best[name].confidence, sure))
                for other in set(_BY_SIZE) - {name}:
                    if other in best:
                        best[other] = _Ranked(best[other].of, min(best[other].confidence, 1 - sure))
    if to_test_first is not None:
        pointed, had = _Ranked(to_test_first, _POINTED), best.get(to_test_first.id)
        best[to_test_first.id] = pointed if had is None or not had.named else had
    if "none" in weighed:
        sure = _RULED_OUT if "none" in ruled_out else weighed["none"]
        best["none"] = _Ranked(Suspicion("none", 1.0, 1.0, None, ()), sure)

    # Of numbers in another unit nothing else can be said.
    causes = list(best.values())
    if any(x.of.id == "wrong_units" and x.named for x in causes):
        causes = [x for x in causes if x.of.id == "wrong_units"]
    ordered = sorted(causes, key=lambda x: x.score, reverse=True)

    # A column of log-probs that are not of what was sampled lets other policies' faults stand beside it, not before it.
    # What a column of its own speaks for comes before what it is taken for.
    for one in list(ordered):
        for other in [x for x in ordered if one.named and x.named and x.of.id in ABOUT[one.of.id].looks_like]:
            if ordered.index(other) < ordered.index(one):
                ordered.remove(other)
                ordered.insert(ordered.index(one) + 1, other)
    named = [x for x in ordered if x.named and x.of.id not in BENIGN]
    benign = [x for x in ordered if x.named and x.of.id in BENIGN]
    shown = named or benign[:1]
    least = _LIKELY if shown else _SUSPECTED
    if to_test_first is not None:
        ordered.sort(key=lambda x: x.named or x.of is to_test_first, reverse=True)  # before what is not named
    others = [x for x in ordered if x not in shown and x.confidence >= least and x.explains]
    if not shown and len(others) < 2:
        others = [x for x in ordered if x.confidence > _RULED_OUT and x.explains][:2]
    shown = [*shown, *others[: None if shown else _CANDIDATES]]
    decided = bool(shown) and shown[0].named
    # Of candidates each has its part of what is likely at all, less what none of them may be.
    whole = 1.0 if decided else sum(x.told for x in ordered) / _ONE_OF_THEM
    cannot = {x.id: x for x in said if isinstance(x, CannotTell) and x.id not in {y.of.id for y in named}}
    # What cannot be told is not ruled out, nor is what is to be tested first.
    told = {x.of.id for x in named + benign} | set(cannot) | ({to_test_first.id} if to_test_first else set())
    return Diagnosis(
        shown[0].of.id if decided else "not_decided",
        tuple(
            Finding(
                x.of.id,
                float(x.told if decided else min(x.told / whole, NAMED - 0.01)),
                x.of.share,
                tuple(e for e in x.of.evidence if math.isfinite(e.value)),  # what cannot be had is no evidence
                ABOUT[x.of.id].rules_out,
                fix_for(x.of.id, programs),
            )
            for x in shown
        ),
        tuple(replace(x, experiment=x.experiment or ABOUT[x.id].experiment) for x in cannot.values()),
        tokens=tokens,
        spread=spread,
        # No gap between both sides, and yet not the log-probs of what was sampled: that is not small.
        small=small and not any(x.of.id in _NOT_OF_THE_SAMPLED for x in named),
        ruled_out={name: why for name, why in ruled_out.items() if name not in told},
    )
