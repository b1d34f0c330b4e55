"""What a doctor says: causes with their evidence, ranked; a verdict; and what the data cannot tell."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

CauseId = Literal[
    "placeholder_logprob",
    "unmasked_context",
    "retokenisation",
    "shift",
    "wrong_token",
    "raw_logprobs",
    "truncated_sampling",
    "vocab_padding",
    "both_raw",
    "trainer_temperature",
    "repetition_penalty",
    "template_prefix",
    "packing_leak",
    "position_encoding",
    "stale_weights",
    "weight_sync",
    "update_below_precision",
    "stale_kv",
    "dropout",
    "moe_routing",
    "quantised_rollout",
    "engine_decode",
    "numerics",
    "none",
]
"""The fixed names of causes, in the order in which they are tested: structure, normalisation, other proper policies,
then the benign ones."""
CAUSES: tuple[CauseId, ...] = get_args(CauseId)
"""Every cause, in the order of `CauseId`."""
BENIGN: frozenset[CauseId] = frozenset({"numerics", "none"})
"""Causes that call for nothing."""


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
        """As plain values; what is not finite becomes None."""
        return {
            "name": self.name,
            "value": _plain(self.value),
            "low": _plain(self.low),
            "high": _plain(self.high),
            "n": self.n,
            "meaning": self.meaning,
        }


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
        """As plain values."""
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
        """As plain values."""
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
        """As plain values."""
        return {
            "rule": self.rule,
            "count": self.count,
            "counted": self.counted,
            "place": self.place,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        verdict: the cause that comes first; "none" if there is no gap.
        causes: every cause with something to be said for it, the likeliest first.
        cannot_tell: what the data cannot decide.
        source: what was looked at: "records" or "metrics".
        sequences: sequences read; 0 for metrics.
        tokens: counted tokens read; 0 for metrics.
        notes: what was wrong with the data.
        slices: verdict of each slice, by what it was cut by and its label.
    """

    verdict: CauseId
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
        """As plain values, for JSON."""
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
