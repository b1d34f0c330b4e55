"""Per-token log-probs and entropies from hidden states and the output matrix: the logits are never all there."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reweigh.operator import operator
from reweigh.vocabulary.rows import Place, block_rows, heated, places, score, slope
from reweigh.vocabulary.scores import TokenScores, check_scores

CHUNK = 2**24  # logits that are there at once: 64 MB in float32, 335 tokens of a vocabulary of 50k
LEAST_TILE = 256  # columns in a piece of the matrix; narrower ones leave a matrix product too little to do


@dataclass(frozen=True, eq=False)
class LinearLogits:
    """`z = softcap tanh((hidden weight^T + bias) / softcap)`, or without the softcap: logits that are made in blocks.

    Attributes:
        hidden: the last hidden states, after the final norm.
        weight: the output matrix, one row a token of the vocabulary.
        bias: one number a token of the vocabulary.
        softcap: bound of a logit's size, as Gemma's models have.
        multiply_in: dtype of the matrix product; None is the inputs' own, which is what the model does.
    """

    hidden: Float[Tensor, "*tok H"]
    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    softcap: float | None = None
    multiply_in: torch.dtype | None = None

    def at(self, place: Place) -> Tensor:
        """Logits of the rows at a place, float32 or better."""
        h = self.hidden[place]
        dtype = torch.promote_types(h.dtype, torch.float32)
        if self.multiply_in is None:
            z = (h @ self.weight.T).to(dtype)
        else:  # the matrix is cast piece by piece: a copy of all of it may be larger than the logits
            h, pieces = h.to(self.multiply_in), self.weight.split(4096)
            z = torch.cat([(h @ w.to(self.multiply_in).T).to(dtype) for w in pieces], -1)
        if self.bias is not None:
            z += self.bias
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)


def linear_log_probs(
    hidden: Float[Tensor, "*tok H"],
    weight: Float[Tensor, "V H"],
    tokens: Int[Tensor, "*tok"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    multiply_in: torch.dtype | None = None,
    chunk: int = CHUNK,
) -> TokenScores:
    """`log_probs(hidden @ weight.T + bias, tokens)` that holds at most `chunk` logits at a time.

    The backward pass computes the logits again (a third more work in the matrix products: four of them instead of
    three) and makes the gradients of `hidden`, `weight` and `bias` without an array of all logits. Any loss of
    `reweigh` takes its `log_p`; so the loss is fused with the output layer by composition. Both outputs are
    differentiable, once.

    Args:
        hidden: the last hidden states, after the final norm.
        weight: the output matrix; a whole one (gather a sharded one first).
        tokens: ids. One outside the vocabulary, such as a label of -100, gets NaN: leave it off the mask.
        bias: added to the logits.
        temperature: of the sampler, over 0.
        softcap: `softcap tanh(z / softcap)` before the temperature, as Gemma's models have.
        multiply_in: dtype of the matrix products. None is the inputs' own: with bfloat16 the logits are rounded to 8
            bits as a model's forward pass rounds them. `torch.float32` is the float32 head.
        chunk: how many logits are there at once.

    Returns:
        float32 or better.

    Raises:
        ValueError: if temperature or softcap is not over 0, chunk is below 1, or the shapes do not match.

    Example:
        >>> import torch
        >>> from reweigh.vocabulary import linear_log_probs
        >>> hidden, weight = torch.zeros(2, 3, requires_grad=True), torch.eye(4, 3)
        >>> log_p, entropy = linear_log_probs(hidden, weight, torch.tensor([0, 1]))
        >>> log_p.sum().backward()
        >>> print(hidden.grad.tolist())
        [[0.75, -0.25, -0.25], [-0.25, 0.75, -0.25]]

    Also called: `FusedLinearForPPO` in verl, fused linear (scaled) cross entropy in Liger, `linear_cross_entropy` in
    torch. Source: Wijmans et al. (2024), Cut your losses in large-vocabulary language models.
    """
    check_scores("linear_log_probs", hidden.shape[:-1], tokens, temperature)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"linear_log_probs: softcap must be > 0, got {softcap}\nhint: leave it out for no cap")
    if not chunk >= 1:
        raise ValueError(f"linear_log_probs: chunk must be >= 1 logit, got {chunk}\nhint: the default is {CHUNK}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"linear_log_probs: weight must be [vocabulary, {hidden.shape[-1]}], got {tuple(weight.shape)}\n"
            "hint: `model.lm_head.weight` is that way round"
        )
    hidden, weight = autocasted(hidden, weight, multiply_in)
    with torch.autocast(hidden.device.type, enabled=False):
        log_p, entropy, _ = _forward(
            hidden.flatten(0, -2) if hidden.dim() > 1 else hidden[None],
            weight,
            bias,
            tokens.flatten(),
            temperature,
            softcap,
            multiply_in,
            chunk,
        )
    return TokenScores(log_p.view(tokens.shape), entropy.view(tokens.shape))


def autocasted(hidden: Tensor, weight: Tensor, multiply_in: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Under autocast, both as a linear layer would multiply them; what is inside an operator must not depend on it."""
    device = hidden.device.type
    if multiply_in is not None or not torch.is_autocast_enabled(device):
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


def scores_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float,
    softcap: float | None,
    multiply_in: torch.dtype | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob, entropy and logsumexp of each token."""
    logits = LinearLogits(hidden, weight, bias, softcap, multiply_in)
    num, width = hidden.shape[0], weight.shape[0]
    out = hidden.new_empty((3, num), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for (outer,) in places((num,), max(1, chunk // width)):
        z, ids, into = logits.at((outer,)), tokens[outer], out[:, outer]
        for (rows,) in places((z.shape[0],), block_rows(width, z.device)):
            into[0, rows], into[1, rows], into[2, rows] = score(heated(z[rows], temperature), ids[rows])
    return out[0].clone(), out[1].clone(), out[2].clone()  # outputs of an operator may not share memory


def gradients_in_tiles(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    entropy: Tensor,
    by_log_p: Tensor,
    by_entropy: Tensor | None,
    temperature: float,
    softcap: float | None,
    multiply_in: torch.dtype | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by hidden states, matrix and bias."""
    # Piece by piece of the matrix: each piece's gradient is whole after one product, in any precision, and only the
    # hidden states' gradient is summed up, in float32.
    num, width = hidden.shape[0], weight.shape[0]
    tile = max(LEAST_TILE, chunk // max(1, num))
    h = hidden if multiply_in is None else hidden.to(multiply_in)
    g = by_log_p / temperature
    gh = None if by_entropy is None else by_entropy / temperature
    grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
    grad_weight = torch.empty_like(weight)
    grad_bias = weight.new_zeros(0) if bias is None else torch.empty_like(bias)
    for first in range(0, width, tile):
        cols = slice(first, min(first + tile, width))
        w = weight[cols].to(h.dtype)
        z = LinearLogits(h, w, None if bias is None else bias[cols]).at((slice(None),))
        for (rows,) in places((num,), block_rows(z.shape[1], z.device)):
            x = z[rows]
            bend = None
            if softcap is not None:
                bend = x.div_(softcap).tanh_().square().neg_().add_(1)
                x.mul_(softcap)
            part = None if gh is None else gh[rows]
            slope(x.div_(temperature), lse[rows], entropy[rows], tokens[rows], first, g[rows], part)
            if bend is not None:
                x.mul_(bend)
        if bias is not None:
            grad_bias[cols] = z.sum(0)
        z = z.to(h.dtype)
        if h.dtype == grad_hidden.dtype:
            grad_hidden.addmm_(z, w)
        else:
            grad_hidden += z @ w
        if h.dtype == grad_weight.dtype:
            torch.mm(z.T, h, out=grad_weight[cols])
        else:
            grad_weight[cols] = z.T @ h
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _score_shapes(hidden: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    new = hidden.new_empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32))
    return new, torch.empty_like(new), torch.empty_like(new)


def _gradient_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    no_bias = weight.new_empty(0)
    return torch.empty_like(hidden), torch.empty_like(weight), no_bias if bias is None else torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, tokens, *ctx.rest = inputs
    _, entropy, lse = output
    ctx.save_for_backward(hidden, weight, bias, tokens, lse, entropy)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, tokens, lse, entropy = ctx.saved_tensors
    by_log_p, by_entropy, _ = grads
    nothing = (None,) * 8
    if by_log_p is None and by_entropy is None:
        return nothing
    by_log_p = torch.zeros_like(lse) if by_log_p is None else by_log_p
    out = _backward(hidden, weight, bias, tokens, lse, entropy, by_log_p, by_entropy, *ctx.rest)
    wanted = [x if need else None for x, need in zip(out, ctx.needs_input_grad, strict=False)]
    return (*wanted, *nothing[3:])


_HOW = "float temperature, float? softcap, ScalarType? multiply_in, int chunk"
_backward = operator(
    "linear_log_probs_backward",
    gradients_in_tiles,
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor lse, Tensor entropy, Tensor by_log_p, "
    f"Tensor? by_entropy, {_HOW}) -> (Tensor, Tensor, Tensor)",
    _gradient_shapes,
)
_forward = operator(
    "linear_log_probs",
    scores_in_chunks,
    f"(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, {_HOW}) -> (Tensor, Tensor, Tensor)",
    _score_shapes,
    (_differentiate, _keep),
)
