"""`reweigh lab`: exact results on worlds small enough to enumerate, and what they are checked against."""

from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from reweigh.cli.output import print_json, progress, stdout
from reweigh.lab.golden import GoldenCheck, check_golden

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
