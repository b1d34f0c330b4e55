"""open-instruct: saved rollouts, one a line, with the sampler's log-probs only."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from reweigh.dumps.form import LINES, Format, Row, array, cut_lines, get, has, items_of_lines, itself, number
from reweigh.records.schema import RunInfo


def _rows(record: Mapping[str, Any], _: int) -> Sequence[Row]:
    prompt, step, dataset = get(record, "prompt_tokens"), get(record, "step"), record.get("dataset")
    log_mu = record.get("logprobs")
    row: dict[str, Any] = {
        "sequence_id": f"step{step}/{get(record, 'sample_idx')}",
        "prompt_id": f"step{step}/prompt{get(record, 'prompt_idx')}",
        "prompt_ids": array(prompt, "prompt_tokens"),
        "prompt_length": len(prompt),
        "step": step,
        "env": ", ".join(map(str, dataset)) if isinstance(dataset, list) else dataset,
        "token_ids": array(get(record, "response_tokens"), "response_tokens"),
        "log_mu": None if log_mu is None else array(log_mu, "logprobs"),
        "reward": number(record.get("reward")),
        "advantage": number(record.get("advantage")),
        "finish_reason": record.get("finish_reason"),
    }
    return [row]


FORMAT = Format(
    name="open_instruct",
    title="open-instruct rollouts: JSON lines with prompt_tokens, response_tokens and logprobs",
    file="open-instruct, `{run}_rollouts_{shard}.jsonl`",
    ask="`save_traces` with `rollouts_save_path`",
    both_sides=False,
    endings=LINES,
    kind="json",
    recognises=has("prompt_tokens", "response_tokens", "prompt_idx"),
    items=partial(items_of_lines, rows=_rows),
    info=lambda path: RunInfo(engine="vllm"),
    parts=cut_lines,
    lead=itself,
)
