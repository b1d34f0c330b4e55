"""Commit a fault for real on a real language model, and get the records that a run with it would leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa

from reweigh.doctor.inject.bookkeeping import BOOKKEEPING
from reweigh.doctor.inject.case import run_table
from reweigh.doctor.inject.fault import LEVELS, Fault, Level
from reweigh.doctor.inject.normalisation import NORMALISATION
from reweigh.doctor.inject.other_policy import OTHER_POLICY
from reweigh.doctor.inject.other_weights import OTHER_WEIGHTS
from reweigh.doctor.inject.pairs import PAIRS
from reweigh.doctor.inject.smollm2 import smollm2_world
from reweigh.doctor.inject.specs import Specs
from reweigh.doctor.inject.worlds import World, WorldName, moe_world, tiny_world
from reweigh.records import RecordWriter, RunInfo

__all__ = [
    "CLEAN",
    "FAULTS",
    "LEVELS",
    "PAIRS",
    "Case",
    "Fault",
    "Level",
    "World",
    "clean",
    "commit",
    "find",
    "moe_world",
    "pair",
    "smollm2_world",
    "tiny_world",
    "world_of",
]

FAULTS: tuple[Fault, ...] = (*BOOKKEEPING, *NORMALISATION, *OTHER_POLICY, *OTHER_WEIGHTS)
"""Every fault that can be committed."""
Clean = Literal["bf16", "bf16-both", "float32"]
CLEAN: tuple[Clean, ...] = get_args(Clean)
"""Kinds of pairs without a fault: number types of the two sides."""


@dataclass(frozen=True, eq=False)
class Case:
    """A run with its faults.

    Attributes:
        table: one row a response, in the columns of the rollout record.
        info: what the run says of itself: nothing that gives the fault away.
        faults: those committed; none in a clean pair.
        strengths: of each.
    """

    table: pa.Table
    info: RunInfo
    faults: tuple[Fault, ...]
    strengths: tuple[float, ...]

    def write(self, path: Path) -> None:
        """Write it as a record file; values that a fault made impossible are written as they are."""
        with RecordWriter(path, self.info) as writer:
            writer.write_table(self.table)


def commit(
    fault: Fault,
    world: World,
    strength: float | Level,
    tokens: int,
    seed: int,
    *,
    with_repeat: bool | None = None,
    with_prefill: bool | None = None,
) -> Case:
    """Run the world with one fault.

    Args:
        fault: one of `FAULTS`.
        world: one of `fault.worlds`.
        strength: in the fault's unit, or a level.
        tokens: in the responses, about.
        seed: of training, prompts and samples; other seeds give other runs.
        with_repeat: also score twice; None is yes in the small worlds.
        with_prefill: also let the engine score its samples; None is yes in the small worlds.

    Raises:
        ValueError: the fault cannot be committed in this world.
    """
    return _committed([(fault, strength)], world, tokens, seed, with_repeat, with_prefill)


def pair(
    first: tuple[Fault, float | Level],
    second: tuple[Fault, float | Level],
    world: World,
    tokens: int,
    seed: int,
    *,
    with_repeat: bool | None = None,
    with_prefill: bool | None = None,
) -> Case:
    """Run the world with two faults at once, each with its strength: the changes of the first, then of the second."""
    return _committed([first, second], world, tokens, seed, with_repeat, with_prefill)


def clean(world: World, kind: Clean, tokens: int, seed: int) -> Case:
    """Run the world without a fault: the engine in bfloat16, both in bfloat16, or both in float32."""
    variant = {"bf16": "numerics-bf16", "bf16-both": "numerics-bf16-both", "float32": "none-float32"}[kind]
    return commit(find(variant), world, "medium", tokens, seed)


def find(name: str) -> Fault:
    """The fault of a name such as "shift-left".

    Raises:
        ValueError: none of that name.
    """
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise ValueError(f"faults: no fault {name!r}\nhint: one of {', '.join(f.name for f in FAULTS)}.")


def world_of(name: WorldName, seed: int = 0) -> World:
    """A world by its name."""
    return {"tiny": tiny_world, "moe": moe_world, "smollm2": smollm2_world}[name](seed)


def _committed(
    faults: Sequence[tuple[Fault, float | Level]],
    world: World,
    tokens: int,
    seed: int,
    with_repeat: bool | None,
    with_prefill: bool | None,
) -> Case:
    specs, strengths = Specs(), list[float]()
    for fault, strength in faults:
        if world.name not in fault.worlds:
            raise ValueError(
                f"commit: {fault.name} can be committed in {', '.join(fault.worlds)}, got world {world.name!r}\n"
                f"hint: world_of({fault.worlds[0]!r})."
            )
        strengths.append(fault.strength(strength) if isinstance(strength, str) else strength)
        specs = fault.change(specs, strengths[-1])
    small = world.name != "smollm2"
    table = run_table(
        world,
        specs,
        tokens=tokens,
        seed=seed,
        with_repeat=small if with_repeat is None else with_repeat,
        with_prefill=small if with_prefill is None else with_prefill,
    )
    info = RunInfo(engine="reweigh", trainer="reweigh", model=world.name, seed=seed)
    return Case(table, info, tuple(fault for fault, _ in faults), tuple(strengths))


if __name__ == "__main__":
    from reweigh.doctor.inject.command import main

    main()
