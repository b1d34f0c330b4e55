"""`reweigh audit`: how large the gap between sampler and trainer is, in records, and what estimators would do."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from reweigh import audit as auditing
from reweigh import report
from reweigh.audit import Audit
from reweigh.audit.measure import Engine
from reweigh.audit.resume import DEFAULT_STATE
from reweigh.audit.workers import Workers as Processes
from reweigh.cli.estimators import asked
from reweigh.cli.output import (
    INTERRUPTED,
    Bar,
    By,
    Estimators,
    Form,
    Html,
    Json,
    KeepGoing,
    Quiet,
    Reader,
    Workers,
    print_json,
    progress,
    say,
    stdout,
)
from reweigh.cli.output import TextOption as Text
from reweigh.doctor import doctor as diagnose
from reweigh.processes import single_threaded
from reweigh.report.audit import of_trial
from reweigh.report.document import recommendation
from reweigh.report.tables import WIDE, to_terminal

FailOn = Literal["warn", "fail", "never"]
EngineName = Literal["local", "ray"]
_SAMPLE = 4_000_000  # tokens that the cause is looked for in: seconds
_FAILING: dict[FailOn, tuple[str, ...]] = {"warn": ("warn", "fail"), "fail": ("fail",), "never": ()}


def audit(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders or quoted globs.")],
    by: By = None,
    form: Form = "text",
    as_json: Json = False,
    html: Html = None,
    text: Text = True,
    estimators: Estimators = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="With --estimators: responses of a step; all that are read if not given."
        ),
    ] = None,
    doctor: Annotated[
        bool,
        typer.Option(
            help=f"Also name the likely cause, from {_SAMPLE // 10**6} million tokens at most (`reweigh doctor`)."
        ),
    ] = True,
    fail_on: Annotated[FailOn, typer.Option(help="The verdict from which on the exit code is 1.")] = "fail",
    keep_going: KeepGoing = False,
    reader: Reader = None,
    workers: Workers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted audit stopped.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"What --resume goes on from, until the work is done: beside the page, or {DEFAULT_STATE}.",
        ),
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="This machine's cores, or a Ray cluster's.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster; this machine alone if not given.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure the gap between sampler and trainer in records, judge it, and try estimators on it.

    Records hold log_mu and log_pi of sampled tokens (see `reweigh records`). The verdict comes first; numbers have 95%
    intervals, and what the data cannot tell is refused. Exit code 0 if the verdict is ok or warn, 1 if it is fail (see
    --fail-on), 2 if the records cannot be read, 130 after Ctrl-C: then --resume goes on.

    \b
    Examples:
      reweigh audit report/records.parquet
      reweigh audit runs/ --by step --by lag --html report.html
      reweigh audit 'runs/step_*.parquet' --json --fail-on warn
      reweigh audit runs/ --estimators all
      reweigh audit runs/ --estimators "seq_tis(2), geo_rs(0.99, 1.01) * token_tis(2)" --batch 512
      reweigh audit /data/runs/ --engine ray --ray-address auto
    """
    tried = None if estimators is None else asked(estimators)
    single_threaded()  # a second thread of one small operation mostly waits for the first
    kept = state or (DEFAULT_STATE if html is None else html.with_name(f"{html.name}.state"))
    try:
        with progress("reading records: rows", quiet=quiet) as bar:
            found = auditing.audit(
                paths,
                estimators=None if tried is None else tried.estimators,
                by=[one.value for one in by or []],
                keep_going=keep_going,
                reader=reader,
                engine=_engine(engine, workers, ray_address),
                state=kept,
                resume=resume,
                on_progress=_reporting(bar),
            )
            if doctor:
                bar.stage("looking for the cause: tokens")
                found = replace(found, diagnosis=diagnose(paths, reader=reader, most=_SAMPLE, on_progress=bar))
            found = replace(found if text else without_text(found), asked=tried, batch=batch)
            bar.stage("writing the page" if html is not None else "comparing estimators")
            if html is not None:
                html.parent.mkdir(parents=True, exist_ok=True)
                html.write_text(report.page(found), encoding="utf-8")
    except KeyboardInterrupt:
        after = f"the same command with --resume goes on from {kept}" if kept.exists() else "nothing had been saved yet"
        say(f"interrupted: {after}")
        raise typer.Exit(INTERRUPTED) from None
    if as_json or form == "json":
        said = {} if tried is None else {"recommendation": recommendation(found.recommendation)}
        print_json(report.document(found) | said)
    elif quiet:
        stdout().print(f"{found.verdict.level}: {found.headline.sentence}", markup=False, soft_wrap=True)
    else:
        report.terminal(found, stdout())
        if tried is not None:
            to_terminal(of_trial(found), stdout(), WIDE)
    if html is not None:
        say(f"wrote {html}", quiet)
    if found.verdict.level in _FAILING[fail_on]:
        raise typer.Exit(1)


def _engine(name: EngineName, workers: int | None, ray_address: str | None) -> Engine:
    if name == "ray":
        from reweigh.audit.on_ray import OnRay

        return OnRay(ray_address, workers)
    if ray_address is not None:
        raise ValueError("audit: --ray-address is of a Ray cluster\nhint: add --engine ray, or leave it out.")
    return Processes(workers)


def without_text(found: Audit) -> Audit:
    """The audit without what the worst responses say: neither their text nor the ids that spell it."""
    return replace(found, worst=tuple(replace(one, text=None, token_ids=None) for one in found.worst))


def _reporting(bar: Bar) -> auditing.Report:
    def update(done: auditing.Progress) -> None:
        rate = (done.tokens - done.resumed) / max(bar.seconds, 1e-9)
        bar.at(done.rows, done.total_rows, f"{done.tokens:,} tokens, {rate:,.0f} tokens/s")
        if done.rows == done.total_rows:
            bar.stage("working out intervals")

    return update
