"""Unsloth's trainer, which takes TRL's options and computes its own ratio: geometric modes, and verl's screens."""

import math
from dataclasses import replace
from typing import Any

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC
from reweigh.rosetta.frameworks.trl import compose, kernel_of_bounded_ratios, known_distance, logged_ratio
from reweigh.rosetta.frameworks.verl import VERL
from reweigh.rosetta.plan import Options, Plan, Reading, RefusedError
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import Clip, Reject

_ENVIRONMENT = "UNSLOTH_GRPO_"


def _on(value: Any) -> bool:
    return value not in (None, "", 0, "0", False)


def _bounds(text: Any) -> dict[str, Any]:
    """Bounds of `low_high`, either of which may be left out."""
    low, line, high = str(text).partition("_")
    try:
        if not line:
            raise ValueError
        found = {"min": float(low) if low.strip() else None, "max": float(high) if high.strip() else None}
    except ValueError:
        raise RefusedError(
            f'unsloth: UNSLOTH_GRPO_VLLM_IS_CLIP is "low_high", either of which may be left out, got {text!r}\n'
            f'hint: "_{text}" for a cap alone'
        ) from None
    return {f"vllm_importance_sampling_clip_{k}": v for k, v in found.items()}


def _compose(o: Options) -> Reading:
    given = dict(o.given)
    mode, clip = o[f"{_ENVIRONMENT}VLLM_IS_MODE"], o[f"{_ENVIRONMENT}VLLM_IS_CLIP"]
    if mode is not None:
        given["vllm_importance_sampling_mode"] = mode
    if _on(clip):
        given |= _bounds(clip)
    o = replace(o, given=given)
    corrects = o["vllm_importance_sampling_correction"] and o["use_vllm"]
    notes: tuple[str, ...] = ()
    if not corrects:
        unread = [n for n in ("VLLM_IS_MODE", "VLLM_IS_CLIP", "ROLLOUT_RS") if _on(o[_ENVIRONMENT + n])]
        as_old = _on(o[f"{_ENVIRONMENT}ROLLOUT_LOGPROBS_AS_OLD"])
        unread = [n for n in unread if not (as_old and n == "ROLLOUT_RS")]
        if unread:
            names = ", ".join(_ENVIRONMENT + n for n in unread)
            notes += (f"{names}: read only with use_vllm and vllm_importance_sampling_correction=true; ignored",)
        if "vllm_importance_sampling_correction" not in o:
            notes += ("Unsloth's default of vllm_importance_sampling_correction is false, not TRL's true",)
    reading = _geometric(o) or compose(o)
    screens = reading.plan.screens * _screens(o, corrects)
    reading = replace(reading, plan=replace(reading.plan, screens=screens), notes=(*notes, *reading.notes))
    if _on(o[f"{_ENVIRONMENT}ROLLOUT_LOGPROBS_AS_OLD"]):
        return _as_old(o, reading)
    return reading


def _geometric(o: Options) -> Reading | None:
    """The modes that TRL has not."""
    mode = o.word("vllm_importance_sampling_mode")
    if not mode.startswith("geometric") or not o["vllm_importance_sampling_correction"] or not o["use_vllm"]:
        return None
    if o["loss_type"] == "vespo":
        raise RefusedError(f"unsloth: vespo needs a token mode, got {mode}\nhint: token_truncate or token_mask")
    token = {**o.given, "vllm_importance_sampling_mode": "token_mask" if mode.endswith("mask") else "token_truncate"}
    reading = compose(replace(o, given=token))  # TRL's, whose refusals and loss are the same
    bounds = reading.plan.weights.factors[0].transform
    low, high = getattr(bounds, "low", 0.0), getattr(bounds, "high", math.inf)
    weights = weigh(GEOMETRIC, (Reject if mode.endswith("mask") else Clip)(low, high))
    return replace(reading, plan=replace(reading.plan, weights=weights))


def _screens(o: Options, corrects: bool) -> Any:
    names, bounds = o[f"{_ENVIRONMENT}ROLLOUT_RS"], o[f"{_ENVIRONMENT}ROLLOUT_RS_THRESHOLD"]
    if not _on(names) or not (corrects or _on(o[f"{_ENVIRONMENT}ROLLOUT_LOGPROBS_AS_OLD"])):
        return Plan().screens
    try:
        return VERL.read({"rollout_rs": names, "rollout_rs_threshold": bounds}).plan.screens
    except RefusedError as e:
        told = str(e).replace("verl:", "unsloth:").replace("rollout_rs", f"{_ENVIRONMENT}ROLLOUT_RS")
        raise RefusedError(told) from None


def _as_old(o: Options, reading: Reading) -> Reading:
    if o["loss_type"] == "vespo":
        note = (
            "UNSLOTH_GRPO_ROLLOUT_LOGPROBS_AS_OLD is not applied with vespo, which weighs by the sampler's ratio itself"
        )
        return replace(reading, notes=(*reading.notes, note))
    reading = replace(reading, plan=replace(reading.plan, weights=Plan().weights))
    note = (
        "the sampler's log-probs are the old policy's: the loss's own ratio is of the live policy to it, and its clip"
    )
    loss = None if reading.loss is None else replace(reading.loss, live="log_pi", centre="log_mu")
    return replace(reading, loss=loss, notes=(*reading.notes, f"{note} is all there is beside the screens"))


UNSLOTH = read_profile(
    "unsloth",
    _compose,
    quirks=(kernel_of_bounded_ratios,),
    equals={"logged_ratio": logged_ratio, "known_distance": known_distance},
)
