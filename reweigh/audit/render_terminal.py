"""An audit as text of at most 100 columns: the verdict first, then the tables."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reweigh.audit.headline import headline
from reweigh.audit.labels import (
    BY_WORDS,
    MEAN_WEIGHT,
    PI_MU,
    RAW_STAR,
    cells,
    count,
    counted,
    level_tables,
    level_title,
    refusals,
    run_line,
    shown,
    shown_rows,
    slice_ratio,
    slice_refusals,
    slice_tv,
)
from reweigh.audit.lengths import LengthColumn, length_columns
from reweigh.audit.render_more import by_sign, causes, effective, table_of, where, worst
from reweigh.audit.result import Audit
from reweigh.audit.slices import SliceRow
from reweigh.scan.cuts import By
from reweigh.stats.numerals import of_log, share, two
from reweigh.stats.summary import Summary
from reweigh.stats.verdict import Finding, Verdict

MAX_WIDTH = 100
MAX_LENGTHS = 6  # columns of the table by length
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def render(audit: Audit, console: Console) -> None:
    """Print an audit."""
    width = min(MAX_WIDTH, console.width)
    _verdict(audit.verdict, console, width)
    _say(console, f"\nIn short: {headline(audit).sentence}.", width)
    if audit.diagnosis is not None:
        for text in causes(audit.diagnosis, audit.info):
            _say(console, text, width)
    _say(console, "")
    _say(console, counted(audit), width)
    if run := run_line(audit.info):
        _say(console, run, width)
    for note in audit.notes:
        _say(console, f"note: {note}", width)
    for levels in level_tables(audit, 2 if width == MAX_WIDTH else 1):
        _print(console, _levels(levels), [*refusals(levels), *([PI_MU] if levels[0].level == "token" else [])], width)
    columns = length_columns(audit.trials, MAX_LENGTHS)
    _print(console, _trials(audit), [MEAN_WEIGHT], width)
    if len(columns) > 1:
        _print(console, _by_length(audit, columns), [], width)
    _print(console, effective(audit), [RAW_STAR], width)
    if (signs := by_sign(audit)) is not None:
        _print(console, signs, [], width)
    for by, rows in audit.slices.items():
        _print(console, _slices(by, rows, width == MAX_WIDTH), slice_refusals(rows), width)
    for table, below in where(audit):
        _print(console, table, below, width)
    _print(console, worst(audit), [], width)


def _verdict(verdict: Verdict, console: Console, width: int) -> None:
    first, *others = verdict.findings
    _finding(first, console, width, verdict.level.upper())
    for finding in others:
        _finding(finding, console, width, finding.severity)


def _finding(finding: Finding, console: Console, width: int, word: str) -> None:
    style = _STYLES[finding.severity]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=4)
    grid.add_column()
    strong = word.isupper()
    grid.add_row(Text(word, f"bold {style}" if strong else style), Text(finding.reason, "bold" if strong else ""))
    if finding.hint:
        grid.add_row(Text("hint"), Text(finding.hint))
    console.print(grid, width=width)


def _levels(levels: list[Summary]) -> Table:
    table = table_of(level_title(levels))
    table.add_column("", no_wrap=True)
    for level in levels:
        table.add_column(count(level.n, level.level), justify="right", no_wrap=True)
        table.add_column("95% interval", no_wrap=True)
    for name, label in shown_rows(levels):
        found = [shown(level, name) for level in levels]
        table.add_row(label, *(text for x in found for text in (("", "") if x is None else cells(name, x))))
    return table


def _trials(audit: Audit) -> Table:
    table = table_of("What estimators would do")
    for heading in ("", "unit"):
        table.add_column(heading)
    for heading in ("kept", "tokens kept", "capped", "mean weight", "largest"):
        table.add_column(heading, justify="right")
    for trial in audit.trials:
        all_ = trial.all
        table.add_row(
            Text(trial.name),
            trial.unit,
            share(all_.kept_share),
            share(all_.kept_tokens_share),
            share(all_.bounded_share),
            of_log(all_.log_mean_weight),
            of_log(all_.log_largest),
        )
    return table


def _by_length(audit: Audit, columns: list[LengthColumn]) -> Table:
    table = table_of("Mean weight by response length, tokens")
    table.add_column("")
    for column in columns:
        table.add_column(column.label, justify="right")
    for trial in audit.trials:
        outcomes = [column.of(trial) for column in columns]
        table.add_row(Text(trial.name), *(of_log(x.log_mean_weight) if x.units else "" for x in outcomes))
    return table


def _slices(by: By, rows: tuple[SliceRow, ...], intervals: bool) -> Table:
    whole = any(row.sequence is not None for row in rows)
    table = table_of(f"By {BY_WORDS[by]}")
    table.padding = (0, 1, 0, 0)
    table.add_column("", no_wrap=True, max_width=12)
    ends = ["95%"] if intervals or not whole else []  # the first thing that a narrow terminal goes without
    headings = ["tokens", "KL k3", "|log r|", "ratio", *ends] + (["seqs", "TV", *ends, "ESS/n"] if whole else [])
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "95%" else "right", no_wrap=True)
    for row in rows:
        token, sequence = row.token, row.sequence
        shown = [f"{token.n:,}", two(token["kl_k3"].sample or 0.0), two(token["mean_abs"].sample or 0.0)]
        shown += slice_ratio(token)[: 1 + len(ends)]
        if sequence is not None:
            shown += [
                f"{sequence.n:,}",
                *slice_tv(sequence)[: 1 + len(ends)],
                cells("ess_fraction", sequence["ess_fraction"])[0],
            ]
        table.add_row(Text(row.label), *shown)
    return table


def _print(console: Console, table: Table, below: list[str], width: int) -> None:
    console.print()
    console.print(table, width=width)
    for line in below:
        console.print(Text(line, "dim"), width=width)


def _say(console: Console, text: str, width: int | None = None) -> None:
    """A paragraph; what it begins with of spaces is the indent of all its lines."""
    indent = len(text) - len(text.lstrip(" "))
    console.print(Padding(Text(text[indent:]), (0, 0, 0, indent)) if indent else Text(text), width=width)
