"""An audit as one HTML page that loads nothing: verdict, what to do, tables and pictures."""

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from reweigh.audit.figures import figures, retained
from reweigh.audit.labels import (
    BY_WORDS,
    MEAN_WEIGHT,
    PI_MU,
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
from reweigh.audit.lengths import length_columns
from reweigh.audit.numerals import of_log, share, two
from reweigh.audit.result import Audit
from reweigh.audit.slices import SliceRow
from reweigh.summary import Summary

MAX_LENGTHS = 8  # columns of the table by length


@dataclass(frozen=True)
class Grid:
    """A table as text: heading cells, and rows of a heading and cells; `below` is what to say under it."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: tuple[str, ...] = ()


def render_html(audit: Audit) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("reweigh.audit", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    from reweigh import __version__

    columns = length_columns(audit.trials, MAX_LENGTHS)
    return environment.get_template("template.html").render(
        verdict=audit.verdict,
        counted=counted(audit),
        run=run_line(audit.info),
        notes=audit.notes,
        levels=[_levels(levels) for levels in level_tables(audit)],
        plots=figures(audit),
        trials=_trials(audit),
        lengths=_lengths(audit) if len(columns) > 1 else None,
        panels=retained(audit.trials),
        slices=[_slices(BY_WORDS[by], rows) for by, rows in audit.slices.items()],
        meanings=_meanings(audit),
        version=__version__,
    )


def _levels(levels: list[Summary]) -> Grid:
    heading = [""]
    for level in levels:
        heading += (count(level.n, level.level), "95% interval")
    rows: list[tuple[str, ...]] = []
    for name, label in shown_rows(levels):
        found = [shown(level, name) for level in levels]
        rows.append((label, *(text for x in found for text in (("", "") if x is None else cells(name, x)))))
    first = levels[0].level == "token"
    below = (*refusals(levels), *((PI_MU,) if first else ()))
    return Grid(level_title(levels), tuple(heading), tuple(rows), below)


def _meanings(audit: Audit) -> list[tuple[str, str]]:
    levels = list(audit.levels.values())
    found: list[tuple[str, str]] = []
    for name, label in shown_rows(levels):
        number = next(x for x in (shown(level, name) for level in levels) if x is not None)
        found.append((label, number.meaning))
    return found


def _trials(audit: Audit) -> Grid:
    rows = [
        (
            trial.name,
            trial.unit,
            share(trial.all.kept_share),
            share(trial.all.kept_tokens_share),
            share(trial.all.bounded_share),
            of_log(trial.all.log_mean_weight),
            of_log(trial.all.log_largest),
        )
        for trial in audit.trials
    ]
    heading = ("estimator", "unit", "kept", "tokens kept", "capped", "mean weight", "largest")
    return Grid("What estimators would do", heading, tuple(rows), (MEAN_WEIGHT,))


def _lengths(audit: Audit) -> Grid:
    columns = length_columns(audit.trials, MAX_LENGTHS)
    rows: list[tuple[str, ...]] = []
    for trial in audit.trials:
        outcomes = [column.of(trial) for column in columns]
        rows.append((trial.name, *(of_log(x.log_mean_weight) if x.units else "" for x in outcomes)))
    return Grid("Mean weight by response length", ("tokens", *(c.label for c in columns)), tuple(rows))


def _slices(words: str, rows: tuple[SliceRow, ...]) -> Grid:
    whole = any(row.sequence is not None for row in rows)
    heading = ("", "tokens", "KL k3", "|log r|", "mean ratio", "95% interval")
    heading += ("seqs", "seq. TV", "95% interval", "ESS / n") if whole else ()
    out: list[tuple[str, ...]] = []
    for row in rows:
        token, sequence = row.token, row.sequence
        line = (row.label, f"{token.n:,}", two(token["kl_k3"].sample or 0.0), two(token["mean_abs"].sample or 0.0))
        line += slice_ratio(token)
        if sequence is not None:
            line += (f"{sequence.n:,}", *slice_tv(sequence), cells("ess_fraction", sequence["ess_fraction"])[0])
        out.append(line + ("",) * (len(heading) - len(line)))
    return Grid(f"By {words}", heading, tuple(out), tuple(slice_refusals(rows)))
