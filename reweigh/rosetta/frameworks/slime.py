"""slime (and its fork miles): built-in TIS and IcePop, the mis.py helper, and off-policy sequence masking."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from reweigh.estimators import Factor, Statistic, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, Level, k1, k3, log_ratio
from reweigh.named import naive, opsm
from reweigh.rosetta import metrics as m
from reweigh.rosetta.metrics import SAFE, View
from reweigh.rosetta.parts import Rule, as_it_comes, clamped_level
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Clip, Reject, Screen, Truncate

_LEVELS = {"token": TOKEN, "sequence": SEQUENCE, "geometric": GEOMETRIC}


def _helper(o: Options) -> Plan:
    if not o["use_tis"]:  # then it rejects nothing either
        return Plan()
    high = float(_or(o["tis_upper_bound"], 2.0))
    low = float(_or(o["tis_lower_bound"], 1 / high))
    level, mode = _LEVELS[o.word("tis_level")], o.word("tis_mode")
    if mode == "truncate":
        weights, screens = weigh(level, Truncate(high)), naive()
    else:
        weights, screens = weigh(level, (Clip if mode == "clip" else Reject)(*_band(o, "tis", low, high))), naive()
    if o["use_rs"]:
        level = _LEVELS[o.word("rs_level")]
        top = float(_or(o["rs_upper_bound"], high))
        bottom = float(_or(o["rs_lower_bound"], low))
        screens = weigh(level, Screen(*_band(o, "rs", bottom, top)))
        if o["rs_veto_threshold"]:
            screens = screens * weigh(WORST, AtMost(-math.log(o["rs_veto_threshold"])), of=k1)
    if o["mis_veto_threshold"]:
        screens = screens * weigh(WORST, AtMost(-math.log(o["mis_veto_threshold"])), of=k1)
    return Plan(weights, screens, normalise="kept" if o["tis_batch_normalize"] else None)


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _band(o: Options, of: str, low: float, high: float) -> tuple[float, float]:
    if low >= high:
        raise RefusedError(
            f"{o.framework}: {of}_lower_bound must be under {of}_upper_bound, got {low:g} and {high:g}; the helper "
            f"asserts it\nhint: bounds on pi/mu; {of}_lower_bound is "
            + ("1 / tis_upper_bound" if of == "tis" else "tis_lower_bound")
            + " where it is not given"
        )
    return low, high


def _function(o: Options) -> str:
    return str(o["custom_tis_function_path"] or o.get("function", ""))


def _is_helper(o: Options) -> bool:
    function = _function(o)
    if _is_path_of_helper(function):
        return True
    own = ("tis_level", "tis_mode", "tis_upper", "tis_lower", "tis_batch", "rs_", "use_rs")
    return any(name.startswith(own) for name in o.given)


_KNOWN_FUNCTIONS = ("vanilla_tis_function", "icepop_function", "compute_mis_weights_with_cp", "compute_mis_weights")


def _refuse(o: Options) -> None:
    """Refuse what the framework refuses at its start, and functions that are the user's own."""
    name = o.framework
    if o["use_rollout_logprobs"] and o["use_tis"]:
        raise RefusedError(
            f"{name}: use_rollout_logprobs and use_tis exclude each other: with the sampler's log-probs as the old "
            "policy's, the loss's own ratio is to the sampler, and tis would correct twice\nhint: take one of them out"
        )
    path = o["custom_tis_function_path"]
    if path is not None and not _is_path_of_helper(str(path)) and not str(path).endswith(_KNOWN_FUNCTIONS):
        known = ", ".join(_KNOWN_FUNCTIONS[:3])
        raise RefusedError(f"{name}: cannot tell what custom_tis_function_path={path} computes\nhint: known: {known}")
    if o["get_mismatch_metrics"] and path is None:
        raise RefusedError(f"{name}: get_mismatch_metrics needs custom_tis_function_path\nhint: the helper's function")
    if o["loss_type"] == "custom_loss":
        raise RefusedError(
            f"{name}: cannot tell what loss_type=custom_loss ({o['custom_loss_function_path']}) computes\n"
            "hint: loss_type=policy_loss is what is known"
        )
    if o["rollout_temperature"] is not None and o["rollout_temperature"] <= 0:
        raise RefusedError(f"{name}: rollout_temperature must be over 0: greedy samples have no ratio\nhint: 1.0")


def _is_path_of_helper(function: str) -> bool:
    return bool(re.search(r"(^|[./:])mis([.:/]|$)|compute_mis_weights", function))


def _around(o: Options) -> Iterator[str]:
    """What else is said of the loss."""
    if o["loss_type"] == "sft_loss":
        yield "loss_type=sft_loss: no reinforcement, so nothing is weighed"
    if o["custom_pg_loss_reducer_function_path"]:
        yield f"{o['custom_pg_loss_reducer_function_path']} divides the loss: by what is not known"
    if o["custom_config_path"] and not any(n.startswith(("tis_l", "tis_m", "tis_u", "rs_")) for n in o.given):
        yield f"custom_config_path={o['custom_config_path']} may set the helper's options too: give it as --config"
    if o["use_rollout_logprobs"]:
        yield "use_rollout_logprobs: the loss's own ratio is of live policy to sampler, and its clip is all there is"
    if o["true_on_policy_mode"]:
        yield "true_on_policy_mode: the engine and the trainer are meant to give the same log-probs"
    if o["custom_config_path"] is None and o["get_mismatch_metrics"] and not o["use_tis"]:
        yield "get_mismatch_metrics without use_tis: the gap is logged and nothing is weighed"


def compose(o: Options) -> Reading:
    """Read what options compute."""
    reading = _uncentred(o)
    if not o["use_score_centering"]:
        if o["pg_loss_type"] == "reinforce" and reading.loss is not None:
            return replace(reading, loss=Loss("policy_gradient", over=reading.loss.over))
        return reading
    for name in ("use_opd", "use_opsm", "get_mismatch_metrics", "use_unbiased_kl"):
        if o[name]:
            raise RefusedError(f"{o.framework}: use_score_centering excludes {name}\nhint: take one of them out")
    if o["custom_pg_loss_reducer_function_path"]:
        raise RefusedError(f"{o.framework}: use_score_centering takes no custom reducer\nhint: take one of them out")
    path = str(o["custom_tis_function_path"] or "")
    if o["use_tis"] and path and not path.endswith(("vanilla_tis_function", "icepop_function")):
        raise RefusedError(
            f"{o.framework}: use_score_centering with use_tis takes the built-in rules only\nhint: icepop_function"
        )
    if o["advantage_estimator"] in ("gspo", "cispo"):
        raise RefusedError(
            f"{o.framework}: use_score_centering excludes {o['advantage_estimator']}\nhint: advantage_estimator=grpo"
        )
    if (o["rollout_top_k"] or -1) > 0:
        raise RefusedError(
            f"{o.framework}: use_score_centering needs rollout_top_k=-1\nhint: truncate by rollout_top_p only"
        )
    note = (
        "score centering: the sampler's expected score, weighed alike, is subtracted: centred(...) of it, with the "
        f"sampler's {o['score_centering_top_k']} likeliest tokens as candidates; a subtraction is in no weight that is "
        "shown"
    )
    return replace(reading, loss=Loss("policy_gradient"), notes=(*reading.notes, note))


def _former(o: Options) -> Options:
    """The helper's options of before under their successors' names."""
    named = {n: f"tis_{n.removeprefix('mis_')}" for n in o.given if n.startswith("mis_") and n != "mis_veto_threshold"}
    if not named and "use_mis" not in o:
        return o
    given = {**o.given, **{new: o.given[old] for old, new in named.items()}, "use_tis": o["use_mis"]}
    return replace(o, given=given)


def _uncentred(o: Options) -> Reading:
    o = _former(o)
    function = _function(o)
    if "function" not in o:
        _refuse(o)
    notes: tuple[str, ...] = tuple(_around(o))
    if _is_helper(o):
        plan = _helper(o)
        if o["use_rs"] and not o["use_tis"]:
            notes += ("use_rs without use_tis rejects nothing",)
        if not function:
            notes += ("tis_level and the like are the helper's: custom_tis_function_path must name it",)
    elif o["use_tis"] or ("function" in o and "tis_clip" in o):  # a recorded call is a call
        low, high = float(o["tis_clip_low"]), float(o["tis_clip"])
        plan = Plan(weigh(TOKEN, (Reject if "icepop" in function else Clip)(low, high))).flagged("built_in")
    else:
        plan = Plan()
    if o["loss_type"] == "sft_loss":
        return Reading(Plan(), notes=notes)
    high = o["eps_clip_high"] or o["eps_clip"]
    loss = Loss("ppo_clip", low=o["eps_clip"], high=high, dual=o["eps_clip_c"], over="row_means")
    if o["use_rollout_logprobs"]:
        loss = replace(loss, centre="log_mu")
    if o["advantage_estimator"] in ("gspo", "cispo"):
        loss = replace(loss, kind=o["advantage_estimator"], slope="mean")
    if o["use_opsm"]:
        plan = replace(plan, screens=plan.screens * opsm(o["opsm_delta"]))
        if not o["use_rollout_logprobs"]:
            note = "OPSM compares the live policy with the trainer's old one, not with the sampler"
            return Reading(plan, "log_live", "log_pi", loss, (*notes, note))
    return Reading(plan, loss=loss, notes=notes)


# Quirks.


def helper_fails(plan: Plan, situation: Situation) -> Plan:
    """Refuse what the helper raises for."""
    o = situation.options
    if not _is_helper(o):
        return plan
    if plan.normalise and o["tis_level"] == "geometric":
        raise RefusedError("slime: tis_batch_normalize knows no tis_level geometric")
    if not o["use_tis"] and "tis_upper_bound" not in o:
        raise RefusedError("slime: metrics alone still read tis_lower_bound and tis_upper_bound")
    return plan


def mean_of_rows(plan: Plan, _: Situation) -> Plan:
    """Normalise over all rows, of unbounded ratios where a mask drops."""
    if not plan.normalise:
        return plan
    factor = plan.weights.factors[0]
    raw = weigh(clamped_level(factor.level, -SAFE.nats, SAFE.nats)) if isinstance(factor.transform, Reject) else None
    return replace(plan, normalise="rows", mean_of=raw)


# Metrics: means over sequences of the mean of each.


def _rows(values: Tensor, view: View) -> Tensor:
    return view.mean_of_row_means(values, view.batch())


@final
@dataclass(frozen=True)
class _Spread:
    """A level's value, a sequence's on each of its tokens."""

    level: Level
    of: Statistic
    then: Rule = as_it_comes
    rule: Rule = as_it_comes
    fold_rule: Rule = as_it_comes

    def __call__(self, view: View, _: str) -> Tensor:
        batch = view.batch(self.rule)
        x = self.level.fold(self.of(batch), batch.layout)
        spoilt = view.spoilt(self.of, rule=self.rule)
        if self.level.unit != "sequence":
            return _rows(torch.where(spoilt[:, None], torch.nan, self.then(x)), view)
        x = torch.where(spoilt, torch.nan, x)
        x = self.then(self.fold_rule(x) if view.plan.metrics_as_they else x)
        # It stands on each slot of its row and is multiplied by the mask.
        lost = torch.isinf(x) & view.tensors.masked_slots.any(-1) & torch.tensor("folds_multiply" in view.plan.flags)
        return _rows(batch.layout.spread(torch.where(lost, torch.nan, x)), view)


def _unbounded(view: View, factor: Factor) -> Tensor:
    """Log ratio of the factor's level on each token."""
    batch = view.batch()
    x = factor.level.fold(factor.of(batch), batch.layout)
    x = batch.layout.spread(x) if factor.level.unit == "sequence" else x
    return SAFE(x) if view.plan.metrics_as_they and "built_in" not in view.plan.flags else x


def _first(view: View) -> Factor:
    return view.plan.weights.factors[0]


def _share_outside(view: View, name: str) -> Tensor:
    plan = view.plan
    factor = (plan.screens if "rs_mask" in name else plan.weights).factors[0]
    x, t = _unbounded(view, factor), factor.transform
    low, high = (m.log(getattr(t, b)) for b in ("low", "high"))
    return _rows((x < low if name.endswith("low") else x > high).float(), view)


def _weight_after_bounds(view: View, name: str) -> Tensor:
    """The weights after bounds; a mask leaves what it drops as it is, so they are those before bounds."""
    mean, normalised = view.outcome.mean, name.endswith("final")
    if isinstance(_first(view).transform, Reject):
        w = _unbounded(view, _first(view)).exp()
        return _rows(w / mean if normalised and mean is not None else w, view)
    w = view.outcome.alone
    return _rows(w if normalised or mean is None else w * mean, view)


def _norm_factor(view: View, _: str) -> Tensor:
    assert view.outcome.mean is not None
    return _rows(view.outcome.mean.expand(view.tensors.mask.shape), view)


def _share_under_veto(view: View, name: str) -> Tensor:
    batch = view.batch()
    bad = batch.layout.mask & (batch.log_ratio < math.log(view.options["rs_veto_threshold"]))
    return _rows(batch.layout.spread(bad.any(-1)).float() if "_seq_" in name else bad.float(), view)


def _weight_before_bounds(view: View, _: str) -> Tensor:
    spoilt = view.spoilt(log_ratio, torch.exp)[:, None] & torch.tensor("built_in" in view.plan.flags)
    return _rows(torch.where(spoilt, torch.nan, _unbounded(view, _first(view)).exp()), view)


def _mean_distance(view: View, _: str) -> Tensor:
    spoilt = view.spoilt(log_ratio, torch.exp)[:, None]
    return _rows(torch.where(spoilt, torch.nan, torch.expm1(view.batch().log_ratio).abs()), view)


def _share_clipped(view: View, _: str) -> Tensor:
    share = _share_outside(view, "high") + _share_outside(view, "low")
    if not view.plan.metrics_as_they:
        return share
    # Counted is where the weight is not the ratio: a ratio of 0 that a band drops is the same, NaN is not.
    x, w = _unbounded(view, _first(view)).exp(), view.outcome.alone
    return _rows((x != w).float(), view)


EQUALS = {
    "row_means_k1": _Spread(TOKEN, k1),
    "row_means_k3": _Spread(TOKEN, k3),
    "log_ppl_pi": _Spread(GEOMETRIC, m.surprise_pi),
    "ppl_pi": _Spread(GEOMETRIC, m.surprise_pi, torch.exp),
    "log_ppl_mu": _Spread(GEOMETRIC, m.surprise_mu),
    "ppl_mu": _Spread(GEOMETRIC, m.surprise_mu, torch.exp),
    "row_k1": _Spread(GEOMETRIC, k1),
    "abs_row_k1": _Spread(GEOMETRIC, k1, torch.abs),
    "inverse_geometric": _Spread(GEOMETRIC, k1, torch.exp),
    "chi2_token": _Spread(TOKEN, log_ratio, m.chi2, SAFE),
    "chi2_sequence": _Spread(SEQUENCE, log_ratio, m.chi2, fold_rule=SAFE),
    "weight_before_bounds": _weight_before_bounds,
    "weight_after_bounds": _weight_after_bounds,
    "share_outside": _share_outside,
    "share_under_veto": _share_under_veto,
    "share_clipped": _share_clipped,
    "norm_factor": _norm_factor,
    "mean_distance": _mean_distance,
}
"""Its metrics, for forks with the same ones."""

SLIME = read_profile("slime", compose, quirks=(mean_of_rows, helper_fails), equals=EQUALS)
