"""`reweigh canary`: keep what the trainer says of a few tokens, and ask the engine after a push of weights."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from reweigh.cli.options import Form, Json, Quiet
from reweigh.cli.output import print_json, print_written, say, stderr, stdout
from reweigh.cli.probe import EngineName, key_values

canary = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=__doc__)

_NUM_PROMPTS, _NUM_TOKENS = 16, 32


@canary.command("record")
def record(
    model: Annotated[str, typer.Option(help="The weights that are pushed: a folder, .gguf, hub name, or smollm2.")],
    previous: Annotated[
        str | None, typer.Option(help="The weights that the engine had before; most faults need them.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The weights without the adapter, if one is trained.")] = None,
    out: Annotated[
        Path, typer.Option(help="The canary; if it is there, its tokens are kept and its version is counted on.")
    ] = Path("report/canary.json"),
    prompts: Annotated[Path | None, typer.Option(help="As of `reweigh probe`.", show_default=False)] = None,
    num_prompts: Annotated[int, typer.Option(min=2, help="Prompts to use.")] = _NUM_PROMPTS,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each response.")] = _NUM_TOKENS,
    device: Annotated[str, typer.Option(help="Of torch.")] = "cpu",
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Keep the trainer's log-probs of a few prompts, and what each fault of a push would make of them.

    Each fault is committed on the weights given here, in memory, and its log-probs are kept. Exit code 0; 2 if a model
    cannot be used.

    \b
    Examples:
      reweigh canary record --model checkpoints/101 --previous checkpoints/100
      reweigh canary record --model merged/101 --previous merged/100 --base Qwen/Qwen3-0.6B
    """
    from transformers.utils import logging as transformers_logging

    from reweigh.probe import canary as canaries
    from reweigh.probe.engine import SamplingSettings, load_prompts, tokenize
    from reweigh.probe.engine_transformers import TransformersEngine, end_ids
    from reweigh.probe.models import find_model, load_model, load_tokenizer
    from reweigh.probe.scorer import Response, check_head

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    source = find_model(model)
    loaded = load_model(source, "float32", device)
    check_head(loaded)
    before = canaries.load_canary(out) if out.exists() else None
    if before is not None:
        responses = before.responses
    else:
        ids = tokenize(load_prompts(prompts, num_prompts), load_tokenizer(source))
        sampler = TransformersEngine(loaded, name=source.name, dtype="float32", end_ids=end_ids(loaded))
        drawn = sorted(sampler.sample(ids, SamplingSettings(max_tokens=max_tokens, n=1)), key=lambda one: one.prompt)
        responses = [Response(ids[one.prompt], one.token_ids) for one in drawn]
    states = [None if spec is None else dict(load_model(find_model(spec), "float32", device).named_parameters())
              for spec in (previous, base)]  # fmt: skip
    console = stderr(quiet)
    kept = canaries.record(
        loaded,
        responses,
        name=source.name,
        version=0 if before is None else before.version + 1,
        previous=states[0],
        base=states[1],
        told=lambda fault: console.print(f"committing {fault}", markup=False),
    )
    kept.save(out)
    if previous is None:
        say("note: without --previous, whether anything was pushed cannot be checked", quiet)
    print_written(out, "json" if as_json else form, version=kept.version, faults=len(kept.faults))


@canary.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="CANARY", help="Of `reweigh canary record`.")] = Path(
        "report/canary.json"
    ),
    engine: Annotated[EngineName, typer.Option(help="What is asked.")] = "transformers",
    model: Annotated[str | None, typer.Option(help="That the engine loads.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format of the engine.  [default: bfloat16]")] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="As of `reweigh probe`.")] = None,
    log_probs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask no engine: JSON, a list of log-probs for each response, in order."),
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask the engine for the canary's tokens, and say whether it has the trainer's weights, or which fault it is like.

    Exit code 0 if the weights are as pushed; 1 if they are not; 2 if it cannot be told, or the engine cannot be asked.

    \b
    Examples:
      reweigh canary check report/canary.json --model served/
      reweigh canary check report/canary.json --log-probs answer.json --json
    """
    from reweigh.probe import canary as canaries

    kept = canaries.load_canary(path)
    answer = _read(log_probs) if log_probs is not None else _asked(kept, engine, model, dtype, engine_arg or [])
    found = canaries.check(kept, answer)
    if as_json or form == "json":
        print_json(
            {
                "code": found.code,
                "sentence": found.sentence,
                "version": kept.version,
                "likely": [vars(one) for one in found.likely],
                "not_ruled_out": [vars(one) for one in found.hidden],
                "noise": found.noise,
                "usual": found.usual,
                "step": found.step,
            }
        )
    else:
        stdout().print(found.sentence, markup=False, soft_wrap=True)
        if found.hidden and found.code == 0:
            names = ", ".join(f"{one.kind} {one.what}".strip() for one in found.hidden)
            say(f"too small an effect here to be ruled out: {names}", quiet)
    raise typer.Exit(found.code)


def _read(path: Path) -> list[list[float]]:
    from reweigh.probe.engine import ProbeError

    if not path.is_file():
        raise ProbeError(f"--log-probs: no file {path}\nhint: JSON, a list of log-probs for each response.")
    try:
        rows: Any = json.loads(path.read_text("utf-8"))
        return [[float(x) for x in row] for row in rows]
    except (ValueError, TypeError) as error:
        raise ProbeError(
            f"--log-probs: {path} is no list of lists of numbers: {error}\nhint: [[-0.5, -1.2], ...]"
        ) from error


def _asked(kept: Any, engine: str, model: str | None, dtype: str | None, args: list[str]) -> list[list[float]]:
    from reweigh.probe.engine import ForcingEngine, ProbeError, SamplingSettings
    from reweigh.probe.run import EngineName as Engine
    from reweigh.probe.run import EngineOptions, start_engine

    if model is None:
        raise ProbeError("--model: say which weights the engine loads\nhint: the folder that was pushed to it.")
    options = EngineOptions(Engine(engine), model, dtype, args=key_values(args))
    with closing(start_engine(options)) as asked:
        if not isinstance(asked, ForcingEngine):
            raise ProbeError(
                f"--engine {engine}: cannot score given tokens through it\n"
                "hint: ask it yourself for the log-probs of the canary's tokens, and give them with --log-probs FILE."
            )
        prompts, tokens = [r.prompt_ids for r in kept.responses], [r.token_ids for r in kept.responses]
        return asked.force(prompts, tokens, SamplingSettings(), "prefill")
