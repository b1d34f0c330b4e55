"""Tables and pictures of what the doctor said in worlds that its weights were not fitted on, from `judged.json`."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from doctor_cases import exact_interval
from doctor_fit import LOOPS, Look
from matplotlib import pyplot as plt

from reweigh.doctor import Diagnosis
from reweigh.doctor.diagnosis import NAMED

mpl.use("Agg")
HARMLESS: frozenset[str] = frozenset(("numerics", "none"))
ROUNDS: frozenset[str] = HARMLESS | {"quantised_rollout"}  # of pairs without a fault
VIEWS: Mapping[str, str] = {
    "all": "all columns",
    "one-pass": "no second pass of either side",
    "minimal": "five columns",
}
"""Ways of looking that are drawn, with their words."""


@dataclass(frozen=True)
class Said:
    """What was said of one case in one way of looking.

    Attributes:
        world: of the case.
        case: its name.
        columns: the way of looking, see `doctor_fit.ways_of`.
        truth: causes that are there.
        verdict: said.
        causes: said, the likeliest first.
        confidence: of each.
    """

    world: str
    case: str
    columns: str
    truth: tuple[str, ...]
    verdict: str
    causes: tuple[str, ...]
    confidence: tuple[float, ...]

    @property
    def decided(self) -> bool:
        """True if it is an answer."""
        return self.verdict != "not_decided"

    @property
    def right(self) -> bool:
        """True if the first cause is there; rounding is no other thing than nothing in a training loop."""
        first = self.causes[0] if self.causes else "none"
        return first in self.truth or (self.world == LOOPS and first in HARMLESS and bool(HARMLESS & set(self.truth)))

    @property
    def sure(self) -> float:
        """Confidence in the first cause."""
        return self.confidence[0] if self.confidence else 0.0

    @classmethod
    def of(cls, look: Look, found: Diagnosis) -> "Said":
        """Keep what counts of a diagnosis."""
        causes = tuple(one.id for one in found.causes)
        sure = tuple(round(one.confidence, 3) for one in found.causes)
        return cls(look.world, look.case, look.columns, tuple(sorted(look.truth)), found.verdict, causes, sure)


def rows_of(found: Iterable[Said]) -> list[dict[str, Any]]:
    """For JSON."""
    return [vars(one) | {"causes": list(zip(one.causes, one.confidence, strict=True))} for one in found]


def load(path: Path) -> list[Said]:
    """Read what `rows_of` gave."""
    return [
        Said(
            row["world"],
            row["case"],
            row["columns"],
            tuple(row["truth"]),
            row["verdict"],
            tuple(name for name, _ in row["causes"]),
            tuple(sure for _, sure in row["causes"]),
        )
        for row in json.loads(path.read_text())
    ]


def answered_table(found: Sequence[Said]) -> str:
    """Shows by world and columns how many are answered, and how many of the answers are wrong: of single faults, and
    with those that have none.
    """
    found = [x for x in found if "+" not in x.case]
    rows = [
        "| world | columns | looks | answered | wrong, of the answers | 95% |",
        "|---|---|---|---|---|---|",
    ]
    worlds = sorted({one.world for one in found})
    # Few looks of a world have a way of looking that is not drawn.
    groups = [("all but loops", set(worlds) - {LOOPS}, columns) for columns in dict.fromkeys(x.columns for x in found)]
    faults = [x for x in found if x.world != LOOPS and not HARMLESS & set(x.truth)]
    for columns in VIEWS:
        if some := [x for x in faults if x.columns == columns]:
            answers = [x for x in some if x.decided]
            wrong = sum(not x.right for x in answers)
            share = len(answers) / len(some)
            rows.append(f"| faults alone | {columns} | {len(some)} | {share:.0%} | {_counted(wrong, len(answers))} |")
    groups += [(world, {world}, columns) for world in worlds for columns in VIEWS]
    for name, inside, columns in groups:
        if some := [x for x in found if x.columns == columns and x.world in inside]:
            answers = [x for x in some if x.decided]
            wrong = sum(not x.right for x in answers)
            rows.append(
                f"| {name} | {columns} | {len(some)} | "
                f"{len(answers) / len(some):.0%} | {_counted(wrong, len(answers))} |"
            )
    return "\n".join(rows)


def _counted(hits: int, n: int) -> str:
    """`3 (1.5%) | 0.3% to 4.3%`."""
    low, high = exact_interval(hits, n) if n else (0.0, 1.0)
    return f"{hits} ({hits / n if n else 0:.1%}) | {low:.1%} to {high:.1%}"


def alarms_table(found: Sequence[Said]) -> str:
    """Shows what is said of pairs without a fault, rounded or quantised: any other cause is a false alarm."""
    clean = [x for x in found if x.world != LOOPS and set(x.truth) <= ROUNDS]
    kinds = sorted({x.truth[0] for x in clean}, key=["none", "numerics", "quantised_rollout"].index)
    rows = [
        "| pairs | columns | looks | not decided | false alarms | 95% | they were |",
        "|---|---|---|---|---|---|---|",
    ]
    for columns in dict.fromkeys(x.columns for x in clean):
        for kind in (*kinds, ""):
            some = [x for x in clean if x.columns == columns and kind in ("", x.truth[0])]
            false = Counter(x.verdict for x in some if x.decided and x.verdict not in ROUNDS)
            words = ", ".join(f"`{name}` {n}" for name, n in false.most_common())
            silent = sum(not x.decided for x in some)
            name = f"`{kind}`" if kind else "together"
            rows.append(
                f"| {name} | {columns} | {len(some)} | {silent} | {_counted(false.total(), len(some))} | {words} |"
            )
    return "\n".join(rows)


def loops_table(found: Sequence[Said]) -> str:
    """Shows what is said of loops without a fault, and of those whose sampler is late."""
    rows = ["| loops | columns | looks | verdicts | false causes |", "|---|---|---|---|---|"]
    loops = [x for x in found if x.world == LOOPS]
    for kind in ("clean", "lag"):
        for columns in dict.fromkeys(x.columns for x in loops):
            some = [x for x in loops if kind in x.case and x.columns == columns]
            said = Counter(x.verdict for x in some)
            fine = {"not_decided", *(HARMLESS if kind == "clean" else {"stale_weights", *HARMLESS})}
            false = sum(n for name, n in said.items() if name not in fine)
            words = ", ".join(f"`{name}` {n}" for name, n in said.most_common())
            rows.append(f"| {kind} | {columns} | {len(some)} | {words} | {false} |")
    return "\n".join(rows)


def risk(found: Iterable[Said]) -> list[tuple[float, float, float]]:
    """Gives (share answered, share of them wrong, least confidence), the surest first; those that are equally sure are
    answered together."""
    some = sorted(found, key=lambda x: x.sure, reverse=True)
    curve: list[tuple[float, float, float]] = []
    wrong = 0
    for n, one in enumerate(some, 1):
        wrong += not one.right
        if n == len(some) or some[n].sure < one.sure:
            curve.append((n / len(some), wrong / n, one.sure))
    return curve


def risk_table(found: Sequence[Said], columns: str = "all") -> str:
    """Shows the share of wrong answers if only the surest are given."""
    curve = risk(x for x in found if x.columns == columns)
    rows = ["| least confidence | share answered | wrong |", "|---|---|---|"]
    for least in (0.99, 0.95, 0.9, NAMED, 0.7, 0.5, 0.0):
        kept = [point for point in curve if point[2] >= least]
        if kept:
            rows.append(f"| {least:.2f} | {kept[-1][0]:.0%} | {kept[-1][1]:.1%} |")
    return "\n".join(rows)


def tenths(found: Iterable[Said]) -> list[tuple[float, list[Said]]]:
    """Gives those whose confidence is in each tenth that some is in, by its lower end."""
    by: dict[int, list[Said]] = {}
    for one in found:
        if one.causes:
            by.setdefault(min(int(one.sure * 10 + 1e-9), 9), []).append(one)
    return [(tenth / 10, by[tenth]) for tenth in sorted(by)]


def calibration_error(found: Iterable[Said]) -> float:
    """Works out the expected calibration error: by tenths, the mean confidence less the share that is right."""
    parts = [some for _, some in tenths(found)]
    return sum(abs(sum(x.sure - x.right for x in some)) for some in parts) / max(sum(map(len, parts)), 1)


def calibration_table(found: Sequence[Said]) -> str:
    """Shows how often the first cause is right by what confidence is told."""
    rows = ["| told | looks | mean confidence | right | 95% |", "|---|---|---|---|---|"]
    for low, some in tenths(found):
        right = sum(x.right for x in some)
        a, b = exact_interval(right, len(some))
        rows.append(
            f"| {low:.1f} to {low + 0.1:.1f} | {len(some)} | {np.mean([x.sure for x in some]):.2f} | "
            f"{right / len(some):.2f} | {a:.2f} to {b:.2f} |"
        )
    return "\n".join(rows)


def confusion_table(found: Sequence[Said], columns: str = "all") -> str:
    """Shows by variant of fault what was said, abstentions included."""
    rows = ["| committed | cases | right | not decided | said else |", "|---|---|---|---|---|"]
    for kind in sorted({x.case for x in found if x.world != LOOPS and "+" not in x.case}):
        some = [x for x in found if x.case == kind and x.columns == columns]
        right = sum(x.decided and x.right for x in some)
        silent = sum(not x.decided for x in some)
        wrong = Counter(x.verdict for x in some if x.decided and not x.right)
        said = ", ".join(f"`{name}` {n}" for name, n in wrong.most_common())
        rows.append(f"| `{kind}` | {len(some)} | {right} | {silent} | {said} |")
    return "\n".join(rows)


def pairs_table(found: Sequence[Said]) -> str:
    """Shows of two faults at once how often both are named, and how often the first that is named is there."""
    rows = ["| columns | pairs | both named | first named is there | not decided |", "|---|---|---|---|---|"]
    pairs = [x for x in found if "+" in x.case and len(x.truth) > 1]
    for columns in VIEWS:
        if some := [x for x in pairs if x.columns == columns]:
            named = [{c for c, sure in zip(x.causes, x.confidence, strict=True) if sure >= NAMED} for x in some]
            both = sum(set(x.truth) <= names for x, names in zip(some, named, strict=True))
            answers = [x for x in some if x.decided]
            rows.append(
                f"| {VIEWS[columns]} | {len(some)} | {both} ({both / len(some):.0%}) | "
                f"{sum(x.right for x in answers)} of {len(answers)} | {len(some) - len(answers)} |"
            )
    return "\n".join(rows)


def whole_table(found: Sequence[Said]) -> str:
    """Puts all tables under each other."""
    single = [x for x in found if "+" not in x.case]
    parts: Mapping[str, str] = {
        "Answered, and wrong": answered_table(found),
        "Pairs without a fault": alarms_table(found),
        "Training loops": loops_table(found),
        "Two faults at once": pairs_table(found),
        "Risk against coverage, all columns": risk_table(single),
        f"Calibration: expected error {calibration_error(single):.3f}": calibration_table(single),
        "What was said, all columns": confusion_table(found),
    }
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts.items())


def risk_picture(found: Sequence[Said], path: Path) -> None:
    """Draws the share of wrong answers against the share that is answered, the surest first."""

    def draw(axes: Any) -> None:
        for columns, words in VIEWS.items():
            curve = risk(x for x in found if x.columns == columns)
            if not curve:
                continue
            share, wrong, _ = np.array(curve).T
            (drawn,) = axes.plot(100 * share, 100 * wrong, label=words)
            named = [point for point in curve if point[2] >= NAMED]
            if named:
                axes.plot(100 * named[-1][0], 100 * named[-1][1], "o", color=drawn.get_color())
        axes.set_xlim(0, 100)
        axes.set_ylim(0)
        axes.set_xlabel("answered, percent of the looks, the surest first")
        axes.set_ylabel("wrong, percent of the answers")
        axes.set_title(f"Risk against coverage; dots: what is named, at {NAMED} and over", fontsize=10)
        axes.legend(frameon=False)

    _drawn(draw, path)


def calibration_picture(found: Sequence[Said], path: Path) -> None:
    """Draws how often the first cause is right against the confidence that is told, with the count of looks."""

    def draw(axes: Any) -> None:
        parts = [some for _, some in tenths(found)]
        sure = np.array([np.mean([x.sure for x in some]) for some in parts])
        hits = [sum(x.right for x in some) for some in parts]
        share = np.array([n / len(some) for n, some in zip(hits, parts, strict=True)])
        ends = np.array([exact_interval(n, len(some)) for n, some in zip(hits, parts, strict=True)]).T
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.errorbar(sure, share, np.abs(ends - share), fmt="o", capsize=3)
        for x, y, some in zip(sure, ends[0], parts, strict=True):
            axes.annotate(
                f"{len(some):,}", (x, y), (0, -4), textcoords="offset points", ha="center", va="top", fontsize=8
            )
        axes.axvline(NAMED, color="0.5", linestyle=":", linewidth=1)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence in the first cause; from the dotted line on it is named")
        axes.set_ylabel("share of looks in which it is right")
        error = calibration_error(found)
        axes.set_title(f"Reliability, all looks (their number below); expected error {error:.3f}", fontsize=10)

    _drawn(draw, path)


def _drawn(draw: Callable[[Any], None], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    draw(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
