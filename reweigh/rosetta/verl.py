"""verl 0.9.1: `algorithm.rollout_correction`, and its policy losses."""

from dataclasses import replace

from reweigh.estimators import Estimator, weigh
from reweigh.levels import SEQUENCE, TOKEN
from reweigh.named import dppo_kl, dppo_tv, naive
from reweigh.rosetta.parts import Clamped
from reweigh.rosetta.plan import Plan, count_empty_rows, keep_infinite
from reweigh.rosetta.profile import (
    Conventions,
    Loss,
    Option,
    Options,
    Over,
    Profile,
    Quirk,
    Reading,
    RefusedError,
    Situation,
    Template,
    Word,
    flat,
)
from reweigh.rosetta.verl_metrics import METRICS
from reweigh.rosetta.verl_options import LEVELS, SAFE, SCREENS, STATISTICS, band, screens_of
from reweigh.rosetta.verl_presets import PRESETS
from reweigh.transforms import AtMost, Reject, Screen, Truncate

_FAR = 1e9  # a ratio that stands for no bound
_OVER: dict[str, Over] = {"token-mean": "tokens", "seq-mean-token-sum": "sums", "seq-mean-token-mean": "means"}


def _screen(name: str, threshold: str) -> Estimator:
    level, kind = name.rsplit("_", 1)
    if kind == "k1":
        low, high = band(threshold)
        return weigh(LEVELS[level], Screen(1 / high, 1 / low))
    return weigh(LEVELS[level], AtMost(float(threshold)), of=STATISTICS[kind])


def _plan(o: Options) -> Plan:
    weights, screens = naive(), naive()
    kind, threshold = o.get("rollout_is"), o.get("rollout_is_threshold", 2.0)
    if kind is not None and threshold is not None:
        if kind not in ("token", "sequence"):
            raise RefusedError(f"verl: rollout_is must be token, sequence or null, got {kind!r}\nhint: see docs")
        level = TOKEN if kind == "token" else SEQUENCE
        banded = isinstance(threshold, str) and "_" in threshold
        weights = weigh(level, Reject(*band(threshold)) if banded else Truncate(float(threshold)))
    for name, told in screens_of(o):
        screens = screens * _screen(name, told)
    normalise = "kept" if o.get("rollout_is_batch_normalize") and weights.factors else None
    return Plan(weights, screens, normalise=normalise)


def _read(options: Options) -> Reading:
    o = flat(options, "rollout_correction")
    plan, function = _plan(o), str(o.get("function", ""))
    mode = o.get("loss_mode") or function.rpartition("compute_policy_loss_")[2]
    clip = o.get("clip_ratio", 0.2)
    loss = Loss(
        "ppo_clip",
        low=o.get("clip_ratio_low", clip),
        high=o.get("clip_ratio_high", clip),
        dual=o.get("clip_ratio_c", 3.0),
        over=_OVER.get(o.get("loss_agg_mode", "token-mean"), "tokens"),
        clamp=SAFE,
    )
    if mode in ("dppo_tv", "dppo_kl"):
        cap = o.get("clip_ratio_c", 20.0)
        screen = dppo_tv(loss.high, loss.low, cap) if mode == "dppo_tv" else dppo_kl(loss.high, cap)
        return Reading(Plan(screen), "log_live", "log_pi", replace(loss, kind="policy_gradient"), inside=True)
    if mode == "gspo":
        return Reading(plan, loss=replace(loss, kind="gspo", dual=None))
    if mode == "cispo":
        return Reading(plan, loss=replace(loss, kind="cispo"))
    if mode == "bypass_mode" or o.get("bypass_mode"):
        loss = replace(loss, survivors=True)
        note = "bypass: the sampler's log-probs are the old policy's; the weight is of the live policy over it"
        if o.get("loss_type", "ppo_clip") == "reinforce":
            loss = replace(loss, kind="policy_gradient")
        else:
            plan = replace(plan, applied=False)
            note += "; ppo_clip applies no weight, as its own ratio is that to the sampler"
        return Reading(plan, loss=replace(loss, live="log_pi", centre="log_mu"), notes=(note,))
    return Reading(plan, loss=loss)


# Quirks.


def _clamp_screens(plan: Plan, _: Situation) -> Plan:
    return replace(plan, screen_rule=Clamped(SAFE))


def _mean_of_all(plan: Plan, _: Situation) -> Plan:
    return replace(plan, normalise="all") if plan.normalise else plan


def _no_empty_batch(plan: Plan, situation: Situation) -> Plan:
    if not bool(situation.tensors.mask.any()):
        raise RefusedError("verl: response_mask must contain at least one valid token")
    return plan


QUIRKS = (
    Quirk(
        "infinite_kept",
        "A log-prob of -inf stays: the log ratio is clamped at 20 nats, so the token weighs the cap, or is zeroed by a "
        "band; kl and k3_kl become -inf and nan. Ours leaves the mask and is counted.",
        lambda plan, _: keep_infinite(plan),
    ),
    Quirk(
        "screens_clamp_tokens",
        "Rejection clamps each token's log ratio to [-20, 20] before it is summed, averaged or maximised, so ratios "
        "of e^60 and e^-60 count as e^20 and e^-20, and a -inf as e^20. Ours clamps nothing.",
        _clamp_screens,
    ),
    Quirk(
        "loss_clamps_ratio",
        "The loss's own log ratio, live to old policy, is clamped to 20 nats, where its gradient ends. Ours is not.",
        lambda plan, _: plan.flagged("clamp_live"),
    ),
    Quirk(
        "mean_of_all",
        "Batch normalisation divides by the mean over all units, those that a band zeroed included. Ours is over kept.",
        _mean_of_all,
    ),
    Quirk(
        "empty_rows_count",
        "Means over sequences count rows with no token: as 0, or as a perplexity of 1. Ours leaves them out.",
        lambda plan, _: count_empty_rows(plan),
    ),
    Quirk(
        "fails_without_tokens",
        "A batch with no token of the mask raises ValueError. Ours gives no weight to anything.",
        _no_empty_batch,
    ),
)


WORDS: tuple[Word, ...] = (
    Word("token", "rollout_is=token: each token's own ratio, capped", {"rollout_is": "token"}),
    Word("sequence", "rollout_is=sequence: the product, capped", {"rollout_is": "sequence"}),
    Word(
        "icepop",
        'a threshold "low_high": weights outside are zeroed, the mask stays as it is',
        {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"},
    ),
    Word(
        "geometric",
        "seq_mean_k1: a screen on the mean log ratio, bounds on mu/pi; survivors weigh 1",
        {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.999_1.001"},
    ),
    Word(
        "k1",
        "-log r; its bounds, given as ratios, act on mu/pi",
        {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.5_5.0"},
        "rollout_corr/kl",
    ),
    Word("k2", "(log r)^2 / 2, bound from above", {"rollout_rs": "token_k2", "rollout_rs_threshold": 0.1}),
    Word(
        "k3",
        "r - 1 - log r, bound from above",
        {"rollout_rs": "seq_mean_k3", "rollout_rs_threshold": 0.01},
        "rollout_corr/k3_kl",
    ),
    Word(
        "batch_normalize", "the weights over their mean", {"rollout_is": "sequence", "rollout_is_batch_normalize": True}
    ),
    Word("dppo_tv", "bound on pi - mu by the sign of the advantage", {"loss_mode": "dppo_tv"}),
    Word(
        "chi2_seq",
        "E (product of ratios)^2 - 1, the log of the product clamped to 20 nats",
        metric="rollout_corr/chi2_seq",
    ),
    Word("ess", "rollout_is_eff_sample_size: of truncated weights, by token: near 1 whatever the ratios are"),
    Word("kl", "mean of -log r over tokens", metric="rollout_corr/kl"),
)


VERL = Profile(
    name="verl",
    version="0.9.1",
    known=("0.9.1",),
    section="algorithm.rollout_correction",
    options=(
        Option("rollout_is", None, "level of the weights", ("token", "sequence")),
        Option("rollout_is_threshold", 2.0, 'a number caps the weights; "low_high" zeroes those outside (IcePop)'),
        Option("rollout_is_batch_normalize", False, "divide the weights by their mean"),
        Option("rollout_rs", None, "screens, separated by commas; all must pass", SCREENS),
        Option(
            "rollout_rs_threshold", None, 'for each screen: "low_high" on mu/pi for k1, an upper bound in nats else'
        ),
        Option("bypass_mode", False, "the sampler's log-probs stand for the old policy's"),
        Option("loss_type", "ppo_clip", "the loss in bypass mode", ("ppo_clip", "reinforce")),
        Option(
            "loss_mode", "vanilla", "the policy loss", ("vanilla", "dppo_tv", "dppo_kl", "gspo", "cispo", "bypass_mode")
        ),
        Option("loss_agg_mode", "token-mean", "what the loss is divided by"),
        Option("clip_ratio", 0.2, "clip of the loss's own ratio"),
        Option("clip_ratio_low", 0.2, "clip below 1"),
        Option("clip_ratio_high", 0.2, "clip above 1"),
        Option("clip_ratio_c", 3.0, "dual clip; in dppo the cap on the ratio"),
    ),
    conventions=Conventions(
        ratio="old policy / sampler (bypass: live / sampler)",
        bounds="weights: pi/mu; k1 screens: mu/pi; closed",
        k1="-log r",
        sequence="the product (rollout_is, seq_sum); the mean is seq_mean",
        survivors="their capped weight; 1 if rollout_is is null",
        not_finite="clamped to 20 nats, then capped or zeroed; metrics -inf, nan",
        clamp="20 nats: weights after the sum, screens token by token",
        detached="yes",
        denominator="tokens of the original mask (V1 trainer)",
        normalise="whole batch, all units with a token",
    ),
    read=_read,
    words=(*WORDS, *PRESETS),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        Template("weights", lambda b: {"rollout_is": "token", "rollout_is_threshold": b.high}),
        Template("weights", lambda b: {"rollout_is": "sequence", "rollout_is_threshold": b.high}),
        Template("weights", lambda b: {"rollout_is": "token", "rollout_is_threshold": f"{b.low:g}_{b.high:g}"}),
        Template("weights", lambda b: {"rollout_is": "sequence", "rollout_is_threshold": f"{b.low:g}_{b.high:g}"}),
        *(
            Template(
                "screens",
                lambda b, n=n: {
                    "rollout_rs": n,
                    "rollout_rs_threshold": f"{1 / min(b.high, _FAR):.12g}_{min(1 / max(b.low, 1e-300), _FAR):.12g}",
                },
            )
            for n in ("token_k1", "seq_sum_k1", "seq_mean_k1")
        ),
        *(
            Template("screens", lambda b, n=n: {"rollout_rs": n, "rollout_rs_threshold": b.bound})
            for n in SCREENS
            if not n.endswith("k1")
        ),
    ),
)
