"""`reweigh watch`: follow a folder of dumps while the run writes them, on the terminal and as a page."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reweigh.cli.app import COMMAND
from reweigh.cli.audit import without_text
from reweigh.cli.options import (
    By,
    Estimators,
    Form,
    FormName,
    Html,
    Json,
    KeepGoing,
    Quiet,
    RayAddress,
    Reader,
    Runs,
    Workers,
)
from reweigh.cli.options import TextOption as Text
from reweigh.cli.output import progress, say, stdout, write_output

if TYPE_CHECKING:
    from rich.live import Live

    from reweigh.audit import Audit
    from reweigh.scan import By as Slicing
    from reweigh.watch import Look, Watched

DEFAULT_STATE = Path("reweigh-watch.state")
FailOn = Literal["never", "fail", "stop"]


def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that the run writes its dumps to.")],
    html: Html = None,
    every: Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="Between two looks.")] = 10.0,
    by: By = None,
    estimators: Estimators = None,
    reader: Reader = None,
    keep_going: KeepGoing = False,
    workers: Workers = None,
    engine: Runs = "local",
    ray_address: RayAddress = None,
    text: Text = True,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"What a later watch goes on from: beside the page, or {DEFAULT_STATE} if not given."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Read everything anew, whatever the state says.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Read what is there, and end.")] = False,
    on_fail: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Run this in a shell when the verdict becomes fail; it is in REWEIGH_VERDICT and REWEIGH_REASON.",
        ),
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option(help="`fail`: with --once, exit code 1 if the verdict is fail; `stop`: stop then, with 1.")
    ] = "never",
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Follow a folder of dumps that grows: every new file is read once, when it is whole, and added.

    Shows a dashboard on a terminal, and a line for each update elsewhere or with --quiet: text, or one JSON object.
    Numbers are always cut by step, and by what --by says. Ctrl-C is how it ends, with exit code 0; the same command
    goes on from where it was. A file that cannot be read is named and tried again, and ends nothing. Exit code 0; 1 if
    --fail-on asks for it and the verdict is fail; 2 if there is no such folder.

    \b
    Examples:
      reweigh watch runs/dumps
      reweigh watch runs/dumps --html report.html --every 30
      reweigh watch runs/dumps --once --format json --fail-on fail
      reweigh watch runs/dumps --on-fail 'touch STOP; mail -s "$REWEIGH_REASON" me < /dev/null'
    """
    form = "json" if as_json else form
    from rich.live import Live

    from reweigh import doctor as diagnosing
    from reweigh import watch as watching
    from reweigh.audit import question
    from reweigh.cli.scans import asked, engine_of
    from reweigh.guard import check_output
    from reweigh.report.page import MARKS
    from reweigh.scan import Job
    from reweigh.scan.engines import single_threaded

    single_threaded()  # a second thread of one small operation mostly waits for the first
    tried = None if estimators is None else asked(estimators)
    cuts: list[Slicing] = ["step", *(one.value for one in by or [])]
    asked_for = question(None if tried is None else tried.estimators, cuts)
    job = Job((asked_for, diagnosing.question()), keep_going, reader=reader)
    kept = state or (DEFAULT_STATE if html is None else html.with_name(f"{html.name}.state"))
    runs = engine_of("watch", engine, workers, ray_address)
    memory = watching.Memory.of(kept, folder, job)
    memory.check()
    if html is not None:
        check_output(html, "--html", MARKS)
    watched = watching.Watched() if fresh else memory.load()
    live = Live(console=stdout(), auto_refresh=False)
    shows_live = form == "text" and not quiet and stdout().is_terminal
    show = _shown(folder, form, every, live if shows_live else None)
    audit: Audit | None = None
    first, waiting, failing = True, (), False
    trouble: OSError | None = None
    told = set[str]()

    def kept_of(write: Callable[[], None]) -> None:
        """Write, and go on if it cannot be: what was found is shown all the same."""
        nonlocal trouble
        try:
            write()
        except OSError as e:
            trouble, text = e, f"{e.filename or kept}: {e.strerror or e}: not written, and the watch goes on"
            if not once and text not in told:
                say(text)
            told.add(text)

    try:
        while True:
            with progress("looking", quiet=quiet or live.is_started):  # the dashboard is there after the first look
                found = watching.look(watched, folder, job, time.time(), engine=runs)
                watched, waiting = found.watched, found.waiting
                if first or found.news:
                    audit, trouble = watched.audit(), None
                    kept_of(partial(memory.save, watched))
                    kept_of(partial(_write_page, html, audit, text))
                    before, failing = failing, audit is not None and audit.verdict.level == "fail"
                    if failing and not before:
                        _run(on_fail, audit, html)
            if first or found.news or shows_live:
                show(found, audit)
            first = False
            if found.more:
                continue
            if once or (failing and fail_on == "stop"):
                break
            time.sleep(every)
    except KeyboardInterrupt:
        memory.save(watched)
    finally:
        live.stop()
    if trouble is not None and once:
        raise trouble
    if not quiet:
        _summary(watched, audit, waiting, kept, html)
    if failing and (fail_on == "stop" or (once and fail_on == "fail")):
        raise typer.Exit(1)


def _run(command: str | None, audit: "Audit | None", html: Path | None) -> None:
    """Run what is to be run when the verdict has become fail; its own end is told if it is not 0, and ends nothing."""
    if command is None or audit is None:
        return
    told = {
        "REWEIGH_VERDICT": audit.verdict.level,
        "REWEIGH_REASON": audit.verdict.reason,
        "REWEIGH_PAGE": "" if html is None else str(html),
    }
    done = subprocess.run(
        command, shell=True, env={**os.environ, **told}, stdout=2, check=False
    )  # what it says is no update
    if done.returncode:
        say(f"--on-fail: the command ended with {done.returncode}: {command}")


def _shown(folder: Path, form: FormName, every: float, live: "Live | None") -> "Callable[[Look, Audit | None], None]":
    from reweigh.report.watch import dashboard, in_a_line, update

    def show(found: "Look", audit: "Audit | None") -> None:
        if live is not None:
            live.start()
            shown = dashboard(str(folder), found, audit, every, live.console.width)
            live.update(shown, refresh=True)
        elif form == "json":
            sys.stdout.write(json.dumps(update(found, audit), allow_nan=False) + "\n")
            sys.stdout.flush()
        else:
            stdout().print(in_a_line(found, audit), markup=False, soft_wrap=True)
            sys.stdout.flush()

    return show


def _write_page(html: Path | None, audit: "Audit | None", text: bool) -> None:
    if html is None or audit is None:
        return
    from reweigh.report import page

    write_output(html, page(audit if text else without_text(audit), COMMAND.get()))


def _summary(
    watched: "Watched", audit: "Audit | None", waiting: tuple[str, ...], kept: Path, html: Path | None
) -> None:
    from reweigh.stats.numerals import count

    files, rows, tokens = len(watched.files), watched.total.rows, watched.total.tokens
    counts = f"{count(files, 'file')}, {count(rows, 'row')}, {count(tokens, 'token')}"
    verdict = "no token counted" if audit is None else f"{audit.verdict.level}: {audit.headline.sentence}"
    lines = [f"{counts} read; {verdict}", f"the same command goes on from {kept}"]
    lines += [f"still being written: {name}" for name in waiting]
    lines += [f"bad: {name}: {one.reason}" for name, one in watched.troubles.items()]
    lines += [] if html is None or audit is None else [f"wrote {html}"]
    for text in lines:
        say(text)
