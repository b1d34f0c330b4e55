"""The numbers of a correction in the loggers themselves: written by them, and read back from their own files."""

import ast
import os
import subprocess
import sys

import pytest
import torch

from reweigh import Batch, seq_tis
from reweigh.trainers.seen import Seen, log_to

METRICS = {"reweigh/sequence/tv": 0.25, "reweigh/weight/mean": 0.5}

# Each prints what its files hold of the two numbers, as {name: [(step, value), ...]}.
READ_BACK = {
    "wandb": """
import wandb
from pathlib import Path
from wandb.proto import wandb_internal_pb2
with wandb.init(project="p", mode="offline", dir="."):
    for step, metrics in steps:
        log_to("wandb", metrics, step)
wandb.teardown()  # ends the process that writes the file
[path] = Path("wandb").glob("offline-run-*/*.wandb")
data, at, piece, found = path.read_bytes(), 7, b"", {}
while at + 7 <= len(data):  # LevelDB's log: blocks of 32 KiB; of each piece its checksum, length and kind
    left = (1 << 15) - at % (1 << 15)
    if left < 7:
        at += left
        continue
    size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
    piece, at = piece + data[at + 7 : at + 7 + size], at + 7 + size
    if kind not in (1, 4):  # the whole, or the last of it
        continue
    record, piece = wandb_internal_pb2.Record.FromString(piece), b""
    if record.WhichOneof("record_type") == "history":
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name in names:
            if name in items:
                found.setdefault(name, []).append((items["_step"], items[name]))
""",
    "mlflow": """
import mlflow
mlflow.set_tracking_uri(Path("mlruns").resolve().as_uri())
with mlflow.start_run() as run:
    for step, metrics in steps:
        log_to("mlflow", metrics, step)
client = mlflow.MlflowClient()
found = {n: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, n)] for n in names}
""",
    "trackio": """
import sqlite3
import trackio
with contextlib.redirect_stdout(sys.stderr):
    trackio.init(project="p", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    for step, metrics in steps:
        log_to("trackio", metrics, step)
    trackio.finish()
rows = sqlite3.connect(Path("trackio") / "p.db").execute("select step, metrics from metrics order by step").fetchall()
found = {n: [(step, json.loads(text)[n]) for step, text in rows if n in json.loads(text)] for n in names}
""",
}
START = """
import contextlib, json, sys
from pathlib import Path
from reweigh.trainers.seen import log_to
steps = {steps!r}
names = list(steps[0][1])
"""


def run(code, folder):
    env = {**os.environ, "WANDB_SILENT": "true", "TRACKIO_DIR": str(folder / "trackio")}
    env |= {"MLFLOW_ALLOW_FILE_STORE": "true", "GIT_PYTHON_REFRESH": "quiet"}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env["PYTHONPATH"] = root
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("name", READ_BACK)
def test_a_logger_keeps_names_values_and_steps(name, tmp_path):
    steps = [(3, METRICS), (4, {k: 2 * v for k, v in METRICS.items()})]
    done = run(START.format(steps=steps) + READ_BACK[name] + "\nprint(found)", tmp_path)
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert found == {key: [(3, x), (4, 2 * x)] for key, x in METRICS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", READ_BACK)
def test_no_run_is_an_error_that_says_how_to_start_one(name, tmp_path):
    code = START.format(steps=[(1, METRICS)])
    code += f"""
try:
    log_to({name!r}, steps[0][1], 1)
except ValueError as e:
    print(e)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"log_to: {name} has no active run\nhint: call {name}." in done.stdout
    assert not list(tmp_path.rglob("*.wandb"))
    assert not (tmp_path / "mlruns").exists()  # mlflow would start a run of its own


def test_tensorboard_keeps_what_a_correction_reports(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    batch = Batch.padded(torch.full((30, 4), -1.0), torch.full((30, 4), -1.1), torch.ones(30, 4))
    logged = Seen.of(batch, seq_tis(1.2)(batch)).flat()
    with SummaryWriter(str(tmp_path)) as writer:
        log_to(writer, logged, 7)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == set(logged)
    for name, value in logged.items():
        [event] = found.Scalars(name)
        assert (event.step, event.value) == (7, pytest.approx(value))
    assert logged["reweigh/weight/mean"] == pytest.approx(1.2)


def test_another_name_is_refused():
    with pytest.raises(
        ValueError, match="logger must be one of wandb, trackio, mlflow or a SummaryWriter, got 'comet'"
    ):
        log_to("comet", METRICS, 1)


def test_a_logger_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match="log_to: mlflow is not installed\nhint: pip install mlflow"):
        log_to("mlflow", METRICS, 1)
