"""Log-probs of some tokens a place, from hidden states: a support without the other logits, or the likeliest."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reweigh.layout import operator
from reweigh.logits.tokens import CHUNK, TokenScores, autocasted, linear_log_probs

GATHERED = 2**17  # numbers of gathered rows that are there at once, at most: 0.5 MB in float32


def linear_support_log_probs(
    hidden: Float[Tensor, "*tok H"],
    weight: Float[Tensor, "V H"],
    tokens: Int[Tensor, "*tok"],
    support: Int[Tensor, "*tok k"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    multiply_in: torch.dtype | None = None,
    chunk: int = CHUNK,
) -> TokenScores:
    """`log_p = z_y - log sum_{v in S} e^{z_v}`, of the sampled token among those that the sampler kept, and entropy.

    What an engine samples with top-p, top-k or min-p is renormalised over the tokens that are kept. With the same set S
    in the trainer the ratio is 1 where the weights are the same; over the whole vocabulary it is too small by the mass
    that pi has on S. The normaliser needs the logits of S alone, so nothing of the vocabulary's size is made.

    Args:
        hidden: the last hidden states, after the final norm.
        weight: the output matrix.
        tokens: ids of the sampled tokens; one that is not in its support has -inf.
        support: ids that were kept, -1 where there is none; a place without any has NaN: leave it off the mask.
        bias: added to the logits.
        temperature: of the sampler, over 0.
        softcap: `softcap tanh(z / softcap)` before the temperature, as Gemma's models have.
        multiply_in: dtype of the products; None is the inputs' own.
        chunk: how many numbers of gathered rows of the matrix are there at once.

    Returns:
        float32 or better; both differentiable, once.

    Raises:
        ValueError: if temperature or softcap is not over 0, or the shapes do not match.

    Example:
        >>> import torch
        >>> from reweigh.logits import linear_support_log_probs
        >>> hidden, weight = torch.zeros(1, 3), torch.eye(4, 3)
        >>> log_p, entropy = linear_support_log_probs(hidden, weight, torch.tensor([2]), torch.tensor([[2, 0, -1]]))
        >>> print(round(log_p.exp().item(), 4), round(entropy.exp().item(), 4))
        0.5 2.0

    Also called: sampling-mask replay in vLLM, `enable_sample_support_replay` in SkyRL.
    """
    z = _logits("linear_support_log_probs", hidden, weight, support, bias, temperature, softcap, multiply_in, chunk)
    if tokens.shape != support.shape[:-1]:
        raise ValueError(
            f"linear_support_log_probs: tokens must be {tuple(support.shape[:-1])}, got {tuple(tokens.shape)}"
        )
    log_p = torch.log_softmax(z, -1)
    here = (support == tokens[..., None]) & (support >= 0)
    chosen = torch.where(here, log_p, 0).sum(-1)
    alone = torch.where(here.any(-1), chosen, -torch.inf)
    none = (support < 0).all(-1)
    kept = torch.where(support >= 0, log_p, 0)
    entropy = -(torch.where(support >= 0, log_p.exp(), 0) * kept).sum(-1)
    return TokenScores(torch.where(none, torch.nan, alone), torch.where(none, torch.nan, entropy))


def linear_candidate_log_probs(
    hidden: Float[Tensor, "*tok H"],
    weight: Float[Tensor, "V H"],
    tokens: Int[Tensor, "*tok"],
    ids: Int[Tensor, "*tok k"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    multiply_in: torch.dtype | None = None,
    chunk: int = CHUNK,
) -> tuple[TokenScores, Float[Tensor, "*tok k"]]:
    """Log-probs of the sampled tokens and of k others a place, over the whole vocabulary: what `centred` weights need.

    `log p_v = z_v - z_y + log p_y`: the normaliser is that of the sampled token, whose logits are made in chunks, and
    each other token costs the product of one row. Give the k log-probs to `Candidates` (detached) and to the loss.

    Args:
        hidden: the last hidden states, after the final norm.
        weight: the output matrix.
        tokens: ids of the sampled tokens.
        ids: of the others, as the sampler named its likeliest; -1 where there is none.
        bias: added to the logits.
        temperature: of the sampler, over 0.
        softcap: `softcap tanh(z / softcap)` before the temperature, as Gemma's models have.
        multiply_in: dtype of the products; None is the inputs' own.
        chunk: how many logits, or numbers of gathered rows, are there at once.

    Returns:
        What `linear_log_probs` gives of the sampled tokens, and the log-probs of the others, -inf where there is none.
        float32 or better; differentiable, once.

    Raises:
        ValueError: if temperature or softcap is not over 0, chunk is below 1, or the shapes do not match.

    Example:
        >>> import torch
        >>> from reweigh.logits import linear_candidate_log_probs
        >>> tokens, ids = torch.tensor([2]), torch.tensor([[0, -1]])
        >>> one, others = linear_candidate_log_probs(torch.zeros(1, 3), torch.eye(4, 3), tokens, ids)
        >>> print(round(one.log_p.exp().item(), 4), others.exp().tolist())
        0.25 [[0.25, 0.0]]

    Also called: `_TopKLogProbsFromLogits` in verl.
    """
    one = linear_log_probs(
        hidden,
        weight,
        tokens,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        multiply_in=multiply_in,
        chunk=chunk,
    )
    every = torch.cat([tokens[..., None].to(ids.dtype), ids], -1)
    z = _logits("linear_candidate_log_probs", hidden, weight, every, bias, temperature, softcap, multiply_in, chunk)
    others = z[..., 1:] - z[..., :1] + one.log_p[..., None]
    return one, torch.where(ids >= 0, others, -torch.inf)


def _logits(
    name: str,
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    multiply_in: torch.dtype | None,
    chunk: int,
) -> Tensor:
    """Logits of some tokens a place over the temperature, -inf where there is none."""
    if not temperature > 0:
        raise ValueError(f"{name}: temperature must be > 0, got {temperature}\nhint: for argmax no log-prob exists")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name}: softcap must be > 0, got {softcap}\nhint: leave it out for no cap")
    if ids.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            f"{name}: ids must be {(*hidden.shape[:-1], 'k')}, got {tuple(ids.shape)}\n"
            "hint: one list a row of hidden states; pad with -1"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{name}: weight must be [vocabulary, {hidden.shape[-1]}], got {tuple(weight.shape)}\n"
            "hint: `model.lm_head.weight` is that way round"
        )
    hidden, weight = autocasted(hidden, weight, multiply_in)
    there = (ids >= 0) & (ids < weight.shape[0])
    safe = torch.where(there, ids, 0)
    flat = hidden.reshape(-1, hidden.shape[-1])
    with torch.autocast(hidden.device.type, enabled=False):
        z = _products(flat, weight, safe.reshape(-1, ids.shape[-1]), multiply_in, chunk).view(ids.shape)
    if bias is not None:
        z = z + bias[safe]
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return torch.where(there, z / temperature, -torch.inf)


def products_of_rows(
    hidden: Tensor, weight: Tensor, ids: Tensor, multiply_in: torch.dtype | None, chunk: int
) -> Tensor:
    """`z_nv = h_n . W_v` of some rows v for each n, the rows gathered a few at a time."""
    num, k = ids.shape
    out = hidden.new_empty((num, k), dtype=torch.promote_types(hidden.dtype, torch.float32))
    step = max(1, min(chunk, GATHERED) // max(1, k * hidden.shape[1]))
    for first in range(0, num, step):
        rows = slice(first, first + step)
        w, h = weight[ids[rows]], hidden[rows]
        if multiply_in is not None:
            w, h = w.to(multiply_in), h.to(multiply_in)
        out[rows] = torch.bmm(w, h[:, :, None])[:, :, 0]
    return out


def gradients_of_rows(
    hidden: Tensor, weight: Tensor, ids: Tensor, by_z: Tensor, multiply_in: torch.dtype | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Gradients by hidden states and by the matrix, which is 0 in the rows that nothing was made of."""
    num, k = ids.shape
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=dtype)
    step = max(1, min(chunk, GATHERED) // max(1, k * hidden.shape[1]))
    for first in range(0, num, step):
        rows = slice(first, first + step)
        w, h, g = weight[ids[rows]].to(dtype), hidden[rows].to(dtype), by_z[rows].to(dtype)
        grad_hidden[rows] = torch.bmm(g[:, None, :], w)[:, 0].to(hidden.dtype)
        grad_weight.index_add_(0, ids[rows].reshape(-1), (g[:, :, None] * h[:, None, :]).flatten(0, 1))
    return grad_hidden, grad_weight.to(weight.dtype)


def _shapes(hidden: Tensor, weight: Tensor, ids: Tensor, *args: Any) -> Tensor:
    return hidden.new_empty(ids.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))


def _gradient_shapes(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, ids, *ctx.rest = inputs
    ctx.save_for_backward(hidden, weight, ids)


def _differentiate(ctx: Any, by_z: Tensor) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight = _backward(*ctx.saved_tensors, by_z.contiguous(), *ctx.rest)
    return grad_hidden, grad_weight, None, None, None


_backward = operator(
    "products_of_rows_backward",
    gradients_of_rows,
    "(Tensor hidden, Tensor weight, Tensor ids, Tensor by_z, ScalarType? multiply_in, int chunk) -> (Tensor, Tensor)",
    _gradient_shapes,
)
_products = operator(
    "products_of_rows",
    products_of_rows,
    "(Tensor hidden, Tensor weight, Tensor ids, ScalarType? multiply_in, int chunk) -> Tensor",
    _shapes,
    (_differentiate, _keep),
)
