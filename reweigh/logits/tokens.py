"""Log-probs and entropies of tokens from logits or hidden states, a block of the vocabulary at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from reweigh.layout import operator

Place = tuple[int | slice, ...]

LEAST = -1e30  # stands for a logit of -inf where 0 times it must be 0; no model's logit is near it
CHUNK = 2**24  # logits that are there at once: 64 MB in float32, 335 tokens of a vocabulary of 50k
KEPT_TILE = 2**21  # at most so many numbers in a piece where probabilities were kept: they lie there in whole already
KEPT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # in which probabilities may be kept
LEAST_TILE = 256  # columns in a piece of the matrix; narrower ones leave a matrix product too little to do


class TokenScores(NamedTuple):
    """Log-prob of each sampled token, and entropy of what it was drawn from.

    Attributes:
        log_p: log-prob of each token, nats.
        entropy: entropy of the distribution that the token was drawn from, nats.
    """

    log_p: Float[Tensor, "*tok"]
    entropy: Float[Tensor, "*tok"]


def log_probs(
    logits: Float[Tensor, "*tok V"],
    tokens: Int[Tensor, "*tok"],
    *,
    temperature: float = 1.0,
    overwrite: bool = False,
) -> TokenScores:
    """`log_p = z_y - logsumexp(z)` and `H = -sum_v p_v log p_v`, of `z = logits / temperature`.

    Reads the logits a few rows at a time, so that what is made from them stays in the processor's cache. Both outputs
    are differentiable, once. The backward pass makes the gradient of the logits, and nothing else of their size.

    Args:
        logits: of any float type; a slice such as `logits[:, :-1]` is not copied.
        tokens: ids. One outside the vocabulary, such as a label of -100, gets NaN: leave it off the mask.
        temperature: of the sampler, over 0.
        overwrite: the backward pass writes the gradient over the logits. The peak is then one array of logits instead
            of two; autograd raises if anything else needs them afterwards.

    Returns:
        float32 or better.

    Raises:
        ValueError: if temperature is not over 0, or the shapes do not match.

    Example:
        >>> import torch
        >>> from reweigh.logits import log_probs
        >>> log_p, entropy = log_probs(torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> print([round(x, 4) for x in (log_p / torch.tensor(4.0).log()).tolist() + entropy.tolist()])
        [-1.0, -1.0, 1.3863, 1.3863]

    Also called: `logprobs_from_logits` in verl, `selective_log_softmax` in TRL.
    """
    _check_scores("log_probs", logits.shape[:-1], tokens, temperature)
    out = _LogProbs.apply(logits, tokens, temperature, overwrite)
    return TokenScores(*out)  # type: ignore[misc]


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
    keep_in: torch.dtype | None = None,
    chunk: int = CHUNK,
) -> TokenScores:
    """`log_probs(hidden @ weight.T + bias, tokens)` that holds at most `chunk` logits at a time.

    The backward pass computes the logits again (a third more work in the matrix products: four of them instead of
    three), or takes the probabilities that the forward pass kept (`keep_in`). It makes the gradients of `hidden`,
    `weight` and `bias` without an array of all logits. Any loss of `reweigh` takes its `log_p`; so the loss is fused
    with the output layer by composition. Both outputs are
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
        keep_in: dtype in which all probabilities, tokens x vocabulary, are kept for the backward pass, which then
            multiplies three times in place of four: faster, for one array. In bfloat16 that array is half of
            float32's, and gradients err by up to 1/500 of each probability but the sampled token's, which is exact.
            None keeps nothing; nor is anything kept where no gradient is wanted.
        chunk: how many logits are there at once.

    Returns:
        float32 or better.

    Raises:
        ValueError: if temperature or softcap is not over 0, chunk is below 1, keep_in is no float type, or the shapes
            do not match.

    Example:
        >>> import torch
        >>> from reweigh.logits import linear_log_probs
        >>> hidden, weight = torch.zeros(2, 3, requires_grad=True), torch.eye(4, 3)
        >>> log_p, entropy = linear_log_probs(hidden, weight, torch.tensor([0, 1]))
        >>> log_p.sum().backward()
        >>> print(hidden.grad.tolist())
        [[0.75, -0.25, -0.25], [-0.25, 0.75, -0.25]]

    Also called: `FusedLinearForPPO` in verl, fused linear (scaled) cross entropy in Liger, `linear_cross_entropy` in
    torch. Source: Wijmans et al. (2024), Cut your losses in large-vocabulary language models.
    """
    _check_scores("linear_log_probs", hidden.shape[:-1], tokens, temperature)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"linear_log_probs: softcap must be > 0, got {softcap}\nhint: leave it out for no cap")
    if not chunk >= 1:
        raise ValueError(f"linear_log_probs: chunk must be >= 1 logit, got {chunk}\nhint: the default is {CHUNK}")
    if keep_in is not None and keep_in not in KEPT:
        raise ValueError(
            f"linear_log_probs: keep_in must be one of {', '.join(map(str, KEPT))} or None, got {keep_in}\n"
            "hint: torch.bfloat16 halves what is kept"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"linear_log_probs: weight must be [vocabulary, {hidden.shape[-1]}], got {tuple(weight.shape)}\n"
            "hint: `model.lm_head.weight` is that way round"
        )
    hidden, weight = autocasted(hidden, weight, multiply_in)
    differentiated = any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    with torch.autocast(hidden.device.type, enabled=False):
        log_p, entropy, *_ = _forward(
            hidden.flatten(0, -2) if hidden.dim() > 1 else hidden[None],
            weight,
            bias,
            tokens.flatten(),
            temperature,
            softcap,
            multiply_in,
            keep_in if differentiated and torch.is_grad_enabled() else None,
            chunk,
        )
    return TokenScores(log_p.view(tokens.shape), entropy.view(tokens.shape))


def _check_scores(name: str, lead: torch.Size, tokens: Tensor, temperature: float) -> None:
    """Raise where tokens do not belong to the rows, or the temperature is no temperature."""
    if not temperature > 0:
        raise ValueError(f"{name}: temperature must be > 0, got {temperature}\nhint: for argmax no log-prob exists")
    if tokens.shape != lead:
        raise ValueError(
            f"{name}: tokens must have one id a row {tuple(lead)}, got {tuple(tokens.shape)}\n"
            "hint: the logits at position t are of token t + 1: pass logits[:, :-1] and ids[:, 1:]"
        )


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
    """Sum products along the last axis; the products are left in the scratch."""
    return torch.mul(a, b, out=scratch).sum(-1)


def score(z: Tensor, tokens: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of the token, entropy, and logsumexp of each row of logits in float32 or better.

    A token that is not in the vocabulary has a log-prob of NaN. Where there is a place for them, the probabilities are
    left there.
    """
    top = z.amax(-1, keepdim=True)
    z = z - top  # 0 is the largest now: a likely token's log-prob keeps the digits that its logit lacks
    inside = (tokens >= 0) & (tokens < z.shape[-1])
    chosen = z.gather(-1, tokens.clamp(0, z.shape[-1] - 1)[:, None])[:, 0]
    e = z.exp()
    total = e.sum(-1)
    log_total = total.log()
    entropy = log_total - dot(e, z.clamp_(min=LEAST)) / total
    if kept is not None:
        kept.copy_(e.div_(total[:, None]))
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


def slope_of_kept(
    kept: Tensor,
    log_p: Tensor,
    lse: Tensor,
    entropy: Tensor,
    tokens: Tensor,
    first: int,
    by_log_p: Tensor,
    by_entropy: Tensor | None,
    reach: float | None,
    out: Tensor,
) -> None:
    """Write the gradient that `slope` has, from probabilities in place of logits; those stay as they are.

    Args:
        kept: p, rows or their columns from `first` on, of any float type.
        log_p: of y. Its p is from here: 1 - p of a token that is all but sure has no digits left in `kept`.
        lse: logsumexp of whole rows.
        entropy: H, nats.
        tokens: y.
        first: column of kept's first number.
        by_log_p: g.
        by_entropy: h, None if nothing was made of the entropy.
        reach: softcap over temperature; None without a softcap.
        out: the gradient.
    """
    p = kept.to(lse.dtype)
    if by_entropy is None:
        torch.mul(p, -by_log_p[:, None], out=out)
    else:
        level = by_log_p + by_entropy * entropy
        torch.log(p, out=out).clamp_(min=LEAST).mul_(-by_entropy[:, None]).sub_(level[:, None]).mul_(p)
    here = tokens - first
    inside = ((here >= 0) & (here < p.shape[-1]))[:, None]
    at = here.clamp(0, p.shape[-1] - 1)[:, None]
    y = log_p[:, None]
    sampled = -by_log_p[:, None] * y.expm1()
    if by_entropy is not None:
        sampled -= by_entropy[:, None] * y.exp() * (y + entropy[:, None])
    out.scatter_(-1, at, torch.where(inside, sampled, out.gather(-1, at)))
    if reach is not None:  # the capped logit over its bound is tanh, whose slope is 1 - tanh^2
        out *= 1 - p.log().add_(lse[:, None]).div_(reach).clamp_(-1, 1).square_()


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, overwrite: bool) -> tuple[Tensor, Tensor]:
        z, dtype = merged(logits), torch.promote_types(logits.dtype, torch.float32)
        ids = tokens.reshape(z.shape[:-1])
        parts = [
            score(heated(z[at].to(dtype), temperature), ids[at])
            for at in places(z.shape[:-1], block_rows(z.shape[-1], z.device))
        ]
        log_p, entropy, lse = (
            (torch.cat(part) if part else z.new_zeros(0, dtype=dtype)).view(tokens.shape)
            for part in (list(zip(*parts, strict=True)) or [(), (), ()])
        )
        ctx.save_for_backward(logits, tokens, lse, entropy)
        ctx.temperature, ctx.overwrite = temperature, overwrite
        ctx.set_materialize_grads(False)
        return log_p, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # once_differentiable's own type
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        logits, tokens, lse, entropy = ctx.saved_tensors
        by_log_p, by_entropy = grads
        if by_log_p is None and by_entropy is None:
            return None, None, None, None
        by_log_p = torch.zeros_like(lse) if by_log_p is None else by_log_p
        z = merged(logits)
        lead = z.shape[:-1]
        ids, lse, entropy, g = (x.reshape(lead) for x in (tokens, lse, entropy, by_log_p / ctx.temperature))
        h = None if by_entropy is None else (by_entropy / ctx.temperature).reshape(lead)
        blocks = places(lead, block_rows(z.shape[-1], z.device))
        grad = z if ctx.overwrite else torch.empty_like(z)
        for at in blocks:
            x = z[at].to(lse.dtype) / ctx.temperature
            grad[at] = slope(x, lse[at], entropy[at], ids[at], 0, g[at], None if h is None else h[at])
        return grad.view(logits.shape), None, None, None


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
    keep_in: torch.dtype | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-prob, entropy and logsumexp of each token, and all probabilities if they are to be kept."""
    logits = LinearLogits(hidden, weight, bias, softcap, multiply_in)
    num, width = hidden.shape[0], weight.shape[0]
    out = hidden.new_empty((3, num), dtype=torch.promote_types(hidden.dtype, torch.float32))
    kept = hidden.new_empty((0 if keep_in is None else num, width), dtype=keep_in or out.dtype)
    for (outer,) in places((num,), max(1, chunk // width)):
        z, ids, into, whole = logits.at((outer,)), tokens[outer], out[:, outer], kept[outer]
        for (rows,) in places((z.shape[0],), block_rows(width, z.device)):
            place = None if keep_in is None else whole[rows]
            into[0, rows], into[1, rows], into[2, rows] = score(heated(z[rows], temperature), ids[rows], place)
    return out[0].clone(), out[1].clone(), out[2].clone(), kept  # outputs of an operator may not share memory


def gradients_in_tiles(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    log_p: Tensor | None,
    lse: Tensor,
    entropy: Tensor,
    kept: Tensor | None,
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
    tile = max(LEAST_TILE, (chunk if kept is None else min(chunk, KEPT_TILE)) // max(1, num))
    reach = None if softcap is None else softcap / temperature
    h = hidden if multiply_in is None else hidden.to(multiply_in)
    g = by_log_p / temperature
    gh = None if by_entropy is None else by_entropy / temperature
    grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
    grad_weight = torch.empty_like(weight)
    grad_bias = weight.new_zeros(0) if bias is None else torch.empty_like(bias)
    for first in range(0, width, tile):
        cols = slice(first, min(first + tile, width))
        w = weight[cols].to(h.dtype)
        if kept is None:
            z = LinearLogits(h, w, None if bias is None else bias[cols]).at((slice(None),))
        else:
            z = lse.new_empty(num, w.shape[0])
        for (rows,) in places((num,), block_rows(z.shape[1], z.device)):
            x, part = z[rows], None if gh is None else gh[rows]
            if kept is not None and log_p is not None:
                place = lse[rows], entropy[rows], tokens[rows], first
                slope_of_kept(kept[rows, cols], log_p[rows], *place, g[rows], part, reach, x)
                continue
            bend = None
            if softcap is not None:
                bend = x.div_(softcap).tanh_().square().neg_().add_(1)
                x.mul_(softcap)
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


def _score_shapes(hidden: Tensor, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new, keep_in = hidden.new_empty(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32)), args[-2]
    kept = hidden.new_empty((0 if keep_in is None else len(new), weight.shape[0]), dtype=keep_in or new.dtype)
    return new, torch.empty_like(new), torch.empty_like(new), kept


def _gradient_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    no_bias = weight.new_empty(0)
    return torch.empty_like(hidden), torch.empty_like(weight), no_bias if bias is None else torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, tokens, temperature, softcap, multiply_in, keep_in, chunk = inputs
    ctx.rest = temperature, softcap, multiply_in, chunk
    log_p, entropy, lse, kept = output
    probabilities = (None, None) if keep_in is None else (log_p, kept)
    ctx.save_for_backward(hidden, weight, bias, tokens, lse, entropy, *probabilities)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, tokens, lse, entropy, log_p, kept = ctx.saved_tensors
    by_log_p, by_entropy, *_ = grads
    nothing = (None,) * 9
    if by_log_p is None and by_entropy is None:
        return nothing
    by_log_p = torch.zeros_like(lse) if by_log_p is None else by_log_p
    sides = hidden, weight, bias, tokens
    out = _backward(*sides, log_p, lse, entropy, kept, by_log_p, by_entropy, *ctx.rest)
    wanted = [x if need else None for x, need in zip(out, ctx.needs_input_grad, strict=False)]
    return (*wanted, *nothing[3:])


_HOW = "float temperature, float? softcap, ScalarType? multiply_in"
_backward = operator(
    "linear_log_probs_backward",
    gradients_in_tiles,
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor? log_p, Tensor lse, Tensor entropy, "
    f"Tensor? kept, Tensor by_log_p, Tensor? by_entropy, {_HOW}, int chunk) -> (Tensor, Tensor, Tensor)",
    _gradient_shapes,
)
_forward = operator(
    "linear_log_probs",
    scores_in_chunks,
    f"(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, {_HOW}, ScalarType? keep_in, int chunk)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _score_shapes,
    (_differentiate, _keep),
)
