"""prime-rl: token exports, one packed sequence a line, with both sides' log-probs over prompt and response."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from reweigh.dumps.form import (
    LINES,
    BadRecordError,
    Format,
    Row,
    array,
    cut_lines,
    get,
    has,
    items_of_lines,
    itself,
    mask_of,
    prompt_name,
    same_length,
    turns_of,
)
from reweigh.records.schema import RunInfo

_VERSION = 1
_COLUMNS = {
    "inference_logprobs": "log_mu",
    "trainer_logprobs": "log_pi",
    "entropy": "entropy_pi",
    "advantages": "advantage",
}


def _rows(record: Mapping[str, Any], _: int) -> Sequence[Row]:
    version = get(record, "schema_version")
    if version != _VERSION:
        raise BadRecordError(
            "schema_version: unknown",
            f"schema_version of the token export must be {_VERSION}, got {version!r}",
            "another version of prime-rl wrote it, and what its fields mean there is not known here.",
        )
    ids = array(get(record, "token_ids"), "token_ids")
    lists = {name: array(record[name], name) for name in _COLUMNS if record.get(name) is not None}
    sampled = mask_of(get(record, "loss_mask"), "loss_mask")
    same_length({"token_ids": len(ids), "loss_mask": len(sampled), **{name: len(v) for name, v in lists.items()}})
    start = int(np.argmax(sampled)) if sampled.any() else len(ids)
    counted = sampled & _has_ratio(record, len(ids))
    row: dict[str, Any] = {
        "sequence_id": f"step{record['step']}/rank{record['rank']}/{record['export_sequence_idx']}",
        "prompt_id": prompt_name(ids[:start]),
        "prompt_ids": ids[:start],
        "prompt_length": start,
        "step": record["step"],
        "env": record.get("env_name"),
        "token_ids": ids[start:],
        "mask": counted[start:],
        "turns": turns_of(sampled[start:]),
        "pack_index": record.get("micro_step"),
    }
    return [row | {column: lists[name][start:] for name, column in _COLUMNS.items() if name in lists}]


def _has_ratio(record: Mapping[str, Any], length: int) -> np.ndarray:
    """Tokens that the policy loss or the KL weighs: the others may have no sampler's log-prob (a 0 stands there)."""
    streams = [record.get(name) for name in ("rl_weights", "ref_kl_weights")]
    rl, ref = (None if s is None or all(x is None for x in s) else array(s, "weights") for s in streams)
    if rl is None:
        return np.ones(length, bool)
    same_length({"token_ids": length, "rl_weights": len(rl)})
    if np.isnan(rl).any() or (ref is not None and np.isnan(ref).any()):
        raise BadRecordError(
            "weights: not a number",
            "rl_weights or ref_kl_weights is null or NaN for some tokens: whether they count cannot be told",
            "leave the record out (--skip-bad).",
        )
    return (rl != 0) if ref is None else (rl != 0) | (ref != 0)


FORMAT = Format(
    name="prime_rl",
    title="prime-rl token export: JSON lines with inference_logprobs and trainer_logprobs",
    file="prime-rl, `token_exports/step_{N}/rank_{R}.jsonl`",
    ask="`trainer.enable_token_export = true`",
    known="step, environment, advantage, entropy, micro-batch",
    both_sides=True,
    endings=LINES,
    kind="json",
    recognises=has("export_sequence_idx", "token_ids", "loss_mask"),
    items=partial(items_of_lines, rows=_rows),
    info=lambda path: RunInfo(engine="vllm", trainer="prime-rl", logprobs_mode="processed"),
    parts=cut_lines,
    lead=itself,
)
