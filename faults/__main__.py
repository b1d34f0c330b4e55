"""Lists the faults, measures them, and writes cases: `python -m faults`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from faults.case import Case, commit, world_of
from faults.catalogue import FAULTS, LEVELS, Fault, Level
from faults.worlds import RECIPES, World


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run; stdout is a table, a line a case."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the faults and their strengths")
    parser.add_argument("--table", action="store_true", help="commit each fault and measure its log ratio")
    parser.add_argument("--out", type=Path, help="the same, and write each case to this folder")
    parser.add_argument("--world", choices=(*RECIPES, "smollm2"), default="tiny")
    parser.add_argument("--world-seed", type=int, default=0, help="of the model that is trained on the spot")
    parser.add_argument("--tokens", type=int, default=20_000, help="in a case, about")
    parser.add_argument("--seed", type=int, default=0, help="of a run: its training, prompts and samples")
    parser.add_argument("--fault", action="append", default=[], help="a cause, or cause-variant; may be given again")
    parser.add_argument("--strength", choices=LEVELS, action="append", help="may be given again; default: all three")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.list or not (options.table or options.out):
        for fault in FAULTS:
            _say(_described(fault))
        return
    torch.set_num_threads(options.threads)
    world = world_of(options.world, options.world_seed)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    titles = ("fault", "level", "strength", "tokens", "mean |log ratio|", "k1", "mean ratio-1")
    _say("{:36} {:7} {:>8} {:>7} {:>16} {:>9} {:>12}".format(*titles))
    for fault, level in _wanted(options.fault, options.strength or LEVELS, world):
        case = commit(fault, world, level, options.tokens, options.seed)
        if options.out:
            case.write(options.out / f"{fault.name}-{level}-{options.seed}.parquet")
        delta = log_ratio(case)
        with np.errstate(over="ignore"):
            ratio = float(np.expm1(delta).mean())
        _say(
            f"{fault.name:36} {level:7} {case.strengths[0]:8g} {len(delta):7d} {np.abs(delta).mean():16.2e} "
            f"{-delta.mean():9.2e} {ratio:12.2e}"
        )


def log_ratio(case: Case) -> Float[np.ndarray, " N"]:
    """`log_pi - log_mu` of the tokens in the mask, nats."""
    log_pi, log_mu, mask = (np.concatenate(case.table[name].to_pylist()) for name in ("log_pi", "log_mu", "mask"))
    return (log_pi - log_mu)[mask]


def _described(fault: Fault) -> str:
    levels = ", ".join(f"{fault.strength(level):g}" for level in LEVELS)
    return f"{fault.name:36} {fault.what} Strength: {fault.unit} ({levels}). Worlds: {', '.join(fault.worlds)}."


def _wanted(names: Sequence[str], levels: Sequence[Level], world: World) -> Iterator[tuple[Fault, Level]]:
    for fault in FAULTS:
        if world.name in fault.worlds and (not names or fault.id in names or fault.name in names):
            done: set[float] = set()
            for level in levels:
                if fault.strength(level) not in done:
                    done.add(fault.strength(level))
                    yield fault, level


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
