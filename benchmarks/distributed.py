"""What a training step pays to merge over ranks: bytes of each collective, time on gloo, and arithmetic for many ranks.

    python benchmarks/distributed.py                                   # gloo on 2, 3 and 4 processes of this machine
    python benchmarks/distributed.py --worlds --ranks 1024 --alpha-us 10 --gb-per-s 25

What is merged is what a step needs: stats at token and sequence level, a normaliser and the count of tokens. Beside it,
in the same run and in turns: bare collectives of the same sizes (the floor of the merge), those that it would take to
give each rank's list of largest ratios a row of its own, and 30 numbers reduced one by one, as loops do that log
metrics. Medians over runs, of the slowest rank. "computed" is what a rank computes around the collectives, measured
without any.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, all_reduce, geo_rs, seq_is, token_tis
from reweigh import distributed as merge
from reweigh.distributed import context_weights
from reweigh.estimators import Normaliser

SHAPE = (8, 8192)  # a rank's sequences and slots, all of them tokens


def rollouts(seed: int, shape: tuple[int, int] = SHAPE) -> Batch:
    """A rank's batch."""
    g = torch.Generator().manual_seed(seed)
    log_mu = -3 * torch.rand(shape, generator=g) - 0.1
    log_pi = (log_mu + 0.02 * torch.randn(shape, generator=g)).clamp(max=0)
    return Batch.padded(log_pi, log_mu, torch.ones(shape, dtype=torch.bool))


def parts_of(batch: Batch) -> tuple[RatioStats, RatioStats, Normaliser, torch.Tensor]:
    """What a step merges."""
    token, sequence = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
    return token, sequence, Normaliser.of(seq_is()(batch)), batch.layout.lengths.sum()


def sizes(parts: tuple[merge.Part, ...], world: int) -> tuple[int, int]:
    """Bytes of the maximum and of the sum at `world` ranks."""
    merges = [merge._merge_of(part, world, 0) for part in parts]
    maxima = [m.maxima() for m in merges]
    sums = [m.sums(top) for m, top in zip(merges, maxima, strict=True)]
    return tuple(sum(t.nbytes for group in groups for t in group) for groups in (maxima, sums))  # type: ignore


def around(parts: tuple[merge.Part, ...], world: int, runs: int) -> float:
    """Milliseconds of a merge at `world` ranks whose collectives do nothing: all that a rank computes for it."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    out = median_ms({"": lambda: all_reduce(parts)}, runs, lambda: None)[""]
    dist.destroy_process_group()
    return out


def median_ms(cases: dict[str, Callable[[], object]], runs: int, meet: Callable[[], object]) -> dict[str, float]:
    """Medians, the cases in turns; the first three rounds warm up."""
    times = {name: list[float]() for name in cases}
    for run in range(runs + 3):
        for name, call in cases.items():
            meet()
            start = time.perf_counter()
            call()
            if run >= 3:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(t) for name, t in times.items()}


def worker(rank: int, world: int, folder: str, runs: int) -> None:
    """One process of the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    batch = rollouts(rank)
    parts = parts_of(batch)
    maxima, sums = sizes(parts, world)
    one, flat, rows = (torch.zeros(n // 8, dtype=torch.float64) for n in (maxima, sums, 2 * 8 * (2810 + 256 * world)))
    mixed = geo_rs(0.99, 1.01) * token_tis(2.0)

    def bare() -> None:
        dist.all_reduce(one, dist.ReduceOp.MAX)
        dist.all_reduce(flat)

    def with_rows() -> None:
        dist.all_reduce(one, dist.ReduceOp.MAX)
        dist.all_reduce(rows)

    def one_by_one() -> None:
        for number in torch.zeros(30, 1):
            dist.all_reduce(number)

    cases: dict[str, Callable[[], object]] = {
        "merge": lambda: all_reduce(parts),
        "bare collectives of its sizes": bare,
        "bare collectives, a row a rank": with_rows,
        "30 numbers one by one": one_by_one,
        "weights, whole sequences on a rank": lambda: mixed(batch),
        "weights, sequences sliced over ranks": lambda: context_weights(mixed, batch, None),
    }
    times = median_ms(cases, runs, dist.barrier)
    torch.save((maxima, sums, times), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def measured(shape: tuple[int, int], runs: int) -> dict[str, float]:
    """Milliseconds of the processor for a batch, one thread, without other processes."""
    batch, e = rollouts(0, shape), geo_rs(0.99, 1.01) * token_tis(2.0)
    pair = batch.log_pi, batch.log_mu, batch.layout.mask

    def weights() -> None:
        w = e(Batch.padded(*pair))
        _ = w.per_token, w.num_kept

    def stats() -> None:
        RatioStats.of_levels(Batch.padded(*pair), (TOKEN, SEQUENCE))

    out: dict[str, float] = {}
    for name, call in {"weights": weights, "stats at token and sequence level": stats}.items():
        times: list[float] = []
        for run in range(runs + 3):
            start = time.thread_time()
            call()
            if run >= 3:
                times.append(time.thread_time() - start)
        out[name] = statistics.median(times) * 1e3
    return out


class Operations(TorchDispatchMode):
    """Counts operations that a device would launch a kernel for: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.count += func.namespace == "aten" and not func.is_view and "empty" not in func.__name__
        return func(*args, **(kwargs or {}))


def launches() -> dict[str, int]:
    """Operations of a step's parts on the meta device, where nothing can be cut short by looking at a value."""
    e, like = geo_rs(0.99, 1.01) * token_tis(2.0), torch.empty(SHAPE, device="meta")
    batch = Batch.padded(like, like, like.bool())

    def weights() -> None:
        w = e(Batch.padded(like, like, like.bool()))
        _ = w.per_token, w.num_kept

    def merges(parts: tuple[merge.Part, ...] = parts_of(batch)) -> None:
        for m in (merge._merge_of(part, 1024, 0) for part in parts):
            maxima = m.maxima()
            m.merged(maxima, m.sums(maxima))

    out: dict[str, int] = {}
    for name, call in {"weights": weights, "stats and normaliser": lambda: parts_of(batch), "merge": merges}.items():
        with Operations() as operations:
            call()
        out[name] = operations.count
    return out


def main() -> None:
    """Measure, then multiply."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="*", default=[2, 3, 4], help="processes of this machine")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024, 8192], help="for the arithmetic")
    parser.add_argument("--alpha-us", type=float, default=10.0, help="latency of a message, microseconds")
    parser.add_argument("--gb-per-s", type=float, default=25.0, help="speed of a rank's link, gigabytes a second")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for world in args.worlds:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(worker, args=(world, folder, args.runs), nprocs=world)
            found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
        print(f"gloo, {world} processes: maximum {found[0][0]:,} bytes, sum {found[0][1]:,} bytes; ms:")
        for name in found[0][2]:
            print(f"  {name:40s}{max(times[name] for _, _, times in found):8.2f}")
    for shape in (SHAPE, (8 * SHAPE[0], SHAPE[1])):
        tokens = shape[0] * shape[1]
        print(f"one thread, {shape[0]} x {shape[1]} tokens, time of the processor:")
        for name, ms in measured(shape, args.runs).items():
            print(f"  {name:40s}{ms:8.2f} ms{ms / tokens * 1e6:8.1f} ns a token")
    print("operations:", ", ".join(f"{name} {count}" for name, count in launches().items()))
    print(f"at P ranks: log2(P) messages there and back of {args.alpha_us:g} us each, at {args.gb_per_s:g} GB/s")
    print(f"{'P':>8}{'maximum, kB':>14}{'sum, kB':>10}{'a row a rank, kB':>19}", end="")
    print(f"{'computed, ms':>15}{'latency, ms':>14}{'bytes, ms':>12}")
    parts = parts_of(rollouts(0))
    for world in args.ranks:
        maxima, sums = sizes(parts, world)
        rows = 2 * 8 * (2810 + 256 * world + 20)
        local = around(parts, world, args.runs)
        latency = 2 * 2 * math.ceil(math.log2(world)) * args.alpha_us / 1e3
        wire = 2 * (maxima + sums) / args.gb_per_s / 1e6
        print(f"{world:8,}{maxima / 1e3:14.1f}{sums / 1e3:10.1f}{rows / 1e3:19.1f}", end="")
        print(f"{local:15.2f}{latency:14.2f}{wire:12.4f}")


if __name__ == "__main__":
    main()
