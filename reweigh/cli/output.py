"""What all commands print with: data to stdout, messages and progress to stderr."""

import json
import math
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from reweigh.guard import shown, write_whole

INTERRUPTED = 130  # what a shell calls a process that Ctrl-C ended: 128 + SIGINT
_PIPED_WIDTH = 120  # columns of a table when no terminal says how wide it is


class _Console(Console):
    """Prints texts of files and servers so that none of them can steer the terminal, wherever a command prints one."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, with what cannot be seen as escapes."""
        super().print(*(shown(x) if isinstance(x, str) else x for x in objects), **options)


def stdout() -> Console:
    """Open a console for what the user asked for."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _Console(width=_PIPED_WIDTH if piped else None, highlight=False, color_system=_colors())


def stderr(quiet: bool = False) -> Console:
    """Open a console for everything else; it says nothing if quiet."""
    return _Console(stderr=True, highlight=False, quiet=quiet, color_system=_colors())


def _colors() -> Literal["auto"] | None:
    return None if os.environ.get("NO_COLOR") else "auto"  # rich alone would leave bold and dim


def say(message: str, quiet: bool = False) -> None:
    """Print a message, as it is, on stderr."""
    stderr(quiet).print(message, markup=False, soft_wrap=True)


def print_error(error: BaseException | str) -> None:
    """`error: what is wrong`, and on a line of its own `hint: what to do`."""
    message, _, hint = str(error).partition("\nhint: ")
    console = stderr()
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, soft_wrap=True)
    if hint:
        console.print("[bold]hint:[/] ", end="")
        console.print(hint, markup=False, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object, and nothing else, on stdout; a number that JSON has not got is an error."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_written(path: Path, form: str, **numbers: float) -> None:
    """Name the file that a command wrote: its path, or as JSON with what else is known of it."""
    if form == "json":
        known = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        print_json({"wrote": str(path), **known})
    else:
        stdout().print(shown(str(path), one_line=True), markup=False, soft_wrap=True)


def write_output(path: Path, text: str) -> None:
    """Write a text file that a command was asked for, whole or not at all, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How much is done, of how much if that is known."""
        if task.total is None:
            return Text(f"{task.completed:,.0f}" if task.completed else "")
        return Text(f"{task.completed:,.0f} of {task.total:,.0f}")


class Bar:
    """A bar of one stage of the work after the other."""

    def __init__(self, progress: Progress, description: str, total: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, status="")

    def stage(self, description: str, total: float | None = None) -> None:
        """Begin the next stage."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, status="")

    def __call__(self, new: float, total: float | None = None) -> None:
        """Count `new` more; `total` is how many there will be, if that has become known (0 or None: it has not)."""
        self._progress.update(self._task, advance=new, total=total or None)

    def at(self, completed: float, total: float | None, status: str = "") -> None:
        """Say how far it is."""
        self._progress.update(self._task, completed=completed, total=total, status=status)

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return self._progress.tasks[-1].elapsed or 0.0


@contextmanager
def progress(description: str, total: float | None = None, quiet: bool = False) -> Generator[Bar, None, None]:
    """Show a bar on stderr while the block runs, gone when it ends; nothing if stderr is not a terminal.

    Args:
        description: what is being counted, for example "reading rows".
        total: how many there will be; None if that is not known.
        quiet: show nothing.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Count(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    console = stderr()
    disable = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        yield Bar(bar, description, total)
