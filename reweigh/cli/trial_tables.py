"""The trial of estimators in the terminal: what each keeps, how wrong it can be, and which to use."""

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reweigh.audit import Audit
from reweigh.audit.lengths import LengthColumn, length_columns
from reweigh.audit.recommend import Recommendation
from reweigh.audit.result import TrialRow
from reweigh.audit.trial import SIGNS, Sign
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import interval, share, two

MAX_WIDTH = 100
MAX_LENGTHS = 10  # groups of response lengths
_SIGN_WORDS: Mapping[Sign, str] = {"negative": "A < 0", "positive": "A > 0"}
_K = (
    "K: the largest norm of a response's term of the gradient. Worst bias and second moment are over all rewards and "
    "gradients there could be, so a real one is nearer; an estimator that gives no gradient has an error of 1 K."
)


def render_trial(audit: Audit, found: Recommendation, console: Console) -> None:
    """Print what to use, then the tables, then what was refused."""
    width = min(MAX_WIDTH, console.width)
    console.print()
    console.print(Text(str(found), "bold"), width=width)
    order = {name: i for i, name in enumerate([x.name for x in found.ranked])}
    trials = sorted(audit.trials, key=lambda trial: order.get(trial.name, len(order)))
    why_not = {x.name: x.why_not for x in found.ranked}
    console.print()
    console.print(_worst(trials, found), width=width)
    console.print(Text(_K, "dim"), width=width)
    columns = length_columns(trials, MAX_LENGTHS)
    signs: list[Sign] = [
        sign for sign in SIGNS if sign != "none" and any(trial.by_sign[sign].units for trial in trials)
    ]
    if len(columns) > 1 or signs:
        console.print()
        console.print(_kept(trials, columns, signs), width=width)
    for line in _lines(found, why_not):
        console.print(Text(line, "dim"), width=width)


def _worst(trials: list[TrialRow], found: Recommendation) -> Table:
    table = _table(f"How wrong each can be at worst, at N = {found.n:,.0f} responses a step, 95% intervals")
    table.add_column("")
    table.add_column("kept", justify="right")
    table.add_column("capped", justify="right")
    for heading in ("bias, K", "E w^2, K^2", "error, K"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials:
        numbers = (trial.limits.bias, trial.limits.second, trial.limits.error(found.n))
        name = Text(trial.name, "bold" if trial.name == found.use else "")
        table.add_row(name, share(trial.all.kept_share), share(trial.all.bounded_share), *map(_cell, numbers))
    return table


def _kept(trials: list[TrialRow], columns: list[LengthColumn], signs: list[Sign]) -> Table:
    table = _table("Share of units kept, by response length, tokens" + (", and sign of the advantage" if signs else ""))
    table.add_column("")
    for label in (*(column.label for column in columns), *(_SIGN_WORDS[sign] for sign in signs)):
        table.add_column(label, justify="right")
    for trial in trials:
        outcomes = [*(column.of(trial) for column in columns), *(trial.by_sign[sign] for sign in signs)]
        table.add_row(Text(trial.name), *(share(x.kept_share) if x.units else "" for x in outcomes))
    return table


def _lines(found: Recommendation, why_not: dict[str, str]) -> Iterator[str]:
    yield ""
    for reason, names in _grouped({name: why for name, why in why_not.items() if why}):
        yield f"not recommended: {names}: {reason}"
    for reason, names in _grouped(found.refused):
        yield f"refused: {names}: {reason}"
    yield f"guaranteed progress: {found.progress}"


def _grouped(reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield reason, ", ".join(names)


def _cell(x: Number) -> str:
    if x.value is None:
        return "refused" if x.sample is None else f"({two(x.sample)})"
    if x.low is None or x.high is None or x.low == x.high:
        return two(x.value)
    return " ".join(interval(x)) if x.high < float("inf") else f"{two(x.value)} [{two(x.low)}, inf]"


def _table(title: str) -> Table:
    return Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1),
    )
