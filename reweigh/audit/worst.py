"""The sequences whose log ratio is farthest from 0, with their tokens: few of them, and of each a bounded part."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.runs import Shared
from reweigh.records import RecordBatch

MAX_WORST = 10  # sequences
MAX_TOKENS = 400  # of each: a window around the token whose log ratio is farthest from 0
MAX_TEXT = 4000  # characters
MAX_NAME = 120  # characters
WORST_COLUMNS = ("token_ids", "text")


@dataclass(frozen=True, eq=False)
class WorstSequence:
    """One sequence.

    Attributes:
        name: its sequence_id.
        log_ratio: its sum of log ratios, nats.
        tokens: how many of its tokens count.
        length: how many it has.
        first: place of the first token that is kept.
        log_ratios: `[T]` float32, of the tokens kept, nats; 0 where the mask is off.
        log_mu: `[T]` float32.
        mask: `[T]`.
        token_ids: `[T]`; None if the records have none.
        text: of the response, its beginning; None if the records have none.
    """

    name: str
    log_ratio: float
    tokens: int
    length: int
    first: int
    log_ratios: Tensor
    log_mu: Tensor
    mask: Tensor
    token_ids: Tensor | None = None
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Worst:
    """The worst sequences, worst first; `a + b` is the worst of both, whatever the order.

    Attributes:
        found: at most `MAX_WORST`.
    """

    found: list[WorstSequence] = field(default_factory=list[WorstSequence])

    @classmethod
    def of(cls, shared: Shared, by_sequence: NDArray[np.float64], part: RecordBatch) -> "Worst":
        """Of one batch.

        Args:
            shared: the batch.
            by_sequence: `[S]`: sum of log ratios, nats.
            part: the columns beside it.
        """
        size = np.where(shared.runs.lengths.numpy() > 0, np.abs(by_sequence), -1.0)
        if len(size) > MAX_WORST:
            least = np.partition(size, -MAX_WORST)[-MAX_WORST]
            chosen = np.flatnonzero((size >= least) & (size >= 0))
        else:
            chosen = np.flatnonzero(size >= 0)
        if len(chosen) > MAX_WORST:  # ties, as in a run without a gap: only their names tell which are kept
            names = _column(part, "sequence_id", chosen)
            order = sorted(range(len(chosen)), key=lambda i: (-size[chosen[i]], names[i]))
            chosen = chosen[order[:MAX_WORST]]
        return cls(_worst([_sequence(shared, float(by_sequence[s]), part, int(s)) for s in chosen]))

    def __add__(self, other: "Worst") -> "Worst":
        """The worst of both."""
        return Worst(_worst([*self.found, *other.found]))


def _worst(found: list[WorstSequence]) -> list[WorstSequence]:
    return sorted(found, key=lambda x: (-abs(x.log_ratio), x.name))[:MAX_WORST]


def _column(part: RecordBatch, name: str, rows: NDArray[np.int64]) -> list[Any]:
    if name not in part.table.schema.names:
        return [None] * len(rows)
    column = part.table.column(name)
    return [column[int(row)].as_py() for row in rows]


def _sequence(shared: Shared, log_ratio: float, part: RecordBatch, row: int) -> WorstSequence:
    runs, batch = shared.runs, shared.batch
    start, length = int(runs.starts[row]), int(runs.sizes[row])
    sizes = np.abs(batch.log_ratio[start : start + length].numpy())
    first = min(max(0, int(sizes.argmax()) - MAX_TOKENS // 2), max(0, length - MAX_TOKENS))
    kept = slice(start + first, start + min(length, first + MAX_TOKENS))
    one = np.array([row])
    (name,), (text,), (ids,) = (_column(part, x, one) for x in ("sequence_id", "text", "token_ids"))
    if ids is not None:
        ids = torch.tensor([-1 if i is None else i for i in ids[first : first + MAX_TOKENS]], dtype=torch.int64)
    return WorstSequence(
        str(name)[:MAX_NAME],
        log_ratio,
        int(runs.lengths[row]),
        length,
        first,
        batch.log_ratio[kept].float().clone(),
        batch.log_mu[kept].float().clone(),
        runs.mask[kept].clone(),
        ids,
        None if text is None else text[:MAX_TEXT],
    )
