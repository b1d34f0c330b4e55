"""The trainer's side for rollouts that a framework or a server recorded: scores their tokens and writes records."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps import DumpRow
from reweigh.probe.run import Progress, partial_path, writing
from reweigh.probe.scorer import Response, Score, Scorer
from reweigh.records import RunInfo, Violation
from reweigh.records.schema import Report

_GROUP = 64  # rows that an interrupt can lose, and that are in memory at once


@dataclass(frozen=True)
class Rescored:
    """Counts of a rescoring.

    Attributes:
        num_seqs: rows written.
        num_empty: rows without a token, left out.
        num_tokens: tokens scored.
        num_masked: tokens taken out of the mask, as the sampler's log-prob of them is not finite.
        num_outside: tokens outside the scorer's own nucleus (top-p below 1 only).
        mean_abs_log_ratio: nats a token in the mask.
    """

    num_seqs: int
    num_empty: int
    num_tokens: int
    num_masked: int
    num_outside: int
    mean_abs_log_ratio: float


def rescore(
    out: Path, rows: Iterable[DumpRow], scorer: Scorer, info: RunInfo, *, report: Report, progress: Progress
) -> Rescored:
    """Score rows as they come and write them; the file gets its name when it is whole, and is readable before.

    Args:
        out: the records to write.
        rows: with log_mu, token_ids and the prompt's ids.
        scorer: at the temperature and top-p that `log_mu` is of.
        info: what to say of the run.
        report: called with a row that cannot be scored; the row is left out if it returns.
        progress: called with sequences and tokens newly done.

    Raises:
        ValueError: from `report`; or a value that no record may have.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part = partial_path(out)
    seqs = empty = tokens = masked = outside = counted = 0
    gap = 0.0
    with writing(part, info) as writer:
        scorable = _scorable(rows, report)
        while group := list(islice(scorable, _GROUP)):
            full = [row for row in group if len(row.columns["token_ids"])]
            prompts = [[] if row.prompt_ids is None else [int(x) for x in row.prompt_ids] for row in full]
            tokens_of = [[int(x) for x in row.columns["token_ids"]] for row in full]
            kept = [row.columns.get("support_ids") for row in full]
            responses = [Response(*one) for one in zip(prompts, tokens_of, kept, strict=True)]
            scores = scorer.score(responses, lambda n: progress(1, n))
            written = [_columns(row, score) for row, score in zip(full, scores, strict=True)]
            writer.write(written)
            for row, columns, score in zip(full, written, scores, strict=True):
                live = np.asarray(columns["mask"])
                less = 0.0 if score.log_support_pi is None else np.asarray(score.log_support_pi)
                gap += float(np.abs(np.asarray(score.log_pi) - less - np.asarray(columns["log_mu"]))[live].sum())
                counted += int(live.sum())
                masked += _num_counted(row) - int(live.sum())
                outside += score.num_outside
                tokens += len(score.log_pi)
            seqs += len(full)
            empty += len(group) - len(full)
    if seqs:
        os.replace(part, out)
    return Rescored(seqs, empty, tokens, masked, outside, gap / max(counted, 1))


def described(info: RunInfo, scorer: Scorer, model: str) -> RunInfo:
    """Say of a rescored dump what the scorer adds to what it says of its run."""
    return replace(
        info,
        schema_version=RunInfo().schema_version,
        trainer="transformers",
        trainer_version=scorer.version,
        model=info.model or model,
        dtype_pi=scorer.dtype,
        note="; ".join(dict.fromkeys(filter(None, (info.note, scorer.note)))) or None,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _scorable(rows: Iterable[DumpRow], report: Report) -> Iterator[DumpRow]:
    for row in rows:
        wrong = _wrong(row)
        if wrong is None:
            yield row
        else:
            report(Violation("rescore: " + wrong[0], row.place, *wrong))


def _wrong(row: DumpRow) -> tuple[str, str] | None:
    if row.columns.get("log_pi") is not None:
        hint = "nothing is to be added; `reweigh audit` and `reweigh records convert` take the dump as it is."
        return "the record has the trainer's log-probs already", hint
    if row.columns.get("token_ids") is None:
        hint = "log-probs cannot be computed from text; ask the server for ids (vLLM: return_token_ids)."
        return "the record has no token ids of the response", hint
    if row.prompt_ids is None or len(row.prompt_ids) == 0:
        hint = (
            "the model must see what came before; ask the server for it (vLLM: return_token_ids), or keep the request."
        )
        return "the record has no token ids of the prompt", hint
    return None


def _columns(row: DumpRow, score: Score) -> dict[str, Any]:
    log_mu = np.asarray(row.columns["log_mu"])
    mask = row.columns.get("mask")
    live = np.isfinite(log_mu) if mask is None else np.asarray(mask) & np.isfinite(log_mu)
    scored = {"log_pi": score.log_pi, "entropy_pi": score.entropy_pi, "log_pi_repeat": score.log_pi_repeat}
    if score.log_support_pi is not None:
        scored["log_support_pi"] = score.log_support_pi
    return {**row.columns, **scored, "mask": live}


def _num_counted(row: DumpRow) -> int:
    mask = row.columns.get("mask")
    return len(row.columns["log_mu"]) if mask is None else int(np.asarray(mask).sum())
