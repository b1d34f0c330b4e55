"""open-instruct's `use_rho_correction`: clamps and masks of rho."""

import math
from dataclasses import replace

from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import for_advantage, weigh
from reweigh.levels import GEOMETRIC, TOKEN, Level, signed_gap_of_sequence
from reweigh.rosetta.metrics import View, log
from reweigh.rosetta.parts import BandAboveZero, Clamped
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation, Tensors
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Clip, Screen

_SAFE = Clamped(10.0)  # nats
_UNKNOWN = 1.0  # nats, its INVALID_LOGPROB


def _clamp(o: Options) -> Clip:
    low = o.get("rho_clamp_lower_bound", o.get("rho_clamp_lower"))
    high = o.get("rho_clamp_upper_bound", o.get("rho_clamp_upper", o["rho_clamp_upper_bound"]))
    return Clip(low or 0.0, high or math.inf)


def _level(o: Options) -> Level:
    """The level of the mask and of the weight."""
    return GEOMETRIC if o["rho_mask_sequence_level"] else TOKEN


def _plan(o: Options) -> Plan:
    if not o["use_rho_correction"]:
        return Plan()
    if o["truncated_importance_sampling_ratio_cap"] is not None and not any(n.startswith("rho_") for n in o.given):
        cap = o["truncated_importance_sampling_ratio_cap"]
        return Plan(weigh(TOKEN, Clip(0.0, cap))) if cap else Plan()
    low, high = o["rho_mask_lower_bound"] or 0.0, o["rho_mask_upper_bound"] or math.inf
    if o["rho_mask_tv_divergence"]:  # tokens that move further away, in a sequence that is far off
        gate = AtMost(high) if low == 0 else BandAboveZero(low, high)
        rise = for_advantage(+1, weigh(TOKEN, gate, of=signed_gap_of_sequence))
        fall = for_advantage(-1, weigh(TOKEN, gate, of=signed_gap_of_sequence, scale=-1))
        return Plan(weigh(TOKEN, _clamp(o)) * rise * fall)
    weight = weigh(_level(o), _clamp(o))
    return Plan(weight if (low, high) == (0.0, math.inf) else weight * weigh(_level(o), Screen(low, high)))


def _compose(o: Options) -> Reading:
    if o["use_vllm_logprobs"] and "function" not in o:
        if o["use_rho_correction"]:
            raise RefusedError(
                "open-instruct: use_vllm_logprobs excludes use_rho_correction, which is on by default: the loss's own "
                "ratio is to the sampler already\nhint: use_rho_correction=false"
            )
        note = (
            "use_vllm_logprobs: the loss's own ratio is of the live policy to the sampler, and its clip is all there is"
        )
        return Reading(Plan(), loss=Loss("ppo_clip", centre="log_mu"), notes=(note,))
    loss = Loss("ppo_clip", low=o["clip_lower"], high=o["clip_higher"])
    if o["loss_fn"] == "cispo":
        loss = replace(loss, kind="cispo", low=1.0)
    return Reading(_plan(o), loss=loss)


def ratios_clamped(plan: Plan, _: Situation) -> Plan:
    """Clamp all log ratios token by token, after a log-prob that is NaN is 1 and an infinite one the largest number."""
    clamped = replace(plan, rule=_SAFE, screen_rule=_SAFE, metrics_as_they=True, ratio_of=_filled_ratio)
    return clamped.flagged("infinite_live")


def _filled_ratio(tensors: Tensors) -> Tensor:
    log_pi, log_mu = _filled(tensors)
    return _SAFE(log_pi - log_mu)


def _filled(tensors: Tensors) -> tuple[Tensor, Tensor]:
    return tensors.log_pi.nan_to_num(nan=_UNKNOWN), tensors.log_mu.nan_to_num(nan=_UNKNOWN)


def _distance(view: View, name: str) -> Tensor:
    """Mean or largest distance of the log-probs, filled where the framework fills them."""
    batch = view.batch()
    x = batch.log_ratio
    if view.plan.metrics_as_they:
        log_pi, log_mu = _filled(view.tensors)
        x = log_pi - log_mu
    x = x.abs()[batch.layout.mask]
    return x.max() if name.endswith("max") else x.mean()


def _share_dropped(view: View, name: str) -> Tensor:
    """Share of tokens that the mask drops: under its low bound, over its high one, or either."""
    o, batch = view.options, view.outcome.batch
    mask = view.batch().layout.mask
    gone = mask & ~view.plan.weights(batch).keep_tokens
    if "_low_" in name or "_high_" in name:
        bound = o["rho_mask_lower_bound"] or 0.0
        if o["rho_mask_tv_divergence"]:
            low = signed_gap_of_sequence(batch).abs() < bound
        else:
            low = _tokens(batch, _level(o)) < log(bound)
        gone = gone & (low if "_low_" in name else ~low)
    return gone[mask].float().mean()


def _share_clamped(view: View, _: str) -> Tensor:
    """Share of tokens whose ratio the clamp moves, dropped ones too."""
    clamp, x = _clamp(view.options), _tokens(view.outcome.batch, _level(view.options))
    moved = (x < log(clamp.low)) | (x > log(clamp.high))
    return moved[view.batch().layout.mask].float().mean()


def _tokens(batch: Batch, level: Level) -> Tensor:
    """The level's log ratio, on each token."""
    x = level.fold(batch.log_ratio, batch.layout)
    return batch.layout.spread(x) if level is GEOMETRIC else x


OPEN_INSTRUCT = read_profile(
    "open_instruct",
    _compose,
    quirks=(ratios_clamped,),
    equals={
        "distance": _distance,
        "share_dropped": _share_dropped,
        "share_clamped": _share_clamped,
    },
)
