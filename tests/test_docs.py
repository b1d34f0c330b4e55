"""Every public name is documented, and every example in the documentation runs."""

import doctest
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reweigh
from reweigh.named import NAMED

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", reweigh.__all__)
def test_public_names_exist_and_say_what_they_are(name):
    value = getattr(reweigh, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        doc = inspect.getdoc(value)
        assert doc, f"{name} has no docstring"
        assert doc.split("\n")[0].rstrip().endswith((".", ";", ":")) or "\n\n" in doc, (
            f"{name}: its first line is no sentence"
        )
    else:  # a value: its docstring is the string behind it in its module
        module = next(m for m in ("levels", "named") if hasattr(importlib.import_module(f"reweigh.{m}"), name))
        source = inspect.getsource(importlib.import_module(f"reweigh.{module}"))
        assert re.search(rf'^{name} = .*?\n"""', source, re.M | re.S), f"{name} has no docstring behind it"


def test_nothing_is_public_twice():
    assert len(set(reweigh.__all__)) == len(reweigh.__all__)


def test_every_named_estimator_is_at_the_top():
    assert [name for name in NAMED if name not in reweigh.__all__] == [], "give it a line in reweigh/__init__.pyi"


@pytest.mark.parametrize("name", NAMED)
def test_named_estimators_say_formula_use_cost_and_source(name):
    doc = inspect.getdoc(NAMED[name]) or ""
    first = doc.split("\n\n")[0]
    assert "`" in first, f"{name}: the first paragraph has no formula in backticks"
    assert "w" in first.split("`")[1] or "r" in first.split("`")[1], first
    for word in ("When:", "Cost:", "Source:"):
        assert word in doc, f"{name} lacks {word}"
    for parameter in inspect.signature(NAMED[name]).parameters:
        assert re.search(rf"^ *{parameter}: ", doc, re.M), f"{name}: {parameter} is not explained"


def module_names():
    for module in pkgutil.walk_packages(reweigh.__path__, "reweigh."):
        if not module.name.endswith("__main__"):
            yield module.name


@pytest.mark.parametrize("name", [*module_names()])
def test_examples_in_docstrings_run(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("reweigh"):
            raise
        pytest.skip(f"{name} needs {e.name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", [*module_names()])
def test_modules_say_what_they_are_in_a_sentence(name):
    tree = importlib.util.find_spec(name)
    assert tree is not None
    assert tree.origin is not None
    doc = re.match(r'"""(.+?)"""', Path(tree.origin).read_text(), re.S)
    assert doc, f"{name} does not open with a docstring"
    assert doc.group(1).strip().endswith((".", "?", "!"))


def blocks(path):
    """The fenced Python blocks of a page, each with the line it starts at."""
    text = path.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text[: match.start()].count("\n") + 2, match.group(1)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    """In order, as a reader would type it; `...` and what follows `# not run` stand for the reader's own code."""
    if not page.exists():
        pytest.skip(f"there is no {page.name}")
    monkeypatch.chdir(tmp_path)
    scope = {}
    for line, code in blocks(page):
        if code.startswith("# not run"):
            continue
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), scope)


def typed():
    """The commands that the README shows of the clone's own files or of none, with what it says they print."""
    text = (ROOT / "README.md").read_text()
    for block in re.findall(r"^```\n(\$ .*?)^```", text, re.M | re.S):
        command, shown = block[2:].split("\n", 1)
        if not command.startswith("reweigh probe"):  # `make demo` needs a model and minutes: CI runs it
            yield command, shown


@pytest.mark.parametrize(("command", "shown"), [*typed()], ids=lambda x: x.split("\n")[0])
def test_what_the_readme_shows_is_what_is_printed(command, shown):
    """In order; `...` stands for lines left out."""
    program, *rest = command.split()
    assert program == "reweigh"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "reweigh", *rest], capture_output=True, text=True, check=False, cwd=ROOT, env=env
    )
    printed = iter([line.rstrip() for line in done.stdout.splitlines()])
    skipped = False
    for line in shown.splitlines():
        if line == "...":
            skipped = True
        elif skipped:
            assert line in printed, f"{command}: not printed there: {line}"  # which moves on to it
            skipped = False
        else:
            assert next(printed, None) == line


@pytest.mark.slow
def test_the_table_of_estimators_is_that_of_the_code():
    script, path = ROOT / "docs" / "estimators.py", {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False, env=path
    )
    assert (done.returncode, done.stdout.strip()) == (0, "up to date")
