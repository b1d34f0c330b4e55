"""The lab in lines and tables: a golden file, the claims, the post's table."""

import math
from collections.abc import Iterator

from reweigh.report.tables import EMPTY, NAMES, Block, Column, Line, Table, columns, line, unbroken
from reweigh.theory.lab.claims import Checked
from reweigh.theory.lab.golden import GoldenCheck
from reweigh.theory.lab.table import ROUNDING, Fit, Row


def of_check(found: GoldenCheck, quiet: bool = False) -> Iterator[Block]:
    """Each kind of quantity with its worst error; the verdict alone if quiet."""
    worst = max(found.tallies, key=lambda t: t.worst / t.tolerance, default=None)
    told = "no quantity was compared" if worst is None else f"worst relative error {worst.worst:.1e} ({worst.group})"
    sizes = f"{found.count:,} numbers of {len(found.instances)} worlds recomputed"
    yield line(f"{'ok' if found.ok else 'fail'}: {sizes}, {told}")
    if quiet:
        return
    rows = [
        [t.group, f"{t.count:,}", f"{t.worst:.1e}", f"{t.tolerance:.0e}", "" if t.ok else f"over, at {t.where}"]
        for t in found.tallies
    ]
    heads = columns("numbers", "worst error", "tolerance", first=[Column("quantity", "left", wrap=True)], wrap=True)
    yield Table.of((*heads, NAMES), rows, frame="none")
    yield unbroken(f"not covered: {', '.join(found.uncovered) or 'nothing'}")


def of_claims(found: tuple[Checked, ...], quiet: bool = False) -> Iterator[Block]:
    """Each claim with its verdict and its evidence; whether the verdicts hold if quiet."""
    fallen = [f.claim.number for f in found if not f.evidence.holds]
    if fallen:
        yield line(f"fail: the verdict on {', '.join(map(str, fallen))} does not hold, of {len(found)} claims")
    else:
        yield line(f"ok: every verdict holds, of {len(found)} claims")
    for f in () if quiet else found:
        c = f.claim
        yield EMPTY
        yield Line(((f"{c.number}. {c.title}: ", ""), (c.verdict, "bold")))
        evidence = "evidence" if f.evidence.holds else "AGAINST US"
        rows = (("the post", c.post), ("verdict", c.why), (evidence, f.evidence.text), ("sharper", c.sharper))
        named = [(f"  {name}", text) for name, text in (*rows, ("use", c.use))]
        yield Table.of((Column(align="left"), NAMES), named, frame="none", headed=False)


def of_table(rows: list[Row]) -> Iterator[Block]:
    """The post's big-O beside what is measured."""
    cells: list[list[str]] = []
    for row in rows:
        exact = "-" if row.post == "0" else f"{_short(row.smooth.slack)}, {_short(row.rare.slack)}"
        quantity = row.quantity.replace("second moment", "2nd moment")
        powers = (_power(row.smooth, row.of), _power(row.rare, row.of))
        r = row.random
        exponent = f"{r.median:.2f} [{r.low:.1f}, {r.high:.1f}]" if math.isfinite(r.median) else "-"
        cells.append([row.estimator, quantity, row.post, *powers, exponent, exact])
    heads = ("estimator", "measured", "post: O(...)", "smooth", "rare", "random worlds", "post / exact")
    yield Table.of((Column(x, "left") for x in heads), cells, frame="none")
    yield unbroken(
        "\nsmooth, rare: constant and exponent of the worst case over rewards, |R| <= 1, T = 16 to 128"
        "\n  (E r^2: of m2 = (1+chi2)^T)"
        "\nrandom worlds: median exponent [least, largest], fixed rewards, T = 3 to 7; - where some are 0"
        "\npost / exact: the post's bound over what it bounds, smooth and rare, T = 128 (and C = 16)"
    )


def _power(fit: Fit, of: str) -> str:
    if math.isfinite(fit.exponent):
        return f"{_short(fit.constant)} {of}^{fit.exponent:.2f}"
    return "0" if fit.last < ROUNDING else f"0 to {_short(fit.last)}"


def _short(x: float) -> str:
    """Two digits."""
    if math.isinf(x):
        return "inf"
    return f"{x:.2g}" if 1e-3 <= x < 100 else f"{x:,.0f}" if 100 <= x < 1e4 else f"{x:.0e}".replace("e+0", "e")
