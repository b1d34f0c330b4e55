"""A plan as lines and tables: the verdict, the modes, the defaults, the band and the caps."""

import math
from collections.abc import Iterator

from reweigh.plan.measured import MeasuredRun
from reweigh.plan.model import CHI2_TRUSTED, Capping, Expected, Figure, figure
from reweigh.plan.run import FIGURES, AtLength, ModeRow, Plan, said, variance_over_model
from reweigh.report.tables import EMPTY, MEDIUM, Block, Column, Line, Table, columns, line, unbroken

_HEADINGS = ("dropped", "capped", "weight", "of kept", "effective")  # of `FIGURES`
_NAME = Column(align="left", wrap=True)


def on_terminal(found: Plan) -> Iterator[Block]:
    """Show the verdict first; of one length everything, of several a line each."""
    for one in found.at:
        told = one.advice
        yield Line(((told.level, f"bold {told.level}"), (f": {told.sentence}", "")), wrap=False, words=True)
    if found.measured is not None:
        yield EMPTY
        yield from _records(found.measured)
    if len(found.at) == 1:
        yield from _one(found.at[0], found.batch)
    else:
        yield EMPTY
        yield _sweep(found)
        yield line("One length alone shows every mode and default.")


def _records(m: MeasuredRun) -> Iterator[Line]:
    kl, over = m.token.numbers["kl_k3"], variance_over_model(m)
    ends = "" if kl.low is None or kl.high is None else f" [{kl.low:.2g}, {kl.high:.2g}]"
    yield unbroken(f"{m.sequence.n:,} sequences, {m.token.n:,} tokens; KL(mu||pi) by k3 {m.kl:.2g}{ends} nats a token")
    varies = f"a sequence's own mean square varies by {math.sqrt(m.each.spread()):.0%} (coefficient of variation)"
    beside = "" if over is None else f"; variance of sequence log ratios: {over:.2g} times the model's"
    yield unbroken(varies + beside)


def _one(at: AtLength, batch: float) -> Iterator[Block]:
    data = any(row.on_data is not None for row in (*at.modes, *at.defaults))
    yield EMPTY
    yield Line((("Modes", "bold"), (f" at {at.length:,.0f} tokens, log r ~ N(-{at.s2 / 2:.2g}, {at.s2:.2g})", "")))
    yield _modes(at.modes, data)
    yield EMPTY
    yield line("Popular defaults", "bold")
    yield _modes(at.defaults, data)
    yield EMPTY
    yield unbroken(
        "weight: mean over all units, dropped ones at 0: the factor on the learning rate if the loss is over all"
    )
    yield unbroken(
        "of kept: mean over kept units: the same if the loss is over what is kept; effective: (mean w)^2 / mean w^2"
    )
    yield EMPTY
    yield from _band(at)
    yield EMPTY
    yield Line((("Caps of the sequence ratio", "bold"), (f" for {batch:,.0f} sequences a step", "")))
    yield _caps(at, data)
    if not at.trusted:
        chi2 = f"{at.chi2:.1g}" if at.chi2 < 1e6 else "past a million"
        yield EMPTY
        yield unbroken(
            f"~ chi-square of the sequence ratio is {chi2}; the model was checked up to {CHI2_TRUSTED:g}, "
            "and real tails are heavier: read these as orders of magnitude. post, post_batch and cubic follow from "
            "the chi-square itself: refused."
        )
    yield unbroken(
        "Single tokens have heavier tails than the model's: if much more is capped or dropped by token than here, look "
        "for a cause."
    )


def _modes(rows: tuple[ModeRow, ...], data: bool) -> Table:
    starred = ("dropped*", "weight*", "effective*") if data else ()
    out: list[list[str]] = []
    for row in rows:
        found, own = row.figures(), row.on_data
        cells = [said(found[f]) for f in FIGURES]
        if data:
            own_cells = [] if own is None else [said(Figure(x)) for x in (own.dropped, own.retained, own.ess)]
            cells += own_cells or ["-"] * 3
        out.append([f"{row.mode.framework} {row.mode.name}".strip(), row.mode.estimator.unit, *cells])
    without = ("capped", "of kept", *(("dropped", "effective") if data else ()))
    heads = [_NAME, Column("unit", "left", spare=MEDIUM)]
    heads += [Column(x, spare=MEDIUM * (x in without)) for x in (*_HEADINGS, *starred)]
    return Table.of(heads, out, notes=["* on your data: a fact about these very units"] if data else [], frame="none")


def _band(at: AtLength) -> Iterator[Line]:
    band, data = at.band.band, at.band.on_data
    where = f": mean log ratio within -{band.kl:.3g} -+ {band.width:.3g} / sqrt(T)"
    yield Line((("Length-aware band", "bold"), (where, "")))
    own = "" if data is None else f", of your data {data:.0%}, each at its own length"
    yield unbroken(f"at {at.length:,.0f} tokens {band.code}: keeps {at.band.keeps:.0%}{own}")
    for name, options in at.band.options.items():
        yield unbroken(f"  {name}: {', '.join(f'{k}={v!r}' for k, v in options.items())}", words=False)  # to be copied
    yield unbroken(f"for every length at once: length_band({band.kl:.3g}, {band.width:.3g}) of reweigh.plan")


def _caps(at: AtLength, data: bool) -> Table:
    heads = columns(
        "cap", "weight", "effective", *(["cap on your data"] if data else []), first=[Column("rule", "left")]
    )
    rows = [[c.rule, _cap(c), *_shares(c.expected, at), *([_ratio(c.on_data)] if data else [])] for c in at.caps]
    return Table.of(heads, rows, frame="none")


def _shares(expected: Expected | None, at: AtLength) -> list[str]:
    if expected is None:
        return ["-", "-"]
    return [said(figure(x, at.chi2)) for x in (expected.retained, expected.ess)]


def _cap(c: Capping) -> str:
    if c.cap.value is None:
        return "refused"
    return ("~" if c.cap.trust == "rough" else "") + _ratio(c.cap.value)


def _ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:,.0f}" if 100 <= x < 1e6 else f"{x:.2g}"


def _sweep(found: Plan) -> Table:
    names = ("seq_is", "seq_tis(2)", "verl geo 0.999-1.001", "skyrl geometric 0.99-1.01")
    of_modes = ("product\neffective", "min(r, 2)\nweight", "0.999-1.001\ndrops", "0.99-1.01\ndrops")
    keeps = f"band that keeps {found.at[0].band.keeps:.0%}"
    rows: list[list[str]] = []
    for at in found.at:
        product, capped, narrow, wide = (at.row(name).figures() for name in names)
        cap = next(c for c in at.caps if c.rule == "tradeoff")
        shares = (product["ess"], capped["retained"], narrow["dropped"], wide["dropped"])
        rows.append(
            [f"{at.length:,.0f}", at.advice.use or at.advice.action, *map(said, shares), _cap(cap), at.band.band.code]
        )
    wide = (*of_modes[2:], "tradeoff\ncap")
    heads = [Column("tokens"), Column("use", "left"), *map(Column, of_modes[:2])]
    heads += [*(Column(x, spare=MEDIUM) for x in wide), Column(keeps, wrap=True)]
    return Table.of(heads, rows, frame="none", gap=1)
