"""TRL's `GRPOConfig`: its importance sampling correction for vLLM, and off-policy sequence masking."""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN
from reweigh.named import opsm, vespo
from reweigh.rosetta.metrics import View
from reweigh.rosetta.parts import clamped_level
from reweigh.rosetta.plan import Loss, Options, Over, Plan, Reading, RefusedError, Situation, Tensors, run
from reweigh.rosetta.plan import infinite_kept as _infinite_kept
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import Clip, Reject

_OVER: dict[str, Over] = {"grpo": "row_means", "dr_grpo": "row_sums", "luspo": "row_sums"}


_LENGTH = 512  # tokens, its max_completion_length


def _weights(o: Options) -> Plan:
    if not o["vllm_importance_sampling_correction"]:
        return Plan()
    level, kind = o.word("vllm_importance_sampling_mode").split("_")
    low, high = _bounds(o)
    if kind == "truncate" and low is None and high is None:
        raise RefusedError(f"{o.framework}: a truncate mode needs clip_min or clip_max\nhint: clip_max=3.0")
    transform = (Clip if kind == "truncate" else Reject)(low or 0.0, math.inf if high is None else high)
    return Plan(weigh(_LEVELS[level], transform))


_LEVELS = {"token": TOKEN, "sequence": SEQUENCE, "geometric": GEOMETRIC}


def _bounds(o: Options) -> tuple[float | None, float | None]:
    """Bounds on pi/mu; the deprecated cap holds where it is given."""
    cap, low = o["vllm_importance_sampling_cap"], o["vllm_importance_sampling_clip_min"]
    high = o["vllm_importance_sampling_clip_max"] if cap is None else cap
    if low is not None and high is not None and low >= high:
        raise RefusedError(f"{o.framework}: clip_min must be under clip_max, got {low:g} and {high:g}\nhint: pi/mu")
    return low, high


def compose(o: Options) -> Reading:
    """Read what options compute."""
    # A recorded loss without the option ran without vLLM; a recorded mask is of one function alone.
    plan = Plan() if "function" in o and "vllm_importance_sampling_mode" not in o else _weights(o)
    notes: tuple[str, ...] = ()
    if not o["use_vllm"]:
        plan, notes = Plan(), ("use_vllm=false: samples are the trainer's own, and nothing is corrected",)
    if o["off_policy_mask_threshold"] is not None:
        plan = replace(plan, screens=opsm(o["off_policy_mask_threshold"]))
    kind = o.word("loss_type")
    loss = Loss("ppo_clip", low=o.get("epsilon_low", o["epsilon"]), high=o.get("epsilon_high", 0.2))
    loss = replace(loss, over=_OVER.get(kind, "tokens"))
    if o["delta"] is not None:  # it caps the ratio before the clip, for both signs of the advantage
        loss = replace(loss, high=min(loss.high, o["delta"] - 1), dual=max(o["delta"], 1 + loss.high))
    if kind == "dr_grpo":
        loss = replace(loss, scale=1 / (o.get("max_completion_length") or _LENGTH))
    if o["importance_sampling_level"] == "sequence":
        loss = replace(loss, kind="gspo", level="sequence", slope="mean")
    if kind == "cispo":
        loss = replace(loss, kind="cispo", low=1.0, high=o.get("epsilon_high", 5.0) - 1)
    if kind == "vespo":
        kernel = vespo((o["vespo_k_pos"], o["vespo_lambda_pos"]), (o["vespo_k_neg"], o["vespo_lambda_neg"]))
        note = "the sampler's ratio is bounded token by token inside the kernel; ours takes the sequence ratio whole"
        mode = o["vllm_importance_sampling_mode"]
        asked = o["use_vllm"] and o["vllm_importance_sampling_correction"] and "function" not in o
        if asked and not mode.startswith("token"):
            raise RefusedError(
                f"{o.framework}: vespo needs a token mode, got {mode}\nhint: token_truncate or token_mask"
            )
        gradient = replace(loss, kind="policy_gradient")
        return Reading(Plan(kernel), "log_live", "log_mu", gradient, (*notes, note), inside=True)
    if kind == "sapo":
        return Reading(plan, notes=notes)
    on_live = "loss_type" in o and bool(plan.screens.factors)
    return Reading(plan, loss=loss, notes=notes, screen_pi="log_live" if on_live else None, inside=on_live)


# Quirks.


def infinite_kept(plan: Plan, situation: Situation) -> Plan:
    """Keep infinite log ratios, and take one that is NaN for 0, in weights and in OPSM."""
    return replace(_infinite_kept(plan, situation), rule=_nan_is_zero, screen_rule=_nan_is_zero)


def _nan_is_zero(log_ratio: Tensor) -> Tensor:
    return torch.where(torch.isnan(log_ratio), 0, log_ratio)


_SMALLEST, _LARGEST = math.log(1e-8), 20.0  # nats, of its kernel


@final
@dataclass(frozen=True)
class _BoundedRatio:
    """Log ratios that enter the kernel there: live to old policy, plus the sampler's, after the mode has bounded it."""

    sampler: Plan

    def __call__(self, tensors: Tensors) -> Tensor:
        assert tensors.log_old is not None
        live = (tensors.log_pi - tensors.log_old).clamp(-_LARGEST, _LARGEST)
        weight = run(self.sampler, replace(tensors, log_pi=tensors.log_old)).alone
        return live + weight.log().clamp(_SMALLEST, _LARGEST)


def kernel_of_bounded_ratios(plan: Plan, situation: Situation) -> Plan:
    """Bound the kernel's ratios before it sees them."""
    o = situation.options
    if o["loss_type"] != "vespo":
        return plan
    clamped = plan.mapped(lambda f: replace(f, level=clamped_level(f.level, _SMALLEST, _LARGEST)))
    return replace(clamped, ratio_of=_BoundedRatio(_weights(o)), zero_advantage=1)


# Metrics.


def logged_ratio(view: View, name: str) -> Tensor:
    """Give the smallest, mean or largest weight of a unit, an empty sequence counted where it is there."""
    w, batch = view.outcome, view.batch()
    if view.plan.weights.unit == "sequence":
        rows, some = w.alone.amax(-1), w.left.any(-1)
        # Without a token it is e^0, and the mode is applied to that.
        x = torch.where(some, rows, 1.0) if view.plan.empty_rows else rows[some]
    else:
        x = w.alone[batch.layout.mask]
    return {"min": x.min, "max": x.max, "mean": x.mean}[name.rpartition("/")[2]]()


def known_distance(view: View, name: str) -> Tensor:
    """Give the mean or largest `|log r|` of tokens, those left out that are NaN."""
    batch = view.batch()
    x = batch.log_ratio.abs()[batch.layout.mask & ~torch.isnan(batch.log_ratio)]
    return torch.zeros(()) if not len(x) else x.max() if name.endswith("max") else x.mean()


TRL = read_profile(
    "trl",
    compose,
    quirks=(infinite_kept, kernel_of_bounded_ratios),
    equals={"logged_ratio": logged_ratio, "known_distance": known_distance},
)
