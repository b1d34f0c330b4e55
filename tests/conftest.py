"""What all tests share: annotations of the core checked at run time, repeatable hypothesis, a few batches."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A pool of compile workers is a child that outlives the test that started it, and is complained about in another.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import importlib
import signal
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

CORE = (
    *("layout", "batch", "levels", "transforms", "logits", "estimators", "named", "losses", "caps", "stats"),
    *("distributed", "testing", "theory.laws", "theory.sga", "theory.bounds"),
)
HOOKED = [f"reweigh.{name}" for name in CORE]


def hook():
    return install_import_hook(HOOKED, "beartyped.check")


HOOK = hook()

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Output is as wide as it is in a pipe, whatever terminal the tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C arrives, here and in the processes that a test starts, as in a terminal.

    A shell that starts the tests in the background has SIGINT ignored, and whoever is started inherits that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.SIG_DFL)


COSTLY = {"browser", "site"}  # fixtures: what they start or build takes longer than a fast set may


def pytest_collection_modifyitems(items):
    for item in items:
        if COSTLY & set(item.fixturenames):
            item.add_marker("slow")


def _failed(report):
    """Under CI a test that is skipped has not been run, so that it fails, with its reason."""
    if report.skipped and not hasattr(report, "wasxfail"):
        path, line, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: {reason}\nhint: under CI (the variable CI is set) nothing may be skipped"
    return report


if os.environ.get("CI"):

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport():
        return _failed((yield))

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report():
        return _failed((yield))


UNCHECKED = {}  # the one copy without checks, for all test files: a compiler remembers modules by their names


@pytest.fixture(scope="module")
def unchecked():
    """The package without the run-time checks, as users have it: a compiler cannot see through them."""
    global HOOK
    ours = lambda: [name for name in sys.modules if name.split(".")[0] == "reweigh"]  # noqa: E731
    checked = {name: sys.modules.pop(name) for name in ours()}
    HOOK.uninstall()
    sys.modules.update(UNCHECKED)
    module = importlib.import_module("reweigh")
    importlib.import_module("reweigh.testing")
    yield module
    UNCHECKED.update({name: sys.modules.pop(name) for name in ours()})
    sys.modules.update(checked)
    HOOK = hook()
