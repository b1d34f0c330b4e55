"""Options that several commands have, worded once."""

from typing import Annotated, Literal

import typer

Form = Annotated[Literal["text", "json"], typer.Option("--format", help="text, or one JSON object.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="The verdict alone; no messages and no progress.")]
Reader = Annotated[str | None, typer.Option(metavar="NAME", help="The dump's format, if it is not to be recognised.")]
