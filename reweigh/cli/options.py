"""Options that several commands have, worded once."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer


class Cut(str, Enum):
    """What numbers can be cut by."""

    STEP = "step"
    ENV = "env"
    LENGTH = "length"
    POSITION = "position"
    LAG = "lag"


class CauseCut(str, Enum):
    """What records can be cut by before causes are looked for."""

    STEP = "step"
    LAG = "lag"
    TURN = "turn"
    ENV = "env"
    SOURCE = "source"


FormName = Literal["text", "json"]
Form = Annotated[FormName, typer.Option("--format", help="What is printed: text, or JSON and nothing else.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="The verdict or result alone: no messages, no progress.")]

Reader = Annotated[
    str | None, typer.Option("--reader", metavar="NAME", help="The dump's format, if it is not to be recognised.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        help="Processes; all cores if not given and there is work enough for them.",
    ),
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Leave out tokens whose log-prob cannot be one, and count them.")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page, which needs nothing else.")
]
Text = Annotated[
    bool,
    typer.Option(
        "--text/--no-text",
        help="Show the worst responses' text and token ids, if the records have them, on the page and in JSON.",
    ),
]
Estimators = Annotated[
    str | None,
    typer.Option(
        "--estimators", metavar="LIST", help='What to try: all, names such as "seq_tis(2), naive", or a YAML file.'
    ),
]

By = Annotated[list[Cut] | None, typer.Option("--by", help="Also cut the numbers by this. Repeatable.")]
CauseBy = Annotated[list[CauseCut] | None, typer.Option("--by", help="Also diagnose each slice. Repeatable.")]
