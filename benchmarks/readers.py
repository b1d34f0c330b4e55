"""How fast dumps are read, and in how much memory: made-up dumps of 2,000 tokens a response, one core.

python benchmarks/readers.py [MILLIONS_OF_TOKENS]
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reweigh.dumps import formats
from reweigh.records.schema import fail

LENGTH = 2000  # tokens of a response


def main() -> None:
    """Make the dumps and read each."""
    if len(sys.argv) == 3:
        read(Path(sys.argv[1]), int(sys.argv[2]))
        return
    rows = int(float(sys.argv[1] if sys.argv[1:] else 4) * 1e6) // LENGTH
    with tempfile.TemporaryDirectory() as folder:
        for path in (json_lines(Path(folder), rows), torch_file(Path(folder), rows)):
            # a process of its own: peak memory cannot be reset
            subprocess.run([sys.executable, __file__, str(path), str(rows)], check=True)


def log_probs() -> np.ndarray:
    """Of one response."""
    return -np.random.default_rng(0).exponential(0.5, LENGTH).astype(np.float32)


def json_lines(folder: Path, rows: int) -> Path:
    """prime-rl's token export."""
    path, log_mu = folder / "rank_0.jsonl", log_probs()
    record = {
        "schema_version": 1,
        "step": 1,
        "rank": 0,
        "token_ids": list(range(100_000, 100_000 + LENGTH)),
        "loss_mask": [t >= 100 for t in range(LENGTH)],
        "advantages": [0.5] * LENGTH,
        "inference_logprobs": [float(x) for x in log_mu],
        "trainer_logprobs": [float(x) for x in np.float32(1.01) * log_mu],
        "entropy": [0.75] * LENGTH,
    }
    with open(path, "w") as file:
        for i in range(rows):
            file.write(json.dumps({**record, "export_sequence_idx": i}, separators=(",", ":")) + "\n")
    return path


def torch_file(folder: Path, rows: int) -> Path:
    """slime's train dump."""
    path, log_mu = folder / "0.pt", torch.from_numpy(log_probs())
    samples = [
        {
            "sample_index": i,
            "rollout_position": i,
            "tokens": torch.arange(LENGTH + 100),
            "response_lengths": LENGTH,
            "total_lengths": LENGTH + 100,
            "loss_masks": torch.ones(LENGTH, dtype=torch.int),
            "rollout_log_probs": log_mu.clone(),
            "log_probs": 1.01 * log_mu,
            "advantages": torch.ones(LENGTH),
        }
        for i in range(rows)
    ]
    torch.save({"format_version": 2, "rollout_id": 0, "rank": 0, "samples": samples, "dp_shards": []}, path)
    return path


def read(path: Path, rows: int) -> None:
    """Read a dump and print how it went."""
    torch.set_num_threads(1)
    before, start = peak(), time.perf_counter()
    reader = formats().reader_of(path)
    got = sum(t.num_rows for part in reader.cut(path, 1 << 21) for t, _ in reader.read(part, None, 1 << 19, fail))
    assert got == rows
    rate = rows * LENGTH / (time.perf_counter() - start)
    size = path.stat().st_size / 2**20
    print(f"{path.name}: {size:.0f} MB, {rate / 1e6:.1f} million tokens/s, {peak() - before:.0f} MB of memory")


def peak() -> float:
    """Most memory that this process had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
