"""Parts of a batch, and sums of parts."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.batch import Batch
from reweigh.layout import Packed


class _Adds(Protocol):
    def __add__(self, other: Any, /) -> Any: ...


_K = TypeVar("_K")
_V = TypeVar("_V", bound=_Adds)


def take(batch: Batch, tokens: NDArray[np.bool_]) -> Batch:
    """The same sequences with only some of their tokens; what has none left is an empty sequence."""
    layout = batch.layout
    assert isinstance(layout, Packed)
    places = np.flatnonzero(tokens)
    ends = np.searchsorted(places, layout.offsets.numpy())
    return _gathered(batch, torch.from_numpy(places), torch.from_numpy(ends), batch.group)


def take_sequences(batch: Batch, chosen: NDArray[np.bool_]) -> Batch:
    """Only some of the sequences."""
    layout = batch.layout
    assert isinstance(layout, Packed)
    if chosen.all():
        return batch
    offsets = layout.offsets.numpy()
    sizes, starts = np.diff(offsets)[chosen], offsets[:-1][chosen]
    ends = np.concatenate([[0], sizes.cumsum()])
    places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes)
    group = None if batch.group is None else batch.group[torch.from_numpy(chosen)]
    return _gathered(batch, torch.from_numpy(places), torch.from_numpy(ends), group)


def _gathered(batch: Batch, places: Tensor, offsets: Tensor, group: Tensor | None) -> Batch:
    mask = batch.layout.mask if batch.dropped is None else batch.layout.mask | batch.dropped
    log_pi, log_mu, mask = (x.index_select(0, places) for x in (batch.log_pi, batch.log_mu, mask))
    return Batch.packed(log_pi, log_mu, offsets, mask, group=group)


def positions(batch: Batch) -> Tensor:
    """Index of each token in its response, from 0, whether in the mask or not."""
    layout = batch.layout
    assert isinstance(layout, Packed)
    return torch.arange(layout.mask.shape[0]) - layout.spread(layout.cu_seqlens[:-1])


def merge(a: Mapping[_K, _V], b: Mapping[_K, _V]) -> dict[_K, _V]:
    """Both, with what they share added up."""
    return {**a, **{key: a[key] + value if key in a else value for key, value in b.items()}}
