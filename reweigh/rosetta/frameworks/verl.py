"""verl's `algorithm.rollout_correction`, and its policy losses."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Factor, Statistic, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, Level, k1, k2, k3, log_ratio, signed_binary_kl
from reweigh.named import dppo_tv, naive
from reweigh.rosetta.metrics import SAFE, Extreme, View, mean_weight, mean_weight_of_rows, share_beyond
from reweigh.rosetta.parts import geometric_of_clamped, signed_binary_kl_rounded, two_sided_kl
from reweigh.rosetta.plan import Field, Loss, Options, Over, Plan, Reading, RefusedError, Situation, run, unknown_word
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Reject, Screen, Truncate

_LEVELS: dict[str, Level] = {"token": TOKEN, "seq_sum": SEQUENCE, "seq_mean": GEOMETRIC, "seq_max": WORST}
_STATISTICS: dict[str, Statistic] = {"k1": k1, "k2": k2, "k3": k3}
_OVER: dict[str, Over] = {
    "token-mean": "tokens",
    "token-sum": "sum",
    "seq-mean-token-sum": "sums",
    "seq-mean-token-mean": "means",
    "seq-mean-token-sum-norm": "sums_of_width",
}


def _band(text: Any) -> tuple[float, float]:
    """Bounds of `"low_high"`, or of one number, whose low bound is its inverse."""
    low, _, high = str(text).rpartition("_")
    try:
        return (float(low), float(high)) if low else (1 / float(high), float(high))
    except (ValueError, ZeroDivisionError):
        raise RefusedError(f'verl: bounds are a number or "low_high", got {text!r}\nhint: "0.5_2.0", say') from None


def _bound(name: str, value: Any) -> float:
    try:
        bound = float(value)
    except (TypeError, ValueError):
        raise RefusedError(f"verl: {name} must be a number over 0, got {value!r}\nhint: 2.0, say") from None
    if not bound > 0:
        raise RefusedError(f"verl: {name} must be over 0, got {value!r}\nhint: 2.0, say")
    return bound


def _screens(o: Options) -> list[tuple[str, str]]:
    """Each rejection option with its threshold."""
    names = [n.strip() for n in str(o["rollout_rs"] or "").split(",") if n.strip()]
    thresholds = [t.strip() for t in str(o["rollout_rs_threshold"]).split(",") if t.strip()]
    known = o.values["rollout_rs"]
    for n in names:
        if n not in known:
            raise unknown_word("verl", "rollout_rs", n, known, True)
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
    kind, threshold = o.word("rollout_is"), o["rollout_is_threshold"]
    if kind is not None and threshold is not None:
        banded = isinstance(threshold, str) and "_" in threshold
        transform = Reject(*_band(threshold)) if banded else Truncate(_bound("rollout_is_threshold", threshold))
        weights = weigh(TOKEN if kind == "token" else SEQUENCE, transform)
    for name, told in _screens(o):
        level, statistic = name.rsplit("_", 1)
        if statistic == "k1":
            low, high = _band(told)
            if not 0 < low <= high:
                raise RefusedError(f"verl: {name} needs 0 < low <= high, got {told}\nhint: ratios mu/pi, 0.5_2.0, say")
            screens = screens * weigh(_LEVELS[level], Screen(1 / high, 1 / low))
        else:
            screens = screens * weigh(
                _LEVELS[level], AtMost(_bound("rollout_rs_threshold", told)), of=_STATISTICS[statistic]
            )
    normalise = "kept" if o["rollout_is_batch_normalize"] and weights.factors else None
    return Plan(weights, screens, normalise=normalise)


_FORMER_LEVELS = {"token": TOKEN, "sequence": SEQUENCE, "geometric": GEOMETRIC}
_NOW = {"token": "token_k1", "sequence": "seq_sum_k1", "geometric": "seq_mean_k1"}
_VETO = 1e-4  # the default of 0.6.0
_OF_060 = ("rollout_is_level", "rollout_is_mode", "rollout_is_threshold_lower", "rollout_is_veto_threshold")
_OF_061 = ("rollout_token_veto_threshold", "rollout_rs_threshold_lower")
_Former = tuple[Plan, tuple[str, ...]]


def _former(o: Options) -> _Former | None:
    """What options of earlier versions computed, if any is given: their bounds are on pi/mu."""
    cap = o["tis_imp_ratio_cap"]
    if "tis_imp_ratio_cap" in o and (cap or 0) > 0:
        told = f"the same now: rollout_is=token, rollout_is_threshold={cap:g}"
        return Plan(weigh(TOKEN, Truncate(float(cap)))), (told,)
    # One with a word of now is of now: what it has of earlier versions is read by nothing.
    words = str(o["rollout_rs"] or "").split(",")
    if words[0] in o.values["rollout_rs"] or "policy_loss.rollout_correction" in o:
        return None
    if o["rollout_is"] in (True, False) or any(o[n] is not None for n in _OF_060):
        return _of_060(o)
    if words[0] in _FORMER_LEVELS or any(o[n] is not None for n in _OF_061):
        return _of_061(o)
    return None


def _of_060(o: Options) -> _Former:
    high = o["rollout_is_threshold"]
    if "rollout_is_threshold" not in o or high is None:
        return Plan(), ("rollout_is_threshold is not given: in 0.6.0 nothing was computed",)
    if o["rollout_is"] is not True:
        return Plan(), ("rollout_is is not true: in 0.6.0 the weights were logged and not applied",)
    high = _bound("rollout_is_threshold", high)
    low = float(o["rollout_is_threshold_lower"] or 1 / high)
    level, mode = o["rollout_is_level"] or "token", o["rollout_is_mode"] or "truncate"
    veto = o.get("rollout_is_veto_threshold", _VETO)
    weights = weigh(_FORMER_LEVELS[level], Truncate(high) if mode == "truncate" else Reject(low, high))
    if level == "geometric":
        told = ["a geometric mean as the weight has no successor: rollout_rs=seq_mean_k1 screens by it"]
    elif mode == "truncate":
        told = [f"the weight now: rollout_is={level}, rollout_is_threshold={high:g}"]
    else:
        told = [f'the weight now: rollout_is={level}, rollout_is_threshold="{low:g}_{high:g}"']
    return Plan(weights, _vetoed(veto, told)), tuple(told)


def _of_061(o: Options) -> _Former:
    told: list[str] = []
    plan = replace(o, given={**o.given, "rollout_rs": None, "rollout_rs_threshold": None})
    weights = _plan(plan)
    screens, word = naive(), o["rollout_rs"]
    if word is not None:
        if str(word) not in _FORMER_LEVELS:
            raise unknown_word("verl", "rollout_rs", word, (*_FORMER_LEVELS, *o.values["rollout_rs"]), True)
        told_bound = o["rollout_rs_threshold"]
        high = _bound("rollout_rs_threshold", o["rollout_is_threshold"] if told_bound is None else told_bound)
        low = float(o["rollout_rs_threshold_lower"] or 1 / high)
        screens = weigh(_FORMER_LEVELS[str(word)], Screen(low, high))
        at = f"{1 / high:.6g}_{1 / low:.6g}"
        told.append(f'the screen now: rollout_rs={_NOW[str(word)]}, rollout_rs_threshold="{at}", on mu/pi')
    veto = o["rollout_token_veto_threshold"]
    return replace(weights, screens=screens * _vetoed(veto, told)), tuple(told)


def _vetoed(veto: Any, told: list[str]) -> Estimator:
    if not veto:
        return naive()
    told.append(f"the veto, a token ratio under {veto:g} drops its sequence, has no successor")
    return weigh(WORST, AtMost(-math.log(_bound("the veto", veto))), of=k1)


def _compose(o: Options) -> Reading:
    function = str(o.get("function", ""))
    former = None if function else _former(o)
    plan, told = former if former is not None else (_plan(o), ())
    mode = o.get("loss_mode") or function.rpartition("compute_policy_loss_")[2] or "vanilla"
    clip = o["clip_ratio"]
    loss = Loss(
        "ppo_clip",
        low=_or(o.get("clip_ratio_low", clip), clip),
        high=_or(o.get("clip_ratio_high", clip), clip),
        dual=o["clip_ratio_c"],
        over=_OVER.get(o["loss_agg_mode"], "tokens"),
        survivors=bool(function),  # of one call, given the mask that a rejection left; V1 trainers count the one before
        mean_of_kept=True,
        clamp=SAFE.nats,
    )
    if o["loss_agg_mode"] == "seq-mean-token-sum-norm" and o["loss_scale_factor"]:
        loss = replace(loss, over="sums", scale=1 / o["loss_scale_factor"])
    if mode == "dro" and not (o["dro_beta"] or 0) > 0:
        raise RefusedError("verl: loss_mode=dro needs dro_beta over 0\nhint: actor.policy_loss.dro_beta=0.05, say")
    if o["bypass_mode"] and o["router_replay.mode"] == "R2":
        raise RefusedError("verl: bypass_mode with router_replay.mode=R2 is refused\nhint: R3, or bypass_mode=false")
    if function:
        return _recorded(o, mode, plan, loss)
    told = (*told, *_notes(o))
    if o["distillation.enabled"]:
        if not o["distillation_loss.use_task_rewards"] and not o["distillation_loss.use_policy_gradient"]:
            raise RefusedError(
                "verl: distillation without use_task_rewards and use_policy_gradient has no policy loss: nothing is "
                "weighed\nhint: distillation.distillation_loss.use_task_rewards=true keeps it"
            )
        way = "as a policy loss, same weights" if o["distillation_loss.use_policy_gradient"] else "unweighed"
        beside = "beside" if o["distillation_loss.use_task_rewards"] else "in place of"
        told = (*told, f"distillation: its loss stands {beside} the task's, {way}")
    bypass = o["bypass_mode"] or o["bypass_old_logprob_for_rollout"] or o["use_pure_rollout_correction"]
    if not bypass and not o["calculate_log_probs"] and plan.estimator.factors:
        note = "calculate_log_probs=false: the sampler's log-probs are not kept, so nothing is computed or corrected"
        return _loss_of(o, mode, Plan(), loss, (*told, note))
    if bypass and former is None and o["use_v1"]:
        return _bypass_v1(o, mode, loss, told)
    if bypass:
        if "loss_mode" in o and mode not in ("bypass_mode", "vanilla"):
            told = (*told, f"the trainer of before replaces loss_mode={mode} by bypass_mode")
        return _bypass(o, plan, loss, "log_mu", told)
    if mode == "bypass_mode":
        said = "loss_mode=bypass_mode without bypass_mode=true: its weight is of live policy over old one, computed"
        said += (
            " in the loss; what rollout_is computes on the driver is not read: the gap to the sampler is not corrected"
        )
        told = (*told, said)
        return _bypass(o, _inner(o), loss, "log_pi", told)
    return _loss_of(o, mode, plan, loss, told)


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _notes(o: Options) -> tuple[str, ...]:
    unread = [n for n in ("rollout_token_veto_threshold", "rollout_is_veto_threshold") if o[n]]
    if unread and _former(o) is None:
        return (f"{unread[0]}: no version with these options reads it",)
    if o["rollout_is"] is None and "rollout_is_threshold" in o and o["rollout_rs"] is None:
        return ("rollout_is is null: rollout_is_threshold is read by nothing",)
    return ()


def _inner(o: Options) -> Plan:
    """What the options under policy_loss compute; its dataclass has a default of its own, sequence weights."""
    inner = {"rollout_is": "sequence", **(o["policy_loss.rollout_correction"] or {})}
    return _plan(replace(o, given=inner))


def _bypass_v1(o: Options, mode: str, loss: Loss, told: tuple[str, ...]) -> Reading:
    loss = replace(loss, live="log_pi", centre="log_mu")
    if mode == "bypass_mode":
        inner = o["policy_loss.rollout_correction"]
        if inner is None:
            said = (
                "the V1 trainer reads actor.policy_loss.rollout_correction here, which is not given: its own defaults"
            )
            said += " hold (rollout_is=sequence, ppo_clip), whatever algorithm.rollout_correction says"
            told = (*told, said)
        inner_options = replace(o, given={**(inner or {}), "clip_ratio": o["clip_ratio"]})
        return _bypass(inner_options, _inner(o), loss, "log_mu", told)
    asked = [n for n in ("rollout_is", "rollout_rs") if o[n]] + (["loss_type"] if "loss_type" in o else [])
    said = (
        f"bypass_mode with loss_mode={mode}: nothing is applied in the V1 trainer (trainer.use_v1=true, its default): "
    )
    said += "no weight and no rejection is computed"
    said += f"; {', '.join(asked)} {'is' if len(asked) == 1 else 'are'} read by nothing" if asked else ""
    own = "gpg has no ratio at all" if mode == "gpg" else "the loss's own ratio is of the live policy to the sampler"
    remedy = "to apply them: trainer.use_v1=false, or actor.policy_loss.loss_mode=bypass_mode with "
    remedy += "actor.policy_loss.rollout_correction set as well, or bypass_mode=false (decoupled)"
    told = (*told, said, own, remedy)
    reading = _loss_of(o, mode, Plan(), loss, told)
    return replace(reading, mu="log_mu") if reading.mu == "log_pi" else reading


def _bypass(o: Options, plan: Plan, loss: Loss, centre: Field, told: tuple[str, ...]) -> Reading:
    loss = replace(loss, survivors=True)
    note = "bypass: the sampler's log-probs are the old policy's; the weight is of the live policy over it"
    if o["loss_type"] == "reinforce" or o["use_policy_gradient"] or o["use_pure_rollout_correction"]:
        loss = replace(loss, kind="policy_gradient")
    else:
        plan = replace(plan, applied=False)
        note += "; ppo_clip applies no weight, as its own ratio is that to the sampler"
    notes = (note, *told) if centre == "log_mu" else told
    return Reading(plan, loss=replace(loss, live="log_pi", centre=centre), notes=notes)


def _recorded(o: Options, mode: str, plan: Plan, loss: Loss) -> Reading:
    """The reading of one function's call alone."""
    if mode == "bypass_mode" or o["bypass_mode"]:
        return _bypass(o, plan, loss, "log_mu", ())
    return _loss_of(o, mode, plan, loss, ())


def _loss_of(o: Options, mode: str, plan: Plan, loss: Loss, told: tuple[str, ...]) -> Reading:
    """The loss around the weights."""
    if mode in ("dppo_tv", "dppo_kl"):
        cap = o.get("clip_ratio_c", 20.0)  # its default is another one here
        screen = dppo_tv(loss.high, loss.low, cap) if mode == "dppo_tv" else two_sided_kl(loss.high, loss.low, cap)
        if plan.estimator.factors:
            said = (
                "besides, what rollout_is and rollout_rs give of the old policy over the sampler multiplies: what is "
            )
            told = (*told, said + "shown is dppo's own, of the live policy over the old one")
        gradient = replace(loss, kind="policy_gradient")
        return Reading(Plan(screen), "log_live", "log_pi", gradient, told, inside=True)
    if mode == "geo_mean" and plan.weights.factors and plan.weights.unit == "token":
        transform = plan.weights.factors[0].transform
        if isinstance(transform, Reject):
            raise RefusedError(
                "verl: geo_mean takes the geometric mean of the weights of a sequence, and a token that a band zeroed "
                "counts as 1e-10 in it: no composition of ours is that\nhint: rollout_is=sequence, or a cap alone"
            )
        capped = weigh(geometric_of_clamped(0.0, getattr(transform, "high", math.inf)))
        told = (*told, "geo_mean folds the capped token weights to their geometric mean")
        return Reading(replace(plan, weights=capped), loss=loss, notes=told)
    if mode == "gspo":
        return Reading(plan, loss=replace(loss, kind="gspo", dual=None, clamp=10.0), notes=told)
    if mode == "cispo":
        return Reading(plan, loss=replace(loss, kind="cispo"), notes=told)
    if mode in ("sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro"):
        return Reading(plan, notes=told)
    return Reading(plan, loss=loss, notes=told)


# Quirks.


def screens_clamp_tokens(plan: Plan, _: Situation) -> Plan:
    """Clamp log ratios of screens token by token."""
    return replace(plan, screen_rule=SAFE)


def kl_rounded(plan: Plan, _: Situation) -> Plan:
    """Take the binary KL of probabilities in float32, with what is added to them; one that is NaN is over any bound."""

    def change(f: Factor) -> Factor:
        return replace(f, of=_rounded) if f.of is signed_binary_kl else f

    return plan.mapped(change)


def _rounded(batch: Batch) -> Tensor:
    rise = torch.where(batch.log_pi > batch.log_mu, torch.inf, 0)
    kl = signed_binary_kl_rounded(batch)
    return torch.where(torch.isnan(kl), rise, kl)


def mean_of_all(plan: Plan, _: Situation) -> Plan:
    """Normalise over all units."""
    return replace(plan, normalise="all") if plan.normalise else plan


def fails_without_tokens(plan: Plan, situation: Situation) -> Plan:
    """Refuse a batch with no token."""
    if not bool(situation.tensors.mask.any()):
        raise RefusedError("verl: response_mask must contain at least one valid token")
    return plan


def fails_if_all_weigh_zero(plan: Plan, situation: Situation) -> Plan:
    """Refuse a batch of which a band drops every unit."""
    weights = run(replace(plan, normalise=None), situation.tensors).alone
    if plan.weights.factors and bool(situation.tensors.mask.any()) and not bool(weights.any()):
        raise RefusedError("verl: the effective sample size divides by a mean weight of 0")
    return plan


def mean_of_nothing(plan: Plan, _: Situation) -> Plan:
    """Divide the loss by the number of what is left where nothing is."""
    return plan.flagged("mean_of_nothing")


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
    outside = over if name.endswith("high") else under if name.endswith("low") else ~((x >= low) & (x <= high))
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
    quirks=(
        screens_clamp_tokens,
        kl_rounded,
        mean_of_all,
        fails_without_tokens,
        fails_if_all_weigh_zero,
        mean_of_nothing,
    ),
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
