"""Parts, processes and interrupts: the result is the same however the work is cut, run, stopped and taken up again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reweigh import TOKEN, Batch, geo_rs, prefix_tis, token_mis, token_tis, weigh
from reweigh.audit import audit, question
from reweigh.audit.trial import Trial, default_estimators
from reweigh.layout import Packed
from reweigh.records import RecordWriter, RunInfo
from reweigh.records.files import MAX_TOKENS, FilePart, RecordBatch, cut, source_of
from reweigh.records.schema import fail
from reweigh.records.table import batch_of, conform
from reweigh.report import document
from reweigh.scan import Job, Measured, Workers, measure
from reweigh.scan.measure import Task, pack, unpack
from reweigh.scan.state import Merged, StateFile
from reweigh.scan.tokens import Runs, Shared

BY = ("step", "env", "length", "position", "lag")


def make_rows(n=96, seed=0, sd=0.1):
    g = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        length = int(g.integers(1, 120))
        log_mu = -0.5 - g.gamma(0.5, 2.0, length)
        rows.append(
            {
                "sequence_id": f"s{seed}-{i}",
                "prompt_id": f"p{seed}-{i // 4}",
                "step": i // 4,
                "env": ["math", "code", "tool"][i % 3],
                "log_mu": log_mu.astype(np.float32),
                "log_pi": np.minimum(log_mu + sd * g.normal(size=length) - sd * sd / 2, 0).astype(np.float32),
                "mask": (g.random(length) < 0.9) | (np.arange(length) == 0),
                "advantage": float(g.normal()),
                "versions": np.full(length, 5 - i % 3, np.int32),
                "trainer_version": 5,
                "turns": (np.arange(length) // 20).astype(np.int32),
            }
        )
    # one ratio that needs a shift, in one part only
    rows[45]["log_mu"][0] -= 40
    return rows


def write(path, rows, group=1000):
    with RecordWriter(path, RunInfo(engine="vllm")) as writer:
        for i in range(0, len(rows), group):
            writer.write(rows[i : i + group])
    return path


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    where = tmp_path_factory.mktemp("records")
    write(where / "a.parquet", rows[:40], group=7)
    write(where / "b.parquet", rows[40:60], group=4)
    write(where / "c.jsonl", rows[60:80])
    write(where / "d.jsonl.gz", rows[80:])
    return where


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 700)


def flat(value, path=""):
    if isinstance(value, dict):
        return [x for k, v in value.items() for x in flat(v, f"{path}.{k}")]
    if isinstance(value, list):
        return [x for i, v in enumerate(value) for x in flat(v, f"{path}[{i}]")]
    return [(path, value)]


def sums_of(paths, by, tokens, batch_tokens):
    total = Measured()
    for part in cut(paths, tokens):
        total += measure(Task((part,)), Job((question(by=by),), batch_tokens=batch_tokens))
    return total.sums["audit"]


# parts


def read_part(part, max_tokens=MAX_TOKENS):
    for raw, origin in source_of(part.path).read(part, None, max_tokens, fail):
        table = conform(raw, origin, fail)
        yield RecordBatch(batch_of(table), table, origin)


@pytest.mark.parametrize("tokens", [1, 300, 2000, 10**9])
def test_parts_cover_each_file_once(folder, rows, tokens):
    parts = cut(folder, tokens)
    found = [name for part in parts for r in read_part(part) for name in r.column("sequence_id")]
    assert found == [row["sequence_id"] for row in rows]
    for part in parts:
        records = list(read_part(part, max_tokens=100))
        assert records[0].first_row == part.first_row
        assert part.rows in (None, sum(r.batch.layout.num_seqs for r in records))
    if tokens == 1:
        assert len(parts) == 6 + 5 + 20 + 1  # row groups, row groups, lines, a gzipped file
    if tokens == 10**9:
        assert [part.path.name[0] for part in parts] == ["a", "b", "c", "d"]


def test_parts_of_json_lines_keep_line_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    good = json.dumps({"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0]})
    bad = json.dumps({"sequence_id": "b", "log_mu": [-1.0], "log_pi": [0.5]})
    path.write_text("\n".join(['{"reweigh": {"schema_version": 1}}', good, "", good, "  ", bad, good]))
    parts = cut(path, 1)
    assert [(p.first_line, p.first_row, p.rows) for p in parts] == [(1, 0, 1), (3, 1, 1), (5, 2, 1), (7, 3, 1)]
    assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    assert parts[-1].stop == path.stat().st_size
    for p in parts[:2]:
        next(read_part(p)).check()
    with pytest.raises(ValueError, match=r"x\.jsonl:6: log_pi\[0\] = 0.5 is positive"):
        next(read_part(parts[2])).check()


def test_a_file_without_a_record_has_no_part_that_yields(tmp_path):
    for name in ("a.parquet", "a.jsonl", "a.jsonl.gz"):
        path = write(tmp_path / name, [])
        assert [r for part in cut(path, 100) for r in read_part(part)] == []
    (tmp_path / "b.jsonl").write_text("")
    assert [r for part in cut(tmp_path / "b.jsonl", 100) for r in read_part(part)] == []


def test_a_bad_file_is_refused_before_the_work_begins(folder, tmp_path):
    bad = tmp_path / "z.jsonl"
    bad.write_text(json.dumps({"sequence_id": "a", "log_mu": [-1.0]}) + "\n")
    seen = []
    with pytest.raises(ValueError, match=r"z\.jsonl: column log_pi is missing"):
        audit([folder, bad], on_progress=seen.append)
    assert seen == []


# the same result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "batch_tokens"),
    [(500, 150), (10**9, 10**9), (10**9, 1)],
)
def test_sums_do_not_depend_on_the_partition(folder, rows, tmp_path, tokens, batch_tokens):
    order = np.random.default_rng(1).permutation(len(rows))
    whole = write(tmp_path / "whole.parquet", [rows[i] for i in order])
    a, b = sums_of(whole, BY, 10**9, 10**9), sums_of(folder, BY, tokens, batch_tokens)
    for name, trial in a.trials.items():
        other = b.trials[name]
        assert torch.equal(trial.counts, other.counts), name
        assert torch.equal(trial.log_largest, other.log_largest), name
        torch.testing.assert_close(trial.log_weight, other.log_weight, rtol=1e-12, atol=1e-9)
    for name, histogram in a.histograms.items():
        assert torch.equal(histogram.counts, b.histograms[name].counts), name
    assert torch.equal(a.density.counts, b.density.counts)
    assert set(a.strata) == set(b.strata)
    for name, strata in a.strata.items():
        for mine, others in ((strata.token, b.strata[name].token), (strata.sequence, b.strata[name].sequence)):
            assert set(mine) == set(others), name
            for key, sums in mine.items():
                assert torch.equal(sums[0], others[key][0]), (name, key)
                torch.testing.assert_close(sums[1:], others[key][1:], rtol=1e-12, atol=1e-9)
    assert [one.name for one in a.worst.found] == [one.name for one in b.worst.found]
    pairs = [(a.levels[name], b.levels[name]) for name in a.levels]
    for by, slices in a.slices.items():
        assert set(slices.token) == set(b.slices[by].token)
        assert set(slices.sequence) == set(b.slices[by].sequence)
        pairs += [(slices.token[k], b.slices[by].token[k]) for k in slices.token]
        pairs += [(slices.sequence[k], b.slices[by].sequence[k]) for k in slices.sequence]
    for x, y in pairs:
        assert torch.equal(x.top, y.top)
        assert torch.equal(x.peaks, y.peaks)
        for exact in ("n", "seqs", "tokens"):
            assert torch.equal(count(x, exact), count(y, exact))
        assert torch.equal(x.grid[0], y.grid[0])
        torch.testing.assert_close(x.moments, y.moments, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x.clusters, y.clusters, rtol=1e-9, atol=1e-9)


def count(stats, name):
    from reweigh.stats.sums import MOMENTS

    return stats.moments[MOMENTS.index(name)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_give_what_one_gives_to_the_last_bit(folder, count, small_parts):
    def run(engine):
        seen = []
        found = document(audit(folder, by=BY, engine=engine, on_progress=seen.append))
        return found, [(p.rows, p.tokens) for p in seen]

    assert run(Workers(count)) == run(Workers(1))


@pytest.mark.slow
def test_errors_of_a_process_are_those_of_one(folder, rows, tmp_path, small_parts):
    bad = [dict(row) for row in rows[:30]]
    bad[17]["log_mu"] = bad[17]["log_mu"].copy()
    bad[17]["log_mu"][0] = np.nan
    bad[17]["mask"] = None
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("sequence_id", "log_mu", "log_pi")
    pq.write_table(
        pa.Table.from_pylist([{k: r[k] for k in names} for r in bad]), tmp_path / "bad.parquet", row_group_size=9
    )
    said = []
    for engine in (Workers(1), Workers(2)):
        with pytest.raises(ValueError, match=r"bad\.parquet row 17: log_mu\[0\] = nan is not finite") as e:
            audit([folder, tmp_path], engine=engine)
        said.append(str(e.value))
    assert said[0] == said[1]


def test_trials_equal_the_estimator_on_a_plain_layout():
    """`Runs` is another way to the same sums: weights and keeps must be those that `Packed` gives."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 0, 40, 1, 200, 0])
    n = int(lengths.sum())
    log_mu = -1 - torch.rand(n, generator=g)
    batch = Batch.packed(
        log_mu + 0.3 * torch.randn(n, generator=g),
        log_mu,
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        torch.rand(n, generator=g) < 0.8,
        advantage=torch.randn(n, generator=g),
        turn=torch.arange(n) // 7,
    )
    estimators = default_estimators(batch) | {"mixed": geo_rs(0.9, 1.1) * prefix_tis(2.0) * token_mis(0.5, 2.0)}
    shared = Shared.of(batch)
    for name, estimator in estimators.items():
        plain, runs = estimator(batch), shared.estimator(estimator)(shared.batch)
        assert torch.equal(plain.keep, runs.keep), name
        assert torch.equal(plain.bounded, runs.bounded), name
        torch.testing.assert_close(plain.log_w, runs.log_w, rtol=1e-6, atol=1e-6)
        trial = Trial.of(estimator, shared)
        assert trial.counts[1].sum() == plain.num_kept, name
        assert trial.counts[2].sum() == plain.num_bounded, name
        assert trial.counts[4].sum() == plain.keep_tokens.sum(), name


def test_weights_too_small_for_float32_to_add_are_added_right():
    log_ratio = torch.tensor([-60.0, -70.0, 0.5, -30.0, -79.0])
    log_mu = torch.full((5,), -1.0)
    batch = Batch.packed(log_mu + log_ratio, log_mu, torch.tensor([0, 2, 3, 5]), torch.tensor([1, 1, 0, 1, 1]))
    trial = Trial.of(weigh(TOKEN), Shared.of(batch))
    assert float(trial.log_weight[1, 0]) == pytest.approx(-30.0, abs=1e-6)
    assert float(trial.log_largest[1, 0]) == -30.0
    one = Batch.packed(batch.log_pi[:2], batch.log_mu[:2], torch.tensor([0, 2]), torch.tensor([0, 1]))
    trial = Trial.of(weigh(TOKEN), Shared.of(one))
    assert float(trial.log_weight[1, 0]) == pytest.approx(-70.0, abs=1e-5)
    assert float(trial.log_largest[1, 0]) == -70.0
    assert float(trial.log_square[1, 0]) == pytest.approx(-140.0, abs=1e-5)
    nothing = Trial.of(token_mis(0.5, 5.0), Shared.of(one))
    assert (float(nothing.log_weight[1, 0]), float(nothing.log_largest[1, 0])) == (-float("inf"), -float("inf"))
    assert nothing.counts[:3, 1, 0].tolist() == [1, 0, 0]


def test_runs_equal_packed_and_remember():
    g = torch.Generator().manual_seed(0)
    packed = Packed(torch.rand(9, generator=g) < 0.7, torch.tensor([0, 0, 4, 4, 9]))
    runs, x = Runs(packed), torch.randn(9, generator=g)
    zeroed, floored = torch.where(packed.mask, x, 0), torch.where(packed.mask, x, -torch.inf)
    torch.testing.assert_close(runs.sum_zeroed(zeroed), packed.sum_zeroed(zeroed))
    assert torch.equal(runs.max_floored(floored), packed.max_floored(floored))
    torch.testing.assert_close(runs.cumsum_zeroed(zeroed), packed.cumsum_zeroed(zeroed))
    s = torch.arange(4.0)
    assert torch.equal(runs.spread(s), packed.spread(s))
    assert runs.sum_zeroed(zeroed) is runs.sum_zeroed(zeroed)
    assert runs.sum_zeroed(zeroed) is not runs.sum_zeroed(zeroed.clone())
    fewer = packed.mask & (x > 0)
    assert torch.equal(runs.masked(fewer).lengths, packed.masked(fewer).lengths)
    nothing = Runs(Packed(torch.zeros(0, dtype=torch.bool), torch.tensor([0])))
    assert nothing.sum_zeroed(torch.zeros(0)).tolist() == []


# bytes


def test_packed_sums_come_back_as_they_were(folder):
    found, job = Measured(), Job((question(by=BY),))
    for part in cut(folder, 5000):
        found += measure(Task((part,)), job)
    data = found.to_bytes(job)
    again = Measured.from_bytes(data, job)
    assert again.to_bytes(job) == data
    assert (again.rows, again.tokens) == (found.rows, found.tokens)
    assert torch.equal(
        (again + found).sums["audit"].levels["token"].moments, 2 * found.sums["audit"].levels["token"].moments
    )
    for cut_short in (data[:-1], data[:20], b"", b"PK" + data):
        with pytest.raises(ValueError, match="unpack: "):
            Measured.from_bytes(cut_short, job)
    with pytest.raises(ValueError, match="unpack: damaged: the checksum"):
        Measured.from_bytes(data.replace(b"run.AuditSums", b"run.AuditPath"), job)
    with pytest.raises(KeyError):
        unpack(data)


def test_pack_refuses_what_it_cannot_bring_back():
    with pytest.raises(TypeError, match="pack: cannot write PosixPath"):
        pack([Path("a")])


# interrupt and resume


class Stop(KeyboardInterrupt):
    pass


def stop_after(k):
    seen = []

    def report(progress):
        seen.append(progress)
        if len(seen) == k:
            raise Stop

    return report


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 4, 9])
def test_resumed_audit_is_bit_equal(folder, tmp_path, small_parts, k):
    whole = document(audit(folder, by=BY))
    state = tmp_path / "new" / "audit.state"
    with pytest.raises(Stop):
        audit(folder, by=BY, state=state, on_progress=stop_after(k))
    assert [p.name for p in state.parent.iterdir()] == ["audit.state"]
    seen = []
    found = audit(folder, by=BY, state=state, resume=True, on_progress=seen.append)
    assert len(seen) == len(cut(folder, 700)) - k
    assert seen[0].resumed == seen[-1].resumed > 0
    assert document(found) == whole
    assert not state.exists()


@pytest.mark.slow
def test_resume_twice_and_without_a_state(folder, tmp_path, small_parts):
    whole, state = document(audit(folder)), tmp_path / "audit.state"
    for _ in range(3):
        with pytest.raises(Stop):
            audit(folder, state=state, resume=True, on_progress=stop_after(3))
    seen = []
    assert document(audit(folder, state=state, resume=True, on_progress=seen.append)) == whole
    assert len(seen) == len(cut(folder, 700)) - 9
    assert document(audit(folder, state=state, resume=True)) == whole


def test_state_is_written_while_the_work_goes_on(folder, tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr("reweigh.scan.state.SAVE_SECONDS", 0.0)
    state, sizes = tmp_path / "audit.state", []
    audit(folder, state=state, on_progress=lambda p: sizes.append(state.stat().st_size))
    assert len(sizes) == len(cut(folder, 700))
    assert not state.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("touch", r"time of change of .*a\.parquet was \d+, and is \d+"),
        ("grow", r"size of .*c\.jsonl was \d+, and is \d+"),
        ("by", r"--by was \['step'\], and is \[\]"),
        ("keep_going", "--keep-going was False, and is True"),
        ("estimators", "estimators was default, and is {'mine'"),
        ("fewer", "files was "),
        ("parts", "parts of .* was "),
    ],
)
def test_a_state_of_something_else_is_refused(rows, tmp_path, small_parts, monkeypatch, change, said):
    folder = tmp_path / "records"
    folder.mkdir()
    write(folder / "a.parquet", rows[:60], group=10)
    write(folder / "c.jsonl", rows[60:96])
    state = tmp_path / "audit.state"
    with pytest.raises(Stop):
        audit(folder, by=["step"], state=state, on_progress=stop_after(2))
    options = {"by": ["step"]}
    if change == "touch":
        os.utime(folder / "a.parquet", (1, 1))
    elif change == "grow":
        old = (folder / "c.jsonl").stat()
        with open(folder / "c.jsonl", "a") as file:
            file.write("\n")
        os.utime(folder / "c.jsonl", ns=(old.st_atime_ns, old.st_mtime_ns))
    elif change == "fewer":
        (folder / "c.jsonl").unlink()
    elif change == "parts":
        monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 900)
    else:
        options |= {
            "by": {"by": []},
            "keep_going": {"keep_going": True},
            "estimators": {"estimators": {"mine": token_tis(2.0)}},
        }[change]
    before = state.read_bytes()
    with pytest.raises(
        ValueError, match=rf"(?s)audit\.state: the state is of another question: .*{said}.*\nhint: .*--resume"
    ):
        audit(folder, state=state, resume=True, **options)
    assert state.read_bytes() == before


def test_a_broken_state_is_refused(folder, tmp_path):
    state = tmp_path / "audit.state"
    state.write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=r"audit\.state: is there, and is not a state .*: it is not replaced\nhint: name"
    ):
        audit(folder, state=state, resume=True)
    with pytest.raises(ValueError, match="resume needs the state file"):
        audit(folder, resume=True)


def test_bad_records_leave_no_state(folder, tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr("reweigh.scan.state.SAVE_SECONDS", 0.0)
    bad = tmp_path / "z.jsonl"
    bad.write_text(json.dumps({"sequence_id": "a", "log_mu": [0.5], "log_pi": [-1.0]}) + "\n")
    with pytest.raises(ValueError, match="is positive"):
        audit([folder, bad], state=tmp_path / "audit.state")
    assert not (tmp_path / "audit.state").exists()


def test_save_leaves_the_old_state_when_it_fails(tmp_path, folder, monkeypatch):
    kept = StateFile.of(tmp_path / "audit.state", [FilePart(folder / "a.parquet", 0, 1)], Job((question(),)))

    kept.save(Merged(3))
    before = kept.path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        kept.save(Merged(4))
    assert kept.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["audit.state"]
    monkeypatch.undo()
    assert kept.load().parts == 3


def test_workers_refuse_less_than_one():
    with pytest.raises(ValueError, match="Workers: count must be at least 1, got 0"):
        Workers(0)


# what only real processes show

HELPER = '''
import os, signal, sys, time
from pathlib import Path

FLAG = Path({flag!r})

def first(batch):
    """True once, in the process that comes to the row with a ratio that high."""
    if not (batch.log_ratio > 30).any():
        return False
    try:
        os.close(os.open(FLAG, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def dies_once(batch):
    if first(batch):
        os.kill(os.getpid(), signal.SIGKILL)
    return batch.log_ratio

def stops_once(batch):
    """As Ctrl-C does: SIGINT to every process of the group."""
    if first(batch):
        os.killpg(os.getpgid(0), signal.SIGINT)
    return batch.log_ratio
'''

SCRIPT = """
import sys
import helper
from reweigh import TOKEN, weigh
from reweigh.audit import audit
from reweigh.scan import Workers, run

run.PART_TOKENS = 700
if __name__ == "__main__":
    try:
        audit(sys.argv[1], estimators={"mine": weigh(TOKEN, of=getattr(helper, sys.argv[2]))}, engine=Workers(2),
              state=sys.argv[3])
    except KeyboardInterrupt:
        sys.exit(130)
"""


def in_processes(folder, tmp_path, statistic):
    (tmp_path / "helper.py").write_text(HELPER.format(flag=str(tmp_path / "flag")))
    (tmp_path / "script.py").write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}
    command = [sys.executable, str(tmp_path / "script.py"), str(folder), statistic, str(tmp_path / "audit.state")]
    return subprocess.run(command, capture_output=True, text=True, env=env, start_new_session=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "code", "said"), [("dies_once", 1, "worker processes died"), ("stops_once", 130, "")]
)
def test_what_was_merged_survives_the_processes(folder, tmp_path, small_parts, monkeypatch, statistic, code, said):
    done = in_processes(folder, tmp_path, statistic)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert (tmp_path / "flag").exists()
    # no part is begun before the fifth to last one was merged, and the row is in the eighth part
    assert (tmp_path / "audit.state").exists()
    monkeypatch.syspath_prepend(str(tmp_path))
    import helper

    try:
        estimators = {"mine": weigh(TOKEN, of=getattr(helper, statistic))}
        state = tmp_path / "audit.state"
        resumed = document(audit(folder, estimators=estimators, state=state, resume=True))
        assert resumed == document(audit(folder, estimators=estimators))
        assert not state.exists()
    finally:
        del sys.modules["helper"]
