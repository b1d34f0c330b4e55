"""`reweigh doctor`: the cause of the gap between sampler and trainer, from records or from logged scalars."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from reweigh.cli.doctor_tables import render
from reweigh.cli.output import print_json, stderr, stdout
from reweigh.processes import cores, single_threaded

_WORTH_STARTING = 1 << 25  # bytes of records: below, one process is done before others have imported what they need


class By(str, Enum):
    """What records can be cut by."""

    STEP = "step"
    LAG = "lag"
    TURN = "turn"
    ENV = "env"
    SOURCE = "source"


class Format(str, Enum):
    """How the diagnosis is printed."""

    TEXT = "text"
    JSON = "json"


class FailOn(str, Enum):
    """The verdict from which on the exit code is 1."""

    CAUSE = "cause"
    NEVER = "never"


def doctor(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[RECORDS]...", help="Files, folders or quoted globs of records.")
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Look at logged scalars instead: CSV, JSONL, a TensorBoard folder, a Weights & Biases export.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(metavar="RECORDS", help="Records from before the trouble, such as step 0: what is normal here."),
    ] = None,
    by: Annotated[list[By] | None, typer.Option(help="Also diagnose each slice. Repeatable.")] = None,
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
    output: Annotated[Format, typer.Option("--format", help="How to print the diagnosis.")] = Format.TEXT,
    fail_on: Annotated[
        FailOn, typer.Option(help="`cause`: exit code 1 if the verdict is anything but none and numerics.")
    ] = FailOn.NEVER,
    reader: Annotated[
        str | None, typer.Option(metavar="NAME", help="The dump's format, if it is not to be recognised.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes; all cores if there is work enough for them.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages.")] = False,
) -> None:
    """Name the cause of the gap between sampler and trainer, with the evidence and the fix.

    Causes are ranked: what is structurally wrong with the records first, then log-probs of another distribution than
    was sampled, then faults that make the sampler another policy, and rounding last. Exit code 0, or 1 with
    --fail-on cause; 2 if the records cannot be read.

    \b
    Examples:
      reweigh doctor report/records.parquet
      reweigh doctor runs/ --baseline runs/step_0.parquet --by step --program vllm --program trl
      reweigh doctor runs/ --format json
      reweigh doctor --metrics history.csv
    """
    if (paths is None or not paths) == (metrics is None):
        raise ValueError("doctor: give records or --metrics, one of them\nhint: reweigh doctor runs/step_10.parquet")
    if metrics is not None:
        from reweigh.doctor.lite import diagnose_metrics

        found = diagnose_metrics(metrics, framework)
    else:
        from reweigh.doctor import doctor as diagnose

        assert paths is not None
        single_threaded()  # a second thread of one small operation mostly waits for the first
        with _reporting(quiet) as on_progress:
            found = diagnose(
                paths,
                by=[one.value for one in by or []],
                baseline=baseline,
                programs=program,
                reader=reader,
                workers=workers or _workers(paths),
                on_progress=on_progress,
            )
    if output is Format.JSON:
        print_json(found.to_dict())
    else:
        render(found, stdout())
    if fail_on is FailOn.CAUSE and not found.benign:
        raise typer.Exit(1)


def _workers(paths: list[str]) -> int:
    size = 0
    for path in paths:
        one = Path(path)
        files = (
            one.rglob("*")
            if one.is_dir()
            else [one]
            if one.is_file()
            else Path().glob(path)
            if not one.is_absolute()
            else []
        )
        size += sum(os.stat(file).st_size for file in files if file.is_file())
    return cores() if size >= _WORTH_STARTING else 1


@contextmanager
def _reporting(quiet: bool) -> Generator["_Update", None, None]:
    columns = (TextColumn("reading records"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        yield _Update(bar)


class _Update:
    """Moves the bar by tokens read."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)

    def __call__(self, new: int, total: int) -> None:
        """Tokens newly done, of how many in all (0 if not known)."""
        self._bar.update(self._task, advance=new, total=total or None)
