"""From what the tests say to a ranked list: false discovery, sizes that matter, and which cause comes first."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from reweigh.doctor.causes import ABOUT, CAUSES, CauseId, fix_for
from reweigh.doctor.diagnosis import CannotTell, Diagnosis, Finding, Suspicion

NAMED = 0.5  # confidence from which a cause is named
_LIKELY = 0.35
_SUSPECTED = 0.15  # and shown
_LEAST_SHARE = 0.1  # of the squared log ratios: a cause of less is not what to look at first


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's (1995) false discovery rate at which each test would be named."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    out, least = [1.0] * len(p_values), 1.0
    for rank, i in enumerate(order):
        least = min(least, p_values[i] * len(p_values) / (len(p_values) - rank))
        out[i] = least
    return out


def confidence(q: float, effect: float) -> float:
    """0 to 1: half where the effect is the least that matters, and nothing without significance."""
    if not math.isfinite(effect) or effect <= 0:
        return 0.0
    sure = max(0.0, 1 - q / 0.05) if q < 0.05 else 0.0
    return sure * effect / (1 + effect)


_LEAST_OWN = 0.03  # of a cause that a column of its own speaks for
_LAST = tuple(cause for cause in CAUSES if ABOUT[cause].order == "last")
_HALF_SURE = 50  # tokens from which "nothing else" is as likely as not
_HIDDEN_SHARE = 0.6  # rank of a cause that the log ratio does not show


@dataclass(frozen=True)
class _Ranked:
    of: Suspicion
    confidence: float

    @property
    def named(self) -> bool:
        share = self.of.share
        least = _LEAST_OWN if ABOUT[self.of.id].order == "own evidence" else _LEAST_SHARE
        return self.confidence >= NAMED and (self.of.proven or share is None or share >= least)

    @property
    def told(self) -> float:
        """The confidence that is shown: of what is not named, below that of a name."""
        return self.confidence if self.named else min(self.confidence, NAMED - 0.01)

    @property
    def score(self) -> tuple[bool, bool, bool, float]:
        share = _HIDDEN_SHARE if self.of.share is None else self.of.share
        weighty = self.of.share is None or self.of.share >= _LEAST_SHARE
        return self.named, self.of.proven and weighty, self.of.id not in _LAST, self.confidence * share


def diagnose(said: Sequence[Suspicion | CannotTell], tokens: int, programs: Collection[str] | None = None) -> Diagnosis:
    """Rank what the tests said.

    Args:
        said: by all families, in the order in which they are to be tested.
        tokens: that were looked at: from a handful of them no cause can be excluded.
        programs: whose options to name in the fixes; all that are known if None.
    """
    suspicions = [x for x in said if isinstance(x, Suspicion) and x.id not in ("numerics", "none")]
    q = adjusted([x.p_value for x in suspicions])
    best: dict[CauseId, _Ranked] = {}
    for one, rate in zip(suspicions, q, strict=True):
        ranked = _Ranked(one, confidence(rate, one.effect))
        if one.id not in best or best[one.id].score < ranked.score:
            best[one.id] = ranked
    others = [x for x in best.values() if x.of.id not in _LAST]
    taken = sum(x.of.share or 0.0 for x in others if x.named)
    floor = list[_Ranked]()
    for cause in _LAST:
        if cause in best:
            floor.append(_rest(best[cause], taken, any(y.named for y in others)))
            taken += floor[-1].of.share or 0.0 if floor[-1].named else 0.0
    ranked = _own_evidence_first(sorted([*others, *floor], key=lambda x: x.score, reverse=True))
    named = [x for x in ranked if x.named]
    benign = _benign([x for x in said if isinstance(x, Suspicion)], named, tokens, programs)
    verdict = named[0].of.id if named else benign.id
    suspected = [x for x in ranked if not x.named and x.confidence >= _SUSPECTED]
    # Beside a named cause a suspicion weighs more than "nothing else".
    likely = [x for x in suspected if named and x.confidence >= _LIKELY]
    findings = [_finding(x, programs) for x in (*named, *likely)]
    findings += [benign, *(_finding(x, programs) for x in suspected if x not in likely)]
    cannot = {x.id: x for x in said if isinstance(x, CannotTell) and x.id not in {y.of.id for y in named}}
    return Diagnosis(verdict, tuple(findings), tuple(_with_experiment(x) for x in cannot.values()))


def _own_evidence_first(ranked: list[_Ranked]) -> list[_Ranked]:
    out = list(ranked)
    for one in ranked:
        for other in [x for x in ranked if one.named and x.named and x.of.id in ABOUT[one.of.id].looks_like]:
            if out.index(other) < out.index(one):
                out.remove(other)
                out.insert(out.index(one) + 1, other)
    return out


def _rest(x: _Ranked, taken: float, others: bool) -> _Ranked:
    share = min(x.of.share or 0.0, max(1 - taken, 0.0))
    return _Ranked(replace(x.of, share=share), x.confidence * (0.8 if others else 1.0))


def _benign(
    said: Sequence[Suspicion], named: Sequence[_Ranked], tokens: int, programs: Collection[str] | None
) -> Finding:
    rest = [x for x in said if x.id == "numerics"]
    taken = sum(x.of.share or 0.0 for x in named)
    doubt = max((x.confidence for x in named), default=0.0)
    gap = bool(rest) and rest[0].effect > 0
    cause: CauseId = "numerics" if gap else "none"
    share = max(1 - taken, 0.0) if gap else None
    evidence = rest[0].evidence if rest else ()
    return _finding(
        _Ranked(Suspicion(cause, 1.0, 1.0, share, evidence), max(1 - doubt, 0.01) * tokens / (tokens + _HALF_SURE)),
        programs,
    )


def _finding(x: _Ranked, programs: Collection[str] | None) -> Finding:
    fix = fix_for(x.of.id, programs)
    return Finding(x.of.id, x.told, x.of.share, x.of.evidence, ABOUT[x.of.id].rules_out, fix)


def _with_experiment(x: CannotTell) -> CannotTell:
    return replace(x, experiment=x.experiment or ABOUT[x.id].experiment)
