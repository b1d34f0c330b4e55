"""OpenRLHF 0.11.2: `algo.advantage.is_correction_*`, inside `PolicyLoss`."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, TOKEN, binary_kl, k1
from reweigh.named import token_is
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import prob_gap
from reweigh.rosetta.plan import Plan, count_empty_rows, keep_infinite
from reweigh.rosetta.profile import (
    Conventions,
    Loss,
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
)
from reweigh.rosetta.quirks import probabilities_clamped
from reweigh.transforms import AtMost, Clip, Screen

_STATISTICS = {"binary_kl": binary_kl, "tv": prob_gap}


def _bounds(o: Options) -> tuple[float, float]:
    told: Any = o.get("is_correction_threshold", (0.5, 5.0))
    if isinstance(told, (int, float)):
        return 0.0, float(told)
    values = [float(v) for v in told]
    return (0.0, values[0]) if len(values) == 1 else (values[0], values[1])


def _plan(o: Options) -> Plan:
    level, mode = o.get("is_correction_level", "off"), o.get("is_correction_mode", "mask")
    gating, (low, high) = o.get("is_correction_gating", "ratio"), _bounds(o)
    for name, value, choices in (
        ("level", level, ("off", "token", "seq")),
        ("mode", mode, ("mask", "clip")),
        ("gating", gating, ("ratio", "binary_kl", "tv")),
    ):
        if value not in choices:
            raise RefusedError(f"openrlhf: no is_correction_{name} {value!r}\nhint: {', '.join(choices)}")
    if level == "off":
        return Plan()
    if mode == "clip" and (level == "seq" or gating != "ratio"):
        raise RefusedError("openrlhf: clip is of the token ratio only\nhint: is_correction_level=token, gating=ratio")
    if gating != "ratio" and low > 0:
        raise RefusedError(f"openrlhf: {gating} has no lower bound, got {low:g}\nhint: one threshold, or 0 and one")
    if mode == "clip":
        return Plan(weigh(TOKEN, Clip(low, high)))
    unit = TOKEN if level == "token" else GEOMETRIC
    screen = weigh(unit, Screen(low, high)) if gating == "ratio" else weigh(unit, AtMost(high), of=_STATISTICS[gating])
    return Plan(token_is() * screen)


def _read(o: Options) -> Reading:
    plan, notes = _plan(o), ()
    loss = Loss("ppo_clip", low=o.get("clip_eps_low", 0.2), high=o.get("clip_eps_high", 0.2), dual=o.get("dual_clip"))
    loss = replace(loss, clamp=20.0)
    if o.get("policy_loss_type") == "gspo":
        loss = replace(loss, kind="gspo", over="means")
        if o.get("is_correction_level", "off") != "off":
            notes = (
                "with gspo the correction is the live policy's geometric ratio to the sampler; no gate is applied",
            )
            return Reading(Plan(), loss=replace(loss, centre="log_mu"), notes=notes)
    return Reading(plan, loss=loss, notes=notes)


QUIRKS = (
    Quirk(
        "infinite_kept",
        "A log-prob of -inf stays: an infinite ratio is capped by clip and dropped by a ratio gate; vllm_kl is -inf; "
        "with gspo the loss is nan. Ours leaves the mask and is counted.",
        lambda plan, _: keep_infinite(plan).flagged("infinite_live", "infinity_times_padding"),
    ),
    Quirk(
        "loss_clamps_ratio",
        "The loss's own log ratio, live to old policy, is clamped to 20 nats, where its gradient ends. Ours is not.",
        lambda plan, _: plan.flagged("clamp_live"),
    ),
    Quirk(
        "probabilities_clamped",
        "Divergences are of probabilities clamped to [1e-6, 1 - 1e-6].",
        probabilities_clamped,
    ),
    Quirk(
        "empty_rows_count",
        "is_filter_ratio of sequences divides by all rows, and a row with no token, whose mean is 0/0, counts as "
        "dropped. Ours leaves it out.",
        lambda plan, _: count_empty_rows(plan).flagged("empty_rows_dropped"),
    ),
)


def _filtered(view: View, _: str) -> Tensor:
    o, batch = view.situation.options, view.batch()
    mask, (low, high) = batch.layout.mask, _bounds(o)
    if o.get("is_correction_mode", "mask") == "clip":
        return m.beyond(TOKEN, m.log(low), math.log(high))(view)
    gone = mask & ~view.plan.weights(view.tensors.batch(view.plan.rule)).keep_tokens
    if o["is_correction_level"] == "token":
        return gone[mask].float().mean()
    empty = ~mask.any(-1) if "empty_rows_dropped" in view.plan.flags else mask.any(-1) & False
    return view.mean_over_rows((gone.any(-1) | empty).float(), batch)


METRICS = (
    Metric(("vllm_kl",), m.over_tokens(k1), "KL(mu||pi) by k1"),
    Metric(("is_filter_ratio",), _filtered, "share of units outside the bounds"),
    Metric(("ppo_clip_ratio", "ppo_kl"), None, "of the loss's own ratio, which is no correction for the sampler"),
)

OPENRLHF = Profile(
    name="openrlhf",
    version="0.11.2",
    known=("0.11.2",),
    section="algo.advantage",
    options=(
        Option("is_correction_level", "off", "unit of the gate", ("off", "token", "seq")),
        Option("is_correction_mode", "mask", "drop or clip what is outside", ("mask", "clip")),
        Option("is_correction_gating", "ratio", "what is compared with the bounds", ("ratio", "binary_kl", "tv")),
        Option("is_correction_threshold", (0.5, 5.0), "low and high, or high alone"),
        Option("policy_loss_type", "ppo", "the loss", ("ppo", "gspo")),
        Option("clip_eps_low", 0.2, "clip below 1"),
        Option("clip_eps_high", 0.2, "clip above 1"),
        Option("dual_clip", None, "dual clip"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler (gspo: live / sampler)",
        bounds="pi/mu, or a divergence from above; closed",
        k1="-log r (vllm_kl)",
        sequence="the geometric mean; of a divergence the mean",
        survivors="the raw ratio of each token, unbounded",
        not_finite="infinite: the cap, dropped, or inf if kept",
        clamp="none (the loss's own ratio: 20 nats)",
        detached="yes",
        denominator="tokens of the original mask, of all ranks",
        normalise="none",
    ),
    read=_read,
    words=(
        Word(
            "mask", "a unit outside is dropped; survivors keep each token's raw ratio", {"is_correction_level": "token"}
        ),
        Word("clip", "each token's ratio, both sides", {"is_correction_level": "token", "is_correction_mode": "clip"}),
        Word("icepop", "level=token, mode=mask", {"is_correction_level": "token", "is_correction_mode": "mask"}),
        Word("tis", "level=token, mode=clip", {"is_correction_level": "token", "is_correction_mode": "clip"}),
        Word(
            "seq-mask-tis",
            "level=seq: the geometric mean gates, tokens keep their raw ratio",
            {"is_correction_level": "seq"},
        ),
        Word(
            "sequence_mask",
            "level=seq, mode=mask: the geometric mean gates, tokens keep their raw ratio",
            {"is_correction_level": "seq"},
        ),
        Word(
            "binary_kl",
            "gate on KL of this token or another, whatever the advantage",
            {
                "is_correction_level": "token",
                "is_correction_gating": "binary_kl",
                "is_correction_threshold": (0, 0.05),
            },
        ),
        Word(
            "tv",
            "gate on |pi - mu|, whatever the advantage",
            {
                "is_correction_level": "token",
                "is_correction_gating": "tv",
                "is_correction_threshold": (0, 0.1),
            },
        ),
        Word("kl", "vllm_kl: mean of -log r", metric="vllm_kl"),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        Template(
            "weights",
            lambda b: {
                "is_correction_level": "token",
                "is_correction_mode": "clip",
                "is_correction_threshold": [b.low, b.high],
            },
        ),
        *(
            Template(
                "weights",
                lambda b, unit=unit: {
                    "is_correction_level": unit,
                    "is_correction_mode": "mask",
                    "is_correction_threshold": [b.low, b.high],
                },
            )
            for unit in ("token", "seq")
        ),
        *(
            Template(
                "weights",
                lambda b, unit=unit, gate=gate: {
                    "is_correction_level": unit,
                    "is_correction_mode": "mask",
                    "is_correction_gating": gate,
                    "is_correction_threshold": [0, b.bound],
                },
            )
            for unit in ("token", "seq")
            for gate in ("binary_kl", "tv")
        ),
    ),
)
