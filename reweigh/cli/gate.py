"""`reweigh gate`: hold records against a policy and a baseline, for continuous integration."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reweigh.cli.options import (
    By,
    CutBy,
    Form,
    Json,
    KeepGoing,
    Limit,
    Quiet,
    RayAddress,
    Reader,
    Resume,
    Runs,
    Sample,
    State,
    Where,
    Workers,
)
from reweigh.cli.output import INTERRUPTED, print_json, progress, say, stdout, write_output

if TYPE_CHECKING:
    from reweigh.gate import Gate, Policy

DEFAULT_POLICY = Path("gate.yaml")
_SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"


def gate(
    records: Annotated[list[str], typer.Argument(metavar="RECORDS...", help="Files, folders or quoted globs.")],
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"The bounds, as YAML; {DEFAULT_POLICY} if not given.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier run, for bounds against a baseline.")
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the numbers as a baseline; with --policy only if nothing fails."),
    ] = None,
    init: Annotated[
        bool, typer.Option("--init", help="Write a first policy from this good run, and gate nothing.")
    ] = False,
    by: By = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")] = None,
    summary: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Also write Markdown; without it ${_SUMMARY_VARIABLE} is added to, if set."),
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    keep_going: KeepGoing = False,
    reader: Reader = None,
    workers: Workers = None,
    resume: Resume = False,
    state: State = None,
    engine: Runs = "local",
    ray_address: RayAddress = None,
) -> None:
    """Hold the gap of records against bounds, absolute and against a baseline.

    A bound is broken only when the whole 95% interval, clustered by prompt, is beyond it. The policy names the slices
    that it bounds; --by is for more of them in a baseline that is saved. Exit code 0 if nothing fails, 1 if a bound
    does, 2 if policy, baseline or records cannot be used, 130 after Ctrl-C.

    \b
    Examples:
      reweigh gate --init --save-baseline base.json good/
      reweigh gate new/ --policy gate.yaml --baseline base.json
      reweigh gate new/ --policy gate.yaml --junit gate.xml --format json
    """
    form = "json" if as_json else form
    _refuse_together(init, by, baseline, junit, summary, save_baseline)
    from reweigh import gate as gating
    from reweigh.cli.scans import engine_of, reporting, rows_of, say_interrupted, state_of
    from reweigh.gate.check import GATE_VERSION
    from reweigh.guard import check_output
    from reweigh.report import terminal
    from reweigh.report.gate import verdict
    from reweigh.report.tables import to_terminal
    from reweigh.scan.engines import single_threaded

    single_threaded()  # a second thread of one small operation mostly waits for the first
    target = policy or DEFAULT_POLICY
    if init and target.exists():
        raise ValueError(f"{target}: there is a policy already\nhint: delete it, or name another with --policy.")
    gates = not init and (policy is not None or save_baseline is None)
    if gates and not target.exists():
        raise ValueError(
            f"{target}: there is no policy\nhint: `reweigh gate --init RECORDS` writes one from a good run."
        )
    for path, option, mark in (
        (save_baseline, "--save-baseline", b'"reweigh_gate_baseline"'),
        (junit, "--junit", b'<testsuites name="reweigh gate"'),
        (summary, "--summary", b" reweigh gate: "),
    ):
        if path is not None:
            check_output(path, option, (mark,))
    asked = gating.read_policy(target) if gates else None
    _refuse_missing_baseline(asked, baseline, save_baseline)
    base = None if baseline is None else gating.read_baseline(baseline)
    kept = state_of("gate", state)
    try:
        with progress("reading records: rows", quiet=quiet) as bar:
            run = gating.read_run(
                records,
                [*(asked.by if asked else ()), *(one.value for one in by or ())],
                keep_going=keep_going,
                reader=reader,
                rows=rows_of(where, limit, sample),
                engine=engine_of("gate", engine, workers, ray_address),
                state=kept,
                resume=resume,
                on_progress=reporting(bar),
            )
    except KeyboardInterrupt as e:
        say_interrupted(e, kept)
        raise typer.Exit(INTERRUPTED) from None
    code, said = 0, _Said(quiet)
    if init:
        _write(target, gating.draft(run, historical=save_baseline is not None), said)
        if run.verdict.startswith("fail"):
            said(f"the audit does not call this a good run: {run.verdict}")
    if asked is not None:
        found = gating.gate(run, asked, base)
        code = found.exit_code
        if form == "json":
            print_json(found.to_dict())
        elif quiet:
            to_terminal([verdict(found)], stdout())
        else:
            terminal(found, stdout())
        _reports(found, junit, summary, said)
    if save_baseline is not None:
        if code:
            said(f"{save_baseline} was not written: a baseline should be a run that passes")
        else:
            _write(save_baseline, run.to_json(), said)
    if asked is None and form == "json":
        wrote = [str(path) for path in (target if init else None, save_baseline) if path is not None]
        print_json({"reweigh_gate": GATE_VERSION, "wrote": wrote})
    if code:
        raise typer.Exit(code)


class _Said:
    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, message: str) -> None:
        """A message on stderr."""
        say(message, self._quiet)


def _refuse_together(
    init: bool,
    by: list[CutBy] | None,
    baseline: Path | None,
    junit: Path | None,
    summary: Path | None,
    save_baseline: Path | None,
) -> None:
    for name, given in (("--baseline", baseline), ("--junit", junit), ("--summary", summary)):
        if init and given is not None:
            raise ValueError(f"gate: --init gates nothing, so {name} has no use\nhint: gate in a second command.")
    if by and save_baseline is None:
        raise ValueError("gate: --by is for a baseline\nhint: add --save-baseline; the policy names its own slices.")


def _refuse_missing_baseline(policy: "Policy | None", baseline: Path | None, save_baseline: Path | None) -> None:
    """Before records are read, which may take minutes."""
    from reweigh.gate.policy import HISTORICAL

    first = next((b for b in policy.bounds if b.rule in HISTORICAL), None) if policy and baseline is None else None
    if first is not None:
        before = " from an earlier run" if save_baseline is not None else ""
        raise ValueError(
            f"{first.place}: {first.text}: there is no baseline\n"
            f"hint: give one{before} with --baseline; `reweigh gate --save-baseline FILE RECORDS` writes it."
        )


def _reports(found: "Gate", junit: Path | None, summary: Path | None, said: _Said) -> None:
    from reweigh.report import junit as to_junit
    from reweigh.report import markdown

    if junit is not None:
        _write(junit, to_junit(found), said)
    if summary is not None:
        _write(summary, markdown(found), said)
        return
    variable = os.environ.get(_SUMMARY_VARIABLE)
    if variable:  # a job's steps share the file
        with open(variable, "a", encoding="utf-8") as file:
            file.write(markdown(found))


def _write(path: Path, text: str, said: _Said) -> None:
    write_output(path, text)
    said(f"wrote {path}")
