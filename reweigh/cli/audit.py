"""`reweigh audit`: how large the gap between sampler and trainer is, in records, and what estimators would do."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reweigh.cli.app import COMMAND
from reweigh.cli.options import (
    By,
    Estimators,
    Form,
    Html,
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
    Tokenizer,
    Where,
    Workers,
)
from reweigh.cli.options import TextOption as Text
from reweigh.cli.output import INTERRUPTED, print_json, progress, say, stdout, write_output

if TYPE_CHECKING:
    from reweigh.audit import Audit

FailOn = Literal["warn", "fail", "never"]
_SAMPLE = 4_000_000  # tokens that the cause is looked for in: seconds
_FAILING: dict[FailOn, tuple[str, ...]] = {"warn": ("warn", "fail"), "fail": ("fail",), "never": ()}


def audit(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders or quoted globs.")],
    by: By = None,
    form: Form = "text",
    as_json: Json = False,
    html: Html = None,
    text: Text = True,
    tokenizer: Tokenizer = None,
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
    full: Annotated[bool, typer.Option("--full", help="Print every table, and not some 25 lines.")] = False,
    fail_on: Annotated[FailOn, typer.Option(help="The verdict from which on the exit code is 1.")] = "fail",
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    replay: Replay = False,
    keep_going: KeepGoing = False,
    reader: Reader = None,
    workers: Workers = None,
    resume: Resume = False,
    state: State = None,
    engine: Runs = "local",
    ray_address: RayAddress = None,
    quiet: Quiet = False,
) -> None:
    """Measure the gap between sampler and trainer in records, judge it, and try estimators on it.

    Records hold log_mu and log_pi of sampled tokens (see `reweigh records`). The verdict comes first and last; numbers
    have 95% intervals, and what the data cannot tell is refused. Exit code 0 if the verdict is ok or warn, 1 if it is
    fail (see --fail-on), 2 if the records cannot be read, 130 after Ctrl-C: then --resume goes on.

    \b
    Examples:
      reweigh audit report/records.parquet
      reweigh audit runs/ --full
      reweigh audit runs/ --by step --by lag --html report.html
      reweigh audit 'runs/step_*.parquet' --json --fail-on warn
      reweigh audit runs/ --estimators all
      reweigh audit runs/ --estimators "seq_tis(2), geo_rs(0.99, 1.01) * token_tis(2)" --batch 512
      reweigh audit /data/runs/ --engine ray --ray-address auto
    """
    form = "json" if as_json else form
    from reweigh import audit as auditing
    from reweigh import doctor as diagnosing
    from reweigh import report
    from reweigh.cli.scans import asked, decoder, engine_of, reporting, rows_of, say_interrupted, state_of
    from reweigh.guard import check_output
    from reweigh.report.audit import of_trial
    from reweigh.report.document import recommendation
    from reweigh.report.page import MARKS
    from reweigh.report.tables import WIDE, to_terminal
    from reweigh.scan import look, scan
    from reweigh.scan.engines import single_threaded

    tried = None if estimators is None else asked(estimators)
    single_threaded()  # a second thread of one small operation mostly waits for the first
    kept = state_of("audit", state, html)
    if html is not None:  # before minutes of work
        check_output(html, "--html", MARKS)
    try:
        with progress("reading records: rows", quiet=quiet) as bar:
            known = look(paths, reader, rows=rows_of(where, limit, sample, replay))
            if html is not None:
                check_output(html, "--html", MARKS, known.files)
            families = [auditing.question(None if tried is None else tried.estimators, [one.value for one in by or []])]
            if doctor:
                families.append(diagnosing.question(known, most=_SAMPLE))
            scanned = scan(
                known,
                families,
                keep_going=keep_going,
                engine=engine_of("audit", engine, workers, ray_address),
                state=kept,
                resume=resume,
                on_progress=reporting(bar),
            )
            found = auditing.answer(scanned)
            if doctor:
                bar.stage("looking for the cause")
                found = replace(found, diagnosis=diagnosing.answer(scanned))
            scanned.done()
            found = replace(found if text else without_text(found), asked=tried, batch=batch)
            bar.stage("comparing estimators")
    except KeyboardInterrupt as e:
        say_interrupted(e, kept)
        raise typer.Exit(INTERRUPTED) from None
    if form == "json":
        said = {} if tried is None else {"recommendation": recommendation(found.recommendation)}
        print_json(report.document(found) | said)
    elif quiet:
        stdout().print(f"{found.verdict.level}: {found.headline.sentence}", markup=False, soft_wrap=True)
    else:
        report.terminal(found, stdout(), full)
        if tried is not None:
            to_terminal(of_trial(found), stdout(), WIDE)
    if html is not None:  # last: what it was for is on the screen, whatever the disk says
        write_output(html, report.page(found, COMMAND.get(), None if tokenizer is None else decoder(tokenizer)))
        say(f"wrote {html}", quiet)
    if found.verdict.level in _FAILING[fail_on]:
        raise typer.Exit(1)


def without_text(found: "Audit") -> "Audit":
    """Leave out what the worst responses say: neither their text nor the ids that spell it."""
    return replace(found, worst=tuple(replace(one, text=None, token_ids=None) for one in found.worst))
