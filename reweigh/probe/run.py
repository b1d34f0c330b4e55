"""A probe in two steps, each of which keeps what it has done if it is stopped: sample to a file, score to records."""

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from reweigh.probe.engine import Engine, EngineInfo, SamplingSettings
from reweigh.probe.prompts import Prompt, tokenize
from reweigh.probe.rollouts import Rollout, RolloutFile, RolloutWriter
from reweigh.probe.scorer import Response, Score, Scorer
from reweigh.records import RecordWriter, RunInfo

# called with sequences and tokens that are newly done
Progress = Callable[[int, int], None]

# A row group is what an interrupt can lose: small in a small run, and few enough in a large one.
_SMALLEST_GROUP, _LARGEST_GROUP, _GROUPS = 16, 512, 16


@dataclass(frozen=True)
class Summary:
    """What a scoring pass did.

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
    """Where rows stand until all are there: `records.parquet` -> `records.partial.parquet`."""
    stem, _, suffix = out.name.partition(".")
    return out.with_name(f"{stem}.partial.{suffix}")


def rollout_path(out: Path) -> Path:
    """A free name for the samples of a run: `records.parquet` -> `records.rollouts`, or `records-2.rollouts`, ..."""
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
    run = _run_id(engine.info, settings)
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
                )
            )
    return num_empty


def score(out: Path, source: RolloutFile, scorer: Scorer, *, progress: Progress) -> Summary:
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
            scores = scorer.score([Response(r.prompt_ids, r.token_ids) for r in group], lambda n: progress(1, n))
            writer.write([_row(rollout, one) for rollout, one in zip(group, scores, strict=True)])
            for rollout, one in zip(group, scores, strict=True):
                num_tokens += len(rollout.token_ids)
                num_outside += one.num_outside
                gap += sum(abs(p - m) for p, m in zip(one.log_pi, rollout.log_mu, strict=True))
    os.replace(part, out)
    return Summary(len(rollouts), num_tokens, gap / max(num_tokens, 1), num_outside)


@contextmanager
def writing(path: Path, info: RunInfo) -> Generator[RecordWriter, None, None]:
    """A writer that leaves no file if it is stopped before the first row."""
    writer = RecordWriter(path, info)
    try:
        with writer:
            yield writer
    finally:
        if writer.rows_written == 0:
            path.unlink()


def _run_id(engine: EngineInfo, settings: SamplingSettings) -> str:
    """Tells apart the responses of different engines to one prompt when their files are read together."""
    return hashlib.sha256(repr((engine, settings)).encode()).hexdigest()[:8]


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
        note=engine.note,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
