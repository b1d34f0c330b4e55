"""What NeMo-RL logs of the gap and of its correction, out of our functions."""

import torch
from torch import Tensor

from reweigh.estimators import Estimator, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, k3
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import fold_of_ratio, k3_reversed
from reweigh.rosetta.profile import Metric, View


def _logged_weights(view: View) -> Estimator:
    """Weights that it logs: those that apply, or the raw ratio where the correction is off."""
    o = view.situation.options
    if o.get("use_importance_sampling_correction"):
        return view.plan.weights
    return weigh(SEQUENCE if o.get("sequence_level_importance_ratios") else TOKEN)


def _sampling_ratio(view: View, _: str) -> Tensor:
    batch = view.outcome.batch
    w, gate = _logged_weights(view)(batch), view.plan.then(batch)
    per_token = torch.where(gate.keep_tokens, w.per_token, 0)
    if w.unit != "sequence":
        return per_token[batch.layout.mask].mean()
    if "sum_for_mean" not in view.plan.flags:
        return view.mean_over_rows(w.per_unit, view.batch())
    empty = ~batch.layout.mask.any(-1)
    rows = torch.where(empty, _logged_empty(view), w.per_unit)
    return rows.sum()


def _logged_empty(view: View) -> float:
    """What a sequence with no token weighs there: the transform of a ratio of 1."""
    factors = _logged_weights(view).factors
    one = torch.zeros(1)
    log_w, keep = factors[0].transform(one, torch.ones(1, dtype=torch.bool))
    return float(torch.where(keep, log_w.exp(), 0))


def _outside(view: View, _: str) -> Tensor:
    o, batch = view.situation.options, view.outcome.batch
    kind, high = o["truncated_importance_sampling_type"], o["truncated_importance_sampling_ratio"]
    low = o.get("truncated_importance_sampling_ratio_min") or 0.0
    if kind == "seq-mask-tis":
        kept = view.plan.then(batch).keep_tokens
        live = batch.layout.mask.any(-1)
        gone = ~kept.any(-1) & live
        return gone.sum() / live.sum()
    level = SEQUENCE if o.get("sequence_level_importance_ratios") else TOKEN
    x = level.fold(batch.log_ratio, batch.layout)
    if "overflow_is_zero" in view.plan.flags:
        x = torch.where(torch.isinf(x.exp()), -torch.inf, x)
    outside = (x > m.log(high)) | (x < m.log(low))
    if level is TOKEN or "sum_for_mean" in view.plan.flags:
        outside = batch.layout.spread(outside) if level is SEQUENCE else outside
        return outside[batch.layout.mask].float().mean()
    return view.mean_over_rows(outside.float(), batch)


def _error(reduce: str, after: bool) -> m.Equal:
    def equal(view: View, _: str) -> Tensor:
        batch = view.batch()
        rows, live = GEOMETRIC.fold(fold_of_ratio(batch), batch.layout), batch.layout.lengths > 0
        if after:
            live = live & view.outcome.masked.any(-1)
        if not bool(live.any()):
            return torch.zeros(())
        return {"max": rows[live].max, "mean": rows[live].mean, "min": rows[live].min}[reduce]()

    return equal


def _dropped_sequences(view: View, _: str) -> Tensor:
    live = view.batch().layout.mask.any(-1)
    return (live & ~view.outcome.masked.any(-1)).sum().float()


def _sequences(view: View, _: str) -> Tensor:
    return view.batch().layout.mask.any(-1).sum().float()


METRICS = (
    Metric(("token_mult_prob_error",), m.over_tokens(fold_of_ratio), "mean of e^|log r| over tokens"),
    Metric(("gen_kl_error",), m.over_tokens(k3), "KL(mu||pi) by k3"),
    Metric(("policy_kl_error",), m.over_tokens(k3_reversed), "1/r - 1 + log r: the other direction's formula"),
    Metric(("js_divergence_error",), None, "a Jensen-Shannon divergence by k3: we have none"),
    Metric(("sampling_importance_ratio",), _sampling_ratio, "mean weight of units, the raw ratio if correction is off"),
    Metric(("is_oob_ratio",), _outside, "share of units outside the bounds"),
    Metric(("num_valid_samples",), _sequences, "sequences with a token"),
    *(
        Metric((f"{r}_seq_mult_prob_error{end}",), _error(r, bool(end)), f"{r} over sequences of the mean of e^|log r|")
        for r in ("max", "mean", "min")
        for end in ("", "_after_mask")
    ),
    Metric(("num_masked_seqs",), _dropped_sequences, "sequences that the threshold drops"),
    Metric(("masked_correct_pct",), None, "of rewards, not of the gap"),
    Metric(
        ("loss", "probs_ratio*", "kl_penalty", "positive_nll_loss", "approx_entropy"),
        None,
        "of the loss's own parts; the loss itself is compared as such",
    ),
)
