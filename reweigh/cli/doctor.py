"""`reweigh doctor`: the cause of the gap between sampler and trainer, from records or from logged scalars."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

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
    Replay,
    Resume,
    Runs,
    Sample,
    State,
    Where,
    Workers,
)
from reweigh.cli.output import INTERRUPTED, print_json, progress, stdout

FailOn = Literal["cause", "never"]


def doctor(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[RECORDS]...", help="Files, folders or quoted globs of records.")
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Look at logged scalars instead: a table, JSONL, an export or store of a tracker, a TensorBoard "
            "folder, a console log.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="RECORDS", help="Records from before the trouble, such as step 0: what is normal here."),
    ] = None,
    by: By = None,
    program: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name the options of this engine or trainer only (vllm, sglang, trl, verl, slime, prime-rl, skyrl, "
            "nemo-rl). Repeatable.",
        ),
    ] = None,
    framework: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --metrics: who logged them, if it is not to be recognised.")
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="`cause`: exit code 1 if a cause is named that calls for something; not if nothing is decided."
        ),
    ] = "never",
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    replay: Replay = False,
    keep_going: KeepGoing = True,
    reader: Reader = None,
    workers: Workers = None,
    resume: Resume = False,
    state: State = None,
    engine: Runs = "local",
    ray_address: RayAddress = None,
    quiet: Quiet = False,
) -> None:
    """Name the cause of the gap between sampler and trainer, with the evidence and the fix.

    Causes are ranked: what is structurally wrong with the records first, then log-probs of another distribution than
    was sampled, then faults that make the sampler another policy, and rounding last. Exit code 0, or 1 with
    --fail-on cause; 2 if the records cannot be read, 130 after Ctrl-C: then --resume goes on.

    \b
    Examples:
      reweigh doctor report/records.parquet
      reweigh doctor runs/ --baseline runs/step_0.parquet --by step --program vllm --program trl
      reweigh doctor runs/ --format json
      reweigh doctor --metrics history.csv
    """
    form = "json" if as_json else form
    if (paths is None or not paths) == (metrics is None):
        raise ValueError("doctor: give records or --metrics, one of them\nhint: reweigh doctor runs/step_10.parquet")
    from reweigh.cli.scans import engine_of, reporting, rows_of, say_interrupted, state_of
    from reweigh.report import terminal
    from reweigh.report.causes import verdict
    from reweigh.report.tables import to_terminal
    from reweigh.scan.engines import single_threaded

    if metrics is not None:
        from reweigh.doctor.metrics import diagnose_metrics

        with progress("reading metrics", quiet=quiet):
            found = diagnose_metrics(metrics, framework)
    else:
        from reweigh.doctor import doctor as diagnose

        assert paths is not None
        single_threaded()  # a second thread of one small operation mostly waits for the first
        kept = state_of("doctor", state)
        then = "working out causes" if baseline is None else "reading the baseline, and working out causes"
        try:
            with progress("reading records: rows", quiet=quiet) as bar:
                found = diagnose(
                    paths,
                    by=[one.value for one in by or []],
                    baseline=baseline,
                    programs=program,
                    keep_going=keep_going,
                    reader=reader,
                    rows=rows_of(where, limit, sample, replay),
                    engine=engine_of("doctor", engine, workers, ray_address),
                    state=kept,
                    resume=resume,
                    on_progress=reporting(bar, then),
                )
        except KeyboardInterrupt as e:
            say_interrupted(e, kept)
            raise typer.Exit(INTERRUPTED) from None
    if form == "json":
        print_json(found.to_dict())
    elif quiet:
        told = "" if found.advice is None else f"; {found.advice.level}: {found.advice.order or 'nothing to do'}"
        said = verdict(found)
        to_terminal([replace(said, parts=(*said.parts, (told, "")), wrap=False)], stdout())
    else:
        terminal(found, stdout())
    if fail_on == "cause" and found.decided and not found.benign:
        raise typer.Exit(1)
