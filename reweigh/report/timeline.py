"""A timeline as lines and one table."""

from collections.abc import Iterator

from reweigh.audit.timeline import Timeline
from reweigh.report.tables import Block, Column, Line, Table, columns, line
from reweigh.stats.numerals import count, interval, share, two

MOST = 40  # rows of a terminal
_BARS = "▁▂▃▄▅▆▇█"


def headline(found: Timeline) -> str:
    """Say where the gap was least and largest."""
    kl = [(max(m.numbers["kl_k3"].sample or 0.0, 0.0), m) for m in found.moments]
    least, most = min(kl, key=lambda x: x[0]), max(kl, key=lambda x: x[0])
    first, last = kl[0], kl[-1]
    steps = f"steps {found.moments[0].first:,} to {found.moments[-1].last:,}"
    return (
        f"{steps}: KL(mu||pi) is {two(first[0])} nats a token at first and {two(last[0])} at last; "
        f"least {two(least[0])} at step {least[1].first:,}, most {two(most[0])} at step {most[1].first:,}"
    )


def on_terminal(found: Timeline) -> Iterator[Block]:
    """Show the sentence, the course in a line, and a row a step."""
    yield Line(((headline(found), "bold"),))
    yield line(f"KL  {_course([max(m.numbers['kl_k3'].sample or 0.0, 0.0) for m in found.moments])}")
    labels = list(found.logged)
    every = -(-len(found.moments) // MOST)
    rows: list[list[str]] = []
    for m in found.moments[::every]:
        kl, ess = m.numbers["kl_k3"], m.numbers["ess_fraction"]
        steps = f"{m.first:,}" if m.first == m.last else f"{m.first:,} to {m.last:,}"
        effective = f"{share(ess.sample or 0.0)}{'*' * (ess.value is None)}"
        ratio = interval(m.numbers["mean_ratio"])[0].strip()
        beside = [f"{m.beside[label]:.3g}" if label in m.beside else "" for label in labels]
        rows.append([steps, interval(kl)[0].strip(), ratio, effective, f"{m.length:,.0f}", *beside])
    heads = columns("KL, nats", "mean ratio", "effective", "tokens", *labels, first=[Column("step", "left")], wrap=True)
    notes = ["KL by k3 and mean ratio of tokens, effective share of sequences, tokens a response; intervals: --json"]
    if any(m.numbers["ess_fraction"].value is None for m in found.moments):
        notes.append("*: of this very sample; refused as a word on more")
    notes += [f"{label}: {name}" for label, name in found.logged.items() if label != name]
    notes += [
        f"rank correlation with KL over {count(n, 'row')}: {name} {r:+.2f}" for name, (r, n) in found.ranks.items()
    ]
    notes += ["what goes together in time need not cause each other"] if found.ranks else []
    notes += [f"each {every}th of {len(found.moments)} rows; --json has all"] if every > 1 else []
    yield Table.of(heads, rows, notes=notes)
    for note in found.notes:
        yield line(f"note: {note}")


def _course(values: list[float]) -> str:
    most = max(values)
    if most <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(x / most * len(_BARS)))] for x in values)
