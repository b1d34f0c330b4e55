"""What `reweigh plan` prints, for a reader: the verdict, the modes, the defaults, the band and the caps."""

import math

from rich.console import Console
from rich.table import Table

from reweigh.cli.output import stdout
from reweigh.plan.advice import said
from reweigh.plan.measured import Measured
from reweigh.plan.model import CHI2_TRUSTED, Capping, Figure, figure
from reweigh.plan.result import FIGURES, AtLength, Plan, Row, variance_over_model

_HEADINGS = {
    "dropped": "dropped",
    "capped": "capped",
    "retained": "weight",
    "over_kept": "of kept",
    "ess": "effective",
}
_MODE = {
    "any": "any mode",
    "sequence": "sequence",
    "capped sequence": "sequence, capped",
    "token": "token",
    "none": "fix the cause",
}


def print_plan(found: Plan) -> None:
    """The verdict first; of one length everything, of several a line each."""
    out = stdout()
    for one in found.at:
        out.print(f"[bold]{_MODE[one.advice.mode]}[/]: ", end="")
        out.print(one.advice.sentence, markup=False, soft_wrap=True)
    if found.measured is not None:
        _print_records(out, found.measured)
    if len(found.at) == 1:
        _print_one(out, found.at[0], found.batch)
    else:
        _print_sweep(out, found)


def _print_records(out: Console, m: Measured) -> None:
    kl, over = m.token.numbers["kl_k3"], variance_over_model(m)
    ends = "" if kl.low is None or kl.high is None else f" [{kl.low:.2g}, {kl.high:.2g}]"
    lines = [f"{m.sequence.n:,} sequences, {m.token.n:,} tokens; KL(mu||pi) by k3 {m.kl:.2g}{ends} nats a token"]
    lines.append(f"a sequence's own mean square varies by {math.sqrt(m.each.spread()):.0%} (coefficient of variation)")
    if over is not None:
        lines[-1] += f"; variance of sequence log ratios: {over:.2g} times the model's"
    out.print()
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _print_one(out: Console, at: AtLength, batch: float) -> None:
    out.print(f"\n[bold]Modes[/] at {at.length:,.0f} tokens, log r ~ N(-{at.s2 / 2:.2g}, {at.s2:.2g})")
    data = any(row.on_data is not None for row in (*at.modes, *at.defaults))
    out.print(_rows(at.modes, data))
    out.print("\n[bold]Popular defaults[/]")
    out.print(_rows(at.defaults, data))
    out.print(
        "\nweight: mean over all units, dropped ones at 0: the factor on the learning rate if the loss is over all"
        "\nof kept: mean over kept units: the same if the loss is over what is kept; effective: (mean w)^2 / mean w^2",
        soft_wrap=True,
        markup=False,
    )
    _print_band(out, at)
    out.print(f"\n[bold]Caps of the sequence ratio[/] for {batch:,.0f} sequences a step")
    out.print(_caps(at, data))
    if not at.trusted:
        out.print(
            f"\n~ chi-square of the sequence ratio is {_chi2(at.chi2)}; the model was checked up to {CHI2_TRUSTED:g}, "
            "and real tails are heavier: read these as orders of magnitude. post, post_batch and cubic follow from "
            "the chi-square itself: refused.",
            soft_wrap=True,
            markup=False,
        )
    out.print(
        "Single tokens have heavier tails than the model's: if much more is capped or dropped by token than here, look "
        "for a cause.",
        soft_wrap=True,
        markup=False,
    )


def _rows(rows: tuple[Row, ...], data: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for heading in _HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    if data:
        for name in ("dropped", "weight", "effective"):
            table.add_column(f"{name}*", justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.mode.framework} {row.mode.name}".strip()
        found = row.figures()
        cells = [said(found[f]) for f in FIGURES]
        if data:
            cells += _on_data(row)
        table.add_row(name, row.mode.estimator.unit, *cells)
    if data:
        table.caption, table.caption_justify = "* on your data: a fact about these very units", "left"
    return table


def _on_data(row: Row) -> list[str]:
    found = row.on_data
    if found is None:
        return ["-"] * 3
    return [said(Figure(x)) for x in (found.dropped, found.retained, found.ess)]


def _print_band(out: Console, at: AtLength) -> None:
    band, data = at.band.band, at.band.on_data
    out.print(f"\n[bold]Length-aware band[/]: mean log ratio within -{band.kl:.3g} -+ {band.width:.3g} / sqrt(T)")
    kept = f"keeps {at.band.keeps:.0%}" + ("" if data is None else f", of your data {data:.0%}, each at its own length")
    lines = [f"at {at.length:,.0f} tokens {band.code}: {kept}"]
    lines += [f"  {name}: {', '.join(f'{k}={v!r}' for k, v in o.items())}" for name, o in at.band.options.items()]
    lines.append(f"for every length at once: length_band({band.kl:.3g}, {band.width:.3g}) of reweigh.plan")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _caps(at: AtLength, data: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    for heading in ("cap", "weight", "effective", *(["cap on your data"] if data else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for c in at.caps:
        shares = ["-", "-"]
        if c.expected is not None:
            shares = [said(figure(x, at.chi2)) for x in (c.expected.retained, c.expected.ess)]
        table.add_row(c.rule, _cap(c), *shares, *([_ratio(c.on_data)] if data else []))
    return table


def _cap(c: Capping) -> str:
    if c.cap.value is None:
        return "refused"
    return ("~" if c.cap.trust == "rough" else "") + _ratio(c.cap.value)


def _ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:,.0f}" if 100 <= x < 1e6 else f"{x:.2g}"


def _chi2(x: float) -> str:
    return f"{x:.1g}" if x < 1e6 else "past a million"


def _print_sweep(out: Console, found: Plan) -> None:
    """One line a length."""
    table = Table(box=None, pad_edge=False)
    names = ("seq_is", "seq_tis(2)", "verl geo 0.999-1.001", "skyrl geometric 0.99-1.01")
    of_modes = ("product\neffective", "min(r, 2)\nweight", "0.999-1.001\ndrops", "0.99-1.01\ndrops")
    keeps = f"band that keeps {found.at[0].band.keeps:.0%}"
    for heading in ("tokens", "sane", *of_modes, "tradeoff\ncap", keeps):
        table.add_column(heading, justify="left" if heading == "sane" else "right", no_wrap=True)
    for at in found.at:
        product, capped, narrow, wide = (at.row(name).figures() for name in names)
        cap = next(c for c in at.caps if c.rule == "tradeoff")
        shares = (product["ess"], capped["retained"], narrow["dropped"], wide["dropped"])
        table.add_row(f"{at.length:,.0f}", _MODE[at.advice.mode], *map(said, shares), _cap(cap), at.band.band.code)
    out.print()
    out.print(table)
    out.print("One length alone shows every mode and default.", markup=False)
