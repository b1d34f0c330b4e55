"""`reweigh audit`: how large the gap between sampler and trainer is, in records, and what estimators would do."""

from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from reweigh import audit as auditing
from reweigh.cli.output import print_json, stderr, stdout


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


_FAILING = {FailOn.WARN: ("warn", "fail"), FailOn.FAIL: ("fail",), FailOn.NEVER: ()}


def audit(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders or quoted globs.")],
    by: Annotated[list[By] | None, typer.Option(help="Also cut the numbers by this. Repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page, which needs nothing else.")
    ] = None,
    fail_on: Annotated[FailOn, typer.Option(help="The verdict from which on the exit code is 1.")] = FailOn.FAIL,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Leave out tokens whose log-prob cannot be one, and count them.")
    ] = False,
) -> None:
    """Measure the gap between sampler and trainer in records, judge it, and try estimators on it.

    Records hold log_mu and log_pi of sampled tokens (see `reweigh records`). The verdict comes first; numbers have 95%
    intervals, and what the data cannot tell is refused. Exit code 0 if the verdict is ok or warn, 1 if it is fail (see
    --fail-on), 2 if the records cannot be read.

    \b
    Examples:
      reweigh audit report/records.parquet
      reweigh audit runs/ --by step --by lag --html report.html
      reweigh audit 'runs/step_*.parquet' --json --fail-on warn
    """
    # The work comes in parts that fit a cache: more threads would mostly wait for each other, and on a busy machine
    # they make it several times slower.
    torch.set_num_threads(1)
    with _reporting() as on_progress:
        found = auditing.audit(
            paths, by=[one.value for one in by or []], keep_going=keep_going, on_progress=on_progress
        )
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(found.to_html(), encoding="utf-8")
    if as_json:
        print_json(found.to_dict())
    else:
        found.render(stdout())
    if html is not None:
        stderr().print(f"wrote {html}", markup=False, soft_wrap=True)
    if found.verdict.level in _FAILING[fail_on]:
        raise typer.Exit(1)


@contextmanager
def _reporting() -> Generator[auditing.Report, None, None]:
    """A bar on stderr while records are read, gone when they are; nothing if stderr is not a terminal."""
    columns = (
        TextColumn("reading records"),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, status="")

        def update(done: auditing.Progress) -> None:
            rate = done.tokens / max(bar.tasks[task].elapsed or 0.0, 1e-9)
            status = f"{done.rows:,} rows, {done.tokens:,} tokens, {rate:,.0f} tokens/s"
            bar.update(task, total=done.total_rows, completed=done.rows, status=status)

        yield update
