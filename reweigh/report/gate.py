"""A gate in words: for a terminal, for the summary of a job, and as JUnit XML."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from reweigh.gate.check import Check, Effect, Gate
from reweigh.report.tables import Column, Line, Table, in_markdown, one_line, to_markdown, unbroken
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, digits, interval

_WORST: dict[Effect, int] = {"fail": 0, "warn": 1, "ok": 2}
_SIGNS: dict[Effect, str] = {"ok": "✅", "warn": "⚠️", "fail": "❌"}


def on_terminal(gate: Gate) -> Iterator[Line]:
    """Show the verdict, then a line or two for each bound, the worst first."""
    width = max(len(check.decision.status) for check in gate.checks)
    yield verdict(gate)
    for check in _worst_first(gate):
        yield unbroken(f"  {check.decision.status:<{width}}  {one_line(sentence(check))}")
        if check.effect == "ok":
            continue
        effect, why = "" if check.effect == "fail" else " (a warning)", one_line(check.bound.reason)
        yield unbroken(f"{' ' * (width + 4)}{check.bound.place}{effect}{f': {why}' if why else ''}")
    if gate.run.verdict:
        yield unbroken(f"audit: {one_line(gate.run.verdict)}")
    yield from (unbroken(f"note: {one_line(note)}") for note in gate.notes)


def verdict(gate: Gate) -> Line:
    """Say in a line what all bounds come to."""
    return unbroken(f"{gate.level.upper():<5} {gate.sentence}")


def markdown(gate: Gate) -> str:
    """Write a gate for the summary of a job: a sentence, and a table with the worst first."""
    rows: list[list[str]] = []
    for check in _worst_first(gate):
        status, measured = f"{_SIGNS[check.effect]} {check.decision.status}", _measured(check.number)
        before = "" if check.baseline is None else _measured(check.baseline)
        why = "; ".join(x for x in (_outcome(check), one_line(check.bound.reason)) if x)
        rows.append([status, check.bound.text, measured, before, _compared(check), why])
    heads = map(Column, ("", "bound", "measured", "baseline", "compared", ""))
    baseline = "" if gate.baseline is None else f" Baseline: {in_markdown(gate.baseline.source)}."
    lines = [
        f"### {_SIGNS[gate.level]} reweigh gate: {in_markdown(gate.sentence)}",
        "",
        f"Records: {in_markdown(gate.run.source)}. Policy: {in_markdown(gate.policy.source)}.{baseline}",
        "",
        to_markdown(Table.of(heads, rows)),
        "",
        *([f"Audit: {in_markdown(gate.run.verdict)}.", ""] if gate.run.verdict else []),
        "Intervals: 95%, by prompt. A bound is broken only when the whole interval is beyond it.",
        *(f"- {in_markdown(note)}" for note in gate.notes),
    ]
    return "\n".join(lines) + "\n"


def _worst_first(gate: Gate) -> list[Check]:
    return sorted(gate.checks, key=lambda check: _WORST[check.effect])


def sentence(check: Check) -> str:
    """Bound, number, and what kept it from being decided."""
    was = "" if check.baseline is None else f", baseline {_measured(check.baseline)}"
    versus, why = _compared(check), _outcome(check)
    return (
        f"{check.bound.text}: {_measured(check.number)}{was}"
        + (f", {versus}" if versus else "")
        + (f"; {why}" if why else "")
    )


def _measured(number: Number) -> str:
    """Value and interval; a refused one with the end that holds."""
    if number.value is not None:
        return " ".join(x for x in interval(number) if x)
    if number.low is not None and math.isfinite(number.low):
        return f"refused, at least {digits(number.low, 2)}"
    if number.high is not None and math.isfinite(number.high):
        return f"refused, at most {digits(number.high, 2)}"
    return "refused"


def _compared(check: Check) -> str:
    """Word the ratio to the baseline or the difference from it, with its interval; empty for an absolute bound."""
    x, kind, bound = check.decision.compared, check.decision.kind, check.bound
    if x is None or kind == "value":
        return ""
    ends = _measured(Number(x.value, x.low, x.high))
    if kind == "ratio":
        return f"{ends} times as bad"
    if bound.rule == "no_worse_than_baseline":
        return f"{ends} over {bound.limit:g} times the baseline"
    return f"{'a fall' if bound.rule == 'fall_at_most' else 'a rise'} of {ends}"


def _outcome(check: Check) -> str:
    """Say what kept it from being decided, or how many sequences more would."""
    if check.decision.why:
        return check.decision.why
    if check.more is None:
        return ""
    return f"about {count(check.more, 'more sequence')} would decide, if the estimate stays ({check.sequences:,} read)"


def junit(gate: Gate) -> str:
    """Write a suite with a test case for each bound: a failure if it fails, skipped with its message if it warns."""
    counts = {
        "tests": str(len(gate.checks)),
        "failures": str(sum(check.effect == "fail" for check in gate.checks)),
        "errors": "0",
        "skipped": str(sum(check.effect == "warn" for check in gate.checks)),
    }
    root = ET.Element("testsuites", {"name": "reweigh gate", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": "reweigh gate", **counts})
    if gate.run.created:
        suite.set("timestamp", gate.run.created)
    properties = ET.SubElement(suite, "properties")
    sources = {"records": gate.run.source, "policy": gate.policy.source}
    if gate.baseline is not None:
        sources["baseline"] = gate.baseline.source
    for name, value in sources.items():
        ET.SubElement(properties, "property", {"name": name, "value": one_line(value)})
    for check in gate.checks:
        _case(suite, check)
    if gate.notes:
        ET.SubElement(suite, "system-out").text = "\n".join(one_line(note) for note in gate.notes)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, check: Check) -> None:
    bound, said, reason = check.bound, one_line(sentence(check)), one_line(check.bound.reason)
    classname = f"reweigh.gate.{bound.level}" + ("" if bound.by is None else f".{bound.by}")
    case = ET.SubElement(suite, "testcase", {"classname": classname, "name": one_line(bound.text), "time": "0"})
    if check.effect == "fail":
        found = ET.SubElement(case, "failure", {"type": check.decision.status, "message": said})
        found.text = f"{bound.place}: {said}" + (f"\nreason: {reason}" if reason else "")
    elif check.effect == "warn":
        ET.SubElement(case, "skipped", {"message": f"warning, {check.decision.status}: {said}"})
    else:
        ET.SubElement(case, "system-out").text = said
