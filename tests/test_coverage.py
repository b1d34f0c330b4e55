"""Intervals cover and refusals happen: cells of benchmarks/coverage.py, with few draws; with more where it is slow."""

import importlib.util
import statistics
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(coverage, cell):
    for name in coverage.CERTIFIED:
        assert cell.cover(name) >= 0.95, (cell.s2, cell.n, name)
    for name in ("TV, Bernstein", "excess(10), Bernstein", "lost(10), Bernstein"):
        assert cell.cover(name) >= 0.95, (cell.s2, cell.n, name)
    assert 0.88 <= cell.cover("TV, bootstrap") <= 0.99
    assert cell.width("TV, bootstrap") < cell.width("TV")
    assert cell.alarms <= max(1, 0.005 * cell.draws)


@pytest.mark.slow
def test_a_light_tail_is_told(coverage):
    """Variance 0.25 and 64 units: the tail index alone refuses one batch in six."""
    cell = coverage.run(0.25, 64, 200)
    check(coverage, cell)
    assert cell.refused <= 0.25 * cell.draws
    assert statistics.median(cell.told) == pytest.approx(0.9, abs=0.06)
    assert cell.width("TV") == pytest.approx(0.26, abs=0.02)


@pytest.mark.slow
def test_a_heavy_tail_is_refused_and_its_bounds_still_hold(coverage):
    """Variance 4 and 64 units: the plug-in is a tenth of the truth, and is never told."""
    cell = coverage.run(4.0, 64, 200)
    check(coverage, cell)
    assert cell.refused == cell.draws
    assert statistics.median(cell.plug_in) < 0.2
    assert cell.cover("renyi2, bootstrap") < 0.1
    assert cell.width("renyi2 at least") > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("n", [64, 1024])
@pytest.mark.parametrize("s2", [0.25, 1.0, 4.0, 9.0])
def test_every_cell(coverage, s2, n):
    """Where the plug-in's median is below 0.8 of the truth, nine in ten batches are refused; over 0.9, few."""
    cell = coverage.run(s2, n, 150)
    check(coverage, cell)
    if statistics.median(cell.plug_in) < 0.8:
        assert cell.refused >= 0.85 * cell.draws
    if statistics.median(cell.plug_in) > 0.9:
        assert cell.refused <= 0.25 * cell.draws


def test_the_tables_have_a_row_for_each_cell(coverage):
    cells = [coverage.run(1.0, n, 3) for n in (30, 60)]
    for table in (
        *(coverage.covers(cells, x) for x in (coverage.CERTIFIED, coverage.COMPANIONS)),
        coverage.refusals(cells),
    ):
        lines = table.split("\n")
        assert len(lines) == 4
        assert len({line.count("|") for line in lines}) == 1
