"""Differences of log-probs, and which of them are finite."""

import math

import torch
from torch import Tensor

from reweigh.operator import operator
from reweigh.tiles import CHUNK_SLOTS, in_a_graph, may_look


def tame(x: Tensor) -> Tensor:
    """Finite: 0 in place of what is not. The argument's memory may be used."""
    if may_look(x) and math.isfinite(float(x.sum())):
        return x
    return x.nan_to_num_(0.0, 0.0, 0.0)


def dtype_of(log_pi: Tensor, log_mu: Tensor) -> torch.dtype:
    """What a log ratio is computed in: float32, or float64 if a log-prob is."""
    return torch.promote_types(torch.promote_types(log_pi.dtype, log_mu.dtype), torch.float32)


def difference(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """`log pi - log mu`, detached, after precision is raised."""
    dtype = dtype_of(log_pi, log_mu)
    return log_pi.detach().to(dtype) - log_mu.detach().to(dtype)


def live_of(log_pi: Tensor, log_mu: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens that count, and those that would if their log-probs were finite: None if there are none."""
    given = torch.ones_like(log_pi, dtype=torch.bool) if mask is None else mask.bool()
    if in_a_graph(log_pi):
        return _finite_op(log_pi.detach(), log_mu.detach(), given)
    if may_look(log_pi) and _all_finite(log_pi, log_mu):
        return given, None
    diff = difference(log_pi, log_mu)
    live = given & (diff.abs() < torch.inf)  # False for NaN too; a difference of two finite log-probs is finite
    return live, given ^ live


def _finite_alone(log_pi: Tensor, log_mu: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    live, dropped = live_of(log_pi, log_mu, mask)
    return (mask.clone(), torch.zeros_like(mask)) if dropped is None else (live, dropped)


def _finite_shapes(log_pi: Tensor, log_mu: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mask), torch.empty_like(mask)


# A compiled graph on a CPU calls it as one operator: there the compiler takes bools one at a time.
_finite_op = operator(
    "finite",
    _finite_alone,
    "(Tensor log_pi, Tensor log_mu, Tensor mask) -> (Tensor, Tensor)",
    _finite_shapes,
)


def _all_finite(log_pi: Tensor, log_mu: Tensor) -> bool:
    """Whether every difference is finite, masked ones too; a sum that overflows says no, which costs time only."""
    step = max(1, CHUNK_SLOTS // max(1, log_pi[:1].numel()))
    pairs = zip(log_pi.split(step), log_mu.split(step), strict=True)
    return all(math.isfinite(float(difference(a, b).sum())) for a, b in pairs)
