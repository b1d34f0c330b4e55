"""`reweigh levels`: what gap is normal for a model and engine, measured in a standard way."""

from pathlib import Path
from typing import Annotated

import typer

from reweigh.cli.options import Form, Json, Quiet
from reweigh.cli.output import print_json, say, stdout, write_output
from reweigh.cli.probe import EngineName, key_values


def levels(
    engine: Annotated[EngineName, typer.Option(help="What samples.")] = "transformers",
    model: Annotated[str, typer.Option(help="As of `reweigh probe`.")] = "smollm2",
    dtype: Annotated[str, typer.Option(help="Number format of the engine.")] = "bfloat16",
    url: Annotated[str, typer.Option(help="Of the server, for --engine openai.")] = "http://127.0.0.1:8000/v1",
    engine_arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="As of `reweigh probe`.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in flight (transformers).")] = 32,
    python: Annotated[str | None, typer.Option(help="Interpreter that has the engine, if it is not this one.")] = None,
    trainer_dtype: Annotated[str, typer.Option(help="Number format of the trainer.")] = "float32",
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Most tokens of a response. Repeatable.  [default: 128 and 512]")
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=2, help="Prompts, of those that come with reweigh.")] = 64,
    folder: Annotated[Path, typer.Option(help="Keeps what is measured.")] = Path("report/levels"),
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this TOML file.")] = None,
    arm_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="That sampling or scoring may take.")
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the gap of a model and engine at temperature 1, and print rows of the table of known gaps.

    Exit code 0; 1 if a length could not be measured; 2 if nothing could.

    \b
    Examples:
      reweigh levels --dtype float16 --length 128
      reweigh levels --engine vllm --python /envs/vllm/bin/python --model DIR --out levels.toml
    """
    from reweigh.probe.engine import ProbeError, SamplingSettings, load_prompts
    from reweigh.probe.levels import measure_levels
    from reweigh.probe.matrix import Setup
    from reweigh.probe.models import number_format
    from reweigh.probe.run import EngineName as Engine
    from reweigh.probe.run import EngineOptions, ScorerOptions

    args = key_values(engine_arg or [])
    options = EngineOptions(Engine(engine), model, dtype, batch_size=batch_size, url=url, args=args)
    scoring = ScorerOptions(None, number_format("--trainer-dtype", trainer_dtype))
    failed: list[int] = []

    def tell(tokens: int, reason: str | None) -> None:
        if reason is None:
            say(f"up to {tokens} tokens ...", quiet)
        else:
            failed.append(tokens)
            say(f"up to {tokens} tokens: {reason}")

    command = f"reweigh levels --engine {engine} --dtype {dtype}"
    rows = measure_levels(
        Setup(options, SamplingSettings(n=1), scoring, python),
        load_prompts(limit=num_prompts),
        length or [128, 512],
        folder,
        command=command + "".join(f" --engine-arg {one}" for one in engine_arg or []),
        seconds=arm_timeout,
        told=tell,
    )
    if not rows:
        raise ProbeError(f"levels: no length could be measured\nhint: the reasons are above; {folder} has the logs.")
    text = "runs = [\n" + "\n".join(one.to_toml() for one in rows) + "\n]\n"
    if out is not None:
        write_output(out, text)
    if as_json or form == "json":
        print_json({"runs": [one.values | {"records": str(one.records)} for one in rows], "failed": failed})
    else:
        stdout().print(text, markup=False, soft_wrap=True, end="")
    raise typer.Exit(1 if failed else 0)
