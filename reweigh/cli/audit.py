"""`reweigh audit`: how large the gap between sampler and trainer is, in records, and what estimators would do."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from reweigh import audit as auditing
from reweigh.audit.headline import headline
from reweigh.audit.measure import Engine
from reweigh.audit.recommend import recommend
from reweigh.audit.resume import DEFAULT_STATE
from reweigh.audit.workers import Workers
from reweigh.cli.estimators import asked
from reweigh.cli.options import Form, Json, Quiet, Reader
from reweigh.cli.output import print_json, stderr, stdout
from reweigh.cli.trial_tables import render_trial
from reweigh.doctor import doctor as diagnose
from reweigh.processes import single_threaded


class By(str, Enum):
    """What numbers can be cut by."""

    STEP = "step"
    ENV = "env"
    LENGTH = "length"
    POSITION = "position"
    LAG = "lag"


class FailOn(str, Enum):
    """The verdict from which on the exit code is 1."""

    WARN = "warn"
    FAIL = "fail"
    NEVER = "never"


class EngineName(str, Enum):
    """What runs the work."""

    LOCAL = "local"
    RAY = "ray"


_SAMPLE = 4_000_000  # tokens that the cause is looked for in: seconds
INTERRUPTED = 130  # what a shell calls a process that Ctrl-C ended: 128 + SIGINT

_FAILING = {FailOn.WARN: ("warn", "fail"), FailOn.FAIL: ("fail",), FailOn.NEVER: ()}


def audit(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders or quoted globs.")],
    by: Annotated[list[By] | None, typer.Option(help="Also cut the numbers by this. Repeatable.")] = None,
    form: Form = "text",
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page, which needs nothing else.")
    ] = None,
    estimators: Annotated[
        str | None,
        typer.Option(metavar="LIST", help='What to try: all, names such as "seq_tis(2), naive", or a YAML file.'),
    ] = None,
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
    fail_on: Annotated[FailOn, typer.Option(help="The verdict from which on the exit code is 1.")] = FailOn.FAIL,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Leave out tokens whose log-prob cannot be one, and count them.")
    ] = False,
    reader: Reader = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes; all cores if not given and there is work enough for them."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted audit stopped.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"What --resume goes on from, until the work is done: beside the page, or {DEFAULT_STATE}.",
        ),
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="This machine's cores, or a Ray cluster's.")] = EngineName.LOCAL,
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
        with _reporting(quiet) as on_progress:
            found = auditing.audit(
                paths,
                estimators=None if tried is None else tried.estimators,
                by=[one.value for one in by or []],
                keep_going=keep_going,
                reader=reader,
                engine=_engine(engine, workers, ray_address),
                state=kept,
                resume=resume,
                on_progress=on_progress,
            )
            if doctor:
                found = replace(found, diagnosis=diagnose(paths, reader=reader, most=_SAMPLE))
    except KeyboardInterrupt:
        after = f"the same command with --resume goes on from {kept}" if kept.exists() else "nothing had been saved yet"
        stderr().print(f"interrupted: {after}", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(found.to_html(), encoding="utf-8")
    trial = None if tried is None else recommend(found, tried, batch)
    if as_json or form == "json":
        print_json(found.to_dict() | ({} if trial is None else {"recommendation": trial.to_dict()}))
    elif quiet:
        stdout().print(f"{found.verdict.level}: {headline(found).sentence}", markup=False, soft_wrap=True)
    else:
        found.render(stdout())
        if trial is not None:
            render_trial(found, trial, stdout())
    if html is not None and not quiet:
        stderr().print(f"wrote {html}", markup=False, soft_wrap=True)
    if found.verdict.level in _FAILING[fail_on]:
        raise typer.Exit(1)


def _engine(name: EngineName, workers: int | None, ray_address: str | None) -> Engine:
    if name is EngineName.RAY:
        from reweigh.audit.on_ray import OnRay

        return OnRay(ray_address, workers)
    if ray_address is not None:
        raise ValueError("audit: --ray-address is of a Ray cluster\nhint: add --engine ray, or leave it out.")
    return Workers(workers)


@contextmanager
def _reporting(quiet: bool) -> Generator[auditing.Report, None, None]:
    """A bar on stderr while records are read, gone when they are; nothing if stderr is not a terminal."""
    columns = (
        TextColumn("reading records"),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=None, status="")

        def update(done: auditing.Progress) -> None:
            rate = (done.tokens - done.resumed) / max(bar.tasks[task].elapsed or 0.0, 1e-9)
            status = f"{done.tokens:,} tokens, {rate:,.0f} tokens/s"
            bar.update(task, total=done.total_rows, completed=done.rows, status=status)

        yield update
