"""An audit as one HTML page that loads nothing: verdict, what to do, why, and pictures that answer to the reader."""

import json
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reweigh.audit.document import document
from reweigh.audit.headline import Headline, headline
from reweigh.audit.labels import CUT_WORDS, count, counted, run_line
from reweigh.audit.page.cells import Cell
from reweigh.audit.page.diagnosed import cause_section
from reweigh.audit.page.grids import MAX_TRIALS, level_grids, meanings, short, slice_grids, trial_grid
from reweigh.audit.pictures import MAX_TEXT, MAX_TOKENS, WorstSequence
from reweigh.audit.result import Audit
from reweigh.stats.numerals import digits

MAX_LINES = 40  # of notes, and of what to do: of a run of thousands of files there may be as many
MAX_LINE = 1000  # characters
# What the pictures are drawn from; the tables are in the page as they are.
_DRAWN = ("levels", "estimators", "estimator_meanings", "where", "histograms", "density", "tails", "worst")


@dataclass(frozen=True)
class WorstCard:
    """One of the worst sequences; its tokens are drawn by the page."""

    name: str
    log_ratio: Cell
    tokens: str
    shown: str
    text: str | None
    cut: str


def render_html(audit: Audit) -> str:
    """The page: at most some 5 MB, of which plotly.js is 4.8, whatever was audited."""
    from plotly.offline import get_plotlyjs

    from reweigh import __version__

    environment = Environment(
        loader=PackageLoader("reweigh.audit.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def file(name: str) -> Markup:
        assert environment.loader is not None
        return Markup(environment.loader.get_source(environment, name)[0])

    sections = [("gap", "Size"), ("where", "Where"), ("estimators", "Estimators"), ("worst", "Worst sequences")]
    return environment.get_template("page.html").render(
        css=file("page.css"),
        script=file("page.js"),
        plotly=Markup(get_plotlyjs()),
        data=Markup(_data(audit)),
        top=_short(headline(audit)),
        verdict=audit.verdict,
        counted=short(counted(audit), MAX_LINE),
        run=short(run_line(audit.info), MAX_LINE),
        notes=_lines(audit.notes),
        sections=[*([("causes", "Causes")] if audit.diagnosis else []), *sections, ("meanings", "Meanings")],
        causes=cause_section(audit.diagnosis, audit.strata) if audit.diagnosis else None,
        cuts=[(cut, CUT_WORDS[cut]) for cut in audit.strata],
        levels=list(audit.levels),
        estimators=[short(trial.name) for trial in audit.trials[:MAX_TRIALS]],
        level_grids=level_grids(audit),
        slice_grids=slice_grids(audit),
        trials=trial_grid(audit),
        worst=[_card(one) for one in audit.worst],
        max_tokens=MAX_TOKENS,
        meanings=meanings(audit),
        version=__version__,
    )


def _data(audit: Audit) -> str:
    """The drawn parts of the document as JSON that no HTML parser can take for markup."""
    whole = document(audit)
    drawn: dict[str, Any] = {name: whole[name] for name in _DRAWN}
    drawn["estimators"] = [one | {"name": short(one["name"])} for one in drawn["estimators"][:MAX_TRIALS]]
    for cut in drawn["where"].values():
        for row in cut["rows"]:
            row["label"] = short(row["label"], 40)
    drawn["worst"] = [{k: v for k, v in one.items() if k != "text"} for one in drawn["worst"]]
    drawn["cut_words"] = dict(CUT_WORDS)
    text = json.dumps(drawn, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _short(top: Headline) -> Headline:
    return replace(top, sentence=short(top.sentence, MAX_LINE), todo=_lines(top.todo), why=_lines(top.why))


def _lines(lines: tuple[str, ...]) -> tuple[str, ...]:
    rest = len(lines) - MAX_LINES
    shown = tuple(short(line, MAX_LINE) for line in lines[:MAX_LINES])
    return (*shown, f"and {rest:,} more, which --json has") if rest > 0 else shown


def _card(one: WorstSequence) -> WorstCard:
    size = digits(one.log_ratio, 3)
    tip = f"{size} nats\nno interval: one sequence\nn = {count(one.tokens, 'token')}\nSum of its tokens' log ratios."
    kept = len(one.log_ratios)
    shown = "" if kept == one.length else f"; shown: {one.first:,} to {one.first + kept - 1:,} of {one.length:,}"
    cut = f", its first {MAX_TEXT:,} characters" if one.text is not None and len(one.text) == MAX_TEXT else ""
    return WorstCard(one.name, Cell(f"{size} nats", tip), count(one.tokens, "token"), shown, one.text, cut)
