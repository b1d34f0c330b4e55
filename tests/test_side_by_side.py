"""The scripts that compare two checkouts: what they call a difference, and that they run on this one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outputs():
    spec = importlib.util.spec_from_file_location("same_outputs", ROOT / "benchmarks" / "same_outputs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["same_outputs"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["same_outputs"]


def lines(outputs, old, new, rtol=0.0):
    case = outputs.Case("audit", "a.parquet", [])
    return [(line, why) for _, line, why in outputs.differences(case, old, new, rtol)]


def outcome(outputs, value, code=0, stderr="", **files):
    return outputs.Outcome(code, json.dumps(value), stderr, files)


def test_each_difference_is_a_line_with_its_path(outputs):
    old = outcome(outputs, {"a": [1, {"b": 0.1}], "c": None, "gone": "x"}, stderr="one\ntwo\n", page="1\n2\n")
    new = outcome(outputs, {"a": [1.0, {"b": 0.1}], "c": False, "new": []}, 2, "one\nthree\n", page="1\n3\n")
    assert lines(outputs, old, old) == []
    assert [line.removeprefix("audit a.parquet: ") for line, _ in lines(outputs, old, new)] == [
        "exit code: 0 -> 2",
        'stderr line 2: "two" -> "three"',
        "c: null -> false",
        'gone: "x" -> (absent)',
        'file page line 2: "2" -> "3"',
        "new: (absent) -> []",
    ]


def test_the_last_bit_counts_unless_it_is_told_not_to(outputs):
    old, new = outcome(outputs, {"x": 1.0, "y": float("nan")}), outcome(outputs, {"x": 1.0 + 2**-52, "y": float("nan")})
    assert len(lines(outputs, old, new)) == 1
    assert lines(outputs, old, new, rtol=1e-12) == []


def test_one_is_not_true(outputs):
    assert len(lines(outputs, outcome(outputs, {"x": 1}), outcome(outputs, {"x": True}))) == 1


def test_what_is_meant_has_its_reason_and_what_is_renamed_is_still_compared(outputs, monkeypatch):
    monkeypatch.setattr(outputs, "MEANT", [("audit", "rows[0].*", "the first row is another"), ("doctor", "*", "no")])
    monkeypatch.setattr(outputs, "RENAMED", [("aud*", r"^lite\.", "metrics.")])
    old = outcome(outputs, {"rows": [{"n": 1}, {"n": 1}], "lite": {"same": 1, "other": 1}})
    new = outcome(outputs, {"rows": [{"n": 2}, {"n": 2}], "metrics": {"same": 1, "other": 2}})
    assert lines(outputs, old, new) == [
        ("audit a.parquet: rows[0].n: 1 -> 2", "the first row is another"),
        ("audit a.parquet: rows[1].n: 1 -> 2", ""),
        ("audit a.parquet: metrics.other: 1 -> 2", ""),
    ]


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--before", str(ROOT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_this_checkout_has_the_outputs_of_itself_and_of_no_other(tmp_path):
    options = ("--cache", tmp_path, "--only", "records,plan,metrics", "--inputs", "*verl_r*")
    done = run("same_outputs.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 commands" in done.stdout
    assert " 0 differences" in done.stdout
    kept = [path for path in (tmp_path / "before").iterdir() if "metrics" in path.read_text()]
    assert kept
    for path in kept:
        path.write_text(path.read_text().replace('\\"source\\": \\"metrics\\"', '\\"source\\": \\"another\\"'))
    done = run("same_outputs.py", *options)
    assert done.returncode == 1
    assert 'source: "another" -> "metrics"' in done.stdout


@pytest.mark.slow
def test_two_checkouts_are_timed_in_turns():
    done = run("side_by_side.py", "--what", "commands", "--only", "help", "--rounds", 2, "--limit", 100)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| help"))
    before, after = (float(cell.replace(",", "")) for cell in row.split("|")[2:4])
    assert min(before, after) > 0
    done = run("side_by_side.py", "--what", "commands", "--only", "help", "--rounds", 2, "--limit", 0.001)
    assert done.returncode == 1
    assert "slower than 0.001 times: help" in done.stdout
