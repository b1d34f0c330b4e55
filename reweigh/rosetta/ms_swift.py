"""ms-swift 4.6.0: `rollout_importance_sampling_mode`, whose sequences are geometric means, and OPSM."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, TOKEN, k1, log_ratio
from reweigh.named import naive, opsm, token_is
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import Clamped
from reweigh.rosetta.plan import Plan, count_empty_rows, keep_infinite
from reweigh.rosetta.profile import (
    Conventions,
    Metric,
    Option,
    Options,
    Profile,
    Quirk,
    Reading,
    RefusedError,
    Situation,
    Template,
    View,
    Word,
)
from reweigh.transforms import Reject, Screen, Truncate

_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
_SAFE = 20.0  # nats, its SAFETY_BOUND


def _read(o: Options) -> Reading:
    mode, cap = o.get("rollout_importance_sampling_mode"), o.get("rollout_importance_sampling_threshold", 2.0)
    if mode is not None and mode not in _MODES:
        raise RefusedError(f"ms-swift: no rollout_importance_sampling_mode {mode!r}\nhint: {', '.join(_MODES)}")
    weights = {
        None: naive(),
        "token_truncate": weigh(TOKEN, Truncate(cap)),
        "token_mask": weigh(TOKEN, Reject(0.0, cap)),
        "sequence_truncate": weigh(GEOMETRIC, Truncate(cap)),
        "sequence_mask": weigh(GEOMETRIC, Screen(0.0, cap)) * token_is(),
    }[mode]
    delta = o.get("off_policy_sequence_mask_delta")
    return Reading(Plan(weights, naive() if delta is None else opsm(delta)))


def _clamped(plan: Plan, _: Situation) -> Plan:
    return replace(keep_infinite(plan), rule=Clamped(_SAFE))


QUIRKS = (
    Quirk(
        "ratios_clamped",
        "Log ratios of weights are clamped to [-20, 20] token by token, -inf too, before a mean is taken: e^60 weighs "
        "or counts as e^20. OPSM clamps nothing, so a row with a log-prob of -inf passes. Ours clamps nothing, and a "
        "log-prob of -inf leaves the mask and is counted.",
        _clamped,
    ),
    Quirk(
        "empty_rows_count",
        "Means over sequences count rows with no token: as 0, or as a perplexity of 1. Ours leaves them out.",
        lambda plan, _: count_empty_rows(plan),
    ),
)


def _clipped(view: View, name: str) -> Tensor:
    mode = view.situation.options["rollout_importance_sampling_mode"]
    cap = math.log(view.situation.options["rollout_importance_sampling_threshold"])
    batch = view.batch(Clamped(_SAFE))
    level = TOKEN if mode.startswith("token") else GEOMETRIC
    over = (level.fold(batch.log_ratio, batch.layout) > cap).float()
    return over[batch.layout.mask].mean() if level is TOKEN else view.mean_over_rows(over, batch)


METRICS = (
    Metric(("kl",), m.over_tokens(k1), "KL(mu||pi) by k1"),
    Metric(("k3_kl",), None, "k3 of a token is cut at 10: ours is not"),
    Metric(("training_log_ppl",), m.over_rows(GEOMETRIC, m.surprise_pi), "mean of -log pi, by sequence"),
    Metric(("training_ppl",), m.over_rows(GEOMETRIC, m.surprise_pi, m.ratio), "its exp, by sequence"),
    Metric(("rollout_log_ppl",), m.over_rows(GEOMETRIC, m.surprise_mu), "mean of -log mu, by sequence"),
    Metric(("rollout_ppl",), m.over_rows(GEOMETRIC, m.surprise_mu, m.ratio), "its exp, by sequence"),
    Metric(("log_ppl_diff",), m.over_rows(GEOMETRIC, k1), "mean k1 of each sequence"),
    Metric(("log_ppl_abs_diff",), m.over_rows(GEOMETRIC, k1, torch.abs), "its absolute value"),
    Metric(("log_ppl_diff_max",), m.extreme(GEOMETRIC, k1, +1), "its maximum"),
    Metric(("log_ppl_diff_min",), m.extreme(GEOMETRIC, k1, -1), "its minimum"),
    Metric(("ppl_ratio",), m.over_rows(GEOMETRIC, k1, m.ratio), "mean of 1 / geometric ratio"),
    Metric(("chi2_token",), m.over_tokens(log_ratio, m.chi2, Clamped(_SAFE)), "chi-square of tokens"),
    Metric(
        ("chi2_seq",),
        m.over_rows(GEOMETRIC, log_ratio, m.chi2, fold_rule=Clamped(_SAFE)),
        "of geometric ratios: a mean square, and no chi-square of sequences",
    ),
    Metric(("is_weight_mean",), m.mean_weight, "mean weight over tokens"),
    Metric(("ess",), None, "of weights clamped to [1/cap, cap], dropped ones too: ours is of raw ratios"),
    Metric(("clipped_frac",), _clipped, "share of units over the cap"),
)

MS_SWIFT = Profile(
    name="ms-swift",
    aliases=("swift",),
    version="4.6.0",
    known=("4.6.0",),
    section="",
    options=(
        Option("rollout_importance_sampling_mode", None, "level and what is done over the cap", _MODES),
        Option("rollout_importance_sampling_threshold", 2.0, "cap, pi/mu"),
        Option("log_rollout_offpolicy_metrics", False, "log the gap without correcting"),
        Option("off_policy_sequence_mask_delta", None, "OPSM: nats a token, of the live policy from the sampler"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler (OPSM: live / sampler)",
        bounds="pi/mu, from above; closed",
        k1="-log r",
        sequence="the geometric mean, always",
        survivors="the raw ratio of each token",
        not_finite="clamped to 20 nats",
        clamp="20 nats, token by token, before any fold",
        detached="yes",
        denominator="tokens of the original mask",
        normalise="none",
    ),
    read=_read,
    words=(
        Word("token_truncate", "cap each token's ratio", {"rollout_importance_sampling_mode": "token_truncate"}),
        Word("token_mask", "zero a token over the cap", {"rollout_importance_sampling_mode": "token_mask"}),
        Word(
            "sequence_truncate",
            "cap the geometric mean, which is the weight",
            {
                "rollout_importance_sampling_mode": "sequence_truncate",
            },
        ),
        Word(
            "sequence_mask",
            "drop a sequence whose geometric mean is over; tokens keep their raw ratio",
            {
                "rollout_importance_sampling_mode": "sequence_mask",
            },
        ),
        Word("sequence", "the geometric mean, always", {"rollout_importance_sampling_mode": "sequence_truncate"}),
        Word(
            "opsm",
            "off_policy_sequence_mask_delta: live policy from the sampler",
            {"off_policy_sequence_mask_delta": 0.05},
        ),
        Word("chi2_seq", "of geometric ratios", metric="chi2_seq"),
        Word("kl", "mean of -log r over tokens", metric="kl"),
        Word("ess", "of weights clamped to [1/cap, cap], so that dropped ones count as 1/cap"),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        *(
            Template(
                "weights",
                lambda b, mode=mode: {
                    "rollout_importance_sampling_mode": mode,
                    "rollout_importance_sampling_threshold": b.high,
                },
            )
            for mode in _MODES
        ),
        Template("screens", lambda b: {"off_policy_sequence_mask_delta": b.bound}),
    ),
)
