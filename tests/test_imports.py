"""Who may import whom, read off the files: floors, no cycle, one place that draws, one that talks to other processes.

Every import counts, also one inside a function: what is imported late is needed all the same.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import HOOKED

from reweigh.records import RecordWriter

PACKAGE = Path(__file__).parents[1] / "reweigh"

# From the bottom to the command line. A room is a package, or a file of the core or of `stats`; it imports from lines
# above its own, or from itself. What stands on one line never imports each other.
FLOORS = (
    ("native",),
    ("layout", "guard"),
    ("batch", "transforms"),
    ("levels", "logits"),
    ("estimators",),
    ("centring",),
    ("losses", "stats.intervals"),
    ("testing", "stats.sums", "stats.numerals"),
    ("stats.tail", "caps"),
    ("stats.summary", "named", "distributed"),
    ("stats.verdict", "spec"),
    ("theory", "records"),
    ("dumps",),
    ("scan",),
    ("doctor", "probe", "rosetta"),
    ("audit",),
    ("plan", "gate", "watch", "trainers", "conformance", "experiment"),
    ("report",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
CORE = {room for room in FLOOR if FLOOR[room] <= FLOOR["spec"]}

OUTSIDE_OF_CORE = {"torch", "numpy", "jaxtyping"}
DRAWING = {"rich", "jinja2", "plotly", "typer"}
DRAWS = {"report", "cli", "__main__"}


@cache
def structure():
    """The script that measures the package."""
    spec = importlib.util.spec_from_file_location("structure", PACKAGE.parent / "benchmarks" / "structure.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


@cache
def files():
    """Every file of the package by the module's name, without `reweigh.`; the package's own `__init__` is left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


@cache
def public():
    """The module that each public name lives in."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module.removeprefix("reweigh.") for node in imports for alias in node.names}


@cache
def imports(name):
    """What a file imports: (module of the package or of another one, whether through the package, whether late)."""
    tree = ast.parse(files()[name].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {node for function in functions for node in ast.walk(function)}
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [(alias.name, False, node in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide what stands above what"
            for alias in node.names:
                if node.module == "reweigh" and alias.name in public():
                    out.append((f"reweigh.{public()[alias.name]}", True, node in late))
                else:  # a module, or a name in one
                    inner = f"{node.module}.{alias.name}"
                    known = inner.removeprefix("reweigh.") in files()
                    out.append((inner if known else str(node.module), False, node in late))
    return tuple(dict.fromkeys(out))


def of_ours(name):
    """Modules of the package that a file imports."""
    ours = {module.removeprefix("reweigh.") for module, _, _ in imports(name) if module.startswith("reweigh.")}
    return sorted(ours - {name})


def room(name):
    """The room that a module is in; `stats` alone is its `__init__`, which imports nothing."""
    if name in FLOOR:
        return name
    return name.split(".")[0]


def on_wrong_floor():
    """Imports that do not point down, each as (file, module)."""
    for name in files():
        for other in of_ours(name):
            here, there = room(name), room(other)
            if here != there and not FLOOR.get(there, len(FLOORS)) < FLOOR.get(here, -1):
                yield name, other


def draws_elsewhere():
    """Imports of what draws outside of the rooms that draw, each as (file, package)."""
    for name in files():
        if room(name) not in DRAWS:
            yield from ((name, x) for x in sorted({module.split(".")[0] for module, _, _ in imports(name)} & DRAWING))


def knots():
    """Sets of files that import each other, however far around."""
    graph = {name: {other for other in of_ours(name) if other in files()} for name in files()}
    return set(map(frozenset, structure().cycles_of(graph)))


def test_every_file_is_in_a_room():
    homeless = [name for name in files() if name != "stats" and room(name) not in FLOOR]
    assert not homeless, f"give them a line in FLOORS, here and in docs/architecture.md: {homeless}"
    assert (PACKAGE / "stats" / "__init__.py").read_text().count("import") == 0
    empty = set(FLOOR) - {room(name) for name in files()}
    assert not empty, f"no file is in {empty}: take them out of FLOORS"


def test_imports_point_down():
    assert set(on_wrong_floor()) == set()


def test_no_file_is_in_a_cycle():
    assert knots() == set()


def test_only_the_report_and_the_command_line_draw():
    assert set(draws_elsewhere()) == set()


def test_the_checks_see_a_late_import_a_cycle_and_a_public_name(tmp_path, monkeypatch):
    """Of three files that break a rule each: what reads the files would find it."""
    (tmp_path / "stats").mkdir()
    for name, text in {
        "__init__.pyi": "from reweigh.named import seq_tis as seq_tis\n",
        "layout.py": "def f():\n    from reweigh import seq_tis\n",
        "batch.py": "import reweigh.levels\n",
        "levels.py": "def f():\n    from reweigh.batch import Batch\n",
        "named.py": "def f():\n    import rich.table\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    for each in (files, public, imports):
        each.cache_clear()
    try:
        assert set(on_wrong_floor()) == {("layout", "named"), ("batch", "levels")}
        assert knots() == {frozenset({"batch", "levels"})}
        assert set(draws_elsewhere()) == {("named", "rich")}
    finally:
        for each in (files, public, imports):
            each.cache_clear()


def test_the_core_needs_torch_and_numpy_only():
    for name in files():
        if room(name) not in CORE:
            continue
        for module, through_the_package, _ in imports(name):
            top = module.split(".")[0]
            assert not through_the_package, f"{name} imports a public name from reweigh: import it from its module"
            if top in sys.stdlib_module_names or top in OUTSIDE_OF_CORE | {"reweigh"}:
                continue
            raise AssertionError(f"{name} imports {top}")


def test_only_one_module_talks_to_other_processes():
    talks = [name for name in files() for module, _, _ in imports(name) if module.startswith("torch.distributed")]
    assert set(talks) == {"distributed"}


def test_annotations_are_checked_in_modules_that_are_there():
    """A name that is gone would leave its module unchecked, and nobody would notice."""
    assert [name for name in HOOKED if name.removeprefix("reweigh.") not in files()] == []


def test_importing_the_package_loads_no_optional_dependency():
    """In a fresh interpreter: what an extra installs stays on the disk until it is asked for."""
    code = "import sys, reweigh; reweigh.Batch; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = set(ast.literal_eval(out.stdout))
    assert "torch" in loaded
    assert not loaded & {
        "pyarrow",
        "transformers",
        "rich",
        "typer",
        "plotly",
        "jinja2",
        "httpx",
        "beartype",
    }


ON_IMPORT = """
import locale, logging, os, random, signal, sys, threading, warnings
import numpy, torch
def state():
    return {
        "threads": sorted(t.name for t in threading.enumerate()),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)],
        "warnings": warnings.filters[:],
        "log handlers": (logging.root.handlers[:], logging.root.level),
        "hooks": (sys.excepthook, sys.displayhook, sys.path[:]),
        "seeds": (random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "numpy": numpy.geterr(),
        "locale": locale.setlocale(locale.LC_ALL),
        "folder": os.getcwd(),
        "umask": (lambda old: (os.umask(old), old)[1])(os.umask(0o22)),
        "files": sorted(os.listdir()),
        "limits": sys.getrecursionlimit(),
    }
before = state()
import importlib, reweigh
reweigh.Batch
for module in sys.argv[1:]:
    importlib.import_module(module)
after = state()
print([name for name in before if before[name] != after[name]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="asks for signals that it has not got")
def test_importing_changes_nothing_of_the_process(tmp_path):
    """Of all modules that need no framework: no thread, file, handler, seed, variable or filter is another one."""
    others = ("__main__", "trainers", "cli", "probe")
    modules = [f"reweigh.{name}" for name in sorted(files()) if not name.startswith(others)]
    assert len(modules) > 100
    env = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | {"PYTHONPATH": str(PACKAGE.parent)}
    run = [sys.executable, "-W", "error", "-c", ON_IMPORT, *modules]
    out = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert (out.stdout, out.stderr) == ("[]\n", "")


def test_importing_the_package_warns_of_nothing():
    for code in ("import reweigh", "import reweigh; reweigh.Batch; from reweigh import *", "import reweigh.cli.app"):
        run = [sys.executable, "-W", "error", "-c", code]
        out = subprocess.run(run, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
        assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


def test_help_loads_nothing_heavy():
    """In a fresh interpreter: what is heavy is loaded by the command that needs it."""
    code = "import sys; from reweigh.__main__ import main; main(['--help']); sys.stderr.write(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert "audit" in out.stdout
    loaded = {name.split(".")[0] for name in out.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "pyarrow", "rich", "scipy", "jinja2", "plotly"}


@pytest.mark.parametrize("ending", ["parquet", pytest.param("jsonl", marks=pytest.mark.slow)])
def test_an_audit_loads_neither_pandas_nor_scipy(ending, tmp_path):
    """Not even where most columns have nulls: either takes longer to load than a file to read."""
    path = tmp_path / f"some.{ending}"
    row = {
        "prompt_id": "p",
        "env": "e",
        "log_mu": [-0.5, -1.0, -2.0],
        "log_pi": [-0.6, -1.1, -1.9],
        "token_ids": [1, 2, 3],
        "advantage": 0.5,
        "entropy_pi": [0.5, None, 1.0],
        "versions": [1, 1, 1],
        "trainer_version": 2,
        "prompt_length": 4,
        "turns": [0, 0, 1],
    }
    with RecordWriter(path) as writer:
        writer.write([row | {"sequence_id": f"r{i}", "step": i, "mask": [True, True, i % 3 > 0]} for i in range(20)])
        writer.write([{"sequence_id": "bare", "log_mu": [-0.5], "log_pi": [-0.6]}])
    code = (
        "import sys; from reweigh.__main__ import main; code = main(['audit', *sys.argv[1:]]); "
        "sys.stderr.write(' '.join(sys.modules)); sys.exit(code)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(path),
        "--fail-on",
        "never",
        "--by",
        "step",
        "--estimators",
        "seq_tis(2)",
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert "mean ratio" in out.stdout
    loaded = {name.split(".")[0] for name in out.stderr.split()}
    assert {"torch", "pyarrow"} <= loaded
    assert not loaded & {"pandas", "scipy"}


def test_type_checkers_read_the_package():
    """What PEP 561 asks for; without it, all that a user imports from here is Any."""
    assert (PACKAGE / "py.typed").read_text() == ""
