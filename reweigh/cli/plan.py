"""`reweigh plan`: what each mode and threshold would do at a KL and a length, before a run or on its records."""

from typing import TYPE_CHECKING, Annotated

import typer

from reweigh.cli.options import (
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

if TYPE_CHECKING:
    from reweigh.plan import Plan

# Those of reweigh.plan, which takes a second to load.
BATCH = 1024.0
KEEP = 0.95
_MOST = 64  # lengths of a sweep


def plan(
    kl: Annotated[
        float | None, typer.Option(metavar="NATS", help="KL(mu||pi) of a token; `reweigh audit` has it.")
    ] = None,
    length: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKENS", help="Of a response. Repeatable; a:b doubles from a to b."),
    ] = None,
    batch: Annotated[float, typer.Option(metavar="N", help="Sequences in a step.")] = BATCH,
    source: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="RECORDS", help="Estimate it all from records. Repeatable."),
    ] = None,
    keep: Annotated[float, typer.Option(metavar="SHARE", help="Of sequences that the length-aware band keeps.")] = KEEP,
    turns: Annotated[
        float | None, typer.Option(metavar="N", help="Turns of a response: plans for weights of turns, too.")
    ] = None,
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
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What each mode and threshold would drop, cap and keep at a KL and a length, and where popular defaults land.

    The verdict comes first. The model has independent tokens (log r ~ N(-KL T, 2 KL T)); ~ marks what it knows only
    roughly, and what it does not know is refused. With --from it takes KL, lengths and spread from records, and what
    each mode does to these very sequences stands beside the model. Exit code 0; 2 if a value or the records are wrong,
    130 after Ctrl-C: then --resume goes on.

    \b
    Examples:
      reweigh plan --kl 1e-3 --length 4096 --batch 1024
      reweigh plan --kl 1e-3 --length 256:16384
      reweigh plan --from 'runs/step_*.parquet' --format json
      reweigh plan --from report/records.parquet --length 8192 --quiet
    """
    form = "json" if as_json else form
    from reweigh.cli.scans import engine_of, reporting, rows_of, say_interrupted, state_of
    from reweigh.plan import plan_records
    from reweigh.report import terminal
    from reweigh.scan.engines import single_threaded

    lengths = [tokens for text in length or [] for tokens in _lengths(text)]
    if source:
        if kl is not None or turns is not None:
            given = "--kl" if kl is not None else "--turns"
            raise ValueError(
                f"plan: records have their own KL and turns, got {given} beside --from\nhint: leave one out."
            )
        single_threaded()  # a second thread of one small operation mostly waits for the first
        kept = state_of("plan", state)
        try:
            with progress("reading records: rows", quiet=quiet) as bar:
                found = plan_records(
                    source,
                    lengths,
                    batch,
                    keep=keep,
                    keep_going=keep_going,
                    reader=reader,
                    rows=rows_of(where, limit, sample, replay),
                    engine=engine_of("plan", engine, workers, ray_address),
                    state=kept,
                    resume=resume,
                    on_progress=reporting(bar, "planning"),
                )
        except KeyboardInterrupt as e:
            say_interrupted(e, kept)
            raise typer.Exit(INTERRUPTED) from None
    else:
        found = _of_model(kl, lengths, batch, keep, turns)
    if form == "json":
        print_json(found.to_dict())
    elif quiet:
        for one in found.at:
            stdout().print(f"{one.advice.level}: {one.advice.sentence}", markup=False, soft_wrap=True)
    else:
        terminal(found, stdout())


def _of_model(kl: float | None, lengths: list[float], batch: float, keep: float, turns: float | None) -> "Plan":
    if kl is None:
        raise ValueError(
            "plan: a KL or records are needed, got neither\n"
            "hint: --kl 1e-3 --length 4096, or --from RECORDS, which has both."
        )
    from reweigh.plan import plan as plan_model

    return plan_model(kl, lengths, batch, keep=keep, turns=turns)


def _lengths(text: str) -> list[float]:
    """`4096`, or `256:16384`: 256, 512, ... 16384."""
    first, colon, last = text.partition(":")
    try:
        low, high = float(first), float(last) if colon else float(first)
    except ValueError:
        raise ValueError(
            f"plan: length must be a number of tokens or a:b, got {text!r}\nhint: --length 4096, --length 256:16384"
        ) from None
    if not 1 <= low <= high < float("inf"):
        raise ValueError(f"plan: length must be >= 1, and a:b must rise, got {text!r}\nhint: --length 256:16384")
    found = [low]
    while found[-1] * 2 <= high and len(found) < _MOST:
        found.append(found[-1] * 2)
    return found if found[-1] == high else [*found, high]
