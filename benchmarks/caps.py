"""Efficiency of every cap rule on worlds that can be enumerated: medians of Gamma, as markdown.

    python benchmarks/caps.py                     # two minutes on one core
    python benchmarks/caps.py --reward pairs      # other rewards, or --seed 0: how much a row owes to its worlds
    python benchmarks/caps.py --reference         # ten times 30 worlds, beside what was found elsewhere; three minutes

Each world: V = 3, T = 7, Markov policies, a binary reward, baseline J(mu). Gamma_N is the share of the progress of the
true gradient that a step over N sequences can promise (`reweigh.theory.sga.Moments.efficiency`). A rule marked "law" is
given the exact law of the sequence ratio, which nobody has, and its Gamma is exact; a rule marked "batch" chooses its
cap on the N sequences that it weighs, as `seq_tis(cap=rule)` does, and its Gamma is from `--draws` batches of each
world.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from reweigh import (
    CapRule,
    Estimator,
    balance,
    cubic,
    naive,
    post,
    post_batch,
    prefix_tis,
    seq_mis,
    seq_tis,
    token_is,
    token_tis,
    tradeoff,
)
from reweigh.caps import balance_cap, cubic_cap, post_batch_cap, post_cap, sqrt_n_cap, tradeoff_cap
from reweigh.theory.lab import Advantage, AnyAdvantage, Reward, World, exact, random_policies, random_world
from reweigh.theory.laws import FiniteRatio

GAPS = (0.18, 0.9, 1.33)  # nats between the logits of pi and mu
BATCHES = (64, 1024)
GRID = tuple(2 ** (k / 4) for k in range(-16, 33))  # caps tried for the best one
FIXED: dict[str, Callable[[], Estimator]] = {
    "naive": naive,
    "token_tis(2)": lambda: token_tis(2.0),
    "seq_tis, no cap": lambda: seq_tis(float("inf")),
    "seq_tis(1)": lambda: seq_tis(1.0),
    "seq_tis(2)": lambda: seq_tis(2.0),
}
OF_LAW: dict[str, Callable[[FiniteRatio, int], float]] = {
    "post (law)": lambda law, n: post_cap(max(0.0, law.chi2)),
    "post_batch (law)": lambda law, n: post_batch_cap(max(0.0, law.chi2), n),
    "cubic (law)": lambda law, n: cubic_cap(max(0.0, law.chi2), n),
    "sqrt_n": lambda law, n: sqrt_n_cap(n),
    "balance (law)": balance_cap,
    "tradeoff (law)": tradeoff_cap,
}
OF_BATCH: tuple[CapRule, ...] = (post(), post_batch(), cubic(), balance(), tradeoff())
VALUE, CRITIC = Reward("value"), Advantage("pi")

# A table of the same kind by other code, on worlds of its own, of which 1 + chi2, V, T and the baseline are known.
REFERENCE = {
    "naive": (0.839, 0.625, 0.475, 0.768, 0.585),
    "token_is": (0.842, 0.641, 0.428, 0.871, 0.762),
    "token_tis(2)": (0.842, 0.716, 0.583, 0.896, 0.744),
    "token_is, critic of pi": (0.967, 0.903, 0.828, 0.955, 0.913),
    "prefix_tis(2), critic of pi": (0.967, 0.916, 0.853, 0.964, 0.913),
    "seq_tis, no cap": (0.835, 0.238, 0.006, 0.833, 0.085),
    "seq_tis(2)": (0.838, 0.578, 0.376, 0.863, 0.708),
    "seq_mis(2)": (0.837, 0.491, 0.294, 0.713, 0.556),
    "post (law)": (0.841, 0.540, 0.165, 0.893, 0.705),
    "balance (law)": (0.841, 0.500, 0.243, 0.914, 0.654),
    "best cap of all": (0.848, 0.699, 0.568, 0.929, 0.790),
}
REFERENCE_M2 = (1.11, 13.7, 371, 13.7, 371)
REFERENCE_PLACES = ((64, 0), (64, 1), (64, 2), (1024, 1), (1024, 2))  # N and gap of each column
SETS = 10


@dataclass(frozen=True, eq=False)
class Case:
    """A world with what the table asks of it."""

    world: World

    @cached_property
    def log_ratio(self) -> Tensor:
        """`[L]`, of each sequence."""
        return self.world.batch.log_ratio.sum(-1)

    @cached_property
    def law(self) -> FiniteRatio:
        """Of the sequence ratio."""
        return FiniteRatio(self.log_ratio.numpy(), self.world.mu.numpy())

    @cached_property
    def gradients(self) -> Tensor:
        """`[L, params]`: of each sequence with weight 1."""
        s = self.world.sampled
        return s.dense(torch.where(s.mask, VALUE.of(self.world), 0))

    def with_estimator(self, estimator: Estimator, n: int, advantage: AnyAdvantage = VALUE) -> float:
        """Exact Gamma."""
        return exact(self.world, estimator, advantage).efficiency(n)

    def reference_row(self, n: int) -> dict[str, float]:
        """Gamma of everything that `REFERENCE` has."""
        fixed = {"naive": naive(), "token_is": token_is(), "token_tis(2)": token_tis(2.0)}
        fixed |= {"seq_tis, no cap": seq_tis(float("inf")), "seq_tis(2)": seq_tis(2.0), "seq_mis(2)": seq_mis(high=2.0)}
        fixed |= {name: seq_tis(OF_LAW[name](self.law, n)) for name in ("post (law)", "balance (law)")}
        row = {name: self.with_estimator(estimator, n) for name, estimator in fixed.items()}
        row["token_is, critic of pi"] = self.with_estimator(token_is(), n, CRITIC)
        row["prefix_tis(2), critic of pi"] = self.with_estimator(prefix_tis(2.0), n, CRITIC)
        row["best cap of all"] = max(self.with_estimator(seq_tis(c), n) for c in GRID)
        return row

    def with_rule(self, rule: CapRule, batches: Tensor) -> float:
        """Gamma from batches of sequences, `[draws, n]` indices, each with the cap that the rule finds for it."""
        n = batches.shape[1]
        l = self.log_ratio[batches]
        caps = torch.stack([rule.log_cap(row, torch.ones_like(row, dtype=torch.bool)) for row in l])
        weights = torch.minimum(l, caps[:, None]).exp() / n
        counts = torch.zeros(len(batches), len(self.log_ratio), dtype=torch.float64).scatter_add(1, batches, weights)
        steps = counts @ self.gradients
        g = self.world.gradient
        along = float(steps.mean(0) @ g)
        return max(along, 0.0) ** 2 / float(g @ g) / float(steps.square().sum(1).mean())


def pairs_world(gap: float, seed: int) -> World:
    """Reward 1 if the scores of neighbouring tokens, drawn from a normal distribution, sum to more than 0."""
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed + 77), dtype=torch.float64).tolist()
    policies = random_policies(3, 7, 1, None, gap, 0.0, seed)
    return World.scored(policies, lambda y: float(sum(scores[a][b] for a, b in pairwise(y)) > 0))


def majority_world(gap: float, seed: int) -> World:
    """Reward 1 if token 0 comes up three times or more."""
    return World.scored(random_policies(3, 7, 1, None, gap, 0.0, seed), lambda y: float(y.count(0) >= 3))


def noise_world(gap: float, seed: int) -> World:
    """Reward 0 or 1 by a coin for each sequence: hardly any signal."""
    return random_world(3, 7, 1, None, gap, 0.0, "binary", seed)


REWARDS = {"majority": majority_world, "pairs": pairs_world, "noise": noise_world}


def cases(make: Callable[[float, int], World], gap: float, worlds: int, seed: int) -> Iterator[Case]:
    """The first worlds from a seed on in which there is anything to learn."""
    while worlds:
        case = Case(make(gap, seed))
        if float(case.world.gradient.norm()) > 1e-9:
            worlds -= 1
            yield case
        seed += 1


def column(found: list[Case], n: int, draws: int) -> dict[str, float]:
    """Median Gamma of each row of the table at one gap and batch size."""
    gamma: dict[str, list[float]] = {}
    for seed, case in enumerate(found):
        g = torch.Generator().manual_seed(seed)
        batches = torch.multinomial(case.world.mu, draws * n, True, generator=g).view(draws, n)
        row = {name: case.with_estimator(make(), n) for name, make in FIXED.items()}
        row |= {name: case.with_estimator(seq_tis(rule(case.law, n)), n) for name, rule in OF_LAW.items()}
        row |= {f"{rule} (batch)": case.with_rule(rule, batches) for rule in OF_BATCH}
        row["best cap of all"] = max(case.with_estimator(seq_tis(c), n) for c in GRID)
        for name, value in row.items():
            gamma.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in gamma.items()}


def beside_the_reference(worlds: int) -> None:
    """Print, of ten sets of worlds, the median and the range of each median, and how often the reference is inside."""
    rows: dict[str, list[str]] = {"1 + chi2": [], **{name: [] for name in REFERENCE}}
    inside = 0
    for place, (n, gap) in enumerate(REFERENCE_PLACES):
        found: dict[str, list[float]] = {}
        for k in range(SETS):
            some = list(cases(majority_world, GAPS[gap], worlds, 1000 * k))
            found.setdefault("1 + chi2", []).append(statistics.median(c.law.m2 for c in some))
            each = [case.reference_row(n) for case in some]
            for name in REFERENCE:
                found.setdefault(name, []).append(statistics.median(row[name] for row in each))
        for name, values in found.items():
            given, digits = (REFERENCE_M2, ".3g") if name == "1 + chi2" else (REFERENCE[name], ".3f")
            low, middle, high = min(values), statistics.median(values), max(values)
            inside += name in REFERENCE and round(low, 3) <= given[place] <= round(high, 3)
            rows[name].append(f"{given[place]:{digits}}: {middle:{digits}} [{low:{digits}}, {high:{digits}}]")
    heads = [f"N={n}, gap {GAPS[gap]}" for n, gap in REFERENCE_PLACES]
    print(f"| {SETS} sets of {worlds} worlds | {' | '.join(heads)} |")
    print("|---|" + "---|" * len(heads))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\n{inside} of {len(REFERENCE) * len(REFERENCE_PLACES)} figures of the reference are inside the range.")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=REWARDS, default="majority")
    parser.add_argument("--worlds", type=int, default=30)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000, help="of the first world")
    parser.add_argument("--reference", action="store_true", help="compare with a table that was computed elsewhere")
    args = parser.parse_args()
    if args.reference:
        beside_the_reference(args.worlds)
        return
    heads, columns = [], []
    for n in BATCHES:
        for gap in GAPS:
            found = list(cases(REWARDS[args.reward], gap, args.worlds, args.seed))
            heads.append(f"N={n}, 1+chi2={statistics.median(c.law.m2 for c in found):.3g}")
            columns.append(column(found, n, args.draws))
    print(f"| `{args.reward}`, {args.worlds} worlds | {' | '.join(heads)} |")
    print("|---|" + "---|" * len(heads))
    for name in columns[0]:
        label = name.replace("n=None, ", "").replace("n=None", "").replace("noise=16.0", "").replace("(, ", "(")
        print(f"| {label} | " + " | ".join(f"{c[name]:.3f}" for c in columns) + " |")


if __name__ == "__main__":
    main()
