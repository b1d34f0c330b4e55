"""Time and memory of the doctor by the number of tokens, on records with every column that it reads."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from doctor_cases import say
from matplotlib import pyplot as plt

from reweigh.records import RecordWriter, RunInfo
from reweigh.records.schema import BY_NAME

mpl.use("Agg")
GROUP = 500_000  # tokens of a row group
LENGTH = 1000  # tokens of a response, in the mean
STEP = 1 << 18  # tokens of a training step


@dataclass(frozen=True)
class Measured:
    """One run of the command.

    Attributes:
        tokens: in the mask.
        file_mb: of the records, compressed.
        seconds: of the wall, from the start of the interpreter to its end.
        processor: seconds of all processes.
        peak_mb: of the main process, plus so many times that of the largest worker as there are workers.
        main_mb: of the main process alone.
    """

    tokens: int
    file_mb: float
    seconds: float
    processor: float
    peak_mb: float
    main_mb: float


def generate(path: Path, tokens: int) -> None:
    """Write random records of a benign gap with all columns that a test reads."""
    g = np.random.default_rng(0)
    with RecordWriter(path, RunInfo(engine="vllm", trainer="fsdp")) as writer:
        for done in range(0, tokens, GROUP):
            writer.write_table(_group(g, min(GROUP, tokens - done), done))


def _group(g: np.random.Generator, tokens: int, done: int) -> pa.Table:
    count = max(1, tokens // LENGTH)
    lengths = g.lognormal(np.log(LENGTH) - 0.32, 0.8, count).astype(np.int64).clip(1, 30_000)
    lengths = np.maximum(lengths * tokens // lengths.sum(), 1)
    offsets, n = np.concatenate([[0], lengths.cumsum()]), int(lengths.sum())
    log_pi = np.minimum(-0.5 * g.standard_exponential(n, dtype=np.float32) ** 2 - np.float32(1e-4), 0)
    scale = np.float32(0.02) * -np.expm1(log_pi)

    def noisy(size: float) -> np.ndarray:
        return np.minimum(log_pi + np.float32(size) * scale * g.standard_normal(n, dtype=np.float32), 0)

    first = done // LENGTH
    step = done // STEP
    version = np.maximum(step - np.repeat(g.integers(0, 3, count), lengths), 0)
    values = {
        "sequence_id": [f"s{first + i}" for i in range(count)],
        "prompt_id": [f"p{(first + i) // 8}" for i in range(count)],
        "step": np.full(count, step),
        "env": ["math"] * count,
        "prompt_length": g.integers(20, 400, count),
        "token_ids": g.zipf(1.3, n).clip(0, 150_000),
        "log_mu": noisy(1.0),
        "log_pi": log_pi,
        "mask": g.random(n, dtype=np.float32) < 0.98,
        "advantage": np.repeat(g.standard_normal(count, dtype=np.float32), lengths),
        "versions": version,
        "trainer_version": np.full(count, step),
        "turns": np.zeros(n, np.int64),
        "entropy_pi": 0.5 * g.standard_exponential(n, dtype=np.float32),
        "log_pi_repeat": noisy(0.1),
        "log_mu_prefill": noisy(0.7),
        "pack_index": (first + np.arange(count)) // 4,
        "finish_reason": ["stop"] * count,
    }
    arrays = [_column(name, value, offsets) for name, value in values.items()]
    return pa.table(arrays, names=list(values))


def _column(name: str, value: object, offsets: np.ndarray) -> pa.Array:
    kind = BY_NAME[name].type
    if BY_NAME[name].per_token:
        flat = pa.array(np.asarray(value)).cast(kind.value_type)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat).cast(kind)
    return pa.array(value).cast(kind)


def child(path: Path, workers: int) -> None:
    """One diagnosis, in this process; prints tokens and the two peaks in MB."""
    from reweigh.doctor import doctor
    from reweigh.scan import Workers
    from reweigh.scan.engines import single_threaded

    single_threaded()
    found = doctor(path, engine=Workers(workers))
    main, worker = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(found.tokens, main, worker)


def measure(path: Path, workers: int, script: Path) -> Measured:
    """One diagnosis in a fresh process; `script` is what runs `child`."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "speed", "--child", str(path), "--workers", str(workers)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tokens, main, worker = map(float, out.split())
    peak = main + (workers * worker if workers > 1 else 0.0)
    return Measured(int(tokens), path.stat().st_size / 1e6, seconds, processor, peak, main)


def curve(sizes: Sequence[float], workers: int, script: Path) -> list[Measured]:
    """One measurement a size."""
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / "records.parquet"
            generate(path, int(size))
            found.append(measure(path, workers, script))
            path.unlink()
            say(f"{size:,.0f} tokens: {found[-1].seconds:.1f} s, {found[-1].peak_mb:.0f} MB")
    return found


def table(found: Sequence[Measured]) -> str:
    """A row a size."""
    rows = [
        "| tokens | file, MB | wall, s | processors, s | ns a token | peak, all processes, MB | the main one, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {m.tokens:,} | {m.file_mb:.0f} | {m.seconds:.1f} | {m.processor:.1f} | "
        f"{m.seconds / m.tokens * 1e9:.0f} | {m.peak_mb:.0f} | {m.main_mb:.0f} |"
        for m in found
    ]
    return "\n".join(rows)


def picture(found: Sequence[Measured], workers: int, path: Path) -> None:
    """Wall time and memory by tokens."""
    millions = [m.tokens / 1e6 for m in found]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    left.plot(millions, [m.seconds for m in found], marker="o")
    left.set_ylabel(f"wall, s, {workers} workers")
    right.plot(millions, [m.peak_mb for m in found], marker="o", label="all processes")
    right.plot(millions, [m.main_mb for m in found], marker="o", label="the main one")
    right.set_ylabel("peak memory, MB")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("million tokens")
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def rows_of(found: Sequence[Measured]) -> list[dict[str, float]]:
    """For JSON."""
    return [asdict(m) for m in found]
