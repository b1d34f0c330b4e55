"""A matrix of probes as lines, tables, a page and JSON: what each option carries of the gap, then every arm."""

from collections.abc import Iterator
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from reweigh.report.tables import EMPTY, Block, Cell, Column, Line, Table, columns, line, to_html
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, two

if TYPE_CHECKING:  # it loads what probes
    from reweigh.probe.matrix import Effect, Matrix

_LINKS = (
    ("all", "decode against trainer"),
    ("decode_prefill", "engine's decode against its prefill"),
    ("prefill_trainer", "engine's prefill against trainer"),
    ("trainer_itself", "trainer against itself, one row a batch"),
)
_LEFT = Column(align="left")


def headline(found: "Matrix") -> str:
    """Say in a sentence what carries the gap."""
    base = found.gaps[found.results[0].arm.name]
    start = f"KL(mu||pi) of the base is {_positive(base.value)} nats a token"
    if found.cheapest is None:
        return f"{start}; {found.why}"
    one = found.cheapest
    return f"{start}; {one.names[0]} alone takes off {_share(one.share)} of it ({_ends(one.share)})"


def on_terminal(found: "Matrix") -> Iterator[Block]:
    """Show the sentence first, then effects, interactions, links and arms."""
    yield Line(((headline(found), "bold"),))
    if found.cheapest is not None:
        yield line(f"change it first: {found.why}")
    for one in tables(found):
        yield EMPTY
        yield one


def tables(found: "Matrix") -> Iterator[Table]:
    """Every table, those with nothing in them left out."""
    if found.effects:
        yield effects(found)
    if links := _links(found):
        yield links
    yield arms(found)
    if found.failed:
        rows = [[one.arm.name, one.reason] for one in found.failed]
        yield Table.of(
            (Column("arm", align="left"), Column("why", align="left", wrap=True, prose=True)), rows, "failed"
        )


def effects(found: "Matrix") -> Table:
    """What each change takes off the gap."""
    rows = [_effect(" + ".join(one.names), one) for one in found.effects]
    rows += [_effect(f"{' with '.join(one.names)}, beyond each alone", one) for one in found.interactions]
    if found.together is not None:
        rows.append(_effect("all at once", found.together))
    notes = ["shares: of the base's KL(mu||pi), 95% intervals of the paired difference, clustered by prompt"]
    if any(one.carried for one in found.effects):
        notes.append("carried: the share with half of each interaction that was measured")
    if found.num_pairs:
        notes.append(f"{len(found.interactions)} of {count(found.num_pairs, 'pair')} interact beyond chance")
    if found.unexplained is not None:
        notes.append(
            f"when all are made, single changes and pairs leave {_share(found.unexplained)} "
            f"({_ends(found.unexplained)}) of the base's gap unexplained"
        )
    heads = ("KL removed", "share", "95% interval", "carried", "time")
    return Table.of(columns(*heads, first=[_LEFT]), rows, "what each change takes off", notes)


def _effect(name: str, one: "Effect") -> list[str]:
    carried = "" if one.carried is None else _share(one.carried)
    cost = "" if one.cost is None else f"{two(one.cost)} x"
    return [name, _signed(one.removed.value), _share(one.share), _ends(one.share), carried, cost]


def _links(found: "Matrix") -> Table | None:
    shown = [one for one in found.measured if len(one.parts) > 1]
    if not shown:
        return None
    rows = [[one.arm.name, *(two(one.parts[k] ** 0.5) if k in one.parts else "" for k, _ in _LINKS)] for one in shown]
    notes = [
        "root mean squares of the log ratio, nats a token; the squares of decode-prefill and prefill-trainer add up to "
        "that of all if the two are independent",
        "; ".join(f"{short}: {long}" for short, (_, long) in zip(_SHORT, _LINKS, strict=True)),
    ]
    return Table.of(columns(*_SHORT, first=[_LEFT]), rows, "links", notes)


_SHORT = ("all", "decode-prefill", "prefill-trainer", "trainer-itself")


def arms(found: "Matrix") -> Table:
    """The gap of every arm."""
    rows: list[list[Cell | str]] = []
    for one in found.measured:
        kl, size = found.gaps[one.arm.name], found.sizes[one.arm.name]
        tokens = sum(n for _, _, n in one.prompts.values())
        how = "the base's tokens" if one.paired else "its own tokens"
        rows.append([one.arm.name, _positive(kl.value), _ends_of(kl), two(size.value or 0.0), f"{tokens:,}", how])
    heads = ("KL, nats", "95% interval", "mean |log ratio|", "tokens", "")
    return Table.of(columns(*heads, first=[_LEFT]), rows, "arms")


def page(found: "Matrix") -> str:
    """A page that needs nothing else."""
    css = files("reweigh.report").joinpath("page.css").read_text("utf-8")
    parts = [f"<h1>{escape(headline(found))}</h1>"]
    if found.cheapest is not None:
        parts.append(f"<p>change it first: {escape(found.why)}</p>")
    parts += [f"<section>{to_html(one)}</section>" for one in tables(found)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>reweigh probe: matrix</title>\n'
        f"<style>{css}</style></head>\n<body><main>{''.join(parts)}</main></body></html>\n"
    )


def to_dict(found: "Matrix") -> dict[str, Any]:
    """Plain values, for JSON."""
    from reweigh.probe.matrix import ArmResult

    arms_of: list[dict[str, Any]] = []
    for one in found.results:
        if not isinstance(one, ArmResult):
            arms_of.append({"name": one.arm.name, "changes": dict(one.arm.changes), "failed": one.reason})
            continue
        arms_of.append(
            {
                "name": one.arm.name,
                "changes": dict(one.arm.changes),
                "records": str(one.records),
                "paired": one.paired,
                "tokens": sum(n for _, _, n in one.prompts.values()),
                "kl_k3": _number(found.gaps[one.arm.name]),
                "mean_abs": _number(found.sizes[one.arm.name]),
                "mean_squares": dict(one.parts),
                "seconds": {"engine": one.seconds[0], "trainer": one.seconds[1]},
            }
        )
    return {
        "headline": headline(found),
        "arms": arms_of,
        "effects": [_plain(one) for one in found.effects],
        "interactions": [_plain(one) for one in found.interactions],
        "pairs_measured": found.num_pairs,
        "together": None if found.together is None else _plain(found.together),
        "unexplained": None if found.unexplained is None else _number(found.unexplained),
        "cheapest": None if found.cheapest is None else found.cheapest.names[0],
        "why": found.why,
    }


def _plain(one: "Effect") -> dict[str, Any]:
    carried = None if one.carried is None else _number(one.carried)
    return {
        "changes": list(one.names),
        "removed": _number(one.removed),
        "share": _number(one.share),
        "carried": carried,
        "cost": one.cost,
    }


def _number(x: Number) -> dict[str, Any]:
    return {"value": x.value, "low": x.low, "high": x.high} | ({"refused": x.refused} if x.refused else {})


def _positive(x: float | None) -> str:
    return two(max(x or 0.0, 0.0))


def _signed(x: float | None) -> str:
    return "refused" if x is None else f"{'-' if x < 0 else ''}{two(abs(x))}"


def _share(x: Number) -> str:
    return "refused" if x.value is None else _percent(x.value)


def _percent(x: float) -> str:
    # A change that makes the gap forty times as large has a share that no column holds in percent.
    return f"{100 * x:.0f}%" if abs(x) < 10 else f"{'-' if x < 0 else ''}{two(abs(x))} x"


def _ends(x: Number) -> str:
    return "" if x.low is None or x.high is None else f"[{_percent(x.low)}, {_percent(x.high)}]"


def _ends_of(x: Number) -> str:
    return "" if x.low is None or x.high is None else f"[{_positive(x.low)}, {_positive(x.high)}]"
