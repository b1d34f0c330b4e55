"""What a gate found, in words: for a terminal, and as Markdown for the summary of a job."""

import math
import re

from reweigh.audit.labels import count
from reweigh.audit.numerals import digits, interval
from reweigh.gate.decide import Interval
from reweigh.gate.result import Check, Effect, Gate
from reweigh.number import Number

_WORST: dict[Effect, int] = {"fail": 0, "warn": 1, "ok": 2}
_SIGNS: dict[Effect, str] = {"ok": "✅", "warn": "⚠️", "fail": "❌"}
_SHOWN = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(gate: Gate) -> str:
    """The verdict, then a line or two for each bound, the worst first."""
    width = max(len(check.decision.status) for check in gate.checks)
    lines = [f"{gate.level.upper():<5} {gate.sentence}"]
    for check in worst_first(gate):
        lines.append(f"  {check.decision.status:<{width}}  {one_line(sentence(check))}")
        indent = " " * (width + 4)
        if check.effect == "ok":
            continue
        effect = "" if check.effect == "fail" else " (a warning)"
        lines.append(f"{indent}{check.bound.place}{effect}" + (f": {reason(check)}" if reason(check) else ""))
    lines += [f"note: {one_line(note)}" for note in gate.notes]
    return "\n".join(lines)


def markdown(gate: Gate) -> str:
    """A sentence, and a table with the worst first."""
    lines = [
        f"### {_SIGNS[gate.level]} reweigh gate: {_escaped(gate.sentence)}",
        "",
        f"Records: {_escaped(gate.run.source)}. Policy: {_escaped(gate.policy.source)}."
        + ("" if gate.baseline is None else f" Baseline: {_escaped(gate.baseline.source)}."),
        "",
        "| | bound | measured | baseline | compared | |",
        "|---|---|---|---|---|---|",
    ]
    for check in worst_first(gate):
        cells = (
            f"{_SIGNS[check.effect]} {check.decision.status}",
            check.bound.text,
            shown(check.number),
            "" if check.baseline is None else shown(check.baseline),
            compared(check),
            "; ".join(x for x in (outcome(check), reason(check)) if x),
        )
        lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    lines += ["", "Intervals: 95%, by prompt. A bound is broken only when the whole interval is beyond it."]
    lines += [f"- {_escaped(note)}" for note in gate.notes]
    return "\n".join(lines) + "\n"


def worst_first(gate: Gate) -> list[Check]:
    """The checks, the worst first, otherwise as in the policy."""
    return sorted(gate.checks, key=lambda check: _WORST[check.effect])


def sentence(check: Check) -> str:
    """Bound, number, and what kept it from being decided."""
    was = "" if check.baseline is None else f", baseline {shown(check.baseline)}"
    versus, why = compared(check), outcome(check)
    return (
        f"{check.bound.text}: {shown(check.number)}{was}"
        + (f", {versus}" if versus else "")
        + (f"; {why}" if why else "")
    )


def shown(number: Number) -> str:
    """Value and interval; a refused one with the end that holds."""
    if number.value is not None:
        return " ".join(x for x in interval(number) if x)
    if number.low is not None and math.isfinite(number.low):
        return f"refused, at least {digits(number.low, 2)}"
    if number.high is not None and math.isfinite(number.high):
        return f"refused, at most {digits(number.high, 2)}"
    return "refused"


def compared(check: Check) -> str:
    """The ratio to the baseline or the difference from it, with its interval; empty for an absolute bound."""
    x, kind, bound = check.decision.compared, check.decision.kind, check.bound
    if x is None or kind == "value":
        return ""
    if kind == "ratio":
        return f"{_interval(x)} times as bad"
    if bound.rule == "no_worse_than_baseline":
        return f"{_interval(x)} over {bound.limit:g} times the baseline"
    return f"{'a fall' if bound.rule == 'fall_at_most' else 'a rise'} of {_interval(x)}"


def outcome(check: Check) -> str:
    """What kept it from being decided, or how many sequences more would."""
    if check.decision.why:
        return check.decision.why
    if check.more is None:
        return ""
    return f"about {count(check.more, 'more sequence')} would decide, if the estimate stays ({check.sequences:,} read)"


def reason(check: Check) -> str:
    """The policy's own words for it, in one line."""
    return one_line(check.bound.reason)


def one_line(words: str) -> str:
    """Without line breaks and control characters, which a name in a record may hold."""
    return _SHOWN.sub("\ufffd", " ".join(words.split()))


def _interval(x: Interval) -> str:
    return " ".join(part for part in interval(Number(x.value, x.low, x.high)) if part)


def _escaped(words: str) -> str:
    """As text of a Markdown table: no markup of a name or a reason is taken for ours."""
    words = one_line(words).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`*_\[\]~@#])", r"\\\1", words)
