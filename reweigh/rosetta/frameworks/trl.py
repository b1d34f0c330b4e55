"""TRL's `GRPOConfig`: its importance sampling correction for vLLM, and off-policy sequence masking."""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import SEQUENCE, TOKEN
from reweigh.named import opsm, vespo
from reweigh.rosetta.metrics import View
from reweigh.rosetta.parts import clamped_level
from reweigh.rosetta.plan import Loss, Options, Over, Plan, Reading, Situation, Tensors, run
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import Clip, Reject

_OVER: dict[str, Over] = {"grpo": "row_means", "bnpo": "tokens", "dapo": "tokens", "cispo": "tokens", "vespo": "tokens"}


def _weights(o: Options) -> Plan:
    if not o["vllm_importance_sampling_correction"]:
        return Plan()
    level, kind = o.word("vllm_importance_sampling_mode").split("_")
    low = o["vllm_importance_sampling_clip_min"]
    high = o.get("vllm_importance_sampling_clip_max", o["vllm_importance_sampling_cap"])
    transform = (Clip if kind == "truncate" else Reject)(low or 0.0, math.inf if high is None else high)
    return Plan(weigh({"token": TOKEN, "sequence": SEQUENCE}[level], transform))


def _compose(o: Options) -> Reading:
    # A recorded loss without the option ran without vLLM; a recorded mask is of one function alone.
    plan = Plan() if "function" in o and "vllm_importance_sampling_mode" not in o else _weights(o)
    if o["off_policy_mask_threshold"] is not None:
        plan = replace(plan, screens=opsm(o["off_policy_mask_threshold"]))
    kind = o["loss_type"]
    loss = Loss("ppo_clip", low=o.get("epsilon_low", o["epsilon"]), high=o.get("epsilon_high", 0.2))
    loss = replace(loss, over=_OVER.get(kind, "tokens"), dual=o["delta"])
    if o["importance_sampling_level"] == "sequence":
        loss = replace(loss, kind="gspo")
    if kind == "cispo":
        loss = replace(loss, kind="cispo", low=1.0, high=o.get("epsilon_high", 5.0) - 1)
    if kind == "vespo":
        kernel = vespo((o["vespo_k_pos"], o["vespo_lambda_pos"]), (o["vespo_k_neg"], o["vespo_lambda_neg"]))
        note = "the sampler's ratio is bounded token by token inside the kernel; ours takes the sequence ratio whole"
        return Reading(Plan(kernel), "log_live", "log_mu", replace(loss, kind="policy_gradient"), (note,), inside=True)
    on_live = "loss_type" in o and bool(plan.screens.factors)
    return Reading(plan, loss=loss, screen_pi="log_live" if on_live else None, inside=on_live)


# Quirks.


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


def _logged_ratio(view: View, name: str) -> Tensor:
    w, batch = view.outcome, view.batch()
    if view.plan.weights.unit == "sequence":
        rows, some = w.alone.amax(-1), w.left.any(-1)
        # Without a token it is e^0, and the mode is applied to that.
        x = torch.where(some, rows, 1.0) if view.plan.empty_rows else rows[some]
    else:
        x = w.alone[batch.layout.mask]
    return {"min": x.min, "max": x.max, "mean": x.mean}[name.rpartition("/")[2]]()


TRL = read_profile(
    "trl",
    _compose,
    quirks=(kernel_of_bounded_ratios,),
    equals={"logged_ratio": _logged_ratio},
)
