"""`reweigh compare`: two sets of records side by side, with the interval of the difference."""

from typing import Annotated

import typer

from reweigh.cli.options import (
    By,
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


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A file, folder or quoted glob: what B is held against.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, of what has changed.")],
    by: By = None,
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
    """Compare two sets of records: engines, commits, checkpoints, a flag on and off.

    Numbers stand side by side with the 95% interval of their difference. Where both answer the same prompts the
    difference is of prompts, which takes out what prompts vary by; else the two variances add up. Exit code 0, whatever
    differs (`reweigh gate` is for a bound); 2 if the records cannot be read, 130 after Ctrl-C.

    \b
    Examples:
      reweigh compare before.parquet after.parquet
      reweigh compare vllm/ sglang/ --by length --by step
      reweigh compare runs/base runs/fp8 --where 'step < 100' --format json
      reweigh compare all.parquet all.parquet --quiet
    """
    form = "json" if as_json else form
    from reweigh.audit.compare import compare as comparing
    from reweigh.cli.scans import engine_of, reporting, rows_of
    from reweigh.report.compare import headline, on_terminal
    from reweigh.report.tables import WIDE, to_terminal
    from reweigh.scan.engines import single_threaded

    single_threaded()  # a second thread of one small operation mostly waits for the first
    with progress("reading records: rows", quiet=quiet) as bar:
        found = comparing(
            a,
            b,
            by=[one.value for one in by or []],
            rows=rows_of(where, limit, sample),
            keep_going=keep_going,
            reader=reader,
            engine=engine_of("compare", engine, workers, ray_address),
            on_progress=reporting(bar, "reading records: rows"),
        )
    if form == "json":
        print_json(found.to_dict())
    elif quiet:
        stdout().print(headline(found), markup=False, soft_wrap=True)
    else:
        to_terminal(on_terminal(found), stdout(), WIDE)
