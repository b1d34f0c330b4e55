"""What all commands share of printing: data to stdout, messages and progress to stderr."""

import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_PIPED_WIDTH = 120  # columns of a table when no terminal says how wide it is


def stdout() -> Console:
    """For what the user asked for."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_PIPED_WIDTH if piped else None, highlight=False)


def stderr() -> Console:
    """For everything else."""
    return Console(stderr=True, highlight=False)


def print_error(error: BaseException) -> None:
    """`error: what is wrong`, and on a line of its own `hint: what to do`."""
    message, _, hint = str(error).partition("\nhint: ")
    console = stderr()
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, soft_wrap=True)
    if hint:
        console.print("[bold]hint:[/] ", end="")
        console.print(hint, markup=False, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else, on stdout; a number that JSON has not got is an error."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


class Counter:
    """A running count on a progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def __call__(self, n: int) -> None:
        """Count n more."""
        self._progress.advance(self._task, n)


@contextmanager
def progress(description: str, total: int | None = None) -> Generator[Counter, None, None]:
    """A bar on stderr while the block runs, gone when it ends; nothing if stderr is not a terminal.

    Args:
        description: what is being counted, for example "reading rows".
        total: how many there will be; None if that is not known.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Counter(bar, bar.add_task(description, total=total))
