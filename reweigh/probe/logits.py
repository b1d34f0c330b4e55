"""From logits to the log-probs of the distribution that tokens are really drawn from: temperature, then top-p."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def log_softmax(logits: Float[Tensor, "N V"], temperature: float) -> Float[Tensor, "N V"]:
    """`log softmax(logits / temperature)`, in float32 whatever comes in."""
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def nucleus(log_p: Float[Tensor, "N V"], top_p: float) -> Bool[Tensor, "N V"]:
    """The fewest most probable tokens whose mass reaches `top_p`; always one at least.

    Also called: top-p (Holtzman et al. 2020). A token is in if the mass of those before it is under `top_p`, which is
    the rule of vLLM, SGLang and transformers.
    """
    ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
    p = ordered.exp()
    inside = p.cumsum(-1) - p < top_p
    inside[:, 0] = True
    return torch.zeros_like(inside).scatter(-1, order, inside)


def sampling_log_probs(logits: Float[Tensor, "N V"], temperature: float, top_p: float) -> Float[Tensor, "N V"]:
    """Log-probs after temperature and top-p, as drawn from: -inf outside the nucleus, which is scaled up to mass 1."""
    log_p = log_softmax(logits, temperature)
    if top_p >= 1:
        return log_p
    return torch.log_softmax(log_p.masked_fill(~nucleus(log_p, top_p), -torch.inf), dim=-1)


def score_log_probs(
    logits: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], temperature: float, top_p: float
) -> tuple[Float[Tensor, "N V"], Bool[Tensor, " N"]]:
    """Log-probs that another policy gives on the support that the sampler drew from.

    The sampler's nucleus is not on record, but each sampled token was in it. So the nucleus is the scorer's own, with
    the sampled token put in where it is missing: the log-prob of a sampled token is always finite, and two equal
    policies score equally.

    Returns:
        `[N, V]` log-probs, and `[N]`: True where the sampled token lay outside the scorer's own nucleus.
    """
    log_p = log_softmax(logits, temperature)
    if top_p >= 1:
        return log_p, torch.zeros_like(token_ids, dtype=torch.bool)
    inside = nucleus(log_p, top_p)
    outside = ~inside.gather(-1, token_ids[:, None]).squeeze(-1)
    inside = inside.scatter(-1, token_ids[:, None], value=True)
    return torch.log_softmax(log_p.masked_fill(~inside, -torch.inf), dim=-1), outside


def entropy(log_p: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """`-sum p log p`, nats."""
    return torch.special.entr(log_p.exp()).sum(-1)


def draw(log_p: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """One token a row by inverting the cumulative distribution, so that a uniform number decides a token alone.

    In float64: a float32 running sum over a large vocabulary would lose its tail.
    """
    mass = log_p.double().exp().cumsum(-1)
    return torch.searchsorted(mass, (uniform.to(mass) * mass[:, -1])[:, None], right=True).squeeze(-1)
