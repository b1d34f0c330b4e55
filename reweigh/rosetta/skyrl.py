"""SkyRL: `trainer.algorithm.off_policy_correction`, and the losses that correct by themselves."""

from dataclasses import replace

from reweigh.estimators import Factor, weigh
from reweigh.levels import SEQUENCE, TOKEN, WORST, k1, log_ratio
from reweigh.named import dppo_kl, dppo_tv, naive, token_mis
from reweigh.rosetta import metrics as m
from reweigh.rosetta.parts import NanPasses, log_ratio_or_nan
from reweigh.rosetta.plan import Plan, count_empty_rows, keep_infinite
from reweigh.rosetta.profile import (
    Conventions,
    Loss,
    Option,
    Options,
    Profile,
    Quirk,
    Reading,
    RefusedError,
    Situation,
    Template,
    Word,
    flat,
)
from reweigh.rosetta.quirks import probabilities_as_they_are
from reweigh.rosetta.skyrl_metrics import BANDS, METRICS
from reweigh.transforms import AtMost, Screen, Truncate

_CAPS = {"token": ("token_tis_ratio_clip_high", 2.0), "sequence": ("sequence_tis_ratio_clip_high", 5.0)}
_SAFE = 20.0  # nats


def _plan(o: Options) -> Plan:
    screens, weights, then = naive(), naive(), naive()
    high, low = o.get("outlier_token_is_threshold_high"), o.get("outlier_token_is_threshold_low")
    if high is not None:
        screens = screens * weigh(WORST, Screen(0.0, high))
    if low is not None:
        screens = screens * weigh(WORST, AtMost(-m.log(low)), of=k1)
    low, high = o.get("token_mask_is_threshold_low"), o.get("token_mask_is_threshold_high")
    if low is not None and high is not None:  # with one of them it masks nothing
        screens = screens * weigh(TOKEN, Screen(low, high))
    kind, metric = o.get("tis_ratio_type"), o.get("sequence_mask_metric")
    if kind is not None:
        if kind not in _CAPS:
            raise RefusedError(f"skyrl: no tis_ratio_type {kind!r}\nhint: token, sequence or null")
        name, cap = _CAPS[kind]
        weights = weigh({"token": TOKEN, "sequence": SEQUENCE}[kind], Truncate(o.get(name, cap)))
    if metric is not None:
        if metric not in BANDS:
            raise RefusedError(f"skyrl: no sequence_mask_metric {metric!r}\nhint: product, geometric or null")
        short, level, low, high = BANDS[metric]
        then = weigh(level, Screen(o.get(f"{short}_mask_low", low), o.get(f"{short}_mask_high", high)))
    return Plan(weights, screens, screens_first=True, then=then)


def _read(options: Options) -> Reading:
    o = flat(options, "off_policy_correction")
    plan, kind = _plan(o), o.get("policy_loss_type", "regular")
    one_sided = (o.get("token_mask_is_threshold_low") is None) != (o.get("token_mask_is_threshold_high") is None)
    notes = ("one token_mask threshold without the other masks nothing",) if one_sided else ()
    if plan.screens.factors and (plan.weights.factors or plan.then.factors):
        notes += ("its later stages see only the tokens that the earlier left; a product reads them all",)
    low, high = o.get("eps_clip_low", 0.2), o.get("eps_clip_high", 0.2)
    loss = Loss("ppo_clip", low=low, high=high, over="sum", clamp=_SAFE)
    if kind == "dual_clip":
        loss = replace(loss, dual=o.get("clip_ratio_c", 3.0))
    elif kind == "gspo":
        loss = replace(loss, kind="gspo")
    elif kind == "cispo":
        rollout = o.get("cispo_anchor", "old") == "rollout"
        if rollout and o.get("tis_ratio_type"):
            raise RefusedError("skyrl: cispo_anchor=rollout corrects already\nhint: tis_ratio_type=null")
        low, high = o.get("cispo_eps_clip_low", 1.0), o.get("cispo_eps_clip_high", 4.0)
        loss = replace(loss, kind="cispo", low=low, high=high, centre="log_mu" if rollout else "log_pi")
    elif kind == "rollout_is":
        loss = replace(loss, kind="policy_gradient")
        return Reading(Plan(token_mis(1 - low, 1 + high)), "log_live", "log_mu", loss, notes, inside=True)
    elif kind == "dppo":
        down, up = o.get("delta_low", 0.2), o.get("delta_high", 0.2)
        screen = dppo_kl(up) if o.get("dppo_type", "binary_tv") == "binary_kl" else dppo_tv(up, down)
        loss = replace(loss, kind="ratio", centre="log_mu")
        return Reading(Plan(screen), "log_live", "log_mu", loss, notes, inside=True)
    elif kind == "importance_sampling":
        loss = replace(loss, kind="ratio")
    return Reading(plan, loss=loss, notes=notes)


def _infinity_times_zero(plan: Plan, _: Situation) -> Plan:
    if not plan.screens.factors:
        return plan

    def change(f: Factor) -> Factor:
        if f.level.unit != "sequence" or f.of is not log_ratio:
            return f
        return replace(f, of=log_ratio_or_nan, transform=NanPasses(f.transform))

    changed = replace(plan, screens=naive()).mapped(change)
    return replace(changed, screens=plan.screens).flagged("infinity_times_zero_row")


QUIRKS = (
    Quirk(
        "infinite_kept",
        "A log-prob of -inf stays: log ratios are clamped to 20 nats after each fold, so it weighs the cap or is "
        "masked. Ours leaves the mask and is counted.",
        lambda plan, _: probabilities_as_they_are(keep_infinite(plan)).flagged("infinite_live"),
    ),
    Quirk(
        "loss_clamps_ratio",
        "The loss's own log ratio is clamped to 20 nats, where its gradient ends. Ours is not.",
        lambda plan, _: plan.flagged("clamp_live"),
    ),
    Quirk(
        "infinity_times_zero",
        "A token of infinite ratio that an earlier stage masked spoils its sequence: infinity times 0 is NaN, which "
        "passes the sequence mask, and the sequence keeps a weight of NaN.",
        _infinity_times_zero,
    ),
    Quirk(
        "empty_rows_count",
        "Shares of sequences divide by all rows, those with no token included. Ours leaves them out.",
        lambda plan, _: count_empty_rows(plan),
    ),
)

SKYRL = Profile(
    name="skyrl",
    version="a9564572 (2026-08-21)",
    known=("a9564572",),
    section="trainer.algorithm.off_policy_correction",
    options=(
        Option("tis_ratio_type", None, "level of the weights", ("token", "sequence")),
        Option("token_tis_ratio_clip_high", 2.0, "cap of token weights, pi/mu"),
        Option("sequence_tis_ratio_clip_high", 5.0, "cap of sequence weights, pi/mu"),
        Option("sequence_mask_metric", None, "a screen of sequences", ("product", "geometric")),
        Option("geo_mask_low", 0.99, "its bounds on the geometric ratio"),
        Option("geo_mask_high", 1.01, "its bounds on the geometric ratio"),
        Option("product_mask_low", 0.5, "its bounds on the product"),
        Option("product_mask_high", 2.0, "its bounds on the product"),
        Option("outlier_token_is_threshold_low", None, "a token with a smaller ratio drops its sequence"),
        Option("outlier_token_is_threshold_high", None, "a token with a larger ratio drops its sequence"),
        Option("token_mask_is_threshold_low", None, "screen of tokens; only with the other one"),
        Option("token_mask_is_threshold_high", None, "screen of tokens; only with the other one"),
        Option(
            "policy_loss_type",
            "regular",
            "the loss",
            (
                "regular",
                "dual_clip",
                "gspo",
                "cispo",
                "rollout_is",
                "dppo",
                "importance_sampling",
            ),
        ),
        Option("eps_clip_low", 0.2, "clip below 1"),
        Option("eps_clip_high", 0.2, "clip above 1"),
        Option("clip_ratio_c", 3.0, "dual clip"),
        Option("cispo_eps_clip_low", 1.0, "cispo: clip below 1"),
        Option("cispo_eps_clip_high", 4.0, "cispo: cap less 1"),
        Option("cispo_anchor", "old", "cispo: the policy that the ratio is to", ("old", "rollout")),
        Option("dppo_type", "binary_tv", "dppo: of what the bound is", ("binary_tv", "binary_kl")),
        Option("delta_low", 0.2, "dppo: bound where the advantage is negative"),
        Option("delta_high", 0.2, "dppo: bound where the advantage is positive"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler (dppo, rollout_is: live / sampler)",
        bounds="pi/mu; closed",
        k1="none",
        sequence="product, or geometric by name",
        survivors="the capped weight; 1 without tis_ratio_type",
        not_finite="clamped to 20 nats; NaN if it was masked before",
        clamp="20 nats after the fold",
        detached="yes (dppo: no)",
        denominator="original mask: advantages are divided before",
        normalise="none",
    ),
    read=_read,
    words=(
        Word("token", "tis_ratio_type=token: capped", {"tis_ratio_type": "token"}),
        Word("sequence", "tis_ratio_type=sequence: the product, capped", {"tis_ratio_type": "sequence"}),
        Word(
            "geometric",
            "sequence_mask_metric=geometric: a screen; survivors weigh 1",
            {"sequence_mask_metric": "geometric"},
        ),
        Word(
            "sequence_mask",
            "sequence_mask_metric=product: a screen; survivors weigh 1 or the capped weight",
            {
                "sequence_mask_metric": "product",
            },
        ),
        Word(
            "token_mask",
            "both thresholds: a screen of tokens; survivors weigh 1 or the capped weight",
            {
                "token_mask_is_threshold_low": 0.5,
                "token_mask_is_threshold_high": 2.0,
            },
        ),
        Word("tis", "tis_ratio_type: from above only", {"tis_ratio_type": "token"}),
        Word(
            "dppo_tv",
            "dppo with binary_tv: gradient through the ratio, no cap",
            {
                "policy_loss_type": "dppo",
                "dppo_type": "binary_tv",
            },
        ),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        Template("weights", lambda b: {"tis_ratio_type": "token", "token_tis_ratio_clip_high": b.high}),
        Template("weights", lambda b: {"tis_ratio_type": "sequence", "sequence_tis_ratio_clip_high": b.high}),
        Template(
            "screens",
            lambda b: {"sequence_mask_metric": "product", "product_mask_low": b.low, "product_mask_high": b.high},
        ),
        Template(
            "screens", lambda b: {"sequence_mask_metric": "geometric", "geo_mask_low": b.low, "geo_mask_high": b.high}
        ),
        Template("screens", lambda b: {"token_mask_is_threshold_low": b.low, "token_mask_is_threshold_high": b.high}),
        Template("screens", lambda b: {"outlier_token_is_threshold_high": b.high}),
    ),
)
