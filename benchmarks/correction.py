"""Weights, kept counts and complete statistics of one batch against named peers, interleaved in one run.

    pip install ".[dev]" && pip install --no-deps "verl==0.9.1"
    python benchmarks/correction.py                        # all sizes, one thread
    python benchmarks/correction.py --sizes 64x8192 --compile
    python benchmarks/correction.py --memory --slope

Peers: verl's helper (truncated sequence weights, one rejection option, its metrics); the lines of TRL that make its
default ratio (weights, mean and largest difference); slime's `mis.py` as frameworks describe it, written here in plain
torch (a loop over sequences, truncated weights, three metrics). reweigh makes the weights of the same estimator, and
`RatioStats` at token and at sequence level: more than any peer's metrics (tail, grid of caps, clusters, blocks).

The floor reads two arrays, writes one, and takes one `exp`: no such work can be faster. "packed" has the same tokens
without padding; of the size with 90% padding, that is the case to look at. Every line of a size is run once a round, in
turn; the figure is the median, and ratios are medians of the rounds' ratios. Two clocks: of the wall, and of the
processor, which moves less on a machine that others use.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise

import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, geo_rs, seq_tis

Case = Callable[[], object]
ESTIMATOR = seq_tis(2.0) * geo_rs(0.99, 1.01)


@dataclass(frozen=True)
class Inputs:
    """Log-probs with right padding, and the same tokens end to end."""

    log_pi: torch.Tensor
    log_mu: torch.Tensor
    mask: torch.Tensor
    packed: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    @classmethod
    def random(cls, sequences: int, length: int, share: float) -> "Inputs":
        """Sequences of which `share` of the slots are tokens, in the mean."""
        g = torch.Generator().manual_seed(0)
        log_mu = -3 * torch.rand(sequences, length, generator=g) - 0.1
        log_pi = (log_mu + 0.02 * torch.randn(sequences, length, generator=g)).clamp(max=0)
        low, high = (1, max(2, int(2 * share * length))) if share < 0.5 else (int((2 * share - 1) * length), length)
        lengths = torch.randint(low, high + 1, (sequences, 1), generator=g)
        mask = torch.arange(length) < lengths
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
        return cls(log_pi, log_mu, mask, (log_pi[mask], log_mu[mask], offsets))


def ours(make: Callable[[], Batch], stats: bool) -> Case:
    """Weights, kept and bounded counts; and the statistics at both levels."""

    def run() -> object:
        batch = make()
        w = ESTIMATOR(batch)
        out = w.per_token, w.num_kept, w.num_bounded
        return (out, RatioStats.of_levels(batch, (TOKEN, SEQUENCE))) if stats else out

    return run


def compiled(x: Inputs) -> Case:
    """The same as one graph."""

    def run(log_pi: torch.Tensor, log_mu: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        batch = Batch.padded(log_pi, log_mu, mask)
        w = ESTIMATOR(batch)
        both = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
        return [w.per_token, w.num_kept, w.num_bounded, *(s.moments for s in both), *(s.grid for s in both)]

    graph = torch.compile(run, fullgraph=True)
    return lambda: graph(x.log_pi, x.log_mu, x.mask)


def floor(x: Inputs) -> Case:
    """Read two, write one, one exp."""
    return lambda: (x.log_pi - x.log_mu).exp_()


def trl(x: Inputs) -> Case:
    """TRL 1.16 with its default, `sequence_mask` at 3.0: the ratio, and the two metrics of the difference."""

    def run() -> object:
        difference = (x.log_pi - x.log_mu) * x.mask
        ratio = difference.sum(-1, keepdim=True).exp()
        ratio = ratio.masked_fill(ratio > 3.0, 0.0)
        gap = difference.abs()[x.mask]
        return ratio, gap.mean(), gap.max(), ratio.min(), ratio.mean(), ratio.max()

    return run


def slime(x: Inputs) -> Case:
    """slime's `mis.py`: a loop over sequences, sequence level, truncated, with three of its metrics."""

    def run() -> object:
        out: list[torch.Tensor] = []
        metrics = [torch.zeros(()), torch.zeros(()), torch.zeros(())]
        offsets = x.packed[2].tolist()
        for a, b in pairwise(offsets):
            log_ratio = x.packed[0][a:b] - x.packed[1][a:b]
            raw = log_ratio.sum().clamp(-20, 20).exp().expand_as(log_ratio)
            out.append(raw.clamp(0, 2.0))
            k3 = log_ratio.exp() - log_ratio - 1
            for i, value in enumerate((raw, k3, (raw > 2.0).float())):
                metrics[i] = metrics[i] + value.mean()
        return out, metrics

    return run


def verl(x: Inputs) -> Case:
    """verl 0.9.1: `compute_rollout_correction_and_rejection_mask`."""
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask as helper

    mask = x.mask.long()
    return lambda: helper(
        old_log_prob=x.log_pi,
        rollout_log_prob=x.log_mu,
        response_mask=mask,
        rollout_is="sequence",
        rollout_is_threshold=2.0,
        rollout_rs="seq_mean_k1",
        rollout_rs_threshold="0.99_1.01",
    )


def cases_of(x: Inputs, with_graph: bool) -> dict[str, Case]:
    """All lines, by name."""
    padded = lambda: Batch.padded(x.log_pi, x.log_mu, x.mask)  # noqa: E731
    packed = lambda: Batch.packed(*x.packed)  # noqa: E731
    cases = {
        "floor": floor(x),
        "reweigh, weights": ours(padded, stats=False),
        "reweigh, weights and statistics": ours(padded, stats=True),
        "reweigh, the same, packed": ours(packed, stats=True),
        "TRL, weights": trl(x),
        "slime, weights and metrics": slime(x),
    }
    if with_graph:
        cases["reweigh, compiled"] = compiled(x)
    if find_spec("verl") is not None:
        cases["verl, weights and metrics"] = verl(x)
    return cases


def measure(cases: dict[str, Case], runs: int) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of the wall and of the processor, by case; every round runs every case once."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in cases}
    for run in range(runs + 2):
        for name, call in cases.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if run >= 2:  # the first two warm the allocator and the caches
                times[name][0].append(wall * 1e3)
                times[name][1].append(processor * 1e3)
    return times


def report(size: str, times: dict[str, tuple[list[float], list[float]]], slots: int) -> None:
    """One table."""
    peer = next((name for name in times if name.startswith("verl")), None)
    print(f"\n| {size} | ms | processor, ms | ns a slot | of the floor | verl / this |\n|---|---|---|---|---|---|")
    for name, (wall, processor) in times.items():
        of_floor = statistics.median(a / b for a, b in zip(processor, times["floor"][1], strict=True))
        ratio = statistics.median(a / b for a, b in zip(times[peer][1], processor, strict=True)) if peer else math.nan
        ms = statistics.median(wall), statistics.median(processor)
        print(f"| {name} | {ms[0]:.2f} | {ms[1]:.2f} | {ms[1] / slots * 1e6:.2f} | {of_floor:.1f} | {ratio:.1f} |")


def peak(call: Case) -> int:
    """Bytes that torch's allocator held at most during the call, above what it held before."""
    call()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, record_shapes=True, with_stack=True
    ) as profile:
        kept = call()
    held = most = 0
    for event in profile._memory_profile().timeline:  # pyright: ignore[reportPrivateUsage]
        action, (_, _), size = event[1], event[2], event[3]
        held += {"CREATE": size, "DESTROY": -size}.get(action.name, 0)
        most = max(most, held)
    del kept
    return most


def profile(call: Case, tokens: int) -> None:
    """Where the time goes: passes over elements by operator."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        call()
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    print("\n| operator | calls | ms | ns a token |\n|---|---|---|---|")
    for e in events[:14]:
        us = e.self_cpu_time_total
        print(f"| {e.key} | {e.count} | {us / 1e3:.2f} | {us / tokens * 1e3:.2f} |")
    print(f"| all {len(events)} | {sum(e.count for e in events)} | {total / 1e3:.2f} | {total / tokens * 1e3:.2f} |")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["64x8192", "512x2048", "256x16384", "1024x4096@0.1"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also as one compiled graph")
    parser.add_argument("--memory", action="store_true", help="peak memory in place of times")
    parser.add_argument("--profile", action="store_true", help="where the time of weights and statistics goes")
    parser.add_argument("--slope", action="store_true", help="how time grows with the number of slots")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} thread(s), float32, torch {torch.__version__}, median of {args.runs} rounds")
    if find_spec("verl") is None:
        print("verl is not installed: no ratio to it (pip install --no-deps verl==0.9.1)")
    for size in args.sizes:
        shape, _, share = size.partition("@")
        sequences, length = (int(n) for n in shape.split("x"))
        x = Inputs.random(sequences, length, float(share or 0.75))
        cases = cases_of(x, args.compile)
        if args.memory:
            array = x.log_pi.numel() * 4
            print(f"\n| {size} | peak above the inputs, MB | in arrays of the inputs' size |\n|---|---|---|")
            for name, call in cases.items():
                most = peak(call)
                print(f"| {name} | {most / 1e6:.1f} | {most / array:.2f} |")
        elif args.profile:
            profile(cases["reweigh, weights and statistics"], int(x.mask.sum()))
        else:
            report(size, measure(cases, args.runs), x.log_pi.numel())
    if args.slope:
        points: list[tuple[float, float]] = []
        for sequences in (16, 64, 256, 1024):
            x = Inputs.random(sequences, 4096, 0.75)
            case = {"it": ours(lambda x=x: Batch.padded(x.log_pi, x.log_mu, x.mask), stats=True)}
            ms = statistics.median(measure(case, args.runs)["it"][1])
            points.append((math.log(x.log_pi.numel()), math.log(ms)))
        mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
        slope = sum((a - mean_x) * (b - mean_y) for a, b in points) / sum((a - mean_x) ** 2 for a, _ in points)
        print(
            f"\nweights and statistics, 16 to 1,024 sequences of 4,096: time grows with slots to the power {slope:.2f}"
        )


if __name__ == "__main__":
    main()
