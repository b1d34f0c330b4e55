"""Every command and every writer on a disk that is full: what was there stays, nothing is left half written, and what
was found is printed all the same.

A limit on the size of a file stands in for the disk: the system refuses the bytes that are over it, as a full one does,
at a place of a file that the writer does not choose.
"""

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from doctor_records import noisy, world, write

from reweigh.__main__ import main

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def full_after(size):
    """No file of this process grows beyond so many bytes: then a write raises OSError, EFBIG."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def files(folder):
    """What lies in a folder, by content; locks are empty and stay."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size
    }


def clear(folder):
    for path in folder.iterdir():
        path.unlink()


def run(args):
    """Exit code, and what was printed: to memory, as a full disk would take that too."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(x) for x in args])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Records that the commands read, and results of an experiment."""
    folder = tmp_path_factory.mktemp("read")
    rows = world(0, prompts=60, length=60, pi=noisy(1, 0.05), step=lambda i, n, g: i % 6)
    write(folder / "a.parquet", rows, row_group=40)
    with gzip.open(ROOT / "examples" / "collapse" / "results.jsonl.gz") as file:
        (folder / "results.jsonl").write_bytes(b"".join(itertools.islice(file, 20)))
    policy = folder / "policy.yaml"
    assert run(["gate", folder / "a.parquet", "--init", "--policy", policy])[0] == 0
    return folder


def gate(folder):
    return ["gate", folder / "a.parquet", "--policy", folder / "policy.yaml"]


READ = {
    "audit": lambda p, out: ["audit", p / "a.parquet", "--no-doctor", "--html", out / "new.html"],
    "gate, junit": lambda p, out: [*gate(p), "--junit", out / "new.xml"],
    "gate, summary": lambda p, out: [*gate(p), "--summary", out / "new.md"],
    "gate, baseline": lambda p, out: [*gate(p), "--save-baseline", out / "new.json"],
    "watch": lambda p, out: ["watch", p, "--once", "--html", out / "new.html", "--state", out / "new.state"],
    "experiment, svg": lambda p, out: ["experiment", "--redraw", p / "results.jsonl", "--svg", out / "new.svg"],
    "experiment, html": lambda p, out: ["experiment", "--redraw", p / "results.jsonl", "--html", out / "new.html"],
}
MADE = {
    "table, parquet": lambda p, out: ["table", p / "a.parquet", "--out", out / "new.parquet"],
    "table, csv": lambda p, out: ["table", p / "a.parquet", "--out", out / "new.csv"],
    "table, tokens": lambda p, out: ["table", p / "a.parquet", "--of", "token", "--out", out / "new.parquet"],
    "convert, parquet": lambda p, out: ["records", "convert", p / "a.parquet", out / "new.parquet"],
    "convert, jsonl": lambda p, out: ["records", "convert", p / "a.parquet", out / "new.jsonl"],
    "convert, gzip": lambda p, out: ["records", "convert", p / "a.parquet", out / "new.jsonl.gz"],
}


@pytest.fixture
def out(tmp_path, monkeypatch):
    folder = tmp_path / "written"
    folder.mkdir()
    monkeypatch.chdir(folder)  # what has a default place is written there
    return folder


@pytest.mark.parametrize("name", READ)
def test_a_result_is_printed_though_its_file_cannot_be_written(source, out, name):
    line = READ[name](source, out)
    _, whole, _ = run(line)
    clear(out)
    with full_after(700):
        code, said, err = run(line)
    assert code == 2
    assert "new." in err
    assert "file too large" in err.lower()
    assert files(out) == {}
    assert said == whole


@pytest.mark.parametrize("name", {**READ, **MADE})
def test_what_was_there_stays(source, out, name):
    line = {**READ, **MADE}[name](source, out)
    if name.startswith("convert"):
        line.append("--force")
    code, _, err = run(line)
    assert code in (0, 1), err
    before = files(out)
    assert before
    with full_after(700):
        code, _, err = run(line)
    if name == "watch":  # its state says that nothing is new, so that nothing need be written
        assert code in (0, 1, 2)
    else:
        assert code == 2
        assert "file too large" in err.lower()
    assert files(out) == before
    assert run(line)[0] in (0, 1)  # and with room again it is written


@pytest.mark.parametrize("size", [0, 700])
@pytest.mark.parametrize("name", MADE)
def test_half_a_file_is_not_left(source, out, name, size):
    with full_after(size):
        code, said, err = run(MADE[name](source, out))
    assert code == 2
    assert said == ""
    assert "file too large" in err.lower()
    assert "new" in err
    assert files(out) == {}
    assert run(MADE[name](source, out))[0] == 0  # nothing is in the way of the next try


def test_a_state_that_cannot_be_written_does_not_end_an_audit(source, out, monkeypatch):
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 100)
    monkeypatch.setattr("reweigh.scan.state.SAVE_SECONDS", 0.0)
    line = ["audit", source / "a.parquet", "--state", out / "new.state", "--workers", "1", "--json", "--no-doctor"]
    code, said, _ = run(line)
    with full_after(2000):
        found = run(line)
    whole, notes = json.loads(said), json.loads(found[1])["notes"]
    assert found[0] == code
    assert json.loads(found[1]) == whole | {"notes": notes}
    assert len(notes) == len(whole["notes"]) + 1
    assert any("new.state" in note for note in notes)
    assert files(out) == {}


def test_steps_that_cannot_be_captured_do_not_end_a_training(out):
    import torch

    from reweigh import Batch
    from reweigh.trainers.capture import Capture

    g = np.random.default_rng(0)
    log_mu = torch.from_numpy(-g.exponential(size=(16, 50)))
    batch = Batch.padded(log_mu.clone(), log_mu, torch.ones(16, 50))
    capture = Capture(out / "dumps")
    assert capture.write(batch, 1) is not None
    before = files(out)
    assert before
    with full_after(300):
        for step in (2, 3):
            assert capture.write(batch, step) is None
    assert files(out) == before
    assert capture.write(batch, 4) is not None
    assert len(files(out)) == 2
    assert (capture.done.steps, capture.done.lost) == (2, 2)
