"""The tables of the page."""

from collections.abc import Iterable

from reweigh.audit.labels import (
    BY_WORDS,
    MEAN_WEIGHT,
    PI_MU,
    RAW_STAR,
    count,
    level_tables,
    level_title,
    refusals,
    shown,
    shown_rows,
    slice_ratio,
    slice_refusals,
    slice_tv,
)
from reweigh.audit.outcomes import numbers_of
from reweigh.audit.page.cells import Cell, Grid, pair, tip
from reweigh.audit.result import Audit, TrialRow
from reweigh.audit.slices import SliceRow
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import of_log, share, two
from reweigh.stats.summary import Summary

MAX_NAME = 120  # characters of a name that the records or the user gave
MAX_TRIALS = 60


def short(name: str, most: int = MAX_NAME) -> str:
    """A name that fits."""
    return name if len(name) <= most else name[: most - 3] + "..."


def level_grids(audit: Audit) -> list[Grid]:
    """The size of the gap, two levels a table."""
    return [_levels(levels) for levels in level_tables(audit)]


def trial_grid(audit: Audit) -> Grid:
    """What estimators would do."""
    heading = (
        "estimator",
        "unit",
        "kept",
        "tokens kept",
        "capped",
        "mean weight",
        "largest",
        "effective, raw",
        "applied",
    )
    return Grid("In numbers", heading, tuple(_trial(t) for t in audit.trials[:MAX_TRIALS]), (MEAN_WEIGHT, RAW_STAR))


def slice_grids(audit: Audit) -> list[Grid]:
    """What was asked for with `by`."""
    return [_slices(BY_WORDS[by], rows) for by, rows in audit.slices.items()]


def meanings(audit: Audit) -> list[tuple[str, str]]:
    """What each number of the first tables means."""
    levels = list(audit.levels.values())
    found: list[tuple[str, str]] = []
    for name, label in shown_rows(levels):
        number = next(x for x in (shown(level, name) for level in levels) if x is not None)
        found.append((label, number.meaning))
    return found


def _levels(levels: list[Summary]) -> Grid:
    heading = [""]
    for level in levels:
        heading += (count(level.n, level.level), "95% interval")
    rows: list[tuple[Cell, ...]] = []
    for name, label in shown_rows(levels):
        row = [Cell(label)]
        for level in levels:
            number = shown(level, name)
            row += (Cell(""), Cell("")) if number is None else pair(name, number, level.n, level.level)
        rows.append(tuple(row))
    first = levels[0].level == "token"
    return Grid(level_title(levels), tuple(heading), tuple(rows), (*refusals(levels), *((PI_MU,) if first else ())))


def _trial(trial: TrialRow) -> tuple[Cell, ...]:
    all_ = trial.all
    numbers = numbers_of(trial, all_)

    def cell(name: str, text: str) -> Cell:
        return Cell(text, tip(numbers[name], all_.units, trial.unit, text))

    raw = trial.raw
    return (
        Cell(short(trial.name)),
        Cell(trial.unit),
        cell("kept_share", share(all_.kept_share)),
        cell("kept_tokens_share", share(all_.kept_tokens_share)),
        cell("bounded_share", share(all_.bounded_share)),
        cell("mean_weight", of_log(all_.log_mean_weight)),
        cell("largest_weight", of_log(all_.log_largest)),
        Cell(
            share(raw.sample or 0.0) + ("*" if raw.value is None else ""),
            tip(raw, all_.units, trial.unit, share(raw.value or 0.0)),
        ),
        cell("effective_share", share(all_.effective_share)),
    )


def _slices(words: str, rows: tuple[SliceRow, ...]) -> Grid:
    whole = any(row.sequence is not None for row in rows)
    heading = ("", "tokens", "KL k3", "|log r|", "mean ratio", "95% interval")
    heading += ("seqs", "seq. TV", "95% interval", "ESS / n") if whole else ()
    out: list[tuple[Cell, ...]] = []
    for row in rows:
        token, sequence = row.token, row.sequence
        ratio, ends = slice_ratio(token)
        line = [Cell(short(row.label)), Cell(f"{token.n:,}")]
        line += (_of(token["kl_k3"], token), _of(token["mean_abs"], token))
        line += (Cell(ratio, tip(token["mean_ratio"], token.n, "token", ratio)), Cell(ends))
        if sequence is not None:
            tv, tv_ends = slice_tv(sequence)
            line += (
                Cell(f"{sequence.n:,}"),
                Cell(tv, tip(sequence["tv"], sequence.n, "sequence", tv)),
                Cell(tv_ends),
                pair("ess_fraction", sequence["ess_fraction"], sequence.n, "sequence")[0],
            )
        out.append((*line, *_blank(len(heading) - len(line))))
    return Grid(f"By {words}", heading, tuple(out), tuple(slice_refusals(rows)))


def _of(number: Number, level: Summary) -> Cell:
    text = two(number.sample or 0.0)
    return Cell(text, tip(number, level.n, level.level, text))


def _blank(n: int) -> Iterable[Cell]:
    return (Cell("") for _ in range(n))
