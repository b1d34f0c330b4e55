"""The experiment as tables, pictures and a page, every figure of which is made of the file of results alone."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from statistics import mean
from typing import Any

from reweigh.experiment import results
from reweigh.experiment.grid import grid
from reweigh.experiment.results import Interval, Outcome, Row
from reweigh.experiment.train import EVERY, Run, Setting
from reweigh.report.tables import NAMES, Block, Cell, Column, Line, Table, columns, to_html
from reweigh.stats.numerals import count, share

SVG_MARKS = (b"<!-- reweigh experiment -->",)
PAGE_MARKS = (b"<title>reweigh experiment</title>",)
DEAD, ALIVE, INK, SOFT, GREY = "#c2410c", "#1d6fb8", "#1f2937", "#6b7280", "#9ca3af"
MARKERS = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = ("#c2410c", "#b8860b", "#7c3aed", "#1d6fb8", "#0f766e")
_PANEL, _HIGH, _LEFT, _TOP, _GAP = 250.0, 150.0, 48.0, 62.0, 46.0


def line_of(run: Run) -> str:
    """Say in a line how a run went."""
    outcome = Outcome.of(run)
    end = "collapsed" if outcome.collapsed else "lives"
    return f"{run.setting.name}, {run.method}, seed {run.seed}: {outcome.peak:.2f} -> {outcome.final:.2f}, {end}"


def summary(runs: Sequence[Run]) -> Iterator[Block]:
    """Say in a line a setting which methods collapsed."""
    found = results.rows(runs)
    for setting in dict.fromkeys(row.setting for row in found):
        ends = [f"{r.method} {r.collapsed} of {len(r.outcomes)}" for r in found if r.setting == setting]
        yield Line(((f"{setting.name}: ", "bold"), (f"collapsed: {', '.join(ends)}", "")))


def blocks(runs: Sequence[Run]) -> Iterator[Block]:
    """Show all tables, under what was run."""
    yield Line(((_title(runs), "bold"),))
    yield from tables(runs)


def tables(runs: Sequence[Run]) -> Iterator[Table]:
    """Make every table that the runs have enough for."""
    everything, runs = runs, [run for run in runs if run.seed >= results.REPORTED] or runs
    found, main = results.rows(runs), main_setting(runs)
    yield outcomes([row for row in found if row.setting in (main, control_of(main))] or found)
    if len({row.setting for row in found}) > 2:
        yield settings(runs)
    best = [] if main is None else results.at_best(everything, main)
    if best:
        yield rates(best)
    held = {job.setting for job in grid("held").jobs}
    some = [run for run in runs if run.setting in held]
    for windows in (1, 2):
        found = results.advised(some, windows)
        if any(one.action != "fix" for one in found):
            yield advice(found, windows, HELD)
    for windows in (1, 2):
        found = results.advised(runs, windows)
        if any(one.action != "fix" for one in found):
            yield advice(found, windows)
    warned = results.alarms(runs)
    if warned and warned[0].dead and warned[0].alive:
        yield warning(warned)
    blamed = results.blamed(runs)
    if blamed:
        yield accused(blamed)
    found = results.directions(runs)
    for run in dict.fromkeys(one.run for one in found):
        of = [one for one in found if one.run == run]
        yield from (directions(of, name) for name in ("cosine", "efficiency", "mse"))


def outcomes(found: Sequence[Row]) -> Table:
    """Who collapsed, by setting and method."""
    made = [
        (
            row.setting.name,
            Cell(row.method, style="code"),
            str(len(row.outcomes)),
            f"{row.peak:.2f}",
            _figure(row.final),
            Cell(f"{row.collapsed} of {len(row.outcomes)}", style="fail" if row.collapsed else "ok"),
            f"{share(row.share[1])} to {share(row.share[2])}",
        )
        for row in found
    ]
    first = (NAMES, Column("method", "left", wrap=True))
    heads = columns("seeds", "peak", "reward at the end", "collapsed", "95% interval", first=first)
    notes = (
        "peak: the best mean of three measurements in a row of pi's own reward, of 256 answers each; at the end: the "
        "mean of the last four. Collapsed: ended at half of the peak or less.",
        "Intervals: t over seeds for rewards, Chernoff for shares; a single seed has none.",
    )
    return Table.of(heads, made, "Who collapses", notes)


def settings(runs: Sequence[Run]) -> Table:
    """How the methods that were run everywhere end in each setting, and what the verdict said at first."""
    found = {(row.setting, row.method): row for row in results.rows(runs) if row.method in results.FIELD}
    said: dict[Setting, list[str]] = {}
    for one in results.advised(runs):
        said.setdefault(one.setting, []).append("fix the log-probs" if one.action == "fix" else one.use)
    made: list[list[Cell | str]] = []
    for setting in dict.fromkeys(setting for setting, _ in found):
        rows = {method: found[setting, method] for method in results.FIELD if (setting, method) in found}
        if len(rows) < len(results.FIELD):
            continue
        best = max(row.final[0] for row in rows.values())
        cells = [_cell(row, best) for row in rows.values()]
        words = said.get(setting, [])
        counted = [f"{use} {words.count(use)}" if len(set(words)) > 1 else use for use in dict.fromkeys(words)]
        made.append([setting.name, str(len(rows[results.NAIVE].outcomes)), *cells, ", ".join(counted)])
    heads = columns("seeds", *(_short(method) for method in results.FIELD), wrap=True)
    notes = (
        "Mean reward of pi at the end, and how many seeds collapsed; * within "
        f"{results.ALIKE} of the best of the row. geo_rs is of the band .95 to 1.05. Verdict: what it says of the "
        f"first {EVERY} steps with a mismatch of an uncorrected run, by number of seeds.",
    )
    return Table.of((*heads, Column("verdict", "left", wrap=True, prose=True)), made, "Other settings", notes)


def _cell(row: Row, best: float) -> Cell:
    star = "*" if row.final[0] >= best - results.ALIKE else ""
    dead = f", {row.collapsed} of {len(row.outcomes)}" if row.collapsed else ""
    return Cell(f"{row.final[0]:.2f}{star}{dead}", style="fail" if row.collapsed else "")


def rates(found: Sequence[results.AtBest]) -> Table:
    """How each method ends at the learning rate that other seeds chose for it, beside the usual one."""
    made = [
        (
            one.method,
            f"{one.usual.final[0]:.2f}",
            _collapsed(one.usual),
            f"{one.rate:g}",
            _figure(one.row.final),
            _collapsed(one.row),
        )
        for one in found
    ]
    usual = found[0].usual.setting
    heads = columns("at the usual rate", "collapsed", "its own rate", "reward at the end", "collapsed there")
    notes = (
        f"{usual.name}, {usual.rate:g} for the usual rate. The rate is chosen by the reward at the end on "
        f"{found[0].chosen_by} other seeds.",
    )
    return Table.of(heads, made, "Each method at a rate of its own", notes)


def _collapsed(row: Row) -> str:
    return f"{row.collapsed} of {len(row.outcomes)}"


HELD = ", on settings of its own"


def advice(found: Sequence[results.Advised], windows: int, where: str = "") -> Table:
    """What the advice of the first records was worth, beside fixed choices and chance."""
    ways, difference = results.worth(found)
    made = [(way.name, _share(way.best_two), _figure(way.lost)) for way in ways]
    which = "first" if windows == 1 else "second"
    settings = len({one.setting for one in found})
    actions = sorted({one.action for one in found})
    said = ", ".join(f"{action} {sum(one.action == action for one in found)}" for action in actions)
    notes = (
        f"The verdict of the {which} {EVERY} steps with a mismatch of an uncorrected run, "
        f"{count(len(found), 'run')} in {count(settings, 'setting')}; verdicts: {said}. One "
        "that says to fix the log-probs first names no method, and takes no part.",
        f"Lost by the advice, less what always {results.FIXED} loses: {_figure(difference)}.",
        "Among the best two: of the methods run in the setting, by mean reward at the end over its seeds, or within "
        f"{results.ALIKE} of the second. Intervals are over settings.",
    )
    return Table.of(
        columns("among the best two", "reward lost to the best"),
        made,
        f"What the advice is worth, from the {which} {EVERY} steps{where}",
        notes,
    )


def warning(found: Sequence[results.Alarm]) -> Table:
    """Which number moves first, at thresholds that other seeds chose."""
    made = [
        (
            alarm.name,
            f"{alarm.threshold:.3g}",
            _share(alarm.hits),
            _share(alarm.false),
            *("" if x is None else "{:.0f}, {:.0f}, {:.0f}".format(*x) for x in (alarm.lead, alarm.ahead)),
        )
        for alarm in found
    ]
    notes = (
        "Median of three steps over a threshold that runs of even seeds chose; shares are of the runs of odd seeds: "
        f"{found[0].dead} that collapsed, {found[0].alive} that did not.",
        "In time: before the reward of the rollouts, which a trainer sees, was under half of its most. Lead, in steps, "
        "least, median and most: until then, and until pi's own reward, measured every 5 steps, was found under half; "
        "below 0 the alarm came later. Runs without a lag take no part.",
    )
    heads = columns("threshold", "in time", "false alarms", "lead on the rollouts", "lead on pi")
    return Table.of(heads, made, "Which number warns", notes)


def accused(found: Sequence[results.Blamed]) -> Table:
    """How often honest log-probs are said not to be."""
    made = [
        (
            f"{one.low:g} to {one.high:g}" if math.isfinite(one.high) else f"over {one.low:g}",
            str(one.windows),
            f"{one.ratio:.2g}",
            _share(results.share_of(one.token, one.windows)),
            _share(results.share_of(one.sequence, one.windows)),
            _share(results.share_of(one.either, one.windows)),
        )
        for one in found
    ]
    heads = columns("windows", "mean token ratio off 1, median", "token check", "sequence check", "either")
    notes = (
        f"All log-probs are honest: share of windows of {EVERY} steps whose verdict says that they are not of what was "
        "sampled, by k3 in nats a token.",
    )
    return Table.of(heads, made, "Honest log-probs that are blamed", notes)


_OF_GRADIENTS = {
    "cosine": ("Where the mean gradient points", "cosine with the true gradient"),
    "efficiency": ("What a batch's gradient is sure to gain", "share of the gain of the true gradient, of a batch"),
    "mse": ("How far a batch's gradient is off", "mean squared error over the squared length of the true gradient"),
}


def directions(found: Sequence[results.Direction], number: str) -> Table:
    """One number of each method's gradient, a column a step of the run."""
    steps = sorted({one.step for one in found})
    by = {(one.method, one.step): one.numbers[number] for one in found}
    methods = dict.fromkeys(one.method for one in found)
    made = [
        (method, *(_about(by[method, step]) if (method, step) in by else "" for step in steps)) for method in methods
    ]
    title, what = _OF_GRADIENTS[number]
    notes = (
        f"{what[:1].upper()}{what[1:]}, with two standard errors; at steps of runs of {found[0].run}. The true "
        "gradient is of answers of pi itself, a method's of the sampler's, 32 batches each. Squares are of different "
        "batches, so that a cosine of what is small can leave -1 to 1.",
    )
    heads = columns(*(f"step {step}" for step in steps))
    return Table.of(heads, made, f"{title}, in runs of {found[0].run}", notes)


def _about(x: Interval) -> str:
    value, low, high = x
    return f"{value:.2g} ± {(high - low) / 2:.1g}"


def to_dict(runs: Sequence[Run]) -> dict[str, Any]:
    """Give what the tables say as values for JSON; what cannot be known is null."""
    return {
        "reweigh_experiment": 1,
        "runs": [
            {
                "setting": run.setting.others,
                "method": run.method,
                "seed": run.seed,
                "peak": round(outcome.peak, 4),
                "final": round(outcome.final, 4),
                "collapsed": outcome.collapsed,
                "halved": outcome.halved,
            }
            for run, outcome in ((run, Outcome.of(run)) for run in runs)
        ],
        "tables": [
            {
                "title": table.title,
                "columns": [column.heading for column in table.columns],
                "rows": [[cell.text for cell in row] for row in table.rows],
                "notes": list(table.notes),
            }
            for table in tables(runs)
        ],
    }


def _figure(x: Interval) -> str:
    value, low, high = x
    if not math.isfinite(value):
        return ""
    return f"{value:.2f}" if not math.isfinite(low) else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _share(x: Interval) -> str:
    value, low, high = x
    if not math.isfinite(value):
        return ""
    ends = "" if not math.isfinite(low) else f" ({share(max(0.0, low))} to {share(min(1.0, high))})"
    return share(value) + ends


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


_MISMATCHES = {"lag", "stale_from", "weights", "cache", "top_p", "replay", "dropout", "partial"}


def main_setting(runs: Sequence[Run]) -> Setting | None:
    """Find the setting of the picture: with a mismatch, and the most runs; the first of those."""
    counts: dict[Setting, int] = {}
    for run in runs:
        if run.setting.others.keys() & _MISMATCHES:
            counts[run.setting] = counts.get(run.setting, 0) + 1
    return max(counts, key=lambda s: counts[s]) if counts else None


def control_of(setting: Setting | None) -> Setting | None:
    """The same without a mismatch."""
    if setting is None:
        return None
    same = {name: value for name, value in setting.others.items() if name not in _MISMATCHES}
    return Setting(**same)


def shown_methods(runs: Sequence[Run], most: int = 5) -> list[str]:
    """Choose the methods of the picture: the first of the setting's, in the order of the grid."""
    setting = main_setting(runs)
    return list(dict.fromkeys(run.method for run in runs if run.setting == setting))[:most]


def picture(runs: Sequence[Run]) -> str:
    """Draw pi's own reward over the steps of each run: a panel a method, red where it collapsed, as an SVG."""
    setting, methods = main_setting(runs), shown_methods(runs)
    control = [run for run in runs if run.setting == control_of(setting) and run.method == results.NAIVE]
    panels = [("no mismatch", control)] if control else []
    panels += [(name, [r for r in runs if r.setting == setting and r.method == name]) for name in methods]
    wide = min(3, max(1, len(panels)))
    deep = -(-len(panels) // wide)
    width, height = _LEFT + wide * (_PANEL + 18), _TOP + deep * (_HIGH + _GAP) + 16
    of = "" if setting is None else f": {setting.name}"
    out = [_head(width, height), _text(8, 20, f"Reward of the policy that trains{of}", 15, bold=True)]
    said = "a line a seed; orange: it ended at half of its peak or less; at the right: how many; grey: no mismatch"
    out.append(_text(8, 39, said, 12, SOFT))
    grey = _mean([run.evals for run in control])
    for i, (name, some) in enumerate(panels):
        x, y = _LEFT + (i % wide) * (_PANEL + 18), _TOP + (i // wide) * (_HIGH + _GAP)
        dead = sum(Outcome.of(run).collapsed for run in some)
        steps = some[0].setting.steps if some else 1
        out.append(_frame(x, y, steps, i % wide == 0, i // wide == deep - 1))
        if setting is not None and setting.lag and name != "no mismatch":
            at = x + _PANEL * setting.stale_from / steps
            out.append(_dashed(at, y, y + _HIGH))
        if grey and name != "no mismatch":
            out.append(_curve(x, y, steps, grey, GREY, 1.5))
        for run in some:
            collapsed = Outcome.of(run).collapsed
            out.append(_curve(x, y, steps, run.evals, DEAD if collapsed else ALIVE, 1.3 if len(some) > 4 else 1.8))
        out.append(_text(x, y - 8, _short(name), 12.5, mono=name != "no mismatch"))
        out.append(_text(x + _PANEL, y - 8, f"{dead} of {len(some)}", 11.5, DEAD if dead else SOFT, "end"))
    return "\n".join([*out, "</svg>"]) + "\n"


def strength(runs: Sequence[Run]) -> str | None:
    """Draw the reward at the end over the lag, a line a method, as an SVG; None with fewer than three lags."""
    found = [row for row in results.rows(runs) if row.setting.others.keys() <= {"lag"} and row.setting.lag]
    lags = sorted({row.setting.lag for row in found})
    methods = [m for m in shown_methods(runs) if sum(row.method == m for row in found) >= 3]
    if len(lags) < 3 or not methods:
        return None
    width, height, x, y = 560.0, 300.0, _LEFT, 46.0
    wide, high = width - _LEFT - 190, height - y - 44
    out = [_head(width, height), _text(8, 20, "Reward at the end, by lag of the sampler", 15, bold=True)]
    at = {lag: x + wide * (i + 0.5) / len(lags) for i, lag in enumerate(lags)}
    for value in (0.0, 0.5, 1.0):
        out.append(_line(x, y + high * (1 - value), x + wide, y + high * (1 - value), "#e5e7eb"))
        out.append(_text(x - 6, y + high * (1 - value) + 4, f"{value:g}", 11, SOFT, "end"))
    out += [_text(px, y + high + 16, str(lag), 11, SOFT, "middle") for lag, px in at.items()]
    out.append(
        _text(x + wide / 2, y + high + 34, "lag, updates (mean and least to most over seeds)", 12, SOFT, "middle")
    )
    for i, method in enumerate(methods):
        shift, points = (i - (len(methods) - 1) / 2) * 5, []
        for row in sorted((r for r in found if r.method == method), key=lambda r: r.setting.lag):
            px, ends = at[row.setting.lag] + shift, [one.final for one in row.outcomes]
            out.append(_line(px, y + high * (1 - min(ends)), px, y + high * (1 - max(ends)), COLOURS[i]))
            points.append((px, y + high * (1 - mean(ends))))
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}" stroke-width="2"/>')
        out += [_mark(MARKERS[i], a, b, COLOURS[i]) for a, b in points]
        out.append(_mark(MARKERS[i], x + wide + 14, y + 14 + 20 * i, COLOURS[i]))
        out.append(_text(x + wide + 24, y + 18 + 20 * i, _short(method), 11.5, mono=True))
    return "\n".join([*out, "</svg>"]) + "\n"


def _short(method: str) -> str:
    return method.replace("geo_rs(0.95, 1.05)", "geo_rs").replace("()", "")


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [mean(values) for values in zip(*curves, strict=False)] if curves else []


def _head(width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif">\n{SVG_MARKS[0].decode()}\n'
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    )


def _frame(x: float, y: float, steps: int, first: bool, last: bool) -> str:
    out: list[str] = []
    for value in (0.0, 0.5, 1.0):
        at = y + _HIGH * (1 - value)
        out.append(_line(x, at, x + _PANEL, at, "#e5e7eb"))
        if first:
            out.append(_text(x - 6, at + 4, f"{value:g}", 11, SOFT, "end"))
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(_text(x + _PANEL * part, y + _HIGH + 15, f"{steps * part:g}", 11, SOFT, "middle"))
    if last:
        out.append(_text(x + _PANEL / 2, y + _HIGH + 30, "updates", 11, SOFT, "middle"))
    return "\n".join(out)


def _curve(x: float, y: float, steps: int, evals: Sequence[float], colour: str, width: float) -> str:
    points = [(x + _PANEL * min(i * EVERY, steps) / steps, y + _HIGH * (1 - value)) for i, value in enumerate(evals)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'


def _line(a: float, b: float, c: float, d: float, colour: str, extra: str = "") -> str:
    return f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" stroke="{colour}"{extra}/>'


def _dashed(x: float, top: float, bottom: float) -> str:
    return _line(x, top, x, bottom, SOFT, ' stroke-dasharray="3 3"')


def _text(
    x: float,
    y: float,
    words: str,
    size: float,
    colour: str = INK,
    anchor: str = "start",
    bold: bool = False,
    mono: bool = False,
) -> str:
    style = ' font-weight="600"' if bold else ""
    style += ' font-family="ui-monospace, monospace"' if mono else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{style}>'
        f"{escape(words)}</text>"
    )


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if kind == "cross":
        path = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return f'<path d="{path}" stroke="{colour}" stroke-width="2.5" fill="none"/>'
    shapes = {"square": ((-4, -4), (4, -4), (4, 4), (-4, 4)), "triangle": ((0, -5), (5, 4), (-5, 4))}
    points = shapes.get(kind, ((0, -5), (5, 0), (0, 5), (-5, 0)))
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in points)}" fill="{colour}"/>'


def page(runs: Sequence[Run]) -> str:
    """Make a page of pictures and tables that loads nothing."""
    drawn = [x for x in (picture(runs), strength(runs)) if x is not None]
    figures = "".join(f"<figure>{x}</figure>" for x in drawn)
    body = "".join(to_html(table) for table in tables(runs))
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}"
        "td{white-space:nowrap}th[scope=row],th.text,td.text,.words{text-align:left}.words{white-space:normal}.soft{color:#6b7280}.scroll{overflow-x:auto}"
        "svg{max-width:100%;height:auto}figure{margin:1rem 0}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"{PAGE_MARKS[0].decode()}\n<style>{style}</style>\n</head>\n<body>\n<h1>{escape(_title(runs))}</h1>\n"
        f"{figures}\n{body}\n</body>\n</html>\n"
    )


def _title(runs: Sequence[Run]) -> str:
    settings = len({run.setting for run in runs})
    return f"{count(len(runs), 'run')} in {count(settings, 'setting')}: who collapses, and what was to be seen"
