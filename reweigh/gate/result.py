"""What a gate finds: whether a bound is kept, broken or undecided, and what all of them come to."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from reweigh.gate.numbers import KINDS, Run
from reweigh.gate.policy import Bound, Policy
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import plain

Status = Literal["pass", "broken", "undecided", "refused"]
_NO_INTERVAL = "there is no interval: fewer than two prompts"
_TOO_LARGE = "it is beyond what a float64 holds"


@dataclass(frozen=True)
class Interval:
    """A value and its 95% interval; an end that is not known is infinite."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """What the data say of one bound.

    Attributes:
        status: "pass": the whole interval keeps it; "broken": the whole interval is beyond it; "undecided": it
            straddles the limit; "refused": the data cannot tell the number.
        compared: what was held against the limit.
        limit: in the unit of `compared`.
        kind: what `compared` is: the number's "value", its "ratio" to the baseline's, or a "difference".
        why: a sentence about what kept it from being decided; empty if it was.
        factor: how many times as many units would decide, if the estimate stays; None if decided, or if none would.
    """

    status: Status
    compared: Interval | None
    limit: float
    kind: Literal["value", "ratio", "difference"] = "value"
    why: str = ""
    factor: float | None = None


def decide(bound: Bound, number: Number, baseline: Number | None = None) -> Decision:
    """Hold a number, and a baseline's where the bound is historical, against a bound.

    For a difference `a - f b` of two independent estimates the ends are
    `a - f b -+ sqrt((a - a_low)^2 + f^2 (b_high - b)^2)` (and the other way round), which needs no symmetric intervals.
    A multiple of the baseline is compared as `log a - log b` where both intervals are above 0, else as `a - f b`.

    Raises:
        ValueError: a historical bound without a baseline's number.

    Example:
        >>> bound = Bound("kl_k3", "token", "at_most", 0.002)
        >>> decide(bound, Number(0.004, 0.003, 0.005)).status
        'broken'
        >>> decide(bound, Number(0.0022, 0.0017, 0.0027)).status
        'undecided'
        >>> worse = Bound("kl_k3", "token", "no_worse_than_baseline", 1.2)
        >>> decide(worse, Number(0.004, 0.003, 0.005), Number(0.001, 0.0009, 0.0011)).status
        'broken'

    Source: Newcombe (1998), method 10; Zou and Donner (2008) for intervals of any kind ("MOVER").
    """
    rate = KINDS[bound.number].rate
    if bound.rule in ("at_most", "at_least"):
        return _absolute(bound, number, rate)
    if baseline is None:
        raise ValueError(f"{bound.place}: {bound.text}: there is no baseline\nhint: give one with --baseline.")
    if number.value is None or baseline.value is None:
        refused = f"the baseline's is refused: {baseline.refused}" if baseline.value is None else number.refused
        return Decision("refused", None, bound.limit, "difference", refused)
    a, b = _interval(number), _interval(baseline)
    if bound.rule == "rise_at_most":
        return _contrast(a, b, 1.0, bound.limit, rate)
    if bound.rule == "fall_at_most":
        return _contrast(b, a, 1.0, bound.limit, rate, shrinks="b")
    less = KINDS[bound.number].worse == "less"
    worse, better, shrinks = (b, a, "b") if less else (a, b, "a")
    if min(a.low, b.low) > 0 and math.isfinite(a.high) and math.isfinite(b.high):
        logs = _contrast(_log(worse), _log(better), 1.0, math.log(bound.limit), rate, shrinks)
        assert logs.compared is not None
        x = logs.compared
        ratio = Interval(math.exp(x.value), _exp(x.low), _exp(x.high))
        return Decision(logs.status, ratio, bound.limit, "ratio", logs.why, logs.factor)
    return _contrast(worse, better, bound.limit, 0.0, rate, shrinks)


def _absolute(bound: Bound, number: Number, rate: float) -> Decision:
    x, up, limit = _interval(number), bound.rule == "at_most", bound.limit
    beyond = x.low > limit if up else x.high < limit
    if number.value is None:
        if beyond:  # even the end that holds under any tail
            return Decision("broken", x, limit, why=f"the value is refused ({number.refused}), the bound broken anyway")
        return Decision("refused", None, limit, why=number.refused or "there is no value")
    if beyond:
        return Decision("broken", x, limit)
    if x.high <= limit if up else x.low >= limit:
        return Decision("pass", x, limit)
    half = x.value - x.low if x.value > limit else x.high - x.value
    if x.low <= KINDS[bound.number].low:  # cut off where the number ends: the other half says how wide it is
        half = max(half, x.high - x.value)
    return _undecided(x, limit, "value", half, 0.0, rate)


def _contrast(a: Interval, b: Interval, f: float, limit: float, rate: float, shrinks: str = "a") -> Decision:
    """`a - f b` against the most that it may be; `shrinks` is the one of them that more records would narrow."""
    value = a.value - f * b.value
    down = (a.value - a.low, f * (b.high - b.value))
    up = (a.high - a.value, f * (b.value - b.low))
    x = Interval(value, value - math.hypot(*down), value + math.hypot(*up))
    if x.low > limit:
        return Decision("broken", x, limit, "difference")
    if x.high <= limit:
        return Decision("pass", x, limit, "difference")
    halves = down if value > limit else up
    mine, other = halves if shrinks == "a" else halves[::-1]
    return _undecided(x, limit, "difference", mine, other, rate)


def _undecided(
    x: Interval, limit: float, kind: Literal["value", "difference"], mine: float, other: float, rate: float
) -> Decision:
    """How many times as many units would bring the nearer end to the limit: that end's half width is `n^-rate`."""
    if not math.isfinite(mine) or not math.isfinite(other):
        return Decision("undecided", x, limit, kind, _NO_INTERVAL if math.isfinite(x.value) else _TOO_LARGE)
    gap = abs(x.value - limit)
    if gap <= other:
        what = "the estimate is at the limit" if other == 0 else "the baseline alone is less certain than that"
        return Decision("undecided", x, limit, kind, f"{what}: no number of records here would decide")
    factor = (mine / math.sqrt(gap * gap - other * other)) ** (1 / rate)
    return Decision("undecided", x, limit, kind, "", factor)


def _interval(number: Number) -> Interval:
    low = -math.inf if number.low is None else number.low
    high = math.inf if number.high is None else number.high
    return Interval(math.nan if number.value is None else number.value, low, high)


def _log(x: Interval) -> Interval:
    return Interval(math.log(x.value), math.log(x.low), math.log(x.high))


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


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


def _milder(a: Literal["warn", "fail"], b: Literal["warn", "fail"]) -> Effect:
    return "fail" if a == b == "fail" else "warn"


def _ends(x: Number | Interval) -> dict[str, float | None]:
    return {"value": plain(x.value), "low": plain(x.low), "high": plain(x.high)}
