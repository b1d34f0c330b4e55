"""A probe in two steps, each of which keeps what it has done if it is stopped: sample to a file, then score it."""

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from transformers import PreTrainedTokenizerBase

from reweigh.guard import claimed, written_to
from reweigh.probe.engine import Engine, EngineInfo, ProbeError, Prompt, SamplingSettings, tokenize
from reweigh.probe.engine_openai import OpenAIEngine
from reweigh.probe.engine_transformers import TransformersEngine, end_ids
from reweigh.probe.engine_vllm import VLLMEngine
from reweigh.probe.models import NumberFormat, find_model, load_model, number_format
from reweigh.probe.scorer import Response, Score, Scorer, check_head
from reweigh.records import RecordWriter, RunInfo

_FORMAT = 1


@dataclass(frozen=True)
class Rollout:
    """A sampled response with its prompt.

    Attributes:
        sequence_id: unique in the file.
        prompt_id: equal for responses to one prompt.
        prompt_ids: token ids of the prompt as the engine got it.
        token_ids: the response.
        log_mu: nats, a token.
        finish_reason: why it ended, if known.
        text: the response decoded, if asked for.
        support_ids: what could have been drawn at each token, if asked for and not all.
    """

    sequence_id: str
    prompt_id: str
    prompt_ids: list[int]
    token_ids: list[int]
    log_mu: list[float]
    finish_reason: str | None = None
    text: str | None = None
    support_ids: list[list[int]] | None = None


@dataclass(frozen=True)
class RolloutFile:
    """The content of a file of samples, as `read_rollouts` reads it.

    Attributes:
        model: what was asked for as `--model` when sampling.
        engine: what sampled.
        settings: how.
        rollouts: the samples.
        torn: True if the last line was cut off and left out.
    """

    model: str
    engine: EngineInfo
    settings: SamplingSettings
    rollouts: list[Rollout] = field(repr=False)
    torn: bool = False


class RolloutWriter:
    """Appends samples to a file, each on disk before the next; the first line says what sampled and how."""

    def __init__(self, path: Path, model: str, engine: EngineInfo, settings: SamplingSettings) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._head = {
            "reweigh_rollouts": _FORMAT,
            "model": model,
            "engine": asdict(engine),
            "settings": asdict(settings),
        }

    def __enter__(self) -> "RolloutWriter":
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, rollout: Rollout) -> None:
        """Append one sample; the first one makes the file."""
        with written_to(self._path):
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("w", encoding="utf-8")
                _put(self._file, self._head)
            _put(self._file, asdict(rollout))


def _put(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def read_rollouts(path: Path) -> RolloutFile:
    """Read what a `RolloutWriter` wrote, whole or cut off in its last line.

    Raises:
        ProbeError: no such file, not a rollout file, or a broken line; the message has the line's number.
    """
    if not path.is_file():
        raise ProbeError(f"--rescore: no file {path}\nhint: write one with `reweigh probe --sample-only {path}`.")
    lines = path.read_text("utf-8").split("\n")
    head = _parse(lines[0], path, 1)
    if head.get("reweigh_rollouts") != _FORMAT:
        raise ProbeError(
            f'--rescore: {path} line 1 must hold "reweigh_rollouts": {_FORMAT}, got {lines[0][:60]!r}\n'
            "hint: this is not a file of samples; write one with `reweigh probe --sample-only FILE`."
        )
    # A whole file ends in a newline, so what follows the last one is either nothing or half a line.
    rows = [(number, line) for number, line in enumerate(lines[1:-1], 2) if line]
    rollouts = [_rollout(_parse(line, path, number), path, number) for number, line in rows]
    return RolloutFile(
        head["model"], EngineInfo(**head["engine"]), SamplingSettings(**head["settings"]), rollouts, bool(lines[-1])
    )


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ProbeError(
            f"--rescore: {path} line {number} is not JSON: {error}\nhint: delete that line, or sample again."
        ) from error
    if not isinstance(row, dict):
        raise ProbeError(f"--rescore: {path} line {number} is not an object\nhint: delete that line, or sample again.")
    return row


def _rollout(row: dict[str, Any], path: Path, number: int) -> Rollout:
    names = {f.name for f in fields(Rollout)}
    if set(row) | {"support_ids"} != names:  # which earlier files have not got
        raise ProbeError(
            f"--rescore: {path} line {number} must have {sorted(names)}, got {sorted(row)}\n"
            "hint: delete that line, or sample again."
        )
    rollout = Rollout(**row)
    if len(rollout.token_ids) != len(rollout.log_mu):
        raise ProbeError(
            f"--rescore: {path} line {number}: {len(rollout.token_ids)} token_ids, {len(rollout.log_mu)} log_mu\n"
            "hint: they are one a token; delete that line, or sample again."
        )
    return rollout


# called with sequences and tokens that are newly done
Progress = Callable[[int, int], None]

# A row group is what an interrupt can lose: small in a small run, and few enough in a large one.
_SMALLEST_GROUP, _LARGEST_GROUP, _GROUPS = 16, 512, 16


@dataclass(frozen=True)
class Scored:
    """Counts of a scoring pass.

    Attributes:
        num_seqs: rows written.
        num_tokens: tokens in them.
        mean_abs_log_ratio: nats a token.
        num_outside: tokens outside the scorer's own nucleus (top-p below 1 only).
    """

    num_seqs: int
    num_tokens: int
    mean_abs_log_ratio: float
    num_outside: int


def partial_path(out: Path) -> Path:
    """Tell where rows stand until all are there: `records.parquet` -> `records.partial.parquet`."""
    stem, _, suffix = out.name.partition(".")
    return out.with_name(f"{stem}.partial.{suffix}")


def rollout_path(out: Path) -> Path:
    """Find a free name for samples of a run: `records.parquet` -> `records.rollouts`, `records-2.rollouts`, ..."""
    stem = out.name.partition(".")[0]
    path, k = out.with_name(f"{stem}.rollouts"), 1
    while path.exists():
        k += 1
        path = out.with_name(f"{stem}-{k}.rollouts")
    return path


def sample(
    path: Path,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    *,
    model: str,
    with_text: bool,
    progress: Progress,
) -> int:
    """Draw from the engine; each response is in the file at `path` before the next is waited for.

    Returns:
        How many responses were empty, and so are not in the file: cut before their first token.
    """
    num_empty = 0
    prompt_ids = tokenize(prompts, tokenizer)
    samples = engine.sample(prompt_ids, settings, lambda tokens: progress(0, tokens))
    # tells apart the responses of different engines to one prompt when their files are read together
    run = hashlib.sha256(repr((engine.info, settings)).encode()).hexdigest()[:8]
    # Left early, a generator ends only when it is closed, and a server is asked on until then.
    with RolloutWriter(path, model, engine.info, settings) as writer, closing(samples):
        for one in samples:
            progress(1, 0)
            if not one.token_ids:
                num_empty += 1
                continue
            prompt = prompts[one.prompt]
            writer.write(
                Rollout(
                    sequence_id=f"{run}/{prompt.prompt_id}/{one.draw}",
                    prompt_id=prompt.prompt_id,
                    prompt_ids=prompt_ids[one.prompt],
                    token_ids=list(one.token_ids),
                    log_mu=list(one.log_mu),
                    finish_reason=one.finish_reason,
                    text=str(tokenizer.decode(list(one.token_ids))) if with_text else None,
                    support_ids=None if one.support is None else [list(ids) for ids in one.support],
                )
            )
    return num_empty


def score(out: Path, source: RolloutFile, scorer: Scorer, *, progress: Progress) -> Scored:
    """Score samples and write records; the file gets its name when it is whole, and is readable before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = partial_path(out)
    rollouts = sorted(source.rollouts, key=lambda rollout: rollout.sequence_id)
    size = min(max(len(rollouts) // _GROUPS, _SMALLEST_GROUP), _LARGEST_GROUP)
    num_tokens = num_outside = 0
    gap = 0.0
    with writing(part, _run_info(source, scorer)) as writer:
        for start in range(0, len(rollouts), size):
            group = rollouts[start : start + size]
            scores = scorer.score(
                [Response(r.prompt_ids, r.token_ids, r.support_ids) for r in group], lambda n: progress(1, n)
            )
            with written_to(out, part):
                writer.write([_row(rollout, one) for rollout, one in zip(group, scores, strict=True)])
            for rollout, one in zip(group, scores, strict=True):
                num_tokens += len(rollout.token_ids)
                num_outside += one.num_outside
                less = one.log_support_pi or [0.0] * len(one.log_pi)
                gap += sum(abs(p - s - m) for p, s, m in zip(one.log_pi, less, rollout.log_mu, strict=True))
    os.replace(part, out)
    return Scored(len(rollouts), num_tokens, gap / max(num_tokens, 1), num_outside)


@contextmanager
def writing(path: Path, info: RunInfo) -> Generator[RecordWriter, None, None]:
    """Write to a file that is not left there if it is stopped before the first row."""
    with claimed(path):
        writer = RecordWriter(path, info)
        try:
            with writer:
                yield writer
        except OSError:  # there is no room: what is there is no whole file, and cannot be made one
            path.unlink(missing_ok=True)
            raise
        finally:
            if writer.rows_written == 0:
                path.unlink(missing_ok=True)


def _row(rollout: Rollout, one: Score) -> dict[str, Any]:
    return {
        "sequence_id": rollout.sequence_id,
        "prompt_id": rollout.prompt_id,
        "prompt_length": len(rollout.prompt_ids),
        "token_ids": rollout.token_ids,
        "log_mu": rollout.log_mu,
        "log_pi": one.log_pi,
        "entropy_pi": one.entropy_pi,
        "log_pi_repeat": one.log_pi_repeat,
        "support_ids": rollout.support_ids,
        "log_support_pi": one.log_support_pi,
        "finish_reason": rollout.finish_reason,
        "text": rollout.text,
    }


def _run_info(source: RolloutFile, scorer: Scorer) -> RunInfo:
    engine, settings = source.engine, source.settings
    return RunInfo(
        engine=engine.name,
        engine_version=engine.version,
        trainer="transformers",
        trainer_version=scorer.version,
        model=engine.model,
        dtype_mu=engine.dtype,
        dtype_pi=scorer.dtype,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        logprobs_mode=engine.logprobs_mode,
        seed=settings.seed,
        note="; ".join(dict.fromkeys(filter(None, (engine.note, scorer.note)))) or None,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


_DTYPE = "bfloat16"  # what engines sample in, unless told


_ARGS: Mapping[str, tuple[Any, ...]] = {  # that the transformers engine takes
    "attn_implementation": ("sdpa", "eager"),
    "kv_cache_dtype": ("auto", "fp8"),
    "float32_head": (False, True),
}


class EngineName(str, Enum):
    """The engines that can sample."""

    TRANSFORMERS = "transformers"
    OPENAI = "openai"
    VLLM = "vllm"


@dataclass(frozen=True)
class EngineOptions:
    """The choice of an engine, and how to start it; each reads what is its own.

    Attributes:
        name: which.
        model: as `find_model` takes it.
        dtype: number format of the transformers engine, or vLLM's `dtype` (None is bfloat16); for the record only,
            that of a server.
        device: torch device of the transformers engine.
        batch_size: sequences in flight of the transformers engine.
        url: of the server.
        served_model: the server's name for the model.
        api_key: for the server.
        concurrency: requests in flight at the server.
        support: record what could have been drawn at each token; the transformers engine alone can.
        args: further arguments of `vllm.LLM`, further fields of each request to the server, or of the transformers
            engine `attn_implementation` (sdpa, eager), `kv_cache_dtype` (auto, fp8), `float32_head` (false, true).
    """

    name: EngineName
    model: str
    dtype: str | None = None
    device: str = "cpu"
    batch_size: int = 32
    url: str = "http://127.0.0.1:8000/v1"
    served_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 32
    support: bool = False
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Refuse what the transformers engine does not know."""
        if self.name is not EngineName.TRANSFORMERS:
            if self.support:
                raise ProbeError(
                    f"--support: the engine {self.name.value} is not asked what it kept at each token\n"
                    "hint: --engine transformers is; a dump that has support_ids is scored by `reweigh rescore`."
                )
            return
        number_format("--dtype", self.dtype or _DTYPE)
        if unknown := [f"{name}={value}" for name, value in self.args.items() if value not in _ARGS.get(name, ())]:
            known = "; ".join(f"{name}={' or '.join(map(json.dumps, some))}" for name, some in _ARGS.items())
            raise ProbeError(
                f"--engine-arg: the transformers engine does not take {', '.join(unknown)}\n"
                f"hint: it takes {known}; its other options are --dtype, --device and --batch-size."
            )


@dataclass(frozen=True)
class ScorerOptions:
    """The choice of a scorer.

    Attributes:
        model: as `find_model` takes it; None is the model that sampled.
        dtype: number format.
        device: of torch.
        entropy: record entropies.
        repeat: score a second time.
        attention: the kernel as `transformers` names it; None is its own choice.
        batch_tokens: tokens in one forward; None is 4,096.
    """

    model: str | None
    dtype: NumberFormat = "float32"
    device: str = "cpu"
    entropy: bool = True
    repeat: bool = False
    attention: str | None = None
    batch_tokens: int | None = None


def start_engine(options: EngineOptions) -> Engine:
    """Load the model, or connect to the server."""
    if options.name is EngineName.OPENAI:
        return OpenAIEngine(
            options.url,
            model=options.served_model,
            dtype=options.dtype,
            api_key=options.api_key,
            concurrency=options.concurrency,
            extra=options.args,
        )
    source = find_model(options.model)
    if options.name is EngineName.VLLM:
        return VLLMEngine(source.folder, name=source.name, dtype=options.dtype or _DTYPE, args=options.args)
    dtype = number_format("--dtype", options.dtype or _DTYPE)
    args = options.args
    model = load_model(source, dtype, options.device, args.get("attn_implementation"))
    return TransformersEngine(
        model,
        name=source.name,
        dtype=dtype,
        end_ids=end_ids(model),
        batch_size=options.batch_size,
        support=options.support,
        fp8_cache=args.get("kv_cache_dtype") == "fp8",
        float32_head=bool(args.get("float32_head")),
        note=" ".join(f"{key}={value}" for key, value in sorted(args.items())) or None,
    )


def start_scorer(options: ScorerOptions, source: RolloutFile) -> Scorer:
    """Load the trainer's model, to score samples as they were drawn."""
    model = load_model(find_model(options.model or source.model), options.dtype, options.device, options.attention)
    check_head(model)
    return Scorer(
        model,
        options.dtype,
        source.settings.temperature,
        source.settings.top_p,
        with_entropy=options.entropy,
        with_repeat=options.repeat,
        forward_tokens=options.batch_tokens,
    )
