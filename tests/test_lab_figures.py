"""Figures of the lab: every one is drawn, has units on its axes, and differs in more than colour."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reweigh import seq_is, seq_tis
from reweigh.theory.lab import random_world

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[1] / "docs" / "lab_figures.py"


def load():
    """The script as a module, without its folder on the path: other scripts there have names of modules."""
    spec = importlib.util.spec_from_file_location("lab_figures", SCRIPT)
    made = importlib.util.module_from_spec(spec)
    sys.modules["lab_figures"] = made
    spec.loader.exec_module(made)
    return made


figures = load()


def draw(*args):
    path = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, check=False, env=path
    )


@pytest.mark.slow
@pytest.mark.parametrize("figure", figures.FIGURES)
def test_figure(figure):
    drawn = figures.FIGURES[figure]()
    drawn.draw_without_rendering()
    legend = drawn.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= drawn.bbox.x1, "the legend is cut off"
    columns = [axes for axes in drawn.axes if axes.get_xlabel()]
    assert columns
    for axes in drawn.axes:
        assert all(np.isfinite(np.asarray(l.get_ydata(), dtype=float)).any() for l in axes.lines)
        named = [l for l in axes.lines if l.get_label()[:1] not in ("", "_")]
        assert len({repr((l._dash_pattern, l.get_marker())) for l in named}) == len(named), "alike in grey"
    for axes in columns:
        assert "(" in axes.get_xlabel(), "no unit"
    titles = [axes.title if axes.title.get_text() else axes._left_title for axes in drawn.axes]
    boxes = [t.get_window_extent() for t in (*titles, drawn._suptitle) if t.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.x1 for box in boxes), "a title is cut off"
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), "titles run into each other"


def test_retained_mass():
    world = random_world(3, 4, memory=1, eos=2)
    assert figures.retained_mass(world, seq_is()) == pytest.approx([1.0] * 4)
    assert figures.retained_mass(world, seq_tis(1.1))[-1] < 1


@pytest.mark.slow
def test_command(tmp_path):
    out = tmp_path / "new" / "figures"
    found = draw("--out", out, "second-moment")
    assert (found.returncode, found.stderr) == (0, "")
    paths = [Path(line) for line in found.stdout.splitlines()]
    assert paths == [out / "second-moment.svg", out / "second-moment.png"]
    assert paths[0].read_text().startswith("<?xml")
    assert paths[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_unknown_name(tmp_path):
    found = draw("--out", tmp_path / "none", "cap")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: lab_figures: there is no figure 'cap'.\nhint: one of mse-of-cap, ")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_figures_come_one_by_one(tmp_path):
    drawn = figures.draw_figures(tmp_path, ["second-moment", "snis"])
    assert [*tmp_path.iterdir()] == []
    assert [p.name for p in next(drawn)] == ["second-moment.svg", "second-moment.png"]
    assert len([*tmp_path.iterdir()]) == 2


def test_those_of_the_pages_are_there():
    assert all((SCRIPT.parent / "images" / f"{name}.png").is_file() for name in figures.ON_PAGES)


@pytest.mark.slow
def test_no_global_state(tmp_path):
    import matplotlib

    before = matplotlib.rcParams.copy()
    list(figures.draw_figures(tmp_path, ["second-moment"]))
    assert before == matplotlib.rcParams.copy()


def test_the_package_draws_nothing():
    package = SCRIPT.parents[1] / "reweigh"
    assert [path for path in package.rglob("*.py") if "matplotlib" in path.read_text()] == []
