"""What a gate found as JUnit XML, which every CI shows as test results."""

import xml.etree.ElementTree as ET

from reweigh.gate.result import Check, Gate
from reweigh.gate.words import one_line, reason, sentence


def junit(gate: Gate) -> str:
    """A suite with a test case for each bound: a failure if it fails, skipped with its message if it warns."""
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
    bound, said = check.bound, one_line(sentence(check))
    classname = f"reweigh.gate.{bound.level}" + ("" if bound.by is None else f".{bound.by}")
    case = ET.SubElement(suite, "testcase", {"classname": classname, "name": one_line(bound.text), "time": "0"})
    if check.effect == "fail":
        found = ET.SubElement(case, "failure", {"type": check.decision.status, "message": said})
        found.text = f"{bound.place}: {said}" + (f"\nreason: {reason(check)}" if reason(check) else "")
    elif check.effect == "warn":
        ET.SubElement(case, "skipped", {"message": f"warning, {check.decision.status}: {said}"})
    else:
        ET.SubElement(case, "system-out").text = said
