"""The audit against what it cannot beat and what one would write instead, interleaved in one run on one file.

    pip install ".[dev]"
    python benchmarks/audit.py --tokens 10e6                  # against pyarrow and a numpy script, one thread each
    python benchmarks/audit.py --memory 10e6 30e6 100e6       # peak memory by number of tokens
    python benchmarks/audit.py --tokens 60e6 --workers 1 2    # processes
    python benchmarks/audit.py --tokens 1e6 --files 1000      # many small files: four responses each

pyarrow decodes the columns that an audit reads and drops them: no audit can be faster. The numpy script makes a few of
the audit's numbers from each row group (mean ratio, k3, |log ratio|, TV, effective sample size, by token and by
sequence): no tail, no intervals by prompt, no grid of caps, no estimators, no histograms. Each line is a process of its
own with one thread, timed from its first read to its last number. Seconds are of the wall; the time of the processor is
beside them, since on a machine that others use it moves less.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COLUMNS = ["sequence_id", "prompt_id", "log_mu", "log_pi", "mask"]
GROUP = 1_000_000  # tokens of a row group
LENGTH = 1000  # tokens of a response, in the mean


def generate(path: Path, tokens: int, files: int = 1) -> None:
    """Write random records, a row group at a time; or a folder of so many files, each of four responses."""
    if files > 1:
        path.mkdir()
        for i in range(files):
            write(path / f"{i:05}.parquet", tokens // files, max(1, tokens // files // 4), i)
    else:
        write(path, tokens, LENGTH, 0)


def write(path: Path, tokens: int, length: int, number: int) -> None:
    """Write one file of responses of about this length."""
    import numpy as np
    import pyarrow as pa

    from reweigh.records import RecordWriter, RunInfo

    g = np.random.default_rng(number)
    with RecordWriter(path, RunInfo(engine="vllm", trainer="fsdp")) as writer:
        for done in range(0, tokens, GROUP):
            count = max(1, min(GROUP, tokens - done) // length)
            lengths = g.lognormal(np.log(length) - 0.32, 0.8, count).astype(np.int64).clip(1, 30_000)
            offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
            n = int(lengths.sum())
            log_mu = -0.5 * g.standard_exponential(n, dtype=np.float32) ** 2 - np.float32(0.1)
            log_pi = np.minimum(
                log_mu + np.float32(0.02) * g.standard_normal(n, dtype=np.float32) - np.float32(2e-4), 0
            )
            first = done // length
            columns = {
                "sequence_id": pa.array([f"s{number}.{first + i}" for i in range(count)]),
                "prompt_id": pa.array([f"p{number}.{(first + i) // 8}" for i in range(count)]),
                "log_mu": pa.ListArray.from_arrays(offsets, pa.array(log_mu)),
                "log_pi": pa.ListArray.from_arrays(offsets, pa.array(log_pi)),
                "mask": pa.ListArray.from_arrays(offsets, pa.array(g.random(n, dtype=np.float32) < 0.95)),
            }
            writer.write_table(pa.table(columns))


def files_of(path: Path) -> list[Path]:
    """The file, or those of the folder."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def by_pyarrow(path: Path) -> int:
    """Decode the columns and drop them."""
    import pyarrow.parquet as pq

    tokens = 0
    for one in files_of(path):
        with pq.ParquetFile(one) as file:
            groups = (file.read_row_group(i, COLUMNS, use_threads=False) for i in range(file.num_row_groups))
            tokens += sum(len(group.column("log_mu").chunk(0).flatten()) for group in groups)
    return tokens


def by_numpy(path: Path) -> int:
    """What a careful script does with pandas and numpy, a row group at a time."""
    import numpy as np
    import pyarrow.parquet as pq

    token, sequence = np.zeros(6), np.zeros(6)

    def sums(l):  # noqa: ANN001, ANN202
        r = np.exp(l)
        return np.array(
            [len(l), r.sum(), (r * r).sum(), (r - 1 - l).sum(), np.abs(l).sum(), np.maximum(1 - r, 0).sum()]
        )

    tokens = 0
    for one in files_of(path):
        file = pq.ParquetFile(one)
        for i in range(file.num_row_groups):
            frame = file.read_row_group(i, columns=COLUMNS, use_threads=False).to_pandas()
            lengths = frame["log_mu"].map(len).to_numpy()
            log_mu, log_pi = (np.concatenate(frame[name].to_numpy()) for name in ("log_mu", "log_pi"))
            mask = np.concatenate(frame["mask"].to_numpy())
            l = np.where(mask, log_pi.astype(np.float64) - log_mu, 0)
            token += sums(l[mask])
            sequence += sums(np.add.reduceat(l, np.concatenate([[0], lengths.cumsum()[:-1]])))
            tokens += len(l)
    for n, r, r2, *_ in (token, sequence):
        assert n > 0
        assert r * r / (n * r2) <= 1.0001
    return tokens


def by_reweigh(path: Path, workers: int = 1) -> int:
    """The audit, all of it."""
    from reweigh import audit
    from reweigh.scan import Workers, look, scan
    from reweigh.scan.engines import single_threaded

    single_threaded()
    known = look(path)
    assert audit.answer(scan(known, [audit.question()], engine=Workers(workers))).verdict
    return known.tokens


def with_doctor(path: Path) -> int:
    """The audit with its doctor section, as the command makes it: one pass."""
    from reweigh import audit, doctor
    from reweigh.scan import look, scan
    from reweigh.scan.engines import single_threaded

    single_threaded()
    known = look(path)
    found = scan(known, [audit.question(), doctor.question(known, most=4_000_000)])
    assert audit.answer(found).verdict
    assert doctor.answer(found).verdict
    return known.tokens


CASES: dict[str, Callable[[Path], int]] = {
    "pyarrow": by_pyarrow,
    "numpy": by_numpy,
    "reweigh": by_reweigh,
    "with doctor": with_doctor,
}


def child(case: str, path: Path, workers: int) -> None:
    """One measurement, in this process; prints tokens, seconds, seconds of the processor, and peak MB."""
    if case in ("reweigh", "with doctor"):  # what is loaded once a process is not a cost of a token
        import reweigh.audit
        import reweigh.doctor  # noqa: F401

    else:
        import pandas  # noqa: F401
        import pyarrow.parquet  # noqa: F401
    start, used = time.perf_counter(), os.times()
    tokens = by_reweigh(path, workers) if case == "reweigh" else CASES[case](path)
    seconds, now = time.perf_counter() - start, os.times()
    processor = sum(now[:4]) - sum(used[:4])
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(tokens, seconds, processor, peak)


def measure(case: str, path: Path, workers: int = 1) -> tuple[float, float, float, float]:
    """One measurement, in a fresh process of one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", case, "--file", str(path), "--workers", str(workers)]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    tokens, seconds, processor, peak = map(float, out.split())
    return tokens, seconds, processor, peak


def table(path: Path, cases: list[tuple[str, int]], runs: int) -> None:
    """Interleaved runs and their medians."""
    found: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {case: [] for case in cases}
    for _ in range(runs):
        for case in cases:
            found[case].append(measure(case[0], path, case[1]))
    load, size = os.getloadavg()[0], sum(one.stat().st_size for one in files_of(path))
    print(f"{size / 1e6:.0f} MB, median of {runs}, load of the machine {load:.1f}")
    print(
        f"{'':22s}{'M tokens/s':>12s}{'ns/token':>10s}{'processor, ns/token':>22s}{'peak MB':>9s}{'to the first':>14s}"
    )
    for (name, workers), rows in found.items():
        tokens = rows[0][0]
        seconds, processor, peak = (statistics.median(row[i] for row in rows) for i in (1, 2, 3))
        ratio = statistics.median(a[1] / b[1] for a, b in zip(found[cases[0]], rows, strict=True))
        label = name if name != "reweigh" else f"reweigh, {workers} process{'es' if workers > 1 else ''}"
        print(
            f"{label:22s}{tokens / seconds / 1e6:12.2f}{seconds / tokens * 1e9:10.0f}{processor / tokens * 1e9:22.0f}"
            f"{peak:9.0f}{ratio:14.2f}"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=10e6)
    parser.add_argument("--files", type=int, default=1, help="put the tokens into so many files")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", help="compare the audit with so many processes")
    parser.add_argument("--memory", type=float, nargs="+", help="peak memory of the audit, by tokens")
    parser.add_argument("--file", type=Path, help="where to write the records; a temporary file if not given")
    parser.add_argument("--child", choices=sorted(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.file, args.workers[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or Path(folder) / "records.parquet"
        if args.memory:
            print(f"{'tokens':>12s}{'file, MB':>10s}{'peak, MB':>10s}{'M tokens/s':>12s}")
            for tokens in args.memory:
                generate(path, int(tokens))
                n, seconds, _, peak = measure("reweigh", path)
                print(f"{n:12,.0f}{path.stat().st_size / 1e6:10.0f}{peak:10.0f}{n / seconds / 1e6:12.2f}", flush=True)
                path.unlink()
            return
        generate(path, int(args.tokens), args.files)
        cases = [("reweigh", n) for n in args.workers] if args.workers else [(name, 1) for name in CASES]
        table(path, cases, args.runs)


if __name__ == "__main__":
    main()
