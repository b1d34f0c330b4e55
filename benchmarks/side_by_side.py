"""Speed of two checkouts in one run, in turns: the hot path, statistics, divergences, and the commands on 3 M tokens.

    python benchmarks/side_by_side.py --before ../other                    # against this checkout
    python benchmarks/side_by_side.py --before ../other --what commands --only 'audit*' --file build/records.parquet
    python benchmarks/side_by_side.py --before ../other --only '*64x8192*' --rounds 31

A figure is run by both in turns, A B B A ..., on the same inputs with one thread: functions in a process of each that
stays, commands in a fresh one. "after / before" is the median of the rounds' ratios, of seconds of the processor, which
move less than those of the wall on a machine that others use; beside it the least and the most. A figure over --limit
is marked, and makes the exit code 1. Only public names and the command line are used.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
LEAST_S = 0.03  # a call that is shorter is repeated in one measurement
GROUP = 500_000  # tokens of a row group
LENGTH = 1000  # tokens of a response, in the mean
STEP = 1 << 18  # tokens of a training step
SIZES = {"8x64": (8, 64), "64x8192": (64, 8192), "512x2048": (512, 2048)}

# Arguments of `reweigh`; FILE is the generated records, PAGE a page that may be written.
COMMANDS = {
    "audit with its doctor": ["audit", "FILE", "--workers", "1"],
    "audit with its doctor, page": ["audit", "FILE", "--workers", "1", "--html", "PAGE"],
    "audit, two workers": ["audit", "FILE", "--workers", "2"],
    "audit without doctor": ["audit", "FILE", "--workers", "1", "--no-doctor"],
    "audit --estimators all": [
        "audit",
        "FILE",
        "--workers",
        "1",
        "--no-doctor",
        "--estimators",
        "all",
        "--batch",
        "512",
    ],
    "audit --by": ["audit", "FILE", "--workers", "1", "--no-doctor", "--by", "step", "--by", "length"],
    "doctor": ["doctor", "FILE", "--workers", "1"],
    "plan --from": ["plan", "--from", "FILE"],
    "gate --init": ["gate", "FILE", "--init", "--workers", "1", "--policy", "POLICY"],
    "help": ["--help"],
    "import": [],
}

Call = Callable[[], object]


def public(*names: str) -> Any:
    """The first of some dotted names that this checkout has: a name may have moved to its module."""
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
    raise AttributeError(f"none of {', '.join(names)}")


def batch_figures(size: tuple[int, int]) -> dict[str, Call]:
    """What a training step does with one batch; three quarters of the slots are tokens."""
    import torch

    import reweigh as rw

    g = torch.Generator().manual_seed(0)
    log_mu = -3 * torch.rand(size, generator=g) - 0.1
    log_old = (log_mu + 0.02 * torch.randn(size, generator=g)).clamp(max=0)
    lengths = torch.randint(size[1] // 2, size[1] + 1, (size[0], 1), generator=g)
    mask, advantage = torch.arange(size[1]) < lengths, torch.randn(size[0], generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
    flat = log_old[mask], log_mu[mask], offsets
    estimator = rw.seq_tis(2.0) * rw.geo_rs(0.99, 1.01)
    long = rw.prefix_tis(2.0) * rw.k3_rs(0.01) * rw.token_tis(2.0)
    levels = (rw.TOKEN, rw.SEQUENCE)

    def padded() -> Any:
        return rw.Batch.padded(log_old, log_mu, mask)

    def weights(batch: Any) -> object:
        w = estimator(batch)
        return w.per_token, w.num_kept, w.num_bounded

    def both(batch: Any) -> object:
        return weights(batch), rw.RatioStats.of_levels(batch, levels)

    def step() -> None:
        log_pi = log_old.clone().requires_grad_()
        batch = padded()
        rw.ppo_clip(log_pi, log_old, advantage, estimator(batch), rw.num_tokens(batch)).backward()
        str(rw.judge(*rw.RatioStats.of_levels(batch, levels)))

    return {
        "weights": lambda: weights(padded()),
        "weights and statistics": lambda: both(padded()),
        "weights and statistics, packed": lambda: both(rw.Batch.packed(*flat)),
        "a step with its verdict": step,
        "prefix, k3 and token weights": lambda: long(padded()).per_token,
    }


def statistics_figures() -> dict[str, Call]:
    """What is done with statistics once they are made."""
    import torch
    import torch.distributed as dist

    import reweigh as rw

    found: dict[str, Call] = {}
    for n in (1_000, 100_000):
        l = torch.randn(n, 1, generator=torch.Generator().manual_seed(0)) - 0.5
        log_mu = torch.full_like(l, -20.0)
        batch = rw.Batch.padded(log_mu + l, log_mu, torch.ones(n, 1))
        stats = rw.RatioStats.of(batch, rw.SEQUENCE)
        # a fresh value each time: one may remember what it copied to the host
        found[f"statistics of {n:,} sequences"] = lambda batch=batch: rw.RatioStats.of(batch, rw.SEQUENCE)
        found[f"sum of statistics of {n:,}"] = lambda stats=stats: stats + stats
        found[f"summary of {n:,} sequences"] = lambda stats=stats: rw.summarise(stats + stats)
    pair = rw.RatioStats.of_levels(batch, (rw.TOKEN, rw.SEQUENCE))
    store = dist.HashStore()

    def merged() -> object:
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        return rw.all_reduce(pair)

    return found | {"merge over ranks, one rank": merged}


def vocabulary_figures() -> dict[str, Call]:
    """From logits and hidden states."""
    import torch

    places = ("reweigh.", "reweigh.logits.", "reweigh.vocabulary.")
    divergences, log_probs, linear = (
        public(*(place + name for place in places))
        for name in ("state_divergences", "log_probs", "linear_log_probs")
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    mu = 3 * torch.randn(128, 32_000, generator=g)
    pi = mu + 0.1 * torch.randn(128, 32_000, generator=g)
    tokens = torch.randint(32_000, (128,), generator=g)
    hidden, matrix = torch.randn(128, 256, generator=g).requires_grad_(), torch.randn(32_000, 256, generator=g) / 16

    def scores() -> object:
        logits = pi.detach().requires_grad_()
        return torch.autograd.grad(log_probs(logits, tokens).log_p.sum(), logits)

    def from_hidden() -> object:
        return torch.autograd.grad(linear(hidden, matrix, tokens)[0].sum(), hidden)

    return {
        "divergences of 128 x 32,000": lambda: vars(divergences(pi, mu)),
        "log-probs of 128 x 32,000, gradient": scores,
        "log-probs of hidden states, gradient": from_hidden,
    }


def caps_figures() -> dict[str, Call]:
    """Rules that find a cap in the batch."""
    import torch

    import reweigh as rw

    g = torch.Generator().manual_seed(0)
    l = torch.randn(1024, 1, generator=g) - 0.5
    batch = rw.Batch.padded(l - 20, torch.full_like(l, -20.0), torch.ones(1024, 1))
    places = [place + name for place in ("reweigh.", "reweigh.caps.") for name in ("balance", "Balance")]
    rule = public(*places)()
    return {"a cap by balance, 1,024 sequences": lambda: rw.seq_tis(rule)(batch).per_token}


def figures() -> dict[str, Call]:
    """All that stay in one process; made when first asked for, so that a filter saves their inputs."""
    found = {f"{name}, {size}": call for size, shape in SIZES.items() for name, call in batch_figures(shape).items()}
    return found | statistics_figures() | vocabulary_figures() | caps_figures()


def serve(root: Path) -> None:
    """Run figures as they are asked for: a line of JSON in, seconds of wall and processor out."""
    enter(root)
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    with redirect_stdout(sys.stderr):
        calls = figures()
        for line in sys.stdin:
            order = json.loads(line)
            if order is None:
                print(json.dumps(list(calls)), file=answers, flush=True)
                continue
            call = calls[order["name"]]
            start, used = time.perf_counter(), time.process_time()
            for _ in range(order["times"]):
                call()
            print(json.dumps([time.perf_counter() - start, time.process_time() - used]), file=answers, flush=True)


def enter(root: Path) -> None:
    """Make `reweigh` that of `root`."""
    sys.path[:] = [str(root), *(p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent)]
    at = Path(str(import_module("reweigh").__file__)).resolve()
    assert at.is_relative_to(root), f"{at} is not in {root}"


class Server:
    """The process of a checkout that stays."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, __file__, "--serve", str(root)]
        self._process = subprocess.Popen(
            command, env=environment(root), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, order: Any) -> Any:
        """Send one line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"side_by_side: the process ended at {order}")
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def environment(root: Path) -> dict[str, str]:
    """One thread, and this checkout's package."""
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}


def command_seconds(root: Path, arguments: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor of one command in a fresh process, its workers included."""
    command = [sys.executable, "-m", "reweigh", *arguments]
    if not arguments:
        command = [sys.executable, "-c", "import reweigh; reweigh.Batch, reweigh.seq_tis, reweigh.RatioStats"]
    (folder / "policy.yaml").unlink(missing_ok=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment(root), cwd=folder, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise SystemExit(f"side_by_side: {' '.join(command)} in {root}: exit code {done.returncode}\n{done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def generate(path: Path, tokens: int) -> None:
    """Write random records of a benign gap with every column that a test of the doctor reads, by group."""
    import numpy as np
    import pyarrow as pa

    from reweigh.records import ARROW_SCHEMA, RecordWriter, RunInfo

    g = np.random.default_rng(0)
    with RecordWriter(path, RunInfo(engine="vllm", trainer="fsdp")) as writer:
        for done in range(0, tokens, GROUP):
            size = min(GROUP, tokens - done)
            count, first, step = max(1, size // LENGTH), done // LENGTH, done // STEP
            lengths = g.lognormal(np.log(LENGTH) - 0.32, 0.8, count).astype(np.int64).clip(1, 30_000)
            lengths = np.maximum(lengths * size // lengths.sum(), 1)
            offsets, n = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32()), int(lengths.sum())
            log_pi = np.minimum(-0.5 * g.standard_exponential(n, dtype=np.float32) ** 2 - np.float32(1e-4), 0)
            noise = np.float32(0.02) * -np.expm1(log_pi)
            of_tokens = {
                "token_ids": g.zipf(1.3, n).clip(0, 150_000),
                "log_mu": np.minimum(log_pi + noise * g.standard_normal(n, dtype=np.float32), 0),
                "log_pi": log_pi,
                "mask": g.random(n, dtype=np.float32) < 0.98,
                "advantage": np.repeat(g.standard_normal(count, dtype=np.float32), lengths),
                "versions": np.maximum(step - np.repeat(g.integers(0, 3, count), lengths), 0),
                "turns": np.zeros(n, np.int64),
                "entropy_pi": 0.5 * g.standard_exponential(n, dtype=np.float32),
                "log_pi_repeat": np.minimum(log_pi + 0.1 * noise * g.standard_normal(n, dtype=np.float32), 0),
                "log_mu_prefill": np.minimum(log_pi + 0.7 * noise * g.standard_normal(n, dtype=np.float32), 0),
            }
            of_rows = {
                "sequence_id": [f"s{first + i}" for i in range(count)],
                "prompt_id": [f"p{(first + i) // 8}" for i in range(count)],
                "step": np.full(count, step),
                "env": ["math"] * count,
                "prompt_length": g.integers(20, 400, count),
                "trainer_version": np.full(count, step),
                "pack_index": (first + np.arange(count)) // 4,
                "finish_reason": ["stop"] * count,
            }
            columns = {name: pa.array(values) for name, values in of_rows.items()}
            for name, values in of_tokens.items():
                flat = pa.array(values).cast(ARROW_SCHEMA.field(name).type.value_type)
                columns[name] = pa.ListArray.from_arrays(offsets, flat)
            types = {name: ARROW_SCHEMA.field(name).type for name in columns}
            writer.write_table(pa.table({name: array.cast(types[name]) for name, array in columns.items()}))


Rounds = tuple[list[tuple[float, float]], list[tuple[float, float]]]


def in_turns(rounds: int, warm: int, measure: Callable[[int], tuple[float, float]]) -> Rounds:
    """(wall, processor) of side 0 and side 1, the first of a round changing from round to round."""
    found: Rounds = ([], [])
    for round_ in range(rounds + warm):
        for side in (0, 1) if round_ % 2 == 0 else (1, 0):
            seconds = measure(side)
            if round_ >= warm:
                found[side].append(seconds)
    return found


def say(name: str, found: Rounds, times: int, limit: float) -> float:
    """Print one line; returns the median ratio of the processor."""
    ratios = [[b[i] / a[i] for a, b in zip(*found, strict=True)] for i in (0, 1)]
    wall, ratio = map(statistics.median, ratios)
    ms = [statistics.median(x[1] for x in side) / times * 1e3 for side in found]
    mark = " **slower**" if ratio > limit else ""
    digits = [f"{x:,.3f}" if x < 10 else f"{x:,.1f}" for x in ms]
    span = f"{min(ratios[1]):.2f} to {max(ratios[1]):.2f}"
    print(f"| {name} | {digits[0]} | {digits[1]} | {ratio:.2f}{mark} | {span} | {wall:.2f} |", flush=True)
    return ratio


def main() -> None:
    """Run what was asked for, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="DIR", help="the checkout to compare with")
    parser.add_argument("--after", type=Path, metavar="DIR", default=HERE, help="this one if not given")
    parser.add_argument("--what", choices=("all", "functions", "commands"), default="all")
    parser.add_argument("--only", default="*", metavar="GLOB", help="figures whose name is like this")
    parser.add_argument("--rounds", type=int, default=11, help="of functions")
    parser.add_argument("--command-rounds", type=int, default=3, help="of commands")
    parser.add_argument("--tokens", type=float, default=3e6, help="in the records")
    parser.add_argument("--file", type=Path, help="the records, written if missing; a temporary file if not given")
    parser.add_argument("--limit", type=float, default=1.1, help="ratio over which a figure is slower")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve or args.generate:
        serve(args.serve.resolve()) if args.serve else generate(args.generate, int(args.tokens))
        return
    if args.before is None:
        parser.error("--before is needed: the checkout to compare with")
    roots = args.before.resolve(), args.after.resolve()
    slower: list[str] = []

    def take(name: str, found: Rounds, times: int) -> None:
        if say(name, found, times, args.limit) > args.limit:
            slower.append(name)

    print(f"Milliseconds of the processor, medians; load of the machine {os.getloadavg()[0]:.1f}\n")
    print("| figure | before | after | after / before | least to most | of the wall |\n|---|---:|---:|---:|---:|---:|")
    servers = [] if args.what == "commands" else [Server(root) for root in roots]
    for name in servers[0].ask(None) if servers else ():
        if fnmatch(name, args.only):
            once = min(servers[0].ask({"name": name, "times": 1})[1] for _ in range(3))
            times = max(1, math.ceil(LEAST_S / max(once, 1e-6)))
            order = {"name": name, "times": times}
            take(name, in_turns(args.rounds, 1, lambda side, order=order: tuple(servers[side].ask(order))), times)
    for server in servers:
        server.close()
    known = {} if args.what == "functions" else COMMANDS
    commands = {name: given for name, given in known.items() if fnmatch(name, args.only)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = (args.file or folder / "records.parquet").resolve()
        if any("FILE" in given for given in commands.values()) and not path.is_file():
            command = [sys.executable, __file__, "--generate", str(path), "--tokens", str(args.tokens)]
            subprocess.run(command, env=environment(roots[0]), check=True)
        places = {"FILE": str(path), "PAGE": str(folder / "page.html"), "POLICY": str(folder / "policy.yaml")}
        for name, given in commands.items():
            arguments = [places.get(x, x) for x in given]
            rounds = args.command_rounds if "FILE" in given else args.rounds
            take(name, in_turns(rounds, 0, lambda side, a=arguments: command_seconds(roots[side], a, folder)), 1)
    print(f"\nslower than {args.limit:g} times: {', '.join(slower) or 'none'}")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
