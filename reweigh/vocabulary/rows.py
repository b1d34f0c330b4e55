"""How one token's row of logits becomes a log-prob, an entropy and their gradient, a block of rows at a time."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

Place = tuple[int | slice, ...]

LEAST = -1e30  # stands for a logit of -inf where 0 times it must be 0; no model's logit is near it


def in_cache(device: torch.device) -> int:
    """How many numbers a block may have, so that its temporaries stay in a core's cache or keep an accelerator busy."""
    return 2**16 if device.type == "cpu" else 2**22


def places(lead: Sequence[int], rows: int | None) -> list[Place]:
    """Cut `[*lead, V]` into blocks of at most that many rows, in order, by indices that never copy; None is no cut."""
    *outer, last = lead
    if rows is None:
        return [(*i, slice(None)) for i in product(*(range(n) for n in outer))]
    cuts = [slice(a, min(a + rows, last)) for a in range(0, last, max(1, rows))]
    return [(*i, cut) for i in product(*(range(n) for n in outer)) for cut in cuts]


def merged(x: Tensor) -> Tensor:
    """`[*lead, V]` as `[N, V]` where that is a view; a slice such as `logits[:, :-1]` stays as it is, for no copy."""
    if x.dim() < 2:
        return x.reshape(1, -1)
    rows = x.stride()[:-1]
    apart = any(rows[i] != rows[i + 1] * x.shape[i + 1] for i in range(x.dim() - 2))
    return x if apart and not torch.compiler.is_compiling() else x.flatten(0, -2)


def block_rows(width: int, device: torch.device) -> int | None:
    """Rows of that width in a block; None for all of them under a compiler, which fuses by itself."""
    return None if torch.compiler.is_compiling() else max(1, in_cache(device) // max(1, width))


def heated(z: Tensor, temperature: float) -> Tensor:
    """`z / temperature`, without a pass where that is z."""
    return z if temperature == 1 else z / temperature


def dot(a: Tensor, b: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Sum of products along the last axis; the products are left in the scratch."""
    return torch.mul(a, b, out=scratch).sum(-1)


def score(z: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of the token, entropy, and logsumexp of each row of logits in float32 or better.

    A token that is not in the vocabulary has a log-prob of NaN.
    """
    top = z.amax(-1, keepdim=True)
    z = z - top  # 0 is the largest now: a likely token's log-prob keeps the digits that its logit lacks
    inside = (tokens >= 0) & (tokens < z.shape[-1])
    chosen = z.gather(-1, tokens.clamp(0, z.shape[-1] - 1)[:, None])[:, 0]
    e = z.exp()
    total = e.sum(-1)
    log_total = total.log()
    entropy = log_total - dot(e, z.clamp_(min=LEAST)) / total
    return torch.where(inside, chosen - log_total, torch.nan), entropy, top[:, 0] + log_total


def slope(
    z: Tensor, lse: Tensor, entropy: Tensor, tokens: Tensor, first: int, by_log_p: Tensor, by_entropy: Tensor | None
) -> Tensor:
    """Gradient by the logits: `g (1{v = y} - p_v) - h p_v (log p_v + H)`; `z` is scratch and becomes the result.

    Args:
        z: rows of logits, or of their columns from `first` on.
        lse: logsumexp of whole rows.
        entropy: H, nats.
        tokens: y.
        first: column of z's first number.
        by_log_p: g.
        by_entropy: h, None if nothing was made of the entropy.
    """
    z = z.sub_(lse[:, None])
    if by_entropy is None:
        z = z.exp_().mul_(-by_log_p[:, None])
    else:
        p = z.exp()
        level = by_log_p + by_entropy * entropy
        z = z.clamp_(min=LEAST).mul_(-by_entropy[:, None]).sub_(level[:, None]).mul_(p)
    here = tokens - first
    inside = (here >= 0) & (here < z.shape[-1])
    return z.scatter_add_(
        -1, here.clamp(0, z.shape[-1] - 1)[:, None], torch.where(inside, by_log_p, 0)[:, None].to(z.dtype)
    )
