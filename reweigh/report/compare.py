"""A comparison as lines and tables: what changed and whether chance explains it, then the numbers side by side."""

from collections.abc import Iterator

from reweigh.audit.compare import Comparison, Difference
from reweigh.report.tables import EMPTY, Block, Cell, Column, Line, Table, columns, line
from reweigh.report.words import BY_WORDS, ROWS, SHARES
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, interval, share, two

_LABELS = {**dict(ROWS), "length": "tokens a response"}


def headline(found: Comparison) -> str:
    """Say in a sentence whether the gap has changed."""
    kl = found.kl
    a, b = (two(max(x.sample or 0.0, 0.0)) for x in (kl.a, kl.b))
    how = f"the same {count(found.shared, 'prompt')}" if found.paired else "other prompts"
    if kl.change.refused:
        return f"not told: KL(mu||pi) is {a} and {b} nats a token; {kl.change.refused}"
    ends = f"{_signed(kl.change.value)} {_ends(kl.change)} nats a token"
    if not kl.sure:
        return f"no difference can be told: KL(mu||pi) is {a} and {b}, {ends} (95%, over {how})"
    word = "larger" if (kl.change.value or 0.0) > 0 else "smaller"
    return f"the gap of the second is {word}: KL(mu||pi) is {a} and {b}, {ends} (95%, over {how})"


def on_terminal(found: Comparison) -> Iterator[Block]:
    """Show the sentence first, then both verdicts, what the runs differ in, and the numbers."""
    yield Line(((headline(found), "bold"),))
    yield EMPTY
    rows: list[list[Cell]] = []
    for i, verdict in enumerate(found.verdicts):
        files = found.files[i]
        sizes = f"{count(sum(f.rows for f in files), 'response')}, {count(sum(f.tokens for f in files), 'token')}"
        word = Cell(verdict.level, style=verdict.level)
        rows.append([Cell("AB"[i], style="bold"), Cell(f"{found.names[i]}: {sizes}"), word, Cell(verdict.reason)])
    fixed, wrapped = Column(align="left"), Column(align="left", wrap=True)
    yield Table.of((fixed, wrapped, fixed, wrapped), rows, frame="none", headed=False)
    if found.runs:
        yield EMPTY
        said = "; ".join(f"{name} {a} and {b}" for name, (a, b) in found.runs.items())
        yield line(f"the runs differ in: {said}")
    yield EMPTY
    yield differences(found)
    for by, some in found.slices.items():
        if some:
            yield EMPTY
            cells = [[row.label, *_cells(row.difference)] for row in some]
            title = f"KL(mu||pi) by k3, nats a token, by {BY_WORDS[by]}"
            yield Table.of(columns(*_HEADS, first=[Column(align="left")]), cells, title)
    for note in found.notes:
        yield line(f"note: {note}")


_HEADS = ("A", "B", "B - A", "95% interval", "")


def differences(found: Comparison) -> Table:
    """Show every number of both sides."""
    rows = [[_label(one), *_cells(one)] for one in found.differences]
    how = "differences of the same prompts" if found.paired else "no prompt is in both, so the two variances add up"
    reasons = dict.fromkeys(one.change.refused for one in found.differences if one.change.refused)
    notes = [f"intervals: 95%, of B - A, clustered by prompt; {how}; *: chance does not explain it"]
    notes += [f"refused: {reason}" for reason in reasons]
    return Table.of(columns(*_HEADS, first=[Column(align="left")]), rows, notes=notes)


def _label(one: Difference) -> str:
    name = _LABELS.get(one.name, one.name)
    return name if one.name in ("kl_k3", "kl_k1", "length", "mean_abs") else f"{name}, by {one.level}"


def _cells(one: Difference) -> list[Cell | str]:
    is_share = one.name in SHARES
    if one.change.value is None:
        change, ends = "refused", ""
    elif is_share:
        change, ends = f"{100 * one.change.value:+.2g} points", _ends(one.change, 100)
    else:
        change, ends = _signed(one.change.value), _ends(one.change)
    return [*(_said(x, is_share) for x in (one.a, one.b)), change, ends, Cell("*" if one.sure else "", style="bold")]


def _said(number: Number, is_share: bool) -> str:
    if number.value is None:
        return "refused"
    return share(number.value) if is_share else interval(number)[0].strip()


def _signed(x: float | None) -> str:
    return "0" if not x else f"{'+' if x > 0 else '-'}{two(abs(x))}"


def _ends(number: Number, scale: float = 1.0) -> str:
    if number.low is None or number.high is None:
        return ""
    return f"[{_signed(scale * number.low)}, {_signed(scale * number.high)}]"
