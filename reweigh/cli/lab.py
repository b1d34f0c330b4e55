"""`reweigh lab`: exact results on worlds small enough to enumerate, and what they are checked against."""

import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from reweigh.cli.output import print_json, progress, stdout
from reweigh.lab.claims import Checked, check_claims, select_claims
from reweigh.lab.figures import FIGURES, draw_figures
from reweigh.lab.fits import ROUNDING, Fit
from reweigh.lab.golden import GoldenCheck, check_golden
from reweigh.lab.table import LENGTHS, STEPS, Row, post_table

lab = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Exact bias, variance and bounds of estimators, on worlds small enough to enumerate.",
)


@lab.callback()
def _lab() -> None:  # pyright: ignore[reportUnusedFunction] - with it a single subcommand keeps its name
    torch.set_num_threads(1)


@lab.command(short_help="Recompute every quantity of a golden file and compare.")
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A golden file: JSON, see its `conventions`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Recompute every quantity of a golden file, and print the worst relative error of each kind.

    Quantities that are 0 up to rounding are measured against a ten-thousandth of what is usual for their kind. Exit
    code 0 if all are within 1e-9 (1e-8 for self-normalised importance sampling), 1 if one is not or was not computed,
    2 if the file cannot be read.

    \b
    Examples:
      reweigh lab check golden.json
      reweigh lab check golden.json --json
    """
    with progress("worlds") as count:
        found = check_golden(file, count)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    if not found.ok:
        raise typer.Exit(1)


def _print(found: GoldenCheck) -> None:
    out = stdout()
    worst = max(found.tallies, key=lambda t: t.worst / t.tolerance, default=None)
    said = "no quantity was compared" if worst is None else f"worst relative error {worst.worst:.1e} ({worst.group})"
    out.print(
        f"{'ok' if found.ok else 'fail'}: {found.count:,} numbers of {len(found.instances)} worlds recomputed, {said}"
    )
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


@lab.command("table", short_help="The post's summary table, with measured exponents and constants.")
def summary_table(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """The post's summary table, with exponents and constants as they are measured beside its big-O.

    "Smooth" and "rare" are exact worst cases over all rewards with |R| <= 1, of three iid tokens at 16 to 128 tokens:
    every ratio a little off, and one token that mu hardly samples. "Random worlds" are Markov policies with fixed
    rewards.

    \b
    Examples:
      reweigh lab table
      reweigh lab table --json
    """
    with progress("measuring", STEPS) as count:
        rows = post_table(count)
    if as_json:
        print_json({"lengths": list(LENGTHS), "rows": [row.to_dict() for row in rows]})
    else:
        _print_table(rows)


@lab.command(short_help="Draw what the lab computes, as SVG and PNG.")
def figures(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write; made if it is not there.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of {', '.join(FIGURES)}; all if none.")
    ] = None,
) -> None:
    """Draw figures that a paper could use, as NAME.svg and NAME.png, and print their paths. Needs matplotlib.

    \b
    Examples:
      reweigh lab figures --out figures
      reweigh lab figures --out figures traps bias
    """
    with progress("figures", len(names or FIGURES)) as count:
        written = draw_figures(out, names or (), count)
    for path in written:
        stdout().print(path, markup=False, soft_wrap=True)


def _print_table(rows: list[Row]) -> None:
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


@lab.command(short_help="Go through the post claim by claim, with evidence computed on the spot.")
def claims(
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Claims to take, 0 to 31; all if none is given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """What the post says, our verdict, the evidence, and what holds instead.

    Everything is computed anew, from fixed seeds: counterexamples, random worlds, closed forms, dynamic programming.
    Exit code 0 if every verdict of ours holds, 1 if one does not, 2 if there is no claim of a number.

    \b
    Examples:
      reweigh lab claims
      reweigh lab claims 6 29
      reweigh lab claims --json
    """
    chosen = select_claims(numbers or ())
    with progress("claims", total=len(chosen)) as count:
        found = check_claims(chosen, count)
    fallen = [f.claim.number for f in found if not f.evidence.holds]
    if as_json:
        print_json({"ok": not fallen, "claims": [f.to_dict() for f in found]})
    else:
        _print_claims(found, fallen)
    if fallen:
        raise typer.Exit(1)


def _print_claims(found: tuple[Checked, ...], fallen: list[int]) -> None:
    out = stdout()
    if fallen:
        out.print(f"fail: the verdict on {', '.join(map(str, fallen))} does not hold, of {len(found)} claims")
    else:
        out.print(f"ok: every verdict holds, of {len(found)} claims")
    for f in found:
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
