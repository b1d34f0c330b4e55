"""Watching a folder: what is read and when, that it adds up to the audit of the whole, and what ends nothing."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from reweigh import report
from reweigh.__main__ import main
from reweigh.audit import audit, question
from reweigh.records import RecordWriter, RunInfo
from reweigh.report.watch import dashboard, in_a_line, metrics, update
from reweigh.scan import Job, Workers
from reweigh.watch import Memory, Watched, look
from reweigh.watch.folder import MAX_TRIES, SETTLED_SECONDS, last_line_end

DATA = Path(__file__).parent / "data" / "readers"
JOB = Job((question(by=("step",)),))
NOW = 2e9  # seconds since the epoch: the clock of these tests


def rows_of(step, n=12, seed=0, length=30):
    g = np.random.default_rng(100 * seed + step)
    found = []
    for i in range(n):
        noise = 0.05 * g.normal(size=length) - 0.00125
        log_mu = -1.5 - g.gamma(0.5, 2.0, length) - abs(noise)
        found.append(
            {
                "sequence_id": f"{step}-{i}",
                "prompt_id": f"{step}-{i // 2}",
                "step": step,
                "log_mu": log_mu.astype(np.float32),
                "log_pi": (log_mu + noise).astype(np.float32),
            }
        )
    return found


def parquet(path, step, **kwargs):
    with RecordWriter(path, RunInfo(engine="vllm", trainer="fsdp")) as writer:
        writer.write(rows_of(step, **kwargs))
    return rest(path)


def text_of(step, **kwargs):
    """Records as JSON lines, without a line for the run."""
    plain = [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows_of(step, **kwargs)
    ]
    return [json.dumps(row) + "\n" for row in plain]


def rest(path, ago=1.0):
    """Give the file a time of change, so that no test depends on the clock."""
    os.utime(path, ns=(int((NOW - ago) * 1e9),) * 2)
    return path


def names(paths):
    return sorted(Path(path).name for path in paths)


def same(watched, paths):
    """The watch says what an audit of the files says."""
    a, b = report.document(watched.audit()), report.document(audit(paths, by=["step"]))
    for found in (a, b):
        for key in ("files", "worst"):
            found.pop(key)
    assert_close(a, b, "")


def assert_close(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{where}[{i}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9), where
    elif not isinstance(a, str):  # sentences hold the same numbers, rounded
        assert a == b, where


def test_new_files_are_read_once_and_add_up_to_the_audit_of_all(tmp_path):
    opened = []

    def engine(tasks, job):
        opened.extend(one.parts[0].path.name for one in tasks)
        return Workers(1)(tasks, job)

    first = [parquet(tmp_path / f"step_{i}.parquet", i) for i in range(3)]
    one = look(Watched(), tmp_path, JOB, NOW, engine=engine)
    assert names(one.read) == ["step_0.parquet", "step_1.parquet", "step_2.parquet"]
    assert one.news
    assert not one.more
    same(one.watched, first)
    two = look(one.watched, tmp_path, JOB, NOW, engine=engine)
    assert (two.read, two.waiting, two.news) == ((), (), False)
    (tmp_path / "inner").mkdir()
    added = [parquet(tmp_path / "inner" / "step_3.parquet", 3), parquet(tmp_path / "step_10.parquet", 10)]
    three = look(two.watched, tmp_path, JOB, NOW, engine=engine)
    assert names(three.read) == ["step_10.parquet", "step_3.parquet"]
    same(three.watched, [*first, *added])
    assert sorted(opened) == sorted(
        ["step_0.parquet", "step_1.parquet", "step_2.parquet", "step_3.parquet", "step_10.parquet"]
    )
    assert one.watched.total.rows == 36  # what was known before is as it was


def test_parquet_without_its_footer_is_waited_for(tmp_path):
    whole = parquet(tmp_path / "whole.parquet", 0).read_bytes()
    (tmp_path / "whole.parquet").unlink()
    path = tmp_path / "a.parquet"
    watched = Watched()
    for size in (0, 4, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        rest(path)
        found = look(watched, tmp_path, JOB, NOW)
        watched = found.watched
        assert names(found.waiting) == ["a.parquet"]
        assert not found.read
        assert not watched.troubles
    path.write_bytes(whole)
    found = look(watched, tmp_path, JOB, NOW)
    assert names(found.read) == ["a.parquet"]
    assert found.waiting == ()


def test_a_file_that_stays_truncated_is_named_retried_counted_and_read_when_it_is_mended(tmp_path):
    good = parquet(tmp_path / "good.parquet", 0)
    path = parquet(tmp_path / "bad.parquet", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    rest(path, ago=2 * SETTLED_SECONDS)
    watched, tries = Watched(), []
    for _ in range(MAX_TRIES + 4):
        found = look(watched, tmp_path, JOB, NOW)
        watched = found.watched
        tries += [x.tries for x in watched.troubles.values()]
    assert tries == [*range(1, MAX_TRIES + 1), *[MAX_TRIES] * 3]
    [trouble] = watched.troubles.values()
    assert trouble.reason.startswith("truncated or not closed: 500 bytes")
    assert "hint" not in trouble.reason
    assert watched.total.rows == 12
    path.write_bytes(whole)
    rest(path)
    found = look(watched, tmp_path, JOB, NOW)
    assert names(found.read) == ["bad.parquet"]
    assert found.watched.troubles == {}
    same(found.watched, [good, path])


def test_a_file_with_a_wrong_value_adds_nothing_of_itself(tmp_path):
    path = parquet(tmp_path / "nan.parquet", 1)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[-1]["log_pi"][3] = math.nan
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    parquet(tmp_path / "ok.parquet", 0)
    found = look(Watched(), tmp_path, JOB, NOW)
    assert names(found.read) == ["ok.parquet"]
    assert names(found.watched.troubles) == ["nan.parquet"]
    assert "log_pi" in next(iter(found.watched.troubles.values())).reason
    assert found.watched.total.rows == 12
    lenient = look(Watched(), tmp_path, Job(JOB.families, keep_going=True), NOW)
    assert names(lenient.read) == ["nan.parquet", "ok.parquet"]


def test_json_lines_that_grow_are_read_further_and_never_again(tmp_path):
    path, lines = tmp_path / "rollouts.jsonl", text_of(0) + text_of(1)
    with open(path, "w") as file:
        file.write("".join(lines[:5]) + lines[5][:40])
    rest(path)
    one = look(Watched(), tmp_path, JOB, NOW)
    assert one.watched.total.rows == 5
    assert names(one.waiting) == ["rollouts.jsonl"]
    with open(path, "a") as file:
        file.write(lines[5][40:] + "".join(lines[6:20]))
    rest(path, ago=0.5)
    two = look(one.watched, tmp_path, JOB, NOW)
    assert two.watched.total.rows == 20
    assert two.waiting == ()
    with open(path, "a") as file:
        file.write("".join(lines[20:]).rstrip("\n"))  # its writer ends without a newline
    rest(path, ago=0.2)
    three = look(two.watched, tmp_path, JOB, NOW)
    assert three.watched.total.rows == 23
    four = look(three.watched, tmp_path, JOB, NOW)  # it has not changed, so its last line is whole
    assert four.watched.total.rows == 24
    same(four.watched, [path])
    assert look(four.watched, tmp_path, JOB, NOW).news is False


def test_a_wrong_line_is_named_with_its_place_and_what_was_whole_before_it_stays(tmp_path):
    path, lines = tmp_path / "rollouts.jsonl", text_of(0)
    path.write_text("".join(lines[:4]))
    rest(path)
    one = look(Watched(), tmp_path, JOB, NOW)
    with open(path, "a") as file:
        file.write(lines[4] + "{broken\n")
    rest(path, ago=0.5)
    two = look(one.watched, tmp_path, JOB, NOW)
    [trouble] = two.watched.troubles.values()
    assert ":6: not JSON" in trouble.reason
    assert two.watched.total.rows == 4


def test_other_files_are_whole_when_they_rest(tmp_path):
    import gzip

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(text_of(0)).encode()))
    rest(path)
    one = look(Watched(), tmp_path, JOB, NOW)
    assert (one.read, names(one.waiting)) == ((), ["a.jsonl.gz"])
    rest(path, ago=0.5)  # written to once more
    two = look(one.watched, tmp_path, JOB, NOW)
    assert names(two.waiting) == ["a.jsonl.gz"]
    three = look(two.watched, tmp_path, JOB, NOW)
    assert names(three.read) == ["a.jsonl.gz"]
    old = look(Watched(), tmp_path, JOB, NOW + 2 * SETTLED_SECONDS)  # long since written: read at first sight
    assert names(old.read) == ["a.jsonl.gz"]


def test_a_file_that_changes_after_it_was_read_is_named_and_its_first_reading_stays(tmp_path):
    path = parquet(tmp_path / "a.parquet", 0)
    one = look(Watched(), tmp_path, JOB, NOW)
    parquet(path, 1, n=20)
    two = look(one.watched, tmp_path, JOB, NOW)
    assert two.news
    assert names(two.watched.rewritten) == ["a.parquet"]
    assert two.watched.total.rows == 12
    assert look(two.watched, tmp_path, JOB, NOW).news is False
    lines = text_of(0)
    (tmp_path / "b.jsonl").write_text("".join(lines))
    three = look(two.watched, tmp_path, JOB, NOW)
    (tmp_path / "b.jsonl").write_text("".join(lines[:3]))
    four = look(three.watched, tmp_path, JOB, NOW)
    assert names(four.watched.rewritten) == ["a.parquet", "b.jsonl"]


def test_files_that_are_deleted_keep_their_place(tmp_path):
    parquet(tmp_path / "a.parquet", 0)
    one = look(Watched(), tmp_path, JOB, NOW)
    (tmp_path / "a.parquet").unlink()
    two = look(one.watched, tmp_path, JOB, NOW)
    assert (two.news, two.watched.total.rows) == (False, 12)
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder\nhint: name the folder"):
        look(two.watched, tmp_path, JOB, NOW)


def test_what_is_no_dump_is_left_alone(tmp_path):
    (tmp_path / "notes.json").write_text('{"loss": [1, 2]}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".hidden").mkdir()
    parquet(tmp_path / ".hidden" / "a.parquet", 1)
    parquet(tmp_path / ".b.parquet", 1)
    parquet(tmp_path / "a.parquet", 0)
    for path in tmp_path.glob("*.json*"):
        rest(path, ago=2 * SETTLED_SECONDS)
    found = look(Watched(), tmp_path, JOB, NOW)
    assert names(found.read) == ["a.parquet"]
    assert not found.waiting
    assert not found.watched.troubles
    assert names(found.watched.beside) == ["metrics.jsonl", "notes.json"]


def test_ranks_of_one_dump_are_read_together_when_all_of_them_rest(tmp_path):
    for source in (DATA / "miles" / "train_data").iterdir():
        shutil.copy(source, tmp_path)
        rest(tmp_path / source.name)
    one = look(Watched(), tmp_path, JOB, NOW)
    assert (one.read, names(one.waiting)) == ((), ["0_0.pt", "0_1.pt", "0_2.pt", "0_3.pt"])
    rest(tmp_path / "0_2.pt", ago=0.5)  # still written to
    two = look(one.watched, tmp_path, JOB, NOW)
    assert (two.read, names(two.waiting)) == ((), ["0_0.pt", "0_2.pt"])
    three = look(two.watched, tmp_path, JOB, NOW)
    assert names(three.read) == ["0_0.pt"]
    assert three.watched.total.rows == 3
    assert not three.watched.troubles
    assert names(three.watched.beside) == ["0_1.pt", "0_2.pt", "0_3.pt"]
    assert look(three.watched, tmp_path, JOB, NOW).news is False


def test_a_full_folder_is_read_in_portions(tmp_path):
    paths = [parquet(tmp_path / f"{i}.parquet", i, n=3) for i in range(5)]
    found, seen = look(Watched(), tmp_path, JOB, NOW, most=2), []
    while True:
        seen.append(len(found.read))
        if not found.more:
            break
        found = look(found.watched, tmp_path, JOB, NOW, most=2)
    assert seen == [2, 2, 1]
    same(found.watched, paths)


def test_a_watch_goes_on_from_its_state(tmp_path):
    folder, other = tmp_path / "dumps", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    paths = [parquet(folder / "a.parquet", 0)]
    lines = text_of(1)
    growing = folder / "b.jsonl"
    growing.write_text("".join(lines[:6]) + lines[6][:9])
    rest(growing)
    (folder / "bad.parquet").write_bytes(b"PAR1 and nothing")
    rest(folder / "bad.parquet", ago=2 * SETTLED_SECONDS)
    memory = Memory.of(tmp_path / "state", folder, JOB)
    assert memory.load().total.rows == 0
    watched = look(look(Watched(), folder, JOB, NOW).watched, folder, JOB, NOW).watched
    memory.save(watched)
    back = memory.load()
    for name in ("files", "troubles", "pending", "beside", "rewritten", "looks"):
        assert getattr(back, name) == getattr(watched, name), name
    opened = []

    def engine(tasks, job):
        opened.extend(one.parts[0] for one in tasks)
        return Workers(1)(tasks, job)

    with open(growing, "a") as file:
        file.write(lines[6][9:] + "".join(lines[7:]))
    rest(growing, ago=0.5)
    found = look(back, folder, JOB, NOW, engine=engine)
    assert [(part.path.name, part.first_row, part.first_line) for part in opened] == [("b.jsonl", 6, 7)]
    same(found.watched, [*paths, growing])
    with pytest.raises(ValueError, match=r"the state is of another watch: folder was .*\nhint: .*--fresh"):
        Memory.of(tmp_path / "state", other, JOB).load()
    with pytest.raises(ValueError, match="--keep-going was False, and is True"):
        Memory.of(tmp_path / "state", folder, Job(JOB.families, keep_going=True)).load()
    (tmp_path / "state").write_bytes(b"reweigh1 no")
    with pytest.raises(ValueError, match="not the state of a watch by this version of reweigh"):
        memory.load()


@pytest.mark.parametrize("size", [1, 10, 1 << 16, (1 << 16) + 1, 200_000])
def test_the_last_whole_line_is_found_however_long_lines_are(tmp_path, size):
    path = tmp_path / "a"
    text = b"x" * size + b"\n" + b"y" * size
    path.write_bytes(text)
    assert last_line_end(path, 0, len(text)) == size + 1
    assert last_line_end(path, size + 1, len(text)) == size + 1
    assert last_line_end(path, 0, size) == 0


# What is shown.


@pytest.fixture
def seen(tmp_path):
    for i in range(3):
        parquet(tmp_path / f"{i}.parquet", i)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing [bold]")
    rest(tmp_path / "bad.parquet", ago=2 * SETTLED_SECONDS)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    rest(tmp_path / "c.parquet")
    found = look(Watched(), tmp_path, JOB, NOW)
    return look(found.watched, tmp_path, JOB, NOW)


def test_the_dashboard_has_verdict_numbers_steps_and_bad_files(seen):
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(dashboard("dumps", seen, seen.watched.audit(), 5))
    console.file.close()
    text = console.export_text()
    for part in (
        "dumps 3 files, 36 rows, 1,080 tokens, 1 still being written, 1 bad; looked 2 times, every 5 s",
        seen.watched.audit().verdict.reason,
        "KL(mu||pi), nats",
        "effective share",
        "hint: a guard is enough: seq_tis(2) (mean weight ",
        "bad, tried 1 time:",
        "truncated or not closed",
    ):
        assert part in " ".join(text.split()), part  # lines are broken where the terminal ends
    assert [row.split()[0] for row in text.splitlines() if row[:1] in ("0", "1", "2")] == ["0", "1", "2"]


def test_nothing_yet_is_said_so(tmp_path):
    found = look(Watched(), tmp_path, JOB, NOW)
    assert in_a_line(found, found.watched.audit()) == "0 files, 0 rows, 0 tokens: no token that counts yet"
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(dashboard("dumps", found, None, 5))
    console.file.close()
    assert "waiting for the first file" in console.export_text()
    assert update(found, None)["verdict"] is None


def test_an_update_as_json_has_the_names_of_the_hooks(seen):
    found = json.loads(json.dumps(update(seen, seen.watched.audit()), allow_nan=False))
    assert found["reweigh_watch"] == 1
    assert (found["files"], found["rows"], found["tokens"], found["look"]) == (3, 36, 1080, 2)
    assert [Path(x["file"]).name for x in found["bad"]] == ["bad.parquet"]
    assert names(found["waiting"]) == ["c.parquet"]
    assert found["metrics"] == metrics(seen)
    level = seen.watched.audit().levels["token"]
    assert found["metrics"]["reweigh/token/kl_k3"] == pytest.approx(level.value("kl_k3"))
    assert found["use"] == "seq_tis(2)"


# The command.


def command(folder, *more):
    return ["watch", str(folder), "--once", *more]


def test_once_prints_a_line_writes_the_page_and_goes_on_later(tmp_path, capsys):
    folder, page = tmp_path / "dumps", tmp_path / "out" / "page.html"
    folder.mkdir()
    parquet(folder / "a.parquet", 0)
    assert main(command(folder, "--html", str(page))) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 file, 12 rows, 360 tokens: ")
    assert len(out.splitlines()) == 1
    assert "1 file, 12 rows, 360 tokens read" in err
    assert f"wrote {page}" in err
    assert names((tmp_path / "out").iterdir()) == ["page.html", "page.html.state"]
    before = page.read_text()
    parquet(folder / "b.parquet", 1)
    assert main(command(folder, "--html", str(page), "--format", "json", "--quiet")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    [update] = map(json.loads, out.splitlines())
    assert names(update["read"]) == ["b.parquet"]
    assert update["rows"] == 24
    assert page.read_text() != before
    assert main(command(folder, "--html", str(page), "--format", "json", "-q", "--fresh")) == 0
    assert len(json.loads(capsys.readouterr().out)["read"]) == 2
    assert main(command(folder, "--html", str(page), "--by", "env")) == 2
    assert "the state is of another watch: --by was ['step'], and is ['step', 'env']" in capsys.readouterr().err


def broken(path, step):
    """Rows whose log-probs are of another law than was sampled from: fail, whatever the words."""
    with RecordWriter(path, RunInfo()) as writer:
        writer.write([{**row, "log_pi": row["log_mu"] - 0.5} for row in rows_of(step, n=60)])
    return rest(path)


def test_a_command_runs_when_the_verdict_becomes_fail_and_once(tmp_path, capsys):
    folder, log = tmp_path / "dumps", tmp_path / "log"
    folder.mkdir()
    parquet(folder / "a.parquet", 0)
    tell = f'echo "$REWEIGH_VERDICT: $REWEIGH_REASON" >> {log}'
    options = ["--state", str(tmp_path / "s"), "--on-fail", tell]
    assert main(command(folder, *options, "--fail-on", "fail")) == 0
    assert not log.exists()
    broken(folder / "b.parquet", 1)
    assert main(command(folder, *options)) == 0  # nobody asked for an exit code
    [line] = log.read_text().splitlines()
    assert line.startswith("fail: ")
    assert main(command(folder, *options[:2], "--fail-on", "fail")) == 1
    assert main(["watch", str(folder), *options, "--fail-on", "stop", "--every", "0.05"]) == 1
    capsys.readouterr()
    assert main(command(folder, "--state", str(tmp_path / "t"), "--on-fail", "exit 7")) == 0
    assert "--on-fail: the command ended with 7: exit 7" in capsys.readouterr().err


def test_no_folder_is_exit_code_2(tmp_path, capsys):
    assert main(command(tmp_path / "gone", "--state", str(tmp_path / "s"))) == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly_with_a_summary_and_a_state(tmp_path):
    """The process says what it has read, and only then is interrupted: nothing here waits for a time."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    parquet(folder / "a.parquet", 0)
    args = [sys.executable, "-m", "reweigh", "watch", str(folder), "--every", "0.05", "--format", "json"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["rows"] == 12
    parquet(tmp_path / "hidden.parquet", 1).rename(folder / "b.parquet")
    assert json.loads(process.stdout.readline())["rows"] == 24
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == ""
    assert "2 files, 24 rows, 720 tokens read" in err
    assert "Traceback" not in err
    assert names(tmp_path.glob("*.state")) == ["reweigh-watch.state"]
