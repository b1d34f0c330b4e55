"""ROLL's `train_infer_correction`: weights and filters by token, segment, geometric mean or sequence."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from reweigh.estimators import Statistic, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, Level, log_ratio, prob_diff
from reweigh.named import naive
from reweigh.rosetta.metrics import View
from reweigh.rosetta.parts import TURN_GEOMETRIC, as_it_comes, prob_diff_from_probs
from reweigh.rosetta.plan import (
    Options,
    Plan,
    Reading,
    RefusedError,
    Situation,
    probabilities_as_they_are,
    unknown_word,
)
from reweigh.rosetta.plan import infinite_kept as _infinite_kept
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Screen, Truncate

_LEVELS: dict[str, Level] = {"token": TOKEN, "segment": TURN_GEOMETRIC, "geometric": GEOMETRIC, "sequence": SEQUENCE}


def _level(name: Any) -> Level:
    if name not in _LEVELS:
        raise unknown_word("roll", "level", name, _LEVELS)
    return _LEVELS[name]


_WEIGHT = {"enabled": bool, "weight_type": str, "upper_bound": (int, float), "detach": bool}
_FILTER = {
    "enabled": bool,
    "agg_type": str,
    "ratio_enabled": bool,
    "ratio_low": (int, float),
    "ratio_high": (int, float),
    "diff_enabled": bool,
    "diff_low": (int, float),
    "diff_high": (int, float),
}


def _checked(name: str, table: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """A table of options, each of a name and a type that it has."""
    if not isinstance(table, dict):
        raise RefusedError(f"roll: {name} is a table of options, got {table!r}\nhint: {', '.join(known)}")
    told = cast("dict[str, Any]", table)
    for key, value in told.items():
        if key not in known:
            raise unknown_word("roll", f"{name} option", key, known)
        if value is not None and not isinstance(value, known[key]):
            raise RefusedError(f"roll: {name}.{key} does not take {value!r}\nhint: see its defaults")
    return told


def _compose(o: Options) -> Reading:
    weights, screens = naive(), naive()
    weight = _checked("is_weight", o["is_weight"] or {}, _WEIGHT)
    if weight.get("enabled", False):
        cap = weight.get("upper_bound", 1.2)
        weights = weigh(_level(weight.get("weight_type", "token")), Truncate(math.inf if cap is None else cap))
    for i, told in enumerate(o["filters"] or ()):
        f = _checked(f"filters[{i}]", told, _FILTER)
        if not f.get("enabled", False):
            continue
        level = _level(f.get("agg_type", "token"))
        if f.get("ratio_enabled", True):
            screens = screens * weigh(level, Screen(f.get("ratio_low", 0.8), f.get("ratio_high", 1.2)))
        if f.get("diff_enabled", False):
            screens = screens * weigh(level, AtMost(f.get("diff_high", 0.2)), of=prob_diff)
            screens = screens * weigh(level, AtMost(-f.get("diff_low", -0.2)), of=prob_diff, scale=-1)
    segment = any(f.level is TURN_GEOMETRIC for f in (*weights.factors, *screens.factors))
    notes = ("a segment is a run of tokens of the mask: the batch needs turns",) if segment else ()
    if weight.get("detach") is False:
        notes += ("is_weight.detach=false: the weight carries a gradient",)
    if o["force_disable_old_logprobs_recompute"] and (weights.factors or screens.factors):
        notes += ("force_disable_old_logprobs_recompute: the old policy's log-probs are the live one's, detached",)
    return Reading(Plan(weights, screens), notes=notes)


def infinite_kept(plan: Plan, situation: Situation) -> Plan:
    """Keep infinite ratios, and take probabilities of 0 as they are."""
    return probabilities_as_they_are(_infinite_kept(plan, situation))


def _mean_of_level(view: View, name: str) -> Tensor:
    """Mean over sequences of the mean over their tokens, of a level's ratio or difference on each token."""
    _, kind, level_name, _ = name.removeprefix("actor/train_").split("_")
    level, batch = _LEVELS[level_name], view.batch()
    statistic: Statistic = log_ratio
    if kind == "diff":
        statistic = prob_diff_from_probs if view.plan.metrics_as_they else prob_diff
    x = level.fold(statistic(batch), batch.layout)
    if level in (TOKEN, GEOMETRIC, SEQUENCE):
        spoilt = view.spoilt(statistic, torch.exp if kind == "ratio" and level is TOKEN else as_it_comes)
        x = torch.where(spoilt if level.unit == "sequence" else spoilt[:, None], torch.nan, x)
    x = x.exp() if kind == "ratio" else x
    if level.unit == "sequence":
        padded = view.tensors.masked_slots.any(-1)
        lost = torch.isinf(x) & padded & torch.tensor("multiplied_out" in view.plan.flags)
        x = batch.layout.spread(torch.where(lost, torch.nan, x))
    return view.mean_of_row_means(x, batch)


def _share_kept(view: View, _: str) -> Tensor:
    return view.outcome.masked[view.batch().layout.mask].float().mean()


ROLL = read_profile(
    "roll",
    _compose,
    quirks=(infinite_kept,),
    equals={"mean_of_level": _mean_of_level, "share_kept": _share_kept},
)
