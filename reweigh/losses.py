"""Losses that take weights and leave the denominator to the caller."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.batch import Batch
from reweigh.centring import tail_of
from reweigh.estimators import Weights, check_weights
from reweigh.layout import Layout
from reweigh.levels import GEOMETRIC

Denominator = Tensor | float


def policy_gradient(
    log_pi: Float[Tensor, "*tok"],
    advantage: Tensor,
    weights: Weights,
    denominator: Denominator,
    *,
    candidates: Tensor | None = None,
) -> Float[Tensor, ""]:
    """`-(1/D) sum_t w_t A_t log pi_t`: REINFORCE with detached weights.

    The gradient of each token is `-w_t A_t / D` times its score. Use it when rollouts are used once (or a few times)
    and the weights carry all of the correction. With weights that are `centred` the mean of `w s` under mu is taken
    from each score, at places whose token was dropped too.

    Args:
        log_pi: nats, with gradient; token-shaped.
        advantage: token-shaped, or one a sequence; not differentiated.
        weights: of the same batch.
        denominator: D: see `num_tokens`, `num_sequences`, `num_kept`. With several ranks or micro-batches, the global
            one.
        candidates: `[..., k]` nats, with gradient: log-probs of the batch's candidates, if the weights are centred.

    Returns:
        0-d; in float32 or better.

    Raises:
        ValueError: the weights are centred and candidates are not given, or the other way round.

    Example:
        >>> import torch
        >>> from reweigh import Batch, num_tokens, policy_gradient, seq_tis
        >>> log_pi = torch.full((2, 3), -1.0, requires_grad=True)
        >>> batch = Batch.padded(log_pi, torch.full((2, 3), -1.5), torch.ones(2, 3))
        >>> loss = policy_gradient(log_pi, torch.tensor([1.0, -1.0]), seq_tis(2.0)(batch), num_tokens(batch))
        >>> loss.backward()
        >>> print([round(g, 3) for g in log_pi.grad[:, 0].tolist()])
        [-0.333, 0.333]

    Source: Williams (1992); with truncated weights, Yao et al. (2025) and Liu and Li (2025).
    """
    check_weights("policy_gradient", weights)
    gain = _gain(weights, advantage) * _live(weights.keep_tokens, log_pi)
    return -(gain.sum() - _centring("policy_gradient", weights, advantage, candidates)) / denominator


def ppo_clip(
    log_pi: Float[Tensor, "*tok"],
    log_old: Float[Tensor, "*tok"],
    advantage: Tensor,
    weights: Weights,
    denominator: Denominator,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    candidates: Tensor | None = None,
    old_candidates: Tensor | None = None,
) -> Float[Tensor, ""]:
    """`-(1/D) sum_t w_t min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)` with `r = pi / pi_old`.

    Which policies meet is decided by what is passed. *Decoupled* (three policies): `log_old` is the trainer's own
    log-prob from before the update (the proximal policy), and the weights are of a batch of `log_old` and `log_mu`.
    *Two-policy*: `log_old` is `log_mu` itself and the weights are `naive()`'s, or a screen's.
    With `centred` weights, what is subtracted is the mean under mu of what the clipped term does to a score; its value
    is another, its gradient is that.

    Args:
        log_pi: current policy, nats, with gradient.
        log_old: the policy that the clip is centred on, nats; not differentiated.
        advantage: token-shaped, or one a sequence.
        weights: of the batch of the same tokens.
        denominator: D.
        low: clip below 1, a ratio difference.
        high: clip above 1, a ratio difference.
        dual: if given, over 1: for A < 0 the term is at most `dual |A|`, which bounds what a huge ratio can do.
        candidates: `[..., k]` nats, with gradient: log-probs of the batch's candidates, if the weights are centred.
        old_candidates: `[..., k]` nats: theirs under the policy that `log_old` is of; not differentiated.

    Raises:
        ValueError: if dual is not over 1, or a bound is negative; the weights are centred and candidates are not given,
            or the other way round.

    Also called: `vanilla` in verl, `dual_clip` in SkyRL, decoupled loss in AReaL.
    Source: Schulman et al. (2017), eq. 7; dual clip, Ye et al. (2020), eq. 5; decoupled, Hilton et al. (2021).
    """
    if dual is not None and not dual > 1:
        raise ValueError(f"ppo_clip: dual must be > 1, got {dual}")
    check_weights("ppo_clip", weights)
    _check_clip("ppo_clip", low, high)
    keep = weights.keep_tokens
    log_ratio = _live(keep, log_pi) - _live(keep, log_old.detach())

    def slope(log_r: Tensor, positive: Tensor) -> Tensor:
        """Give what multiplies the score: r where the clip leaves it, else 0."""
        least, most = _fall_bounds(low, dual)
        inside = torch.where(positive, log_r <= math.log1p(high), (log_r >= least) & (log_r <= most))
        return torch.where(inside, log_r.exp(), 0)

    centring = _centring("ppo_clip", weights, advantage, candidates, (old_candidates, slope))
    return _clipped(log_ratio, advantage, weights, denominator, low, high, dual) + centring / denominator


def cispo(
    log_pi: Float[Tensor, "*tok"],
    log_old: Float[Tensor, "*tok"],
    advantage: Tensor,
    weights: Weights,
    denominator: Denominator,
    *,
    low: float = 1.0,
    high: float = 4.0,
    candidates: Tensor | None = None,
    old_candidates: Tensor | None = None,
) -> Float[Tensor, ""]:
    """`-(1/D) sum_t w_t clip(r_t, 1 - low, 1 + high)_detached A_t log pi_t` with `r = pi / pi_old`.

    Every token keeps a gradient, which PPO's clip takes from some; only its size is bounded.

    Args:
        log_pi: current policy, nats, with gradient.
        log_old: nats; not differentiated.
        advantage: token-shaped, or one a sequence.
        weights: of the batch of the same tokens.
        denominator: D.
        low: clip below 1; 1 (the default) means no lower bound.
        high: clip above 1.
        candidates: `[..., k]` nats, with gradient: log-probs of the batch's candidates, if the weights are centred.
        old_candidates: `[..., k]` nats: theirs under the policy that `log_old` is of; not differentiated.

    Raises:
        ValueError: a bound is negative; the weights are centred and candidates are not given, or the other way round.

    Source: MiniMax (2025), MiniMax-M1, the CISPO objective.
    """
    check_weights("cispo", weights)
    _check_clip("cispo", low, high)
    keep = weights.keep_tokens
    live = _live(keep, log_pi)
    bounds = max(0.0, 1 - low), 1 + high
    ratio = torch.exp(live.detach() - _live(keep, log_old.detach())).clamp(*bounds)

    def slope(log_r: Tensor, positive: Tensor) -> Tensor:
        """Give what multiplies the score."""
        return log_r.exp().clamp(*bounds)

    centring = _centring("cispo", weights, advantage, candidates, (old_candidates, slope))
    return -((_gain(weights, advantage) * ratio * live).sum() - centring) / denominator


def gspo(
    log_pi: Float[Tensor, "*tok"],
    log_old: Float[Tensor, "*tok"],
    advantage: Tensor,
    weights: Weights,
    denominator: Denominator,
    *,
    low: float = 3e-4,
    high: float = 4e-4,
) -> Float[Tensor, ""]:
    """`ppo_clip` with the geometric ratio `s = exp(mean_t log pi/pi_old)` of the sequence on each of its tokens.

    The value is the sequence's ratio; the gradient reaches each token with the same weight s. For GSPO's own reduction
    (mean over tokens, then over sequences) fold `1 / length` into the advantage and give the number of sequences.

    Args:
        log_pi: current policy, nats, with gradient.
        log_old: nats; not differentiated.
        advantage: token-shaped, or one a sequence.
        weights: of the batch of the same tokens.
        denominator: D.
        low: clip below 1, of the geometric ratio.
        high: clip above 1, of the geometric ratio.

    Raises:
        ValueError: a bound is negative, or the weights are centred.

    Also called: `importance_sampling_level="sequence"` in TRL, `gspo` in verl, slime and SkyRL.
    Source: Zheng et al. (2025), Group sequence policy optimization.
    """
    check_weights("gspo", weights)
    if weights.centre is not None:
        raise ValueError(
            "gspo: its ratio is one of the whole sequence, so what a token does in the mean is not known, and centred "
            "weights cannot be used\nhint: policy_gradient, ppo_clip or cispo take them."
        )
    _check_clip("gspo", low, high)
    layout, keep = weights.layout, weights.keep_tokens
    live = _live(keep, log_pi)
    gap = _live(layout.mask, log_pi.detach()) - _live(layout.mask, log_old.detach())
    gap = torch.where(keep | gap.isfinite(), gap, 0)  # what is not kept is a part of the mean, if it is a number
    mean = torch.where(keep, layout.spread(GEOMETRIC.fold(gap, layout)), 0)
    log_ratio = mean + live - live.detach()  # the ratio's value is s, its gradient s times the token's score
    return _clipped(log_ratio, advantage, weights, denominator, low, high, None)


def num_tokens(batch: Batch) -> Tensor:
    """Tokens of the mask, whatever a rejection did: 0-d. The usual global token mean; at least 1."""
    return batch.layout.mask.sum().clamp(min=1)


def num_sequences(batch: Batch) -> Tensor:
    """Sequences with a token: 0-d, at least 1."""
    return (batch.layout.lengths > 0).sum().clamp(min=1)


def num_kept(weights: Weights) -> Tensor:
    """Tokens that were kept: 0-d, at least 1. With it a rejection shrinks the batch, and the survivors' step grows."""
    return weights.keep_tokens.sum().clamp(min=1)


def advantage_over_length(layout: Layout, advantage: Tensor) -> Tensor:
    """Divide the advantage by its sequence's length, token-shaped: with `num_sequences`, the mean of sequence means."""
    return _advantage(layout, advantage) / layout.spread(layout.lengths.clamp(min=1).to(advantage.dtype))


def _clipped(
    log_ratio: Tensor,
    advantage: Tensor,
    weights: Weights,
    denominator: Denominator,
    low: float,
    high: float,
    dual: float | None,
) -> Tensor:
    # min(r A, clip(r) A) bounds r from above where A > 0 and from below where A < 0. Bounded before the exp: the slope
    # of a clipped term is 0, and 0 times the slope of a ratio that no float holds would be NaN.
    rise = log_ratio.clamp(max=math.log1p(high))
    fall = log_ratio.clamp(*_fall_bounds(low, dual))
    gain = _gain(weights, advantage)
    return -(torch.exp(torch.where(gain < 0, fall, rise)) * gain).sum() / denominator


def _fall_bounds(low: float, dual: float | None) -> tuple[float, float]:
    return -math.inf if low >= 1 else math.log1p(-low), math.inf if dual is None else math.log(dual)


def _centring(
    where: str,
    weights: Weights,
    advantage: Tensor,
    candidates: Tensor | None,
    clipped: tuple[Tensor | None, Callable[[Tensor, Tensor], Tensor]] | None = None,
) -> Tensor | float:
    """`sum_t A_t sum_v c_v log pi_v` over all tokens, c detached: what a loss of centred weights takes away; 0 if none.

    `c_v = mu_v w_v g_v - (mu_tail w_tail g_tail / pi_tail) pi_v`, with g what the loss makes of a score. The second
    part stands for the tail: with `mu = (mu_tail / pi_tail) pi` there, its mean is a multiple of
    `sum_{v in tail} pi_v s_v`, which is `-sum_{v in head} pi_v s_v`.

    Args:
        where: the loss.
        weights: of the batch.
        advantage: token-shaped, or one a sequence.
        candidates: their log-probs now, nats.
        clipped: theirs under the policy that the loss is centred on, and g, of the log ratio of pi now to that policy
            and of whether the advantage is positive; if not given, g is 1.
    """
    centre = weights.centre
    if centre is None:
        if candidates is not None or (clipped is not None and clipped[0] is not None):
            raise ValueError(
                f"{where}: candidates are for centred weights, and these are not\nhint: centred(estimator)(batch)."
            )
        return 0.0
    shape = tuple(centre.there.shape)
    if candidates is None:
        raise ValueError(
            f"{where}: the weights are centred, so the log-probs of the candidates are needed, with their gradient\n"
            f"hint: {where}(..., candidates=log_pi_of_candidates), shaped {shape}."
        )
    if clipped is not None and clipped[0] is None:
        raise ValueError(
            f"{where}: the weights are centred, so what log_old's policy gave the candidates is needed\n"
            f"hint: {where}(..., old_candidates=log_old_of_candidates), shaped {shape}."
        )
    for name, x in (("candidates", candidates), ("old_candidates", clipped and clipped[0])):
        if x is not None and x.shape != shape:
            raise ValueError(f"{where}: {name} must be shaped as the batch's, {shape}, got {tuple(x.shape)}")
    live = _live(centre.there, candidates)
    now = torch.where(centre.there, live.detach(), -torch.inf)
    held = _advantage(weights.layout, advantage)[..., None]
    some = centre.there.any(-1, keepdim=True)

    coefficient = centre.log_mass.exp()
    tail_now = tail_of(now, some)
    tail = None if centre.log_tail is None else (centre.log_tail[..., None] - tail_now).exp()
    if clipped is not None and clipped[0] is not None:
        old, slope = _live(centre.there, clipped[0].detach()), clipped[1]
        coefficient = coefficient * slope(live.detach() - old, held > 0)
        if tail is not None:
            tail_old = tail_of(torch.where(centre.there, old, -torch.inf), some)
            tail = tail * slope(tail_now - tail_old, held > 0)
    if tail is not None:
        coefficient = coefficient - torch.where(some, tail, 0) * now.exp()
    # A place without an advantage has no use for a coefficient that no float holds.
    coefficient = torch.where(centre.there & (held != 0), coefficient, 0)
    return (held * coefficient * live).sum()


def _live(where: Tensor, log_p: Tensor) -> Tensor:
    # Before anything is computed from it: off the mask there may be a NaN, and a dropped token may have any ratio;
    # neither a weight of 0 nor a later `where` would keep them out of the gradient.
    return torch.where(where, log_p, 0).to(torch.promote_types(log_p.dtype, torch.float32))


def _gain(weights: Weights, advantage: Tensor) -> Tensor:
    """Weight times advantage, detached: 0 on tokens that are not kept, whatever is there, and where the latter is 0."""
    held = _advantage(weights.layout, advantage)
    held = torch.where(weights.keep_tokens, held, 0)
    # A weight that float32 cannot hold is infinite, and a token without an advantage has no use for it: 0, not NaN.
    return torch.where(held == 0, held, weights.per_token * held)


def _advantage(layout: Layout, advantage: Tensor) -> Tensor:
    shape = layout.mask.shape
    if advantage.shape != shape:
        if advantage.shape not in ((layout.num_seqs,), (layout.num_seqs, 1)):
            raise ValueError(
                f"loss: advantage must have one value a token {tuple(shape)} or one a sequence ({layout.num_seqs},), "
                f"got {tuple(advantage.shape)}"
            )
        advantage = layout.spread(advantage.flatten())
    return torch.where(layout.mask, advantage.detach(), 0)


def _check_clip(name: str, low: float, high: float) -> None:
    if not (low >= 0 and high >= 0):
        raise ValueError(f"{name}: low and high must be >= 0, got low={low}, high={high}")
