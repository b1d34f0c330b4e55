"""Fits the doctor's confidences on cases of many worlds, and judges each world by weights that it had no part in.

Of each cause a logistic regression (scikit-learn, L2) over the numbers of `reweigh.doctor.confidence.features`. A case
is looked at whole and in a sample, with all columns and with fewer, some of them left out at random.
"""

import json
import pickle
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from doctor_cases import each, samples, say, view
from doctor_score import exact_interval

from faults import find
from faults.loops import clean_loops, lagging_loops, run
from reweigh.doctor import CAUSES, CauseId, Diagnosis
from reweigh.doctor.confidence import limited
from reweigh.doctor.diagnose import Weighing, weighing
from reweigh.scan.engines import single_threaded

PENALTY = 6.0  # C of scikit-learn
HARMLESS: frozenset[str] = frozenset(("numerics", "none"))
LOOPS = "loops"  # their world
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

    def right(self, found: Diagnosis) -> bool:
        """Tells whether the first cause that is said is there; rounding is no other thing than nothing in a loop."""
        first = found.causes[0].id if found.causes else "none"
        return first in self.truth or (self.world == LOOPS and first in HARMLESS and bool(self.truth & HARMLESS))


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


def looks_of(path: Path, salt: int) -> list[Look]:
    """Looks at one case in all ways."""
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
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            pq.write_table(some, file.name)
            found.append((columns, weighing(file.name)))
    return [Look(world, name, truth, unsure, columns, one, 1 / len(found)) for columns, one in found]


def ways_of(table: pa.Table, name: str, salt: int) -> Iterator[tuple[str, pa.Table]]:
    """Gives the whole with three sets of columns, a sample of 4,000 tokens, and the whole without random columns."""
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


def looked_at(folder: Path, kept: Path, processes: int = 1) -> list[Look]:
    """Looks at all cases of a folder; what was looked at before is taken from a file beside them."""
    before: dict[str, list[Look]] = pickle.loads(kept.read_bytes()) if kept.is_file() else {}
    missing = [path for path in sorted(folder.glob("*.parquet")) if path.name not in before]
    for n, (path, looks) in enumerate(zip(missing, each(_look, missing, processes), strict=True), 1):
        before[path.name] = looks
        if n % 20 == 0 or n == len(missing):
            kept.write_bytes(pickle.dumps(before))
            say(f"{n}/{len(missing)} {path.name}")
    return [look for looks in before.values() for look in looks]


def _look(path: Path) -> list[Look]:
    return looks_of(path, salt=sum(path.name.encode()))


def names_of(looks: Iterable[Look]) -> tuple[str, ...]:
    """Lists the numbers that two looks in a hundred have at least, by name."""
    looks = list(looks)
    count = Counter(name for look in looks for name in look.weighing.features)
    return tuple(sorted(name for name, n in count.items() if n >= 0.02 * len(looks)))


def fitted(looks: Sequence[Look], names: Sequence[str], penalty: float = PENALTY) -> dict[CauseId, np.ndarray]:
    """Fits the weights of each cause that some case has: `[1 + names]`, the constant first."""
    from sklearn.linear_model import LogisticRegression

    x = matrix(looks, names)
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


def matrix(looks: Sequence[Look], names: Sequence[str]) -> np.ndarray:
    """Puts numbers into columns; 0 where a look has none."""
    return np.array([[limited(look.weighing.features.get(name, 0.0)) for name in names] for look in looks])


def judged(looks: Sequence[Look], penalty: float = PENALTY) -> list[tuple[Look, Diagnosis]]:
    """Diagnoses each world by weights that were fitted on all others."""
    found: list[tuple[Look, Diagnosis]] = []
    for world in sorted({look.world for look in looks}):
        learnt, asked = ([x for x in looks if (x.world == world) == own] for own in (False, True))
        names = names_of(learnt)
        weights = fitted(learnt, names, penalty)
        x = np.concatenate([np.ones((len(asked), 1)), matrix(asked, names)], 1)
        p = 1 / (1 + np.exp(-np.clip(x @ np.array(list(weights.values())).T, -30, 30)))
        found += [
            (look, look.weighing.diagnosis(dict(zip(weights, row.tolist(), strict=True))))
            for look, row in zip(asked, p, strict=True)
        ]
        say(f"{world}: {len(asked)} looks, judged by {len(learnt)} at others")
    return found


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


def answered_table(found: Sequence[tuple[Look, Diagnosis]]) -> str:
    """Shows by world and columns how many are answered, and how many of the answers are wrong."""
    rows = [
        "| world | columns | cases looked at | answered | wrong of the answers | 95% |",
        "|---|---|---|---|---|---|",
    ]
    for world in ("all", *sorted({look.world for look, _ in found})):
        for columns in dict.fromkeys(look.columns for look, _ in found):
            some = [(x, d) for x, d in found if world in ("all", x.world) and x.columns == columns]
            if world == "all":
                some = [(x, d) for x, d in some if x.world != LOOPS]
            if not some:
                continue
            answers = [(x, d) for x, d in some if d.decided]
            wrong = sum(not x.right(d) for x, d in answers)
            low, high = exact_interval(wrong, len(answers)) if answers else (0.0, 1.0)
            share = f"{wrong / len(answers):.1%}" if answers else "-"
            rows.append(
                f"| {'all but loops' if world == 'all' else world} | {columns} | {len(some)} | "
                f"{len(answers) / len(some):.0%} | {wrong} ({share}) | {low:.1%} to {high:.1%} |"
            )
    return "\n".join(rows)


def risk_table(found: Sequence[tuple[Look, Diagnosis]], columns: str = "all") -> str:
    """Shows the share of wrong answers if only the surest are given: a risk-coverage curve in ten rows."""
    some = sorted(
        ((d.causes[0].confidence if d.causes else 0.0, x.right(d)) for x, d in found if x.columns == columns),
        reverse=True,
    )
    rows = ["| share answered | least confidence | wrong |", "|---|---|---|"]
    for tenth in range(1, 11):
        first = some[: max(1, round(len(some) * tenth / 10))]
        rows.append(f"| {tenth * 10}% | {first[-1][0]:.2f} | {sum(not ok for _, ok in first) / len(first):.1%} |")
    return "\n".join(rows)


def calibration_table(found: Sequence[tuple[Look, Diagnosis]]) -> tuple[str, float]:
    """Shows how often the first cause is right by what confidence is told, and the expected calibration error."""
    told = np.array([(d.causes[0].confidence, x.right(d)) for x, d in found if d.causes])
    rows, error = ["| told | answers | mean confidence | right |", "|---|---|---|---|"], 0.0
    for low in np.arange(0, 1, 0.1):
        some = told[(told[:, 0] >= low) & (told[:, 0] < low + 0.1)]
        if len(some):
            rows.append(
                f"| {low:.1f} to {low + 0.1:.1f} | {len(some)} | {some[:, 0].mean():.2f} | {some[:, 1].mean():.2f} |"
            )
            error += len(some) / len(told) * abs(some[:, 0].mean() - some[:, 1].mean())
    return "\n".join(rows), float(error)


def confusion_table(found: Sequence[tuple[Look, Diagnosis]], columns: str = "all") -> str:
    """Shows by variant of fault what was said, abstentions included."""
    rows = ["| committed | cases | right | not decided | said else |", "|---|---|---|---|---|"]
    kinds = sorted({look.case for look, _ in found if look.world != LOOPS})
    for kind in kinds:
        some = [(x, d) for x, d in found if x.case == kind and x.columns == columns]
        right = sum(d.decided and x.right(d) for x, d in some)
        silent = sum(not d.decided for _, d in some)
        wrong = Counter(d.verdict for x, d in some if d.decided and not x.right(d))
        said = ", ".join(f"`{name}` {n}" for name, n in wrong.most_common())
        rows.append(f"| {kind} | {len(some)} | {right} | {silent} | {said} |")
    return "\n".join(rows)


def loops_table(found: Sequence[tuple[Look, Diagnosis]]) -> str:
    """Shows what is said of loops without a fault, and of those whose sampler is late."""
    rows = ["| loops | columns | looked at | verdicts | false causes |", "|---|---|---|---|---|"]
    loops = [(x, d) for x, d in found if x.world == LOOPS]
    for kind in ("clean", "lag"):
        for columns in dict.fromkeys(look.columns for look, _ in loops):
            some = [(x, d) for x, d in loops if kind in x.case and x.columns == columns]
            said = Counter(d.verdict for _, d in some)
            fine = {"not_decided", *(HARMLESS if kind == "clean" else {"stale_weights", *HARMLESS})}
            false = sum(n for name, n in said.items() if name not in fine)
            words = ", ".join(f"`{name}` {n}" for name, n in said.most_common())
            rows.append(f"| {kind} | {columns} | {len(some)} | {words} | {false} |")
    return "\n".join(rows)


def whole_table(found: Sequence[tuple[Look, Diagnosis]]) -> str:
    """Puts all tables under each other."""
    calibration, error = calibration_table(found)
    parts: Mapping[str, str] = {
        "Answered, and wrong": answered_table(found),
        "Training loops": loops_table(found),
        "Risk against coverage, all columns": risk_table(found),
        f"Calibration: expected error {error:.3f}": calibration,
        "What was said, all columns": confusion_table(found),
    }
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts.items())
