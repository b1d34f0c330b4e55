"""One part of a matrix of probes, run in a process of its own: an engine samples or scores tokens, or a trainer does.

`python -m reweigh.probe.part JOB.json`, by whatever interpreter has the engine; what it finds is written to a file.
"""

import json
import math
import os
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from reweigh.probe.engine import Engine, ForcingEngine, ProbeError, Prompt, SamplingSettings
from reweigh.probe.models import find_model, load_tokenizer
from reweigh.probe.run import (
    EngineName,
    EngineOptions,
    Rollout,
    RolloutFile,
    RolloutWriter,
    ScorerOptions,
    read_rollouts,
    sample,
    start_engine,
    start_scorer,
)
from reweigh.probe.scorer import Response

_MOST_ABSENT = 0.2  # share of tokens outside the engine's own nucleus, beyond which the answers are of something else


def run_part(job: dict[str, Any]) -> None:
    """Do a job, and write its result, whole or not at all, to `job["out"]`.

    Raises:
        ProbeError: it cannot be done, or the answers cannot be log-probs of these tokens.
    """
    out = Path(job["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    result = _scored(job) if job["kind"] == "score" else _engine(job)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    os.replace(part, out)


def _engine(job: dict[str, Any]) -> dict[str, Any]:
    options = EngineOptions(**(job["engine"] | {"name": EngineName(job["engine"]["name"])}))
    settings = SamplingSettings(**job["settings"])
    start = time.monotonic()
    with closing(start_engine(options)) as engine:
        started = time.monotonic() - start
        start = time.monotonic()
        if job["tokens"] and isinstance(engine, ForcingEngine) and "decode" in engine.passes:
            source = read_rollouts(Path(job["tokens"]))
            log_mu = engine.force(*_tokens(source.rollouts), settings, "decode")
            rows = [replace(one, log_mu=x) for one, x in zip(source.rollouts, log_mu, strict=True)]
            _write(Path(job["rollouts"]), options.model, engine, settings, rows)
            own = False
        else:
            rows = _sampled(job, options, engine, settings)
            own = True
        seconds = time.monotonic() - start
        check_answers(rows)
        prefill: list[list[float]] | None = None
        if isinstance(engine, ForcingEngine) and "prefill" in engine.passes and settings.plain:
            prefill = engine.force(*_tokens(rows), settings, "prefill")
        tokens = sum(len(one.token_ids) for one in rows)
        return {
            "own": own,
            "seconds": seconds,
            "start_seconds": started,
            "tokens": tokens,
            "prefill": prefill,
            "info": asdict(engine.info),
        }


def _sampled(job: dict[str, Any], options: EngineOptions, engine: Engine, settings: SamplingSettings) -> list[Rollout]:
    prompts = [Prompt(**one) for one in job["prompts"]]
    path, part = Path(job["rollouts"]), Path(job["rollouts"]).with_suffix(".partial.rollouts")
    tokenizer = load_tokenizer(find_model(options.model))
    sample(
        part,
        engine,
        tokenizer,
        prompts,
        settings,
        model=options.model,
        with_text=True,
        progress=lambda seqs, tokens: None,
    )
    if not part.exists():
        raise ProbeError("every response was cut before its first token\nhint: try other prompts.")
    os.replace(part, path)
    return read_rollouts(path).rollouts


def _tokens(rows: list[Rollout]) -> tuple[list[list[int]], list[list[int]]]:
    return [one.prompt_ids for one in rows], [one.token_ids for one in rows]


def _write(path: Path, model: str, engine: Engine, settings: SamplingSettings, rows: list[Rollout]) -> None:
    part = path.with_suffix(".partial.rollouts")
    with RolloutWriter(part, model, engine.info, settings) as writer:
        for one in rows:
            writer.write(one)
    os.replace(part, path)


def check_answers(rows: list[Rollout]) -> None:
    """Refuse what cannot be log-probs of sampled tokens.

    Raises:
        ProbeError: a value over 0 or NaN, too many of minus infinity, or the same one everywhere.
    """
    values = [x for one in rows for x in one.log_mu]
    wrong = next((x for x in values if math.isnan(x) or x > 1e-3), None)
    if wrong is not None:
        raise ProbeError(f"garbage: a log-prob of {wrong:g}\nhint: the log-prob of a token is at most 0.")
    if not values:
        raise ProbeError("garbage: no log-probs\nhint: the engine answered with empty responses.")
    absent = sum(x == -math.inf for x in values) / len(values)
    if absent > _MOST_ABSENT:
        raise ProbeError(
            f"garbage: {absent:.0%} of the tokens have log-prob minus infinity\nhint: is it the same model?"
        )
    if len(values) > 16 and len(set(values)) == 1:
        raise ProbeError(
            f"garbage: each of {len(values)} tokens has the log-prob {values[0]:g}\n"
            "hint: the engine does not compute them; does it decode greedily, or with a draft?"
        )


def _scored(job: dict[str, Any]) -> dict[str, Any]:
    source: RolloutFile = read_rollouts(Path(job["tokens"]))
    start = time.monotonic()
    scorer = start_scorer(ScorerOptions(**job["scorer"]), source)
    started = time.monotonic() - start
    start = time.monotonic()
    scores = scorer.score([Response(r.prompt_ids, r.token_ids) for r in source.rollouts])
    seconds = time.monotonic() - start
    if any(not math.isfinite(x) for one in scores for x in one.log_pi):
        raise ProbeError("garbage: the trainer's log-probs are not finite\nhint: float16 overflows in some models.")
    return {
        "seconds": seconds,
        "start_seconds": started,
        "log_pi": [one.log_pi for one in scores],
        "log_pi_repeat": [one.log_pi_repeat for one in scores],
        "entropy_pi": [one.entropy_pi for one in scores],
        "version": scorer.version,
        "parameters": sum(value.numel() for value in scorer.model.parameters()),
        "note": scorer.note,
    }


def main() -> int:
    """Run the job that is named, and write what went wrong beside it."""
    path = Path(sys.argv[1])
    try:
        run_part(json.loads(path.read_text(encoding="utf-8")))
    except BaseException as error:
        told = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
        path.with_suffix(".error").write_text(told, encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    # vLLM's core may leave threads and children that keep an interpreter from ending; all is on disk by now.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
