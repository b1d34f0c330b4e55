"""`reweigh experiment`: runs of RL that fit a laptop, in which a sampler that lags destroys a policy, or does not."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reweigh.cli.options import Form, Html, Json, Quiet, Workers
from reweigh.cli.output import INTERRUPTED, print_json, progress, say, stderr, stdout, write_output

if TYPE_CHECKING:
    from reweigh.experiment.train import Run

FOLDER = Path("experiment")


def experiment(
    grid: Annotated[
        str, typer.Option("--grid", metavar="NAME", help="main, quarter or hour; or FILE.toml:NAME, a grid of yours.")
    ] = "main",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of results, records and warm starts.")
    ] = FOLDER,
    redraw: Annotated[
        Path | None,
        typer.Option("--redraw", metavar="FILE", help="Run nothing: tables and pictures of results that are there."),
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the main picture.")] = None,
    html: Html = None,
    workers: Workers = None,
    records: Annotated[
        bool, typer.Option("--records/--no-records", help="Write rollout records of the steps that the grid names.")
    ] = True,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train small policies on what stale or quantised copies of them sample, and show who collapses and who does not.

    A transformer of 0.1 M parameters closes brackets; nothing is downloaded. `main` is the picture of the README: 18
    runs of seven seconds, under two minutes on two idle cores. What is done is done: the same command goes on from
    there after Ctrl-C. Exit code 0; 2 if there is no such grid, or a file is none of results; 130 after Ctrl-C.

    \b
    Examples:
      reweigh experiment
      reweigh experiment --grid quarter --out quarter --html quarter/page.html
      reweigh experiment --redraw experiment/results.jsonl --svg collapse.svg
      reweigh experiment --grid mine.toml:hot --workers 1
    """
    form = "json" if as_json else form
    from reweigh.experiment import grid as grids
    from reweigh.guard import check_output
    from reweigh.report import experiment as shown
    from reweigh.report.tables import to_terminal
    from reweigh.scan.engines import cores

    if html is not None:
        check_output(html, "--html", shown.PAGE_MARKS)
    if svg is not None:
        check_output(svg, "--svg", shown.SVG_MARKS)
    if redraw is not None:
        runs = grids.read(redraw)
    else:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: a second thread of small operations waits for the first
        path, _, name = grid.rpartition(":")
        chosen = grids.grid(name, Path(path)) if path else grids.grid(name)
        began, done = time.monotonic(), 0
        lines = quiet or stderr().is_terminal  # where there is a bar, or nothing is to be said
        with progress(f"{chosen.name}: runs", len(chosen.jobs), quiet) as bar:

            def told(run: "Run") -> None:
                nonlocal done
                done += 1
                todo = _left((time.monotonic() - began) / done * (len(chosen.jobs) - there - done))
                bar.at(there + done, len(chosen.jobs), todo)
                say(f"{there + done} of {len(chosen.jobs)}, {todo}: {shown.line_of(run)}", lines)

            there = len(chosen.jobs) - len(grids.left(chosen.jobs, out))
            bar.at(there, len(chosen.jobs))
            try:
                runs = grids.do(chosen.jobs, out, workers or cores(), told, records)
            except KeyboardInterrupt:
                say(f"interrupted: {there + done} of {len(chosen.jobs)} runs are done; the same command goes on")
                raise typer.Exit(INTERRUPTED) from None
    if form == "json":
        print_json(shown.to_dict(runs))
    else:
        to_terminal(shown.summary(runs) if quiet else shown.blocks(runs), stdout())
    if svg is not None:
        write_output(svg, shown.picture(runs))
    if html is not None:
        write_output(html, shown.page(runs))
    if form == "json":
        return
    written = [str(x) for x in (None if redraw else out / grids.RESULTS, svg, html) if x is not None]
    say(f"wrote {', '.join(written)}", quiet or not written)


def _left(seconds: float) -> str:
    return f"{seconds:.0f} s left" if seconds < 120 else f"{seconds / 60:.0f} min left"
