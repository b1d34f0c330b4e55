"""NeMo-RL: train_data_step*.jsonl, one sample a line, padded to its batch's longest, the first log-prob a dummy."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from reweigh.dumps.form import (
    LINES,
    BadRecordError,
    Format,
    Item,
    Row,
    array,
    cut_lines,
    get,
    has,
    items_of_lines,
    itself,
    mask_of,
    number,
    prompt_name,
    same_length,
    turns_of,
)
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo

_STEP = re.compile(r"step_?(\d+)")
_LISTS = ("token_ids", "token_loss_mask", "generation_logprobs", "prev_logprobs", "advantages")


def _items(part: FilePart) -> Iterator[Item]:
    step = _STEP.search(part.path.name)
    return items_of_lines(part, partial(_rows, None if step is None else int(step[1]), part.path.name))


def _rows(step: int | None, file: str, record: Mapping[str, Any], number_in_file: int) -> Sequence[Row]:
    """A line has lists of one: the writer cuts its batch into batches of one sample."""
    ids = array(_single(get(record, "token_ids")), "token_ids")
    lists = {name: array(_single(record[name]), name) for name in _LISTS[1:] if record.get(name) is not None}
    per_token = {
        name: values for name, values in lists.items() if not (name == "advantages" and len(values) == 1 < len(ids))
    }
    same_length({"token_ids": len(ids), **{name: len(values) for name, values in per_token.items()}})
    stop = int(_scalar(get(record, "input_lengths")))
    if not 0 < stop <= len(ids):
        raise BadRecordError(
            "input_lengths: too long", f"input_lengths is {stop}, token_ids has {len(ids)}", "the dump is damaged."
        )
    sampled = mask_of(_single(get(record, "token_loss_mask")), "token_loss_mask")[:stop]
    sampled[0] = False  # the first token has no log-prob, a dummy stands there
    start = int(np.argmax(sampled)) if sampled.any() else stop
    counted = sampled[start:] & bool(mask_of([_scalar(record.get("sample_loss_mask", 1))], "sample_loss_mask")[0])
    row: dict[str, Any] = {
        "sequence_id": f"{file.split('.')[0]}/{_scalar(record.get('idx', number_in_file))}",
        "prompt_id": prompt_name(ids[:start]),
        "prompt_ids": ids[:start],
        "prompt_length": start,
        "step": step,
        "token_ids": ids[start:stop],
        "mask": counted,
        "turns": turns_of(sampled[start:]),
        "reward": number(_scalar(record.get("rewards"))),
    }
    for name, column in (("generation_logprobs", "log_mu"), ("prev_logprobs", "log_pi"), ("advantages", "advantage")):
        if name in lists:
            row[column] = lists[name][start:stop] if name in per_token else float(lists[name][0])
    agent = _scalar(record.get("agent_ref"))
    if isinstance(agent, Mapping) and isinstance(agent.get("name"), str):
        row["env"] = agent["name"]
    return [row]


def _single(value: Any) -> Any:
    """[[1, 2, 3]] -> [1, 2, 3]."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def _scalar(value: Any) -> Any:
    """[0.5] -> 0.5."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


FORMAT = Format(
    name="nemo_rl",
    title="NeMo-RL train data: JSON lines with token_loss_mask, generation_logprobs and prev_logprobs",
    file="NeMo-RL, `train_data_step{N}.jsonl`",
    ask="always on",
    known="step, advantage, reward",
    both_sides=True,
    endings=LINES,
    kind="json",
    recognises=has("input_lengths", "token_ids", "token_loss_mask"),
    items=_items,
    info=lambda path: RunInfo(trainer="nemo-rl"),
    parts=cut_lines,
    lead=itself,
)
