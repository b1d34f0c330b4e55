"""What verl logs under `rollout_corr/`, out of our functions."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, k1, k3, log_ratio
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import Clamped
from reweigh.rosetta.profile import Metric, View, flat
from reweigh.rosetta.verl_options import LEVELS, SAFE, STATISTICS, band, screens_of


def _bounds(view: View) -> tuple[str, float, float]:
    """Level and bounds of the weights: what `fraction_high` and `fraction_low` count by."""
    o = flat(view.situation.options, "rollout_correction")
    t = o.get("rollout_is_threshold", 2.0)
    low, high = band(t) if isinstance(t, str) else (1 / float(t), float(t))
    return o["rollout_is"], math.log(low), math.log(high)


def _is_share(high: bool) -> m.Equal:
    def equal(view: View, _: str) -> Tensor:
        level, low, top = _bounds(view)
        ends = (-math.inf, top) if high else (low, math.inf)
        return m.beyond(TOKEN if level == "token" else SEQUENCE, *ends)(view)

    return equal


def _extreme_weight(sign: int) -> m.Equal:
    def equal(view: View, name: str) -> Tensor:
        if _bounds(view)[0] == "token":
            mask, mean = view.batch().layout.mask, view.outcome.mean
            w = view.outcome.alone[mask] * (1 if mean is None else mean)
            return w.max() if sign > 0 else w.min()
        value = m.extreme(SEQUENCE, log_ratio, sign)(view, name)
        value = torch.as_tensor(value)
        return (value.clamp(max=SAFE) if sign > 0 and view.plan.metrics_as_they else value).exp()

    return equal


def _mean_weight(view: View, name: str) -> Tensor:
    mean = view.outcome.mean
    return m.mean_weight(view, name) * (1 if mean is None else mean)


def _mean_weight_of_rows(view: View, name: str) -> Tensor:
    mean = view.outcome.mean
    return m.mean_weight_of_rows(view, name) * (1 if mean is None else mean)


def _norm_factor(view: View, _: str) -> Tensor:
    return torch.as_tensor(1.0 if view.outcome.mean is None else view.outcome.mean)


def _screen_values(view: View, name: str) -> tuple[Tensor, Tensor, tuple[str, str], Any]:
    """Values of the rejection statistic that a metric's name speaks of, which units exist, and the option."""
    o = flat(view.situation.options, "rollout_correction")
    option = next(s for s in screens_of(o) if name.startswith(f"rollout_corr/rollout_rs_{s[0]}_"))
    level, kind = option[0].rsplit("_", 1)
    batch = view.tensors.batch(view.plan.screen_rule)
    x = LEVELS[level].fold(STATISTICS[kind](batch), batch.layout)
    return x, LEVELS[level].valid(batch.layout), option, batch


def _of_screen(reduce: Callable[[Tensor], Tensor]) -> m.Equal:
    def equal(view: View, name: str) -> Tensor:
        x, units, _, _ = _screen_values(view, name)
        return reduce(x[units])

    return equal


def _screen_mean(view: View, name: str) -> Tensor:
    x, _, option, batch = _screen_values(view, name)
    x = x if option[0].startswith("token") else batch.layout.spread(x)
    return x[batch.layout.mask].mean()


def _screen_share(which: str) -> m.Equal:
    def equal(view: View, name: str) -> Tensor:
        x, units, (option, threshold), batch = _screen_values(view, name)
        banded = option.endswith("k1")
        low, high = [math.log(b) for b in band(threshold)] if banded else (-math.inf, float(threshold))
        outside = (x > high) if which == "high" else (x < low) if which == "low" else (x > high) | (x < low)
        if which.startswith("token") and not option.startswith("token"):
            return batch.layout.spread(outside)[batch.layout.mask].float().mean()
        return outside[units].float().mean()

    return equal


def _screened(view: View, name: str) -> Tensor:
    batch = view.tensors.batch(view.plan.screen_rule)
    kept = view.plan.screens(batch).keep_tokens
    lost = batch.layout.mask & ~kept
    if "_seq_" in name:
        return view.mean_over_rows(lost.any(-1).float(), batch)
    return lost[batch.layout.mask].float().mean()


def _rs(*endings: str) -> tuple[str, ...]:
    return tuple(f"rollout_corr/rollout_rs_*_k[123]_{e}" for e in endings)


def _is(*endings: str) -> tuple[str, ...]:
    return tuple(f"rollout_corr/rollout_is_{e}" for e in endings)


def _corr(*names: str) -> tuple[str, ...]:
    return tuple(f"rollout_corr/{n}" for n in names)


METRICS = (
    Metric(_is("mean"), _mean_weight, "mean weight over tokens, after bounds, before normalisation"),
    Metric(_is("seq_mean"), _mean_weight_of_rows, "mean over sequences of their mean weight"),
    Metric(_is("max"), _extreme_weight(+1), "largest weight (token) or largest ratio (sequence)"),
    Metric(_is("min"), _extreme_weight(-1), "smallest weight (token) or smallest ratio (sequence)"),
    Metric(_is("ratio_fraction_high"), _is_share(True), "share of units with a ratio over the cap"),
    Metric(_is("ratio_fraction_low"), _is_share(False), "share of units with a ratio under the low bound, or 1 / cap"),
    Metric(_is("batch_norm_factor"), _norm_factor, "the mean that weights are divided by"),
    Metric(_is("std", "eff_sample_size"), None, "of weights that were clamped again: ours are of raw ratios"),
    Metric(_is("oob_ratio"), None, "counts tokens where a sequence is the unit; see ratio_fraction_high and _low"),
    Metric(
        _is("seq_std", "seq_max", "seq_min", "seq_max_deviation", "seq_fraction_high", "seq_fraction_low"),
        None,
        "of means of a sequence's weights: no unit of ours",
    ),
    Metric(_rs("seq_masked_fraction"), None, "counts a sequence as masked if one of its tokens is"),
    Metric(_rs("masked_fraction"), _screen_share("token, any"), "share of tokens outside"),
    Metric(
        _rs("seq_mean", "seq_std", "seq_max", "seq_min", "seq_max_deviation", "seq_fraction_high", "seq_fraction_low"),
        None,
        "of means over a sequence of a value that is one for the sequence, or of token values: no unit of ours",
    ),
    Metric(_rs("std"), None, "of values that were clamped to the bounds"),
    Metric(_rs("mean"), _screen_mean, "mean over tokens of the statistic, a sequence's on each of its tokens"),
    Metric(_rs("max"), _of_screen(torch.max), "largest value of the statistic"),
    Metric(_rs("min"), _of_screen(torch.min), "smallest value of the statistic"),
    Metric(_rs("fraction_high"), _screen_share("high"), "share of units over the bound"),
    Metric(_rs("fraction_low"), _screen_share("low"), "share of units under the bound"),
    Metric(_corr("rollout_rs_masked_fraction"), _screened, "share of tokens that all screens together drop"),
    Metric(_corr("rollout_rs_seq_masked_fraction"), _screened, "share of sequences that lose a token"),
    Metric(_corr("kl"), m.over_tokens(k1), "KL(mu||pi) by k1, mean over tokens"),
    Metric(_corr("k3_kl"), m.over_tokens(k3), "KL(mu||pi) by k3, mean over tokens"),
    Metric(_corr("training_log_ppl"), m.over_rows(GEOMETRIC, m.surprise_pi), "mean of -log pi, by sequence"),
    Metric(_corr("training_ppl"), m.over_rows(GEOMETRIC, m.surprise_pi, m.ratio), "its exp, by sequence"),
    Metric(_corr("rollout_log_ppl"), m.over_rows(GEOMETRIC, m.surprise_mu), "mean of -log mu, by sequence"),
    Metric(_corr("rollout_ppl"), m.over_rows(GEOMETRIC, m.surprise_mu, m.ratio), "its exp, by sequence"),
    Metric(_corr("log_ppl_diff"), m.over_rows(GEOMETRIC, k1), "mean k1 of each sequence"),
    Metric(_corr("log_ppl_abs_diff"), m.over_rows(GEOMETRIC, k1, torch.abs), "its absolute value"),
    Metric(_corr("log_ppl_diff_max"), m.extreme(GEOMETRIC, k1, +1), "its maximum"),
    Metric(_corr("log_ppl_diff_min"), m.extreme(GEOMETRIC, k1, -1), "its minimum"),
    Metric(_corr("ppl_ratio"), m.over_rows(GEOMETRIC, k1, m.ratio), "mean of 1 / geometric ratio"),
    Metric(_corr("chi2_token"), m.over_tokens(log_ratio, m.chi2, Clamped(SAFE)), "chi-square of tokens"),
    Metric(
        _corr("chi2_seq"),
        m.over_rows(SEQUENCE, log_ratio, m.chi2, fold_rule=Clamped(SAFE)),
        "chi-square of sequences, the product",
    ),
    Metric(("actor/*",), None, "of the loss's own clip, which is no correction for the sampler"),
)
