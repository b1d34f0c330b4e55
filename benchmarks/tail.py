"""The tail index: from the 256 largest ratios that statistics keep, against arviz-stats on all of them.

    python benchmarks/tail.py

Log-normal sequence ratios. Ours is `summarise` of merged statistics, with all its other numbers and intervals; the
statistics were made with the batch (`benchmarks/correction.py`). arviz-stats smooths all ratios, which takes a sort of
them. Interleaved, medians, one thread. The two indices differ where n is over 7,225, as then the kept tail is shorter
than 3 sqrt(n).
"""

import statistics
import time

import numpy as np
import torch
from arviz_stats.base.array import array_stats

from reweigh import SEQUENCE, Batch, RatioStats, summarise

RUNS = 7


def main() -> None:
    """Print one Markdown table."""
    torch.set_num_threads(1)
    print("| sequences | spread | ours, ms | arviz-stats, ms | arviz / ours | khat, ours | khat, arviz |")
    print("|---|---|---|---|---|---|---|")
    for n in (1_000, 100_000, 1_000_000):
        for spread in (0.5, 1.5):
            l = spread * torch.randn(n, 1, generator=torch.Generator().manual_seed(0)) - spread**2 / 2
            log_mu = torch.full_like(l, -20.0)
            stats, ratios = (
                RatioStats.of(Batch.padded(log_mu + l, log_mu, torch.ones(n, 1)), SEQUENCE),
                l[:, 0].double().numpy(),
            )
            times: tuple[list[float], list[float]] = ([], [])
            ours = theirs = float("nan")
            for _ in range(RUNS):
                start = time.process_time()
                ours = summarise(stats)["khat"].sample or float("nan")
                middle = time.process_time()
                theirs = float(np.asarray(array_stats.psislw(-ratios)[1]))
                for into, ms in zip(times, (middle - start, time.process_time() - middle), strict=True):
                    into.append(ms * 1e3)
            a, b = map(statistics.median, times)
            print(f"| {n:,} | {spread} | {a:.1f} | {b:.1f} | {b / a:.1f} | {ours:.2f} | {theirs:.2f} |")


if __name__ == "__main__":
    main()
