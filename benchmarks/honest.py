"""How often an honest run is called wrong: the identity on synthetic honest pairs, and the verdict on clean worlds.

    python benchmarks/honest.py                     # 200 batches of each kind of honest pair: seconds a kind
    python benchmarks/honest.py --worlds 400        # and so many batches of five trained worlds: minutes

An honest pair samples tokens from mu and scores them by pi, both from the same logits but for a perturbation that does
not look at the token: rounding, rare flips as of a router, a policy some updates behind, an engine in few bits. So the
mean ratio is 1 at every state, whatever the tail. The chance of a false alarm in a run of 1,000 steps follows from the
largest odds that any batch reaches: a fair bet reaches 1/a by chance in a of all batches at most.
"""

# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
# pyarrow ships no types.

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, judge, summarise
from reweigh.records import RecordWriter
from reweigh.stats.tail import IDENTITY_ALPHA, log_odds_above_1

if TYPE_CHECKING:
    from faults import WorldName

Noise = Callable[[Tensor, torch.Generator], Tensor]
VOCABULARY = 64  # tokens; so few that a batch of states is drawn exactly


def _normal(size: float) -> Noise:
    return lambda logits, g: logits + size * torch.randn(logits.shape, generator=g)


def _flips(share: float, size: float) -> Noise:
    """A few states are off by much, as where another expert is chosen."""

    def apply(logits: Tensor, g: torch.Generator) -> Tensor:
        hit = torch.rand(*logits.shape[:-1], 1, generator=g) < share
        return logits + torch.where(hit, size * torch.randn(logits.shape, generator=g), 0.01)

    return apply


def _stale(size: float) -> Noise:
    """All states are off alike, as with weights of some updates before."""

    def apply(logits: Tensor, g: torch.Generator) -> Tensor:
        return logits + size * torch.randn(VOCABULARY, generator=g) + size / 4 * torch.randn(logits.shape, generator=g)

    return apply


KINDS: dict[str, tuple[Noise, int, int]] = {
    "float32": (_normal(1e-5), 64, 100),
    "bfloat16": (_normal(0.05), 64, 100),
    "bfloat16, long": (_normal(0.04), 64, 800),
    "8 bits": (_normal(0.3), 64, 100),
    "4 bits": (_normal(1.0), 64, 100),
    "a router's flips": (_flips(0.02, 1.5), 64, 100),
    "flips, far": (_flips(0.005, 4.0), 64, 100),
    "stale": (_stale(0.2), 64, 100),
    "stale, dying": (_stale(1.2), 128, 24),
    "few responses": (_normal(0.1), 8, 50),
}
"""By name: the perturbation, responses of a batch, tokens of a response."""


def honest(kind: str, seed: int) -> Batch:
    """One batch of an honest pair: prompts with four responses each, entropy that differs from state to state."""
    noise, rows, length = KINDS[kind]
    g = torch.Generator().manual_seed(seed)
    sharp = 0.5 + 4 * torch.rand(rows, length, 1, generator=g)
    logits = sharp * torch.randn(rows, length, VOCABULARY, generator=g)
    log_mu, log_pi = logits.log_softmax(-1), noise(logits, g).log_softmax(-1)
    token = torch.multinomial(log_mu.exp().view(-1, VOCABULARY), 1, generator=g).view(rows, length, 1)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=g)
    mask = torch.arange(length)[None] < lengths
    group = torch.arange(rows) // 4
    return Batch.padded(log_pi.gather(-1, token)[..., 0], log_mu.gather(-1, token)[..., 0], mask, group=group)


def count(kind: str, batches: int, seed: int = 0) -> tuple[int, float, Counter[str]]:
    """False alarms of the identity, the largest odds in its favour, nats, and what the verdicts said."""
    alarms, odds, actions = 0, -math.inf, Counter[str]()
    for i in range(batches):
        stats = RatioStats.of_levels(honest(kind, seed + i), (TOKEN, SEQUENCE))
        alarms += any(not summarise(one).identity for one in stats)
        odds = max(odds, *(log_odds_above_1(one.host) for one in stats))
        actions[judge(*stats).action] += 1
    return alarms, odds, actions


WORLDS: "tuple[tuple[WorldName, str], ...]" = (
    ("tiny", "numerics-bf16"),
    ("prose", "numerics-bf16"),
    ("sums", "numerics-bf16-both"),
    ("long", "numerics-bf16-both"),
    ("moe", "none-float32"),
)
TOKENS, SIZE = 60_000, 5_000


def clean_batches(folder: Path, batches: int) -> Iterator[Path]:
    """Batches of some 5,000 tokens of runs without a fault, world by world; those of a world share a training."""
    from faults import commit, find, world_of

    done, seed = 0, 500
    while done < batches:
        for name, variant in WORLDS:
            case = commit(find(variant), world_of(name), "medium", TOKENS, seed, training_seed=0, with_prefill=False)
            for part in _cut(case.table):
                path = folder / f"{done}.parquet"
                with RecordWriter(path, case.info) as writer:
                    writer.write_table(part)
                yield path
                path.unlink()
                done += 1
                if done == batches:
                    return
        seed += 1


def _cut(table: pa.Table) -> list[pa.Table]:
    parts, first, tokens = list[pa.Table](), 0, 0
    for i, row in enumerate(table["mask"].to_pylist(), 1):
        tokens += sum(row)
        if tokens >= SIZE:
            parts.append(table.slice(first, i - first))
            first, tokens = i, 0
    return parts


def worlds(batches: int) -> Counter[str]:
    """What the audit says of clean batches, its doctor asked."""
    from reweigh.audit import audit
    from reweigh.doctor import doctor

    found = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for path in clean_batches(Path(folder), batches):
            told = replace(audit(path, estimators={}), diagnosis=doctor(path)).verdict
            found[f"{told.level}: {told.action}"] += 1
            if told.level != "ok":
                print(f"  {path.name}: {told}", flush=True)
            if found.total() % 40 == 0:
                print(f"  {found.total()}: {dict(found)}", flush=True)
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200, help="of each kind of honest pair; 0 for none")
    parser.add_argument("--worlds", type=int, default=0, help="clean batches of trained worlds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    limit = math.log(1 / IDENTITY_ALPHA)
    print(
        f"An alarm above 1 needs odds of {limit:.1f} nats.\n\n| honest pair | alarms | largest odds, nats | verdicts |"
    )
    print("|---|---|---|---|")
    for kind in KINDS if args.batches else ():
        alarms, odds, actions = count(kind, args.batches, args.seed)
        said = ", ".join(f"{name} {n}" for name, n in actions.most_common())
        print(f"| {kind} | {alarms} of {args.batches} | {odds:.1f} | {said} |", flush=True)
    if args.worlds:
        print(f"\nOf {args.worlds} clean batches of the worlds:", dict(worlds(args.worlds)))


if __name__ == "__main__":
    main()
