"""The numbers of a correction in the loggers themselves: written by them, and read back from their own files."""

import ast
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from reweigh import Batch, seq_tis
from reweigh.trainers.seen import Seen, histograms, log_to

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


def some_batch():
    log_pi = torch.full((3, 4), -1.0)
    log_pi[1, 2] = -3.0
    return Batch.padded(log_pi, torch.full((3, 4), -1.1), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]))


def test_histograms_count_what_counts_and_add_up():
    batch = some_batch()
    bars = histograms(batch, seq_tis(1.2)(batch))
    assert {name: int(one.counts.sum()) for name, one in bars.items()} == {
        "reweigh/token/log_ratio": 7,
        "reweigh/sequence/log_ratio": 2,
        "reweigh/weight/of_kept": 2,
    }
    token = bars["reweigh/token/log_ratio"]
    low = [a for a, n in zip(token.edges, token.counts.tolist(), strict=False) if n]
    high = [b for b, n in zip(token.edges[1:], token.counts.tolist(), strict=True) if n]
    assert low[0] <= -1.9 < high[0]
    assert low[1] <= 0.1 < high[1]
    assert torch.equal((token + token).counts, 2 * token.counts)
    with pytest.raises(ValueError, match="edges are the same"):
        token + bars["reweigh/weight/of_kept"]


def test_tensorboard_keeps_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    bars = histograms(some_batch())
    with SummaryWriter(str(tmp_path)) as writer:
        log_to(writer, {}, 7, bars=bars)
        with pytest.raises(ValueError, match="TensorBoard keeps no files"):
            log_to(writer, {}, 7, page="report.html")
    found = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    assert set(found.Tags()["histograms"]) == set(bars)
    [event] = found.Histograms("reweigh/token/log_ratio")
    assert (event.step, event.histogram_value.num) == (7, 7)


def test_wandb_and_mlflow_are_handed_histograms_and_pages(monkeypatch, tmp_path):
    """By their own interfaces, recorded: what each is called with."""
    page = tmp_path / "report.html"
    page.write_text("<p>")
    calls = []

    class Artifact:
        def __init__(self, name, **kind):
            self.name, self.type = name, kind["type"]

        def add_file(self, path):
            calls.append(("file", self.name, self.type, path))

    class Run:
        def log_artifact(self, artifact):
            calls.append(("artifact", artifact.name))

    wandb = SimpleNamespace(
        log=lambda values, step: calls.append(("log", sorted(values), step)),
        run=Run(),
        Artifact=Artifact,
        Histogram=lambda np_histogram: tuple(map(len, np_histogram)),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log_to("wandb", {"a": 1.0}, 3, bars=histograms(some_batch()), page=page)
    assert calls == [
        ("log", ["a", "reweigh/sequence/log_ratio", "reweigh/token/log_ratio"], 3),
        ("file", "reweigh", "report", str(page)),
        ("artifact", "reweigh"),
    ]
    calls.clear()
    mlflow = SimpleNamespace(
        log_metrics=lambda values, step: calls.append(("log", values, step)),
        active_run=lambda: object(),
        log_artifact=lambda path: calls.append(("file", path)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    log_to("mlflow", {"a": 1.0}, 3, page=page)
    assert calls == [("log", {"a": 1.0}, 3), ("file", str(page))]
    with pytest.raises(ValueError, match="mlflow keeps no histograms"):
        log_to("mlflow", {}, 3, bars=histograms(some_batch()))


def test_a_small_batch_does_not_ring_at_every_step():
    """16 sequences cannot tell a tail, at any step; a heavy tail of many is what `refused` is for."""
    few = Batch.padded(torch.full((16, 4), -1.0), torch.full((16, 4), -1.1), torch.ones(16, 4))
    logged = Seen.of(few).flat()
    assert (logged["reweigh/sequence/refused"], logged["reweigh/sequence/few"]) == (0.0, 1.0)
    log_mu = torch.full((200, 1), -40.0)
    heavy = Batch.padded(log_mu + 12 * torch.randn(200, 1).abs(), log_mu, torch.ones(200, 1))
    logged = Seen.of(heavy).flat()
    assert (logged["reweigh/sequence/refused"], logged["reweigh/sequence/few"]) == (1.0, 0.0)


def test_another_name_is_refused():
    with pytest.raises(
        ValueError, match="logger must be one of wandb, trackio, mlflow or a SummaryWriter, got 'comet'"
    ):
        log_to("comet", METRICS, 1)


def test_a_logger_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match="log_to: mlflow is not installed\nhint: pip install mlflow"):
        log_to("mlflow", METRICS, 1)
