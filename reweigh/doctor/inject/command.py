"""The command that lists the faults, measures them and writes cases: `python -m reweigh.doctor.faults`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from reweigh.doctor import faults
from reweigh.doctor.inject.fault import LEVELS, Fault, Level
from reweigh.doctor.inject.worlds import World


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m reweigh.doctor.faults", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--table", action="store_true", help="measure each fault's log ratio")
    parser.add_argument("--out", type=Path, help="folder to write cases to")
    parser.add_argument("--world", choices=("tiny", "moe", "smollm2"), default="tiny")
    parser.add_argument("--world-seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", action="append", help="a cause, or a cause and variant; again for more")
    parser.add_argument("--strength", choices=LEVELS, action="append", help="default: all three")
    options = parser.parse_args(arguments)
    if options.list:
        for fault in faults.FAULTS:
            print(
                f"{fault.name:36} {fault.what} Strength: {fault.unit}; "
                f"{fault.weak:g}, {fault.medium:g}, {fault.strong:g}. Worlds: {', '.join(fault.worlds)}."
            )
    if not (options.table or options.out):
        return
    torch.set_num_threads(1)
    world = faults.world_of(options.world, options.world_seed)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"{'fault':36} {'level':7} {'strength':>8} {'tokens':>7} {'mean |log ratio|':>16} {'k1':>9} {'mean ratio - 1':>14}"
    )
    for fault, level in _wanted(options.fault, options.strength or LEVELS, world):
        case = faults.commit(fault, world, level, options.tokens, options.seed)
        if options.out:
            case.write(options.out / f"{fault.name}-{level}-{options.seed}.parquet")
        delta = log_ratio(case)
        with np.errstate(over="ignore"):
            ratio = float(np.expm1(delta).mean())
        print(
            f"{fault.name:36} {level:7} {case.strengths[0]:8g} {len(delta):7d} {np.abs(delta).mean():16.2e} "
            f"{-delta.mean():9.2e} {ratio:14.2e}"
        )
        sys.stdout.flush()


def log_ratio(case: faults.Case) -> np.ndarray:
    """log_pi - log_mu of the tokens in the mask, nats."""
    flat = {
        name: np.concatenate([np.asarray(x) for x in case.table[name].to_pylist()])
        for name in ("log_pi", "log_mu", "mask")
    }
    return (flat["log_pi"] - flat["log_mu"])[flat["mask"].astype(bool)]


def _wanted(names: list[str] | None, levels: tuple[Level, ...], world: World) -> Iterator[tuple[Fault, Level]]:
    for fault in faults.FAULTS:
        if world.name in fault.worlds and (not names or fault.id in names or fault.name in names):
            done: set[float] = set()
            for level in levels:
                if fault.strength(level) not in done:
                    done.add(fault.strength(level))
                    yield fault, level
