"""What `reweigh lab` prints, for a reader: of a golden file, of the claims, of the post's table."""

import math

from rich.markup import escape
from rich.table import Table

from reweigh.cli.output import stdout
from reweigh.theory.lab.claims import Checked
from reweigh.theory.lab.golden import GoldenCheck
from reweigh.theory.lab.table import ROUNDING, Fit, Row


def print_check(found: GoldenCheck, quiet: bool = False) -> None:
    """Each kind of quantity with its worst error; the verdict alone if quiet."""
    out = stdout()
    worst = max(found.tallies, key=lambda t: t.worst / t.tolerance, default=None)
    said = "no quantity was compared" if worst is None else f"worst relative error {worst.worst:.1e} ({worst.group})"
    out.print(
        f"{'ok' if found.ok else 'fail'}: {found.count:,} numbers of {len(found.instances)} worlds recomputed, {said}"
    )
    if quiet:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("quantity", "numbers", "worst error", "tolerance", ""):
        table.add_column(heading, justify="left" if heading in ("quantity", "") else "right")
    for t in found.tallies:
        table.add_row(
            escape(t.group),
            f"{t.count:,}",
            f"{t.worst:.1e}",
            f"{t.tolerance:.0e}",
            "" if t.ok else f"over, at {escape(t.where)}",
        )
    out.print(table)
    out.print(f"not covered: {escape(', '.join(found.uncovered)) or 'nothing'}", soft_wrap=True)


def print_claims(found: tuple[Checked, ...], quiet: bool = False) -> None:
    """Each claim with its verdict and its evidence; whether the verdicts hold if quiet."""
    out, fallen = stdout(), [f.claim.number for f in found if not f.evidence.holds]
    if fallen:
        out.print(f"fail: the verdict on {', '.join(map(str, fallen))} does not hold, of {len(found)} claims")
    else:
        out.print(f"ok: every verdict holds, of {len(found)} claims")
    for f in () if quiet else found:
        c = f.claim
        out.print(f"\n{c.number}. {c.title}: [bold]{c.verdict}[/]")
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        evidence = "evidence" if f.evidence.holds else "AGAINST US"
        rows = (("the post", c.post), ("verdict", c.why), (evidence, f.evidence.text), ("sharper", c.sharper))
        for name, text in (*rows, ("use", c.use)):
            table.add_row(f"  {name}", escape(text))
        out.print(table)


def print_table(rows: list[Row]) -> None:
    """The post's big-O beside what is measured."""
    out = stdout()
    table = Table(box=None, pad_edge=False)
    for heading in ("estimator", "measured", "post: O(...)", "smooth", "rare", "random worlds", "post / exact"):
        table.add_column(heading, justify="left", no_wrap=True)
    for row in rows:
        slack = f"{_short(row.smooth.slack)}, {_short(row.rare.slack)}"
        exact = "-" if row.post == "0" else slack
        quantity = row.quantity.replace("second moment", "2nd moment")
        cells = (row.estimator, quantity, row.post, _power(row.smooth, row.of), _power(row.rare, row.of))
        table.add_row(*map(escape, (*cells, _exponent(row), exact)))
    out.print(table)
    out.print(
        "\nsmooth, rare: constant and exponent of the worst case over rewards, |R| <= 1, T = 16 to 128"
        "\n  (E r^2: of m2 = (1+chi2)^T)"
        "\nrandom worlds: median exponent [least, largest], fixed rewards, T = 3 to 7; - where some are 0"
        "\npost / exact: the post's bound over what it bounds, smooth and rare, T = 128 (and C = 16)",
        soft_wrap=True,
        markup=False,
    )


def _power(fit: Fit, of: str) -> str:
    if math.isfinite(fit.exponent):
        return f"{_short(fit.constant)} {of}^{fit.exponent:.2f}"
    return "0" if fit.last < ROUNDING else f"0 to {_short(fit.last)}"


def _exponent(row: Row) -> str:
    r = row.random
    return f"{r.median:.2f} [{r.low:.1f}, {r.high:.1f}]" if math.isfinite(r.median) else "-"


def _short(x: float) -> str:
    """Two digits."""
    if math.isinf(x):
        return "inf"
    return f"{x:.2g}" if 1e-3 <= x < 100 else f"{x:,.0f}" if 100 <= x < 1e4 else f"{x:.0e}".replace("e+0", "e")
