"""slime (and its fork miles): built-in TIS and IcePop, the mis.py helper, and off-policy sequence masking."""

import math
from dataclasses import replace

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST, k1
from reweigh.named import naive, opsm
from reweigh.rosetta.parts import clamped_level
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
)
from reweigh.rosetta.slime_metrics import METRICS
from reweigh.transforms import AtMost, Clip, Reject, Screen, Truncate

_LEVELS = {"token": TOKEN, "sequence": SEQUENCE, "geometric": GEOMETRIC}
_MODES = ("truncate", "clip", "mask")
_SAFE = 20.0  # nats, its SAFETY_BOUND


def _choose(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise RefusedError(f"slime: no {name} {value!r}\nhint: {', '.join(choices)}")
    return value


def _helper(o: Options) -> Plan:
    if not o.get("use_tis"):  # then it rejects nothing either
        return Plan()
    high = float(o.get("tis_upper_bound") or 2.0)
    low = float(o.get("tis_lower_bound") or 1 / high)
    level = _LEVELS[_choose("tis_level", o.get("tis_level", "token"), tuple(_LEVELS))]
    mode = _choose("tis_mode", o.get("tis_mode", "truncate"), _MODES)
    transform = {"truncate": Truncate(high), "clip": Clip(low, max(low, high)), "mask": Reject(low, max(low, high))}
    weights, screens = weigh(level, transform[mode]), naive()
    if o.get("use_rs"):
        level = _LEVELS[_choose("rs_level", o.get("rs_level", "token"), tuple(_LEVELS))]
        top = float(o.get("rs_upper_bound") or high)
        screens = weigh(level, Screen(float(o.get("rs_lower_bound") or 1 / top), top))
        if o.get("rs_veto_threshold"):
            screens = screens * weigh(WORST, AtMost(-math.log(o["rs_veto_threshold"])), of=k1)
    return Plan(weights, screens, normalise="kept" if o.get("tis_batch_normalize") else None)


def _is_helper(o: Options) -> bool:
    named = str(o.get("custom_tis_function_path") or o.get("function", ""))
    if "mis." in named or named == "mis":
        return True
    own = ("tis_level", "tis_mode", "tis_upper", "tis_lower", "tis_batch", "rs_", "use_rs")
    return any(k.startswith(own) for k in o)


def _read(o: Options) -> Reading:
    function = str(o.get("custom_tis_function_path") or o.get("function", ""))
    notes: tuple[str, ...] = ()
    if _is_helper(o):
        plan = _helper(o)
        if o.get("use_rs") and not o.get("use_tis"):
            notes = ("use_rs without use_tis rejects nothing",)
        if not function:
            notes += ("tis_level and the like are the helper's: custom_tis_function_path must name it",)
    elif o.get("use_tis") or ("function" in o and "tis_clip" in o):  # a recorded call is a call
        low, high = float(o.get("tis_clip_low", 0.0)), float(o.get("tis_clip", 2.0))
        plan = Plan(weigh(TOKEN, (Reject if "icepop" in function else Clip)(low, high))).flagged("built_in")
    else:
        plan = Plan()
    high = o.get("eps_clip_high") or o.get("eps_clip", 0.2)
    loss = Loss("ppo_clip", low=o.get("eps_clip", 0.2), high=high, dual=o.get("eps_clip_c"), over="row_means")
    if o.get("advantage_estimator") in ("gspo", "cispo"):
        loss = replace(loss, kind=o["advantage_estimator"])
    if o.get("use_opsm"):
        plan = replace(plan, screens=plan.screens * opsm(o.get("opsm_delta", 1e-4)))
        if not o.get("use_rollout_logprobs"):
            note = "OPSM compares the live policy with the trainer's old one, not with the sampler"
            return Reading(plan, "log_live", "log_pi", loss, (*notes, note))
    return Reading(plan, loss=loss, notes=notes)


def _crash(plan: Plan, situation: Situation) -> Plan:
    o = situation.options
    if not _is_helper(o):
        return plan
    if plan.normalise and o.get("tis_level") == "geometric":
        raise RefusedError("slime: tis_batch_normalize knows no tis_level geometric")
    if not o.get("use_tis") and "tis_upper_bound" not in o:
        raise RefusedError("slime: metrics alone still read tis_lower_bound and tis_upper_bound")
    return plan


def _mean_of_rows(plan: Plan, situation: Situation) -> Plan:
    if not plan.normalise:
        return plan
    factor = plan.weights.factors[0]
    raw = weigh(clamped_level(factor.level, -_SAFE, _SAFE)) if isinstance(factor.transform, Reject) else None
    return replace(plan, normalise="rows", mean_of=raw)


QUIRKS = (
    Quirk(
        "infinite_kept",
        "A log-prob of -inf stays: the helper clamps the folded log ratio to 20 nats and weighs or rejects that, the "
        "built-in ones take the infinite ratio; kl is -inf, k3_kl nan. Ours leaves the mask and is counted.",
        lambda plan, _: keep_infinite(plan),
    ),
    Quirk(
        "mean_of_rows",
        "Batch normalisation of sequence weights divides by the number of all rows, those with no token included; with "
        "tis_mode=mask the mean is of unbounded ratios, rejected ones too. Ours is the mean over kept sequences.",
        _mean_of_rows,
    ),
    Quirk(
        "empty_rows_count",
        "Metrics are means over all rows of the mean of each, so a row with no token counts as 0. Ours leaves it out.",
        lambda plan, _: count_empty_rows(plan),
    ),
    Quirk(
        "helper_fails",
        "The helper raises for tis_level=geometric with tis_batch_normalize, and for metrics without tis bounds. Ours "
        "computes both.",
        _crash,
    ),
)


SLIME = Profile(
    name="slime",
    aliases=("miles",),
    version="624b824a (2026-08-21)",
    known=("624b824a",),
    section="",
    options=(
        Option("use_tis", False, "whether anything is corrected"),
        Option("tis_clip", 2.0, "built-in: upper bound, pi/mu"),
        Option("tis_clip_low", 0.0, "built-in: lower bound, pi/mu"),
        Option("custom_tis_function_path", None, "another function: icepop_function, or the helper's"),
        Option("use_rollout_logprobs", False, "the sampler's log-probs stand for the old policy's"),
        Option("use_opsm", False, "off-policy sequence masking"),
        Option("opsm_delta", 1e-4, "its bound, nats a token"),
        Option("tis_level", "token", "helper: level of the weights", tuple(_LEVELS)),
        Option("tis_mode", "truncate", "helper: what is done outside the bounds", _MODES),
        Option("tis_lower_bound", None, "helper: pi/mu; 1 / tis_upper_bound if not given"),
        Option("tis_upper_bound", 2.0, "helper: pi/mu"),
        Option("tis_batch_normalize", False, "helper: divide the weights by their mean"),
        Option("use_rs", False, "helper: screen; only with use_tis"),
        Option("rs_level", "token", "helper: level of the screen", tuple(_LEVELS)),
        Option("rs_lower_bound", None, "helper: pi/mu"),
        Option("rs_upper_bound", None, "helper: pi/mu"),
        Option("rs_veto_threshold", None, "helper: a token with a smaller ratio drops its sequence"),
        Option("eps_clip", 0.2, "clip below 1"),
        Option("eps_clip_high", None, "clip above 1"),
        Option("eps_clip_c", None, "dual clip"),
        Option("advantage_estimator", "grpo", "gspo and cispo change the loss"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler (OPSM: live / old)",
        bounds="pi/mu; closed; the veto acts below its bound only",
        k1="-log r",
        sequence="the product; geometric is a level of its own",
        survivors="mask: their own ratio; rs: the capped weight",
        not_finite="helper: clamped to 20 nats; built-in: the cap, or zeroed",
        clamp="helper: 20 nats after the fold; built-in: none",
        detached="yes",
        denominator="length of each sequence in the original mask",
        normalise="micro-batch, all rows",
    ),
    read=_read,
    words=(
        Word("tis", "use_tis: clip each token's ratio", {"use_tis": True}),
        Word(
            "icepop",
            "icepop_function: zero outside, mask unchanged",
            {
                "use_tis": True,
                "custom_tis_function_path": "icepop_function",
                "tis_clip_low": 0.5,
                "tis_clip": 5.0,
            },
        ),
        Word(
            "mask", "tis_mode=mask: the mask changes; survivors keep their ratio", {"use_tis": True, "tis_mode": "mask"}
        ),
        Word("truncate", "tis_mode=truncate: from above only", {"use_tis": True, "tis_mode": "truncate"}),
        Word("clip", "tis_mode=clip: both sides, 1 / high below by default", {"use_tis": True, "tis_mode": "clip"}),
        Word("sequence", "tis_level=sequence: the product", {"use_tis": True, "tis_level": "sequence"}),
        Word(
            "geometric",
            "tis_level=geometric: the geometric mean is the weight",
            {"use_tis": True, "tis_level": "geometric"},
        ),
        Word("token", "tis_level=token", {"use_tis": True, "tis_level": "token"}),
        Word(
            "batch_normalize",
            "the weights over their mean, by micro-batch",
            {
                "use_tis": True,
                "tis_level": "sequence",
                "tis_batch_normalize": True,
            },
        ),
        Word("opsm", "use_opsm: live from old policy", {"use_opsm": True, "opsm_delta": 1e-4}),
        Word("kl", "mean of -log r, by sequence", metric="mis_kl"),
        Word("chi2_seq", "E (product of ratios)^2 - 1", metric="mis_chi2_seq"),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        *(
            Template(
                "weights",
                lambda b, level=level, mode=mode: {
                    "use_tis": True,
                    "tis_level": level,
                    "tis_mode": mode,
                    "tis_upper_bound": b.high,
                    "tis_lower_bound": b.low or 1e-9,
                },
            )
            for level in _LEVELS
            for mode in _MODES
        ),
        *(
            Template(
                "screens",
                lambda b, level=level: {
                    "use_tis": True,
                    "use_rs": True,
                    "rs_level": level,
                    "rs_upper_bound": b.high,
                    "rs_lower_bound": b.low or 1e-9,
                },
            )
            for level in _LEVELS
        ),
        Template("screens", lambda b: {"use_opsm": True, "opsm_delta": b.bound, "use_rollout_logprobs": True}),
    ),
)
