"""`reweigh audit` as a user meets it: what it prints, where, and with which exit code."""

import json

import numpy as np
import pytest

from reweigh.__main__ import main
from reweigh.records import RecordWriter, RunInfo


def records(path, sd=0.02, shift=0.0, n=40):
    g = np.random.default_rng(0)
    rows = []
    for i in range(n):
        log_mu = np.minimum(-g.gamma(0.5, 2.0, 30) - 4 * sd, -3 * abs(shift))
        noise = sd * g.normal(size=30) - sd * sd / 2 + shift
        rows.append(
            {
                "sequence_id": str(i),
                "env": "<script>" if i % 2 else "code [bold]",
                "log_mu": log_mu.astype(np.float32),
                "log_pi": np.minimum(log_mu + noise, 0).astype(np.float32),
            }
        )
    with RecordWriter(path, RunInfo(engine="vllm", dtype_mu="bfloat16", temperature=1.0)) as writer:
        writer.write(rows)
    return str(path)


@pytest.fixture
def healthy(tmp_path):
    return records(tmp_path / "healthy.parquet")


@pytest.fixture
def shifted(tmp_path):
    return records(tmp_path / "shifted.parquet", shift=0.05)


@pytest.fixture
def rough(tmp_path):
    return records(tmp_path / "rough.parquet", sd=0.13)


def test_verdict_comes_first_and_fits(healthy, capsys):
    assert main(["audit", healthy, "--by", "env", "--by", "position", "--full"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("OK    nothing to do: KL(mu||pi) is 0.000")
    assert max(len(line) for line in lines) <= 100
    assert "\x1b" not in out
    assert err == ""
    order = [
        out.index(title) for title in ("Size of the gap", "What estimators would do", "By environment", "By position")
    ]
    assert order == sorted(order)
    assert "vllm (bfloat16) sampled; temperature 1" in out
    assert "1,200 tokens   95% interval" in out
    assert "<script>" in out
    assert "code [bold]" in out


def test_numbers_are_there_with_intervals_and_refusals(rough, capsys):
    assert main(["audit", rough, "--full"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("WARN  worth correcting: KL(mu||pi) is 0.0")
    row = next(line for line in out.splitlines() if line.startswith("mean ratio (must be 1)"))
    assert row.count("[") == row.count("]") == 2
    trial = next(line for line in out.splitlines() if line.startswith("seq_tis(2)"))
    assert trial.split()[1:4] == ["sequence", "100%", "100%"]


@pytest.mark.parametrize("which", ["healthy", "rough", "shifted"])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_in_short_it_is_verdict_cause_size_advice_and_verdict_again(which, width, request, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    main(["audit", request.getfixturevalue(which)])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) <= (25 if width == 100 else 40)
    assert max(map(len, lines)) <= width
    assert "…" not in out  # nothing is cut off
    first, last = lines[0].split()[0], [line for line in lines if not line.startswith(" ")][-1]
    assert first in ("OK", "WARN", "FAIL")
    assert last.startswith(first)
    order = [out.index(f"\n{label}") for label in ("cause", "(--full", "read", "do")]
    assert order == sorted(order)
    assert "What estimators would do" not in out


def test_files_that_differ_are_summed_up_in_a_line(tmp_path, capsys):
    for i, version in enumerate(("0.31", "0.31", "0.32", "0.33")):
        rows = [{"sequence_id": f"{i}-{k}", "log_mu": [-1.0] * 4, "log_pi": [-1.0] * 4} for k in range(4)]
        with RecordWriter(tmp_path / f"{i}.parquet", RunInfo(engine="vllm", engine_version=version)) as writer:
            writer.write(rows)
    assert main(["audit", str(tmp_path), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == ["the files differ in engine_version: 0.31 in 2 files, 0.32 in 1, 0.33 in 1"]


@pytest.mark.parametrize(
    ("which", "fail_on", "code"),
    [
        ("healthy", "warn", 0),
        ("rough", "warn", 1),
        ("rough", "fail", 0),
        ("shifted", "fail", 1),
        ("shifted", "never", 0),
    ],
)
def test_exit_codes(which, fail_on, code, request):
    assert main(["audit", request.getfixturevalue(which), "--fail-on", fail_on]) == code


def test_json_is_one_object_and_nothing_else(shifted, capsys):
    assert main(["audit", shifted, "--json", "--by", "length"]) == 1
    out, _ = capsys.readouterr()
    document = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert document["reweigh_audit"] == 2
    assert document["verdict"]["level"] == "fail"
    assert "must be 1" in document["verdict"]["reason"]
    assert document["slices"]["length"][0]["label"] == "16-31"


def test_html_is_written_beside_the_table(shifted, tmp_path, capsys):
    page = tmp_path / "new" / "report.html"
    assert main(["audit", shifted, "--by", "env", "--html", str(page)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("FAIL    the mean token ratio is")
    assert "By environment" in out  # which was asked for
    assert err == f"wrote {page}\n"
    html = page.read_text(encoding="utf-8")
    assert "and must be 1" in html
    assert "&lt;script&gt;" in html
    assert "<script>alert" not in html


def test_bad_input_is_exit_code_2_on_stderr(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "none.parquet")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no such file or folder" in err
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    assert main(["audit", str(broken)]) == 2
    assert "truncated" in capsys.readouterr().err
    positive = tmp_path / "positive.jsonl"
    positive.write_text(json.dumps({"sequence_id": "a", "log_mu": [0.5, -1.0], "log_pi": [-1.0, -1.0]}) + "\n")
    assert main(["audit", str(positive)]) == 2
    err = capsys.readouterr().err
    assert f"{positive}:1: log_mu[0] = 0.5 is positive" in err
    assert "--keep-going" in err
    assert main(["audit", str(positive), "--keep-going"]) in (0, 1)
    assert "1 tokens of the mask (0.5 of them) have a log-prob over 0: left out" in capsys.readouterr().out.replace(
        "\n     ", ""
    )


def test_help_says_what_exit_codes_mean(capsys):
    assert main(["audit", "--help"]) == 0
    out = capsys.readouterr().out
    assert "Exit code 0 if the verdict is ok or warn" in " ".join(out.split())
    options = ("--by", "--json", "--html", "--fail-on", "--keep-going", "--workers", "--resume", "--state", "--engine")
    for option in (*options, "--ray-address"):
        assert option in out


def test_ctrl_c_says_how_to_go_on_and_resume_does(healthy, tmp_path, capsys, monkeypatch):
    """From the middle of the work, as the signal's handler raises it."""
    import os
    import signal

    from reweigh.scan import engines

    monkeypatch.chdir(tmp_path)
    whole = records(tmp_path / "more.parquet", n=80)
    with monkeypatch.context() as m:
        m.setattr("reweigh.scan.run.PART_TOKENS", 1)
        measure, seen = engines.measure, []

        def interrupted(task, job):
            seen.append(task)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return measure(task, job)

        m.setattr(engines, "measure", interrupted)
        assert main(["audit", healthy, whole]) == 130
        out, err = capsys.readouterr()
        assert out == ""
        assert err == "interrupted: the same command with --resume goes on from reweigh-audit.state\n"
        m.setattr(engines, "measure", measure)
        assert main(["audit", healthy, whole, "--resume"]) == 0
    resumed = capsys.readouterr().out
    assert main(["audit", healthy, whole]) == 0
    assert capsys.readouterr().out == resumed
    assert not (tmp_path / "reweigh-audit.state").exists()


def test_the_state_lies_beside_the_page_or_where_it_is_said(healthy, tmp_path, capsys, monkeypatch):
    import signal

    monkeypatch.chdir(tmp_path)
    page = tmp_path / "pages" / "report.html"
    other = tmp_path / "states" / "mine"
    for arguments, state in (
        (["--html", str(page)], page.with_name("report.html.state")),
        (["--state", str(other)], other),
    ):
        with monkeypatch.context() as m:
            m.setattr("reweigh.scan.state.SAVE_SECONDS", 0.0)
            m.setattr("reweigh.audit.run.conclude", lambda *_: signal.raise_signal(signal.SIGINT))
            m.setattr("reweigh.scan.state.StateFile.remove", lambda _: None)
            assert main(["audit", healthy, *arguments]) == 130
        assert f"--resume goes on from {state}" in capsys.readouterr().err
        assert state.exists()
        assert main(["audit", healthy, *arguments, "--resume"]) == 0
        capsys.readouterr()
        assert not state.exists()
    assert main(["audit", healthy, "--ray-address", "auto"]) == 2
    assert "--ray-address is of a Ray cluster\nhint: add --engine ray" in capsys.readouterr().err


def test_a_state_of_another_audit_is_exit_code_2(healthy, rough, tmp_path, capsys):
    state = tmp_path / "state"
    state.write_bytes(b"not one")
    assert main(["audit", healthy, "--state", str(state), "--resume"]) == 2
    assert "not a state of this version of reweigh" in capsys.readouterr().err
