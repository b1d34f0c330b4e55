"""How far a probe is and how fast: a bar on a terminal, a line now and then elsewhere, both on stderr."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from reweigh.probe.run import Progress as Report

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def reporting(console: Console, what: str, num_seqs: int) -> Generator[Report, None, None]:
    """Show progress while the block runs; give it a function that takes newly finished sequences and tokens."""
    start = last = time.monotonic()
    seqs = tokens = 0

    def status() -> str:
        rate = tokens / max(time.monotonic() - start, 1e-9)
        return f"{seqs}/{num_seqs} sequences, {tokens:,} tokens, {rate:,.0f} tokens/s"

    if not console.is_terminal:

        def line(new_seqs: int, new_tokens: int) -> None:
            nonlocal seqs, tokens, last
            seqs, tokens = seqs + new_seqs, tokens + new_tokens
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                console.print(f"{what}: {status()}", highlight=False)

        yield line
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=num_seqs, status="")

            def update(new_seqs: int, new_tokens: int) -> None:
                nonlocal seqs, tokens
                seqs, tokens = seqs + new_seqs, tokens + new_tokens
                bar.update(task, completed=seqs, status=status())

            yield update
    console.print(f"{what}: {status()}, {time.monotonic() - start:.0f} s", highlight=False)
