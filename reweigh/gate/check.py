"""Hold records against a policy and a baseline: whether a bound is kept, broken or undecided, and what all come to."""

import math
from dataclasses import dataclass, replace
from difflib import get_close_matches
from os import PathLike
from typing import Any, Literal

from reweigh.gate.numbers import KINDS, LevelNumbers, Run, read_baseline, read_run
from reweigh.gate.policy import EACH, HISTORICAL, Bound, Policy, read_policy
from reweigh.records.files import Paths
from reweigh.scan import Engine, Report, Workers
from reweigh.scan.cuts import COLUMNS_OF
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
    """The answer of the data to one bound.

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
        low, high = (math.exp(end) if end < 709 else math.inf for end in (x.low, x.high))
        ratio = Interval(math.exp(x.value), low, high)
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
    """Tell how many times as many units would bring the nearer end to the limit: its half width is `n^-rate`."""
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
        """Give a decision the effect that the policy gives it; a bound of severity warn never fails."""
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


# Numbers of sequences grow with their length, those of tokens hardly. From a fifth on this is worth a word; ours.
LENGTH_CHANGE = 1.2
NOT_RECORDED = "not recorded"  # the slice of what does not say, as the audit calls it
MOST_LISTED = 15  # names in a hint


def gate(
    records: Paths | Run,
    policy: Policy | str | PathLike[str],
    baseline: Run | str | PathLike[str] | None = None,
    *,
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    on_progress: Report | None = None,
) -> Gate:
    """Hold the numbers of records against bounds; a bound is broken only when the whole 95% interval is beyond it.

    Args:
        records: files, folders or globs, as `reweigh.audit.audit` takes them; or what `read_run` made of them.
        policy: bounds, or the YAML file that has them.
        baseline: an earlier run, or the file that `reweigh gate --save-baseline` wrote of one.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        reader: name of the files' format; recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        on_progress: called after each part.

    Raises:
        ValueError: a policy, a baseline or records that cannot be used; a bound on what this data or the baseline
            has not got, with its line.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.gate import Bound, Policy, gate
        >>> policy = Policy((Bound("kl_k3", "token", "at_most", 0.01),))
        >>> gate("examples/records/vllm_bfloat16.parquet", policy).level  # doctest: +SKIP
        'ok'
    """
    policy = policy if isinstance(policy, Policy) else read_policy(policy)
    if policy.historical and baseline is None:
        first = policy.historical[0]
        raise ValueError(
            f"{first.place}: {first.text}: there is no baseline\n"
            "hint: give one with --baseline; `reweigh gate --save-baseline FILE RECORDS` writes it."
        )
    base = baseline if isinstance(baseline, Run) or baseline is None else read_baseline(baseline)
    if isinstance(records, Run):
        run = records
    else:
        run = read_run(records, policy.by, keep_going=keep_going, reader=reader, engine=engine, on_progress=on_progress)
    checks: list[Check] = []
    for bound in (one for every in policy.bounds for one in _each(every, run, base)):
        cut, number = _find(bound, run)
        before = _find(bound, base)[1] if bound.rule in HISTORICAL and base is not None else None
        checks.append(Check.of(bound, number, before, decide(bound, number, before), policy, cut.sequences))
    return Gate(tuple(checks), policy, run, base, _notes(policy, run, base))


def _each(bound: Bound, run: Run, base: Run | None) -> list[Bound]:
    """Put the bound on every slice; against a baseline also on those that only it has, which is then an error."""
    if bound.by is None or bound.label != EACH:
        return [bound]
    labels = run.labels(bound.by)
    if bound.rule in HISTORICAL and base is not None:
        labels = tuple(dict.fromkeys((*labels, *base.labels(bound.by))))
    if labels in ((), (NOT_RECORDED,)):
        columns = " and ".join(COLUMNS_OF.get(bound.by, (bound.by,)))
        raise ValueError(
            f"{bound.place}: {bound.text}: no record of {run.source} says its {bound.by}\n"
            f"hint: records need the column {columns}, or leave the slice out."
        )
    return [replace(bound, label=label) for label in labels]


def _find(bound: Bound, run: Run) -> tuple[LevelNumbers, Number]:
    cut = run.find(bound.level, bound.by, bound.label)
    if cut is None:
        have = run.labels(bound.by) if bound.by is not None else tuple(c.level for c in run.cuts if c.by is None)
        if bound.by is not None and bound.label in have:
            have = tuple(c.level for c in run.cuts if (c.by, c.label) == (bound.by, bound.label))
        wanted = str(bound.label) if bound.by is not None else bound.level
        more = len(have) - MOST_LISTED
        listed = ", ".join(have[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
        hint = f"it has {listed}." if have else f"it was not cut by {bound.by}: write it again with --policy."
        if close := get_close_matches(wanted, have, 1, 0.6):
            hint = f"did you mean {close[0]}? {hint}"
        raise ValueError(f"{bound.place}: {bound.text}: {run.source} has no {bound.cut}\nhint: {hint}")
    number = cut.numbers.get(bound.number)
    if number is None:
        raise ValueError(
            f"{bound.place}: {bound.text}: {run.source} has no {bound.number} for {bound.cut}\n"
            f"hint: it has {', '.join(cut.numbers)}."
        )
    return cut, number


def _notes(policy: Policy, run: Run, base: Run | None) -> tuple[str, ...]:
    notes = list(run.notes)
    if all(bound.severity == "warn" for bound in policy.bounds):
        notes.append(f"every bound of {policy.source} has the severity warn: nothing can fail")
    if base is not None and not policy.historical:
        notes.append(f"no bound of {policy.source} is against a baseline: {base.source} was not looked at")
    if base is None or not policy.historical:
        return tuple(notes)
    for name, (before, now) in base.info.disagreements(run.info).items():
        notes.append(f"{name} was {before} in the baseline, and is {now}")
    before, now = base.find("sequence", None, None), run.find("sequence", None, None)
    if before is not None and now is not None:
        was, is_ = before.tokens / before.sequences, now.tokens / now.sequences
        if not 1 / LENGTH_CHANGE < is_ / was < LENGTH_CHANGE:
            notes.append(
                f"responses have {is_:,.0f} tokens on average, and had {was:,.0f} in the baseline: numbers of "
                "sequences change with length, those of tokens hardly"
            )
    return tuple(notes)
