"""The doctor's benchmark: its cases, its samples, how worlds are judged by the others, tables and pictures."""

import importlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from test_doctor_faults import small_world

from faults import FAULTS, PAIRS, find
from reweigh.doctor import CAUSES
from reweigh.doctor.families import FAMILIES
from reweigh.records import validate

ROOT = Path(__file__).parents[1]
SEEDS = {"medium": 1, "strong": 0, "weak": 0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The benchmark's modules, with a small world in place of the ones that take a minute to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        names = ("cases", "fit", "tables", "martingale", "speed")
        found = {name: importlib.import_module(f"doctor_{name}") for name in names}
        patch.setattr(found["cases"], "_world", lambda name, seed: small_world())
        yield found


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
    """A folder with three runs, and the runs."""
    folder = tmp_path_factory.mktemp("cases")
    wanted = [find("shift-right"), find("placeholder_logprob-zero"), find("numerics-bf16")]
    runs = parts["cases"].runs_of(wanted, SEEDS, tokens=900)
    assert parts["cases"].generate(runs, folder) == 3
    return folder, runs


def test_runs_are_medium_first_and_a_level_of_the_same_strength_is_not_made(parts):
    chosen = [find("raw_logprobs-cooler"), find("shift-right"), find("moe_routing-router")]
    worlds = ("tiny", "moe")
    runs = parts["cases"].runs_of(chosen, {"medium": 2, "strong": 1, "weak": 1}, worlds=worlds)
    assert [(r.faults[0], r.level, r.seed) for r in runs if r.world == "tiny"] == [
        ("raw_logprobs-cooler", "medium", 0),
        ("shift-right", "medium", 0),
        ("raw_logprobs-cooler", "medium", 1),
        ("shift-right", "medium", 1),
        ("raw_logprobs-cooler", "strong", 0),
        ("shift-right", "strong", 0),
        ("raw_logprobs-cooler", "weak", 0),
    ]
    assert ("moe_routing-router", "moe") in {(r.faults[0], r.world) for r in runs}
    assert len({r.file for r in runs}) == len(runs)


def test_cases_are_record_files_and_are_not_made_twice(parts, made):
    folder, runs = made
    assert sorted(p.name for p in folder.iterdir()) == sorted(run.file for run in runs)
    for run in runs:
        assert not validate(folder / run.file).violations
        assert {"log_pi_repeat", "log_mu_prefill"} <= set(pq.read_schema(folder / run.file).names)
    (folder / runs[1].file).unlink()
    kept = {run.file: (folder / run.file).stat().st_mtime_ns for run in (runs[0], runs[2])}
    assert parts["cases"].generate(runs, folder) == 1
    assert kept == {name: (folder / name).stat().st_mtime_ns for name in kept}


def test_samples_are_whole_prompts_over_all_steps_and_disjoint(parts, made):
    folder, runs = made
    table = pq.read_table(folder / runs[2].file)
    found = parts["cases"].samples(table, 300, 2, salt=1)
    assert len(found) == 2
    whole = table["prompt_id"].to_pylist()
    for one in found:
        ids = one["prompt_id"].to_pylist()
        assert all(ids.count(i) == whole.count(i) for i in set(ids))
        assert parts["cases"].counted(one).sum() >= 300
        assert one.schema.metadata == table.schema.metadata
    assert not set(found[0]["sequence_id"].to_pylist()) & set(found[1]["sequence_id"].to_pylist())
    first = table.slice(0, len(found[0]))
    assert first["step"].to_pylist() != found[0]["step"].to_pylist()
    assert parts["cases"].counted(table).tolist() == [sum(m) for m in table["mask"].to_pylist()]


def test_ways_of_looking_leave_columns_out(parts, made):
    table = pq.read_table(made[0] / made[1][0].file)
    assert parts["cases"].view(table, "all").column_names == table.column_names
    left = set(table.column_names) - set(parts["cases"].view(table, "one-pass").column_names)
    assert left == {"log_pi_repeat", "log_mu_prefill"}
    assert parts["cases"].view(table, "minimal").column_names == [
        "sequence_id",
        "prompt_id",
        "log_mu",
        "log_pi",
        "mask",
    ]


def answer(parts, fault, verdict, causes=(), **fields):
    blank = {"level": "medium", "seed": 0, "world": "tiny", "size": 50_000, "tokens": 50_000, "draw": 0}
    rest = {"confidence": (), "seconds": 0.1}
    return parts["cases"].Answer((fault,), (find(fault).id,), verdict=verdict, causes=causes, **blank | rest | fields)


def test_a_run_is_asked_about(parts, made):
    folder, runs = made
    found = parts["cases"].ask(runs[0], folder / runs[0].file, 900)
    assert (found.verdict, found.truth, found.right) == ("shift", ("shift",), True)
    assert found.tokens > 500
    assert not replace(found, verdict="not_decided").right


def look(parts, world, cause, i, **numbers):
    """Of a case whose numbers are these; nothing was found by a test but that its cause may be there."""
    from reweigh.doctor.diagnose import Weighing
    from reweigh.doctor.diagnosis import Suspicion

    said = tuple(Suspicion(name, 0.5, 1.0, 0.5, ()) for name in ("dropout", "stale_kv"))
    weighing = Weighing(
        said=said,
        features=numbers,
        ruled_out={},
        by_mean={},
        by_size={},
        to_test_first=None,
        held_back={},
        spread=None,
        small=False,
        tokens=10_000,
        sequences=100,
    )
    return parts["fit"].Look(world, f"{cause}-{i}", frozenset({cause}), frozenset(), "all", weighing, 1.0)


def looks_of_three_worlds(parts):
    """Where `tell` speaks for dropout and against a stale cache, but in the third world the other way round."""
    g = np.random.default_rng(0)
    return [
        look(parts, world, cause, i, tell=float(sign * way * 3 + g.normal()), other=float(g.normal()))
        for world, way in (("a", 1), ("b", 1), ("c", -1))
        for cause, sign in (("dropout", 1), ("stale_kv", -1))
        for i in range(20)
    ]


def test_a_world_is_judged_by_weights_of_the_others(parts):
    found = parts["fit"].judged([x for x in looks_of_three_worlds(parts) if x.world != "c"])
    assert all(said.causes[0].id in x.truth for x, said in found)
    assert sum(said.decided for _, said in found) > 30
    wrong = [said.causes[0].id not in x.truth for x, said in parts["fit"].judged(looks_of_three_worlds(parts))]
    assert all(wrong[80:]), "the world that is unlike the others had no part in its own weights"


def test_what_of_a_case_nobody_can_say_is_in_no_regression(parts):
    looks = looks_of_three_worlds(parts)[:40]
    unsure = [replace(x, unsure=frozenset({"dropout"})) for x in looks]
    assert set(parts["fit"].fitted(looks, ("tell",))) == {"dropout", "stale_kv"}
    assert set(parts["fit"].fitted(unsure, ("tell",))) == {"stale_kv"}


def test_weights_are_written_as_the_doctor_reads_them(parts, tmp_path):
    parts["fit"].save(tmp_path / "weights.json", looks_of_three_worlds(parts)[:80])
    data = json.loads((tmp_path / "weights.json").read_text())
    assert data["features"] == ["other", "tell"]
    assert {name: len(row) for name, row in data["weights"].items()} == {"dropout": 3, "stale_kv": 3}
    assert data["weights"]["dropout"][2] > 0.5
    assert "80 looks" in data["source"]
    assert data["source"].endswith("cases of a, b")


def said(parts, truth, verdict, sure, world="a", columns="all", case="x", causes=None):
    causes = causes or ((verdict, sure),)
    names, each = zip(*causes, strict=True)
    return parts["tables"].Said(world, case, columns, (truth,), verdict, names, each)


def test_said_is_kept_and_read_again(parts, tmp_path):
    (x, found), *_ = parts["fit"].judged([x for x in looks_of_three_worlds(parts) if x.world != "c"])
    one = parts["tables"].Said.of(x, found)
    assert (one.world, one.truth, one.causes[0]) == ("a", ("dropout",), found.causes[0].id)
    (tmp_path / "judged.json").write_text(json.dumps(parts["tables"].rows_of([one])))
    assert parts["tables"].load(tmp_path / "judged.json") == [one]


def test_the_first_cause_is_judged_and_rounding_is_nothing_in_a_loop(parts):
    open_ = said(parts, "shift", "not_decided", 0, causes=(("shift", 0.6), ("dropout", 0.3)))
    assert (open_.decided, open_.right, open_.sure) == (False, True, 0.6)
    assert said(parts, "numerics", "none", 0.9, world="loops").right
    assert not said(parts, "numerics", "none", 0.9).right
    assert not said(parts, "stale_weights", "none", 0.9, world="loops").right


def test_equally_sure_answers_are_given_together(parts):
    """Else the right ones of them would be counted first, and the curve would begin at no risk whatever was said."""
    some = [said(parts, "shift", "shift", 0.9) for _ in range(3)]
    some += [said(parts, "shift", "dropout", 0.9), said(parts, "shift", "dropout", 0.5)]
    assert parts["tables"].risk(some) == [(0.8, 0.25, 0.9), (1.0, 0.4, 0.5)]
    text = parts["tables"].risk_table(some)
    assert "| 0.90 | 80% | 25.0% |" in text
    assert "| 0.50 | 100% | 40.0% |" in text
    assert "| 0.99 |" not in text


def test_calibration_is_by_tenths(parts):
    some = [said(parts, "shift", "shift" if i < 7 else "dropout", 0.9) for i in range(10)]
    some += [said(parts, "shift", "not_decided", 0, causes=(("shift", 0.3),)) for _ in range(10)]
    assert [(low, len(x)) for low, x in parts["tables"].tenths(some)] == [(0.3, 10), (0.9, 10)]
    assert parts["tables"].calibration_error(some) == pytest.approx(0.5 * (0.9 - 0.7) + 0.5 * (1 - 0.3))
    assert "| 0.9 to 1.0 | 10 | 0.90 | 0.70 | 0.35 to 0.93 |" in parts["tables"].calibration_table(some)


def test_judgements_become_tables_and_pictures(parts, tmp_path):
    some = [
        said(parts, "numerics", "shift", 0.9, case="numerics-bf16"),
        said(parts, "quantised_rollout", "numerics", 0.9, case="quantised_rollout-fp8"),
        said(parts, "shift", "shift", 0.95, case="shift-left", world="b"),
        said(parts, "shift", "not_decided", 0, case="shift-left", world="b", causes=(("shift", 0.4),)),
        said(parts, "numerics", "none", 0.99, world="loops", case="loop~clean~0"),
        said(parts, "stale_weights", "dropout", 0.85, world="loops", case="loop~lag~0"),
    ]
    text = parts["tables"].whole_table(some)
    for row in (
        "| all but loops | all | 4 | 75% | 2 (66.7%) | 9.4% to 99.2% |",
        "| b | all | 2 | 50% | 0 (0.0%) | 0.0% to 97.5% |",
        "| together | all | 2 | 0 | 1 (50.0%) | 1.3% to 98.7% | `shift` 1 |",
        "| clean | all | 1 | `none` 1 | 0 |",
        "| lag | all | 1 | `dropout` 1 | 1 |",
        "| `shift-left` | 2 | 1 | 1 |  |",
        "| `numerics-bf16` | 1 | 0 | 0 | `shift` 1 |",
    ):
        assert row in text, row
    parts["tables"].risk_picture(some, tmp_path / "risk.png")
    parts["tables"].calibration_picture(some, tmp_path / "calibration.png")
    assert min(path.stat().st_size for path in tmp_path.iterdir()) > 5_000


def test_intervals_are_clopper_and_pearsons(parts):
    low, high = parts["cases"].exact_interval(0, 200)
    assert (low, round(high, 5)) == (0.0, 0.01828)
    assert np.round(parts["cases"].exact_interval(3, 10), 4).tolist() == [0.0667, 0.6525]
    assert parts["cases"].exact_interval(5, 5)[1] == 1.0


def test_clean_runs_are_of_every_kind_in_every_world_and_each_has_its_seed(parts):
    worlds = ("tiny", "deep", "moe")
    runs = parts["cases"].clean_runs(40, worlds)
    assert len({run.seed for run in runs}) == len(runs) == 40
    dense = set(itertools.product(parts["cases"].CLEAN, ("tiny", "deep")))
    assert {(run.faults[0], run.world) for run in runs} == dense | {("none-float32", "moe")}
    for name in parts["cases"].QUANTISED:
        assert find(name).id == "quantised_rollout"


def test_pairs_are_made_in_worlds_that_can_have_both(parts):
    runs = parts["cases"].pair_runs(2, ("tiny", "moe"), 900)
    assert {run.world for run in runs} == {"tiny", "moe"}
    assert all(run.world in find(name).worlds for run in runs for name in run.faults)
    assert len({run.file for run in runs}) == len(runs)
    assert {run.faults for run in runs if run.world == "tiny"} == set(PAIRS)


def test_clean_pairs_are_judged_by_the_weights_of_other_worlds(parts, made, tmp_path):
    folder, _ = made
    fit, tables = parts["fit"], parts["tables"]
    looks = fit.looked_at(folder, tmp_path / "looks.pickle", ways=("all",))
    assert {look.columns for look in looks} == {"all"}
    elsewhere = [replace(look, world="deep") for look in looks]
    (one, *_) = [look for look in looks if look.case == "numerics-bf16"]
    ((asked, said),) = fit.judged([one], learnt=[*elsewhere, replace(one, truth=frozenset({"shift"}))])
    assert asked is one
    assert "| together | all | 1 |" in tables.alarms_table([tables.Said.of(asked, said)])


def test_without_martingale_there_is_a_remedy(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "martingale", None)
    with pytest.raises(SystemExit, match=r"hint: pip install --no-deps martingale==0\.2\.0"):
        parts["martingale"].require()


def test_martingales_answers_are_read_from_its_alarms_and_lines(parts):
    def read(stale, alarms=(), *lines):
        return parts["martingale"]._read(stale, Counter(alarms), lines)

    assert read(0.51) == ("staleness",)
    assert read(0.5) == ("quiet",)
    assert read(None) == ("quiet",)
    assert read(0.9, ("stale_server", "span")) == ("staleness", "other weights")
    assert read(None, (), "the engine generated from DIFFERENT WEIGHTS (or") == ("other weights",)
    assert read(0.1, (), "the engine and the trainer disagree on ordinary tokens.") == ("ordinary tokens",)
    assert read(0.1, (), "the bf16-vs-fp32 tail effect, worse at") == ("tail",)
    assert set(parts["martingale"].RIGHT) == set(parts["martingale"].CAUSES)


def test_speed_is_of_records_with_every_column_that_a_test_reads(parts, tmp_path, capsys):
    path = tmp_path / "records.parquet"
    parts["speed"].generate(path, 20_000)
    assert not validate(path).violations
    names = set(pq.read_schema(path).names)
    wanted = {column for family in FAMILIES for column in family.needs}
    table = pq.read_table(path)
    there = {name for name in names if table[name].null_count < len(table)}
    assert wanted <= there
    parts["speed"].child(path, 1)
    tokens, main, _ = map(float, capsys.readouterr().out.split())
    assert 18_000 < tokens < 20_001
    assert main > 50
    one = parts["speed"].Measured(1_000_000, 20.0, 5.0, 8.0, 900.0, 300.0)
    parts["speed"].picture([one, replace(one, tokens=3_000_000)], 2, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").is_file()
    assert "| 1,000,000 | 20 | 5.0 | 8.0 | 5000 | 900 | 300 |" in parts["speed"].table([one])


def test_the_command_says_what_it_lacks(parts, tmp_path, monkeypatch):
    command = importlib.import_module("doctor")
    for arguments, said in (
        (["judge", "--cases", str(tmp_path), "--loops", "0"], "hint: python benchmarks/doctor.py generate"),
        (["fit", "--cases", str(tmp_path)], "hint: python benchmarks/doctor.py generate"),
        (["generate", "--cases", str(tmp_path), "--only", "shif"], "error: no fault 'shif'"),
    ):
        monkeypatch.setattr(sys, "argv", ["doctor.py", *arguments])
        with pytest.raises(SystemExit, match=said):
            command.main()


@pytest.mark.slow
def test_the_table_of_causes_is_that_of_the_code():
    script, env = ROOT / "docs" / "doctor.py", {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False, env=env
    )
    assert (done.returncode, done.stdout.strip()) == (0, "up to date")


def test_every_cause_can_be_committed():
    assert {fault.id for fault in FAULTS} == set(CAUSES)
