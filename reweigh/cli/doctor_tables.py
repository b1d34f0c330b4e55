"""A diagnosis in the terminal: the verdict, what to do, then why."""

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from reweigh.doctor.causes import ABOUT, BENIGN
from reweigh.doctor.diagnosis import NAMED, Diagnosis, Evidence, Finding

_BAR = 20  # characters


def render(found: Diagnosis, console: Console) -> None:
    """Print it."""
    _verdict(found, console)
    _causes(found, console)
    for one in found.causes:
        if one.confidence >= NAMED and one.id not in BENIGN:
            _detail(one, console)
    _cannot_tell(found, console)
    _slices(found, console)
    _notes(found, console)


def headline(found: Diagnosis) -> Text:
    """The verdict in a line."""
    color = "green" if found.benign else "red"
    sure = next((one.confidence for one in found.causes if one.id == found.verdict), 0.0)
    word = "verdict: " if sure >= NAMED or found.benign else "suspicion: "
    return Text.assemble((word, "bold"), (found.verdict, f"bold {color}"), f"  {ABOUT[found.verdict].title}")


def _verdict(found: Diagnosis, console: Console) -> None:
    console.print(headline(found))
    console.print(ABOUT[found.verdict].meaning, markup=False)
    if found.source == "records":
        console.print(f"{found.sequences:,} responses, {found.tokens:,} tokens", style="dim")
    console.print()


def _causes(found: Diagnosis, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("cause", "left"),
        ("confidence", "right"),
        ("explains", "right"),
        ("", "left"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in found.causes:
        share = one.explained_share
        table.add_row(
            one.id,
            f"{one.confidence:.2f}",
            "-" if share is None else f"{share:.0%}",
            "" if share is None else "█" * round(share * _BAR),
            escape(ABOUT[one.id].title),
            style=None if one.confidence >= NAMED else "dim",
        )
    console.print(table)
    if any(one.explained_share is not None for one in found.causes):
        console.print("explains: share of the sum of squared log ratios. Dim: a suspicion, not a finding.", style="dim")
    console.print()


def _detail(one: Finding, console: Console) -> None:
    console.print(Text(one.id, style="bold"))
    for e in one.evidence:
        console.print(f"  {_number(e)}  {e.meaning}", markup=False)
    if one.rules_out:
        console.print(f"  it is not this if: {one.rules_out}", markup=False)
    for name, text in one.fix.items():
        console.print(Text.assemble("  ", (f"fix, {name}: " if name != "general" else "fix: ", "bold"), text))
    console.print()


def _number(e: Evidence) -> str:
    if not math.isfinite(e.value):
        return f"{e.name} unknown"
    if e.low is None or e.high is None:
        return f"{e.name} {e.value:.3g}"
    return f"{e.name} {e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"


def _cannot_tell(found: Diagnosis, console: Console) -> None:
    if not found.cannot_tell:
        return
    console.print(Text("cannot tell", style="bold"))
    for one in found.cannot_tell:
        console.print(f"  {one.id}: {one.reason}", markup=False)
        if one.experiment:
            console.print(f"    what would decide: {one.experiment}", markup=False, style="dim")
    console.print()


def _slices(found: Diagnosis, console: Console) -> None:
    for by, cut in found.slices.items():
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in (by, "verdict", "confidence", "explains", "tokens"):
            table.add_column(name, justify="left" if name in (by, "verdict") else "right")
        for label, one in cut.items():
            first = next(c for c in one.causes if c.id == one.verdict)
            share = "-" if first.explained_share is None else f"{first.explained_share:.0%}"
            table.add_row(escape(label), one.verdict, f"{first.confidence:.2f}", share, f"{one.tokens:,}")
        console.print(table)
        if not cut:
            console.print(f"no record says its {by}", style="dim")
        console.print()


def _notes(found: Diagnosis, console: Console) -> None:
    for note in found.notes:
        where = f", first at {note.place}" if note.place else ""
        console.print(f"note: {note.rule}: {note.count:,} {note.counted}{where}. {note.hint}", markup=False)
