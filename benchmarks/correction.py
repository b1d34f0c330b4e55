"""Weights, kept counts and complete statistics of one batch: reweigh against verl's helper, interleaved in one run.

    pip install "reweigh[dev]" "verl==0.9.1"
    python benchmarks/correction.py --sequences 64 --length 8192 --threads 1

verl computes truncated sequence weights and its metrics, one rejection option included. reweigh computes the same
weights, `RatioStats` at token and at sequence level (more than verl's metrics: tail, grid of caps, clusters, blocks),
and the numbers with their intervals.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, geo_rs, seq_tis, summarise


def main() -> None:
    """Run both, print medians in milliseconds and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    g = torch.Generator().manual_seed(0)
    shape = (args.sequences, args.length)
    log_mu = -3 * torch.rand(shape, generator=g) - 0.1
    log_pi = (log_mu + 0.02 * torch.randn(shape, generator=g)).clamp(max=0)
    lengths = torch.randint(args.length // 2, args.length + 1, (args.sequences, 1), generator=g)
    mask = torch.arange(args.length) < lengths
    estimator = seq_tis(2.0) * geo_rs(0.99, 1.01)

    def weights() -> object:
        w = estimator(Batch.padded(log_pi, log_mu, mask))
        return w.per_token, w.keep_tokens, w.num_kept, w.num_bounded

    def whole() -> object:
        batch = Batch.padded(log_pi, log_mu, mask)
        w = estimator(batch)
        stats = RatioStats.of(batch, TOKEN), RatioStats.of(batch, SEQUENCE)
        return w.per_token, w.keep_tokens, w.num_kept, w.num_bounded, stats

    def with_numbers() -> object:
        *out, stats = whole()  # type: ignore[misc]
        return out, [summarise(s) for s in stats]

    cases: dict[str, Callable[[], object]] = {
        "one exp over the slots": lambda: log_mu.exp(),
        "reweigh: weights": weights,
        "reweigh: weights and statistics": whole,
        "reweigh: with numbers and intervals": with_numbers,
    }
    try:
        from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask as helper
    except ModuleNotFoundError:
        print("verl is not installed: pip install verl==0.9.1 (no ratio will be printed)")
    else:
        cases["verl 0.9.1: helper"] = lambda: helper(
            old_log_prob=log_pi,
            rollout_log_prob=log_mu,
            response_mask=mask.long(),
            rollout_is="sequence",
            rollout_is_threshold=2.0,
            rollout_rs="seq_mean_k1",
            rollout_rs_threshold="0.99_1.01",
        )
    times = {name: [] for name in cases}
    for run in range(args.runs + 2):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            if run >= 2:  # the first two warm the allocator and the caches
                times[name].append((time.perf_counter() - start) * 1e3)
    what = f"{shape[0]} x {shape[1]} slots, float32, {args.threads} thread(s), torch {torch.__version__}"
    print(f"{what}, median of {args.runs}")
    for name, ms in times.items():
        print(f"  {name:38s} {statistics.median(ms):9.2f} ms   [{min(ms):.2f}, {max(ms):.2f}]")
    if "verl 0.9.1: helper" in times:
        pairs = zip(times["verl 0.9.1: helper"], times["reweigh: weights and statistics"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"  verl / reweigh (weights and statistics), median of pairs: {ratio:.2f}")


if __name__ == "__main__":
    main()
