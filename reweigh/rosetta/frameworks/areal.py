"""AReaL's `actor.rejection_sampling`, M2PO, and its decoupled loss."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from reweigh.estimators import Estimator, Factor, Statistic, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, Level, k2
from reweigh.named import m2po, token_is
from reweigh.rosetta.metrics import View
from reweigh.rosetta.parts import Within, as_it_comes, bounded_geometric, k3_reversed, one_if_not_finite
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Clip, MeanAtMost, Screen, Transform

_LEVELS: dict[str, Level] = {"token": TOKEN, "sum": SEQUENCE, "mean": GEOMETRIC, "max": WORST}
_STATISTICS: dict[str, Statistic] = {"kl_k2": k2, "kl_k3": k3_reversed}
_ASKS = ("level", "action", "metric", "agg", "upper", "lower")


def _screened(level: Level, o: Options) -> Estimator:
    low, high, metric = o["lower"], float(o["upper"]), o["metric"]
    if metric == "ratio":
        return weigh(level, Screen(low or 0.0, high))
    if metric == "kl_k1":  # log r, with bounds in nats
        return weigh(level, Screen(0.0 if low is None else math.exp(low), math.exp(high)))
    return weigh(level, AtMost(high) if low is None else Within(low, high), of=_STATISTICS[metric])


def _plan(o: Options) -> Plan:
    level, action, metric, agg = (o.word(name) for name in ("level", "action", "metric", "agg"))
    if action == "clamp" and metric != "ratio":
        raise RefusedError(f"areal: action=clamp is of the ratio only, got metric={metric}\nhint: action=mask")
    unit, own = _LEVELS["token" if level == "token" else agg], TOKEN if level == "token" else GEOMETRIC
    if action == "mask":
        return Plan(weigh(own) if metric == "ratio" else token_is(), _screened(unit, o))
    low, high = o["lower"] or 0.0, float(o["upper"])
    if unit is own:
        return Plan(weigh(own, Clip(low, high)))
    return Plan(weigh(bounded_geometric(low, high, unit)))


def _compose(o: Options) -> Reading:
    low = o["eps_clip"]
    loss = Loss("ppo_clip", low=low, high=o["eps_clip_higher"] or low, dual=o["c_clip"])
    if o["importance_sampling_level"] == "sequence":
        loss = replace(loss, kind="gspo", slope="mean", mean_of_kept=True)
    o = _former(o)
    # Its section is null by default: nothing is corrected unless something of it is given.
    asked = any(name in o for name in _ASKS)
    if "function" not in o:
        if o["use_sapo_loss"] and "use_decoupled_loss" in o and o["use_decoupled_loss"]:
            raise RefusedError("areal: use_sapo_loss excludes use_decoupled_loss\nhint: take one of them out")
        if not o["use_decoupled_loss"] or o["use_sapo_loss"]:
            return _coupled(o, loss, asked)
    if o["m2_threshold"] is not None:
        return Reading(Plan(m2po(o["m2_threshold"])), loss=loss)
    return Reading(_plan(o) if asked else Plan(), loss=loss)


def _coupled(o: Options, loss: Loss, asked: bool) -> Reading:
    """The loss that is not decoupled: its own ratio is all there is."""
    why = "use_sapo_loss" if o["use_sapo_loss"] else "use_decoupled_loss=false"
    notes = (f"{why}: rejection_sampling is not read",) if asked else ()
    if o["recompute_logprob"]:
        said = "recompute_logprob: the loss's own ratio is of the live policy to the trainer's old one: the gap to the "
        notes += (said + "sampler is not corrected at all",)
    else:
        notes += ("the loss's own ratio is of the live policy to the sampler, and its clip is all there is",)
        loss = replace(loss, centre="log_mu")
    plan = Plan() if o["m2_threshold"] is None else Plan(m2po(o["m2_threshold"]))
    return Reading(plan, loss=loss, notes=notes)


def _former(o: Options) -> Options:
    """Options of earlier versions under their successors' names."""
    mode, cap = o["behave_imp_weight_mode"], o["behave_imp_weight_cap"] or o["behav_imp_weight_cap"]
    if mode is None and cap is None:
        return o
    if mode == "disabled" or cap is None:
        return o
    level, action = (mode or "token_mask").split("_")
    given = {"level": level, "action": "clamp" if action == "truncate" else "mask", "metric": "ratio", "upper": cap}
    return replace(o, given={**o.given, **given})


def not_finite_is_one(plan: Plan, situation: Situation) -> Plan:
    """Take a ratio that cannot be computed for 1, or as it comes where a divergence is bounded."""
    o = situation.options
    rule = as_it_comes if "m2_threshold" in o else one_if_not_finite
    screen_rule = rule if o["metric"] == "ratio" else as_it_comes
    return replace(plan, rule=rule, screen_rule=screen_rule, metrics_as_they=True).flagged("infinite_live")


def m2po_keeps_one(plan: Plan, situation: Situation) -> Plan:
    """Keep the token of the smallest squared log ratio where M2PO's bound would drop every one."""
    if "m2_threshold" not in situation.options:
        return plan

    def change(f: Factor) -> Factor:
        return replace(f, transform=_AllButOne(f.transform)) if isinstance(f.transform, MeanAtMost) else f

    return plan.mapped(change)


@final
@dataclass(frozen=True)
class _AllButOne(Transform):
    """As the inner transform, and where that drops all, the smallest statistic stays, the last of equal ones."""

    inner: MeanAtMost
    reads_batch: ClassVar[bool] = True

    def __call__(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Transform, then keep one."""
        log_w, keep = self.inner(x, valid)
        smallest = valid & (x == torch.where(valid, x, torch.inf).min())
        last = smallest & (smallest.flatten().cumsum(0).reshape(smallest.shape) == smallest.sum())
        return torch.where(last, 0, log_w), torch.where(keep.any(), keep, last)


def _share_filtered(view: View, _: str) -> Tensor:
    """Share of tokens dropped, or whose weight was moved."""
    o, mask = view.options, view.batch().layout.mask
    if o["action"] == "mask":
        return (~view.outcome.keep)[mask].float().mean()
    unmoved = weigh(TOKEN if o["level"] == "token" else GEOMETRIC)(view.outcome.batch).per_token
    return (unmoved != view.outcome.per_token)[mask].float().mean()


AREAL = read_profile(
    "areal",
    _compose,
    quirks=(not_finite_is_one, m2po_keeps_one),
    equals={"share_filtered": _share_filtered},
)
