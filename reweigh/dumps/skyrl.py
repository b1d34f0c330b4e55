"""SkyRL: a pickled TrainingInputBatch a step, read by an unpickler that knows plain data and this one class."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from reweigh.dumps.form import (
    BadRecordError,
    Format,
    Item,
    Row,
    array,
    itself,
    mask_of,
    prompt_name,
    same_length,
    turns_of,
    whole,
)
from reweigh.dumps.tensors import array_of_numbers, load_pickle, plain_dtype
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo, UnreadableFileError

_STEP = re.compile(r"global_step_(\d+)")
_COLUMNS = {"rollout_logprobs": "log_mu", "action_log_probs": "log_pi", "advantages": "advantage"}
_NEEDED = ("sequences", "attention_mask", "response_mask")


class _Batch(dict[str, Any]):
    """Stands for the framework's batch, which is a dictionary with a state: keeps the state, does nothing with it."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _Ignored:
    """Stands for a class whose objects hold images."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


def _rebuilt(kind: type[_Batch], state: Mapping[str, Any]) -> _Batch:
    batch = _Batch()
    batch.__setstate__(state)
    return batch


_STUBS = {
    "TrainingInputBatch": _Batch,
    "_rebuild_tensor_batch": _rebuilt,
    "TensorList": _Ignored,  # until 0.3; later ones write lists of tensors in words of their own, as they do the others
    "TensorFormat": str,  # since 0.4, and of strings
}


def _items(part: FilePart) -> Iterator[Item]:
    path = part.path
    batch = load_pickle(path, "skyrl", _STUBS)
    if not isinstance(batch, _Batch) or "batch_dict" not in batch.state:
        raise UnreadableFileError(
            f"{path}: must be a TrainingInputBatch with batch_dict\nhint: another version wrote it."
        )
    raw = batch.state["batch_dict"]
    for name in _NEEDED:
        if raw.get(name) is None:
            raise UnreadableFileError(
                f"{path}: the batch has no {name}, only {', '.join(raw)}\nhint: another version wrote it."
            )
    wanted = (*_NEEDED, "loss_mask", *_COLUMNS)
    columns = {name: _tensor(raw[name], name, path) for name in wanted if raw.get(name) is not None}
    metadata: Mapping[str, Any] = batch.state.get("metadata") or {}
    step = _STEP.search(path.name)
    rows = len(columns["sequences"]) - int(metadata.get("pad_size") or 0)
    boundaries: Sequence[tuple[int, int]] = metadata.get("policy_prompt_boundaries") or ()
    groups = {i: k for k, (start, stop) in enumerate(boundaries) for i in range(start, stop)}
    for i in range(rows):
        yield Item(partial(_rows, columns, i, groups.get(i), step[1] if step else None, path.stem), i)


def _tensor(value: Mapping[str, Any], name: str, path: Path) -> np.ndarray:
    """A column as it is written: bytes, an array, a torch file, or responses end to end with where each ends."""
    try:
        form = value.get("format")
        if form == "packed_tensor":
            return _padded(_tensor(value["values"], name, path), _tensor(value["cu_seqlens"], name, path))
        if form == "torch":
            return torch.load(io.BytesIO(value["data"]), weights_only=True).float().numpy()
        if form == "numpy_view":
            return array_of_numbers(value["data"])
        if form not in (None, "numpy"):
            raise ValueError(f"its format is {form!r}, which this version of reweigh does not know")
        return np.frombuffer(value["data"], plain_dtype(value["dtype"])).reshape(value["shape"])
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise UnreadableFileError(
            f"{path}: {name} cannot be read as a tensor: {e}\nhint: the file is damaged."
        ) from None


def _padded(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Responses end to end as rows, their last tokens under each other, as the columns beside them have it."""
    lengths = np.diff(ends)
    rows = np.zeros((len(lengths), int(lengths.max(initial=0)), *values.shape[1:]), values.dtype)
    for row, start, length in zip(rows, ends[:-1], lengths, strict=True):
        row[len(row) - length :] = values[start : start + length]
    return rows


def _rows(columns: Mapping[str, np.ndarray], i: int, group: int | None, step: str | None, stem: str) -> Sequence[Row]:
    real = columns["sequences"][i][mask_of(columns["attention_mask"][i], "attention_mask")]
    window = mask_of(columns["response_mask"][i], "response_mask")
    lists = {name: columns[name][i] for name in (*_COLUMNS, "loss_mask") if name in columns}
    same_length({"response_mask": len(window), **{name: len(v) for name, v in lists.items()}})
    length = int(window.sum())
    if length > len(real):
        raise BadRecordError(
            "response_mask: too long",
            f"response_mask counts {length} tokens, attention_mask {len(real)}",
            "the dump is damaged.",
        )
    prompt = real[: len(real) - length]
    row: dict[str, Any] = {
        "sequence_id": f"{stem}/{i}",
        "prompt_id": prompt_name(prompt) if group is None else f"{stem}/prompt{group}",
        "prompt_ids": prompt,
        "prompt_length": len(prompt),
        "step": None if step is None else int(step),
        "token_ids": array(real[len(real) - length :], "sequences"),
    }
    for name, column in _COLUMNS.items():
        if name in lists:
            row[column] = array(lists[name][window], name)
    if "loss_mask" in lists:
        row["mask"] = mask_of(lists["loss_mask"][window], "loss_mask")
        row["turns"] = turns_of(row["mask"])
    return [row]


FORMAT = Format(
    name="skyrl",
    title="SkyRL training input: a pickle of a TrainingInputBatch",
    file="SkyRL to 0.4, `global_step_{N}_training_input.pkl`",
    ask="`trainer.dump_data_batch=true`",
    known="step, prompt group, advantage",
    both_sides=True,
    endings=(".pkl", ".pickle"),
    kind="pickle",
    recognises=lambda head: b"TrainingInputBatch" in head.start,
    items=_items,
    info=lambda path: RunInfo(trainer="skyrl"),
    parts=whole,
    lead=itself,
    option="generator.sampling_params.logprobs=1",
)
