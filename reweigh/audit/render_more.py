"""The later tables of the terminal: causes, effective shares, signs of the advantage, where the gap is, the worst."""

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from reweigh.audit.causes import evidence_sentence
from reweigh.audit.labels import CUT_WORDS
from reweigh.audit.result import Audit
from reweigh.audit.trial import SIGNS, Sign
from reweigh.audit.where import Cut, Stratum
from reweigh.doctor.causes import ABOUT
from reweigh.doctor.diagnosis import NAMED, Diagnosis, Finding
from reweigh.records import RunInfo
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import digits, interval, of_log, share, two

MAX_ROWS = 8  # of a cut; the page and --json have all
MAX_WORST = 5
_CUTS_SHOWN: tuple[Cut, ...] = ("position", "turn", "lag", "env", "step")
_SIGN_WORDS: dict[Sign, str] = {"negative": "A < 0", "none": "A = 0 or none", "positive": "A > 0"}


def table_of(title: str) -> Table:
    """An empty table in the audit's manner."""
    return Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1),
    )


def causes(diagnosis: Diagnosis, info: RunInfo | None = None) -> Iterator[str]:
    """A diagnosis as lines: the causes it names in full, the others in passing; the page and `reweigh doctor` say all.

    Args:
        diagnosis: what a doctor said.
        info: what the files say of their run: of the fixes, the general one and those of its programs are shown.
    """
    named = [one for one in diagnosis.causes if one.confidence >= NAMED]
    shown = named or list(diagnosis.causes[:1])
    yield ""
    yield "Causes, the likeliest first" if len(named) > 1 else "Cause" if named else "Suspicion"
    for i, one in enumerate(shown, 1):
        explained = "" if one.explained_share is None else f", {share(one.explained_share)} of the squared log ratios"
        yield f"{i}. {ABOUT[one.id].title} ({one.id}): confidence {two(one.confidence)}{explained}"
        yield from (f"   {evidence_sentence(e)}" for e in one.evidence[:1])
        if fix := _fix(one, info):
            yield f"   fix: {fix}"
    if others := [one for one in diagnosis.causes if one not in shown]:
        yield f"suspected, not sure: {', '.join(f'{one.id} {two(one.confidence)}' for one in others)}"
    if diagnosis.cannot_tell:
        ids = ", ".join(dict.fromkeys(one.id for one in diagnosis.cannot_tell))
        yield f"cannot tell: {ids}; `reweigh doctor FILE` says more"
    for note in diagnosis.notes:
        yield f"note: {note.rule}: {note.count:,} {note.counted}{f'; {note.hint}' if note.hint else ''}"


def _fix(one: Finding, info: RunInfo | None) -> str:
    """In general, and in the words of the programs that ran."""
    ran = [] if info is None else [name.lower() for name in (info.engine, info.trainer) if name]
    general = [one.fix["general"]] if "general" in one.fix else []
    return " ".join([*general, *(f"{name}: {one.fix[name]}" for name in dict.fromkeys(ran) if name in one.fix)])


def effective(audit: Audit) -> Table:
    """Effective shares, raw beside applied."""
    table = table_of("Effective share, raw beside applied")
    for heading in ("", "unit"):
        table.add_column(heading)
    for heading in ("raw", "applied"):
        table.add_column(heading, justify="right")
    for trial in audit.trials:
        star = "*" if trial.raw.value is None else ""
        raw = share(trial.raw.sample or 0.0) + star
        table.add_row(Text(trial.name), trial.unit, raw, share(trial.all.effective_share))
    return table


def by_sign(audit: Audit) -> Table | None:
    """Tokens kept and mean weight by sign of the advantage; None without one."""
    signs: list[Sign] = [sign for sign in SIGNS if any(trial.by_sign[sign].units for trial in audit.trials)]
    if signs == ["none"] or not signs:
        return None
    table = table_of("By sign of the advantage")
    table.add_column("")
    for sign in signs:
        table.add_column(f"kept, {_SIGN_WORDS[sign]}", justify="right")
        table.add_column("weight", justify="right")
    for trial in audit.trials:
        row: list[str] = []
        for sign in signs:
            x = trial.by_sign[sign]
            row += (share(x.kept_tokens_share), of_log(x.log_mean_weight)) if x.units else ("", "")
        table.add_row(Text(trial.name), *row)
    return table


def where(audit: Audit) -> Iterator[tuple[Table, list[str]]]:
    """Mean and spread of tokens' log ratios by each cut that was not asked for with `by`."""
    for cut in _CUTS_SHOWN:
        rows = audit.strata.get(cut, ())
        if len(rows) > 1 and cut not in audit.slices:
            step = -(-len(rows) // MAX_ROWS)
            shown = rows[::step]
            below = [f"{len(shown)} of {len(rows)} are shown; --html and --json have all"] if step > 1 else []
            yield _where(cut, shown), below


def _where(cut: Cut, rows: tuple[Stratum, ...]) -> Table:
    table = table_of(f"Log ratio by {CUT_WORDS[cut]}, nats a token")
    table.add_column("", max_width=16, no_wrap=True)
    for heading in ("tokens", "mean", "95% interval", "sd", "mean ratio", "95% interval"):
        table.add_column(heading, justify="left" if heading == "95% interval" else "right", no_wrap=True)
    for row in rows:
        ratio = interval(row.token["mean_ratio"])
        numbers = (*interval(row.token["mean"]), two(_sample(row.token["sd"])), *ratio)
        table.add_row(Text(row.label), f"{row.tokens:,}", *numbers)
    return table


def worst(audit: Audit) -> Table:
    """The sequences that are farthest off."""
    table = table_of("The worst sequences")
    table.add_column("", max_width=40, no_wrap=True)
    for heading in ("log ratio, nats", "tokens", "worst token", "at"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in audit.worst[:MAX_WORST]:
        at = int(one.log_ratios.abs().argmax())
        size = digits(float(one.log_ratios[at]), 3)
        table.add_row(Text(one.name), digits(one.log_ratio, 3), f"{one.tokens:,}", size, f"{one.first + at:,}")
    return table


def _sample(number: Number) -> float:
    return number.sample or 0.0
