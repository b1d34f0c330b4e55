"""What a gate found: each bound with its numbers, and what all of them come to."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from reweigh.gate.decide import Decision, Interval
from reweigh.gate.policy import Bound, Policy
from reweigh.gate.run import Run
from reweigh.number import Number

Effect = Literal["ok", "warn", "fail"]
GATE_VERSION = 1
_WORST_FIRST: tuple[Effect, ...] = ("fail", "warn", "ok")


@dataclass(frozen=True)
class Check:
    """One bound on one cut of the records.

    Attributes:
        bound: what was asked, with the label of the very slice.
        number: what the records say.
        baseline: what the baseline says; None for an absolute bound.
        decision: what follows.
        effect: what it comes to under the policy.
        sequences: that the number is of.
        more: sequences more that would decide, if the estimate stays; None if decided, or if none would.
    """

    bound: Bound
    number: Number
    baseline: Number | None
    decision: Decision
    effect: Effect
    sequences: int
    more: int | None

    @classmethod
    def of(
        cls, bound: Bound, number: Number, baseline: Number | None, decision: Decision, policy: Policy, sequences: int
    ) -> "Check":
        """With the effect that the policy gives to a decision; a bound of severity warn never fails."""
        effect: Effect = "ok"
        if decision.status == "broken":
            effect = bound.severity
        elif decision.status == "undecided":
            wanted = bound.undecided or policy.undecided
            effect = "ok" if wanted == "pass" else _milder(wanted, bound.severity)
        elif decision.status == "refused":
            effect = _milder(policy.refused, bound.severity)
        factor = decision.factor
        more = None if factor is None else max(1, math.ceil((factor - 1) * sequences))
        return cls(bound, number, baseline, decision, effect, sequences, more)

    def to_dict(self) -> dict[str, Any]:
        """As plain values; what is not finite is None."""
        bound, decision = self.bound, self.decision
        return {
            "status": decision.status,
            "effect": self.effect,
            "number": bound.number,
            "level": bound.level,
            "slice": None if bound.by is None else {bound.by: bound.label},
            "rule": bound.rule,
            "limit": bound.limit,
            "severity": bound.severity,
            "reason": bound.reason,
            "place": bound.place,
            "unit": self.number.unit,
            "value": plain(self.number.value),
            "low": plain(self.number.low),
            "high": plain(self.number.high),
            "baseline": None if self.baseline is None else _ends(self.baseline),
            "compared": {"kind": decision.kind, "limit": decision.limit}
            | (_ends(decision.compared) if decision.compared else _ends(Number(None))),
            "sequences": self.sequences,
            "more_sequences": self.more,
            "why": decision.why,
        }


@dataclass(frozen=True, eq=False)
class Gate:
    """The result of `gate`.

    Attributes:
        checks: in the order of the policy.
        policy: what was asked.
        run: what was measured.
        baseline: what it was held against; None without one.
        notes: what a reader should know of the data and of the comparison.
    """

    checks: tuple[Check, ...]
    policy: Policy
    run: Run
    baseline: Run | None
    notes: tuple[str, ...] = ()

    @property
    def level(self) -> Effect:
        """The worst effect."""
        effects = {check.effect for check in self.checks}
        return next(effect for effect in _WORST_FIRST if effect in effects)

    @property
    def exit_code(self) -> int:
        """0, or 1 if a bound fails."""
        return int(self.level == "fail")

    @property
    def sentence(self) -> str:
        """What all bounds come to: `1 of 6 bounds is broken, 2 are undecided`."""
        counts = {s: sum(c.decision.status == s for c in self.checks) for s in ("broken", "refused", "undecided")}
        said = [f"{n} {'is' if n == 1 else 'are'} {status}" for status, n in counts.items() if n]
        total = len(self.checks)
        return f"{total} bound{'' if total == 1 else 's'}: " + (", ".join(said) if said else "all kept")

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, with `"reweigh_gate": 1` for its schema; no number in it is NaN or infinite."""
        return {
            "reweigh_gate": GATE_VERSION,
            "level": self.level,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "records": self.run.source,
            "policy": self.policy.source,
            "baseline": None if self.baseline is None else self.baseline.source,
            "run": self.run.info.to_dict(),
            "audit": self.run.verdict,
            "notes": list(self.notes),
            "bounds": [check.to_dict() for check in self.checks],
        }

    def to_text(self) -> str:
        """For a terminal: the verdict, then a line or two for each bound, the worst first."""
        from reweigh.gate.words import text

        return text(self)

    def to_markdown(self) -> str:
        """For the summary of a job: a sentence, and a table."""
        from reweigh.gate.words import markdown

        return markdown(self)

    def to_junit(self) -> str:
        """As JUnit XML: a test case for each bound; a failure if it fails, skipped if it warns."""
        from reweigh.gate.junit import junit

        return junit(self)


def plain(x: float | None) -> float | None:
    """None for what JSON has not got."""
    return x if x is not None and math.isfinite(x) else None


def _milder(a: Literal["warn", "fail"], b: Literal["warn", "fail"]) -> Effect:
    return "fail" if a == b == "fail" else "warn"


def _ends(x: Number | Interval) -> dict[str, float | None]:
    return {"value": plain(x.value), "low": plain(x.low), "high": plain(x.high)}
