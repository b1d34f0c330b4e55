"""What SkyRL logs of its off-policy correction, out of our functions."""

import math

import torch
from torch import Tensor

from reweigh.estimators import Estimator
from reweigh.layout import Padded
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, log_ratio
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import Clamped
from reweigh.rosetta.profile import Metric, View, flat

BANDS = {"product": ("product", SEQUENCE, 0.5, 2.0), "geometric": ("geo", GEOMETRIC, 0.99, 1.01)}
_CLAMP = Clamped(20.0)


def _left(view: View) -> Tensor:
    """The mask that the later stages saw."""
    return view.outcome.left & view.batch().layout.mask


def _capped(view: View, name: str) -> Tensor:
    mask, ratio = _left(view), view.outcome.batch.log_ratio
    cap = m.log(view.situation.reading.plan.weights.factors[0].transform.high)  # pyright: ignore
    if "token" in name:
        return (ratio > cap)[mask].float().mean()
    rows = (SEQUENCE.fold(torch.where(mask, ratio, 0), Padded(mask)) > cap).float()
    return view.mean_over_rows(rows, view.batch())


def _share_of_rows(which: str) -> m.Equal:
    """Share of sequences that a stage drops: by its high bound, its low bound, or either."""

    def equal(view: View, name: str) -> Tensor:
        o = flat(view.situation.options, "off_policy_correction")
        veto = name.startswith("outlier")
        mask, batch = view.batch().layout.mask if veto else _left(view), view.outcome.batch
        layout = Padded(mask)
        x = torch.where(mask, view.batch(_CLAMP).log_ratio if veto else batch.log_ratio, 0)
        if veto:
            low, high = o.get("outlier_token_is_threshold_low"), o.get("outlier_token_is_threshold_high")
            top, bottom = WORST.fold(torch.where(mask, x, -torch.inf), layout), -WORST.fold(-x, layout)
        else:
            short, level, low, high = BANDS[o["sequence_mask_metric"]]
            low, high = o.get(f"{short}_mask_low", low), o.get(f"{short}_mask_high", high)
            top = bottom = level.fold(x, layout)
        over = top > (math.inf if high is None else m.log(high))
        under = bottom < (-math.inf if low is None else m.log(low))
        gone = (over if which == "high" else under if which == "low" else over | under) & mask.any(-1)
        if not veto and "infinity_times_zero_row" in view.plan.flags:
            spoilt = view.tensors.mask & ~mask & ~torch.isfinite(view.tensors.log_ratio)
            gone = gone & ~spoilt.any(-1)
        return view.mean_over_rows(gone.float(), view.batch())

    return equal


def _token_masked(view: View, _: str) -> Tensor:
    o, mask = flat(view.situation.options, "off_policy_correction"), view.batch().layout.mask
    ratio = view.batch(_CLAMP).log_ratio
    low, high = m.log(o["token_mask_is_threshold_low"]), m.log(o["token_mask_is_threshold_high"])
    outside = ((ratio < low) | (ratio > high)) & mask
    for f in view.plan.screens.factors:  # what the veto has dropped is no longer there
        if f.level is WORST:
            kept = Estimator((f,))(view.tensors.batch(view.plan.screen_rule)).keep_tokens
            outside, mask = outside & kept, mask & kept
    return outside.sum() / mask.sum().clamp(min=1)


METRICS = (
    Metric(("is_ratio_mean",), m.over_tokens(log_ratio, m.ratio, _CLAMP), "mean token ratio"),
    Metric(("is_ratio_max",), m.extreme(TOKEN, log_ratio, +1, m.ratio, _CLAMP), "largest token ratio"),
    Metric(("is_ratio_min", "is_ratio_std"), None, "over all slots, padding as a ratio of 0: of no set of tokens"),
    Metric(("tis_token_clip_high_ratio", "tis_seq_clip_high_ratio"), _capped, "share of units over the cap"),
    Metric(("*_masked_ratio",), _share_of_rows("any"), "share of sequences that the stage drops"),
    Metric(("*_over_high_ratio",), _share_of_rows("high"), "share of sequences over its high bound"),
    Metric(("*_under_low_ratio",), _share_of_rows("low"), "share of sequences under its low bound"),
    Metric(("token_mask_ratio",), _token_masked, "share of tokens that the token mask drops"),
    Metric(("clip_ratio", "cispo/*", "importance_ratio"), None, "of the loss's own ratio"),
)
