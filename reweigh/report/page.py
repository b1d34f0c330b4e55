"""An audit as one HTML page that loads nothing: verdict, what to do, why, and pictures that answer to the reader.

Every number of the page is put into words here. The script draws pictures from values, and takes what it says of a
point from the table that stands under the picture.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

from reweigh.audit.pictures import MAX_TEXT, MAX_TOKENS, Density, Histogram, Tail, WorstSequence
from reweigh.audit.result import Audit
from reweigh.audit.trial import TrialRow
from reweigh.audit.where import KNOWN_BEFORE
from reweigh.report import audit as tables
from reweigh.report.causes import brief, section
from reweigh.report.tables import MAX_NAME, Cell, Column, Table, cell_html, columns, cut_off, to_html
from reweigh.report.words import CUT_WORDS, counted, pair, run_line, tip
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, digits, plain, share, two
from reweigh.stats.summary import Summary
from reweigh.stats.sums import NUM_BINS

MAX_LINES = 40  # of notes, and of what to do: of a run of thousands of files there may be as many
MAX_LINE = 1000  # characters
MAX_TRIALS = 60
MARKS = (b": reweigh audit</title>",)  # by which a page is known for one of ours
_FACTS = "Counts have no interval: facts about this sample."
_KEPT = "Tokens kept. One that is kept may weigh little: what counts is the weight above."


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


def page(audit: Audit, command: str = "", decode: Callable[[int], str] | None = None) -> str:
    """Make a page of an audit, of at most some 5 MB, of which plotly.js is 4.8, whatever was audited.

    Args:
        audit: what it shows.
        command: by which it was made, to stand at its top.
        decode: writes the text of a token id, so that the worst sequences are words; boxes if not given.
    """
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
    under, data = _pictures(audit, trials, decode)
    sections = [("gap", "Size"), ("where", "Where"), ("estimators", "Estimators"), ("worst", "Worst sequences")]
    return environment.get_template("page.html").render(
        css=css,
        script=script,
        plotly=Markup(get_plotlyjs()),
        data=Markup(data),
        cell=cell_html,
        html=to_html,
        todo=_lines(top.todo),
        verdict=audit.verdict,
        last=tables.last(audit.verdict),
        lines=_said(audit),
        sizes=tables.sizes(audit),
        command=cut_off(command, MAX_LINE),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        counted=cut_off(counted(audit), MAX_LINE),
        run=cut_off(run_line(audit.info), MAX_LINE),
        notes=_lines(audit.notes),
        sections=[*([("causes", "Causes")] if audit.diagnosis else []), *sections, ("meanings", "Meanings")],
        causes=section(audit.diagnosis, audit.strata) if audit.diagnosis else None,
        cuts=[(cut, CUT_WORDS[cut]) for cut in audit.strata],
        levels=list(audit.levels),
        estimators=[cut_off(trial.name, MAX_NAME) for trial in trials],
        under=under,
        level_tables=[tables.levels(some) for some in tables.level_groups(audit)],
        slice_tables=[tables.slices(by, rows) for by, rows in audit.slices.items()],
        trials=tables.trials(trials, audit.verdict),
        worst=[_card(one) for one in audit.worst],
        max_tokens=MAX_TOKENS,
        words=decode is not None and any(one.token_ids is not None for one in audit.worst),
        meanings=tables.meanings(audit),
        version=__version__,
    )


def _lines(lines: Sequence[str]) -> tuple[str, ...]:
    rest = len(lines) - MAX_LINES
    some = tuple(cut_off(line, MAX_LINE) for line in lines[:MAX_LINES])
    return (*some, f"and {rest:,} more, which --json has") if rest > 0 else some


def _said(audit: Audit) -> list[tuple[str, list[str]]]:
    """What stands between the verdict and its numbers: why, the cause, what is known of such runs; as on a terminal."""
    told = audit.verdict
    others = [one.reason for one in told.findings if one.severity != "ok" and one.reason not in told.reason]
    out: list[tuple[str, list[str]]] = [("why", [told.reason, *others])]
    for label, text, _ in brief(audit.diagnosis, audit.info) if audit.diagnosis is not None else ():
        if label or not out:
            out.append((label, [text]))
        else:
            out[-1][1].append(text)
    if told.action != "fix":  # of wrong numbers none is usual
        out.append(("known", [audit.place.sentence]))
    return [(label, [cut_off(text, MAX_LINE) for text in texts]) for label, texts in out]


def _card(one: WorstSequence) -> WorstCard:
    size = digits(one.log_ratio, 3)
    said = f"{size} nats\nno interval: one sequence\nn = {count(one.tokens, 'token')}\nSum of its tokens' log ratios."
    kept = len(one.log_ratios)
    shown = "" if kept == one.length else f"; shown: {one.first:,} to {one.first + kept - 1:,} of {one.length:,}"
    cut = f", its first {MAX_TEXT:,} characters" if one.text is not None and len(one.text) == MAX_TEXT else ""
    shown += f"; full colour: {digits(_full_colour(one), 2)} nats"
    return WorstCard(one.name, Cell(f"{size} nats", said), count(one.tokens, "token"), shown, one.text, cut)


# What the pictures are drawn from, and the tables that stand under them: each picture's two come from one function


def _pictures(
    audit: Audit, trials: Sequence[TrialRow], decode: Callable[[int], str] | None
) -> tuple[dict[str, list[Under]], str]:
    """Make the tables by the picture that they stand under, and JSON that no HTML parser can take for markup.

    A picture that nothing stands under is not shown.
    """
    heads = [Column("level", "left"), Column("n")]
    means = [[x.level, f"{x.n:,}", *pair("mean_ratio", x["mean_ratio"], x.n, x.level)] for x in audit.levels.values()]
    histograms = {name: _histogram(name, x) for name, x in audit.histograms.items()}
    tails = {name: _tail(name, tail, audit.levels[name]) for name, tail in audit.tails.items()}
    probabilities, density = _density(audit.density)
    under = {
        "identity": [Under("", Table.of(columns("mean ratio", "95% interval", first=heads), means))],
        "histogram": [Under(name, table) for name, (table, _) in histograms.items()],
        "tail": [Under(name, table) for name, (table, _) in tails.items()],
        "density": [Under("", probabilities)],
        "ess": [Under("", tables.trials(trials).only(0, 1, 7, 8, title=""))],
    }
    parts: dict[str, list[list[dict[str, float | None] | None]]] = {}
    for name, some in (
        ("by-length", tables.length_parts(trials, NUM_BINS)),
        ("by-sign", tables.sign_parts(trials)),
    ):
        kept = replace(tables.by_part(trials, some, "kept_tokens_share", ""), notes=(_KEPT,))
        under[name] = [Under("", tables.by_part(trials, some, "mean_weight", "")), Under("", kept)] if some else []
        outcomes = [[(x, of(x)) for _, of in some] for x in trials]
        parts[name] = [
            [_point(x.number(part, "mean_weight")) if part.units else None for x, part in row] for row in outcomes
        ]
    where: dict[str, dict[str, Any]] = {}
    for cut, rows in audit.strata.items():
        by_level = [Under(level, tables.strata(cut, rows, level)) for level in ("token", "sequence")]
        under[f"where-{cut}"] = [one for one in by_level if one.table.rows]
        drawn = [
            {
                "start": row.start,
                "tokens": row.tokens,
                "token": {name: _point(x) for name, x in row.token.items()},
                "sequence": None if row.sequence is None else {name: _point(x) for name, x in row.sequence.items()},
            }
            for row in rows
        ]
        where[cut] = {"words": CUT_WORDS[cut], "known": cut in KNOWN_BEFORE, "rows": drawn}
    data = {
        "identity": [_mean_ratio(level["mean_ratio"]) for level in audit.levels.values()],
        "histograms": {name: bars for name, (_, bars) in histograms.items()},
        "tails": {name: curve for name, (_, curve) in tails.items()},
        "density": density,
        "use": audit.verdict.use,
        "ess": [{"raw": _point(x.raw), "applied": _point(x.number(x.all, "effective_share"))} for x in trials],
        "parts": parts,
        "where": where,
        "worst": [_drawn_worst(one, decode) for one in audit.worst],
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return under, text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _point(x: Number) -> dict[str, float | None]:
    return {"value": plain(x.value), "low": plain(x.low), "high": plain(x.high), "sample": plain(x.sample)}


def _mean_ratio(x: Number) -> dict[str, Any]:
    refused = x.value is None and x.sample is not None
    return _point(x) | {"refused": f"refused ({two(x.sample or 0.0)} here)" if refused else ""}


def _histogram(name: str, histogram: Histogram) -> tuple[Table, dict[str, Any]]:
    bars = histogram.drawn(name)
    n, half = bars["n"], bars["width"] / 2
    rows: list[list[str]] = []
    for i, some in enumerate(bars["counts"]):
        if some:
            middle = bars["first"] + i * bars["width"]
            label = f"{digits(middle - half, 3)} to {digits(middle + half, 3)} nats"
            rows.append([label, f"{some:,}", share(some / n)])
    table = Table.of(columns(f"{name}s", "share", first=[Column("log ratio", "left")]), rows)
    return table, bars | {"of": count(n, name), "facts": _FACTS}


def _tail(name: str, tail: Tail, level: Summary) -> tuple[Table, dict[str, Any]]:
    khat, over, of = level["khat"], tail.khat is not None and tail.khat > tail.limit, count(tail.n, name)
    rows: list[list[Cell | str]] = [["khat", pair("khat", khat, tail.n, name)[0]], ["limit", two(tail.limit)]]
    if tail.log_ratios:
        largest = Number(tail.log_ratios[0], unit="nats")
        text = digits(tail.log_ratios[0], 3)
        rows.append(["largest log ratio", Cell(text, tip(largest, tail.n, name, text))])
    against = f"{'over' if over else 'within'} the limit of {two(tail.limit)}"
    words = f"no tail index: {khat.refused or 'too few units, or all alike'}"
    words = words if tail.khat is None else f"khat {two(tail.khat)}, {against}"
    ratios = [f", ratio {two(math.exp(x))}" if x < 700 else "" for x in tail.log_ratios]
    return Table.of(columns("value", first=[Column("what", "left")]), rows), {
        "n": tail.n,
        "log_ratios": [float(f"{x:.6g}") for x in tail.log_ratios],
        "fitted": [float(f"{x:.6g}") for x in tail.fitted],
        "over": over,
        "words": words,
        "said": [f"log ratio {digits(x, 3)} nats{ratio}" for x, ratio in zip(tail.log_ratios, ratios, strict=True)],
        "of": of,
        "facts": f"One unit: no interval. {khat.meaning}",
        "note": (
            f"The {len(tail.log_ratios):,} largest of {of}. Under an index of 0.5 the ratio has a "
            f"variance; moments are refused beyond {two(tail.limit)}."
        ),
    }


def _density(density: Density) -> tuple[Table, dict[str, Any]]:
    edges, heights = density.column_edges(), density.row_edges()
    counts: list[list[int]] = density.counts.tolist()
    totals = [sum(column) for column in counts]
    n, last = sum(totals), len(totals) - 1
    rows: list[list[str]] = []
    for i in range(last, -1, -1):  # rare tokens first
        if totals[i]:
            high = "1" if i == 0 else _probability(edges[i])
            label = f"below {_probability(edges[i])}" if i == last else f"{_probability(edges[i + 1])} to {high}"
            rows.append([label, f"{totals[i]:,}", share(totals[i] / n)])
    labels = [f"{two(low)} to {two(high)}" for low, high in pairwise(heights)]
    labels[0], labels[-1] = f"below {two(heights[1])}", f"over {two(heights[-2])}"
    said = [
        [f"{x:,} of {n:,} tokens\n{share(x / total)} of the tokens of this probability" if x else "" for x in column]
        for column, total in zip(counts, totals, strict=True)
    ]
    return Table.of(columns("tokens", "share", first=[Column("probability under mu", "left")]), rows), {
        "minus_log_mu": edges,
        "log_ratio": heights,
        "linear": _usual(counts, heights),
        "counts": counts,
        "labels": labels,
        "said": said,
        "facts": _FACTS,
        "powers": [f"{10**k:,}" for k in range(len(str(n)))],
    }


def _usual(counts: Sequence[Sequence[int]], heights: Sequence[float]) -> float:
    """Find the median |log ratio| of tokens that mu was not sure of, nats: up to it the picture's axis is linear."""
    unsure = [sum(some) for some in zip(*counts[_UNSURE:], strict=True)]
    middle = len(unsure) // 2
    folded = [unsure[middle], *(unsure[middle + i] + unsure[middle - i] for i in range(1, middle + 1))]
    half, total = sum(folded) / 2, 0
    for i, some in enumerate(folded):
        total += some
        if total >= half:
            return heights[middle + 1 + i]
    return heights[-1]


_UNSURE = 2 * (20 - 7)  # columns of the density from -log mu = 2^-7 on: probabilities below .992


def _probability(nats: float) -> str:
    p = math.exp(-nats)
    return f"1 - {digits(1 - p, 1)}" if p > 0.9 else two(p)


def _drawn_worst(one: WorstSequence, decode: Callable[[int], str] | None) -> dict[str, Any]:
    ids: list[int | None] = [None] * len(one.mask) if one.token_ids is None else one.token_ids.tolist()
    said: list[str] = []
    for l, log_mu, counts in zip(one.log_ratios.tolist(), one.log_mu.tolist(), one.mask.tolist(), strict=True):
        probability = two(math.exp(log_mu)) if counts else ""
        said.append(f"log ratio {digits(l, 3)} nats, probability under mu {probability}" if counts else "")
    places = [
        f"token {one.first + i:,} of the response" + ("" if x is None else f", id {x}") for i, x in enumerate(ids)
    ]
    full = _full_colour(one)
    shades = [round(max(-1.0, min(1.0, l / full)), 3) if math.isfinite(l) else 0.0 for l in one.log_ratios.tolist()]
    words = [] if decode is None or one.token_ids is None else ["" if x is None or x < 0 else decode(x) for x in ids]
    return {"places": places, "said": said, "shades": shades, "words": words}


def _full_colour(one: WorstSequence) -> float:
    """The size that has the full colour, nats: that of the token that is farthest off."""
    sizes = [abs(l) for l in one.log_ratios.tolist() if math.isfinite(l)]
    return max(sizes, default=0.0) or 1.0
