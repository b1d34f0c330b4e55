"""TRL 1.16.0: `GRPOConfig`'s importance sampling correction for vLLM, and off-policy sequence masking."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import SEQUENCE, TOKEN
from reweigh.named import opsm, vespo
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import abs_log_ratio, clamped_level
from reweigh.rosetta.plan import Plan, Tensors, count_empty_rows, keep_infinite, run
from reweigh.rosetta.profile import (
    Conventions,
    Loss,
    Metric,
    Option,
    Options,
    Over,
    Profile,
    Quirk,
    Reading,
    RefusedError,
    Situation,
    Template,
    View,
    Word,
)
from reweigh.transforms import Clip, Reject

_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
_OVER: dict[str, Over] = {"grpo": "row_means", "bnpo": "tokens", "dapo": "tokens", "cispo": "tokens", "vespo": "tokens"}


def _weights(o: Options) -> Plan:
    if not o.get("vllm_importance_sampling_correction", True):
        return Plan()
    mode = o.get("vllm_importance_sampling_mode", "sequence_mask")
    if mode not in _MODES:
        raise RefusedError(f"trl: no vllm_importance_sampling_mode {mode!r}\nhint: {', '.join(_MODES)}")
    low = o.get("vllm_importance_sampling_clip_min")
    high = o.get("vllm_importance_sampling_clip_max", o.get("vllm_importance_sampling_cap", 3.0))
    level, kind = mode.split("_")
    transform = (Clip if kind == "truncate" else Reject)(low or 0.0, math.inf if high is None else high)
    return Plan(weigh({"token": TOKEN, "sequence": SEQUENCE}[level], transform))


def _read(o: Options) -> Reading:
    recorded, mode = "function" in o, "vllm_importance_sampling_mode" in o
    # A recorded loss without the option ran without vLLM; a recorded mask is of one function alone.
    plan = Plan() if recorded and not mode else _weights(o)
    if o.get("off_policy_mask_threshold") is not None:
        plan = replace(plan, screens=opsm(o["off_policy_mask_threshold"]))
    kind = o.get("loss_type", "dapo")
    loss = Loss("ppo_clip", low=o.get("epsilon_low", o.get("epsilon", 0.2)), high=o.get("epsilon_high", 0.2))
    loss = replace(loss, over=_OVER.get(kind, "tokens"), dual=o.get("delta"))
    if o.get("importance_sampling_level") == "sequence":
        loss = replace(loss, kind="gspo")
    if kind == "cispo":
        loss = replace(loss, kind="cispo", low=1.0, high=o.get("epsilon_high", 5.0) - 1)
    if kind == "vespo":
        kernel = vespo(
            (o.get("vespo_k_pos", 2.0), o.get("vespo_lambda_pos", 3.0)),
            (o.get("vespo_k_neg", 3.0), o.get("vespo_lambda_neg", 2.0)),
        )
        note = "the sampler's ratio is bounded token by token inside the kernel; ours takes the sequence ratio whole"
        return Reading(Plan(kernel), "log_live", "log_mu", replace(loss, kind="policy_gradient"), (note,), inside=True)
    on_live = "loss_type" in o and bool(plan.screens.factors)
    return Reading(plan, loss=loss, screen_pi="log_live" if on_live else None, inside=on_live)


# Quirks.


_SMALLEST, _LARGEST = math.log(1e-8), 20.0  # nats, of its kernel


@dataclass(frozen=True)
class _BoundedRatio:
    """Log ratios that enter the kernel there: live to old policy, plus the sampler's, after the mode has bounded it."""

    sampler: Plan

    def __call__(self, tensors: Tensors) -> Tensor:
        assert tensors.log_old is not None
        live = (tensors.log_pi - tensors.log_old).clamp(-_LARGEST, _LARGEST)
        weight = run(self.sampler, replace(tensors, log_pi=tensors.log_old)).alone
        return live + weight.log().clamp(_SMALLEST, _LARGEST)


def _mask_inside(plan: Plan, situation: Situation) -> Plan:
    o = situation.options
    if o.get("loss_type") != "vespo":
        return plan
    clamped = plan.mapped(lambda f: replace(f, level=clamped_level(f.level, _SMALLEST, _LARGEST)))
    return replace(clamped, ratio_of=_BoundedRatio(_weights(o)), zero_advantage=1)


QUIRKS = (
    Quirk(
        "infinite_kept",
        "A log-prob of -inf stays: its ratio is truncated to the cap, or rejected, or infinite without one; a row with "
        "it passes off_policy_mask_threshold, as its mean k1 is -inf. Ours leaves the mask and is counted.",
        lambda plan, _: keep_infinite(plan),
    ),
    Quirk(
        "empty_rows_count",
        "A sequence with no token has a sequence ratio of 1, which the logged mean, minimum and maximum count. Ours "
        "leaves it out.",
        lambda plan, _: count_empty_rows(plan),
    ),
    Quirk(
        "kernel_of_bounded_ratios",
        "VESPO's kernel takes the live ratio to the old policy times the old one's ratio to the sampler after its mode "
        "has bounded it token by token, in logs clamped to [log 1e-8, 20]: one masked token drives the weight of its "
        "sequence to 0. Ours takes the sequence ratio of live to sampler.",
        _mask_inside,
    ),
)


def _logged_ratio(reduce: str) -> m.Equal:
    def equal(view: View, _: str) -> Tensor:
        w, batch = view.outcome, view.batch()
        if view.plan.weights.unit == "sequence":
            rows = w.alone.amax(-1)
            if view.plan.empty_rows:
                # Without a token it is e^0, and the mode is applied to that.
                rows = torch.where(w.left.any(-1), rows, 1.0)
                x = rows
            else:
                x = rows[w.left.any(-1)]
        else:
            x = w.alone[batch.layout.mask]
        return {"min": x.min, "max": x.max, "mean": x.mean}[reduce]()

    return equal


_RATIO = "sampling/importance_sampling_ratio/"
METRICS = (
    Metric(("sampling/sampling_logp_difference/mean",), m.over_tokens(abs_log_ratio), "mean |log r| over tokens"),
    Metric(("sampling/sampling_logp_difference/max",), m.extreme(TOKEN, abs_log_ratio, +1), "largest |log r|"),
    Metric((_RATIO + "min",), _logged_ratio("min"), "smallest weight of a unit"),
    Metric((_RATIO + "mean",), _logged_ratio("mean"), "mean weight of units"),
    Metric((_RATIO + "max",), _logged_ratio("max"), "largest weight of a unit"),
    Metric(("clip_ratio/*", "cispo_clip_ratio"), None, "of the loss's own clip, no correction for the sampler"),
    Metric(("vespo/phi_seq_mean",), m.mean_weight_of_rows, "mean weight of sequences"),
)

TRL = Profile(
    name="trl",
    version="1.16.0",
    known=("1.16.0",),
    section="",
    options=(
        Option("vllm_importance_sampling_correction", True, "whether anything is corrected"),
        Option("vllm_importance_sampling_mode", "sequence_mask", "level and what is done outside the bounds", _MODES),
        Option("vllm_importance_sampling_clip_max", 3.0, "upper bound, pi/mu; None is no bound"),
        Option("vllm_importance_sampling_clip_min", None, "lower bound, pi/mu; None is no bound"),
        Option("vllm_importance_sampling_cap", 3.0, "deprecated: vllm_importance_sampling_clip_max"),
        Option("off_policy_mask_threshold", None, "OPSM: nats a token, of the live policy from the sampler"),
        Option(
            "importance_sampling_level", "token", "of the loss's own ratio; sequence is GSPO", ("token", "sequence")
        ),
        Option("loss_type", "dapo", "the loss", ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")),
        Option("epsilon", 0.2, "clip below 1"),
        Option("epsilon_low", 0.2, "clip below 1"),
        Option("epsilon_high", None, "clip above 1; in cispo the cap itself"),
        Option("delta", None, "dual clip"),
        Option("vespo_k_pos", 2.0, "power of the kernel where the advantage is positive"),
        Option("vespo_lambda_pos", 3.0, "decay of the kernel where the advantage is positive"),
        Option("vespo_k_neg", 3.0, "power of the kernel where the advantage is negative"),
        Option("vespo_lambda_neg", 2.0, "decay of the kernel where the advantage is negative"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler (OPSM: live / sampler)",
        bounds="pi/mu; closed",
        k1="-log r (OPSM)",
        sequence="the product",
        survivors="their own ratio, of the token or the product",
        not_finite="NaN: ratio 1; infinite: the cap, rejected, or inf",
        clamp="none (VESPO: 20 nats)",
        detached="yes",
        denominator="tokens of the original mask (dapo, cispo); length of each sequence (grpo)",
        normalise="none",
    ),
    read=_read,
    words=(
        Word("token_truncate", "clip each token's ratio", {"vllm_importance_sampling_mode": "token_truncate"}),
        Word(
            "token_mask",
            "zero a token outside; the others keep their ratio",
            {"vllm_importance_sampling_mode": "token_mask"},
        ),
        Word("sequence_truncate", "clip the product", {"vllm_importance_sampling_mode": "sequence_truncate"}),
        Word(
            "sequence_mask",
            "zero a sequence whose product is outside; the others weigh the product",
            {"vllm_importance_sampling_mode": "sequence_mask"},
        ),
        Word(
            "opsm",
            "off_policy_mask_threshold: live policy from the sampler",
            {
                "vllm_importance_sampling_correction": False,
                "off_policy_mask_threshold": 0.05,
            },
        ),
        Word("vespo", "loss_type=vespo: a kernel around a sequence ratio of 1", {"loss_type": "vespo"}),
        Word(
            "sequence",
            "vllm modes: the product; importance_sampling_level=sequence: the geometric mean (GSPO)",
            {
                "vllm_importance_sampling_mode": "sequence_truncate",
            },
        ),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        *(
            Template(
                "weights",
                lambda b, mode=mode: {
                    "vllm_importance_sampling_mode": mode,
                    "vllm_importance_sampling_clip_max": None if math.isinf(b.high) else b.high,
                    "vllm_importance_sampling_clip_min": b.low or None,
                },
            )
            for mode in _MODES
        ),
        Template("screens", lambda b: {"off_policy_mask_threshold": b.bound}),
    ),
)
