"""The short form of `python -m tools.kills`: what commands that are ended reported is not lost."""

import random
import sys

import pytest

from tools import kills

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
BY_NAME = {case.name: case for case in kills.CASES}


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    folder = tmp_path_factory.mktemp("read")
    kills.make(folder, 400_000)
    assert kills.run(BY_NAME["probe"].line(folder, folder))[1] == ""
    return folder


@pytest.mark.parametrize("name", BY_NAME)
def test_what_was_reported_done_is_there_after_a_kill(read, name, monkeypatch):
    monkeypatch.setattr(kills, "GONE", 120.0)  # however slow the machine is
    found, _ = kills.killed(BY_NAME[name], read, 3, random.Random(name))
    assert found == []
