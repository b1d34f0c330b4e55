"""What slime's helper and its built-in corrections log: all are means over sequences of the mean of each."""

import math

import torch
from torch import Tensor

from reweigh.estimators import Factor, Statistic
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, Level, k1, k3, log_ratio
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import Clamped, Rule, as_it_comes
from reweigh.rosetta.profile import Metric, View
from reweigh.transforms import Reject

_SAFE = Clamped(20.0)  # nats, its SAFETY_BOUND


def _rows(values: Tensor, view: View) -> Tensor:
    """Mean over sequences of the mean over their tokens; a sequence with no token has 0."""
    batch = view.batch()
    x = torch.where(batch.layout.mask, values, 0)
    return view.mean_over_rows(GEOMETRIC.fold(x, batch.layout), batch)


def _spread(level: Level, of: Statistic, then: m.Then, rule: Rule = as_it_comes, fold: Rule = as_it_comes) -> m.Equal:
    def equal(view: View, _: str) -> Tensor:
        batch = view.batch(rule)
        x = level.fold(of(batch), batch.layout)
        x = then(fold(x) if view.plan.metrics_as_they else x)
        return _rows(batch.layout.spread(x) if level.unit == "sequence" else x, view)

    return equal


def _unbounded(view: View, factor: Factor) -> Tensor:
    """Log ratio of the factor's level on each token."""
    batch = view.batch()
    x = factor.level.fold(batch.log_ratio, batch.layout)
    x = batch.layout.spread(x) if factor.level.unit == "sequence" else x
    return _SAFE(x) if view.plan.metrics_as_they and "built_in" not in view.plan.flags else x


def _first(view: View) -> Factor:
    return view.situation.reading.plan.weights.factors[0]


def _before(view: View, _: str) -> Tensor:
    return _rows(_unbounded(view, _first(view)).exp(), view)


def _outside(which: str, screen: bool) -> m.Equal:
    def equal(view: View, _: str) -> Tensor:
        plan = view.situation.reading.plan
        factor = (plan.screens if screen else plan.weights).factors[0]
        x, t = _unbounded(view, factor), factor.transform
        low, high = (m.log(getattr(t, b)) for b in ("low", "high"))
        return _rows((x > high if which == "high" else x < low).float(), view)

    return equal


def _after(normalised: bool) -> m.Equal:
    """The weights after bounds; a mask leaves what it drops as it is, so they are those before bounds."""

    def equal(view: View, _: str) -> Tensor:
        mean = view.outcome.mean
        if isinstance(_first(view).transform, Reject):
            w = _unbounded(view, _first(view)).exp()
            return _rows(w / mean if normalised and mean is not None else w, view)
        w = view.outcome.alone
        return _rows(w if normalised or mean is None else w * mean, view)

    return equal


def _norm_factor(view: View, _: str) -> Tensor:
    assert view.outcome.mean is not None
    return _rows(view.outcome.mean.expand(view.tensors.mask.shape), view)


def _catastrophic(of_sequence: bool) -> m.Equal:
    def equal(view: View, _: str) -> Tensor:
        veto = math.log(view.situation.options["rs_veto_threshold"])
        batch = view.batch()
        bad = batch.layout.mask & (batch.log_ratio < veto)
        return _rows(batch.layout.spread(bad.any(-1)).float() if of_sequence else bad.float(), view)

    return equal


def _distance(view: View, _: str) -> Tensor:
    return _rows(torch.expm1(view.batch().log_ratio).abs(), view)


def _clipped(view: View, name: str) -> Tensor:
    return torch.as_tensor(_outside("high", screen=False)(view, name)) + _outside("low", screen=False)(view, name)


def _helper(*names: str) -> tuple[str, ...]:
    return tuple(f"mis_{n}" for n in names)


METRICS = (
    Metric(_helper("kl"), m.over_row_means(k1), "KL(mu||pi) by k1"),
    Metric(_helper("k3_kl"), m.over_row_means(k3), "KL(mu||pi) by k3"),
    Metric(_helper("training_log_ppl"), _spread(GEOMETRIC, m.surprise_pi, m.same), "mean of -log pi"),
    Metric(_helper("training_ppl"), _spread(GEOMETRIC, m.surprise_pi, m.ratio), "its exp"),
    Metric(_helper("rollout_log_ppl"), _spread(GEOMETRIC, m.surprise_mu, m.same), "mean of -log mu"),
    Metric(_helper("rollout_ppl"), _spread(GEOMETRIC, m.surprise_mu, m.ratio), "its exp"),
    Metric(_helper("log_ppl_diff"), _spread(GEOMETRIC, k1, m.same), "mean k1 of each sequence"),
    Metric(_helper("log_ppl_abs_diff"), _spread(GEOMETRIC, k1, torch.abs), "its absolute value"),
    Metric(_helper("ppl_ratio"), _spread(GEOMETRIC, k1, m.ratio), "1 / geometric ratio"),
    Metric(_helper("chi2_token"), _spread(TOKEN, log_ratio, m.chi2, _SAFE), "chi-square of tokens, by sequence"),
    Metric(_helper("chi2_seq"), _spread(SEQUENCE, log_ratio, m.chi2, fold=_SAFE), "chi-square of sequences"),
    Metric(_helper("tis_weight_before_bound"), _before, "mean ratio at tis_level"),
    Metric(_helper("tis_truncate_fraction", "tis_*_fraction_high"), _outside("high", False), "share over the bound"),
    Metric(_helper("tis_*_fraction_low"), _outside("low", False), "share under the bound"),
    Metric(_helper("rs_mask_fraction_high"), _outside("high", True), "share over the screen's bound"),
    Metric(_helper("rs_mask_fraction_low"), _outside("low", True), "share under the screen's bound"),
    Metric(_helper("tis_weight_after_bound", "is_ratio_mean_after_tis_rs"), _after(False), "mean weight"),
    Metric(_helper("is_ratio_mean_final"), _after(True), "mean weight, normalised"),
    Metric(
        _helper("is_ratio_min_final", "is_ratio_max_final"), None, "means of extremes of sequences: no unit of ours"
    ),
    Metric(_helper("rs_catastrophic_token_fraction"), _catastrophic(False), "share of tokens under the veto"),
    Metric(_helper("rs_catastrophic_seq_fraction"), _catastrophic(True), "share of sequences with one"),
    Metric(_helper("batch_norm_factor"), _norm_factor, "the mean that weights are divided by"),
    Metric(("tis",), _before, "mean token ratio"),
    Metric(("tis_abs",), _distance, "mean |r - 1|"),
    Metric(("tis_clipfrac",), _clipped, "share of tokens outside the bounds"),
    Metric(
        ("opsm_clipfrac",),
        None,
        "a sum over sequences that nobody divides, slots off the mask counted: no share of ours",
    ),
    Metric(("pg_clipfrac", "ppo_kl"), None, "of the loss's own ratio, which is no correction for the sampler"),
)
