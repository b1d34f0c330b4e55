"""Options of all commands that scan records: what runs the scan, from which state it goes on, and how far it is."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from reweigh.cli.output import Bar, say
from reweigh.scan import Engine, OnRay, Progress, Report, Workers

EngineName = Literal["local", "ray"]

Runs = Annotated[EngineName, typer.Option("--engine", help="This machine's cores, or a Ray cluster's.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="Of a running Ray cluster; this machine alone if not given."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted command stopped.")]
State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FILE",
        help="What --resume goes on from, until the work is done: beside the page, or reweigh-COMMAND.state.",
    ),
]


def engine_of(command: str, name: EngineName, workers: int | None, ray_address: str | None) -> Engine:
    """Choose what runs a scan.

    Raises:
        ValueError: the address of a cluster that is not asked for.
    """
    if name == "ray":
        return OnRay(ray_address, workers)
    if ray_address is not None:
        raise ValueError(f"{command}: --ray-address is of a Ray cluster\nhint: add --engine ray, or leave it out.")
    return Workers(workers)


def state_of(command: str, state: Path | None, html: Path | None = None) -> Path:
    """Say where a command keeps what it goes on from: where it is told, beside its page, or here."""
    return state or (Path(f"reweigh-{command}.state") if html is None else html.with_name(f"{html.name}.state"))


def say_interrupted(kept: Path) -> None:
    """Say what to do after Ctrl-C."""
    after = f"the same command with --resume goes on from {kept}" if kept.exists() else "nothing had been saved yet"
    say(f"interrupted: {after}")


def reporting(bar: Bar, then: str = "working out intervals") -> Report:
    """Show how far a scan is.

    Args:
        bar: that shows it.
        then: what comes after the last row.
    """

    def update(done: Progress) -> None:
        rate = (done.tokens - done.resumed) / max(bar.seconds, 1e-9)
        bar.at(done.rows, done.total_rows, f"{done.tokens:,} tokens, {rate:,.0f} tokens/s")
        if done.rows == done.total_rows:
            bar.stage(then)

    return update
