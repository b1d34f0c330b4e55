"""The cases of the doctor's benchmark: which there are, how they are made, kept and cut, and what the doctor says of
one."""

import functools
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import beta

from faults import PAIRS, Fault, Level, World, WorldName, commit, find, pair, world_of
from reweigh.doctor import CauseId, Diagnosis, doctor
from reweigh.scan.engines import in_order, single_threaded

P = TypeVar("P")
R = TypeVar("R")
TOKENS = 50_000
MODELS = 2  # worlds of one kind, made and trained from seeds 0 and 1: a run's seed chooses one
MINIMAL = ("sequence_id", "prompt_id", "log_mu", "log_pi", "mask")
SECOND_LOOK = ("log_pi_repeat", "log_mu_prefill")
LEVEL_ORDER: tuple[Level, ...] = ("medium", "strong", "weak")
CLEAN = ("numerics-bf16", "numerics-bf16-both", "numerics-fp16", "none-float32")
QUANTISED = tuple(f"quantised_rollout-{kind}" for kind in ("int8", "int8-dynamic", "fp8", "int4", "fp8-kv"))


@dataclass(frozen=True)
class Run:
    """One run with its faults, as it is kept in a file.

    Attributes:
        faults: names of one or two variants.
        level: of both.
        seed: of the run; it also chooses the model.
        tokens: in the responses, about.
        world: kind of model.
    """

    faults: tuple[str, ...]
    level: Level
    seed: int
    tokens: int = TOKENS
    world: WorldName = "tiny"

    @property
    def causes(self) -> tuple[CauseId, ...]:
        """What is to be found."""
        return tuple(find(name).id for name in self.faults)

    @property
    def file(self) -> str:
        """Its name holds all that it was made by, so that a changed strength is another file."""
        strengths = "+".join(f"{find(name).strength(self.level):g}" for name in self.faults)
        names = "+".join(self.faults)
        return f"{names}~{self.level}~{strengths}~{self.world}~{self.seed}~{self.tokens}.parquet"


def runs_of(
    faults: Sequence[Fault],
    seeds: dict[Level, int],
    *,
    tokens: int = TOKENS,
    worlds: Sequence[WorldName] = ("tiny",),
    levels: Sequence[Level] = LEVEL_ORDER,
) -> list[Run]:
    """Every fault at every level, a seed at a time, levels in order; a level of the medium's strength is left out."""
    return [
        Run((fault.name,), level, seed, tokens, world)
        for world in worlds
        for level in levels
        for seed in range(seeds[level])
        for fault in faults
        if world in fault.worlds
        if level == "medium" or fault.strength(level) != fault.medium
    ]


def clean_runs(
    draws: int, worlds: Sequence[WorldName], kinds: Sequence[str] = CLEAN, first_seed: int = 100, tokens: int = TOKENS
) -> list[Run]:
    """Gives runs without a fault, each with its seed: worlds and kinds in turn, where a world can have them."""
    able = [(world, kind) for kind, world in product(kinds, worlds) if world in find(kind).worlds]
    return [
        Run((kind,), "medium", first_seed + i, tokens, world)
        for i in range(draws)
        for world, kind in [able[i % len(able)]]
    ]


def pair_runs(seeds: int, worlds: Sequence[WorldName], tokens: int = TOKENS) -> list[Run]:
    """Gives runs with two faults, both at medium strength."""
    return [
        Run(two, "medium", seed, tokens, world)
        for world in worlds
        for seed in range(seeds)
        for two in PAIRS
        if all(world in find(name).worlds for name in two)
    ]


def generate(runs: Sequence[Run], folder: Path, processes: int = 1) -> int:
    """Make the runs that are not there yet, the slow parts that they share first; how many were made."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if not (folder / run.file).is_file()]
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them in {folder}, {len(missing)} to make")
    worlds: list[tuple[WorldName, int]] = sorted({(run.world, run.seed % MODELS) for run in missing})
    for n, one in enumerate(each(_prepare, worlds, processes), 1):
        say(f"model {n} of {len(worlds)}: {one}")
    start = time.monotonic()
    work = functools.partial(make, folder=folder)
    for n, (run, seconds) in enumerate(zip(missing, each(work, missing, processes), strict=True), 1):
        left = (time.monotonic() - start) / n * (len(missing) - n)
        say(f"{n}/{len(missing)} {run.file} {seconds:.0f} s; {left / 60:.0f} min left")
    return len(missing)


def make(run: Run, folder: Path) -> float:
    """Make one run and keep it; seconds that it took."""
    single_threaded()
    start = time.monotonic()
    world = _world(run.world, run.seed % MODELS)
    first, *others = [find(name) for name in run.faults]
    with_looks = {"with_repeat": True, "with_prefill": True}
    if others:
        case = pair((first, run.level), (others[0], run.level), world, run.tokens, run.seed, **with_looks)
    else:
        trained_by = run.seed % MODELS
        case = commit(first, world, run.level, run.tokens, run.seed, training_seed=trained_by, **with_looks)
    path = folder / run.file
    # RecordWriter goes by the end of the name
    handle, part = tempfile.mkstemp(dir=folder, prefix=".making-", suffix=".parquet")
    os.close(handle)
    try:
        case.write(Path(part))
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return time.monotonic() - start


def _prepare(which: tuple[WorldName, int]) -> str:
    single_threaded()
    _world(*which)
    return f"{which[0]} {which[1]}"


@functools.lru_cache(maxsize=2)
def _world(name: WorldName, seed: int) -> World:
    return world_of(name, seed)


def each(work: Callable[[P], R], parts: Sequence[P], processes: int) -> Iterator[R]:
    """`work` of each part, in order, in this process or in others."""
    if processes <= 1 or len(parts) < 2:
        yield from map(work, parts)
    else:
        yield from in_order(work, parts, min(processes, len(parts)), "benchmark", "run it with fewer --processes.")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def counted(table: pa.Table) -> np.ndarray:
    """Tokens in the mask of each response."""
    mask = table["mask"].combine_chunks()
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(mask).to_numpy(zero_copy_only=False))])
    inside = np.concatenate([[0], np.cumsum(mask.flatten().to_numpy(zero_copy_only=False))])
    return np.diff(inside[ends])


def samples(table: pa.Table, tokens: int, draws: int, salt: int = 0) -> list[pa.Table]:
    """Up to `draws` disjoint samples of `tokens` tokens each, about: all responses to some prompts, over all steps.

    Prompts are taken in the order of a hash of their ids, so that each sample has every step of the run in it. The
    first rows of a file would be its first steps alone.
    """
    prompts = np.asarray(table["prompt_id"].to_pylist(), dtype=object)
    sizes = counted(table)
    names = sorted(set(prompts), key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())
    size_of = {name: int(sizes[prompts == name].sum()) for name in names}
    found: list[pa.Table] = []
    chosen: list[str] = []
    filled = 0
    for name in names:
        chosen.append(name)
        filled += size_of[name]
        if filled >= tokens:
            found.append(table.filter(pa.array(np.isin(prompts, np.asarray(chosen, dtype=object)))))
            chosen, filled = [], 0
        if len(found) == draws:
            break
    return found


def view(table: pa.Table, name: str) -> pa.Table:
    """The columns of a way of looking: "all"; "one-pass" without a second look of either side; "minimal"."""
    if name == "minimal":
        return table.select(list(MINIMAL))
    if name == "one-pass":
        return table.drop_columns([c for c in SECOND_LOOK if c in table.column_names])
    return table


def written(tables: Iterable[pa.Table], folder: Path) -> Iterator[Path]:
    """Each as a record file of its own, one at a time, gone when the next is asked for."""
    for i, table in enumerate(tables):
        path = folder / f"sample-{i}.parquet"
        pq.write_table(table, path)
        yield path
        path.unlink()


@dataclass(frozen=True)
class Answer:
    """What was said of one sample of one case.

    Attributes:
        faults: committed, by variant.
        truth: their causes.
        level: of the strengths.
        seed: of the run.
        world: kind of model.
        size: tokens asked for.
        tokens: there were.
        draw: which of the run's samples of that size.
        verdict: said.
        causes: said, the likeliest first, suspicions included.
        confidence: of each.
        seconds: it took.
    """

    faults: tuple[str, ...]
    truth: tuple[str, ...]
    level: str
    seed: int
    world: str
    size: int
    tokens: int
    draw: int
    verdict: str
    causes: tuple[str, ...]
    confidence: tuple[float, ...]
    seconds: float

    @property
    def right(self) -> bool:
        """True if the verdict is what was committed."""
        return self.verdict in self.truth


def ask(
    run: Run,
    path: Path,
    size: int,
    draw: int = 0,
    diagnose: Callable[[Path], Diagnosis] = doctor,
) -> Answer:
    """Ask the doctor, or `diagnose` in its place, about a sample of a run."""
    start = time.perf_counter()
    found = diagnose(path)
    return Answer(
        run.faults,
        run.causes,
        run.level,
        run.seed,
        run.world,
        size,
        found.tokens,
        draw,
        found.verdict,
        tuple(one.id for one in found.causes),
        tuple(round(one.confidence, 3) for one in found.causes),
        time.perf_counter() - start,
    )


def exact_interval(hits: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's (1934) 95% interval of a share."""
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return low, high
