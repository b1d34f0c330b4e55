"""prime-rl's losses: `ipo`, which masks by the change of probability, `icepop`, `ppo`, `cispo`, and those of before."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from reweigh.estimators import Factor, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, k1, k3, prob_diff, prob_gap
from reweigh.named import dppo_tv, token_is
from reweigh.rosetta.metrics import View
from reweigh.rosetta.parts import NanPasses, Within
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, Situation, probabilities_as_they_are
from reweigh.rosetta.plan import infinite_kept as _infinite_kept
from reweigh.rosetta.plan import multiplied_out as _multiplied_out
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import AtMost, Clip, Reject, Screen, Truncate

_OF_08 = ("dppo_mask_low", "dppo_mask_high", "ipo_threshold", "kl_tau")
_OF_05 = ("ipo_mask_low", "ipo_mask_high")
_OF_04: Mapping[str, float] = {
    "token_mask_low": 0.125,
    "token_mask_high": 8.0,
    "sequence_clip_high": 10.0,
    "geo_mask_low": 0.1,
    "geo_mask_high": 10.0,
    "sequence_mask_low": 0.0,
    "sequence_mask_high": 100.0,
}  # with their defaults
_FELL = 0.2  # by which pi may be under mu in a distillation
_BOUNDS = {"icepop": (0.2, 5.0), "ppo": (0.8, 1.2), "cispo": (0.0, 5.0)}


def _compose(o: Options) -> Reading:
    kind = o["type"]
    loss = Loss("ratio", live="log_pi", centre="log_mu", scale=o["adv_tau"])
    if o["algo.type"] in ("opd", "opsd"):
        return _distilled(loss)
    if o["algo.type"] == "sft":
        raise RefusedError(
            "prime-rl: orchestrator.algo.type=sft trains by cross-entropy: nothing is weighed\nhint: grpo weighs"
        )
    if any(o[n] is not None for n in (*_OF_04, *_OF_05, "ratio_type", "clip_ratio")):
        return _long_before(o, loss)
    if kind == "default" or any(n in o for n in _OF_08):
        told = kind if "type" in o else "ipo" if "ipo_threshold" in o else "default"
        return _before(o, told, loss)
    _refuse(o, kind)
    if kind == "ipo":
        cap = o["max_importance_ratio"]
        plan = Plan(weigh(TOKEN, AtMost(o["eps"]), of=prob_gap) * weigh(TOKEN, Truncate(cap)))
        notes = ("the ratio of a kept token carries the gradient, capped ones too",)
        if o["score_centering"]:
            notes += (
                "score_centering: the sampler's expected score, weighed alike, is subtracted: centred(...) of it, with "
                "the recorded sampling mask as candidates, complete=True; a subtraction is in no weight that is shown",
            )
        return Reading(plan, loss=loss, notes=notes)
    low, high = (_BOUNDS[kind][i] if o[n] is None else o[n] for i, n in enumerate(("ratio_low", "ratio_high")))
    if low > high:
        raise RefusedError(f"prime-rl: ratio_low {low:g} is over ratio_high {high:g}\nhint: bounds on pi/mu")
    if kind == "icepop":
        note = "the ratio of a kept token carries the gradient"
        return Reading(Plan(weigh(TOKEN, Reject(low, high))), loss=loss, notes=(note,))
    if kind == "cispo":
        gradient = replace(loss, kind="policy_gradient")
        return Reading(Plan(weigh(TOKEN, Clip(low, high))), loss=gradient, notes=("the weight is detached",))
    note = (
        "the loss's own ratio is of the live policy to the sampler, and its clip is all there is: no weight beside it"
    )
    return Reading(Plan(), loss=replace(loss, kind="ppo_clip", low=1 - low, high=high - 1), notes=(note,))


def _distilled(loss: Loss) -> Reading:
    """Read on-policy distillation: log ref - log pi stands where advantages do elsewhere."""
    kept = weigh(TOKEN, AtMost(_FELL), of=prob_diff, scale=-1)
    note = "orchestrator.algo.type is a distillation: its own loss, with log ref - log pi in place of the advantage; "
    note += "trainer.loss is not read for it"
    return Reading(Plan(kept * token_is()), loss=replace(loss, penalty=1e-3), notes=(note,))


def _refuse(o: Options, kind: str) -> None:
    if kind == "custom":
        raise RefusedError(
            f"prime-rl: cannot tell what type=custom ({o['import_path']}) computes\nhint: ipo, icepop, ppo, cispo"
        )
    of = {
        "ipo": ("eps", "max_importance_ratio", "score_centering"),
        "ppo": ("ratio_low", "ratio_high", "max_importance_ratio"),
    }
    allowed = of.get(kind, ("ratio_low", "ratio_high"))
    for name in ("eps", "max_importance_ratio", "score_centering", "ratio_low", "ratio_high"):
        if name in o and name not in allowed and o[name] not in (None, False):
            mine = [k for k in ("ipo", "icepop", "ppo", "cispo") if name in of.get(k, ("ratio_low", "ratio_high"))]
            raise RefusedError(f"prime-rl: type={kind} has no {name}\nhint: it is of {', '.join(mine)}")


def _before(o: Options, kind: str, loss: Loss) -> Reading:
    """The losses of 0.6 to 0.8."""
    if kind not in ("ipo", "default"):
        named = ", ".join(n for n in _OF_08 if n in o)
        raise RefusedError(f"prime-rl: type={kind} has no {named}\nhint: it was of the losses before: default, ipo")
    if kind == "ipo":
        plan = Plan(weigh(TOKEN, AtMost(o["ipo_threshold"]), of=prob_gap) * token_is())
    else:
        plan = Plan(dppo_tv(o["dppo_mask_high"], o["dppo_mask_low"]))
    note = "the gradient flows through the ratio; kl_tau times the squared log ratio is added over all tokens"
    return Reading(plan, loss=replace(loss, penalty=o["kl_tau"]), notes=(note,))


def _long_before(o: Options, loss: Loss) -> Reading:
    """The losses until 0.5."""
    if o["clip_ratio"] is not None:
        capped = Plan(weigh(TOKEN, Truncate(o["clip_ratio"])))
        return Reading(capped, loss=replace(loss, kind="policy_gradient"), notes=("the weight is detached",))
    if any(o[n] is not None for n in _OF_05):
        low, high = (0.2 if o[n] is None else o[n] for n in _OF_05)
        band = weigh(TOKEN, Within(-low, high), of=prob_diff)
        note = "the gradient flows through the ratio; kl_tau times the squared log ratio is added over all tokens"
        return Reading(Plan(band * token_is()), loss=replace(loss, penalty=o["kl_tau"]), notes=(note,))
    b = {n: default if o[n] is None else float(o[n]) for n, default in _OF_04.items()}
    tokens = Screen(b["token_mask_low"], b["token_mask_high"])
    screens = weigh(GEOMETRIC, Screen(b["geo_mask_low"], b["geo_mask_high"]))
    screens = screens * weigh(WORST, Screen(0.0, b["sequence_mask_high"]))
    if b["sequence_mask_low"]:
        screens = screens * weigh(WORST, AtMost(-math.log(b["sequence_mask_low"])), of=k1)
    weights = token_is() if o["ratio_type"] != "sequence" else weigh(SEQUENCE, Truncate(b["sequence_clip_high"]))
    note = "the weight is detached; kl_tau times the log ratio is taken off the advantage"
    gradient = replace(loss, kind="policy_gradient", over="means" if o["ratio_type"] == "sequence" else "tokens")
    return Reading(Plan(weights, weigh(TOKEN, tokens) * screens), loss=gradient, notes=(note,))


def infinite_kept(plan: Plan, situation: Situation) -> Plan:
    """Keep infinite ratios, in the loss as well."""
    kept = probabilities_as_they_are(_infinite_kept(plan, situation)).flagged("infinite_live")

    def change(f: Factor) -> Factor:  # masked is what is over the bound, which NaN is not
        return replace(f, transform=NanPasses(f.transform)) if isinstance(f.transform, AtMost) else f

    return kept.mapped(change)


def multiplied_out(plan: Plan, situation: Situation) -> Plan:
    """Multiply by masks, and start the loss at 0 times the log-probs of the first sequence."""
    return _multiplied_out(plan, situation).flagged("starts_at_zero_times")


def zero_is_negative(plan: Plan, _: Situation) -> Plan:
    """Take an advantage of 0 for a negative one."""
    return replace(plan, zero_advantage=-1)


def _k3_of_rows(view: View, name: str) -> Tensor:
    batch, keep = view.batch(), view.plan.weights(view.outcome.batch).keep_tokens
    mask = batch.layout.mask & (~keep if name.startswith("masked") else keep)
    return torch.where(mask, k3(batch), 0).sum(-1) / mask.sum(-1).clamp(min=1)


def _share_dropped(view: View, name: str) -> Tensor:
    batch = view.batch()
    assert batch.advantage is not None
    gone = batch.layout.mask & ~view.plan.weights(view.outcome.batch).keep_tokens
    if name != "is_masked":
        gone = gone & (batch.advantage * (+1 if name.endswith("high") else -1) > 0)
    return GEOMETRIC.fold(gone.float(), batch.layout)


PRIME_RL = read_profile(
    "prime_rl",
    _compose,
    quirks=(infinite_kept, multiplied_out, zero_is_negative),
    equals={"k3_of_rows": _k3_of_rows, "share_dropped": _share_dropped},
)
