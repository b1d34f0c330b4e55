"""`lab figures`: every figure is drawn, has units on its axes, and differs in more than colour."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from reweigh import seq_is, seq_tis
from reweigh.cli.lab import lab
from reweigh.lab import random_world
from reweigh.lab.figures import FIGURES, draw_figures
from reweigh.lab.figures.mass import retained_mass

pytest.importorskip("matplotlib")


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES)
def test_figure(figure):
    drawn = FIGURES[figure]()
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
    assert retained_mass(world, seq_is()) == pytest.approx([1.0] * 4)
    assert retained_mass(world, seq_tis(1.1))[-1] < 1


def test_command(tmp_path):
    out = tmp_path / "new" / "figures"
    found = CliRunner().invoke(lab, ["figures", "--out", str(out), "second-moment"])
    assert found.exit_code == 0, found.output
    paths = [Path(line) for line in found.stdout.splitlines()]
    assert paths == [out / "second-moment.svg", out / "second-moment.png"]
    assert paths[0].read_text().startswith("<?xml")
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"no figure 'cap'.\nhint: one of mse-of-cap, "):
        draw_figures(tmp_path / "none", ["cap"])
    assert not (tmp_path / "none").exists()


def test_matplotlib_is_loaded_when_a_figure_is_drawn_and_not_before():
    code = "import sys, reweigh.cli.lab; print('matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


@pytest.mark.slow
def test_no_global_state(tmp_path):
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from reweigh.lab.figures import draw_figures; from pathlib import Path\n"
        f"list(draw_figures(Path({str(tmp_path)!r}), ['second-moment']))\n"
        "print(before == matplotlib.rcParams.copy(), 'matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "True False\n"
