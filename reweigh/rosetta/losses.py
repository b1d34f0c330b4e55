"""A framework's loss out of ours: its value and its gradient, on the recorded log-probs."""

import torch
from torch import Tensor

from reweigh.estimators import Weights
from reweigh.layout import Padded
from reweigh.levels import GEOMETRIC
from reweigh.losses import cispo, gspo, policy_gradient, ppo_clip
from reweigh.rosetta.plan import Outcome, Plan
from reweigh.rosetta.profile import Loss


def loss_of(
    loss: Loss, plan: Plan, outcome: Outcome, mask: Tensor, advantage: Tensor, live: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor]:
    """Value of the loss and its gradient for each token.

    Args:
        loss: which, and its constants.
        plan: read for the quirks that act on a loss: `clamp_live`, `infinite_live`.
        outcome: the weights.
        mask: `[S, T]`, tokens of the mask as given.
        advantage: `[S]`.
        live: log-probs with gradient, nats.
        centre: log-probs that the loss's ratio is divided by, nats.
    """
    live = live.detach().clone().requires_grad_()
    keep = outcome.keep
    if "infinite_live" not in plan.flags:
        keep = keep & torch.isfinite(live) & torch.isfinite(centre)
    layout = Padded(mask)
    # In a `ratio` loss the weight is the ratio with gradient itself; what is left of the weights is whom they keep.
    log_w = torch.where(keep & torch.tensor(loss.kind != "ratio"), outcome.per_token.log(), 0)
    weights = Weights(log_w, keep, torch.zeros_like(keep), mask, "token", layout)
    per_token = loss.scale * advantage[:, None].expand(mask.shape)
    divisor = _divisor(loss, outcome.masked if loss.survivors else mask)
    scaled = per_token / divisor
    top, below = live, centre
    if loss.clamp is not None and "clamp_live" in plan.flags:
        gap = live - centre
        if loss.kind in ("ppo_clip", "ratio"):
            top, below = gap.clamp(-loss.clamp, loss.clamp), torch.zeros_like(centre)
        elif loss.kind == "cispo":
            below = live.detach() - gap.detach().clamp(-loss.clamp, loss.clamp)
    value = _value(loss, top, below, scaled, weights)
    if loss.penalty is not None:
        counted = mask if "infinite_live" in plan.flags else mask & torch.isfinite(centre)
        gap = torch.where(counted, live - centre, 0)
        value = value + loss.penalty * (gap.square() / divisor).sum()
    (grad,) = torch.autograd.grad(value + 0 * torch.where(torch.isfinite(live), live, 0).sum(), live)
    if "infinity_times_zero" in plan.flags:
        lost = mask & ~keep & torch.isinf((live - centre).exp())
        value = torch.where(lost.any(), torch.nan, value)
        grad = torch.where(lost, torch.nan, grad)
    if "infinity_times_padding" in plan.flags and loss.kind == "gspo":
        padded = ~mask.all(-1, keepdim=True) & torch.isinf(torch.where(mask, live - centre, 0).sum(-1, keepdim=True))
        value = torch.where(padded.any(), torch.nan, value)
    return value.detach(), grad.detach()


def _value(loss: Loss, live: Tensor, centre: Tensor, advantage: Tensor, weights: Weights) -> Tensor:
    if loss.kind == "policy_gradient":
        return policy_gradient(live, advantage, weights, 1.0)
    if loss.kind == "ratio":
        return ppo_clip(live, centre, advantage, weights, 1.0, low=1.0, high=torch.inf)
    if loss.kind == "cispo":
        return cispo(live, centre, advantage, weights, 1.0, low=loss.low, high=loss.high)
    if loss.kind == "gspo" and loss.dual is not None:  # its value is the sequence's ratio, its slope each token's own
        gap = torch.where(weights.layout.mask, (live - centre).detach(), 0)
        mean = weights.layout.spread(GEOMETRIC.fold(gap, weights.layout))
        top, bounds = mean + live - live.detach(), {"low": loss.low, "high": loss.high, "dual": loss.dual}
        return ppo_clip(top, torch.zeros_like(mean), advantage, weights, 1.0, **bounds)
    if loss.kind == "gspo":
        return gspo(live, centre, advantage, weights, 1.0, low=loss.low, high=loss.high)
    return ppo_clip(live, centre, advantage, weights, 1.0, low=loss.low, high=loss.high, dual=loss.dual)


def _divisor(loss: Loss, mask: Tensor) -> Tensor:
    """By what each token's term is divided, broadcastable to the tokens."""
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    sequences = (mask.sum(-1) > 0).sum().clamp(min=1)
    if loss.over == "tokens":
        return mask.sum().clamp(min=1)
    if loss.over == "sums":
        return sequences
    if loss.over == "means":
        return sequences * lengths
    if loss.over == "row_means":
        return mask.shape[0] * lengths
    return torch.ones(())
