"""What a watch shows: a dashboard for a terminal, one line for a log, one JSON object for a program."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reweigh.audit import Audit
from reweigh.audit.labels import cells, count, slice_ratio
from reweigh.audit.recommend import recommend
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import two
from reweigh.stats.summary import Summary
from reweigh.trainers.seen import Seen
from reweigh.watch.folder import Look

WATCH_VERSION = 1
MAX_SHOWN = 5  # files in trouble, and steps
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
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
    """The numbers by the names that `reweigh.trainers` gives them in training; empty while nothing counts."""
    total = found.watched.total
    if not total.tokens:
        return {}
    levels = total.sums["audit"].levels
    return Seen(levels["token"], levels["sequence"]).flat()


def document(found: Look, audit: Audit | None) -> dict[str, Any]:
    """One update as plain values for a line of JSON."""
    watched = found.watched
    verdict = None if audit is None else {"level": audit.verdict.level, "reason": audit.verdict.reason}
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
        "use": None if audit is None else recommend(audit).use,
        "metrics": metrics(found),
    }


def line(found: Look, audit: Audit | None) -> str:
    """One update in a line."""
    if audit is None:
        return f"{_counted(found)}: no token that counts yet"
    return f"{_counted(found)}: {audit.verdict.level}: {audit.verdict.reason}; {_use(audit)}"


def dashboard(folder: str, found: Look, audit: Audit | None, every: float) -> Group:
    """One update for a terminal."""
    head = Text.assemble(
        (folder, "bold"), f"  {_counted(found)}; looked {found.watched.looks} times, every {every:g} s"
    )
    parts: list[Any] = [head, Text()]
    if audit is None:
        parts.append(Text("no token that counts yet: waiting for the first file that is whole"))
    else:
        verdict = audit.verdict
        parts.append(Text(f"{verdict.level.upper()}  {verdict.reason}", f"bold {_STYLES[verdict.level]}"))
        if verdict.hint:
            parts.append(Text(f"hint: {verdict.hint}"))
        parts += [Text(_use(audit)), Text(), _numbers(audit)]
        if len(audit.slices.get("step", ())) > 1:
            parts += [Text(), _steps(audit)]
    parts += _files(found)
    return Group(*parts)


def _counted(found: Look) -> str:
    watched = found.watched
    said = [count(len(watched.files), "file"), count(watched.total.rows, "row"), count(watched.total.tokens, "token")]
    if found.waiting:
        said.append(f"{len(found.waiting):,} still being written")
    if watched.troubles:
        said.append(f"{len(watched.troubles):,} bad")
    return ", ".join(said)


def _use(audit: Audit) -> str:
    found = recommend(audit)
    return f"use {found.use}" if found.use else f"use none: {found.reason}"


def _numbers(audit: Audit) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=True)
    for heading in ("", "token", "sequence"):
        table.add_column(heading)
    for name in dict.fromkeys(x for names in _NUMBERS.values() for x in names):
        row = [_cell(audit.levels[level], name) if name in _NUMBERS[level] else "" for level in _NUMBERS]
        table.add_row(_LABELS[name], *row)
    return table


def _cell(level: Summary, name: str) -> str:
    number: Number = level[name]
    value, ends = cells(name, number)
    return f"{value} {ends}".strip()


def _steps(audit: Audit) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for heading in ("step", "tokens", "KL", "mean ratio", "effective"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    rows = [row for row in audit.slices["step"] if row.label != "not recorded"]
    for row in rows[-MAX_SHOWN:]:
        effective = "" if row.sequence is None else cells("ess_fraction", row.sequence["ess_fraction"])[0]
        kl = two(row.token["kl_k3"].sample or 0.0)
        table.add_row(row.label, f"{row.token.n:,}", kl, slice_ratio(row.token)[0], effective)
    return table


def _files(found: Look) -> list[Text]:
    watched = found.watched
    lines = [
        Text(f"bad, tried {count(one.tries, 'time')}: {name}: {one.reason}", "red")
        for name, one in list(watched.troubles.items())[-MAX_SHOWN:]
    ]
    lines += [
        Text(f"changed after it was read, and what it said at first stays: {name}", "yellow")
        for name in list(watched.rewritten)[-MAX_SHOWN:]
    ]
    hidden = len(watched.troubles) + len(watched.rewritten) - len(lines)
    if hidden:
        lines.append(Text(f"and {hidden:,} more files like these"))
    return [Text(), *lines] if lines else []
