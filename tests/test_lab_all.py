"""`lab all`: every part of the lab in one go, and its exit code is that of the worst part."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reweigh.cli.lab import lab
from reweigh.theory.lab.claims import CLAIMS

GOLDEN = Path(__file__).parent / "data" / "golden_worlds.json"


def run(*args):
    return CliRunner().invoke(lab, ["all", *map(str, args)])


@pytest.mark.slow
def test_everything_is_computed():
    result = run("--golden", GOLDEN, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["ok"] is said["check"]["ok"] is said["claims"]["ok"] is True
    assert len(said["claims"]["claims"]) == len(CLAIMS)
    assert len(said["table"]["rows"]) == 14


@pytest.mark.slow
def test_what_is_wrong_with_the_file_is_found_and_the_rest_is_said(tmp_path):
    wrong = json.loads(GOLDEN.read_text())
    wrong["instances"][0]["dist"]["m2"] *= 1 + 1e-7
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    result = run("--golden", tmp_path / "wrong.json")
    assert result.exit_code == 1
    places = [result.stdout.index(x) for x in ("fail: ", "ok: every verdict holds", "post / exact")]
    assert places == sorted(places)


def test_a_file_that_is_not_there_stops_before_anything_is_done(tmp_path):
    result = run("--golden", tmp_path / "none.json")
    assert isinstance(result.exception, FileNotFoundError)
    assert not result.stdout
