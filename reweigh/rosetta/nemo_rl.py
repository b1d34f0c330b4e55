"""NeMo-RL: the importance sampling correction of `loss_fn`, and `grpo.seq_logprob_error_threshold`."""

from dataclasses import replace

from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Factor, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN
from reweigh.named import naive, token_is
from reweigh.rosetta.nemo_rl_metrics import METRICS
from reweigh.rosetta.parts import ZeroIfOverflow, fold_of_ratio, one_if_not_finite
from reweigh.rosetta.plan import Plan, keep_infinite
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
)
from reweigh.transforms import AtMost, Clip, Identity, Reject, Screen

_TYPES = ("tis", "icepop", "seq-mask-tis")


def _plan(o: Options) -> Plan:
    screens = naive()
    if o.get("seq_logprob_error_threshold") is not None:
        screens = weigh(GEOMETRIC, AtMost(o["seq_logprob_error_threshold"]), of=fold_of_ratio)
    if not o.get("use_importance_sampling_correction"):
        return Plan(screens=screens)
    level = SEQUENCE if o.get("sequence_level_importance_ratios") else TOKEN
    kind, low = o.get("truncated_importance_sampling_type"), o.get("truncated_importance_sampling_ratio_min")
    high = o.get("truncated_importance_sampling_ratio")
    if kind is not None and kind not in _TYPES:
        raise RefusedError(f"nemo-rl: no truncated_importance_sampling_type {kind!r}\nhint: {', '.join(_TYPES)}")
    if kind is None:
        return Plan(weigh(level), screens)
    if high is None:
        raise RefusedError("nemo-rl: truncated_importance_sampling_ratio is missing\nhint: a bound over 0, on pi/mu")
    if kind != "tis" and low is None:
        raise RefusedError(f"nemo-rl: {kind} needs truncated_importance_sampling_ratio_min\nhint: a bound on pi/mu")
    if kind == "seq-mask-tis":
        if level is SEQUENCE:
            raise RefusedError("nemo-rl: seq-mask-tis has token weights\nhint: sequence_level_importance_ratios=false")
        return Plan(token_is(), screens, then=weigh(GEOMETRIC, Screen(low or 0.0, high)))
    return Plan(weigh(level, (Clip if kind == "tis" else Reject)(low or 0.0, high)), screens)


def _read(options: Options) -> Reading:
    o = dict(options)
    plan = _plan(o)
    low, high = o.get("ratio_clip_min", 0.2), o.get("ratio_clip_max", 0.2)
    loss = Loss("ppo_clip", low=low, high=high, dual=o.get("ratio_clip_c"))
    notes: tuple[str, ...] = ()
    if o.get("token_level_loss") is False:
        loss = replace(loss, over="means")
    if o.get("sequence_level_importance_ratios"):
        loss = replace(loss, kind="gspo", over="means")
    if o.get("use_cispo"):
        loss = replace(loss, kind="cispo")
    if o.get("force_on_policy_ratio"):
        note = "force_on_policy_ratio: the loss's ratio is 1, so the weight is of the live policy over the sampler"
        return Reading(plan, "log_live", "log_mu", replace(loss, centre="log_live"), (note,))
    return Reading(plan, loss=loss, notes=notes)


def _lost(plan: Plan, _: Situation) -> Plan:
    plan = keep_infinite(plan)

    def change(f: Factor) -> Factor:
        return (
            replace(f, transform=ZeroIfOverflow(f.transform))
            if isinstance(f.transform, (Identity, Clip, Reject))
            else f
        )

    weights = replace(plan, screens=naive(), then=naive()).mapped(change).weights
    return replace(plan, weights=weights).flagged("overflow_is_zero")


def _gate_ignores_infinity(plan: Plan, _: Situation) -> Plan:
    if not plan.then.factors:
        return plan

    def change(f: Factor) -> Factor:
        return replace(f, of=_finite_log_ratio) if f.level is GEOMETRIC and isinstance(f.transform, Screen) else f

    return replace(plan, then=plan.mapped(change).then)


def _finite_log_ratio(batch: Batch) -> Tensor:
    return one_if_not_finite(batch.log_ratio)


QUIRKS = (
    Quirk(
        "infinite_or_overflowing_is_zero",
        "A ratio that float32 cannot hold, from a log-prob of -inf or a log ratio over 88.7, becomes 0 before a bound: "
        "e^88 is truncated to the cap and e^89 weighs 0; with a lower bound it weighs that. Ours is the cap, and a "
        "log-prob of -inf leaves the mask and is counted.",
        _lost,
    ),
    Quirk(
        "gate_ignores_infinity",
        "The geometric gate of seq-mask-tis counts an infinite log ratio as 0, so its sequence can pass.",
        _gate_ignores_infinity,
    ),
    Quirk(
        "sum_for_mean",
        "With sequence_level_importance_ratios the logged sampling_importance_ratio is the sum of the weights, rows "
        "with no token included, as a shape is broadcast, and is_oob_ratio counts tokens. Ours are means of sequences.",
        lambda plan, _: plan.flagged("sum_for_mean"),
    ),
)

NEMO_RL = Profile(
    name="nemo-rl",
    version="7ea279ab (2026-08-22)",
    known=("7ea279ab",),
    section="loss_fn",
    options=(
        Option("use_importance_sampling_correction", False, "whether anything is weighed"),
        Option("truncated_importance_sampling_type", None, "what is done outside the bounds", _TYPES),
        Option("truncated_importance_sampling_ratio", None, "upper bound, pi/mu"),
        Option("truncated_importance_sampling_ratio_min", None, "lower bound, pi/mu"),
        Option("sequence_level_importance_ratios", False, "weigh by the product of the sequence; the loss is GSPO's"),
        Option("seq_logprob_error_threshold", None, "grpo: screen of sequences by the mean of e^|log r|"),
        Option("token_level_loss", True, "mean over tokens, or over sequences of means"),
        Option("force_on_policy_ratio", False, "the loss's own ratio is 1"),
        Option("use_cispo", False, "CISPO"),
        Option("ratio_clip_min", 0.2, "clip below 1"),
        Option("ratio_clip_max", 0.2, "clip above 1"),
        Option("ratio_clip_c", None, "dual clip"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler",
        bounds="pi/mu; closed",
        k1="none (gen_kl_error, policy_kl_error: k3, both directions)",
        sequence="the product as a weight, the geometric mean as a gate",
        survivors="their own ratio; seq-mask-tis: the raw ratio of each token",
        not_finite="0, before any bound; overflow too",
        clamp="none",
        detached="yes",
        denominator="original mask (tis, icepop, seq-mask-tis); seq_logprob_error_threshold shrinks it",
        normalise="none",
    ),
    read=_read,
    words=(
        Word(
            "tis",
            "clip, low 0 by default",
            {
                "use_importance_sampling_correction": True,
                "truncated_importance_sampling_type": "tis",
                "truncated_importance_sampling_ratio": 2.0,
            },
        ),
        Word(
            "icepop",
            "zero outside; the mask stays as it is",
            {
                "use_importance_sampling_correction": True,
                "truncated_importance_sampling_type": "icepop",
                "truncated_importance_sampling_ratio": 5.0,
                "truncated_importance_sampling_ratio_min": 0.5,
            },
        ),
        Word(
            "seq-mask-tis",
            "the geometric mean gates, tokens keep their raw ratio",
            {
                "use_importance_sampling_correction": True,
                "truncated_importance_sampling_type": "seq-mask-tis",
                "truncated_importance_sampling_ratio": 1.002,
                "truncated_importance_sampling_ratio_min": 0.999,
            },
        ),
        Word(
            "sequence",
            "sequence_level_importance_ratios: the product weighs; the loss's own ratio is geometric",
            {
                "use_importance_sampling_correction": True,
                "sequence_level_importance_ratios": True,
            },
        ),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        *(
            Template(
                "weights",
                lambda b, kind=kind, whole=whole: {
                    "use_importance_sampling_correction": True,
                    "truncated_importance_sampling_type": kind,
                    "truncated_importance_sampling_ratio": b.high,
                    "truncated_importance_sampling_ratio_min": b.low,
                    "sequence_level_importance_ratios": whole,
                    "token_level_loss": not whole,
                },
            )
            for kind, whole in (
                ("tis", False),
                ("icepop", False),
                ("seq-mask-tis", False),
                ("tis", True),
                ("icepop", True),
            )
        ),
        Template("weights", lambda b: {"use_importance_sampling_correction": True}),
        Template("screens", lambda b: {"seq_logprob_error_threshold": b.bound}),
    ),
)
