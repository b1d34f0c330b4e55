"""open-instruct: `use_rho_correction`, clamps and masks of rho."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from reweigh.estimators import for_advantage, weigh
from reweigh.levels import GEOMETRIC, TOKEN
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import BandAboveZero, Clamped, abs_log_ratio, signed_gap_of_sequence
from reweigh.rosetta.plan import Plan
from reweigh.rosetta.profile import (
    Conventions,
    Loss,
    Metric,
    Option,
    Options,
    Profile,
    Quirk,
    Reading,
    Template,
    View,
    Word,
)
from reweigh.rosetta.quirks import ruled
from reweigh.transforms import AtMost, Clip, Screen

_SAFE = 10.0  # nats
_LARGEST = Clamped(torch.finfo(torch.float32).max)


def _clamp(o: Options) -> Clip:
    high = o.get("rho_clamp_upper_bound", o.get("rho_clamp_upper", 2.0))
    return Clip(o.get("rho_clamp_lower_bound", o.get("rho_clamp_lower")) or 0.0, high or math.inf)


def _plan(o: Options) -> Plan:
    if not o.get("use_rho_correction", True):
        return Plan()
    low, high = o.get("rho_mask_lower_bound") or 0.0, o.get("rho_mask_upper_bound") or math.inf
    if o.get("rho_mask_tv_divergence"):  # tokens that move further away, in a sequence that is far off
        gate = AtMost(high) if low == 0 else BandAboveZero(low, high)
        rise = for_advantage(+1, weigh(TOKEN, gate, of=signed_gap_of_sequence))
        fall = for_advantage(-1, weigh(TOKEN, gate, of=signed_gap_of_sequence, scale=-1))
        return Plan(weigh(TOKEN, _clamp(o)) * rise * fall)
    level = GEOMETRIC if o.get("rho_mask_sequence_level") else TOKEN  # where it also weighs by the geometric mean
    return Plan(weigh(level, _clamp(o)) * weigh(level, Screen(low, high)))


def _read(o: Options) -> Reading:
    low, high = o.get("clip_lower", 0.2), o.get("clip_higher", 0.272)
    loss = Loss("ppo_clip", low=low, high=high)
    if o.get("loss_fn") == "cispo":
        loss = replace(loss, kind="cispo", low=1.0)
    return Reading(_plan(o), loss=loss)


QUIRKS = (
    Quirk(
        "ratios_clamped",
        "Log ratios are clamped to [-10, 10], infinite ones too, before anything else: e^-60 and e^60 count as e^-10 "
        "and e^10. Ours clamps nothing, and a log-prob of -inf leaves the mask and is counted.",
        ruled(Clamped(_SAFE)),
    ),
)


def _dropped(view: View, name: str) -> Tensor:
    """Share of tokens that the mask drops: under its low bound, over its high one, or either."""
    o, mask = view.situation.options, view.batch().layout.mask
    kept = view.plan.weights(view.outcome.batch).keep_tokens
    gone = mask & ~kept
    if "_low_" in name or "_high_" in name:
        level = GEOMETRIC if o.get("rho_mask_sequence_level") else TOKEN
        batch = view.outcome.batch
        x = level.fold(batch.log_ratio, batch.layout)
        low = x < m.log(o.get("rho_mask_lower_bound") or 0.0)
        low = batch.layout.spread(low) if level is GEOMETRIC else low
        if o.get("rho_mask_tv_divergence"):
            low = signed_gap_of_sequence(batch).abs() < (o.get("rho_mask_lower_bound") or 0.0)
        gone = gone & (low if "_low_" in name else ~low)
    return gone[mask].float().mean()


def _clipped(view: View, _: str) -> Tensor:
    """Share of tokens whose ratio the clamp moves, dropped ones too."""
    o, batch = view.situation.options, view.outcome.batch
    level = GEOMETRIC if o.get("rho_mask_sequence_level") else TOKEN
    clamp, x = _clamp(o), level.fold(batch.log_ratio, batch.layout)
    moved = (x < m.log(clamp.low)) | (x > m.log(clamp.high))
    moved = batch.layout.spread(moved) if level is GEOMETRIC else moved
    return moved[view.batch().layout.mask].float().mean()


METRICS = (
    Metric(("val/rho_weight",), m.mean_weight, "mean weight over tokens, dropped ones as 0"),
    Metric(("val/rho_drop*",), _dropped, "share of tokens that the mask drops"),
    Metric(("val/rho_clipfrac",), _clipped, "share of tokens whose ratio the clamp moves"),
    Metric(("debug/vllm_vs_local_logprob_diff_mean",), m.over_tokens(abs_log_ratio, rule=_LARGEST), "mean |log r|"),
    Metric(
        ("debug/vllm_vs_local_logprob_diff_max",), m.extreme(TOKEN, abs_log_ratio, +1, rule=_LARGEST), "largest |log r|"
    ),
    Metric(("debug/vllm_vs_local_logprob_diff_std",), None, "spread of |log r|: ours is of log r"),
    Metric(
        ("debug/vllm_local_reverse_kl",), None, "weighs each token's log ratio by mu once more: no KL of samples of mu"
    ),
    Metric(("policy/*",), None, "of the loss's own clip"),
)

OPEN_INSTRUCT = Profile(
    name="open-instruct",
    version="e6c3044a (2026-08)",
    known=("e6c3044a",),
    section="",
    options=(
        Option("use_rho_correction", True, "whether anything is corrected"),
        Option("rho_clamp_lower_bound", 0.0, "clip of the weight, pi/mu; 0 is none"),
        Option("rho_clamp_upper_bound", 2.0, "clip of the weight, pi/mu; 0 is none"),
        Option("rho_mask_lower_bound", 0.0, "drop below, pi/mu; 0 is none"),
        Option("rho_mask_upper_bound", 0.0, "drop above, pi/mu, or a mean |r - 1|; 0 is none"),
        Option("rho_mask_sequence_level", False, "mask and weigh by the geometric mean"),
        Option("rho_mask_tv_divergence", False, "mask tokens that move away, where the mean |r - 1| is over the bound"),
        Option("loss_fn", "dapo", "the loss", ("dapo", "cispo")),
        Option("clip_lower", 0.2, "clip below 1"),
        Option("clip_higher", 0.272, "clip above 1"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler",
        bounds="pi/mu; closed",
        k1="-log r",
        sequence="the geometric mean, which then is the weight, too",
        survivors="the clipped token ratio, or the clipped geometric mean",
        not_finite="clamped to 10 nats",
        clamp="10 nats, token by token, before any fold",
        detached="yes",
        denominator="tokens of the original mask",
        normalise="none",
    ),
    read=_read,
    words=(
        Word("clamp", "rho_clamp_*: both sides, tokens", {"rho_clamp_upper_bound": 2.0}),
        Word(
            "mask",
            "rho_mask_*: drop outside; survivors keep the clipped ratio",
            {
                "rho_mask_lower_bound": 0.5,
                "rho_mask_upper_bound": 5.0,
            },
        ),
        Word(
            "sequence_mask",
            "rho_mask_sequence_level: the geometric mean gates and is the weight",
            {
                "rho_mask_sequence_level": True,
                "rho_mask_lower_bound": 0.9,
                "rho_mask_upper_bound": 1.1,
            },
        ),
        Word(
            "tv",
            "mean |r - 1| over the sequence, without the 1/2",
            {
                "rho_mask_tv_divergence": True,
                "rho_mask_upper_bound": 0.4,
            },
        ),
        Word("tis", "rho_clamp_upper_bound: cap of tokens", {"rho_clamp_upper_bound": 2.0}),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        Template(
            "weights",
            lambda b: {"rho_clamp_lower_bound": b.low, "rho_clamp_upper_bound": 0.0 if math.isinf(b.high) else b.high},
        ),
        Template(
            "weights",
            lambda b: {
                "rho_mask_lower_bound": b.low,
                "rho_mask_upper_bound": 0.0 if math.isinf(b.high) else b.high,
                "rho_clamp_upper_bound": 0.0,
            },
        ),
        Template(
            "weights",
            lambda b: {
                "rho_mask_sequence_level": True,
                "rho_mask_lower_bound": b.low,
                "rho_mask_upper_bound": 0.0 if math.isinf(b.high) else b.high,
                "rho_clamp_upper_bound": 0.0,
            },
        ),
    ),
)
