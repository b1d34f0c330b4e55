"""An audit as lines and tables: the verdict first, then what to do, then the numbers; on a terminal and on a page."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from reweigh.audit.recommend import Recommendation
from reweigh.audit.result import Audit
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import SIGNS, Outcome, Sign, TrialRow
from reweigh.audit.where import KNOWN_BEFORE, Cut, Stratum
from reweigh.report.causes import brief, in_short, set_aside
from reweigh.report.tables import EMPTY, INTERVAL, MEDIUM, NAMES, WIDE, Block, Cell, Column, Table, columns, line
from reweigh.report.words import (
    BY_WORDS,
    CUT_WORDS,
    MEAN_WEIGHT,
    PI_MU,
    RAW_STAR,
    ROWS,
    SHARES,
    SIGN_WORDS,
    counted,
    grouped,
    length_columns,
    pair,
    refusals,
    run_line,
    said,
    shown,
    shown_rows,
    slice_ratio,
    slice_refusals,
    slice_tv,
    tip,
)
from reweigh.scan.cuts import By
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, digits, interval, of_log, share, two
from reweigh.stats.summary import Summary
from reweigh.stats.verdict import Verdict

MAX_LENGTHS = 6  # groups of response lengths beside an estimator's name
MAX_KEPT_LENGTHS = 10  # the same, of shares, which are shorter
MAX_NOTES = 2  # where there is little room
FULL = Column("(--full: all tables)", "left", wrap=True)
MAX_WORST = 5
_CUTS_SHOWN: tuple[Cut, ...] = ("position", "turn", "lag", "env", "step")
_K = (
    "K: the largest norm of a response's term of the gradient. Worst bias and second moment are over all rewards and "
    "gradients there could be, so a real one is nearer; an estimator that gives no gradient has an error of 1 K."
)
_ESTIMATOR = Column("estimator", "left", wrap=True, short="")
Part = tuple[str, Callable[[TrialRow], Outcome]]  # what an estimator did to some units, and how they are called


def on_terminal(audit: Audit, width: int, full: bool = False) -> Iterator[Block]:
    """An audit for a terminal of this width: verdict, cause, size and advice; all tables if it is to be full.

    The verdict stands last again, where a terminal ends up.
    """
    if full:
        yield from _in_full(audit, width)
        yield EMPTY
    else:
        yield from _in_short(audit, width)
    yield labelled([(audit.verdict.level.upper(), last(audit.verdict), f"bold {audit.verdict.level}")], width)


def last(told: Verdict) -> str:
    """Put a verdict in one short line: what it is, and what to do."""
    first = re.split(r"; |(?<!likely cause): ", told.reason)[0]
    return "; ".join(x for x in (first, "fix that first" if told.action == "fix" else told.order) if x)


def labelled(rows: Iterable[tuple[str, str, str]], width: int = WIDE) -> Table:
    """Show lines, each with a label before it; a style colours the label, and "dim" or "bold" the text."""
    narrow = width < MEDIUM
    cells: list[list[Cell]] = []
    for label, text, style in rows:
        weak = " ".join(word for word in style.split() if word in ("dim", "bold"))
        cells.append([Cell(label, style=style), Cell(text, style=weak)])
    return Table.of((Column(align="left", width=5 if narrow else 7), NAMES), cells, frame="none", gap=1, headed=False)


def _in_short(audit: Audit, width: int) -> Iterator[Block]:
    told, info = audit.verdict, audit.info
    others = [one for one in told.findings if one.severity != "ok" and one.reason not in told.reason]
    rows = [(told.level.upper(), told.reason, f"bold {told.level}")]
    rows += [(one.severity, one.reason, one.severity) for one in others]
    yield labelled(rows, width)
    if audit.diagnosis is not None:
        yield EMPTY
        room = min(width, WIDE) - (6 if width < MEDIUM else 8)
        yield labelled((*brief(audit.diagnosis, info), *set_aside(audit.diagnosis, room)), width)
    yield EMPTY
    yield replace(sizes(audit, width), frame="none")
    who = run_line(info, brief=True)
    rows = [] if told.action == "fix" else [("known", audit.place.sentence, "")]  # of wrong numbers none is usual
    rows += [("read", f"{counted(audit, brief=True)}{f'; {who}' if who else ''}", "dim")]
    notes = [*audit.notes, *_notes(audit)]
    rows += [("note", note, "dim") for note in notes[:MAX_NOTES]]
    if len(notes) > MAX_NOTES:
        rows.append(("", f"and {count(len(notes) - MAX_NOTES, 'more note')}: --full has all", "dim"))
    yield labelled(rows, width)
    for by, some in audit.slices.items():
        yield EMPTY
        yield slices(by, some)
    yield EMPTY
    yield labelled([("do", told.hint or "nothing", "bold")], width)


def _notes(audit: Audit) -> list[str]:
    if audit.diagnosis is None:
        return []
    return [f"{x.rule}: {x.count:,} {x.counted}{f'; {x.hint}' if x.hint else ''}" for x in audit.diagnosis.notes]


_SIZES = ("kl_k3", "mean_ratio", "mean_abs", "tv", "ess_fraction")


def sizes(audit: Audit, width: int | None = None) -> Table:
    """Show what the verdict stands on, of tokens and of sequences.

    Args:
        audit: whose.
        width: of a terminal, which is told that there is more; None for a page.
    """
    some = [audit.levels[name] for name in ("token", "sequence")]
    labels, narrow = dict(ROWS), width is not None and width < MEDIUM
    rows: list[list[str]] = []
    for name in _SIZES:
        cells: list[str] = []
        for level in some:
            number = shown(level, name)
            if number is None:
                cells.append("")
                continue
            value, ends = said(name, number)
            if number.value is None and number.sample is not None:
                here = share(number.sample) if name in SHARES else two(number.sample)
                value = f"refused ({here} here)"
            cells.append(value if narrow else f"{value} {ends}".strip())
        rows.append([labels[name], *cells])
    heads = (Column(count(x.n, x.level), "left", wrap=True) for x in some)
    return Table.of((NAMES if width is None else FULL, *heads), rows, gap=1 if narrow else 3)


def _in_full(audit: Audit, width: int) -> Iterator[Block]:
    yield from findings(audit.verdict)
    yield line(f"\nIn short: {audit.headline.sentence}.")
    if audit.diagnosis is not None:
        yield from in_short(audit.diagnosis, audit.info)
    yield EMPTY
    yield line(counted(audit))
    if run := run_line(audit.info):
        yield line(run)
    yield line(f"normal: {audit.place.sentence}")
    yield from (line(f"note: {note}") for note in audit.notes)
    for table in _tables(audit, width):
        yield EMPTY
        yield table


def _tables(audit: Audit, width: int) -> Iterator[Table]:
    yield from (levels(some) for some in level_groups(audit, 2 if width >= WIDE else 1))
    all_ = trials(audit.trials)
    yield all_.only(0, 1, 2, 3, 4, 5, 6, title="What estimators would do", notes=[MEAN_WEIGHT])
    lengths = length_parts(audit.trials, MAX_LENGTHS)
    if len(lengths) > 1:
        yield by_part(audit.trials, lengths, "mean_weight", "Mean weight by response length, tokens")
    yield all_.only(0, 1, 7, 8, title="Effective share, raw beside applied", notes=[RAW_STAR])
    if signs := sign_parts(audit.trials):
        kept = by_part(audit.trials, signs, "kept_tokens_share", "By sign of the advantage")
        weight = by_part(audit.trials, signs, "mean_weight", "")
        heads = [x for label, _ in signs for x in (f"kept, {label}", "weight")]
        rows = zip(kept.rows, weight.rows, strict=True)
        yield Table.of(
            columns(*heads, wrap=True),
            ([a[0], *(x for both in zip(a[1:], b[1:], strict=True) for x in both)] for a, b in rows),
            kept.title,
        )
    yield from (slices(by, rows) for by, rows in audit.slices.items())
    for cut in _CUTS_SHOWN:
        rows = audit.strata.get(cut, ())
        if len(rows) > 1 and cut not in audit.slices:
            title = f"Log ratio by {CUT_WORDS[cut]}, nats a token"
            yield strata(cut, rows).only(0, 1, 2, 3, 4, 5, 6, title=title)
    yield worst(audit)


def findings(verdict: Verdict) -> Iterator[Table]:
    """Show what a verdict is made of, the worst first; the first one in capitals."""
    for i, one in enumerate(verdict.findings):
        word, strong = (one.severity, "") if i else (verdict.level.upper(), " bold")
        rows = [[Cell(word, style=f"{one.severity}{strong}"), Cell(one.reason, style=strong.strip())]]
        rows += [[Cell("hint"), Cell(one.hint)]] if one.hint else []
        yield Table.of((Column(align="left", width=4), NAMES), rows, frame="none", headed=False)


def level_groups(audit: Audit, size: int = 2) -> list[list[Summary]]:
    """Levels that share a table, `size` of them: two fit a page."""
    found = [audit.levels[name] for name in ("token", "sequence", "turn") if name in audit.levels]
    return [found[i : i + size] for i in range(0, len(found), size)]


def levels(some: Sequence[Summary]) -> Table:
    """Show the size of the gap at one level or two."""
    heads = [x for level in some for x in (count(level.n, level.level), INTERVAL.heading)]
    rows: list[list[Cell | str]] = []
    for name, label in shown_rows(some):
        row: list[Cell | str] = [label]
        for level in some:
            number = shown(level, name)
            row += ("", "") if number is None else pair(name, number, level.n, level.level)
        rows.append(row)
    first = some[0].level == "token"  # which needs no more words
    title = "Size of the gap" if first else f"Size of the gap, by {some[0].level}"
    return Table.of(
        columns(*heads, first=[Column(align="left")]), rows, title, [*refusals(some), *([PI_MU] if first else [])]
    )


def trials(some: Sequence[TrialRow], told: Verdict | None = None) -> Table:
    """Show what estimators would do to all units; the one to use stands out, with the reason, if a verdict is given."""
    rows: list[list[Cell | str]] = []
    for trial in some:
        raw = share(trial.raw.sample or 0.0)
        cells = (_outcome(trial, trial.all, name) for name in _OUTCOMES)
        *shares, effective = cells
        star = Cell(raw + "*" * (trial.raw.value is None), tip(trial.raw, trial.all.units, trial.unit, raw))
        used = told is not None and trial.name == told.use
        next_ = told is not None and told.runner_up is not None and trial.name == told.runner_up.name
        mark = "use" if used else "next best" if next_ else ""
        rows.append([Cell(trial.name, style="bold" * used), trial.unit, *shares, star, effective, mark])
    names = (_ESTIMATOR, Column("unit", "left", wrap=True))
    heads = columns("kept", "tokens kept", "capped", "mean weight", "largest", first=names, wrap=True)
    raw_and_applied = (Column("effective, raw", wrap=True, short="raw"), Column("applied", wrap=True))
    notes = (*([] if told is None else [f"advice: {told.hint or 'nothing to do'}"]), MEAN_WEIGHT, RAW_STAR)
    found = Table.of((*heads, *raw_and_applied, Column("advice", "left")), rows, "In numbers", notes)
    return (
        found if told is not None and told.use else found.only(*range(len(heads) + 2), title=found.title, notes=notes)
    )


_OUTCOMES = ("kept_share", "kept_tokens_share", "bounded_share", "mean_weight", "largest_weight", "effective_share")


def _outcome(trial: TrialRow, outcome: Outcome, name: str) -> Cell:
    if not outcome.units:
        return Cell("")
    if name == "mean_weight":
        text = of_log(outcome.log_mean_weight)
    elif name == "largest_weight":
        text = of_log(outcome.log_largest)
    else:
        text = share(getattr(outcome, name))
    return Cell(text, tip(trial.number(outcome, name), outcome.units, trial.unit, text))


def length_parts(some: Sequence[TrialRow], most: int) -> list[Part]:
    """Parts of the trials by response length, at most so many."""
    return [(column.label, column.of) for column in length_columns(some, most)]


def sign_parts(some: Sequence[TrialRow], none: bool = True) -> list[Part]:
    """Parts of the trials by sign of the advantage; nothing if all are 0 or none is recorded.

    Args:
        some: trials.
        none: whether sequences without a sign are a part.
    """
    there: list[Sign] = [sign for sign in SIGNS if any(trial.by_sign[sign].units for trial in some)]
    if set(there) <= {"none"}:
        return []
    return [(SIGN_WORDS[sign], _of_sign(sign)) for sign in there if none or sign != "none"]


def _of_sign(sign: Sign) -> Callable[[TrialRow], Outcome]:
    return lambda trial: trial.by_sign[sign]


def by_part(some: Sequence[TrialRow], parts: Sequence[Part], name: str, title: str) -> Table:
    """Show one number of every estimator, part by part."""
    rows = [[trial.name, *(_outcome(trial, of(trial), name) for _, of in parts)] for trial in some]
    return Table.of(columns(*(label for label, _ in parts), first=[_ESTIMATOR], wrap=True), rows, title)


def slices(by: By, rows: Sequence[SliceRow]) -> Table:
    """Show the numbers cut by what was asked for."""
    whole = any(row.sequence is not None for row in rows)
    ends = Column(INTERVAL.heading, "left", short="95%", spare=WIDE * whole)
    heads = (
        Column(align="left", most=12),
        *map(Column, ("tokens", "KL k3", "|log r|")),
        Column("mean ratio", short="ratio"),
    )
    more = (Column("seqs"), Column("seq. TV", short="TV"), ends, Column("ESS / n", short="ESS/n"))
    out: list[list[Cell | str]] = []
    for row in rows:
        token, sequence = row.token, row.sequence
        line_: list[Cell | str] = [row.label, f"{token.n:,}"]
        for name in ("kl_k3", "mean_abs"):
            text = two(token[name].sample or 0.0)
            line_.append(Cell(text, tip(token[name], token.n, "token", text)))
        text, between = slice_ratio(token)
        line_ += (Cell(text, tip(token["mean_ratio"], token.n, "token", text, between)), between)
        if sequence is not None:
            text, between = slice_tv(sequence)
            line_ += (
                f"{sequence.n:,}",
                Cell(text, tip(sequence["tv"], sequence.n, "sequence", text, between)),
                between,
            )
            line_.append(pair("ess_fraction", sequence["ess_fraction"], sequence.n, "sequence")[0])
        out.append(line_)
    notes = slice_refusals(rows)
    return Table.of((*heads, ends, *(more if whole else ())), out, f"By {BY_WORDS[by]}", notes, gap=1)


def strata(cut: Cut, rows: Sequence[Stratum], level: str = "token") -> Table:
    """Mean and spread of log ratios by a cut, of tokens or of sequences; the mean ratio where it must be 1."""
    ratio = level == "token" and cut in KNOWN_BEFORE
    names = ["mean", "sd", *(["mean_ratio"] if ratio else []), "mean_abs"]
    heads = ["mean", INTERVAL.heading, "sd", *(["mean ratio", INTERVAL.heading] if ratio else [])]
    out: list[list[Cell | str]] = []
    for row in rows:
        numbers, n = (row.token, row.tokens) if level == "token" else (row.sequence, row.sequences)
        if numbers is None:
            continue
        cells = {name: pair(name, numbers[name], n, level) for name in names}
        text = two(numbers["sd"].sample or 0.0)
        sd = Cell(text, tip(numbers["sd"], n, level, text))
        out.append(
            [row.label, f"{n:,}", *cells["mean"], sd, *(cells["mean_ratio"] if ratio else ()), *cells["mean_abs"]]
        )
    first = [Column(align="left", most=16)]
    return Table.of(columns(f"{level}s", *heads, "mean |log r|", INTERVAL.heading, first=first), out)


def worst(audit: Audit) -> Table:
    """Show the sequences that are farthest off."""
    rows: list[list[str]] = []
    for one in audit.worst[:MAX_WORST]:
        at = int(one.log_ratios.abs().argmax())
        size = digits(float(one.log_ratios[at]), 3)
        rows.append([one.name, digits(one.log_ratio, 3), f"{one.tokens:,}", size, f"{one.first + at:,}"])
    heads = columns("log ratio, nats", "tokens", "worst token", "at", first=[Column(align="left", most=40)])
    return Table.of(heads, rows, "The worst sequences")


def of_trial(audit: Audit) -> Iterator[Block]:
    """Show who asked for estimators which to use, how wrong each can be, and what was refused."""
    found = audit.recommendation
    order = {one.name: i for i, one in enumerate(found.ranked)}
    some = sorted(audit.trials, key=lambda trial: order.get(trial.name, len(order)))
    yield EMPTY
    if found.best is not None and found.best != found.use:
        yield line(f"of those tried, {found.best} comes nearest: {_why_best(audit, found.best)}", "bold")
        yield EMPTY
    yield limits(some, found)
    lengths, signs = length_parts(some, MAX_KEPT_LENGTHS), sign_parts(some, none=False)
    if len(lengths) > 1 or signs:
        more = ", and sign of the advantage" if signs else ""
        yield EMPTY
        yield by_part(some, [*lengths, *signs], "kept_share", f"Share of units kept, by response length, tokens{more}")
    yield EMPTY
    for reason, names in grouped((one.name, one.why_not) for one in found.ranked if one.why_not).items():
        yield line(f"not recommended: {names}: {reason}", "dim")
    for reason, names in grouped(found.refused.items()).items():
        yield line(f"refused: {names}: {reason}", "dim")
    yield line(f"guaranteed progress: {found.progress}", "dim")


def _why_best(audit: Audit, name: str) -> str:
    trial = next(one for one in audit.trials if one.name == name)
    effective = share(trial.all.effective_share)
    return f"mean weight {of_log(trial.all.log_mean_weight)}, {effective} effective"


def limits(some: Sequence[TrialRow], found: Recommendation) -> Table:
    """Show how wrong each estimator can be at worst; the recommended one stands out."""
    rows: list[list[Cell | str]] = []
    for trial in some:
        name = Cell(trial.name, style="bold" if trial.name == found.use else "")
        numbers = (trial.limits.bias, trial.limits.second, trial.limits.error(found.n))
        rows.append([name, share(trial.all.kept_share), share(trial.all.bounded_share), *map(_limit, numbers)])
    title = f"How wrong each can be at worst, at N = {found.n:,.0f} responses a step, 95% intervals"
    first = (NAMES, Column("kept", wrap=True), Column("capped", wrap=True))
    return Table.of(columns("bias, K", "E w^2, K^2", "error, K", first=first), rows, title, [_K])


def _limit(x: Number) -> str:
    if x.value is None:
        return "refused" if x.sample is None else f"({two(x.sample)})"
    if x.low is None or x.high is None or x.low == x.high:
        return two(x.value)
    return " ".join(interval(x)) if math.isfinite(x.high) else f"{two(x.value)} [{two(x.low)}, inf]"


def meanings(audit: Audit) -> list[tuple[str, str]]:
    """Say what each number of the first tables means."""
    some = list(audit.levels.values())
    found: list[tuple[str, str]] = []
    for name, label in shown_rows(some):
        number = next(x for x in (shown(level, name) for level in some) if x is not None)
        found.append((label, number.meaning))
    return found
