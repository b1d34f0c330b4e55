"""NeMo-RL's importance sampling correction of `loss_fn`, and `grpo.seq_logprob_error_threshold`."""

from dataclasses import replace

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Factor, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, Level
from reweigh.named import naive, token_is
from reweigh.rosetta.metrics import OverTokens, View, log
from reweigh.rosetta.parts import ZeroIfOverflow, fold_of_ratio, k3_reversed, one_if_not_finite
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation, infinite_kept
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Clip, Identity, Reject, Screen


def _level(o: Options) -> Level:
    return SEQUENCE if o["sequence_level_importance_ratios"] else TOKEN


def _plan(o: Options) -> Plan:
    screens = naive()
    if o["seq_logprob_error_threshold"] is not None:
        screens = weigh(GEOMETRIC, AtMost(o["seq_logprob_error_threshold"]), of=fold_of_ratio)
    if not o["use_importance_sampling_correction"]:
        return Plan(screens=screens)
    level, kind = _level(o), o.word("truncated_importance_sampling_type")
    low, high = o["truncated_importance_sampling_ratio_min"], o["truncated_importance_sampling_ratio"]
    if kind is None:
        if high is not None:
            raise RefusedError(
                f"nemo-rl: truncated_importance_sampling_ratio={high:g} without truncated_importance_sampling_type is "
                "refused by the loss\nhint: truncated_importance_sampling_type=tis, which 0.4, 0.5 did without saying"
            )
        return Plan(weigh(level), screens)
    if high is None:
        raise RefusedError("nemo-rl: truncated_importance_sampling_ratio is missing\nhint: a bound over 0, on pi/mu")
    if kind != "tis" and low is None:
        raise RefusedError(f"nemo-rl: {kind} needs truncated_importance_sampling_ratio_min\nhint: a bound on pi/mu")
    if kind == "seq-mask-tis":
        if level is SEQUENCE:
            raise RefusedError("nemo-rl: seq-mask-tis has token weights\nhint: sequence_level_importance_ratios=false")
        return Plan(token_is(), screens, then=weigh(GEOMETRIC, Screen(low or 0.0, high)))
    return Plan(weigh(level, (Clip if kind == "tis" else Reject)(low or 0.0, high)), screens)


def _refuse(o: Options) -> None:
    """Refuse combinations that the loss asserts against."""
    if o["truncated_importance_sampling_type"] and not o["use_importance_sampling_correction"]:
        raise RefusedError(
            "nemo-rl: truncated_importance_sampling_type needs use_importance_sampling_correction=true\nhint: set it"
        )
    low, high = o["truncated_importance_sampling_ratio_min"], o["truncated_importance_sampling_ratio"]
    if o["truncated_importance_sampling_type"] and low is not None and high is not None and low > high:
        raise RefusedError(f"nemo-rl: the lower bound {low:g} is over the upper one {high:g}\nhint: pi/mu")
    if o["sequence_level_importance_ratios"] and o["token_level_loss"]:
        raise RefusedError(
            "nemo-rl: sequence_level_importance_ratios excludes token_level_loss\nhint: token_level_loss=false"
        )
    if o["use_cispo"]:
        for name, bad in (
            ("disable_ppo_ratio", o["disable_ppo_ratio"]),
            ("force_on_policy_ratio", o["force_on_policy_ratio"]),
            ("sequence_level_importance_ratios", o["sequence_level_importance_ratios"]),
            ("ratio_clip_c", o["ratio_clip_c"] is not None),
            ("token_level_loss=false", not o["token_level_loss"]),
        ):
            if bad:
                raise RefusedError(f"nemo-rl: use_cispo excludes {name}\nhint: take one of them out")
    if o["async_grpo.enabled"] and not o["use_importance_sampling_correction"]:
        raise RefusedError(
            "nemo-rl: async_grpo needs use_importance_sampling_correction=true\nhint: loss_fn, set it true"
        )


def _compose(o: Options) -> Reading:
    if "function" not in o:
        _refuse(o)
    plan = _plan(o)
    if o["disable_ppo_ratio"] and not o["force_on_policy_ratio"]:
        note = "disable_ppo_ratio: the loss is -A log pi, with no ratio of its own, no clip; the weight multiplies"
        over = "tokens" if o["token_level_loss"] else "means"
        return Reading(plan, loss=Loss("policy_gradient", over=over), notes=(note,))
    loss = Loss("ppo_clip", low=o["ratio_clip_min"], high=o["ratio_clip_max"], dual=o["ratio_clip_c"])
    if o["token_level_loss"] is False:
        loss = replace(loss, over="means")
    if o["sequence_level_importance_ratios"]:
        loss = replace(loss, kind="gspo", slope="mean", over="means")
    if o["use_cispo"]:
        loss = replace(loss, kind="cispo")
    if o["force_on_policy_ratio"]:
        note = "force_on_policy_ratio: the loss's ratio is 1, so the weight is of the live policy over the sampler"
        return Reading(plan, "log_live", "log_mu", replace(loss, centre="log_live"), (note,))
    return Reading(plan, loss=loss)


# Quirks.


def infinite_or_overflowing_is_zero(plan: Plan, situation: Situation) -> Plan:
    """Lose a ratio that float32 cannot hold before a bound sees it."""
    plan = infinite_kept(plan, situation)

    def change(f: Factor) -> Factor:
        bounded = isinstance(f.transform, (Identity, Clip, Reject))
        return replace(f, transform=ZeroIfOverflow(f.transform)) if bounded else f

    weights = replace(plan, screens=naive(), then=naive()).mapped(change).weights
    return replace(plan, weights=weights).flagged("overflow_is_zero")


def gate_ignores_infinity(plan: Plan, _: Situation) -> Plan:
    """Count an infinite log ratio as 0 in the geometric gate."""
    if not plan.then.factors:
        return plan

    def change(f: Factor) -> Factor:
        return replace(f, of=_finite_log_ratio) if f.level is GEOMETRIC and isinstance(f.transform, Screen) else f

    return replace(plan, then=plan.mapped(change).then)


def _finite_log_ratio(batch: Batch) -> Tensor:
    return one_if_not_finite(batch.log_ratio)


def sum_for_mean(plan: Plan, _: Situation) -> Plan:
    """Log sums of sequences for means."""
    return plan.flagged("sum_for_mean")


# Metrics.


def _logged_weights(view: View) -> Estimator:
    """Weights that it logs: those that apply, or the raw ratio where the correction is off."""
    o = view.options
    if o["use_importance_sampling_correction"]:
        return view.plan.weights
    raw = Identity() if "overflow_is_zero" not in view.plan.flags else ZeroIfOverflow(Identity())
    return weigh(_level(o), raw)


def _sampling_ratio(view: View, _: str) -> Tensor:
    batch = view.outcome.batch
    w, gate = _logged_weights(view)(batch), view.plan.then(batch)
    if w.unit != "sequence":
        return torch.where(gate.keep_tokens, w.per_token, 0)[batch.layout.mask].mean()
    if "sum_for_mean" not in view.plan.flags:
        return view.mean_over_rows(w.per_unit, view.batch())
    # A sequence with no token weighs what the transform makes of a ratio of 1.
    log_w, keep = _logged_weights(view).factors[0].transform(torch.zeros(1), torch.ones(1, dtype=torch.bool))
    empty = float(torch.where(keep, log_w.exp(), 0))
    return torch.where(~batch.layout.mask.any(-1), empty, w.per_unit).sum()


def _share_outside(view: View, _: str) -> Tensor:
    o, batch = view.options, view.outcome.batch
    if o["truncated_importance_sampling_type"] == "seq-mask-tis":
        kept, live = view.plan.then(batch).keep_tokens, batch.layout.mask.any(-1)
        return (~kept.any(-1) & live).sum() / live.sum()
    low, high = o["truncated_importance_sampling_ratio_min"] or 0.0, o["truncated_importance_sampling_ratio"]
    level = _level(o)
    x = level.fold(batch.log_ratio, batch.layout)
    if "overflow_is_zero" in view.plan.flags:
        x = torch.where(torch.isinf(x.exp()) | torch.isnan(x), -torch.inf, x)
    outside = (x > log(high)) | (x < log(low))
    if level is TOKEN or "sum_for_mean" in view.plan.flags:
        outside = batch.layout.spread(outside) if level is SEQUENCE else outside
        return outside[batch.layout.mask].float().mean()
    return view.mean_over_rows(outside.float(), batch)


def _sequence_error(view: View, name: str) -> Tensor:
    batch = view.batch()
    rows, live = GEOMETRIC.fold(fold_of_ratio(batch), batch.layout), batch.layout.lengths > 0
    rows = torch.where(view.spoilt(fold_of_ratio), torch.nan, rows)
    if name.endswith("_after_mask"):
        live = live & view.outcome.masked.any(-1)
    if not bool(live.any()):
        return torch.zeros(())
    return {"max": rows[live].max, "mean": rows[live].mean, "min": rows[live].min}[name.partition("_")[0]]()


def _dropped_sequences(view: View, _: str) -> Tensor:
    return (view.batch().layout.mask.any(-1) & ~view.outcome.masked.any(-1)).sum().float()


def _sequences(view: View, _: str) -> Tensor:
    return view.batch().layout.mask.any(-1).sum().float()


NEMO_RL = read_profile(
    "nemo_rl",
    _compose,
    quirks=(infinite_or_overflowing_is_zero, gate_ignores_infinity, sum_for_mean),
    equals={
        "mean_fold": OverTokens(fold_of_ratio),
        "mean_k3_reversed": OverTokens(k3_reversed),
        "sampling_ratio": _sampling_ratio,
        "share_outside": _share_outside,
        "sequence_error": _sequence_error,
        "dropped_sequences": _dropped_sequences,
        "sequences": _sequences,
    },
)
