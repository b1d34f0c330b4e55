"""The doctor's benchmark: its cases, its samples, how answers are judged, and its tables, in a small world."""

import importlib
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

from faults import FAULTS, find
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
        names = ("cases", "score", "tables", "alarms", "martingale", "speed")
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
    runs = parts["cases"].runs_of(chosen, {"medium": 2, "strong": 1, "weak": 1})
    assert [(r.faults[0], r.level, r.seed) for r in runs] == [
        ("raw_logprobs-cooler", "medium", 0),
        ("shift-right", "medium", 0),
        ("moe_routing-router", "medium", 0),
        ("raw_logprobs-cooler", "medium", 1),
        ("shift-right", "medium", 1),
        ("moe_routing-router", "medium", 1),
        ("raw_logprobs-cooler", "strong", 0),
        ("shift-right", "strong", 0),
        ("moe_routing-router", "strong", 0),
        ("raw_logprobs-cooler", "weak", 0),
        ("moe_routing-router", "weak", 0),
    ]
    assert [r.world for r in runs[:3]] == ["tiny", "tiny", "moe"]
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


def test_answers_are_scored_and_become_tables_and_a_picture(parts, made, tmp_path):
    folder, runs = made
    score, tables = parts["score"], parts["tables"]
    answers = score.score(runs, folder, sizes=(900, 300), draws=2)
    assert len(answers) == 3 * 3 * (1 + 2)
    whole = {a.faults[0]: a for a in answers if a.size == 900 and a.columns == "all"}
    assert whole["shift-right"].verdict == "shift"
    assert whole["placeholder_logprob-zero"].verdict == "placeholder_logprob"
    assert whole["shift-right"].right
    assert whole["shift-right"].tokens > 500
    score.save(answers, tmp_path / "answers.json")
    assert score.load(tmp_path / "answers.json") == answers
    text = tables.markdown(answers)
    assert "| all columns | 900 | medium | 3 |" in text
    assert "| `shift` | 1 | 1 |  |" in text
    tables.heat_map(answers, 900, tmp_path / "images" / "map.png")
    assert (tmp_path / "images" / "map.png").stat().st_size > 5_000


def answer(parts, fault, verdict, causes=(), **fields):
    blank = {"level": "medium", "seed": 0, "world": "tiny", "size": 50_000, "tokens": 50_000, "columns": "all"}
    rest = {"draw": 0, "confidence": (), "cannot_tell": (), "seconds": 0.1}
    return parts["score"].Answer((fault,), (find(fault).id,), verdict=verdict, causes=causes, **blank | rest | fields)


def test_what_cannot_be_told_apart_is_judged_by_its_own_rule_and_strictly(parts):
    gap = answer(parts, "position_encoding-gap", "template_prefix", ("template_prefix", "position_encoding"))
    assert (gap.fair, gap.right) == (True, False)
    assert not replace(gap, verdict="numerics", causes=("numerics",)).fair
    cache = answer(parts, "stale_kv-partial", "stale_weights", ("stale_weights", "stale_kv"))
    assert (cache.fair, cache.right) == (True, False)
    assert not replace(cache, causes=("stale_weights", "numerics", "stale_kv")).fair
    base = answer(parts, "position_encoding-base", "template_prefix", ("template_prefix", "position_encoding"))
    assert (base.fair, base.right, base.within(2)) == (False, False, True)
    rates = parts["tables"].summary([gap, cache, base])["accuracy"][0]
    assert (rates["n"], rates["top1"], rates["top1_strict"], rates["top1_without_apart"]) == (3, 2 / 3, 0, 0)
    assert rates["top2_without_apart"] == 1


def test_the_smallest_level_is_the_one_from_which_on_all_is_right(parts):
    def found(**right):
        return parts["score"].smallest(
            [
                answer(parts, "raw_logprobs-cooler", "raw_logprobs" if ok else "numerics", level=level, draw=i)
                for level, each in right.items()
                for i, ok in enumerate(each)
            ],
            50_000,
        )["raw_logprobs-cooler"]

    assert found(strong=[1], medium=[1, 1], weak=[1]) == "weak"
    assert found(strong=[1], medium=[1, 1], weak=[0]) == "medium"
    assert found(strong=[1], medium=[1, 0], weak=[1]) == "strong"
    assert found(strong=[0], medium=[1], weak=[1]) == "never"


def test_intervals_are_clopper_and_pearsons(parts):
    low, high = parts["score"].exact_interval(0, 200)
    assert (low, round(high, 5)) == (0.0, 0.01828)
    assert np.round(parts["score"].exact_interval(3, 10), 4).tolist() == [0.0667, 0.6525]
    assert parts["score"].exact_interval(5, 5)[1] == 1.0


def test_pairs_are_twenty_of_different_families(parts):
    family = {cause: one.name for one in FAMILIES for cause in one.causes}
    pairs = parts["alarms"].PAIRS
    assert len({frozenset(two) for two in pairs}) == 20
    for first, second in pairs:
        a, b = find(first), find(second)
        assert family[a.id] != family[b.id], (first, second)
        assert "tiny" in a.worlds, first
        assert "tiny" in b.worlds, second


def test_clean_runs_are_of_every_kind_and_each_has_its_seed(parts):
    runs = parts["alarms"].clean_runs(200)
    assert len({run.seed for run in runs}) == len(runs) == 50
    assert {(run.faults[0], run.world) for run in runs} == {
        ("numerics-bf16", "tiny"),
        ("numerics-bf16-both", "tiny"),
        ("none-float32", "tiny"),
        ("none-float32", "moe"),
    }
    for name in parts["alarms"].QUANTISED:
        assert find(name).id == "quantised_rollout"
    assert all(run.world in find(run.faults[0]).worlds for run in runs)


def test_alarms_are_counted_by_sample_and_by_run(parts):
    said = [answer(parts, "numerics-bf16", "numerics", seed=i // 4) for i in range(8)]
    said[5] = replace(said[5], verdict="shift")
    found = parts["alarms"].alarm_summary(said)
    assert (found["samples"], found["runs"], found["false_alarms"], found["runs_with_one"]) == (8, 2, 1, 1)
    assert "| together |  | 8 | 2 | 1 in 1 runs |" in parts["alarms"].alarm_table(said)


def test_two_faults_are_found_or_not(parts, tmp_path):
    runs = parts["alarms"].pair_runs(900, pairs=[("placeholder_logprob-zero", "shift-some")])
    (found,) = parts["alarms"].both_found(runs, tmp_path, processes=1)
    assert found.truth == ("placeholder_logprob", "shift")
    assert found.within(3) == (set(found.truth) <= set(found.causes[:3]))
    assert "of 1 (" in parts["alarms"].pair_table([found])


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
        (["score", "--cases", str(tmp_path), "--only", "shift"], "hint: python benchmarks/doctor.py generate"),
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
