"""What the doctor says of each case of its benchmark, and how often that is right."""

import functools
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from doctor_cases import Run, each, samples, say, view, written
from scipy.stats import beta

from reweigh.doctor import Diagnosis, doctor
from reweigh.scan.engines import single_threaded

VIEWS = ("all", "one-pass", "minimal")
SIZES = (50_000, 10_000, 2_000)


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
        columns: the way of looking, see `doctor_cases.view`.
        draw: which of the run's samples of that size.
        verdict: said.
        causes: said, the likeliest first, suspicions included.
        confidence: of each.
        cannot_tell: what the data could not decide.
        seconds: it took.
    """

    faults: tuple[str, ...]
    truth: tuple[str, ...]
    level: str
    seed: int
    world: str
    size: int
    tokens: int
    columns: str
    draw: int
    verdict: str
    causes: tuple[str, ...]
    confidence: tuple[float, ...]
    cannot_tell: tuple[str, ...]
    seconds: float

    def within(self, first: int) -> bool:
        """True if all that was committed is among the first causes."""
        return set(self.truth) <= set(self.causes[:first])

    @property
    def right(self) -> bool:
        """True if the verdict is what was committed."""
        return self.verdict in self.truth

    @property
    def apart(self) -> "Apart | None":
        """Why this variant is listed apart, if it is."""
        return APART.get(self.faults[0]) if len(self.faults) == 1 else None

    @property
    def fair(self) -> bool:
        """`right`; for variants that are listed apart, by what the log-probs can tell."""
        if self.apart is None:
            return self.right
        return self.verdict in self.apart.also or self.within(self.apart.first)


@dataclass(frozen=True)
class Apart:
    """A variant that log-probs alone do not tell from another cause.

    Attributes:
        reason: why.
        also: causes that are no mistake.
        first: among so many first causes its own counts as found.
    """

    reason: str
    also: tuple[str, ...] = ()
    first: int = 1


APART: dict[str, Apart] = {
    "position_encoding-gap": Apart(
        "positions left out between prompt and response set every response token farther from its prompt, and from "
        "nothing else: that is what another prefix does, and `template_prefix` is no mistake",
        also=("template_prefix",),
    ),
    "stale_kv-partial": Apart(
        "the tokens before the change of weights were really sampled by older weights, so `stale_weights` is there as "
        "well: found if `stale_kv` is among the first two",
        first=2,
    ),
}


def score(
    runs: Sequence[Run],
    folder: Path,
    *,
    sizes: Sequence[int] = SIZES,
    views: Sequence[str] = VIEWS,
    draws: int = 2,
    processes: int = 1,
) -> list[Answer]:
    """Ask the doctor about each run that is there, whole and in samples; runs that are not are named."""
    there = [run for run in runs if (folder / run.file).is_file()]
    if missing := len(runs) - len(there):
        say(f"{missing} of {len(runs)} runs are not in {folder}: they are left out. `generate` makes them.")
    work = functools.partial(answers_of, folder=folder, sizes=tuple(sizes), views=tuple(views), draws=draws)
    out: list[Answer] = []
    for n, found in enumerate(each(work, there, processes), 1):
        out += found
        wrong = sorted({f"{a.size}/{a.columns}: {a.verdict}" for a in found if not a.fair})
        say(f"{n}/{len(there)} {there[n - 1].file}: {'; '.join(wrong) or 'right'}")
    return out


def answers_of(run: Run, folder: Path, sizes: Sequence[int], views: Sequence[str], draws: int) -> list[Answer]:
    """All answers about one run."""
    single_threaded()
    table = pq.read_table(folder / run.file)
    out: list[Answer] = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            parts = [table] if size >= run.tokens else samples(table, size, draws, run.seed)
            for columns in views:
                for draw, path in enumerate(written((view(part, columns) for part in parts), Path(scratch))):
                    out.append(ask(run, path, size, columns, draw))
    return out


def ask(run: Run, path: Path, size: int, columns: str = "all", draw: int = 0) -> Answer:
    """One answer."""
    start = time.perf_counter()
    found: Diagnosis = doctor(path, programs=())
    return Answer(
        run.faults,
        run.causes,
        run.level,
        run.seed,
        run.world,
        size,
        found.tokens,
        columns,
        draw,
        found.verdict,
        tuple(one.id for one in found.causes),
        tuple(round(one.confidence, 3) for one in found.causes),
        tuple(one.id for one in found.cannot_tell),
        time.perf_counter() - start,
    )


def exact_interval(hits: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's (1934) 95% interval of a share."""
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def smallest(answers: Iterable[Answer], size: int, columns: str = "all") -> dict[str, str]:
    """By variant, the lowest level from which on every answer is right; "never" if the strongest is not."""
    by: dict[str, dict[str, list[bool]]] = {}
    for a in answers:
        if a.size == size and a.columns == columns and len(a.faults) == 1:
            by.setdefault(a.faults[0], {}).setdefault(a.level, []).append(a.fair)
    found: dict[str, str] = {}
    for name, levels in by.items():
        least = "never"
        for level in ("strong", "medium", "weak"):
            if level not in levels:  # not made, or of the medium's strength
                continue
            if not all(levels[level]):
                break
            least = level
        found[name] = least
    return found


def save(answers: Sequence[Answer], path: Path) -> None:
    """As JSON, an object an answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(a) for a in answers], indent=0))


def load(path: Path) -> list[Answer]:
    """What `save` wrote."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    tuples = ("faults", "truth", "causes", "confidence", "cannot_tell")
    for row in rows:
        row.update({name: tuple(row[name]) for name in tuples})
    return [Answer(**row) for row in rows]
