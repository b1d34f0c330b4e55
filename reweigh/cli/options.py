"""Options that several commands have, each worded once."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer


class CutBy(str, Enum):
    """What records can be cut by."""

    STEP = "step"
    ENV = "env"
    LENGTH = "length"
    POSITION = "position"
    LAG = "lag"
    TURN = "turn"
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
    bool,
    typer.Option(
        "--keep-going/--no-keep-going", help="Leave out rows and tokens that cannot be used, and count them, or stop."
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page, which needs nothing else.")
]
TextOption = Annotated[
    bool,
    typer.Option(
        "--text/--no-text",
        help="Show the worst responses' text and token ids, if the records have them, on the page and in JSON.",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Text of token ids: smollm2, a folder, or a hub name. Needs the extra probe."),
]
Estimators = Annotated[
    str | None,
    typer.Option(
        "--estimators", metavar="LIST", help='What to try: all, names such as "seq_tis(2), naive", or a YAML file.'
    ),
]

By = Annotated[list[CutBy] | None, typer.Option("--by", help="Also look at each slice by this. Repeatable.")]

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Read responses of which this holds alone: 'step >= 100 and env = maths'. Repeatable: all must hold.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Read the first N responses alone.")]
Sample = Annotated[
    float | None,
    typer.Option("--sample", metavar="SHARE", help="Read this share of the prompts alone, by hash: .1, say."),
]

Replay = Annotated[
    bool,
    typer.Option("--replay", help="Take ratios over what the sampler kept (top-p, top-k): needs log_support_pi."),
]

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
