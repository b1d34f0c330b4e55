"""`reweigh conformance`: recorded outputs of frameworks, recomputed from our compositions."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reweigh.cli.options import Form, Json, Quiet
from reweigh.cli.output import print_json, progress, stdout

if TYPE_CHECKING:
    from reweigh.conformance import Recomputed


def conformance(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A conformance file: JSON, format conformance-1.")],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Every case that differs by default, and why.")
    ] = False,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recompute what frameworks' own functions returned from our compositions, and say what differs and why.

    A case agrees if weights, masks, losses, gradients and all metrics that have an equal are ours to float32 rounding;
    it is explained if named quirks of the profile, switched on, make them so. Exit code 0 if every case does either,
    1 if one differs, 2 if the file cannot be read.

    \b
    Examples:
      reweigh conformance recorded.json
      reweigh conformance recorded.json --verbose
      reweigh conformance recorded.json --format json
    """
    form = "json" if as_json else form
    import torch

    from reweigh.conformance import check, read_recording

    torch.set_num_threads(1)
    recording = read_recording(file)
    with progress("cases", total=len(recording.cases), quiet=quiet) as count:
        found = check(recording, count)
    differ = [f for f in found if f.status == "differs"]
    if form == "json":
        print_json(_conformance_dict(found))
    else:
        _print_verdict(found)
        if not quiet:
            _print_conformance(found, verbose)
    if differ:
        raise typer.Exit(1)


def _print_verdict(found: "tuple[Recomputed, ...]") -> None:
    tally = Counter(f.status for f in found)
    verdict = "fail" if tally["differs"] else "ok"
    stdout().print(
        f"{verdict}: {len(found)} cases: {tally['agrees']} agree, {tally['explained']} are explained by a named quirk, "
        f"{tally['differs']} differ",
        soft_wrap=True,
    )


def _print_conformance(found: "tuple[Recomputed, ...]", verbose: bool) -> None:
    out, table = stdout(), Table(box=None, pad_edge=False)
    for heading in ("framework", "cases", "agree", "explained", "differ", "numbers compared"):
        table.add_column(heading, justify="left" if heading == "framework" else "right")
    for name in _frameworks(found):
        of = [f for f in found if f.case.framework == name]
        tally = Counter(f.status for f in of)
        cells = (tally["agrees"], tally["explained"], tally["differs"], sum(len(f.compared) for f in of))
        table.add_row(escape(name), str(len(of)), *map(str, cells))
    out.print(table)
    for name in _frameworks(found):
        of = [f for f in found if f.case.framework == name]
        used = Counter(q.name for f in of for q in f.quirks)
        says = {q.name: q.says for f in of for q in f.quirks}
        for quirk, n in used.most_common():
            out.print(f"\n[bold]{escape(name)} {quirk}[/] ({n}): {escape(says[quirk])}", soft_wrap=True)
    if verbose:
        _print_no_equal(found)
        for f in found:
            if f.status == "explained":
                why = ", ".join(q.name for q in f.quirks)
                out.print(f"explained {f.case.id}: {', '.join(f.differing)}: {why}", markup=False, soft_wrap=True)
    for f in found:
        if f.status == "differs":
            out.print(f"DIFFERS {f.case.id}: {', '.join(f.unexplained)}", markup=False, soft_wrap=True)
    if not verbose:
        total = len({(f.case.framework, n) for f in found for n, _ in f.no_equal})
        out.print(f"\n{total} recorded metrics have no equal: --verbose names them and says why", soft_wrap=True)


def _print_no_equal(found: "tuple[Recomputed, ...]") -> None:
    out = stdout()
    out.print("\nMetrics with no equal:")
    reasons: dict[tuple[str, str], list[str]] = {}
    for f in found:
        for metric, why in f.no_equal:
            names = reasons.setdefault((f.case.framework, why), [])
            names += [] if metric in names else [metric]
    for (framework, why), names in reasons.items():
        out.print(f"  {framework}: {', '.join(names)}: {why}", markup=False, soft_wrap=True)


def _conformance_dict(found: "tuple[Recomputed, ...]") -> dict[str, Any]:
    tally = Counter(f.status for f in found)
    by: dict[str, Any] = {}
    for name in _frameworks(found):
        counts = Counter(f.status for f in found if f.case.framework == name)
        by[name] = {s: counts[s] for s in ("agrees", "explained", "differs")}
    return {
        "ok": not tally["differs"],
        "cases": len(found),
        **{s: tally[s] for s in ("agrees", "explained", "differs")},
        "frameworks": by,
        "details": [
            {
                "id": f.case.id,
                "status": f.status,
                "differs_by_default": list(f.differing),
                "quirks": [q.name for q in f.quirks],
                "unexplained": list(f.unexplained),
                "compared": list(f.compared),
                "no_equal": dict(f.no_equal),
            }
            for f in found
        ],
    }


def _frameworks(found: "tuple[Recomputed, ...]") -> list[str]:
    return list(dict.fromkeys(f.case.framework for f in found))
