"""`reweigh rescore`: add the trainer's side to rollouts that have only the sampler's log-probs."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from reweigh.cli.options import Form, Json, Quiet, Reader
from reweigh.cli.output import INTERRUPTED, print_written, progress, stderr

if TYPE_CHECKING:
    from reweigh.dumps import Found, Skipped
    from reweigh.probe.rescore import Rescored
    from reweigh.records import RunInfo

Mode = Literal["processed", "raw"]  # what the sampler's log-probs are of


def rescore(
    dumps: Annotated[list[str], typer.Argument(metavar="DUMP...", help="Files, folders or quoted globs.")],
    model: Annotated[
        str, typer.Option(help="What scores: the model that sampled. smollm2, a .gguf file, a folder, or a hub name.")
    ],
    out: Annotated[Path, typer.Option(help="Records to write: .parquet, .jsonl or .jsonl.gz.")] = Path(
        "report/records.parquet"
    ),
    reader: Reader = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of sampling, if the dump does not say it.", show_default=False)
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Of sampling; 1 = off.  [default: 1]", show_default=False)] = None,
    logprobs_mode: Annotated[
        Mode | None,
        typer.Option(help="Are the log-probs after temperature and top-p (processed) or before (raw)?"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Number format of the trainer.")] = "float32",
    device: Annotated[str, typer.Option(help="Of torch: cpu, cuda, cuda:1, mps.")] = "cpu",
    entropy: Annotated[bool, typer.Option(help="Also record the trainer's entropy a token.")] = True,
    repeat: Annotated[bool, typer.Option(help="Score a second time, one sequence a batch.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out records that are no good, and list them.")
    ] = False,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the tokens of a dump that has only the sampler's log-probs, and write records with both sides.

    For open-instruct's rollouts, saved answers of vLLM, SGLang and other servers of OpenAI's API, slime's rollout dump,
    and traces that no trainer annotated. The records then go to `reweigh audit`; their path is printed. Exit code 0; 2
    if dump or model cannot be read, or nobody says how was sampled; 130 after Ctrl-C: rows already scored are kept.

    \b
    Examples:
      reweigh rescore answers.jsonl --model org/model --temperature 1.0
      reweigh rescore rollouts/ --model ./checkpoint --temperature 0.8 --logprobs-mode processed --out a.parquet
    """
    form = "json" if as_json else form
    from transformers.utils import logging as transformers_logging

    from reweigh.dumps import Skipped, find, read
    from reweigh.probe.models import find_model, load_model, number_format
    from reweigh.probe.rescore import described
    from reweigh.probe.rescore import rescore as add_trainer_side
    from reweigh.probe.run import partial_path
    from reweigh.probe.scorer import Scorer, check_head
    from reweigh.records.files import format_of
    from reweigh.records.schema import fail

    console = stderr(quiet)
    # transformers' advice and bars would drown ours.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # What can be wrong with the options is found before anything slow begins.
    number_type = number_format("--dtype", dtype)
    format_of(out)
    found = find(dumps, reader)
    info = _sampling(_info(found, reader), temperature, top_p, logprobs_mode)
    source = find_model(model, lambda message: _say(console, message))
    for path in found.ignored:
        _say(console, f"note: {path} is left out, no reader knows it")
    skipped = Skipped()
    try:
        with console.status("loading the trainer's model"):
            loaded = load_model(source, number_type, device)
            check_head(loaded)
        plain = info.logprobs_mode == "raw"  # then the other side must be of the untouched softmax too
        at = (1.0, 1.0) if plain else (info.temperature or 1.0, info.top_p or 1.0)
        scorer = Scorer(loaded, number_type, *at, with_entropy=entropy, with_repeat=repeat)
        if scorer.note:
            _say(console, f"note: {scorer.note}")
        rows = read(found.paths, reader=reader, skip_bad=skip_bad, skipped=skipped)
        with progress("scoring tokens", quiet=quiet) as count:
            done = add_trainer_side(
                out,
                rows,
                scorer,
                described(info, scorer, source.name),
                report=skipped if skip_bad else fail,
                progress=lambda seqs, tokens: count(tokens),
            )
    except KeyboardInterrupt:
        _say(console, "interrupted")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        _tell_skipped(console, skipped)
        if partial_path(out).exists():
            _say(console, f"kept: rows already scored, in {partial_path(out)}")
    _tell(console, done, info, out)
    print_written(
        out,
        form,
        sequences=done.num_seqs,
        tokens=done.num_tokens,
        mean_abs_log_ratio=done.mean_abs_log_ratio,
        left_out=skipped.count + done.num_empty,
    )


def _info(found: "Found", reader: str | None) -> "RunInfo":
    """Merge what is known of all files; refuses files that were sampled differently."""
    from reweigh.dumps import info_of
    from reweigh.records import RunInfo

    infos = [info_of(path, reader) for path in found.paths]
    for path, info in zip(found.paths, infos, strict=True):
        differ = infos[0].disagreements(info)
        if differ:
            listed = ", ".join(f"{name} was {a!r} and is {b!r}" for name, (a, b) in differ.items())
            raise ValueError(
                f"rescore: {path} is not of the same run as the files before it: {listed}\n"
                "hint: rescore them one by one."
            )
    known: dict[str, object] = {}
    for info in infos:
        known = {**info.to_dict(), **known}
    return RunInfo.from_dict(known)


def _sampling(info: "RunInfo", temperature: float | None, top_p: float | None, mode: Mode | None) -> "RunInfo":
    """Complete the run by what the user says of sampling; what matters and nobody says is asked for."""
    from reweigh.probe.engine import ProbeError
    from reweigh.records import RunInfo

    known = info.to_dict() | {
        name: value
        for name, value in (("temperature", temperature), ("top_p", top_p), ("logprobs_mode", mode))
        if value is not None
    }
    info = RunInfo.from_dict({"top_p": 1.0, **known})
    if info.temperature is None:
        raise ProbeError(
            "rescore: the dump does not say at which temperature was sampled\n"
            "hint: give it: --temperature 1.0; the trainer's log-probs must be of the same distribution."
        )
    if not info.temperature > 0 or not 0 < (info.top_p or 1.0) <= 1:
        raise ProbeError(
            f"rescore: temperature must be > 0 and top_p in (0, 1], got {info.temperature} and {info.top_p}\n"
            "hint: greedy decoding gives every token probability 1, so there is no ratio to measure."
        )
    if info.logprobs_mode is None and (info.temperature, info.top_p) != (1.0, 1.0):
        raise ProbeError(
            f"rescore: with temperature {info.temperature:g} and top_p {info.top_p:g} it matters whether the dump's "
            "log-probs are after these (processed) or before (raw), and the dump does not say it\n"
            "hint: --logprobs-mode raw is what vLLM and OpenAI give unless told otherwise; trainers turn processed on."
        )
    return info


def _tell_skipped(console: Console, skipped: "Skipped") -> None:
    if skipped.count:
        _say(console, f"{skipped.count} bad records are left out:")
        for line in skipped.lines():
            _say(console, f"  {line}")


def _tell(console: Console, done: "Rescored", info: "RunInfo", out: Path) -> None:
    from reweigh.probe.engine import ProbeError

    if not done.num_seqs:
        raise ProbeError("rescore: no record of the dump could be scored\nhint: see the list above.")
    if info.logprobs_mode == "raw" and (info.temperature, info.top_p) != (1.0, 1.0):
        _say(
            console,
            f"the dump's log-probs are raw, and tokens were drawn at temperature {info.temperature:g} and top_p "
            f"{info.top_p:g}: both sides are of the untouched softmax, so the gap is right and the weights are not",
        )
    for count, what in (
        (done.num_empty, "responses have no token and are left out"),
        (done.num_masked, "tokens have no finite log-prob of the sampler and are out of the mask"),
        (done.num_outside, "tokens lie outside the trainer's own top-p nucleus; they are scored as if inside"),
    ):
        if count:
            _say(console, f"{count:,} {what}")
    _say(
        console,
        f"{done.num_seqs:,} sequences, {done.num_tokens:,} tokens, "
        f"mean |log ratio| {done.mean_abs_log_ratio:.2g} nats a token",
    )
    _say(console, f"next: reweigh audit {shlex.quote(str(out))}")


def _say(console: Console, message: str) -> None:
    console.print(message, markup=False, soft_wrap=True)
