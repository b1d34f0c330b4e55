"""Write the tables of what centring does to an estimator's error into docs/centring.md, exactly, from the lab.

python docs/centring.py            # rewrites the tables
python docs/centring.py --check    # says whether they are up to date; exit code 1 if not
python docs/centring.py FILE       # prints them for the worlds of another golden file
"""

import json
import sys
from pathlib import Path

import torch

from reweigh import (
    centred,
    ctpo,
    dppo_tv,
    ipo,
    minpro,
    naive,
    pnpo,
    prefix_tis,
    rec_one_side,
    sapo,
    token_is,
    token_mis,
    token_tis,
)
from reweigh.theory.lab import PerSequence, Reward, exact, trap_a, trap_b
from reweigh.theory.lab.golden import world_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "centring.md"
GOLDEN = ROOT / "tests" / "data" / "golden_worlds.json"
START, END = "<!-- made by docs/centring.py -->\n", "\n<!-- /made -->"
N = 64  # sequences a batch

ESTIMATORS = {
    "naive()": naive(),
    "token_is()": token_is(),
    "token_tis(1)": token_tis(1.0),
    "token_tis(2)": token_tis(2.0),
    "token_mis()": token_mis(),
    "dppo_tv(.05, .05)": dppo_tv(0.05, 0.05),
    "ipo(.1)": ipo(0.1),
    "sapo()": sapo(),
    "rec_one_side()": rec_one_side(),
    "prefix_tis(2)": prefix_tis(2.0),
    "ctpo(.2, .2)": ctpo(0.2, 0.2),
    "pnpo()": pnpo(),
    "minpro()": minpro(),
}


def worlds(path: Path) -> dict:
    """The golden worlds, said to be small, and the two traps at 100 tokens."""
    given = json.loads(path.read_text())["instances"]
    out = {}
    for number, one in enumerate(given, 1):
        world = world_of(one)
        cut = ", mu cut off" if bool(torch.isinf(world.policies.log_mu).any()) else ""
        out[f"golden {number}: {world.policies.vocab} tokens, T = {world.policies.length}{cut}"] = world
    return out | {"trap A, T = 100": trap_a(100), "trap B, T = 100": trap_b(100)}


def tables(path: Path = GOLDEN) -> str:
    """Three tables: the drift, and the error without a baseline and with one."""
    named = worlds(path)
    columns = [*named]
    head = [f"| estimator | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    drift, raw, based = [*head], [*head], [*head]
    better, worse, count = 0, 0, 0
    for name, estimator in ESTIMATORS.items():
        cells = [[], [], []]
        for world in named.values():
            one = PerSequence(torch.ones(len(world.mu), dtype=torch.float64))
            size = float(world.gradient.norm())
            assert float(exact(world, centred(estimator), one).mean.norm()) < 1e-11 * max(1.0, size)
            cells[0].append(shown(float(exact(world, estimator, one).mean.norm()) / size))
            for out, advantage in ((cells[1], Reward()), (cells[2], Reward("value"))):
                both = [exact(world, e, advantage).mse(N) ** 0.5 / size for e in (estimator, centred(estimator))]
                better, worse = better + (both[1] < 0.98 * both[0]), worse + (both[1] > 1.02 * both[0])
                count += 1
                out.append(f"{shown(both[0])} -> {bold(shown(both[1]), both[1] < 0.98 * both[0])}")
        for table, row in zip((drift, raw, based), cells, strict=True):
            table.append(f"| `{name}` | {' | '.join(row)} |")
    parts = (
        f"In {count} cases below, centring takes 2% or more off the error in {better}, adds as much in {worse}, and "
        f"changes little in {count - better - worse}.",
        "**Drift**: the norm of the expected gradient under an advantage of 1, over that of the true gradient. "
        "Centred, every one is 0 (below 1e-11).",
        "\n".join(drift),
        f"**Error without a baseline**: root mean square error of the gradient of {N} sequences over the norm of the "
        "true one, plain -> centred; bold where centring takes 2% or more off it.",
        "\n".join(raw),
        "**Error with the mean reward as a baseline**, as a large group has it:",
        "\n".join(based),
    )
    return "\n\n".join(parts)


def shown(x: float) -> str:
    """Two digits, or 0."""
    return "0" if x < 5e-4 else f"{x:.2f}"


def bold(text: str, is_so: bool) -> str:
    """Mark it."""
    return f"**{text}**" if is_so else text


def page(text: str) -> str:
    """The page with its tables made again."""
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{PAGE}: must have one place for the tables")
    return before + START + tables() + END + after


def main() -> int:
    """Write, check, or print."""
    files = [a for a in sys.argv[1:] if not a.startswith("-")]
    if files:
        print(tables(Path(files[0])))
        return 0
    before = PAGE.read_text()
    made = page(before)
    if "--check" in sys.argv[1:]:
        print("stale: docs/centring.md; run: python docs/centring.py" if made != before else "up to date")
        return int(made != before)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
