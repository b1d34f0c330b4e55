"""The tables and pictures of the doctor's benchmark, from its answers."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from doctor_cases import same_as_medium
from doctor_score import APART, Answer, exact_interval, smallest
from matplotlib import pyplot as plt

from faults import LEVELS, find
from reweigh.doctor import CAUSES

mpl.use("Agg")
WAYS = {
    "all": "all columns",
    "one-pass": "without `log_pi_repeat` and `log_mu_prefill`",
    "minimal": "`sequence_id`, `prompt_id`, `log_mu`, `log_pi`, `mask` alone",
}


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """All figures of the tables, for programs."""
    sizes = sorted({a.size for a in answers}, reverse=True)
    cells = [
        {"columns": way, "tokens": size, "level": level} | _rates(_those(answers, size, way, level))
        for way in WAYS
        for size in sizes
        for level in LEVELS
        if _those(answers, size, way, level)
    ]
    return {
        "accuracy": cells,
        "confusion": {str(size): confusion(_those(answers, size, "all", "medium")) for size in sizes},
        "smallest": {str(size): smallest(answers, size) for size in sizes},
        "failures": [_failure(a) for a in answers if a.columns == "all" and not a.fair],
        "seconds_an_answer": float(np.median([a.seconds for a in answers])) if answers else None,
    }


def markdown(answers: Sequence[Answer]) -> str:
    """All tables."""
    biggest = max(a.size for a in answers)
    parts = [
        "### Accuracy",
        accuracy(answers),
        f"### By cause, medium, {biggest:,} tokens, all columns",
        by_cause(_those(answers, biggest, "all", "medium")),
        "### Listed apart",
        apart(answers, biggest),
        "### Smallest strength that is found, all columns",
        strengths(answers),
        "### Failures, all columns",
        failures(answers),
    ]
    return "\n\n".join(parts) + "\n"


def accuracy(answers: Sequence[Answer]) -> str:
    """Top one and two by tokens, level and columns."""
    rows = [
        "| columns | tokens | level | samples | top 1 | 95% | top 2 | top 1, those apart strictly | without them |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in summary(answers)["accuracy"]:
        low, high = cell["top1_interval"]
        rows.append(
            f"| {WAYS[cell['columns']]} | {cell['tokens']:,} | {cell['level']} | {cell['n']} | {_pc(cell['top1'])} | "
            f"{_pc(low)} to {_pc(high)} | {_pc(cell['top2'])} | {_pc(cell['top1_strict'])} | "
            f"{_pc(cell['top1_without_apart'])} |"
        )
    return "\n".join(rows)


def _rates(answers: Sequence[Answer]) -> dict[str, Any]:
    plain = [a for a in answers if a.apart is None]
    hits = sum(a.fair for a in answers)
    causes = sorted({a.truth[0] for a in answers})
    return {
        "n": len(answers),
        "top1": hits / len(answers),
        "top1_interval": exact_interval(hits, len(answers)),
        "top2": _mean(a.fair or a.within(2) for a in answers),
        "top1_strict": _mean(a.right for a in answers),
        "top1_without_apart": _mean(a.right for a in plain),
        "top2_without_apart": _mean(a.within(2) for a in plain),
        "top1_mean_over_causes": _mean(_mean(a.fair for a in answers if a.truth[0] == c) for c in causes),
    }


def confusion(answers: Iterable[Answer]) -> dict[str, dict[str, int]]:
    """How often each verdict was given for each cause."""
    found: dict[str, Counter[str]] = {}
    for a in answers:
        found.setdefault(a.truth[0], Counter())[a.verdict] += 1
    return {cause: dict(found[cause].most_common()) for cause in CAUSES if cause in found}


def by_cause(answers: Sequence[Answer]) -> str:
    """The confusion matrix, without its zeros."""
    rows = ["| cause | samples | right | said instead |", "|---|---|---|---|"]
    for cause, said in confusion(answers).items():
        n = sum(said.values())
        other = ", ".join(f"`{v}` {k}" for v, k in said.items() if v != cause)
        rows.append(f"| `{cause}` | {n} | {said.get(cause, 0)} | {other} |")
    return "\n".join(rows)


def apart(answers: Sequence[Answer], size: int) -> str:
    """Variants that the log-probs alone cannot tell apart, with what was said of them."""
    rows = ["| variant | why | samples | verdict right | found, as said | verdicts |", "|---|---|---|---|---|---|"]
    for name, why in APART.items():
        those = [a for a in answers if a.faults == (name,) and a.size == size and a.columns == "all"]
        said = ", ".join(f"`{v}` {k}" for v, k in Counter(a.verdict for a in those).most_common())
        right, fair = sum(a.right for a in those), sum(a.fair for a in those)
        rows.append(f"| `{name}` | {why.reason} | {len(those)} | {right} | {fair} | {said} |")
    return "\n".join(rows)


def strengths(answers: Sequence[Answer]) -> str:
    """By variant, the lowest level from which on all is right, by tokens."""
    sizes = sorted({a.size for a in answers}, reverse=True)
    found = {size: smallest(answers, size) for size in sizes}
    head = " | ".join(f"{size:,} tokens" for size in sizes)
    rows = [f"| variant | strength is | weak, medium, strong | {head} |", "|---|---|---|" + "---|" * len(sizes)]
    for name in found[sizes[0]]:
        fault = find(name)
        if fault.id in ("numerics", "none"):
            continue
        levels = ", ".join(f"{fault.strength(level):g}" for level in LEVELS)
        told = " | ".join(_level(name, found[size].get(name, "")) for size in sizes)
        rows.append(f"| `{name}` | {fault.unit} | {levels} | {told} |")
    return "\n".join(rows)


def _level(name: str, level: str) -> str:
    return "weak" if level == "medium" and same_as_medium(name, "weak") else level


def failures(answers: Sequence[Answer]) -> str:
    """Every sample that was called something else."""
    rows = [
        "| variant | level | seed | tokens | said | its own place | confidence of the first three |",
        "|---|---|---|---|---|---|---|",
    ]
    for a in answers:
        if a.columns == "all" and not a.fair:
            f = _failure(a)
            place = f["place"] or ("cannot tell" if f["cannot_tell"] else "not named")
            first = ", ".join(f"`{c}` {p:.2f}" for c, p in zip(a.causes[:3], a.confidence[:3], strict=True))
            rows.append(
                f"| `{'+'.join(a.faults)}` | {a.level} | {a.seed} | {a.size:,} | `{a.verdict}` | {place} | {first} |"
            )
    return "\n".join(rows) if len(rows) > 2 else "None."


def _failure(a: Answer) -> dict[str, Any]:
    place = a.causes.index(a.truth[0]) + 1 if a.truth[0] in a.causes else None
    return {
        "variant": "+".join(a.faults),
        "level": a.level,
        "seed": a.seed,
        "tokens": a.size,
        "draw": a.draw,
        "said": a.verdict,
        "place": place,
        "cannot_tell": a.truth[0] in a.cannot_tell,
    }


def heat_map(answers: Sequence[Answer], size: int, path: Path) -> None:
    """The confusion matrix as a picture: rows are what was committed, columns what was said, in shares of a row."""
    counts = confusion(_those(answers, size, "all", "medium"))
    rows = list(counts)
    columns = [c for c in CAUSES if c in rows or any(c in said for said in counts.values())]
    shares = np.array([[counts[r].get(c, 0) / sum(counts[r].values()) for c in columns] for r in rows])
    figure, axes = plt.subplots(figsize=(9, 8.4), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xlabel("said")
    axes.set_ylabel("committed")
    for i, j in zip(*np.nonzero(shares), strict=True):
        ink = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_title(f"Verdicts at medium strength, {size:,} tokens: percent of the samples of a cause", fontsize=10)
    figure.colorbar(image, shrink=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _those(answers: Sequence[Answer], size: int, columns: str, level: str) -> list[Answer]:
    single: Callable[[Answer], bool] = lambda a: len(a.faults) == 1  # noqa: E731
    return [a for a in answers if single(a) and (a.size, a.columns, a.level) == (size, columns, level)]


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return float(np.mean(kept)) if kept else float("nan")


def _pc(share: float) -> str:
    return "" if share != share else f"{100 * share:.1f}%"
