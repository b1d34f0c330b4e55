"""What all tests share: annotations of the core checked at run time, repeatable hypothesis, a few batches."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

CORE = (
    *("layout", "batch", "levels", "transforms", "logits", "estimators", "named", "losses", "caps", "stats"),
    *("distributed", "testing", "planner", "sga", "bounds"),
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


@pytest.fixture(scope="module")
def unchecked():
    """The package without the run-time checks, as users have it: a compiler cannot see through them."""
    global HOOK
    ours = lambda: [name for name in sys.modules if name.split(".")[0] == "reweigh"]  # noqa: E731
    checked = {name: sys.modules.pop(name) for name in ours()}
    HOOK.uninstall()
    module = importlib.import_module("reweigh")
    importlib.import_module("reweigh.testing")
    yield module
    for name in ours():
        del sys.modules[name]
    sys.modules.update(checked)
    HOOK = hook()
