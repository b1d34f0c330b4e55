"""Per-token log-probs and entropies from logits, in blocks, so that no second array of the logits' size is made."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from reweigh.vocabulary.rows import block_rows, heated, merged, places, score, slope


class TokenScores(NamedTuple):
    """What a policy says about the sampled tokens.

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
        >>> from reweigh.vocabulary import log_probs
        >>> log_p, entropy = log_probs(torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> print([round(x, 4) for x in (log_p / torch.tensor(4.0).log()).tolist() + entropy.tolist()])
        [-1.0, -1.0, 1.3863, 1.3863]

    Also called: `logprobs_from_logits` in verl, `selective_log_softmax` in TRL.
    """
    check_scores("log_probs", logits.shape[:-1], tokens, temperature)
    out = _LogProbs.apply(logits, tokens, temperature, overwrite)
    return TokenScores(*out)  # type: ignore[misc]


def check_scores(name: str, lead: torch.Size, tokens: Tensor, temperature: float) -> None:
    """Raise where tokens do not belong to the rows, or the temperature is no temperature."""
    if not temperature > 0:
        raise ValueError(f"{name}: temperature must be > 0, got {temperature}\nhint: for argmax no log-prob exists")
    if tokens.shape != lead:
        raise ValueError(
            f"{name}: tokens must have one id a row {tuple(lead)}, got {tuple(tokens.shape)}\n"
            "hint: the logits at position t are of token t + 1: pass logits[:, :-1] and ids[:, 1:]"
        )


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
