"""An audit as one HTML page that loads nothing: verdict, what to do, why, and pictures that answer to the reader.

Every number of the page is put into words here. The script draws pictures from values, and takes what it says of a
point from the table that stands under the picture.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from reweigh.audit.pictures import MAX_TEXT, MAX_TOKENS, Density, Histogram, Tail, WorstSequence
from reweigh.audit.result import Audit
from reweigh.audit.trial import TrialRow
from reweigh.audit.where import KNOWN_BEFORE, Cut, Stratum
from reweigh.report import audit as tables
from reweigh.report.causes import section
from reweigh.report.document import bars
from reweigh.report.tables import MAX_NAME, Cell, Column, Table, cell_html, columns, cut_off, to_html
from reweigh.report.words import CUT_WORDS, counted, pair, run_line, tip
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, digits, plain, share, two
from reweigh.stats.summary import Summary
from reweigh.stats.sums import NUM_BINS

MAX_LINES = 40  # of notes, and of what to do: of a run of thousands of files there may be as many
MAX_LINE = 1000  # characters
MAX_TRIALS = 60
_FACTS = "Counts have no interval: facts about this sample."
_PARTS = {"by-length": "mean_weight", "kept-length": "kept_tokens_share", "by-sign": "mean_weight"}
_PARTS["kept-sign"] = "kept_tokens_share"


@dataclass(frozen=True)
class Under:
    """A table under a picture; `level` is the one that it is of, empty if it is of all."""

    level: str
    table: Table


@dataclass(frozen=True)
class WorstCard:
    """One of the worst sequences; its tokens are drawn by the page."""

    name: str
    log_ratio: Cell
    tokens: str
    shown: str
    text: str | None
    cut: str


def page(audit: Audit) -> str:
    """An audit as a page of at most some 5 MB, of which plotly.js is 4.8, whatever was audited."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from reweigh import __version__

    loader = PackageLoader("reweigh.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css, script = (Markup(loader.get_source(environment, name)[0]) for name in ("page.css", "page.js"))
    top, trials = audit.headline, audit.trials[:MAX_TRIALS]
    sections = [("gap", "Size"), ("where", "Where"), ("estimators", "Estimators"), ("worst", "Worst sequences")]
    return environment.get_template("page.html").render(
        css=css,
        script=script,
        plotly=Markup(get_plotlyjs()),
        data=Markup(_drawn(audit, trials)),
        cell=cell_html,
        html=to_html,
        top=replace(top, sentence=cut_off(top.sentence, MAX_LINE), todo=_lines(top.todo), why=_lines(top.why)),
        verdict=audit.verdict,
        counted=cut_off(counted(audit), MAX_LINE),
        run=cut_off(run_line(audit.info), MAX_LINE),
        notes=_lines(audit.notes),
        sections=[*([("causes", "Causes")] if audit.diagnosis else []), *sections, ("meanings", "Meanings")],
        causes=section(audit.diagnosis, audit.strata) if audit.diagnosis else None,
        cuts=[(cut, CUT_WORDS[cut]) for cut in audit.strata],
        levels=list(audit.levels),
        estimators=[cut_off(trial.name, MAX_NAME) for trial in trials],
        under=_under(audit, trials),
        level_tables=[tables.levels(some) for some in tables.level_groups(audit)],
        slice_tables=[tables.slices(by, rows) for by, rows in audit.slices.items()],
        trials=tables.trials(trials),
        worst=[_card(one) for one in audit.worst],
        max_tokens=MAX_TOKENS,
        meanings=tables.meanings(audit),
        version=__version__,
    )


def _lines(lines: Sequence[str]) -> tuple[str, ...]:
    rest = len(lines) - MAX_LINES
    some = tuple(cut_off(line, MAX_LINE) for line in lines[:MAX_LINES])
    return (*some, f"and {rest:,} more, which --json has") if rest > 0 else some


def _card(one: WorstSequence) -> WorstCard:
    size = digits(one.log_ratio, 3)
    said = f"{size} nats\nno interval: one sequence\nn = {count(one.tokens, 'token')}\nSum of its tokens' log ratios."
    kept = len(one.log_ratios)
    shown = "" if kept == one.length else f"; shown: {one.first:,} to {one.first + kept - 1:,} of {one.length:,}"
    cut = f", its first {MAX_TEXT:,} characters" if one.text is not None and len(one.text) == MAX_TEXT else ""
    return WorstCard(one.name, Cell(f"{size} nats", said), count(one.tokens, "token"), shown, one.text, cut)


# What stands under the pictures


def _under(audit: Audit, trials: Sequence[TrialRow]) -> dict[str, list[Under]]:
    heads = [Column("level", "left"), Column("n")]
    means = [[x.level, f"{x.n:,}", *pair("mean_ratio", x["mean_ratio"], x.n, x.level)] for x in audit.levels.values()]
    found = {
        "identity": [Under("", Table.of(columns("mean ratio", "95% interval", first=heads), means))],
        "histogram": [Under(name, _bars(name, x)) for name, x in audit.histograms.items()],
        "tail": [Under(name, _tail(name, tail, audit.levels[name])) for name, tail in audit.tails.items()],
        "density": [Under("", _probabilities(audit.density))],
        "ess": [Under("", tables.trials(trials).only(0, 1, 7, 8, title=""))],
    }
    for cut, rows in audit.strata.items():
        by_level = [Under(level, tables.strata(cut, rows, level)) for level in ("token", "sequence")]
        found[f"where-{cut}"] = [one for one in by_level if one.table.rows]
    for name, number in _PARTS.items():
        parts = _parts(trials, name)
        found[name] = [Under("", tables.by_part(trials, parts, number, ""))] if parts else []
    return found


def _bars(name: str, histogram: Histogram) -> Table:
    found = bars(name, histogram)
    half = found["width"] / 2
    rows: list[list[str]] = []
    for i, n in enumerate(found["counts"]):
        if n:
            middle = found["first"] + i * found["width"]
            label = f"{digits(middle - half, 3)} to {digits(middle + half, 3)} nats"
            rows.append([label, f"{n:,}", share(n / found["n"])])
    return Table.of(columns(f"{name}s", "share", first=[Column("log ratio", "left")]), rows)


def _tail(name: str, tail: Tail, level: Summary) -> Table:
    khat = level["khat"]
    rows: list[list[Cell | str]] = [["khat", pair("khat", khat, tail.n, name)[0]], ["limit", two(tail.limit)]]
    if tail.log_ratios:
        largest = Number(tail.log_ratios[0], unit="nats")
        text = digits(tail.log_ratios[0], 3)
        rows.append(["largest log ratio", Cell(text, tip(largest, tail.n, name, text))])
    return Table.of(columns("value", first=[Column("what", "left")]), rows)


def _probabilities(density: Density) -> Table:
    edges = density.column_edges()
    totals: list[int] = density.counts.sum(1).tolist()
    rows: list[list[str]] = []
    for i in range(len(totals) - 1, -1, -1):  # rare tokens first
        if totals[i]:
            high = "1" if i == 0 else _probability(edges[i])
            last = i == len(totals) - 1
            label = f"below {_probability(edges[i])}" if last else f"{_probability(edges[i + 1])} to {high}"
            rows.append([label, f"{totals[i]:,}", share(totals[i] / sum(totals))])
    return Table.of(columns("tokens", "share", first=[Column("probability under mu", "left")]), rows)


def _probability(nats: float) -> str:
    p = math.exp(-nats)
    return f"1 - {digits(1 - p, 1)}" if p > 0.9 else two(p)


def _parts(trials: Sequence[TrialRow], name: str) -> list[tables.Part]:
    return tables.length_parts(trials, NUM_BINS) if "length" in name else tables.sign_parts(trials)


# What the pictures are drawn from: values, and the few words that no table has


def _drawn(audit: Audit, trials: Sequence[TrialRow]) -> str:
    """As JSON that no HTML parser can take for markup."""
    drawn = {
        "identity": [_point(level["mean_ratio"]) for level in audit.levels.values()],
        "histograms": {
            name: bars(name, x) | {"of": count(x.n, name), "facts": _FACTS} for name, x in audit.histograms.items()
        },
        "tails": {name: _drawn_tail(name, tail, audit.levels[name]) for name, tail in audit.tails.items()},
        "density": _drawn_density(audit.density),
        "ess": [{"raw": _point(x.raw), "applied": _point(x.number(x.all, "effective_share"))} for x in trials],
        "parts": {name: _drawn_parts(trials, name, number) for name, number in _PARTS.items()},
        "where": {cut: _drawn_where(cut, rows) for cut, rows in audit.strata.items()},
        "worst": [_drawn_worst(one) for one in audit.worst],
    }
    text = json.dumps(drawn, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _point(x: Number) -> dict[str, float | None]:
    return {"value": plain(x.value), "low": plain(x.low), "high": plain(x.high), "sample": plain(x.sample)}


def _drawn_tail(name: str, tail: Tail, level: Summary) -> dict[str, Any]:
    khat, over = level["khat"], tail.khat is not None and tail.khat > tail.limit
    against = f"{'over' if over else 'within'} the limit of {two(tail.limit)}"
    words = f"no tail index: {khat.refused or 'too few units, or all alike'}"
    words = words if tail.khat is None else f"khat {two(tail.khat)}, {against}"
    ratios = [f", ratio {two(math.exp(x))}" if x < 700 else "" for x in tail.log_ratios]
    return {
        "n": tail.n,
        "log_ratios": [float(f"{x:.6g}") for x in tail.log_ratios],
        "fitted": [float(f"{x:.6g}") for x in tail.fitted],
        "over": over,
        "words": words,
        "said": [f"log ratio {digits(x, 3)} nats{ratio}" for x, ratio in zip(tail.log_ratios, ratios, strict=True)],
        "of": count(tail.n, name),
        "facts": f"One unit: no interval. {khat.meaning}",
        "note": (
            f"The {len(tail.log_ratios):,} largest of {count(tail.n, name)}. Under an index of 0.5 the ratio has a "
            f"variance; moments are refused beyond {two(tail.limit)}."
        ),
    }


def _drawn_density(density: Density) -> dict[str, Any]:
    counts: list[list[int]] = density.counts.tolist()
    n, rows = sum(map(sum, counts)), density.row_edges()
    labels = [f"{two(low)} to {two(high)}" for low, high in pairwise(rows)]
    labels[0], labels[-1] = f"below {two(rows[1])}", f"over {two(rows[-2])}"
    said = [
        [
            f"{x:,} of {n:,} tokens\n{share(x / sum(column))} of the tokens of this probability" if x else ""
            for x in column
        ]
        for column in counts
    ]
    return {
        "minus_log_mu": density.column_edges(),
        "log_ratio": rows,
        "counts": counts,
        "labels": labels,
        "said": said,
        "facts": _FACTS,
        "powers": [f"{10**k:,}" for k in range(len(str(n)))],
    }


def _drawn_parts(trials: Sequence[TrialRow], name: str, number: str) -> list[list[dict[str, float | None] | None]]:
    parts = _parts(trials, name)
    rows = [[(x, of(x)) for _, of in parts] for x in trials]
    return [[_point(x.number(part, number)) if part.units else None for x, part in row] for row in rows]


def _drawn_where(cut: Cut, rows: Sequence[Stratum]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for row in rows:
        token = {name: _point(x) for name, x in row.token.items()}
        sequence = None if row.sequence is None else {name: _point(x) for name, x in row.sequence.items()}
        found.append({"start": row.start, "tokens": row.tokens, "token": token, "sequence": sequence})
    return {"words": CUT_WORDS[cut], "known": cut in KNOWN_BEFORE, "rows": found}


def _drawn_worst(one: WorstSequence) -> dict[str, Any]:
    ids: list[int | None] = [None] * len(one.mask) if one.token_ids is None else one.token_ids.tolist()
    said: list[str] = []
    for l, log_mu, counts in zip(one.log_ratios.tolist(), one.log_mu.tolist(), one.mask.tolist(), strict=True):
        probability = two(math.exp(log_mu)) if counts else ""
        said.append(f"log ratio {digits(l, 3)} nats, probability under mu {probability}" if counts else "")
    places = [
        f"token {one.first + i:,} of the response" + ("" if x is None else f", id {x}") for i, x in enumerate(ids)
    ]
    shades = [round(max(-1.0, min(1.0, l)), 3) if math.isfinite(l) else 0.0 for l in one.log_ratios.tolist()]
    return {"places": places, "said": said, "shades": shades}
