"""`reweigh timeline`: the gap of each step of a run, beside reward, entropy, length and gradient norm."""

from pathlib import Path
from typing import Annotated

import typer

from reweigh.cli.options import (
    Form,
    Json,
    KeepGoing,
    Limit,
    Quiet,
    RayAddress,
    Reader,
    Runs,
    Sample,
    Where,
    Workers,
)
from reweigh.cli.output import print_json, progress, stdout


def timeline(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders or quoted globs of records.")],
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run's logged scalars, as `reweigh doctor --metrics` reads.")
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One more metric, as it was logged. Repeatable.")
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    keep_going: KeepGoing = False,
    reader: Reader = None,
    workers: Workers = None,
    engine: Runs = "local",
    ray_address: RayAddress = None,
    quiet: Quiet = False,
) -> None:
    """Show a run in time: KL, mean ratio and effective share of each step, beside what the trainer logged.

    The gap is of the records, which must say their step; reward, entropy, length and gradient norm are found among the
    logged metrics by their names, and averaged where several steps are one row. Exit code 0; 2 if records or metrics
    cannot be read, 130 after Ctrl-C.

    \b
    Examples:
      reweigh timeline runs/records
      reweigh timeline runs/records --metrics history.csv
      reweigh timeline runs/records --metrics wandb.jsonl --show actor/lr --json
    """
    form = "json" if as_json else form
    from reweigh.audit.timeline import timeline as make
    from reweigh.cli.scans import engine_of, reporting, rows_of
    from reweigh.report.tables import WIDE, to_terminal
    from reweigh.report.timeline import headline, on_terminal
    from reweigh.scan.engines import single_threaded

    single_threaded()  # a second thread of one small operation mostly waits for the first
    with progress("reading records: rows", quiet=quiet) as bar:
        found = make(
            paths,
            metrics,
            show=show or (),
            rows=rows_of(where, limit, sample),
            keep_going=keep_going,
            reader=reader,
            engine=engine_of("timeline", engine, workers, ray_address),
            on_progress=reporting(bar),
        )
    if form == "json":
        print_json(found.to_dict())
    elif quiet:
        stdout().print(headline(found), markup=False, soft_wrap=True)
    else:
        to_terminal(on_terminal(found), stdout(), WIDE)
