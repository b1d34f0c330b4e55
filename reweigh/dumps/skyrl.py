"""SkyRL: a pickled TrainingInputBatch a step, read by an unpickler that knows plain data and this one class."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps.form import (
    BadRecordError,
    Format,
    Item,
    Row,
    array,
    itself,
    kept_ids,
    mask_of,
    prompt_name,
    same_length,
    turns_of,
    whole,
)
from reweigh.dumps.tensors import (
    DAMAGED,
    TEXT,
    WITH_STATE,
    Made,
    array_of_numbers,
    load_pickle,
    plain_dtype,
    torch_value,
)
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo, UnreadableFileError
from reweigh.records.table import short

_STEP = re.compile(r"global_step_(\d+)")
_COLUMNS = {"rollout_logprobs": "log_mu", "action_log_probs": "log_pi", "advantages": "advantage"}
_NEEDED = ("sequences", "attention_mask", "response_mask")
_SUPPORT = "rollout_sample_support"  # ids that vLLM kept, as many columns as its top-k, -1 where there is none


_STUBS = {
    "TrainingInputBatch": "a dictionary with a state",
    "_rebuild_tensor_batch": WITH_STATE,
    "TensorList": "images",  # until 0.3; later ones write lists of tensors in words of their own, as they do the others
    "TensorFormat": TEXT,  # since 0.4
}


def _items(part: FilePart) -> Iterator[Item]:
    path = part.path
    batch = load_pickle(path, "skyrl", _STUBS)
    state: Any = batch.state if isinstance(batch, Made) else None
    raw = state.get("batch_dict") if isinstance(state, Mapping) else None
    if not isinstance(raw, Mapping):
        raise UnreadableFileError(
            f"{path}: must be a TrainingInputBatch with batch_dict\nhint: another version wrote it."
        )
    for name in _NEEDED:
        if raw.get(name) is None:
            raise UnreadableFileError(
                f"{path}: the batch has no {name}, only {', '.join(map(str, raw))}\nhint: another version wrote it."
            )
    wanted = (*_NEEDED, "loss_mask", *_COLUMNS)
    columns = {name: _tensor(raw[name], name, path) for name in wanted if raw.get(name) is not None}
    metadata: Mapping[str, Any] = state.get("metadata") or {}
    if raw.get(_SUPPORT) is not None:
        columns[_SUPPORT] = _tensor(raw[_SUPPORT], _SUPPORT, path)
    step = _STEP.search(path.name)
    rows = len(columns["sequences"]) - int(metadata.get("pad_size") or 0)
    boundaries: Sequence[tuple[int, int]] = metadata.get("policy_prompt_boundaries") or ()
    if sum(max(0, min(stop, rows) - max(start, 0)) for start, stop in boundaries) > rows:
        raise UnreadableFileError(f"{path}: policy_prompt_boundaries overlap\nhint: the file is damaged.")
    groups = {i: k for k, (start, stop) in enumerate(boundaries) for i in range(max(start, 0), min(stop, rows))}
    for i in range(rows):
        yield Item(partial(_rows, columns, i, groups.get(i), step[1] if step else None, path.stem), i)


def _tensor(value: Mapping[str, Any], name: str, path: Path) -> "np.ndarray | _Ragged":
    """A column as it is written: bytes, an array, a torch file, or responses end to end with where each ends."""
    try:
        form = value.get("format")
        if form == "packed_tensor":
            return _Ragged.of(_tensor(value["values"], name, path), _tensor(value["cu_seqlens"], name, path))
        if form == "torch":
            return array_of_numbers(torch_value(value["data"]))
        if form == "numpy_view":
            return array_of_numbers(value["data"])
        if form not in (None, "numpy"):
            raise ValueError(f"its format is {form!r}, which this version of reweigh does not know")
        return np.frombuffer(value["data"], plain_dtype(value["dtype"])).reshape(value["shape"])
    except DAMAGED as e:
        raise UnreadableFileError(
            f"{path}: {name} cannot be read as a tensor: {e}\nhint: the file is damaged."
        ) from None


@dataclass(frozen=True, eq=False)
class _Ragged:
    """Responses end to end, as rows whose last tokens are under each other, as the columns beside them have it.

    Attributes:
        values: of all responses.
        ends: where each begins, and the last one ends.
        width: tokens of a row: of the longest response.
    """

    values: np.ndarray
    ends: np.ndarray
    width: int

    @classmethod
    def of(cls, values: Any, ends: Any) -> "_Ragged":
        """Refuse ends that are not inside the values."""
        if np.ndim(ends) != 1 or not len(ends) or ends.dtype.kind not in "iu" or np.ndim(values) < 1:
            raise ValueError("cu_seqlens must be a list of integers")
        ends = ends.astype(np.int64)
        if ends[0] != 0 or ends[-1] > len(values) or (np.diff(ends) < 0).any():
            raise ValueError(f"cu_seqlens must rise from 0 to {len(values)}, which values has")
        return cls(values, ends, int(np.diff(ends).max(initial=0)))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """Take a row."""
        response = self.values[self.ends[i] : self.ends[i + 1]]
        row = np.zeros((self.width, *self.values.shape[1:]), self.values.dtype)
        row[self.width - len(response) :] = response
        return row


def _rows(
    columns: Mapping[str, "np.ndarray | _Ragged"], i: int, group: int | None, step: str | None, stem: str
) -> Sequence[Row]:
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
    if _SUPPORT in columns:
        row |= _kept(columns[_SUPPORT], i, window)
    return [row]


def _kept(column: "np.ndarray | _Ragged", i: int, window: np.ndarray) -> dict[str, Any]:
    """What was kept at each token of the response; a place of nothing but padding is one of which that is not known."""
    length = int(window.sum())
    if isinstance(column, _Ragged):
        places = column.values[column.ends[i] : column.ends[i + 1]]
    else:
        places = column[i][window] if column[i].ndim == 2 and len(column[i]) == len(window) else column[i]
    if places.ndim != 2 or places.dtype.kind not in "iu":
        raise BadRecordError(
            f"{_SUPPORT}: wrong type",
            f"{_SUPPORT} must be ids of each token, got {short(places)}",
            "the dump is damaged.",
        )
    return kept_ids([ids[ids >= 0] for ids in places], _SUPPORT, length)


FORMAT = Format(
    name="skyrl",
    title="SkyRL training input: a pickle of a TrainingInputBatch",
    file="SkyRL to 0.4, `global_step_{N}_training_input.pkl`",
    ask="`trainer.dump_data_batch=true`",
    known="step, prompt group, advantage, what the sampler kept (`rollout_sample_support`)",
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
