"""A watch as it is shown: a dashboard for a terminal, one line for a log, one JSON object for a program."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from reweigh.audit import Audit
from reweigh.audit.recommend import cause_sentence
from reweigh.report.tables import EMPTY, NAMES, Block, Column, Line, Table, line, rendered
from reweigh.report.words import said, slice_ratio
from reweigh.stats.numerals import count, two
from reweigh.trainers.seen import Seen
from reweigh.watch.folder import Look

if TYPE_CHECKING:
    from rich.console import Group

WATCH_VERSION = 1
MAX_SHOWN = 5  # files in trouble, and steps
_NUMBERS = {
    "token": ("mean_ratio", "kl_k3", "mean_abs", "beyond_2x"),
    "sequence": ("mean_ratio", "tv", "ess_fraction", "khat"),
}
_LABELS = {
    "mean_ratio": "mean ratio (must be 1)",
    "kl_k3": "KL(mu||pi), nats",
    "mean_abs": "mean |log ratio|, nats",
    "beyond_2x": "ratio outside [1/2, 2]",
    "tv": "total variation",
    "ess_fraction": "effective share",
    "khat": "tail index",
}


def metrics(found: Look) -> dict[str, float]:
    """Give the numbers by the names that `reweigh.trainers` gives them in training; empty while nothing counts."""
    total = found.watched.total
    if not total.tokens:
        return {}
    levels = total.sums["audit"].levels
    return Seen(levels["token"], levels["sequence"]).flat()


def update(found: Look, audit: Audit | None) -> dict[str, Any]:
    """Turn an update into plain values for a line of JSON."""
    watched = found.watched
    verdict = None if audit is None else audit.verdict.to_dict()
    return {
        "reweigh_watch": WATCH_VERSION,
        "look": watched.looks,
        "rows": watched.total.rows,
        "tokens": watched.total.tokens,
        "files": len(watched.files),
        "read": list(found.read),
        "waiting": list(found.waiting),
        "bad": [{"file": name, "reason": x.reason, "tries": x.tries} for name, x in watched.troubles.items()],
        "rewritten": list(watched.rewritten),
        "verdict": verdict,
        "cause": None if audit is None or audit.diagnosis is None else audit.diagnosis.verdict,
        "use": None if audit is None else audit.verdict.use or None,
        "metrics": metrics(found),
    }


def in_a_line(found: Look, audit: Audit | None) -> str:
    """Put an update in a line."""
    if audit is None:
        return f"{_counted(found)}: no token that counts yet"
    return f"{_counted(found)}: {audit.verdict.level}: {audit.headline.sentence}"


def dashboard(folder: str, found: Look, audit: Audit | None, every: float, width: int = 100) -> "Group":
    """Show an update on a terminal of this width, in rich's terms so that it can be drawn in place."""
    from rich.console import Group

    return Group(*(rendered(block, width) for block in _blocks(folder, found, audit, every)))


def _blocks(folder: str, found: Look, audit: Audit | None, every: float) -> Iterator[Block]:
    looked = f"  {_counted(found)}; looked {found.watched.looks} times, every {every:g} s"
    yield Line(((folder, "bold"), (looked, "")))
    yield EMPTY
    if audit is None:
        yield line("no token that counts yet: waiting for the first file that is whole")
    else:
        verdict = audit.verdict
        yield line(f"{verdict.level.upper()}  {verdict.reason}", f"bold {verdict.level}")
        if verdict.hint:
            yield line(f"hint: {verdict.hint}")
        if audit.diagnosis is not None:
            yield line(cause_sentence(audit.diagnosis))
        yield EMPTY
        yield _numbers(audit)
        if len(audit.slices.get("step", ())) > 1:
            yield EMPTY
            yield _steps(audit)
    yield from _files(found)


def _counted(found: Look) -> str:
    watched = found.watched
    parts = [count(len(watched.files), "file"), count(watched.total.rows, "row"), count(watched.total.tokens, "token")]
    if found.waiting:
        parts.append(f"{len(found.waiting):,} still being written")
    if watched.troubles:
        parts.append(f"{len(watched.troubles):,} bad")
    return ", ".join(parts)


def _numbers(audit: Audit) -> Table:
    rows: list[list[str]] = []
    for name in dict.fromkeys(x for names in _NUMBERS.values() for x in names):
        have = [audit.levels[level][name] if name in _NUMBERS[level] else None for level in _NUMBERS]
        rows.append([_LABELS[name], *("" if x is None else " ".join(said(name, x)).strip() for x in have)])
    level_columns = (Column(level, "left", wrap=True) for level in _NUMBERS)
    return Table.of((NAMES, *level_columns), rows, frame="none", gap=3)


def _steps(audit: Audit) -> Table:
    rows: list[list[str]] = []
    for row in [row for row in audit.slices["step"] if row.label != "not recorded"][-MAX_SHOWN:]:
        effective = "" if row.sequence is None else said("ess_fraction", row.sequence["ess_fraction"])[0]
        kl = two(row.token["kl_k3"].sample or 0.0)
        rows.append([row.label, f"{row.token.n:,}", kl, slice_ratio(row.token)[0], effective])
    heads = ("tokens", "KL", "mean ratio", "effective")
    return Table.of((Column("step", "left", wrap=True), *(Column(x, wrap=True) for x in heads)), rows)


def _files(found: Look) -> Iterator[Line]:
    watched = found.watched
    lines = [
        line(f"bad, tried {count(one.tries, 'time')}: {name}: {one.reason}", "fail")
        for name, one in list(watched.troubles.items())[-MAX_SHOWN:]
    ]
    lines += [
        line(f"changed after it was read, and what it said at first stays: {name}", "warn")
        for name in list(watched.rewritten)[-MAX_SHOWN:]
    ]
    hidden = len(watched.troubles) + len(watched.rewritten) - len(lines)
    if hidden:
        lines.append(line(f"and {hidden:,} more files like these"))
    if lines:
        yield EMPTY
        yield from lines
