"""OpenRLHF's `algo.advantage.is_correction_*`, inside its `PolicyLoss`."""

from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, TOKEN, binary_kl, prob_gap
from reweigh.named import token_is
from reweigh.rosetta.metrics import SAFE, View, share_beyond
from reweigh.rosetta.parts import binary_kl_of_clamped, prob_gap_of_clamped
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation, swapped
from reweigh.rosetta.plan import empty_rows_count as _empty_rows_count
from reweigh.rosetta.plan import infinite_kept as _infinite_kept
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Clip, Screen

_STATISTICS = {"binary_kl": binary_kl, "tv": prob_gap}


def _bounds(o: Options) -> tuple[float, float]:
    told: Any = o["is_correction_threshold"]
    values = [told] if isinstance(told, (int, float)) else told
    if not isinstance(values, (list, tuple)) or not 1 <= len(values) <= 2:
        raise RefusedError(f"openrlhf: is_correction_threshold is HIGH or LOW HIGH, got {told!r}\nhint: [0.5, 5.0]")
    try:
        values = [float(v) for v in cast("list[Any]", values)]
    except (TypeError, ValueError):
        raise RefusedError(f"openrlhf: is_correction_threshold is of numbers, got {told!r}\nhint: [0.5, 5.0]") from None
    return (0.0, values[0]) if len(values) == 1 else (values[0], values[1])


def _former(o: Options) -> Options:
    """Options of earlier versions under their successors' names."""
    if not o["enable_vllm_is_correction"] and not o["is_correction_enable"]:
        return o
    kind = o["vllm_is_correction_type"] or o["is_correction_type"] or ("icepop" if o["use_icepop"] else "tis")
    level, mode = {"tis": ("token", "clip"), "icepop": ("token", "mask"), "seq-mask-tis": ("seq", "mask")}[kind]
    given = {"is_correction_level": level, "is_correction_mode": mode}
    if o["vllm_is_truncated_threshold"] is not None:
        given["is_correction_threshold"] = o["vllm_is_truncated_threshold"]
    return replace(o, given={**o.given, **given})


def _plan(o: Options) -> Plan:
    low, high = _bounds(o)
    level, mode = o.word("is_correction_level"), o.word("is_correction_mode")
    gating = o.word("is_correction_gating")
    if level == "off":
        return Plan()
    if mode == "clip" and (level == "seq" or gating != "ratio"):
        raise RefusedError("openrlhf: clip is of the token ratio only\nhint: is_correction_level=token, gating=ratio")
    if gating != "ratio" and low > 0:
        raise RefusedError(f"openrlhf: {gating} has no lower bound, got {low:g}\nhint: one threshold, or 0 and one")
    if mode == "clip":
        return Plan(weigh(TOKEN, Clip(low, high)))
    unit = TOKEN if level == "token" else GEOMETRIC
    screen = weigh(unit, Screen(low, high)) if gating == "ratio" else weigh(unit, AtMost(high), of=_STATISTICS[gating])
    return Plan(token_is() * screen)


def _clip(o: Options) -> tuple[float, float]:
    if o["eps_clip_low_high"] is not None:
        low, high = o["eps_clip_low_high"]
        return float(low), float(high)
    low, high = (o["eps_clip"], o["eps_clip"]) if "eps_clip" in o else (o["clip_eps_low"], o["clip_eps_high"])
    return low, high


def _compose(o: Options) -> Reading:
    o = _former(o)
    plan = _plan(o)
    low, high = _clip(o)
    loss = Loss("ppo_clip", low=low, high=high, dual=o["dual_clip"], clamp=SAFE.nats)
    if not o.get("token_level_loss", True):  # actor.loss_agg_mode=seq-mean-token-mean
        loss = replace(loss, over="means")
    if o["policy_loss_type"] == "gspo":
        loss = replace(loss, kind="gspo", slope="mean", over="means", clamp=None)
        if o["is_correction_level"] != "off":
            note = "with gspo the correction is the live policy's geometric ratio to the sampler; no gate is applied"
            return Reading(Plan(), loss=replace(loss, centre="log_mu"), notes=(note,))
    return Reading(plan, loss=loss)


def infinite_kept(plan: Plan, situation: Situation) -> Plan:
    """Keep infinite ratios, in the loss as well."""
    return _infinite_kept(plan, situation).flagged("infinite_live", "ratio_times_mask")


def probabilities_clamped(plan: Plan, _: Situation) -> Plan:
    """Take statistics of probabilities after a clamp to [1e-6, 1 - 1e-6]."""
    return swapped(plan, {prob_gap: prob_gap_of_clamped, binary_kl: binary_kl_of_clamped})


def empty_rows_count(plan: Plan, situation: Situation) -> Plan:
    """Count a sequence with no token, as dropped."""
    return _empty_rows_count(plan, situation).flagged("empty_rows_dropped")


def _share_outside(view: View, _: str) -> Tensor:
    o, batch = view.options, view.batch()
    mask, (low, high) = batch.layout.mask, _bounds(o)
    if o["is_correction_mode"] == "clip":
        return share_beyond(view, TOKEN, low, high)
    gone = mask & ~view.plan.weights(view.tensors.batch(view.plan.rule)).keep_tokens
    if o["is_correction_level"] == "token":
        return gone[mask].float().mean()
    dropped = gone.any(-1)
    if "empty_rows_dropped" in view.plan.flags:
        dropped = dropped | ~mask.any(-1)
    return view.mean_over_rows(dropped.float(), batch)


OPENRLHF = read_profile(
    "openrlhf",
    _compose,
    quirks=(infinite_kept, probabilities_clamped, empty_rows_count),
    equals={"share_outside": _share_outside},
)
