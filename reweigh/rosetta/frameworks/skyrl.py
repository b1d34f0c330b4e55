"""SkyRL's `trainer.algorithm.off_policy_correction`, and the losses that correct by themselves."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from reweigh.estimators import Estimator, Factor, weigh
from reweigh.layout import Padded
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, k1, log_ratio, signed_binary_kl
from reweigh.named import dppo_tv, naive, token_mis
from reweigh.rosetta.metrics import SAFE, Extreme, OverTokens, View, log
from reweigh.rosetta.parts import (
    NanPasses,
    OrNan,
    signed_binary_kl_from_probs,
    signed_binary_kl_rounded,
    two_sided_kl,
)
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation, probabilities_as_they_are
from reweigh.rosetta.plan import infinite_kept as _infinite_kept
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Screen, Truncate

_LEVELS = {"token": TOKEN, "sequence": SEQUENCE}
_BANDS = {"product": ("product", SEQUENCE), "geometric": ("geo", GEOMETRIC)}


def _band(o: Options) -> tuple[float, float]:
    """Bounds of the sequence mask."""
    short, _ = _BANDS[o["sequence_mask_metric"]]
    return o[f"{short}_mask_low"], o[f"{short}_mask_high"]


def _deprecated(o: Options) -> Options:
    """Options that are deprecated and read under their successors' names."""
    if not o["use_tis"]:
        return o
    cap = o["tis_imp_ratio_cap"]
    if not cap > 0:
        raise RefusedError(
            f"skyrl: use_tis with tis_imp_ratio_cap={cap:g}, its default, would bound every ratio at {cap:g}\n"
            "hint: off_policy_correction.tis_ratio_type=token, token_tis_ratio_clip_high=2.0"
        )
    return replace(o, given={**o.given, "tis_ratio_type": "token", "token_tis_ratio_clip_high": cap})


def _plan(o: Options) -> Plan:
    screens, weights, then = naive(), naive(), naive()
    high, low = o["outlier_token_is_threshold_high"], o["outlier_token_is_threshold_low"]
    if high is not None:
        screens = screens * weigh(WORST, Screen(0.0, high))
    if low is not None:
        screens = screens * weigh(WORST, AtMost(-log(low)), of=k1)
    low, high = o["token_mask_is_threshold_low"], o["token_mask_is_threshold_high"]
    if low is not None and high is not None:  # with one of them it masks nothing
        screens = screens * weigh(TOKEN, Screen(low, high))
    kind = o.word("tis_ratio_type")
    if kind is not None:
        weights = weigh(_LEVELS[kind], Truncate(o[f"{kind}_tis_ratio_clip_high"]))
    metric = o.word("sequence_mask_metric")
    if metric is not None:
        then = weigh(_BANDS[metric][1], Screen(*_band(o)))
    return Plan(weights, screens, screens_first=True, then=then)


def _asked(o: Options) -> list[str]:
    """Name what is asked of off_policy_correction."""
    names = ["tis_ratio_type", "sequence_mask_metric", "outlier_token_is_threshold_low"]
    names += ["outlier_token_is_threshold_high", "token_mask_is_threshold_low", "token_mask_is_threshold_high"]
    return [n for n in names if o[n] is not None]


def _compose(o: Options) -> Reading:
    o = _deprecated(o)
    plan, kind = _plan(o), o.word("policy_loss_type")
    if kind in ("clip_cov", "kl_cov", "cross_entropy", "importance_sampling"):
        asked = _asked(o)
        if kind.endswith("_cov") and {"tis_ratio_type", "sequence_mask_metric"} & set(asked):
            raise RefusedError(f"skyrl: {kind} with {', '.join(asked)} is refused\nhint: policy_loss_type=regular")
        unread = (f"{kind} reads nothing of off_policy_correction: {', '.join(asked)} does nothing",) if asked else ()
        if kind == "importance_sampling":
            unread += ("its own ratio, live to old, is the weight, unbounded; the gap of old to sampler stays",)
            return Reading(Plan(), loss=Loss("ratio", over="sum"), notes=unread)
        return Reading(Plan(), notes=unread)
    one_sided = (o["token_mask_is_threshold_low"] is None) != (o["token_mask_is_threshold_high"] is None)
    notes = ("one token_mask threshold without the other masks nothing",) if one_sided else ()
    if plan.screens.factors and (plan.weights.factors or plan.then.factors):
        notes += ("its later stages see only the tokens that the earlier left; a product reads them all",)
    low, high = o["eps_clip_low"], o["eps_clip_high"]
    loss = Loss("ppo_clip", low=low, high=high, over="sum", clamp=SAFE.nats)
    if kind == "dual_clip":
        loss = replace(loss, dual=o["clip_ratio_c"])
    elif kind == "gspo":
        loss = replace(loss, kind="gspo", clamp=10.0)
    elif kind == "cispo":
        rollout = o["cispo_anchor"] == "rollout"
        if rollout and o["tis_ratio_type"]:
            raise RefusedError("skyrl: cispo_anchor=rollout corrects already\nhint: tis_ratio_type=null")
        loss = replace(loss, kind="cispo", low=o["cispo_eps_clip_low"], high=o["cispo_eps_clip_high"])
        loss = replace(loss, centre="log_mu" if rollout else "log_pi")
    elif kind == "rollout_is":
        loss = replace(loss, kind="policy_gradient")
        return _twice(o, Reading(Plan(token_mis(1 - low, 1 + high)), "log_live", "log_mu", loss, notes, inside=True))
    elif kind == "dppo":
        down, up = o["delta_low"], o["delta_high"]
        screen = two_sided_kl(up, down) if o["dppo_type"] == "binary_kl" else dppo_tv(up, down)
        loss = replace(loss, kind="ratio", centre="log_mu")
        return _twice(o, Reading(Plan(screen), "log_live", "log_mu", loss, notes, inside=True))
    if kind == "sapo":
        return Reading(plan, notes=notes)
    return Reading(plan, loss=loss, notes=notes)


def _twice(o: Options, reading: Reading) -> Reading:
    """Say that a loss with a ratio to the sampler is weighed by one once more."""
    if o["tis_ratio_type"] is None:
        asked = _asked(o)
        told = f"besides, {', '.join(asked)} drops by the ratio of old to sampler" if asked else ""
        return replace(reading, notes=(*reading.notes, told)) if told else reading
    kind = o["policy_loss_type"]
    told = (
        f"correcting twice: {kind} has the ratio to the sampler already, and tis_ratio_type={o['tis_ratio_type']} "
        "multiplies by the old policy's ratio to it once more; what is shown is the loss's own: set tis_ratio_type=null"
    )
    return replace(reading, notes=(*reading.notes, told))


# Quirks.


def infinite_kept(plan: Plan, situation: Situation) -> Plan:
    """Keep infinite ratios, in the loss as well."""
    kept = probabilities_as_they_are(_infinite_kept(plan, situation)).flagged("infinite_live")

    def change(f: Factor) -> Factor:  # an outlier is one that is over a bound, which NaN is not
        return replace(f, transform=NanPasses(f.transform)) if f.level is WORST else f

    return replace(kept, screens=replace(kept, weights=naive(), then=naive()).mapped(change).screens)


def kl_rounded(plan: Plan, _: Situation) -> Plan:
    """Take the binary KL of probabilities in float32, with what is added to them; one that is NaN passes."""

    def change(f: Factor) -> Factor:
        kl = f.of in (signed_binary_kl, signed_binary_kl_from_probs)
        return replace(f, of=signed_binary_kl_rounded, transform=NanPasses(f.transform)) if kl else f

    return plan.mapped(change)


def infinity_times_zero(plan: Plan, _: Situation) -> Plan:
    """Let a masked token of infinite ratio spoil its sequence."""

    def change(f: Factor) -> Factor:
        if f.level.unit != "sequence" or f.of is not log_ratio:
            return f
        return replace(f, of=OrNan(log_ratio), transform=NanPasses(f.transform))

    changed = replace(plan, screens=naive()).mapped(change)
    return replace(changed, screens=plan.screens).flagged("folds_multiply", "multiplied_out")


# Metrics.


def _left(view: View) -> Tensor:
    """The mask that the later stages saw."""
    return view.outcome.left & view.batch().layout.mask


def _share_capped(view: View, name: str) -> Tensor:
    mask, ratio = _left(view), view.outcome.batch.log_ratio
    kind = "token" if "token" in name else "sequence"
    cap = log(view.options[f"{kind}_tis_ratio_clip_high"])
    if kind == "token":
        return (ratio > cap)[mask].sum() / mask.sum().clamp(min=1)
    rows = SEQUENCE.fold(torch.where(mask, ratio, 0), Padded(mask)) > cap
    return view.mean_over_rows((rows & ~_spoilt(view)).float(), view.batch())


def _spoilt(view: View) -> Tensor:
    """Sequences that a masked token of infinite ratio has made NaN, if that quirk is on."""
    lost = ~_left(view) & ~torch.isfinite(view.tensors.log_ratio)
    return lost.any(-1) & torch.tensor("folds_multiply" in view.plan.flags)


def _share_of_rows(view: View, name: str) -> Tensor:
    """Share of sequences that a stage drops: by its high bound, its low bound, or either."""
    o, veto = view.options, name.startswith("outlier")
    mask = view.batch().layout.mask if veto else _left(view)
    layout = Padded(mask)
    x = torch.where(mask, (view.batch(SAFE) if veto else view.outcome.batch).log_ratio, 0)
    if veto:
        low, high = o["outlier_token_is_threshold_low"], o["outlier_token_is_threshold_high"]
        top, bottom = WORST.fold(torch.where(mask, x, -torch.inf), layout), -WORST.fold(-x, layout)
    else:
        low, high = _band(o)
        top = bottom = _BANDS[o["sequence_mask_metric"]][1].fold(x, layout)
    over = top > (math.inf if high is None else log(high))
    under = bottom < (-math.inf if low is None else log(low))
    gone = over if name.endswith("over_high_ratio") else under if name.endswith("under_low_ratio") else over | under
    gone = gone & mask.any(-1)
    if not veto:
        gone = gone & ~_spoilt(view)
    return view.mean_over_rows(gone.float(), view.batch())


def _share_of_tokens(view: View, _: str) -> Tensor:
    """Share of tokens that the token mask drops."""
    o, mask, ratio = view.options, view.batch().layout.mask, view.batch(SAFE).log_ratio
    low, high = log(o["token_mask_is_threshold_low"]), log(o["token_mask_is_threshold_high"])
    outside = ~((ratio >= low) & (ratio <= high)) & mask
    for f in view.plan.screens.factors:  # what the veto has dropped is no longer there
        if f.level is WORST:
            kept = Estimator((f,))(view.tensors.batch(view.plan.screen_rule)).keep_tokens
            outside, mask = outside & kept, mask & kept
    return outside.sum() / mask.sum().clamp(min=1)


SKYRL = read_profile(
    "skyrl",
    _compose,
    quirks=(infinite_kept, kl_rounded, infinity_times_zero),
    equals={
        "mean_ratio": OverTokens(log_ratio, torch.exp, SAFE),
        "max_ratio": Extreme(TOKEN, log_ratio, +1, torch.exp, SAFE),
        "share_capped": _share_capped,
        "share_of_rows": _share_of_rows,
        "share_of_tokens": _share_of_tokens,
    },
)
