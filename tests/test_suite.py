"""The suite keeps its own promises: what CI runs is what the README names, nothing is skipped there, versions agree."""

import os
import re
import signal
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import licences

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

SKIPS = """
import signal, subprocess, sys
import pytest

def test_skipped():
    pytest.skip("not today")

def test_interrupted_here():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)

def test_interrupted_in_a_child():
    code = "import signal; signal.raise_signal(signal.SIGINT)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert child.returncode == -signal.SIGINT
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "ended"), [("true", "1 failed, 2 passed, 1 error"), ("", "2 passed, 2 skipped")])
def test_under_ci_a_skip_fails_and_ctrl_c_arrives_though_the_shell_ignores_it(tmp_path, ci, ended):
    (tmp_path / "test_some.py").write_text(SKIPS)
    (tmp_path / "test_whole.py").write_text('import pytest\npytest.importorskip("not_installed_anywhere")\n')
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rfs", str(tmp_path)]
    done = subprocess.run(
        [*command, "--continue-on-collection-errors"],
        env={**os.environ, "PYTHONPATH": paths, "CI": ci},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert f" {ended} in " in done.stdout.splitlines()[-1], done.stdout
    assert "not today" in done.stdout
    assert done.returncode == bool(ci)


def test_ci_runs_the_commands_that_the_readme_names():
    named = re.findall(r"^make (test\S*) ", (ROOT / "README.md").read_text(), re.M)
    ran = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert named == ["test", "test-all"]
    assert ran == ["test test-all", "check", "docs"]


def test_the_two_commands_leave_no_test_out():
    recipes = dict(re.findall(r"^([a-z-]+):(.*\n(?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M))
    assert '$(PYTEST) -m "not slow"\n' in recipes["test"]
    assert recipes["test-all"].split()[0] == "test"
    assert "$(PYTEST) -n 0 -m slow\n" in recipes["test-all"]


def pins(path):
    """What a file of constraints says: version by package."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def wanted():
    """Each package that the project names, with the versions that it allows."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(text) for group in groups for text in group]
    return [one for one in found if one.name != "reweigh"]


def test_everything_that_is_installed_is_pinned():
    pinned = pins(ROOT / "constraints.txt")
    for one in wanted():
        assert pinned[canonicalize_name(one.name)] in one.specifier, one
    assert len(pinned) > 150
    assert not [name for name in pinned if name.startswith("nvidia")]
    assert "+" not in "".join(pinned.values()), "a local build cannot be had elsewhere"


def test_the_lowest_versions_are_those_that_the_project_allows():
    lowest = {canonicalize_name(one.name): one for one in wanted()}
    pinned = pins(ROOT / "constraints-lowest.txt")
    for name, version in pinned.items():
        [low] = [s.version for s in lowest[name].specifier if s.operator == ">="]
        assert Version(version) == Version(low), name
    used = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][x] for x in ("audit", "probe"))]
    names = {canonicalize_name(Requirement(text).name) for group in used for text in group}
    assert names - {"reweigh", "torch"} <= set(pinned)


def test_licences_of_what_comes_along_are_listed_and_known():
    """Of the versions that constraints.txt pins: elsewhere others come along."""
    pinned = pins(ROOT / "constraints.txt")
    there = {canonicalize_name(one.name): one.version for one in distributions()}
    page = (ROOT / "docs" / "licences.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \| ", page.partition("|---")[2], re.M))
    assert {"torch", "numpy", "jaxtyping", "pyarrow", "trl", "ray"} <= rows.keys()
    as_pinned = all(there.get(name, "").partition("+")[0] == pinned[name] for name in rows.keys() & pinned.keys())
    if sys.version_info[:2] == (3, 11) and sys.platform == "linux" and as_pinned:
        assert licences.main(["--check"]) == 0
    assert licences.odd([licences.Brought("x", "GPL-3.0-only", ())])
    assert not licences.odd([licences.Brought("x", "MIT OR Apache-2.0", ())])


def test_each_extra_is_installed_alone_in_ci_and_releases_say_where_they_were_built():
    workflows = {path.stem: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    [extras] = re.findall(r"^ +extra: \[(.*)\]$", workflows["test"], re.M)
    assert set(extras.split(", ")) == {*PROJECT["optional-dependencies"], "core"} - {"dev"}
    assert "actions/attest-build-provenance@" in workflows["release"]
    assert "cmp " in workflows["release"]  # the wheel, built twice
    assert "pip-audit" in workflows["upstream"]
