"""`reweigh doctor` as a user meets it: what it prints, where, and with which exit code."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_records import every_column, log_softmax, noisy, temperature, top_p, world, write

from reweigh.__main__ import main
from reweigh.doctor import CAUSES
from reweigh.doctor.causes import ABOUT

EXAMPLES = Path(__file__).parents[1] / "examples" / "records"
FINDING = {"id", "confidence", "explained_share", "evidence", "rules_out", "fix"}
EVIDENCE = {"name", "value", "low", "high", "n", "meaning"}
DOUBT = {"id", "reason", "needs", "experiment"}
NOTE = {"rule", "count", "counted", "place", "hint"}
DOCUMENT = {
    "too_small_to_matter",
    "few_responses",
    "ruled_out",
    "advice",
    *("schema_version", "source", "verdict", "causes", "cannot_tell", "sequences", "tokens", "notes", "slices"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    bad = every_column(prompts=10)
    bad[3]["log_pi"][5] = math.nan
    return {
        "healthy": write(folder / "healthy.parquet", world(0, pi=noisy(1, 0.01))),
        "raw": write(
            folder / "raw.parquet", world(0, prompts=60, sample=temperature(1.4), mu=log_softmax, pi=temperature(1.4))
        ),
        "truncated": write(folder / "truncated.parquet", world(0, prompts=60, sample=top_p(0.9))),
        "bad": write(folder / "bad [x].parquet", bad),
    }


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "history.csv"
    rows = [f"{i},{0.001 * (i + 1)},{0.0011 * (i + 1)},{1 + 1e-4 * i}" for i in range(40)]
    path.write_text("\n".join(["step,rollout_corr/kl,rollout_corr/k3_kl,rollout_corr/rollout_is_mean", *rows]) + "\n")
    return str(path)


def run(capsys, *args):
    code = main(["doctor", *args])
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys, *args):
    code, out, err = run(capsys, *args, "--format", "json")
    assert code == 0
    assert err == ""
    return json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def check(found):
    assert set(found) == DOCUMENT
    assert found["schema_version"] == 1
    assert found["verdict"] in (*CAUSES, "not_decided")
    for one in found["causes"]:
        assert set(one) == FINDING
        assert one["id"] in CAUSES
        assert 0 <= one["confidence"] <= 1
        assert one["explained_share"] is None or 0 <= one["explained_share"] <= 1
        assert isinstance(one["fix"], dict)
        assert one["fix"]["general"]
        for e in one["evidence"]:
            assert set(e) == EVIDENCE
    for one in found["cannot_tell"]:
        assert set(one) == DOUBT
        assert one["id"] in CAUSES
        assert one["experiment"]
    for one in found["notes"]:
        assert set(one) == NOTE
        assert one["count"] > 0
    for cut in found["slices"].values():
        for one in cut.values():
            check(one)


@pytest.mark.parametrize("which", ["healthy", "raw", "truncated", "bad"])
def test_json_is_one_object_of_the_promised_shape(which, files, capsys):
    found = document(capsys, files[which], "--by", "step", "--by", "source")
    check(found)
    assert found["source"] == "records"
    assert set(found["slices"]) == {"step", "source"}
    assert found["sequences"] > 0
    assert found["tokens"] > 0


def test_where_nothing_is_decided_the_candidates_come_first_and_whether_it_matters(files, capsys):
    code, out, err = run(capsys, files["healthy"])
    assert (code, err) == (0, "")
    first = out.splitlines()[0]
    assert first.startswith("verdict: not decided; too small to matter: nothing to do  candidates: numerics 0.")
    assert run(capsys, files["healthy"], "--fail-on", "cause")[0] == 0


@pytest.mark.parametrize(("which", "verdict"), [("raw", "raw_logprobs"), ("truncated", "truncated_sampling")])
def test_the_verdict_comes_first_with_its_reason(which, verdict, files, capsys):
    code, out, err = run(capsys, files[which])
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"verdict: {verdict}  ")
    assert ABOUT[verdict].title in lines[0]
    assert "\x1b" not in out
    order = [out.index("verdict:"), out.index("confidence"), out.index("cannot tell")]
    assert order == sorted(order)
    if verdict != "numerics":
        assert out.index("fix: ") > out.index("mean_ratio_of_clean_tokens ") > order[1]
        assert "it is not this if: " in out


def test_text_and_json_say_the_same(files, capsys):
    found = document(capsys, files["raw"])
    _, out, _ = run(capsys, files["raw"])
    assert out.startswith(f"verdict: {found['verdict']} ")
    assert f"{found['sequences']:,} responses, {found['tokens']:,} tokens" in out
    for one in found["causes"]:
        row = next(x for x in out.splitlines() if x.startswith(one["id"]))
        assert float(row.split()[1]) == pytest.approx(one["confidence"], abs=0.0051)
    for one in found["cannot_tell"]:
        assert f"  {one['id']}: " in out


@pytest.mark.parametrize(
    ("which", "fail_on", "code"), [("healthy", "cause", 0), ("raw", "cause", 1), ("raw", "never", 0), ("raw", None, 0)]
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_exit_codes(which, fail_on, code, output, files, capsys):
    options = [] if fail_on is None else ["--fail-on", fail_on]
    assert run(capsys, files[which], *options, "--format", output)[0] == code


def test_slices_are_printed_each_with_its_verdict(files, capsys):
    code, out, _ = run(capsys, files["bad"], "--by", "env", "--by", "step")
    assert code == 0
    for label in ("code", "maths"):
        line = next(x for x in out.splitlines() if x.startswith(label))
        assert line.split()[1] in CAUSES or re.match(rf"{label} +not decided \(", line)
    _, out, _ = run(capsys, files["raw"], "--by", "lag")
    assert "no record says its lag" in out


def test_what_is_wrong_with_the_records_is_counted_and_placed(files, capsys):
    code, out, _ = run(capsys, files["bad"])
    assert code == 0
    note = next(x for x in out.splitlines() if x.startswith("note: "))
    assert "log_pi: not finite: 1 tokens, first at " in note
    assert "bad [x].parquet row 3" in out.replace("\n", "")


def test_a_baseline_says_what_is_normal(files, tmp_path, capsys):
    rough = write(tmp_path / "rough.parquet", world(0, prompts=60, pi=noisy(1, 0.4)))
    before = write(tmp_path / "before.parquet", world(5, prompts=60, pi=noisy(6, 0.4)))
    alone = {x["id"]: x["confidence"] for x in document(capsys, rough)["causes"]}
    beside = {x["id"]: x["confidence"] for x in document(capsys, rough, "--baseline", before)["causes"]}
    assert beside.get("quantised_rollout", 0.0) < alone["quantised_rollout"]


def test_only_the_programs_that_were_asked_for_are_named(files, capsys):
    found = document(capsys, files["raw"], "--program", "vllm", "--program", "trl")
    assert {name for one in found["causes"] for name in one["fix"]} <= {"general", "vllm", "trl"}
    assert "vllm" in found["causes"][0]["fix"]
    _, out, _ = run(capsys, files["raw"], "--program", "sglang")
    assert "fix, vllm: " not in out


@pytest.mark.parametrize("which", ["healthy", "raw"])
def test_a_program_that_is_not_known_is_refused(which, files, capsys):
    code, out, err = run(capsys, files[which], "--program", "vlm")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "'vlm'" in err
    assert "\nhint: use one of general, vllm, sglang" in err


def test_records_or_metrics_and_not_both(files, metrics, capsys):
    for args in ([], [files["raw"], "--metrics", metrics]):
        code, out, err = run(capsys, *args)
        assert (code, out) == (2, "")
        assert err.startswith("error: doctor: give records or --metrics, one of them\nhint: ")


def test_metrics_are_diagnosed_in_the_same_shape(metrics, capsys):
    found = document(capsys, "--metrics", metrics)
    check(found)
    assert found["source"] == "metrics"
    assert (found["sequences"], found["tokens"], found["slices"]) == (0, 0, {})
    code, out, _ = run(capsys, "--metrics", metrics)
    assert code == 0
    assert found["verdict"] == "not_decided", "a gap that grows to 40 times its size"
    assert "not decided" in out.splitlines()[0] or "not_decided" in out.splitlines()[0]
    assert "stale_weights: Run one step with no lag" in out
    assert "responses, " not in out.splitlines()[2]
    steady = [f"{i},{0.001},{0.0011 + 1e-5 * (i % 3)}" for i in range(40)]
    Path(metrics).write_text("\n".join(["step,rollout_corr/kl,rollout_corr/k3_kl", *steady]) + "\n")
    _, out, _ = run(capsys, "--metrics", metrics)
    assert out.startswith("verdict: numerics ")


def test_bad_files_are_an_error_with_a_remedy_and_no_traceback(files, tmp_path, capsys):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    rollout = tmp_path / "rollout.jsonl"
    rollout.write_text(json.dumps({"sequence_id": "a", "log_mu": [-1.0]}) + "\n")
    for path, word in ((broken, "truncated"), (rollout, "log_pi"), (tmp_path / "none.parquet", "no such file")):
        code, out, err = run(capsys, str(path))
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert word in err
        assert str(path) in err.replace("\n", "")
        assert "Traceback" not in err
        if path != tmp_path / "none.parquet":
            assert "\nhint: " in err
        assert run(capsys, files["raw"], "--baseline", str(path))[0] == 2


@pytest.mark.parametrize(
    "args", [("--by", "epoch"), ("--format", "xml"), ("--fail-on", "numerics"), ("--workers", "0"), ("--nonsense",)]
)
def test_options_that_are_not_there_are_exit_code_2(args, files, capsys):
    code, out, err = run(capsys, files["raw"], *args)
    assert (code, out) == (2, "")
    assert args[0] in err


def test_help_has_examples_and_every_option(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "Examples:" in out
    assert out.count("  reweigh doctor ") >= 4
    for option in ("--metrics", "--baseline", "--by", "--program", "--format", "--fail-on", "--reader", "--workers"):
        assert option in out
    assert "Exit code 0" in " ".join(out.split())


def test_quiet_prints_the_verdict_alone(files, metrics, capsys):
    for args in ([files["raw"]], [files["healthy"]], ["--metrics", metrics]):
        _, whole, _ = run(capsys, *args)
        code, out, err = run(capsys, *args, "--quiet")
        assert (code, err, out.count("\n")) == (0, "", 1)
        assert out.startswith(whole.splitlines()[0])
        level, said = whole.splitlines()[1].partition("  ")[::2]
        if args[0] != "--metrics":  # from which no estimator follows
            assert f"; {level.lower()}: " in out
            assert said


def test_a_glob_and_a_folder_are_as_the_files_in_them(files, tmp_path, capsys):
    for i in (1, 2):
        write(tmp_path / f"{i}.parquet", world(i, pi=noisy(i, 0.01)))
    both = document(capsys, str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet"))
    assert document(capsys, str(tmp_path)) == document(capsys, str(tmp_path / "*.parquet")) == both


@pytest.mark.slow
def test_in_a_terminal_colours_are_for_those_who_want_them(files):
    """FORCE_COLOR makes a pipe a terminal; NO_COLOR has the last word."""
    command = [sys.executable, "-m", "reweigh", "doctor", files["raw"]]
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm-256color"}

    def output(**more):
        return subprocess.run(command, env={**env, **more}, capture_output=True, text=True, check=True).stdout

    coloured, plain = output(FORCE_COLOR="1"), output(FORCE_COLOR="1", NO_COLOR="1")
    assert "\x1b[" in coloured
    assert "\x1b[31" not in plain
    assert "\x1b[1;31" not in plain


def test_the_records_in_the_examples_are_diagnosed(capsys):
    for path in sorted(EXAMPLES.glob("*.parquet")):
        found = document(capsys, str(path))
        check(found)
        assert found["verdict"] in ("numerics", "quantised_rollout"), path.name
