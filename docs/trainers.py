"""Draw what the runs of examples/trl_grpo.py logged, and print their numbers for docs/trainers.md.

python docs/trainers.py report/trl1 report/trl2 ... --beside report/mask1 report/mask2 ...
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

OUT = Path(__file__).parent / "images" / "trl.png"


def series(folders: list[Path], name: str) -> Any:
    """`[runs, steps]` of one number that was logged."""
    logs = [json.loads((folder / "log.json").read_text()) for folder in folders]
    return np.array([[row[name] for row in log if name in row] for log in logs])


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", nargs="+", type=Path)
    parser.add_argument("--beside", nargs="+", type=Path, required=True)
    args = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), layout="constrained")
    runs = (("seq_tis(2), reweigh", "#0072B2", "-", args.ours), ("sequence_mask, TRL", "#D55E00", "--", args.beside))
    for label, colour, dash, folders in runs:
        reward = series(folders, "reward")
        steps = np.arange(1, reward.shape[1] + 1)
        left.plot(steps, reward.mean(0), dash, color=colour, label=label)
        left.fill_between(steps, reward.min(0), reward.max(0), color=colour, alpha=0.15, linewidth=0)
        used = series(folders, "sampling/importance_sampling_ratio/mean")
        right.plot(steps, used.mean(0), dash, color=colour, label=label)
        first, last = reward[:, :6].mean(1), reward[:, -6:].mean(1)
        print(f"{label}: reward in the first and last 6 steps")
        for a, b in zip(first, last, strict=True):
            print(f"  {a:.3f} -> {b:.3f}")
        print(f"  mean weight {used.mean():.3f}, sd of the sequence's log ratio "
              f"{series(folders, 'reweigh/sequence/sd').mean():.2f} nats")  # fmt: skip
    left.set(xlabel="step", ylabel="reward: share of the letter e")
    right.set(xlabel="step", ylabel="mean weight of a batch")
    right.axhline(1, color="#999999", linewidth=0.8)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT, dpi=120)


if __name__ == "__main__":
    main()
