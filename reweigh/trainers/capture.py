"""Records written while a trainer trains: one file a step and rank, whole or not there, for `reweigh audit FOLDER`."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.guard import shown
from reweigh.layout import Packed
from reweigh.records import RecordWriter, RunInfo, Violation
from reweigh.records.schema import BY_NAME
from reweigh.records.table import unknown_name

_LOG = logging.getLogger("reweigh")


@dataclass(frozen=True)
class Capture:
    """Writes records of training batches to a folder, every so many steps.

    A file appears under its name only when it is complete, so that a run that is killed loses at most the step it was
    writing. `reweigh audit FOLDER` and `reweigh records describe FOLDER` read all of them together.

    A folder that cannot be written to is an error here, before the run begins. Later on nothing of it stops a run: what
    cannot be written, say on a full disk, is left out and counted in `done`, and the first reason is logged.

    Args:
        folder: made if it is not there.
        info: what to say of the run; the more it says, the more an audit can tell.
        every: write each so many steps.

    Raises:
        ValueError: unless every >= 1, or if the folder cannot be written to.
    """

    folder: str | PathLike[str]
    info: RunInfo = field(default_factory=RunInfo)
    every: int = 1
    done: "Done" = field(default_factory=lambda: Done(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse steps that never come, and a folder that nothing can be written to."""
        if self.every < 1:
            raise ValueError(f"Capture: every must be >= 1, got {self.every}")
        if self.done.steps:  # of a copy that says more of the run
            return
        folder = Path(self.folder)
        probe = folder / f".reweigh-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise ValueError(
                f"Capture: the folder {shown(str(folder), one_line=True)} cannot be written to: {e.strerror or e}\n"
                "hint: name a folder with room that this process may write to."
            ) from None

    def wants(self, step: int) -> bool:
        """Tell whether this step is to be written."""
        return step % self.every == 0

    def write(self, batch: Batch, step: int, rank: int = 0, **columns: Sequence[Any]) -> Path | None:
        """Write one batch as `step_00000012_rank_0000.parquet`.

        Args:
            batch: its tokens; a row for each sequence with a token. Log-probs are written as they are, NaN, infinite
                or over 0 too, and a token that the batch dropped for one stays in the mask: that a sampler gave no
                log-prob is what `reweigh doctor` has to see.
            step: of the trainer.
            rank: of this process.
            columns: more columns of the record, one value a sequence: `prompt_id`, `reward`, `token_ids`, ... Values a
                token are tensors of the layout's own length, padding and all; they are cut to the response.

        Returns:
            The file; None if it could not be written, which is counted in `done` and logged once.

        Raises:
            ValueError: a column that records do not have.
        """
        for column in columns:  # of whoever calls it, at the first step
            if column not in BY_NAME:
                raise ValueError(f"Capture.write: {unknown_name(column)}\nhint: the columns are {', '.join(BY_NAME)}.")
        try:
            path = self._written(batch, step, rank, columns)
        except Exception as e:  # of any kind: a record is not worth a run
            self.done.failed(step, e)
            return None
        self.done.steps += 1
        return path

    def metrics(self, prefix: str) -> dict[str, float]:
        """Count what was written and what could not be, as metrics."""
        return {f"{prefix}capture/written": float(self.done.steps), f"{prefix}capture/failed": float(self.done.lost)}

    def _written(self, batch: Batch, step: int, rank: int, columns: Mapping[str, Sequence[Any]]) -> Path:
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{step:08d}_rank_{rank:04d}"
        # of this process alone: another that writes the same step, by mistake, has a part of its own
        part, path = folder / f".{name}.{os.getpid()}.parquet", folder / f"{name}.parquet"
        rows: list[dict[str, Any]] = []
        for i, row in enumerate(_rows(batch, {k: v for k, v in columns.items() if _per_token(v)})):
            if row["log_mu"]:
                others = {k: v[i] for k, v in columns.items() if k not in row}
                rows.append({"sequence_id": f"{name}_{i}", "step": step} | row | others)
        try:
            with RecordWriter(part, self.info) as writer:
                writer.write(rows, report=_as_it_is)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path


@dataclass
class Done:
    """What a capture has come to.

    Attributes:
        steps: that were written.
        lost: steps that could not be.
        reason: why the first of them could not be; empty if none was lost.
    """

    steps: int = 0
    lost: int = 0
    reason: str = ""

    def failed(self, step: int, error: Exception) -> None:
        """Count a step that could not be written, and log the first."""
        self.lost += 1
        if not self.reason:
            self.reason = shown(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
            _LOG.warning(
                "Capture: step %d was not written, and the run goes on: %s. Later ones are counted in "
                "reweigh/capture/failed and not logged.",
                step,
                self.reason,
            )


def prompt_id(token_ids: Sequence[int] | Tensor) -> str:
    """Name a prompt, the same in every step and on every rank: a hash of its tokens."""
    ids = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
    return hashlib.blake2b(repr(ids).encode(), digest_size=8).hexdigest()


def _as_it_is(_: Violation) -> None:
    """Let a value that breaks a rule stand: who reads the record counts it."""


def _per_token(value: Sequence[Any]) -> bool:
    return len(value) > 0 and isinstance(value[0], Tensor) and value[0].dim() == 1


def _rows(batch: Batch, per_token: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    layout = batch.layout
    mask = layout.mask if batch.dropped is None else layout.mask | batch.dropped
    own: dict[str, Tensor] = {"log_mu": batch.log_mu.detach(), "log_pi": batch.log_pi.detach(), "mask": mask}
    if batch.advantage is not None:
        own["advantage"] = batch.advantage.detach().expand(mask.shape)
    cut: list[dict[str, Tensor]]
    if isinstance(layout, Packed):
        ends = layout.cu_seqlens.tolist()
        cut = [{name: x[a:b] for name, x in own.items()} for a, b in pairwise(ends)]
    else:
        cut = [{name: x[i] for name, x in own.items()} for i in range(layout.num_seqs)]
    return [_row(x | {name: v[i] for name, v in per_token.items()}) for i, x in enumerate(cut)]


def _row(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Cut a row from the first token that counts to the last: the rest is padding, and nothing to look at."""
    live = tensors["mask"].nonzero().flatten()
    where = slice(int(live[0]), int(live[-1]) + 1) if len(live) else slice(0, 0)
    cut = {name: x[where].cpu() for name, x in tensors.items()}
    off = ~cut["mask"]
    for name in ("log_mu", "log_pi"):  # off the mask there may be anything, and a record holds log-probs
        cut[name] = torch.where(off, 0.0, cut[name].float())
    return {name: x.tolist() for name, x in cut.items()}
