"""Fits the doctor's confidences on cases of many worlds, and judges each world by weights that it had no part in.

Of each cause a logistic regression (scikit-learn, L2) over the numbers of `reweigh.doctor.confidence.features`. A case
is looked at whole and in a sample, with all columns and with fewer, some of them left out at random.
"""

import functools
import json
import pickle
import random
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from doctor_cases import TOKENS, counted, each, samples, say, view

from faults import find
from faults.loops import clean_loops, lagging_loops, run
from reweigh.doctor import CAUSES, CauseId, Diagnosis
from reweigh.doctor.confidence import limited
from reweigh.doctor.diagnose import Weighing, weighing
from reweigh.scan.engines import single_threaded

PENALTY = 6.0  # C of scikit-learn
LOOPS = "loops"  # their world
LARGE = 30_000  # tokens of a case from which it is looked at as one of `TOKENS`
Weights = tuple[tuple[str, ...], dict[CauseId, np.ndarray]]
"""Names of the numbers that go in, and the weights of each cause."""
_LEFT_OUT = (
    *(("entropy_pi",), ("token_ids",), ("versions",), ("step",), ("prompt_length",), ("pack_index",), ("turns",)),
    *(("log_pi_repeat",), ("log_mu_prefill",), ("advantage",), ("prompt_id",), ("trainer_version",)),
)
_VERSIONS = ("versions", "trainer_version")


@dataclass(frozen=True)
class Look:
    """One way of looking at one case.

    Attributes:
        world: in which it was committed.
        case: its name.
        truth: causes that are there.
        unsure: causes of which nobody can say whether they are there: in no regression of theirs.
        columns: what was looked at.
        weighing: what the tests concluded, and the numbers that the regressions read.
        part: of the looks at its case; they count as one.
    """

    world: str
    case: str
    truth: frozenset[CauseId]
    unsure: frozenset[CauseId]
    columns: str
    weighing: Weighing
    part: float


def truth_of(name: str, world: str) -> tuple[frozenset[CauseId], frozenset[CauseId]]:
    """Says what is there in a case by the names of its faults, and of what nobody can say it."""
    faults = name.split("+")
    truth: set[CauseId] = {find(one).id for one in faults}
    unsure: set[CauseId] = set()
    if "stale_kv-partial" in faults:  # its first tokens were sampled by older weights
        truth.add("stale_weights")
    if world == "moe" and truth != {"none"}:  # bfloat16 alone picks other experts at near ties
        unsure |= {"moe_routing", "numerics", "quantised_rollout"}
    return frozenset(truth), frozenset(unsure)


def looks_of(path: Path, salt: int, ways: Collection[str] = ()) -> list[Look]:
    """Looks at one case in all ways, or in some."""
    single_threaded()
    table = pq.read_table(path)
    kind = path.stem.split("~")
    if kind[0] == "loop":
        world, name, lag = LOOPS, path.stem, "lag" in kind[1]
        truth: frozenset[CauseId] = frozenset({"stale_weights"} if lag else {"numerics"})
        unsure: frozenset[CauseId] = frozenset(
            {"update_below_precision", "weight_sync"} if lag else {"none", "numerics", "moe_routing"}
        )
    else:
        name, world = kind[0], kind[3]
        truth, unsure = truth_of(name, world)
    found: list[tuple[str, Weighing]] = []
    for columns, some in ways_of(table, path.stem, salt):
        if ways and columns not in ways:
            continue
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            pq.write_table(some, file.name)
            found.append((columns, weighing(file.name)))
    return [Look(world, name, truth, unsure, columns, one, 1 / len(found)) for columns, one in found]


def ways_of(table: pa.Table, name: str, salt: int) -> Iterator[tuple[str, pa.Table]]:
    """Gives the whole with three sets of columns, a sample of 4,000 tokens, and the whole without random columns."""
    if not name.startswith("loop") and int(counted(table).sum()) > LARGE:
        for columns in ("all", "one-pass", "minimal"):
            yield f"{columns}, {TOKENS:,} tokens", view(table, columns)
        return
    for columns in ("all", "one-pass", "minimal"):
        yield columns, view(table, columns)
    for some in samples(table, 4000, 1, salt):
        yield "all, 4,000 tokens", some
    random_ = random.Random(name)
    for _ in range(3):
        drop = [c for group in _LEFT_OUT for c in group if random_.random() < 0.5 and c in table.column_names]
        yield "random", table.drop_columns(drop)
    if name.startswith("loop") or "stale" in name:
        versions = [c for c in _VERSIONS if c in table.column_names]
        yield "no versions", table.drop_columns(versions)
        yield "no versions, no entropies", table.drop_columns([*versions, "entropy_pi"])


def make_loops(folder: Path, clean: int, lagging: int, first_seed: int) -> None:
    """Runs small training loops and keeps their records, those that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    loops = [(f"loop~clean~{i}", one) for i, one in enumerate(clean_loops(clean, first_seed))]
    loops += [(f"loop~lag~{i}", one) for i, one in enumerate(lagging_loops(lagging, 1000 + first_seed))]
    for n, (name, loop) in enumerate(loops, 1):
        path = folder / f"{name}~{loop.policy}~{loop.seed}.parquet"
        if not path.is_file():
            pq.write_table(run(loop), path)
            say(f"{n}/{len(loops)} {path.name}")


def looked_at(folder: Path, kept: Path, processes: int = 1, ways: Collection[str] = ()) -> list[Look]:
    """Looks at all cases of a folder, in all ways or in some; what was looked at before is taken from a file beside
    them.
    """
    before: dict[str, list[Look]] = pickle.loads(kept.read_bytes()) if kept.is_file() else {}
    there = sorted(folder.glob("*.parquet"))
    missing = [path for path in there if path.name not in before]
    work = functools.partial(_look, ways=ways)
    for n, (path, looks) in enumerate(zip(missing, each(work, missing, processes), strict=True), 1):
        before[path.name] = looks
        if n % 20 == 0 or n == len(missing):
            kept.write_bytes(pickle.dumps(before))
            say(f"{n}/{len(missing)} {path.name}")
    return [look for path in there for look in before[path.name]]


def _look(path: Path, ways: Collection[str]) -> list[Look]:
    return looks_of(path, sum(path.name.encode()), ways)


def names_of(looks: Iterable[Look]) -> tuple[str, ...]:
    """Lists the numbers that two looks in a hundred have at least, by name."""
    looks = list(looks)
    count = Counter(name for look in looks for name in look.weighing.features)
    return tuple(sorted(name for name, n in count.items() if n >= 0.02 * len(looks)))


def fitted(looks: Sequence[Look], names: Sequence[str], penalty: float = PENALTY) -> dict[CauseId, np.ndarray]:
    """Fits the weights of each cause that some case has: `[1 + names]`, the constant first."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as e:
        raise SystemExit(
            "error: scikit-learn is not installed: it fits the weights\nhint: pip install scikit-learn"
        ) from e

    x = matrix([look.weighing for look in looks], names)
    found: dict[CauseId, np.ndarray] = {}
    for cause in CAUSES:
        known = np.array([cause not in look.unsure for look in looks])
        y = np.array([cause in look.truth for look in looks])
        part = np.array([look.part for look in looks])
        if not y[known].any():
            continue
        model = LogisticRegression(C=penalty, max_iter=3000)
        model.fit(x[known], y[known], part[known])
        found[cause] = np.concatenate([model.intercept_, model.coef_[0]])
    return found


def matrix(weighings: Sequence[Weighing], names: Sequence[str]) -> np.ndarray:
    """Puts numbers into columns; 0 where there is none."""
    return np.array([[limited(one.features.get(name, 0.0)) for name in names] for one in weighings])


def weights_without(looks: Sequence[Look], world: str, penalty: float = PENALTY) -> Weights:
    """Fits on all worlds but one."""
    learnt = [look for look in looks if look.world != world]
    names = names_of(learnt)
    return names, fitted(learnt, names, penalty)


def judged(
    looks: Sequence[Look], penalty: float = PENALTY, *, learnt: Sequence[Look] | None = None
) -> list[tuple[Look, Diagnosis]]:
    """Diagnoses each world by weights that were fitted on all others, of these looks or of `learnt`."""
    learnt = looks if learnt is None else learnt
    found: list[tuple[Look, Diagnosis]] = []
    for world in sorted({look.world for look in looks}):
        asked = [look for look in looks if look.world == world]
        weights = weights_without(learnt, world, penalty)
        told = _told([look.weighing for look in asked], weights)
        found += [(look, look.weighing.diagnosis(one)) for look, one in zip(asked, told, strict=True)]
        others = sum(look.world != world for look in learnt)
        say(f"{world}: {len(asked)} looks, judged by {others} at others")
    return found


def diagnosed(weights: Weights, path: Path) -> Diagnosis:
    """Diagnoses a file by these weights."""
    one = weighing(path)
    return one.diagnosis(_told([one], weights)[0], programs=())


def _told(weighings: Sequence[Weighing], weights: Weights) -> list[dict[CauseId, float]]:
    names, rows = weights
    x = np.concatenate([np.ones((len(weighings), 1)), matrix(weighings, names)], 1)
    p = 1 / (1 + np.exp(-np.clip(x @ np.array(list(rows.values())).T, -30, 30)))
    return [dict(zip(rows, row.tolist(), strict=True)) for row in p]


def save(path: Path, looks: Sequence[Look], penalty: float = PENALTY) -> None:
    """Fits on all worlds and writes the weights as the doctor reads them, to four digits."""
    names = names_of(looks)
    weights = fitted(looks, names, penalty)
    cases = len({(look.world, look.case, look.truth) for look in looks})
    source = (
        f"scikit-learn, logistic regression, L2, C = {penalty:g}; {len(looks):,} looks at {cases:,} kinds of cases of "
        f"{', '.join(sorted({look.world for look in looks}))}"
    )
    rows = [f'"{cause}":[{",".join(f"{x:.4g}" for x in w)}]' for cause, w in weights.items()]
    text = (
        f'{{"source":{json.dumps(source)},\n"features":{json.dumps(names)},\n"weights":{{\n'
        + ",\n".join(rows)
        + "\n}}\n"
    )
    json.loads(text)
    path.write_text(text)
