"""`reweigh lab`: exact results on worlds small enough to enumerate, and what they are checked against."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reweigh.cli.options import Form, Json, Quiet
from reweigh.cli.output import print_json, progress, say, stdout

if TYPE_CHECKING:
    from reweigh.report.tables import Block
    from reweigh.theory.lab.claims import Checked
    from reweigh.theory.lab.golden import GoldenCheck
    from reweigh.theory.lab.table import Fit, Row

lab = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Exact bias, variance and bounds of estimators, on worlds small enough to enumerate.\n\n"
    "\b\nExamples:\n  reweigh lab claims 6 29\n  reweigh lab table --format json",
)


@lab.callback()
def _lab() -> None:  # pyright: ignore[reportUnusedFunction]
    """Gives the group a body, with which a single subcommand keeps its name."""


@lab.command(short_help="Recompute every quantity of a golden file and compare.")
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A golden file: JSON, see its `conventions`.")],
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
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
    found = _check(file, quiet)
    if as_json or form == "json":
        print_json(found.to_dict())
    else:
        _show(_of_check(found, quiet))
    if not found.ok:
        raise typer.Exit(1)


@lab.command("table", short_help="The post's summary table, with measured exponents and constants.")
def summary_table(form: Form = "text", as_json: Json = False, quiet: Quiet = False) -> None:
    """The post's summary table, with exponents and constants as they are measured beside its big-O.

    "Smooth" and "rare" are exact worst cases over all rewards with |R| <= 1, of three iid tokens at 16 to 128 tokens:
    every ratio a little off, and one token that mu hardly samples. "Random worlds" are Markov policies with fixed
    rewards. Exit code 0.

    \b
    Examples:
      reweigh lab table
      reweigh lab table --json
    """
    rows = _table(quiet)
    if as_json or form == "json":
        print_json(_table_json(rows))
    else:
        _show(_of_table(rows))


@lab.command(short_help="Go through the post claim by claim, with evidence computed on the spot.")
def claims(
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Claims to take, 0 to 31; all if none is given.")
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
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
    found = _claims(numbers or (), quiet)
    if as_json or form == "json":
        print_json(_claims_json(found))
    else:
        _show(_of_claims(found, quiet))
    if not _all_hold(found):
        raise typer.Exit(1)


@lab.command("all", short_help="Everything above in one go: check, claims and table.")
def everything(
    golden: Annotated[
        str | None, typer.Option(metavar="FILE", help="A golden file to check; without it nothing is checked.")
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a golden file, go through the claims and measure the table: half a minute.

    Exit code 0 if all is well, 1 if a quantity of the file is off or a verdict of ours does not hold, 2 if the file
    cannot be read.

    \b
    Examples:
      reweigh lab all --golden golden.json
      reweigh lab all --json
    """
    text = not as_json and form == "text"
    found = None if golden is None else _check(golden, quiet)
    if found is None:
        say("no --golden FILE: nothing is checked against one", quiet)
    elif text:
        _show(_of_check(found, quiet))
    verdicts = _claims((), quiet)
    if text:
        if not quiet:
            stdout().print("\n[bold]The post claim by claim[/]")
        _show(_of_claims(verdicts, quiet))
    rows = _table(quiet)
    if text and not quiet:
        stdout().print("\n[bold]The post's table, measured[/]")
        _show(_of_table(rows))
    ok = (found is None or found.ok) and _all_hold(verdicts)
    if not text:
        checked = None if found is None else found.to_dict()
        print_json({"ok": ok, "check": checked, "claims": _claims_json(verdicts), "table": _table_json(rows)})
    if not ok:
        raise typer.Exit(1)


def _show(blocks: "Iterator[Block]") -> None:
    from reweigh.report.tables import to_terminal

    to_terminal(blocks, stdout())


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _check(file: str, quiet: bool) -> "GoldenCheck":
    from reweigh.theory.lab.golden import check_golden

    _one_thread()
    with progress("check: worlds", quiet=quiet) as count:
        return check_golden(file, count)


def _claims(numbers: list[int] | tuple[()], quiet: bool) -> "tuple[Checked, ...]":
    from reweigh.theory.lab.claims import check_claims, select_claims

    _one_thread()
    chosen = select_claims(numbers)
    with progress("claims", len(chosen), quiet) as count:
        return check_claims(chosen, count)


def _table(quiet: bool) -> "list[Row]":
    from reweigh.theory.lab.table import STEPS, post_table

    _one_thread()
    with progress("table: measuring", STEPS, quiet) as count:
        return post_table(count)


def _all_hold(found: "tuple[Checked, ...]") -> bool:
    return all(f.evidence.holds for f in found)


def _claims_json(found: "tuple[Checked, ...]") -> dict[str, Any]:
    return {"ok": _all_hold(found), "claims": [f.to_dict() for f in found]}


def _table_json(rows: "list[Row]") -> dict[str, Any]:
    from reweigh.theory.lab.table import LENGTHS

    return {"lengths": list(LENGTHS), "rows": [row.to_dict() for row in rows]}


def _of_check(found: "GoldenCheck", quiet: bool = False) -> "Iterator[Block]":
    """Show each kind of quantity with its worst error; the verdict alone if quiet."""
    from reweigh.report.tables import NAMES, Column, Table, columns, line, unbroken

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


def _of_claims(found: "tuple[Checked, ...]", quiet: bool = False) -> "Iterator[Block]":
    """Show each claim with its verdict and its evidence; whether the verdicts hold if quiet."""
    from reweigh.report.tables import EMPTY, NAMES, Column, Line, Table, line

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


def _of_table(rows: "list[Row]") -> "Iterator[Block]":
    """Show the post's big-O beside what is measured."""
    from reweigh.report.tables import Column, Table, unbroken

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


def _power(fit: "Fit", of: str) -> str:
    from reweigh.theory.lab.table import ROUNDING

    if math.isfinite(fit.exponent):
        return f"{_short(fit.constant)} {of}^{fit.exponent:.2f}"
    return "0" if fit.last < ROUNDING else f"0 to {_short(fit.last)}"


def _short(x: float) -> str:
    """Write two digits of a number."""
    if math.isinf(x):
        return "inf"
    return f"{x:.2g}" if 1e-3 <= x < 100 else f"{x:,.0f}" if 100 <= x < 1e4 else f"{x:.0e}".replace("e+0", "e")
