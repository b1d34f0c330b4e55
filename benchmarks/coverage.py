"""How often 95% intervals cover the truth, and how often moments are refused, for log-normal ratios: as markdown.

    python benchmarks/coverage.py                      # about two minutes on one core
    python benchmarks/coverage.py --draws 200          # a look
    python benchmarks/coverage.py --s2 2 --n 256       # another cell

Each draw is a batch of N sequences with `log r ~ N(-s2/2, s2)` under mu, whose every truth has a closed form
(`reweigh.theory.laws.LogNormalRatio`). It goes the way that a user's batch goes: Batch, RatioStats, and from there
`summarise`, `excess`, `lost`, `min2` and `bootstrap`.
"""

import argparse
import math
import statistics
from dataclasses import dataclass, field

import torch

from reweigh import SEQUENCE, Batch, RatioStats, summarise
from reweigh.stats.intervals import Number
from reweigh.stats.summary import bootstrap, excess, lost, min2
from reweigh.stats.tail import mean_ratio
from reweigh.theory.laws import LogNormalRatio

S2 = (0.25, 1.0, 4.0, 9.0)
UNITS = (64, 1024)
CERTIFIED = (
    *("TV", "excess(2)", "excess(10)", "lost(2)", "lost(10)", "min2(2)", "Hellinger"),
    *("renyi2 at least", "unseen at most"),
)
SIDE = {"renyi2 at least": ">= ", "unseen at most": "<= "}
COMPANIONS = (
    *("TV, Bernstein", "excess(10), Bernstein", "lost(10), Bernstein"),
    *("TV, bootstrap", "mean ratio, t", "mean ratio, bootstrap", "KL by k1, t", "KL by k1, bootstrap"),
    "renyi2, bootstrap",
)


@dataclass
class Cell:
    """What was counted for one variance and batch size."""

    s2: float
    n: int
    draws: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    widths: dict[str, float] = field(default_factory=dict)
    refused: int = 0
    alarms: int = 0
    plug_in: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)

    def count(self, name: str, interval: tuple[float | None, float | None], truth: float) -> None:
        """One interval; of one that is open to a side (an end is None), the other end stands for the width."""
        low, high = interval
        inside = (low is None or low <= truth) and (high is None or truth <= high)
        self.hits[name] = self.hits.get(name, 0) + inside
        width = high if low is None else low if high is None else high - low
        assert width is not None
        self.widths[name] = self.widths.get(name, 0.0) + width

    def cover(self, name: str) -> float:
        """Share of draws whose interval held the truth."""
        return self.hits[name] / self.draws

    def width(self, name: str) -> float:
        """Mean width, or mean end of one that is open to a side."""
        return self.widths[name] / self.draws


def ends(number: Number) -> tuple[float | None, float | None]:
    """Of its interval."""
    return number.low, number.high


def run(s2: float, n: int, draws: int, seed: int = 0) -> Cell:
    """Count over `draws` batches of `n` sequences."""
    law, cell = LogNormalRatio(s2), Cell(s2, n, draws)
    g = torch.Generator().manual_seed(seed)
    mask, log_mu = torch.ones(n, 1), torch.full((n, 1), -60.0, dtype=torch.float64)
    for _ in range(draws):
        l = math.sqrt(s2) * torch.randn(n, 1, generator=g, dtype=torch.float64) - s2 / 2
        stats = RatioStats.of(Batch.padded(log_mu + l, log_mu, mask), SEQUENCE)
        s = summarise(stats)
        cell.count("TV", ends(s["tv"]), law.tv)
        cell.count("TV, Bernstein", ends(excess(stats, 1.0, "bernstein")), law.tv)
        for cap in (2.0, 10.0):
            cell.count(f"excess({cap:g})", ends(excess(stats, cap)), law.excess(cap))
            cell.count(f"lost({cap:g})", ends(lost(stats, cap)), law.lost(cap))
        cell.count("excess(10), Bernstein", ends(excess(stats, 10.0, "bernstein")), law.excess(10.0))
        cell.count("lost(10), Bernstein", ends(lost(stats, 10.0, "bernstein")), law.lost(10.0))
        cell.count("min2(2)", ends(min2(stats, 2.0)), law.min2(2.0))
        cell.count("Hellinger", ends(s["hellinger"]), law.hellinger2)
        cell.count("renyi2 at least", ends(s["renyi2_at_least"]), law.renyi2)
        cell.count("unseen at most", ends(s["unseen_at_most"]), 0.0)
        cell.count("mean ratio, t", mean_ratio(stats.host)[1:], 1.0)  # under a heavy tail `summarise` refuses it
        cell.count("KL by k1, t", ends(s["kl_k1"]), law.kl)
        optimistic = bootstrap(stats)
        cell.count("TV, bootstrap", optimistic["tv"], law.tv)
        cell.count("mean ratio, bootstrap", optimistic["mean_ratio"], 1.0)
        cell.count("KL by k1, bootstrap", optimistic["kl_k1"], law.kl)
        cell.count("renyi2, bootstrap", optimistic["renyi2"], law.renyi2)
        share = math.expm1(s["renyi2"].sample or 0.0) / law.chi2
        cell.plug_in.append(share)
        cell.alarms += not s.identity
        if s.refusal:
            cell.refused += 1
        else:
            cell.told.append(share)
    return cell


def covers(cells: list[Cell], names: tuple[str, ...]) -> str:
    """Coverage in percent, and mean width or mean end."""
    lines = ["| s2 | N | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for c in cells:
        shown = [f"{100 * c.cover(name):.1f}, {SIDE.get(name, '')}{c.width(name):.2g}" for name in names]
        lines.append(f"| {c.s2:g} | {c.n} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def refusals(cells: list[Cell]) -> str:
    """How often moments are refused, and where the plug-in chi-square lies."""
    heads = ("chi2", "refused", "plug-in / chi2, median", "below half", "median where told", "below half where told")
    lines = ["| s2 | N | " + " | ".join(heads) + " | identity alarms |", "|---|---|" + "---|" * (len(heads) + 1)]
    for c in cells:
        half = statistics.mean(x < 0.5 for x in c.plug_in)
        told = f"{statistics.median(c.told):.2g}" if c.told else "never told"
        told_half = f"{100 * statistics.mean(x < 0.5 for x in c.told):.1f}%" if c.told else ""
        lines.append(
            f"| {c.s2:g} | {c.n} | {math.expm1(c.s2):.3g} | {100 * c.refused / c.draws:.1f}% | "
            f"{statistics.median(c.plug_in):.2g} | {100 * half:.0f}% | {told} | {told_half} | "
            f"{100 * c.alarms / c.draws:.2g}% |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--s2", type=float, nargs="+", default=S2, help="variances of log r, nats squared")
    parser.add_argument("--n", type=int, nargs="+", default=UNITS, help="sequences of a batch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = [run(s2, n, args.draws, args.seed) for s2 in args.s2 for n in args.n]
    print(f"Intervals that hold: coverage in percent of {args.draws:,} draws, mean width (or mean end).\n")
    print(covers(cells, CERTIFIED))
    print("\nCompanions: the same.\n")
    print(covers(cells, COMPANIONS))
    print("\nRefusals.\n")
    print(refusals(cells))


if __name__ == "__main__":
    main()
