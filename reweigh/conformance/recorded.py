"""A conformance file: small batches, and what frameworks' own functions made of them under each of their options."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from reweigh.rosetta.plan import Field, Reading, Tensors

FORMAT = "conformance-1"
_SPECIAL = {None: math.nan, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_FIELDS: tuple[Field, ...] = ("log_pi", "log_mu", "log_live")
_NEEDED = ("id", "framework", "option", "batch", "outputs")


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """One batch: three log-probs `[S, T]` in nats, the mask, and an advantage for each sequence."""

    fields: Mapping[Field, Tensor]
    mask: Tensor
    advantage: Tensor

    def tensors(self, reading: Reading, mask: Tensor | None = None) -> Tensors:
        """Pick the two policies that a reading compares."""
        return Tensors(
            self.fields[reading.pi],
            self.fields[reading.mu],
            self.mask if mask is None else mask,
            self.advantage,
            log_old=self.fields["log_pi"],
            log_pi_of_screens=None if reading.screen_pi is None else self.fields[reading.screen_pi],
        )


@dataclass(frozen=True)
class Case:
    """One option of one framework on one batch."""

    id: str
    framework: str
    version: str
    function: str
    kind: str
    option: Mapping[str, Any]
    batch: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Recording:
    """A file's batches by name, and its cases."""

    batches: Mapping[str, RecordedBatch]
    cases: tuple[Case, ...]


def matrix(rows: Any) -> Tensor:
    """Read a recorded `[S, T]`: null is NaN here, and so is "nan"."""
    return torch.tensor([[_number(v) for v in row] for row in rows], dtype=torch.float32)


def vector(row: Any) -> Tensor:
    """Read a recorded `[S]`."""
    return torch.tensor([_number(v) for v in row], dtype=torch.float32)


def scalar(value: Any) -> float:
    """Read a recorded number."""
    return _number(value)


def read_recording(path: str) -> Recording:
    """Read and check a conformance file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON, has another format, lacks something, or a case names a batch that is not there;
            the message says where.
    """
    try:
        data: Any = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not JSON: {e}\nhint: a conformance file is one JSON object") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected one JSON object, got {type(data).__name__}\nhint: is it the right file?")
    top = cast("dict[str, Any]", data)
    told = top.get("format", FORMAT)
    if told != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, got {told!r}\nhint: this version reads {FORMAT} only")
    for name in ("batches", "cases"):
        if not top.get(name):
            raise ValueError(f"{path}: has no {name}\nhint: a conformance file has batches and cases")
    batches = {name: _batch(path, name, b) for name, b in top["batches"].items()}
    return Recording(batches, tuple(_case(path, i, c, batches) for i, c in enumerate(top["cases"])))


def _number(v: Any) -> float:
    return _SPECIAL[v] if v is None or isinstance(v, str) else float(v)


def _batch(path: str, name: str, b: Any) -> RecordedBatch:
    where = f"{path}: batch {name!r}"
    try:
        fields: dict[Field, Tensor] = {f: matrix(b[f]) for f in _FIELDS}
        mask, advantage = matrix(b["mask"]) > 0, vector(b["advantage"])
    except KeyError as e:
        raise ValueError(
            f"{where}: {e} is missing\nhint: a batch has log_pi, log_mu, log_live, mask, advantage"
        ) from None
    except (TypeError, ValueError) as e:
        raise ValueError(f"{where}: not a table of numbers: {e}\nhint: rows of equal length, [S, T]") from None
    for f, x in fields.items():
        if x.shape != mask.shape:
            raise ValueError(
                f"{where}: {f} has shape {tuple(x.shape)}, mask has {tuple(mask.shape)}\nhint: both are [S, T]"
            )
    if advantage.shape != mask.shape[:1]:
        raise ValueError(f"{where}: {mask.shape[0]} sequences, {len(advantage)} advantages\nhint: one each")
    return RecordedBatch(fields, mask, advantage)


def _case(path: str, i: int, c: Any, batches: Mapping[str, RecordedBatch]) -> Case:
    where = f"{path}: case {i + 1}"
    missing = [k for k in _NEEDED if not isinstance(c, dict) or k not in c]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing\nhint: a case has {', '.join(_NEEDED)}")
    if c["batch"] not in batches:
        raise ValueError(f"{where} ({c['id']}): no batch {c['batch']!r}\nhint: there are {', '.join(batches)}")
    return Case(
        id=c["id"],
        framework=c["framework"],
        version=str(c.get("version_or_commit", "")),
        function=c.get("function", ""),
        kind=c.get("kind", ""),
        option=c["option"],
        batch=c["batch"],
        inputs=c.get("inputs", {}),
        outputs=c["outputs"],
    )
