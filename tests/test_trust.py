"""What other people's files, full disks and ended processes may do: nothing beyond a message (docs/trust.md).

Every marker is harmless: a file that would be made, a name that would be looked up. `make trust` fuzzes longer.
"""

import gzip
import json
import logging
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reweigh import (
    SEQUENCE,
    TOKEN,
    Batch,
    RatioStats,
    cispo,
    gspo,
    judge,
    policy_gradient,
    ppo_clip,
    prefix_is,
    suffix_is,
    summarise,
    token_is,
    token_mis,
)
from reweigh.__main__ import main
from reweigh.dumps import Skipped, read
from reweigh.dumps.skyrl import _STUBS
from reweigh.dumps.tensors import _ALLOWED, load_pickle, load_torch
from reweigh.guard import claimed, loads, shown, write_whole
from reweigh.records import RecordWriter, RunInfo, UnreadableFileError, describe
from reweigh.records.footer import read_groups
from reweigh.trainers.capture import Capture

DATA = Path(__file__).parent / "data" / "readers"
COMMANDS = int(os.environ.get("REWEIGH_TRUST", "60"))  # of the fuzzing

# Pickles and torch files


def refused(path, value):
    path.write_bytes(value)
    with pytest.raises(UnreadableFileError) as e:
        load_pickle(path, "skyrl", _STUBS)
    assert str(path) in str(e.value)
    assert "\nhint: " in str(e.value)
    return str(e.value)


def named(name, rest):
    module, _, bare = name.rpartition(".")
    return b"\x80\x02c" + f"{module}\n{bare}\n".encode() + rest


def test_nothing_that_a_file_names_is_handed_out():
    for value in (*_ALLOWED.values(), *_STUBS.values()):
        assert isinstance(value, str)
        assert not isinstance(value, types.FunctionType)


@pytest.mark.parametrize(
    "value",
    [
        named("numpy.ndarray", b"(K\x03tR."),  # a constructor with a shape at will
        named("torch.FloatStorage", b"(K\x03tR."),
        named("numpy.dtype", b"}X\x04\x00\x00\x00markX\x01\x00\x00\x00yssb."),  # attributes of what is named
        named("torch._utils._rebuild_tensor_v2", b"}b."),
        named("collections.OrderedDict", b"}b."),
        named("builtins.getattr", b"(tR."),
        b"\x80\x02P0\n.",  # an object outside the file
        b"\x80\x02\x82\x01.",  # of a registry of the process
        b"\x80\x02}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u.",  # a key twice
        b"\x80\x02K\x01",
        b"\x80\x02.",
        b"\x80\x03C\x40x.",  # bytes that are not there
    ],
)
def test_a_pickle_of_more_than_data_is_refused(tmp_path, value):
    refused(tmp_path / "a.pkl", value)


def test_arrays_are_made_of_their_bytes_alone(tmp_path):
    path = tmp_path / "a.pkl"
    for dtype in ("<f4", ">f4", "<f8", ">i8", "|b1", "<f2"):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        path.write_bytes(pickle.dumps({"a": array, "b": array.T.copy(order="F"), "same": array}, 4))
        found = load_pickle(path, "skyrl", {})
        assert found["a"].tolist() == found["same"].tolist() == array.tolist()
        assert found["b"].tolist() == array.T.tolist()
    refused(path, pickle.dumps(np.arange(4, dtype="<i4"), 3)[:-12])


def test_a_tensor_lies_inside_its_storage_and_is_no_larger_than_the_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.arange(12.0).view(3, 4).t(), "y": torch.ones(3, dtype=torch.bfloat16)}, path)
    found = load_torch(path)
    assert found["x"].tolist() == torch.arange(12.0).view(3, 4).t().tolist()
    assert found["y"].tolist() == [1, 1, 1]
    torch.save({"x": torch.zeros(1).expand(1 << 28)}, path)
    with pytest.raises(UnreadableFileError, match="take much more memory than the file"):
        load_torch(path)
    torch.save({"x": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    assert load_torch(path)["x"].tolist() == [0, 1, 2, 3]


def rezipped(path, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


def test_a_damaged_torch_archive_is_one_error(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.arange(64.0)}, path)
    whole = path.read_bytes()
    at = whole.index(torch.arange(64.0).numpy().tobytes())
    path.write_bytes(whole[: at + 8] + b"\x01" + whole[at + 9 :])
    with pytest.raises(UnreadableFileError, match="its checksum is another one"):
        load_torch(path)
    path.write_bytes(whole)
    rezipped(path, lambda name, data: data[:16] if name.endswith("data/0") else data)
    with pytest.raises(UnreadableFileError, match="has 16 bytes, and must have 64"):
        load_torch(path)
    path.write_bytes(whole)
    rezipped(path, lambda _, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnreadableFileError, match="is packed in the archive"):
        load_torch(path)


# JSON, gzip, Parquet


def test_json_means_one_thing():
    assert loads(b'{"a": [1, 2.5, null], "b": {"a": 1}}') == {"a": [1, 2.5, None], "b": {"a": 1}}
    for text, why in (
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "an integer has thousands of digits"),
        ("[" + "[]," * 400_000 + "[]]", "more than values are"),
    ):
        with pytest.raises(ValueError, match=why):
            loads(text)


@pytest.mark.parametrize("mask", [[None, 1, 1], [0.5, 1, 1], [-1, 1, 1], [math.nan, 1, 1], [2, 1, 1], ["x", 1, 1]])
def test_a_mask_is_0_or_1(tmp_path, mask):
    record = json.loads((DATA / "prime_rl/token_exports/step_4/rank_0.jsonl").read_text().splitlines()[0])
    record["loss_mask"] = mask + [1] * (len(record["token_ids"]) - 3)
    path = tmp_path / "rank_0.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"rank_0\.jsonl:1: loss_mask") as e:
        list(read(path))
    assert "\nhint: " in str(e.value)
    skipped = Skipped()
    assert list(read(path, skip_bad=True, skipped=skipped)) == []
    assert skipped.count == 1


def damaged_line(field, value):
    lines = (DATA / "prime_rl/token_exports/step_4/rank_0.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    record[field] = value(record[field])
    return "\n".join([*lines[:-1], json.dumps(record)]) + "\n", len(lines)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss_mask", lambda mask: [0.5, *mask[1:]]),
        ("rl_weights", lambda old: [math.nan, *[1.0] * (len(old) - 1)]),
        ("token_ids", lambda ids: ids[1:]),
        ("advantages", lambda old: old[1:]),
        ("schema_version", lambda _: 99),
    ],
)
@pytest.mark.parametrize("command", ["audit", "gate", "plan"])
def test_a_record_that_is_no_good_is_an_error_unless_it_is_to_be_left_out(tmp_path, field, value, command, capsys):
    path = tmp_path / "rank_0.jsonl"
    text, count = damaged_line(field, value)
    path.write_text(text)
    policy = tmp_path / "gate.yaml"
    policy.write_text("version: 1\nbounds: [{number: mean_ratio, level: token, at_least: 0.01, reason: any}]\n")
    more = {"audit": ["--no-doctor", str(path)], "gate": ["--policy", str(policy), str(path)]}
    arguments = [command, *more.get(command, ["--length", "10", "--from", str(path)])]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"rank_0.jsonl:{count}: " in said
    assert said.count("error: ") == 1
    assert main([*arguments, "--keep-going", "--json"]) < 2
    if command == "audit":
        found = json.loads(capsys.readouterr().out)
        assert any("1 record left out" in note for note in found["notes"]), found["notes"]


def test_a_line_that_would_fill_the_memory_is_not_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"sequence_id": "' + b"a" * (20 << 20) + b'"}\n')
    assert path.stat().st_size < 100_000
    assert main(["records", "describe", str(path)]) == 2
    with gzip.open(path, "wb") as file:
        file.write(b"\n" * (1 << 20))
    assert main(["records", "describe", str(path)]) == 2


def test_a_column_twice_is_told_and_skipped(tmp_path, capsys):
    one = pa.table({"sequence_id": ["a"], "log_mu": [[-1.0]], "log_pi": [[-1.0]]})
    names = [*one.column_names, "log_mu"]
    pq.write_table(pa.table([*one.columns, one.column(1)], names=names), tmp_path / "twice.parquet")
    assert main(["audit", str(tmp_path / "twice.parquet")]) == 2
    assert "column log_mu stands twice" in capsys.readouterr().err
    pq.write_table(one, tmp_path / "good.parquet")
    out = tmp_path / "out" / "all.jsonl"
    out.parent.mkdir()
    assert main(["records", "convert", str(tmp_path), str(out), "--skip-bad"]) == 0
    assert describe(out).rows == 1
    assert "twice.parquet" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="pipes with names")
def test_pipes_and_devices_are_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "a.jsonl")
    for arguments in (["records", "describe"], ["audit", "--reader", "prime_rl"], ["audit", "--reader", "slime"]):
        assert main([*arguments, str(tmp_path / "a.jsonl")]) == 2
        assert "is a pipe (FIFO), not a file" in capsys.readouterr().err
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "b.jsonl")
    assert main(["audit", str(tmp_path / "b.jsonl")]) == 2


def test_what_cannot_be_seen_is_printed_as_escapes(tmp_path, capsys):
    assert shown("a\x1b[31m\u202eb\x9b\ud800\n") == r"a\x1b[31m\u202eb\x9b\ud800" + "\n"
    assert shown("a\nb", one_line=True) == r"a\nb"
    path = tmp_path / "records.parquet"
    with RecordWriter(path, RunInfo(engine="v\x1b]0;x\x07llm", model="m\u202e")) as writer:
        rows = [{"sequence_id": "\x1b[2J", "env": "e\x1b[1m\u2066", "log_mu": [-1.0], "log_pi": [-2.0]}]
        writer.write([{**rows[0], "sequence_id": f"\x1b[2J{i}"} for i in range(40)])
    for arguments in (["records", "describe"], ["audit", "--by", "env"], ["records", "validate"], ["doctor"]):
        main([*arguments, str(path)])
        said = "".join(capsys.readouterr())
        assert not set(said) & {"\x1b", "\x07", "\u202e", "\u2066"}, arguments
    main(["audit", str(tmp_path / "no\x1b[31m.parquet")])
    assert "\x1b" not in capsys.readouterr().err


# Files of the user


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.parquet"
    g = torch.Generator().manual_seed(0)
    mu = -torch.rand(40, 20, generator=g) - 0.1
    with RecordWriter(path) as writer:
        rows = [{"sequence_id": f"s{i}", "log_mu": mu[i], "log_pi": mu[i] - 0.01} for i in range(40)]
        writer.write(rows)
    return path


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("audit", "--state"),
        ("audit", "--html"),
        ("doctor", "--state"),
        ("gate", "--save-baseline"),
        ("watch", "--state"),
    ],
)
def test_no_command_replaces_what_it_did_not_make(records, tmp_path, command, option, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    extra = {"gate": ["--init", "--policy", str(tmp_path / "p.yaml")], "watch": ["--once", "--fresh"]}.get(command, [])
    what = str(records.parent if command == "watch" else records)
    for target in (notes, records):
        before = target.read_bytes()
        assert main([command, what, option, str(target), *extra]) == 2
        assert target.read_bytes() == before
        assert f"{target}: is there" in capsys.readouterr().err


def test_a_page_replaces_a_page(records, tmp_path):
    page = tmp_path / "report.html"
    for _ in range(2):
        assert main(["audit", str(records), "--html", str(page), "--no-doctor", "-q"]) < 2
    assert page.read_text().startswith("<!doctype html>")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_on_a_full_disk_the_result_is_still_printed(records, tmp_path, monkeypatch, capsys):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("reweigh.cli.output.write_whole", full)
    assert main(["audit", str(records), "--html", str(tmp_path / "r.html"), "--no-doctor", "-q"]) == 2
    said = capsys.readouterr()
    assert said.out.split(":")[0] in ("ok", "warn", "fail")
    assert "r.html: no space left on device" in said.err


def test_parts_and_empty_files_are_said_and_not_read(records, tmp_path, capsys):
    whole = records.read_bytes()
    (tmp_path / ".step_3.parquet").write_bytes(whole[:500])
    (tmp_path / "partial-7-records.parquet").write_bytes(whole)
    (tmp_path / "rank_1.parquet").touch()
    assert main(["audit", str(tmp_path), "--json", "--no-doctor"]) < 2
    found = json.loads(capsys.readouterr().out)
    assert [file["rows"] for file in found["files"]] == [40]
    notes = " ".join(found["notes"])
    assert "rank_1.parquet" in notes
    assert "partial-7-records.parquet" in notes


def test_states_of_two_questions_are_kept_apart(records, tmp_path):
    from reweigh.audit import audit

    def stop(_):
        raise KeyboardInterrupt

    other = tmp_path / "other" / "b.parquet"
    other.parent.mkdir()
    other.write_bytes(records.read_bytes())
    state = tmp_path / "x.state"
    with pytest.raises(KeyboardInterrupt):
        audit(records, state=state, on_progress=stop)
    kept = state.read_bytes()
    assert audit(other, state=state).files[0].rows == 40
    assert state.read_bytes() == kept
    assert audit(records, state=state, resume=True).files[0].rows == 40
    assert not state.exists()


def test_a_state_that_was_damaged_is_refused(records, tmp_path, capsys):
    from reweigh.audit import audit

    def stop(_):
        raise KeyboardInterrupt

    state = tmp_path / "x.state"
    with pytest.raises(KeyboardInterrupt):
        audit(records, state=state, on_progress=stop)
    kept = state.read_bytes()
    for at in range(len(kept) // 2, len(kept), len(kept) // 40):
        state.write_bytes(kept[:at] + bytes([kept[at] ^ 0x40]) + kept[at + 1 :])
        assert main(["audit", str(records), "--state", str(state), "--resume", "--no-doctor"]) == 2
        assert "damaged: the checksum" in capsys.readouterr().err
    state.write_bytes(kept)
    assert audit(records, state=state, resume=True).files[0].rows == 40


def test_a_second_writer_is_told(tmp_path):
    with claimed(tmp_path / "a.parquet"), pytest.raises(ValueError, match="another process is writing it"):  # noqa: SIM117
        with claimed(tmp_path / "a.parquet"):
            pass
    assert not list(tmp_path.iterdir())


# Numbers


@pytest.mark.parametrize("nats", [0.2, 400.0, 710.0, 1420.0, 1e4, 1e12, 1e25])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_number_is_finite_or_refused(nats, sign):
    g = torch.Generator().manual_seed(0)
    low = -torch.rand(40, 8, generator=g, dtype=torch.float64) - nats
    ends = (low + nats, low) if sign > 0 else (low, low + nats)
    levels = RatioStats.of_levels(Batch.padded(*ends, torch.ones(40, 8)), (TOKEN, SEQUENCE))
    for stats in levels:
        for number in summarise(stats).numbers.values():
            for value in (number.value, number.low, number.high, number.sample):
                assert value is None or not math.isnan(value)
    assert judge(*levels).level == "fail"


@pytest.mark.parametrize("odd", [-9999.0, torch.finfo(torch.float32).min, -math.inf, math.nan, -1e20])
def test_what_one_sequence_has_does_not_reach_another(odd):
    pi, mu = torch.tensor([odd, -1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.1, -1.2, -1.3])
    batch = Batch.packed(pi, mu, torch.tensor([0, 1, 4]), check=False)
    torch.testing.assert_close(prefix_is()(batch).log_w[1:], torch.tensor([0.1, 0.3, 0.6]), atol=1e-6, rtol=0)
    torch.testing.assert_close(suffix_is()(batch).log_w[1:], torch.tensor([0.6, 0.5, 0.3]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [policy_gradient, ppo_clip, cispo, gspo])
@pytest.mark.parametrize("where", ["advantage", "log_old", "log_pi"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_nothing_of_a_token_that_is_not_kept_reaches_a_loss(loss, where, odd):
    pi, mu = torch.tensor([[-1.0, -1.0, -9.0]]), torch.tensor([[-1.0, -1.1, -1.0]])
    weights = token_mis()(Batch.padded(pi, mu, torch.ones(1, 3)))
    assert weights.keep_tokens.tolist() == [[True, True, False]]

    def gradient(**changed):
        given = {"log_pi": pi, "log_old": pi, "advantage": torch.ones(1, 3)} | changed
        live = given["log_pi"].clone().requires_grad_()
        old = () if loss is policy_gradient else (given["log_old"],)
        value = loss(live, *old, given["advantage"], weights, 3.0)
        value.backward()
        assert torch.isfinite(value)
        return live.grad[0, :2]

    base = {"log_pi": pi, "log_old": pi, "advantage": torch.ones(1, 3)}[where].clone()
    base[0, 2] = odd
    found = gradient(**{where: base})
    assert torch.isfinite(found).all()
    assert (found != 0).all()
    if loss is not gspo:  # of which a token that is not kept is a part of the mean, if it is a number
        torch.testing.assert_close(found, gradient())


def test_a_weight_that_no_float_holds_times_no_advantage_is_nothing():
    mu = torch.tensor([[-9999.0, -1.1]])
    live = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    weights = token_is()(Batch.padded(live, mu, torch.ones(1, 2)))
    policy_gradient(live, torch.tensor([0.0]), weights, 2.0).backward()
    assert live.grad.tolist() == [[0.0, 0.0]]


# In the loop


def test_a_capture_never_stops_a_run(tmp_path, caplog):
    good = Batch.padded(torch.full((2, 3), -1.0), torch.full((2, 3), -1.1), torch.ones(2, 3))
    folder = tmp_path / "run"
    capture = Capture(folder)
    assert capture.write(good, 1) is not None
    folder.rename(tmp_path / "gone")
    folder.write_text("a file in its place")
    with caplog.at_level(logging.WARNING, "reweigh"):
        assert [capture.write(good, step) for step in (2, 3)] == [None, None]
    assert len(caplog.records) == 1
    assert "step 2 was not written, and the run goes on" in caplog.text
    assert capture.metrics("x/") == {"x/capture/written": 1.0, "x/capture/failed": 2.0}
    folder.unlink()
    assert capture.write(good, 4) is not None
    assert capture.write(good, 5, prompt_id=["a"]) is None  # one value for two responses
    assert [path.name for path in folder.iterdir()] == ["step_00000004_rank_0000.parquet"]
    with pytest.raises(ValueError, match="cannot be written to"):
        Capture(tmp_path / "gone" / "step_00000001_rank_0000.parquet")
    with pytest.raises(ValueError, match="did you mean prompt_id"):
        capture.write(good, 6, prompt_ids=["a", "b"])


# Processes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, number):
    mu = [-1.0] * 20_000
    for k in range(4):
        with RecordWriter(tmp_path / f"{k}.parquet") as writer:
            for j in range(40):
                rows = [{"sequence_id": f"{k}/{j}/{i}", "log_mu": mu, "log_pi": mu} for i in range(10)]
                writer.write(rows)
    command = [sys.executable, "-m", "reweigh", "audit", str(tmp_path), "--workers", "2", "--no-doctor", "-q"]
    process = subprocess.Popen([*command, "--state", str(tmp_path / "x.state")], start_new_session=True)

    def workers():
        alive = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                if int(stat[2]) == process.pid and b"spawn_main" in (path / "cmdline").read_bytes() and stat[0] != "Z":
                    alive.append(path.name)
            except OSError:
                continue
        return alive

    until = time.monotonic() + 60
    while len(workers()) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.5)
    os.kill(process.pid, number)
    begun = time.monotonic()
    process.wait(30)
    if number == signal.SIGINT:
        assert time.monotonic() - begun < 5  # two seconds on an idle machine
    while workers() and time.monotonic() - begun < 10:
        time.sleep(0.1)
    assert workers() == []


# Fuzzing


def mutated(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) or 1)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = rng.choice(
                (b"NaN", b"null", b"-1", b"1e999", b"[[", b"{}", b"\x00", b"\xff\xfe", b'"', b"9" * 400)
            )
        elif data:
            data[at] = rng.randrange(256)
    return bytes(data)


def test_mutated_dumps_are_read_or_told(tmp_path, capsys):
    """Each command ends with an exit code and, unless it is 0 or 1, one error that is no internal one, within 10 s."""
    samples = [
        p for p in sorted(DATA.rglob("*")) if p.is_file() and p.suffix not in (".py", "") and "whole" not in p.name
    ]
    records = tmp_path / "r.parquet"
    with RecordWriter(records) as writer:
        writer.write([{"sequence_id": f"s{i}", "log_mu": [-1.0] * 5, "log_pi": [-1.1] * 5} for i in range(20)])
    samples += [records]
    assert len(samples) > 15
    rng = random.Random(int(os.environ.get("REWEIGH_TRUST_SEED", "0")))
    for i in range(COMMANDS):
        sample = samples[i % len(samples)]
        path = tmp_path / f"{i}" / sample.name
        path.parent.mkdir()
        path.write_bytes(mutated(rng, sample.read_bytes()))
        out = tmp_path / f"{i}.parquet"
        command = rng.choice((["records", "describe"], ["records", "validate"], ["records", "convert", "--skip-bad"]))
        begun = time.monotonic()
        code = main([*command, str(path), *([str(out)] if "convert" in command else [])])
        said = capsys.readouterr().err
        assert time.monotonic() - begun < 10, (path, command)
        assert code in (0, 1, 2)
        assert "--debug shows where it comes from" not in said, (said, path, command)
        if code == 2 and "validate" not in command:
            assert said.count("error: ") == 1, said


def footer_of(path):
    data = path.read_bytes()
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def test_the_footer_says_what_arrow_says(tmp_path, records):
    wide = pa.table({"a": [[1.0]] * 9, "b": [{"c": "x", "d": [1, 2]}] * 9, "log_mu": [[-1.0] * 3] * 9, "é": [True] * 9})
    pq.write_table(wide, tmp_path / "wide.parquet", row_group_size=2)
    pq.write_table(wide.slice(0, 0), tmp_path / "none.parquet")
    pq.write_table(pa.table({f"c{i}": [i] * 3 for i in range(40)}), tmp_path / "many.parquet", row_group_size=1)
    for path in (records, *tmp_path.glob("*.parquet")):
        with open(path, "rb") as file:
            groups = read_groups(file)
        metadata = pq.ParquetFile(path).metadata
        assert len(groups) == metadata.num_row_groups
        for i, group in enumerate(groups):
            theirs = metadata.row_group(i)
            assert group.num_rows == theirs.num_rows
            for chunk, k in zip(group.chunks, range(theirs.num_columns), strict=True):
                column = theirs.column(k)
                sizes = (column.num_values, column.total_compressed_size, column.total_uncompressed_size)
                assert (chunk.path, chunk.num_values, chunk.packed, chunk.unpacked) == (column.path_in_schema, *sizes)


def test_a_damaged_footer_is_one_error_or_read(tmp_path, records):
    """Arrow itself is not asked here: it may end the process."""
    whole, path = records.read_bytes(), tmp_path / "damaged.parquet"
    at, rng, refused = footer_of(records), random.Random(3), 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(at, len(data) - 8)] = rng.randrange(256)
        path.write_bytes(data)
        try:
            with open(path, "rb") as file:
                assert all(isinstance(group.num_rows, int) for group in read_groups(file))
        except ValueError as e:
            refused += 1
            assert str(e) == "the footer is damaged"  # noqa: PT017 - it may also be read
    assert 50 < refused < 2000


@pytest.mark.parametrize("column", ["log_mu", "versions", "text"])
def test_parquet_that_unpacks_to_much_more_than_its_size_is_not_read(tmp_path, column, monkeypatch):
    monkeypatch.setattr("reweigh.records.files.GROWTH_FREE", 1 << 16)
    monkeypatch.setattr("reweigh.records.files._LONG_TEXTS", 1 << 20)
    monkeypatch.setattr("reweigh.records.table._MOST_TEXT", 1 << 20)
    rows = {"sequence_id": [f"s{i}" for i in range(40)], "log_mu": [[-1.0]] * 40, "log_pi": [[-1.0]] * 40}
    same = {"log_mu": [[-1.0] * 5000] * 40, "versions": [[1] * 5000] * 40, "text": ["a" * 100_000] * 40}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(rows | {column: same[column]}), path, compression="zstd")
    with pytest.raises(ValueError, match=f"a.parquet.*{column}") as e:
        describe(path)
    assert "\nhint: " in str(e.value)
    pq.write_table(pa.table(rows), path)
    assert describe(path).rows == 40
