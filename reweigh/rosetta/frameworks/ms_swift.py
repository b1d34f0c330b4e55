"""ms-swift's `rollout_importance_sampling_mode`, whose sequences are geometric means, and OPSM."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, TOKEN, log_ratio
from reweigh.named import naive, opsm, token_is
from reweigh.rosetta.metrics import EQUALS, SAFE, View
from reweigh.rosetta.plan import Options, Plan, Reading, Situation, infinite_kept
from reweigh.rosetta.plan import infinity_times_zero as _infinity_times_zero
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import Reject, Screen, Truncate


def _compose(o: Options) -> Reading:
    mode, cap = o.word("rollout_importance_sampling_mode"), o["rollout_importance_sampling_threshold"]
    delta = o["off_policy_sequence_mask_delta"]
    notes: tuple[str, ...] = ()
    if not o["use_vllm"]:
        mode, notes = None, ("use_vllm=false: samples are the trainer's own, and nothing is corrected",)
    if mode is None and o["log_rollout_offpolicy_metrics"]:
        notes += ("log_rollout_offpolicy_metrics alone logs the gap and corrects nothing",)
    weights = {
        None: naive(),
        "token_truncate": weigh(TOKEN, Truncate(cap)),
        "token_mask": weigh(TOKEN, Reject(0.0, cap)),
        "sequence_truncate": weigh(GEOMETRIC, Truncate(cap)),
        "sequence_mask": weigh(GEOMETRIC, Screen(0.0, cap)) * token_is(),
    }[mode]
    return Reading(Plan(weights, naive() if delta is None else opsm(delta)), notes=notes)


def ratios_clamped(plan: Plan, situation: Situation) -> Plan:
    """Clamp log ratios of weights token by token; OPSM clamps nothing."""
    return replace(infinite_kept(plan, situation), rule=SAFE)


def infinity_times_zero(plan: Plan, situation: Situation) -> Plan:
    """Multiply by masks in OPSM and in metrics; ratios of weights are clamped before."""
    return replace(_infinity_times_zero(plan, situation), weights=plan.weights)


def _chi2(view: View, name: str) -> Tensor:
    value = EQUALS["chi2_token"](view, name)
    return torch.where(view.spoilt(log_ratio).any(), torch.nan, torch.as_tensor(value))


def _share_over_cap(view: View, _: str) -> Tensor:
    o, batch = view.options, view.batch(SAFE)
    level = TOKEN if o["rollout_importance_sampling_mode"].startswith("token") else GEOMETRIC
    cap = math.log(o["rollout_importance_sampling_threshold"])
    x = level.fold(batch.log_ratio, batch.layout)
    # token_mask counts what it zeroed, NaN too.
    over = (~(x <= cap) if o["rollout_importance_sampling_mode"] == "token_mask" else x > cap).float()
    return over[batch.layout.mask].mean() if level is TOKEN else view.mean_over_rows(over, batch)


MS_SWIFT = read_profile(
    "ms_swift",
    _compose,
    quirks=(ratios_clamped, infinity_times_zero),
    equals={"share_over_cap": _share_over_cap, "chi2_token": _chi2},
)
