"""prime-rl's default loss, which masks by the change of probability, and its `ipo`."""

from dataclasses import replace

import torch
from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, TOKEN, k3
from reweigh.named import dppo_tv, token_is
from reweigh.rosetta.metrics import View
from reweigh.rosetta.parts import prob_gap
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation, probabilities_as_they_are
from reweigh.rosetta.plan import infinite_kept as _infinite_kept
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost


def _compose(o: Options) -> Reading:
    kind = o["type"]
    if kind == "ipo":
        plan = Plan(weigh(TOKEN, AtMost(o["ipo_threshold"]), of=prob_gap) * token_is())
    elif kind == "default":
        plan = Plan(dppo_tv(o["dppo_mask_high"], o["dppo_mask_low"]))
    else:
        raise RefusedError(f"prime-rl: no composition of loss type {kind!r}\nhint: default or ipo")
    loss = Loss("ratio", live="log_pi", centre="log_mu", penalty=o["kl_tau"], scale=o["adv_tau"])
    note = "the gradient flows through the ratio; kl_tau times the squared log ratio is added over all tokens"
    return Reading(plan, loss=loss, notes=(note,))


def infinite_kept(plan: Plan, situation: Situation) -> Plan:
    """Keep infinite ratios, in the loss as well."""
    return probabilities_as_they_are(_infinite_kept(plan, situation)).flagged("infinite_live")


def zero_is_negative(plan: Plan, _: Situation) -> Plan:
    """Take an advantage of 0 for a negative one."""
    return replace(plan, zero_advantage=-1)


def _k3_of_rows(view: View, name: str) -> Tensor:
    batch, keep = view.batch(), view.outcome.keep
    mask = batch.layout.mask & (~keep if name.startswith("masked") else keep)
    return torch.where(mask, k3(batch), 0).sum(-1) / mask.sum(-1).clamp(min=1)


def _share_dropped(view: View, name: str) -> Tensor:
    batch = view.batch()
    assert batch.advantage is not None
    gone = batch.layout.mask & ~view.outcome.keep
    if name != "is_masked":
        gone = gone & (batch.advantage * (+1 if name.endswith("high") else -1) > 0)
    return GEOMETRIC.fold(gone.float(), batch.layout)


PRIME_RL = read_profile(
    "prime_rl",
    _compose,
    quirks=(infinite_kept, zero_is_negative),
    equals={"k3_of_rows": _k3_of_rows, "share_dropped": _share_dropped},
)
