"""From scores to the distribution that is drawn from: penalty, temperature, top-k, top-p, min-p, in vLLM's order."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reweigh.doctor.inject.specs import EngineSpec
from reweigh.probe.scorer import log_softmax, nucleus


def processed(logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"] | None, spec: EngineSpec) -> Float[Tensor, "B V"]:
    """Log-probs as drawn from: -inf for what was cut off. `seen` marks the tokens of prompt and response so far."""
    logits = logits.float()
    if seen is not None and spec.repetition_penalty != 1.0:
        penalty = spec.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    log_p = log_softmax(logits, spec.temperature)
    if spec.top_k:
        least = log_p.topk(min(spec.top_k, log_p.shape[-1]), dim=-1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf)
        log_p = torch.log_softmax(log_p, dim=-1)
    if spec.top_p < 1:
        log_p = torch.log_softmax(log_p.masked_fill(~nucleus(log_p, spec.top_p), -torch.inf), dim=-1)
    if spec.min_p > 0:
        least = log_p.amax(-1, keepdim=True) + torch.tensor(spec.min_p).log()
        log_p = torch.log_softmax(log_p.masked_fill(log_p < least, -torch.inf), dim=-1)
    return log_p


def logged_log_probs(
    logits: Float[Tensor, "B V"], log_p: Float[Tensor, "B V"], token: Int[Tensor, " B"], spec: EngineSpec
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 2"]]:
    """What an engine logs of tokens: their log-probs, and those of the two most probable ones.

    What a tool put in may lie outside what is drawn from: its log-prob is that before processing.
    """
    raw = log_softmax(logits, 1.0)
    logged = raw if spec.logs == "raw" else log_p
    value = logged.gather(-1, token[:, None]).squeeze(-1)
    value = torch.where(value.isinf(), raw.gather(-1, token[:, None]).squeeze(-1), value)
    return value, logged.topk(2, dim=-1).values
