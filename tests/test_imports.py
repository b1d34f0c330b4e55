"""Who may import whom: a module imports only what stands above it, and the core nothing but torch and numpy."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "reweigh"

# From the bottom of the core to the command line; a line imports only lines above it.
LAYERS = (
    ("operator", "tiles", "batch_rules"),
    ("layout", "finite"),
    ("batch",),
    ("divergences", "levels", "intervals", "number", "vocabulary"),
    ("transforms", "sums"),
    ("batchwise",),
    ("token_sums",),
    ("ratio_sums",),
    ("measure",),
    ("estimators", "stats", "caps"),
    ("host", "running_caps"),
    ("adaptive", "tail", "capped", "delta", "distributed"),
    ("summary", "bootstrap", "extrapolate", "tradeoff_caps"),
    ("verdict", "named", "losses"),
    ("spec",),
    ("testing",),
    ("theory",),
    ("_public",),
    ("records", "rosetta"),  # never each other
    ("readers", "conformance"),
    ("scan",),
    ("probe",),
    ("doctor",),
    ("plan",),
    ("audit", "adapters"),  # never each other
    ("gate", "watch"),
    ("report",),
    ("cli",),
    ("__main__",),
)
CORE = {name for layer in LAYERS[: LAYERS.index(("theory",)) + 1] for name in layer}
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}
ALLOWED_IN_CORE = {"torch", "numpy", "jaxtyping", "reweigh"}
# What a function of a core module may import when it is called, because the module says that it needs an extra.
OPTIONAL = {"batchwise": {"arviz_stats"}}


def modules():
    """Every file of the package with the first part of its name: `reweigh/records/files.py` is of `records`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        if relative != Path("__init__.py"):
            yield pytest.param(path, part, id=str(relative))


def imports(path):
    """(name, whether inside a function) of everything a file imports."""
    tree = ast.parse(path.read_text())
    inner = {n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what stands above what"
            if node.module == "reweigh":
                for alias in node.names:
                    yield f"reweigh.{alias.name}", node in inner
            else:
                yield str(node.module), node in inner


@pytest.mark.parametrize(("path", "part"), [*modules()])
def test_imports_point_down(path, part):
    assert part in LEVEL, f"{part} has no place in the order of layers: give it one, here and in docs/architecture.md"
    for name, _ in imports(path):
        if name.split(".")[0] != "reweigh" or name == "reweigh":
            continue
        other = name.split(".")[1]
        if other not in LEVEL:  # `from reweigh import seq_tis`: the public names, for what stands above the core
            assert part not in CORE, f"{path.name} imports {name} through the package: import it from its module"
            continue
        assert other == part or LEVEL[other] < LEVEL[part], f"{part} imports {other}, which stands beside or above it"


@pytest.mark.parametrize(("path", "part"), [p for p in modules() if p.values[1] in CORE])
def test_the_core_needs_torch_and_numpy_only(path, part):
    for name, inside in imports(path):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top in ALLOWED_IN_CORE:
            continue
        assert inside, f"{path.name} imports {top}"
        assert top in OPTIONAL.get(part, ()), f"{path.name} imports {top}"


@pytest.mark.parametrize(("path", "part"), [*modules()])
def test_only_one_module_talks_to_other_processes(path, part):
    if part != "distributed":
        assert not any(name.startswith("torch.distributed") for name, _ in imports(path))


def test_the_order_names_no_module_that_is_gone():
    parts = {p.values[1] for p in modules()}
    assert set(LEVEL) <= parts, set(LEVEL) - parts


def test_importing_the_package_loads_no_optional_dependency():
    """In a fresh interpreter: what an extra installs stays on the disk until it is asked for."""
    import subprocess

    code = "import sys, reweigh; reweigh.Batch; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = set(ast.literal_eval(out.stdout))
    assert "torch" in loaded
    assert not loaded & {
        "arviz_stats",
        "pyarrow",
        "transformers",
        "rich",
        "typer",
        "plotly",
        "jinja2",
        "httpx",
        "beartype",
    }


def test_help_loads_nothing_heavy():
    """In a fresh interpreter: what is heavy is loaded by the command that needs it."""
    import subprocess

    code = "import sys; from reweigh.__main__ import main; main(['--help']); sys.stderr.write(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert "audit" in out.stdout
    loaded = {name.split(".")[0] for name in out.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "pyarrow", "rich", "scipy", "arviz_stats", "jinja2", "plotly"}


@pytest.mark.parametrize(("path", "part"), [*modules()])
def test_only_reports_and_commands_draw(path, part):
    if part not in ("report", "cli"):
        drawn = {name for name, _ in imports(path) if name.split(".")[0] in ("rich", "jinja2", "plotly", "markupsafe")}
        assert not drawn, f"{path.name} imports {drawn}: what is drawn belongs to reweigh.report"
