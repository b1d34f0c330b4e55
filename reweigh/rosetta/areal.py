"""AReaL 1.0.4: `actor.rejection_sampling`, M2PO, and the decoupled loss."""

import math
from dataclasses import replace

from torch import Tensor

from reweigh.estimators import Estimator, Statistic, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, Level, k2
from reweigh.named import m2po, token_is
from reweigh.rosetta.parts import Within, as_it_comes, bounded_geometric, k3_reversed, one_if_not_finite
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
    RefusedError,
    Situation,
    Template,
    View,
    Word,
    flat,
)
from reweigh.transforms import AtMost, Clip, Screen

_LEVELS: dict[str, Level] = {"token": TOKEN, "sum": SEQUENCE, "mean": GEOMETRIC, "max": WORST}
_STATISTICS: dict[str, Statistic] = {"kl_k2": k2, "kl_k3": k3_reversed}
_METRICS = ("ratio", "kl_k1", "kl_k2", "kl_k3")


def _screened(level: Level, o: Options) -> Estimator:
    low, high, metric = o.get("lower"), float(o.get("upper", 5.0)), o.get("metric", "ratio")
    if metric == "ratio":
        return weigh(level, Screen(low or 0.0, high))
    if metric == "kl_k1":  # log r, with bounds in nats
        return weigh(level, Screen(0.0 if low is None else math.exp(low), math.exp(high)))
    return weigh(level, AtMost(high) if low is None else Within(low, high), of=_STATISTICS[metric])


def _plan(o: Options) -> Plan:
    level, action = o.get("level", "token"), o.get("action", "mask")
    metric, agg = o.get("metric", "ratio"), o.get("agg", "mean")
    for name, value, choices in (
        ("level", level, ("token", "sequence")),
        ("action", action, ("mask", "clamp")),
        ("metric", metric, _METRICS),
        ("agg", agg, ("sum", "mean", "max")),
    ):
        if value not in choices:
            raise RefusedError(f"areal: no {name} {value!r}\nhint: {', '.join(choices)}")
    if action == "clamp" and metric != "ratio":
        raise RefusedError(f"areal: action=clamp is of the ratio only, got metric={metric}\nhint: action=mask")
    unit, own = _LEVELS["token" if level == "token" else agg], TOKEN if level == "token" else GEOMETRIC
    if action == "mask":
        return Plan((weigh(own) if metric == "ratio" else token_is()) * _screened(unit, o))
    low, high = o.get("lower") or 0.0, float(o.get("upper", 5.0))
    if unit is own:
        return Plan(weigh(own, Clip(low, high)))
    return Plan(weigh(bounded_geometric(low, high, unit)))


def _read(options: Options) -> Reading:
    o = flat(options, "rejection_sampling")
    low = o.get("eps_clip", 0.2)
    loss = Loss("ppo_clip", low=low, high=o.get("eps_clip_higher") or low, dual=o.get("c_clip"))
    if o.get("importance_sampling_level") == "sequence":
        loss = replace(loss, kind="gspo")
    if o.get("m2_threshold") is not None:
        return Reading(Plan(m2po(o["m2_threshold"])), loss=loss)
    asked = any(k in o for k in ("level", "action", "metric", "agg", "upper", "lower"))
    return Reading(_plan(o) if asked else Plan(), loss=loss)


def _one_or_as_it_comes(plan: Plan, situation: Situation) -> Plan:
    o = flat(situation.options, "rejection_sampling")
    rule = one_if_not_finite if o.get("metric", "ratio") == "ratio" and "m2_threshold" not in o else as_it_comes
    return replace(plan, rule=rule, screen_rule=rule, metrics_as_they=True)


QUIRKS = (
    Quirk(
        "not_finite_is_one",
        "A ratio that cannot be computed, from a log-prob of -inf, is 1 and kept by metric=ratio, and infinite and "
        "rejected by kl metrics. Ours leaves the mask and is counted.",
        _one_or_as_it_comes,
    ),
)


def _filtered(view: View, _: str) -> Tensor:
    """Share of tokens dropped, or whose weight was moved."""
    o, mask = flat(view.situation.options, "rejection_sampling"), view.batch().layout.mask
    if o.get("action", "mask") == "mask":
        return (~view.outcome.keep)[mask].float().mean()
    unmoved = (weigh(TOKEN) if o.get("level", "token") == "token" else weigh(GEOMETRIC))(view.outcome.batch).per_token
    return (unmoved != view.outcome.per_token)[mask].float().mean()


METRICS = (Metric(("rs_filtered_fraction",), _filtered, "share of tokens that are dropped, or whose weight was moved"),)

AREAL = Profile(
    name="areal",
    version="1.0.4",
    known=("1.0.4",),
    section="actor.rejection_sampling",
    options=(
        Option("level", "token", "unit", ("token", "sequence")),
        Option("action", "mask", "drop or clamp what is outside", ("mask", "clamp")),
        Option("metric", "ratio", "what is compared with the bounds", _METRICS),
        Option("agg", "mean", "how tokens become a sequence", ("sum", "mean", "max")),
        Option("upper", 5.0, "ratio pi/mu; nats for kl metrics"),
        Option("lower", None, "ratio pi/mu; nats for kl metrics"),
        Option("m2_threshold", None, "M2PO: bound on the mean squared log ratio of the batch"),
        Option(
            "importance_sampling_level", "token", "of the loss's own ratio; sequence is GSPO", ("token", "sequence")
        ),
        Option("eps_clip", 0.2, "clip below 1"),
        Option("eps_clip_higher", None, "clip above 1"),
        Option("c_clip", None, "dual clip"),
    ),
    conventions=Conventions(
        ratio="proximal policy / sampler",
        bounds="pi/mu; kl metrics in nats; closed",
        k1="+log r; k3 is 1/r - 1 + log r",
        sequence="filters by agg; weighs by the geometric mean whatever agg is",
        survivors="metric=ratio: the token or geometric ratio; kl metrics: the raw token ratio",
        not_finite="metric=ratio: 1, kept; kl metrics: rejected",
        clamp="none",
        detached="yes",
        denominator="tokens of the original mask",
        normalise="none (M2PO: chosen over the batch)",
    ),
    read=_read,
    words=(
        Word("mask", "action=mask: the mask changes; survivors keep the token or geometric ratio", {"action": "mask"}),
        Word("clamp", "action=clamp", {"action": "clamp"}),
        Word(
            "sequence_mask",
            "level=sequence, action=mask: filter by agg, weigh by the geometric mean",
            {
                "level": "sequence",
                "action": "mask",
                "agg": "sum",
            },
        ),
        Word(
            "sequence_truncate",
            "level=sequence, action=clamp: agg decides, the geometric mean is clamped",
            {
                "level": "sequence",
                "action": "clamp",
                "agg": "sum",
            },
        ),
        Word("token_mask", "level=token, action=mask: the mask changes", {"level": "token", "action": "mask"}),
        Word("token_truncate", "level=token, action=clamp", {"level": "token", "action": "clamp"}),
        Word("sequence", "level=sequence: weighs by the geometric mean", {"level": "sequence"}),
        Word("icepop", "level=token, action=mask: the mask changes, too", {"level": "token", "lower": 0.5}),
        Word("k1", "log r: the other sign; bounds in nats", {"metric": "kl_k1", "lower": -0.5, "upper": 0.5}),
        Word("k3", "1/r - 1 + log r: the other direction", {"metric": "kl_k3", "upper": 0.1}),
        Word("m2po", "drop the largest until the mean squared log ratio is in bound", {"m2_threshold": 0.04}),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        *(
            Template(
                "weights",
                lambda b, level=level, action=action, agg=agg: {
                    "level": level,
                    "action": action,
                    "metric": "ratio",
                    "agg": agg,
                    "upper": b.high,
                    "lower": b.low or None,
                },
            )
            for level, agg in (("token", "mean"), ("sequence", "mean"), ("sequence", "sum"))
            for action in ("mask", "clamp")
        ),
        *(
            Template(
                "weights",
                lambda b, level=level, agg=agg, metric=metric: {
                    "level": level,
                    "action": "mask",
                    "metric": metric,
                    "agg": agg,
                    "upper": b.bound,
                },
            )
            for metric in ("kl_k2", "kl_k3")
            for level, agg in (("token", "mean"), ("sequence", "mean"), ("sequence", "sum"), ("sequence", "max"))
        ),
        Template("screens", lambda b: {"m2_threshold": b.bound}),
    ),
)
