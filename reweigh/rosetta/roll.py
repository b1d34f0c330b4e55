"""ROLL: `train_infer_correction`, weights and filters by token, segment, geometric mean or sequence."""

import math
from typing import Any

import torch
from torch import Tensor

from reweigh.estimators import Statistic, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, Level, log_ratio, prob_diff
from reweigh.named import naive
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import TURN_GEOMETRIC, prob_diff_from_probs
from reweigh.rosetta.plan import Plan, keep_infinite
from reweigh.rosetta.profile import (
    Conventions,
    Metric,
    Option,
    Options,
    Profile,
    Quirk,
    Reading,
    RefusedError,
    Template,
    View,
    Word,
    flat,
)
from reweigh.rosetta.quirks import probabilities_as_they_are
from reweigh.transforms import AtMost, Screen, Truncate

_LEVELS: dict[str, Level] = {"token": TOKEN, "segment": TURN_GEOMETRIC, "geometric": GEOMETRIC, "sequence": SEQUENCE}


def _level(name: Any) -> Level:
    if name not in _LEVELS:
        raise RefusedError(f"roll: no level {name!r}\nhint: {', '.join(_LEVELS)}")
    return _LEVELS[name]


def _read(options: Options) -> Reading:
    o = flat(options, "train_infer_correction")
    weight, weights, screens = o.get("is_weight") or {}, naive(), naive()
    if weight.get("enabled", False):
        cap = weight.get("upper_bound", 1.2)
        weights = weigh(_level(weight.get("weight_type", "token")), Truncate(math.inf if cap is None else cap))
    for f in o.get("filters") or ():
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
    return Reading(Plan(weights, screens), notes=notes)


QUIRKS = (
    Quirk(
        "infinite_kept",
        "A log-prob of -inf stays: the infinite ratio is capped, or filtered; diff takes the probability as 0. Ours "
        "leaves the mask and is counted.",
        lambda plan, _: probabilities_as_they_are(keep_infinite(plan)),
    ),
    Quirk(
        "infinity_times_padding",
        "Logged means of the geometric and the sequence ratio, which stand on every slot of a row, are nan if a row "
        "with padding has an infinite one. Ours are infinite.",
        lambda plan, _: plan.flagged("infinity_times_padding"),
    ),
)


def _mean(level: Level, of: Statistic, then: m.Then) -> m.Equal:
    """Mean over sequences of the mean over their tokens, of a level's value on each token."""

    def equal(view: View, _: str) -> Tensor:
        batch = view.batch()
        statistic = prob_diff_from_probs if of is prob_diff and view.plan.metrics_as_they else of
        x, padded = then(level.fold(statistic(batch), batch.layout)), ~view.tensors.mask.all(-1)
        if level.unit == "sequence":
            lost = torch.isinf(x) & padded & torch.tensor("infinity_times_padding" in view.plan.flags)
            x = batch.layout.spread(torch.where(lost, torch.nan, x))
        x = torch.where(batch.layout.mask, x, 0)
        return view.mean_over_rows(GEOMETRIC.fold(x, batch.layout), batch)

    return equal


def _share_kept(view: View, _: str) -> Tensor:
    return view.outcome.masked[view.batch().layout.mask].float().mean()


METRICS = (
    *(
        Metric((f"actor/train_infer_{kind}_{name}_mean@sum",), _mean(level, of, then), f"mean {says} of the {name}")
        for name, level in _LEVELS.items()
        for kind, of, then, says in (("ratio", log_ratio, m.ratio, "ratio"), ("diff", prob_diff, m.same, "pi - mu"))
    ),
    Metric(("actor/train_infer_final_mask_mean",), _share_kept, "share of tokens that filters keep"),
    Metric(
        ("actor/*_mask_mean@sum", "actor/is_weight_clipfrac@sum"),
        None,
        "sums over all slots, the mask ignored, so that a share can be over 1",
    ),
)

ROLL = Profile(
    name="roll",
    version="8eb27cc2 (2026-08)",
    known=("8eb27cc2",),
    section="train_infer_correction",
    options=(
        Option("is_weight", None, "enabled, weight_type (token), upper_bound (1.2, pi/mu), detach"),
        Option(
            "filters",
            (),
            "each: enabled, agg_type, ratio_enabled, ratio_low .8, ratio_high 1.2, diff_enabled, diff_low, diff_high",
        ),
    ),
    conventions=Conventions(
        ratio="old policy / sampler",
        bounds="pi/mu, and pi - mu for diff; closed",
        k1="none",
        sequence="the product; geometric and segment are means",
        survivors="the capped weight; 1 without is_weight",
        not_finite="infinite: the cap, or filtered; nan in metrics",
        clamp="none",
        detached="by the option detach",
        denominator="the mask after filters",
        normalise="none",
    ),
    read=_read,
    words=(
        Word("token", "weight_type=token: capped", {"is_weight": {"enabled": True, "weight_type": "token"}}),
        Word(
            "sequence",
            "weight_type=sequence: the product, capped",
            {"is_weight": {"enabled": True, "weight_type": "sequence"}},
        ),
        Word(
            "geometric",
            "weight_type=geometric: the geometric mean, capped",
            {
                "is_weight": {"enabled": True, "weight_type": "geometric"},
            },
        ),
        Word(
            "segment",
            "the geometric mean of a run of tokens of the mask, capped",
            {
                "is_weight": {"enabled": True, "weight_type": "segment"},
            },
        ),
        Word("filter", "a screen; all must pass", {"filters": [{"enabled": True, "agg_type": "token"}]}),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        *(
            Template(
                "weights",
                lambda b, level=level: {
                    "is_weight": {
                        "enabled": True,
                        "weight_type": level,
                        "upper_bound": None if math.isinf(b.high) else b.high,
                    },
                },
            )
            for level in _LEVELS
        ),
        *(
            Template(
                "screens",
                lambda b, level=level: {
                    "filters": [{"enabled": True, "agg_type": level, "ratio_low": b.low, "ratio_high": b.high}],
                },
            )
            for level in _LEVELS
        ),
    ),
)
