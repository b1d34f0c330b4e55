"""`lab all`: every part of the lab in one go, and its exit code is that of the worst part."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reweigh.cli.lab import lab
from reweigh.lab.claims import CLAIMS
from reweigh.lab.figures import FIGURES, draw_figures

pytest.importorskip("matplotlib")

GOLDEN = Path(__file__).parent / "data" / "golden_worlds.json"


def run(*args):
    return CliRunner().invoke(lab, ["all", *map(str, args)])


@pytest.mark.slow
def test_everything_is_computed_and_drawn(tmp_path):
    result = run("--golden", GOLDEN, "--out", tmp_path / "new", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["ok"] is said["check"]["ok"] is said["claims"]["ok"] is True
    assert len(said["claims"]["claims"]) == len(CLAIMS)
    assert len(said["table"]["rows"]) == 14
    assert [Path(p).name for p in said["figures"]] == [f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")]
    assert all(Path(p).stat().st_size > 10_000 for p in said["figures"])


@pytest.mark.slow
def test_what_is_wrong_with_the_file_is_found_and_the_rest_is_said(tmp_path):
    wrong = json.loads(GOLDEN.read_text())
    wrong["instances"][0]["dist"]["m2"] *= 1 + 1e-7
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    result = run("--golden", tmp_path / "wrong.json", "--out", tmp_path)
    assert result.exit_code == 1
    places = [result.stdout.index(x) for x in ("fail: ", "ok: every verdict holds", "post / exact", "mse-of-cap.svg")]
    assert places == sorted(places)


def test_a_file_that_is_not_there_stops_before_anything_is_done(tmp_path):
    result = run("--golden", tmp_path / "none.json", "--out", tmp_path / "figures")
    assert isinstance(result.exception, FileNotFoundError)
    assert not result.stdout
    assert not (tmp_path / "figures").exists()


def test_figures_come_one_by_one(tmp_path):
    drawn = draw_figures(tmp_path, ["second-moment", "snis"])
    assert [*tmp_path.iterdir()] == []
    assert [p.name for p in next(drawn)] == ["second-moment.svg", "second-moment.png"]
    assert len([*tmp_path.iterdir()]) == 2
