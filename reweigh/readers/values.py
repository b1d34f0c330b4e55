"""Small conversions that several readers share: arrays of anything, the response's stretch, prompts as ids, turns."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from reweigh.readers.form import BadRecordError

TOKEN_COLUMNS = ("token_ids", "log_pi", "mask", "advantage", "versions", "turns", "entropy_pi", "entropy_mu")


def array(value: Any, name: str) -> np.ndarray:
    """A flat list, array or tensor of numbers; None among floats becomes NaN."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        found = np.asarray(value)
        if found.dtype.kind == "O":
            found = found.astype(np.float64)
    except (TypeError, ValueError):
        raise _not_numbers(name, value) from None
    if found.ndim != 1 or (found.size and found.dtype.kind not in "fiub"):
        raise _not_numbers(name, value)
    return found


def _not_numbers(name: str, value: Any) -> BadRecordError:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return BadRecordError(
        f"{name}: wrong type", f"{name} must be a flat list of numbers, got {text}", "the dump is damaged."
    )


def mask_of(value: Any, name: str) -> np.ndarray:
    """A mask in whatever numbers; what is not 0 counts."""
    return array(value, name) != 0


def get(record: Mapping[str, Any], name: str, where: str = "the record") -> Any:
    """A field that every record has."""
    if name not in record:
        raise BadRecordError(
            f"{name}: missing",
            f"{where} has no {name}, only {', '.join(map(str, record)) or 'nothing'}",
            "the dump is damaged, or of another version.",
        )
    return record[name]


def same_length(lengths: Mapping[str, int]) -> None:
    """Refuse lists that should be as long as each other and are not."""
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise BadRecordError(
            "lists: lengths differ",
            f"lists of one record must have one length: {listed}",
            "the writer was stopped, or the fields are of different samples; leave the record out (--skip-bad).",
        )


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row that has no sampler's side, or whose lists do not line up."""
    log_mu = row.get("log_mu")
    if log_mu is None:
        raise BadRecordError(
            "log_mu: not in the dump",
            "the record has no log-probs of the policy that sampled",
            "they cannot be computed afterwards: turn on the option that records them in the framework and run again.",
        )
    lengths = {name: len(row[name]) for name in TOKEN_COLUMNS if row.get(name) is not None and np.ndim(row[name]) == 1}
    same_length({"log_mu": len(log_mu), **lengths})


def prompt_name(ids: Any) -> str:
    """A name for a prompt that the dump does not name: equal token ids, equal names."""
    flat = array(ids, "prompt token ids").astype("<i8")
    return "prompt-" + hashlib.blake2b(flat.tobytes(), digest_size=8).hexdigest()


def turns_of(mask: np.ndarray) -> np.ndarray:
    """Turns, counted from 0: one begins where sampling begins again after a gap in the mask."""
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    return np.maximum(np.cumsum(starts) - 1, 0)


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (a reward may be a dictionary)."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool | int | float) and np.isfinite(value):
        return float(value)
    return None


def version(value: Any) -> int | None:
    """A weight version that is written as a number, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
        return int(value)
    return None


def one_version(values: Sequence[Any], length: int) -> np.ndarray | None:
    """The version of each token if one version sampled all; which token is of which is not told otherwise."""
    found = {version(v) for v in values}
    only = found.pop() if len(found) == 1 else None
    return None if only is None else np.full(length, only, np.int32)
