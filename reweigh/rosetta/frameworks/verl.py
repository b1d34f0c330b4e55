"""verl's `algorithm.rollout_correction`, and its policy losses."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reweigh.estimators import Statistic, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, Level, k1, k2, k3, log_ratio
from reweigh.named import dppo_kl, dppo_tv, naive
from reweigh.rosetta.metrics import SAFE, Extreme, View, mean_weight, mean_weight_of_rows, share_beyond
from reweigh.rosetta.plan import Loss, Options, Over, Plan, Reading, RefusedError, Situation
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Reject, Screen, Truncate

_LEVELS: dict[str, Level] = {"token": TOKEN, "seq_sum": SEQUENCE, "seq_mean": GEOMETRIC, "seq_max": WORST}
_STATISTICS: dict[str, Statistic] = {"k1": k1, "k2": k2, "k3": k3}
_OVER: dict[str, Over] = {"token-mean": "tokens", "seq-mean-token-sum": "sums", "seq-mean-token-mean": "means"}


def _band(text: Any) -> tuple[float, float]:
    """Bounds of `"low_high"`, or of one number, whose low bound is its inverse."""
    low, _, high = str(text).rpartition("_")
    return (float(low), float(high)) if low else (1 / float(high), float(high))


def _screens(o: Options) -> list[tuple[str, str]]:
    """Each rejection option with its threshold."""
    names = [n.strip() for n in str(o["rollout_rs"] or "").split(",") if n.strip()]
    thresholds = [t.strip() for t in str(o["rollout_rs_threshold"]).split(",") if t.strip()]
    known = o.values["rollout_rs"]
    unknown = [n for n in names if n not in known]
    if unknown:
        raise RefusedError(f"verl: no rollout_rs {unknown[0]!r}\nhint: {', '.join(known)}")
    if names and o["rollout_rs_threshold"] is None:
        raise RefusedError("verl: rollout_rs needs rollout_rs_threshold\nhint: one value, or one for each option")
    if len(thresholds) == 1:
        thresholds *= max(1, len(names))
    if names and len(thresholds) != len(names):
        raise RefusedError(
            f"verl: {len(names)} rollout_rs options, {len(thresholds)} thresholds\nhint: one value, or one for each"
        )
    return list(zip(names, thresholds, strict=False))


def _plan(o: Options) -> Plan:
    weights, screens = naive(), naive()
    kind, threshold = o["rollout_is"], o["rollout_is_threshold"]
    if kind is not None and threshold is not None:
        if kind not in o.values["rollout_is"]:
            raise RefusedError(f"verl: rollout_is must be token, sequence or null, got {kind!r}\nhint: see docs")
        banded = isinstance(threshold, str) and "_" in threshold
        transform = Reject(*_band(threshold)) if banded else Truncate(float(threshold))
        weights = weigh(TOKEN if kind == "token" else SEQUENCE, transform)
    for name, told in _screens(o):
        level, statistic = name.rsplit("_", 1)
        if statistic == "k1":
            low, high = _band(told)
            screens = screens * weigh(_LEVELS[level], Screen(1 / high, 1 / low))
        else:
            screens = screens * weigh(_LEVELS[level], AtMost(float(told)), of=_STATISTICS[statistic])
    normalise = "kept" if o["rollout_is_batch_normalize"] and weights.factors else None
    return Plan(weights, screens, normalise=normalise)


def _compose(o: Options) -> Reading:
    plan, function = _plan(o), str(o.get("function", ""))
    mode = o.get("loss_mode") or function.rpartition("compute_policy_loss_")[2]
    clip = o["clip_ratio"]
    loss = Loss(
        "ppo_clip",
        low=o.get("clip_ratio_low", clip),
        high=o.get("clip_ratio_high", clip),
        dual=o["clip_ratio_c"],
        over=_OVER.get(o["loss_agg_mode"], "tokens"),
        clamp=SAFE.nats,
    )
    if mode in ("dppo_tv", "dppo_kl"):
        cap = o.get("clip_ratio_c", 20.0)  # its default is another one here
        screen = dppo_tv(loss.high, loss.low, cap) if mode == "dppo_tv" else dppo_kl(loss.high, cap)
        return Reading(Plan(screen), "log_live", "log_pi", replace(loss, kind="policy_gradient"), inside=True)
    if mode == "gspo":
        return Reading(plan, loss=replace(loss, kind="gspo", dual=None))
    if mode == "cispo":
        return Reading(plan, loss=replace(loss, kind="cispo"))
    if mode == "bypass_mode" or o["bypass_mode"]:
        loss = replace(loss, survivors=True)
        note = "bypass: the sampler's log-probs are the old policy's; the weight is of the live policy over it"
        if o["loss_type"] == "reinforce":
            loss = replace(loss, kind="policy_gradient")
        else:
            plan = replace(plan, applied=False)
            note += "; ppo_clip applies no weight, as its own ratio is that to the sampler"
        return Reading(plan, loss=replace(loss, live="log_pi", centre="log_mu"), notes=(note,))
    return Reading(plan, loss=loss)


# Quirks.


def screens_clamp_tokens(plan: Plan, _: Situation) -> Plan:
    """Clamp log ratios of screens token by token."""
    return replace(plan, screen_rule=SAFE)


def mean_of_all(plan: Plan, _: Situation) -> Plan:
    """Normalise over all units."""
    return replace(plan, normalise="all") if plan.normalise else plan


def fails_without_tokens(plan: Plan, situation: Situation) -> Plan:
    """Refuse a batch with no token."""
    if not bool(situation.tensors.mask.any()):
        raise RefusedError("verl: response_mask must contain at least one valid token")
    return plan


# Metrics.


def _share_outside(view: View, name: str) -> Tensor:
    threshold = view.options["rollout_is_threshold"]
    low, high = _band(threshold) if isinstance(threshold, str) else (1 / float(threshold), float(threshold))
    ends = (0.0, high) if name.endswith("high") else (low, math.inf)
    return share_beyond(view, TOKEN if view.options["rollout_is"] == "token" else SEQUENCE, *ends)


def _extreme_weight(view: View, name: str) -> Tensor:
    sign = +1 if name.endswith("max") else -1
    if view.options["rollout_is"] == "token":
        w = view.outcome.alone[view.batch().layout.mask] * _norm_factor(view, name)
        return w.max() if sign > 0 else w.min()
    value = Extreme(SEQUENCE, log_ratio, sign)(view, name)
    return (value.clamp(max=SAFE.nats) if sign > 0 and view.plan.metrics_as_they else value).exp()


def _mean_weight(view: View, name: str) -> Tensor:
    return mean_weight(view, name) * _norm_factor(view, name)


def _mean_weight_of_rows(view: View, name: str) -> Tensor:
    return mean_weight_of_rows(view, name) * _norm_factor(view, name)


def _norm_factor(view: View, _: str) -> Tensor:
    return torch.as_tensor(1.0 if view.outcome.mean is None else view.outcome.mean)


def _screen_values(view: View, name: str) -> tuple[Tensor, Tensor, tuple[str, str], Any]:
    """Values of the rejection statistic that a metric's name speaks of, which units exist, and the option."""
    option = next(s for s in _screens(view.options) if name.startswith(f"rollout_corr/rollout_rs_{s[0]}_"))
    level, kind = option[0].rsplit("_", 1)
    batch = view.tensors.batch(view.plan.screen_rule)
    x = _LEVELS[level].fold(_STATISTICS[kind](batch), batch.layout)
    return x, _LEVELS[level].valid(batch.layout), option, batch


def _screen_extreme(view: View, name: str) -> Tensor:
    x, units, _, _ = _screen_values(view, name)
    return x[units].max() if name.endswith("max") else x[units].min()


def _screen_mean(view: View, name: str) -> Tensor:
    x, _, option, batch = _screen_values(view, name)
    x = x if option[0].startswith("token") else batch.layout.spread(x)
    return x[batch.layout.mask].mean()


def _screen_share(view: View, name: str) -> Tensor:
    x, units, (option, threshold), batch = _screen_values(view, name)
    low, high = map(math.log, _band(threshold)) if option.endswith("k1") else (-math.inf, float(threshold))
    over, under = x > high, x < low
    outside = over if name.endswith("high") else under if name.endswith("low") else over | under
    if name.endswith("masked_fraction") and not option.startswith("token"):
        return batch.layout.spread(outside)[batch.layout.mask].float().mean()
    return outside[units].float().mean()


def _screened(view: View, name: str) -> Tensor:
    batch = view.tensors.batch(view.plan.screen_rule)
    lost = batch.layout.mask & ~view.plan.screens(batch).keep_tokens
    if "_seq_" in name:
        return view.mean_over_rows(lost.any(-1).float(), batch)
    return lost[batch.layout.mask].float().mean()


VERL = read_profile(
    "verl",
    _compose,
    quirks=(screens_clamp_tokens, mean_of_all, fails_without_tokens),
    equals={
        "mean_weight_unnormalised": _mean_weight,
        "mean_weight_of_rows_unnormalised": _mean_weight_of_rows,
        "extreme_weight": _extreme_weight,
        "share_outside": _share_outside,
        "norm_factor": _norm_factor,
        "screen_share": _screen_share,
        "screen_mean": _screen_mean,
        "screen_extreme": _screen_extreme,
        "screened": _screened,
    },
)
