"""Parts of a batch, and sums of parts."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.layout import Packed


class _Adds(Protocol):
    def __add__(self, other: Any, /) -> Any: ...


_K = TypeVar("_K")
_V = TypeVar("_V", bound=_Adds)


def take(batch: Batch, tokens: Tensor) -> Batch:
    """The same sequences with only some of their tokens; what has none left is an empty sequence."""
    layout = batch.layout
    lengths = layout.sum_zeroed(tokens.double()).long()
    mask = layout.mask if batch.dropped is None else layout.mask | batch.dropped
    return Batch.packed(
        batch.log_pi[tokens],
        batch.log_mu[tokens],
        torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        mask[tokens],
        group=batch.group,
    )


def positions(batch: Batch) -> Tensor:
    """Index of each token in its response, from 0, whether in the mask or not."""
    layout = batch.layout
    assert isinstance(layout, Packed)
    return torch.arange(layout.mask.shape[0]) - layout.spread(layout.cu_seqlens[:-1])


def merge(a: Mapping[_K, _V], b: Mapping[_K, _V]) -> dict[_K, _V]:
    """Both, with what they share added up."""
    return {**a, **{key: a[key] + value if key in a else value for key, value in b.items()}}
