"""Weights and masks of other frameworks, recorded from their own functions, equal ours to float32 rounding.

For each framework a function turns its options into a composition of ours: that table is the translation. What a
framework does differently is a named exception below, with its reason, and what cannot be composed is listed as such.
"""

import fnmatch
import json
import math
from pathlib import Path

import pytest
import torch

from reweigh import (
    GEOMETRIC,
    SEQUENCE,
    TOKEN,
    WORST,
    AtMost,
    Batch,
    Clip,
    Reject,
    Screen,
    Truncate,
    binary_kl,
    dppo_tv,
    for_advantage,
    k1,
    k2,
    k3,
    m2po,
    naive,
    opsm,
    prob_diff,
    self_normalised,
    token_is,
    weigh,
)

RECORDED = json.loads((Path(__file__).parent / "data" / "conformance.json").read_text())


class NotComposableError(Exception):
    """The option's weights are no product of factors."""


# Statistics that some framework screens by and the library has no name for.


def k3_reversed(batch):
    """`1 / r - 1 + log r`."""
    return torch.expm1(-batch.log_ratio) + batch.log_ratio


def gap_of_probs(batch):
    """`|pi - mu|`."""
    return prob_diff(batch).abs()


def signed_gap_of_sequence(batch):
    """The sequence's mean of `|r - 1|`, with the sign of the token's log ratio."""
    gap = GEOMETRIC.fold(torch.expm1(batch.log_ratio).abs(), batch.layout)
    return torch.where(batch.layout.mask, torch.copysign(batch.layout.spread(gap), batch.log_ratio), 0)


def fold_of_ratio(batch):
    """`e^|log r|`."""
    return torch.where(batch.layout.mask, batch.log_ratio.abs().exp(), 0)


# Options -> composition, one function a framework.


def band(text, both=True):
    """`"lo_hi"`, or C for [1/C, C]; else no lower bound."""
    if isinstance(text, str) and "_" in text:
        low, high = map(float, text.split("_"))
        return low, high
    return (1 / float(text) if both else 0.0), float(text)


def verl(o):
    weights = naive()
    if o.get("rollout_is"):
        level, t = {"token": TOKEN, "sequence": SEQUENCE}[o["rollout_is"]], o["rollout_is_threshold"]
        weights = weigh(level, Reject(*band(t)) if isinstance(t, str) else Truncate(t))
    screens, names = naive(), (o.get("rollout_rs") or "").split(",")
    thresholds = str(o.get("rollout_rs_threshold")).split(",")
    levels = {"token": TOKEN, "seq_sum": SEQUENCE, "seq_mean": GEOMETRIC, "seq_max": WORST}
    for name, t in zip(names, thresholds, strict=True):
        if name:
            level, kind = name.rsplit("_", 1)
            if kind == "k1":  # its bounds act on mu / pi
                low, high = band(t)
                screens = screens * weigh(levels[level], Screen(1 / high, 1 / low))
            else:
                screens = screens * weigh(levels[level], AtMost(float(t)), of={"k2": k2, "k3": k3}[kind])
    # Its mean of the weights is over all rows, those that the screens reject included.
    return (weights * screens, weights) if o.get("rollout_is_batch_normalize") else weights * screens


def slime(o):
    if "use_opsm" in o:
        return opsm(o["opsm_delta"])
    if "tis_clip" in o:
        return weigh(
            TOKEN, (Reject if o["function"].endswith("icepop_function") else Clip)(o["tis_clip_low"], o["tis_clip"])
        )
    if not o["use_tis"]:  # then it rejects nothing either
        return naive()
    levels = {"token": TOKEN, "sequence": SEQUENCE, "geometric": GEOMETRIC}
    high, low = o["tis_upper_bound"], o.get("tis_lower_bound") or 1 / o["tis_upper_bound"]
    transform = {"truncate": Truncate(high), "clip": Clip(low, high), "mask": Reject(low, high)}[o["tis_mode"]]
    weights, screens = weigh(levels[o["tis_level"]], transform), naive()
    if o.get("use_rs"):
        screens = weigh(levels[o["rs_level"]], Screen(o["rs_lower_bound"], o["rs_upper_bound"]))
        if o.get("rs_veto_threshold"):
            screens = screens * weigh(WORST, AtMost(-math.log(o["rs_veto_threshold"])), of=k1)
    return (weights * screens, weights) if o.get("tis_batch_normalize") else weights * screens


def skyrl(o):
    """Two compositions: its second stage sees the mask that the first has left."""
    first, second = naive(), naive()
    if o.get("outlier_token_is_threshold_high"):
        first = first * weigh(WORST, Screen(0.0, o["outlier_token_is_threshold_high"]))
    if o.get("outlier_token_is_threshold_low"):
        first = first * weigh(WORST, AtMost(-math.log(o["outlier_token_is_threshold_low"])), of=k1)
    low, high = o.get("token_mask_is_threshold_low"), o.get("token_mask_is_threshold_high")
    if low is not None and high is not None:  # with one of them it masks nothing
        first = first * weigh(TOKEN, Screen(low, high))
    kind = o.get("tis_ratio_type")
    if kind:
        second = weigh({"token": TOKEN, "sequence": SEQUENCE}[kind], Truncate(o[f"{kind}_tis_ratio_clip_high"]))
    metric = o.get("sequence_mask_metric")
    if metric:
        short, level = {"product": ("product", SEQUENCE), "geometric": ("geo", GEOMETRIC)}[metric]
        second = second * weigh(level, Screen(o[f"{short}_mask_low"], o[f"{short}_mask_high"]))
    return [first, second]


def areal(o):
    if "m2_threshold" in o:
        return m2po(o["m2_threshold"])
    low, high, metric = o.get("lower"), o["upper"], o["metric"]
    statistic = {"ratio": None, "kl_k1": None, "kl_k2": k2, "kl_k3": k3_reversed}[metric]
    aggregate = "token" if o["level"] == "token" else o.get("agg", "mean")
    level = {"token": TOKEN, "sum": SEQUENCE, "mean": GEOMETRIC, "max": WORST}[aggregate]
    if metric == "kl_k1":  # log r, with bounds in nats; the weight is each token's own ratio
        return weigh(level, Screen(math.exp(low), math.exp(high))) * token_is()
    if statistic is not None:
        return weigh(level, AtMost(high), of=statistic) * token_is()
    own = TOKEN if aggregate == "token" else GEOMETRIC  # it weighs by the geometric mean whatever it filters by
    if o["action"] == "clamp":
        if level is not own:
            raise NotComposableError(
                "the product decides whether the geometric mean is clamped: a condition, not a factor"
            )
        return weigh(own, Clip(low or 0.0, high))
    return weigh(level, Screen(low or 0.0, high)) * weigh(own)


def swift(o):
    if "off_policy_sequence_mask_delta" in o:
        return opsm(o["off_policy_sequence_mask_delta"])
    cap = o["rollout_importance_sampling_threshold"]
    return {
        "token_truncate": weigh(TOKEN, Truncate(cap)),
        "token_mask": weigh(TOKEN, Reject(0.0, cap)),
        "sequence_truncate": weigh(GEOMETRIC, Truncate(cap)),
        "sequence_mask": weigh(GEOMETRIC, Screen(0.0, cap)) * token_is(),
    }[o["rollout_importance_sampling_mode"]]


def openrlhf(o):
    low, high = o["is_correction_threshold"]
    if o["is_correction_mode"] == "clip":
        return weigh(TOKEN, Clip(low, high))
    level = {"token": TOKEN, "seq": GEOMETRIC}[o["is_correction_level"]]
    statistic = {"ratio": None, "binary_kl": binary_kl, "tv": gap_of_probs}[o.get("is_correction_gating", "ratio")]
    return token_is() * (
        weigh(level, Screen(low, high)) if statistic is None else weigh(level, AtMost(high), of=statistic)
    )


def nemo_rl(o):
    if "seq_logprob_error_threshold" in o:
        return weigh(GEOMETRIC, AtMost(o["seq_logprob_error_threshold"]), of=fold_of_ratio)
    if not o.get("use_importance_sampling_correction"):
        return naive()
    level = SEQUENCE if o.get("sequence_level_importance_ratios") else TOKEN
    low, high = o.get("truncated_importance_sampling_ratio_min") or 0.0, o.get("truncated_importance_sampling_ratio")
    kind = o.get("truncated_importance_sampling_type")
    if kind == "seq-mask-tis":
        return weigh(GEOMETRIC, Screen(low, high)) * token_is()
    return weigh(level, {None: None, "tis": Clip(low, high or math.inf), "icepop": Reject(low, high or math.inf)}[kind])


def trl(o):
    if "vllm_importance_sampling_mode" not in o:
        return opsm(o["off_policy_mask_threshold"])
    level, kind = o["vllm_importance_sampling_mode"].split("_")
    low, high = (
        o.get("vllm_importance_sampling_clip_min") or 0.0,
        o.get("vllm_importance_sampling_clip_max") or math.inf,
    )
    return weigh({"token": TOKEN, "sequence": SEQUENCE}[level], {"truncate": Clip, "mask": Reject}[kind](low, high))


def prime_rl(o):
    if o["type"] == "ipo":
        return weigh(TOKEN, AtMost(o["ipo_threshold"]), of=gap_of_probs) * token_is()
    return dppo_tv(o["dppo_mask_high"], o["dppo_mask_low"])


def roll(o):
    levels = {"token": TOKEN, "geometric": GEOMETRIC, "sequence": SEQUENCE}
    is_weight, out = o["is_weight"], naive()
    kinds = [f["agg_type"] for f in o["filters"]] + ([is_weight["weight_type"]] if is_weight["enabled"] else [])
    if "segment" in kinds:
        raise NotComposableError("a segment is a turn with the geometric mean as its value, and TURN is the product")
    if is_weight["enabled"]:
        out = weigh(levels[is_weight["weight_type"]], Truncate(is_weight["upper_bound"] or math.inf))
    for f in o["filters"]:
        if f.get("ratio_enabled", True):
            out = out * weigh(levels[f["agg_type"]], Screen(f["ratio_low"], f["ratio_high"]))
        if f.get("diff_enabled", False):
            out = out * weigh(levels[f["agg_type"]], AtMost(f["diff_high"]), of=prob_diff)
            out = out * weigh(levels[f["agg_type"]], AtMost(-f["diff_low"]), of=prob_diff, scale=-1)
    return out


def open_instruct(o):
    if not o.get("use_rho_correction", True):
        return naive()
    clamp = Clip(o.get("rho_clamp_lower_bound") or 0.0, o.get("rho_clamp_upper_bound") or 2.0)
    low, high = o.get("rho_mask_lower_bound") or 0.0, o.get("rho_mask_upper_bound") or math.inf
    if o.get("rho_mask_tv_divergence"):  # tokens that move further away, in a sequence that is far off
        rise = for_advantage(+1, weigh(TOKEN, AtMost(high), of=signed_gap_of_sequence))
        fall = for_advantage(-1, weigh(TOKEN, AtMost(high), of=signed_gap_of_sequence, scale=-1))
        return rise * fall * weigh(TOKEN, clamp)
    level = GEOMETRIC if o.get("rho_mask_sequence_level") else TOKEN  # where it also weighs by the geometric mean
    return weigh(level, Screen(low, high)) * weigh(level, clamp)


TRANSLATE = {
    "verl": verl,
    "slime": slime,
    "skyrl": skyrl,
    "areal": areal,
    "ms-swift": swift,
    "openrlhf": openrlhf,
    "nemo-rl": nemo_rl,
    "trl": trl,
    "prime-rl": prime_rl,
    "roll": roll,
    "open-instruct": open_instruct,
}

# Where a framework does otherwise, row by row, and why. No other row of any case may differ.
ALL = (0, 1, 2, 3, 4, 5)
INFINITE = "a log-prob of -inf: the token leaves our mask and is counted; theirs weighs it, drops its row or is NaN"
EXCEPTIONS = [
    ("*/edge", (1,), INFINITE),
    ("verl/*batchnorm*/edge", ALL, "its mean of the weights includes that of the -inf token"),
    ("slime/*batchnorm*/edge", ALL, "its mean of the weights includes the -inf token's, and all-masked rows"),
    (
        "ms-swift/sequence_mask/edge",
        (0,),
        "log ratios are clamped at 20: a ratio of e^60 passes the mask and weighs e^20",
    ),
    (
        "nemo-rl/token_*/overflow",
        (4,),
        "a ratio that float32 cannot hold weighs 0: e^88 is truncated to C, e^89 is not",
    ),
    ("open-instruct/rho_clamp/overflow", (0,), "log ratios are clamped at -10 and 10: a ratio of e^-60 weighs e^-10"),
    ("open-instruct/rho_*/edge", (0,), "log ratios are clamped at -10 and 10: a ratio of e^-60 weighs e^-10"),
    (
        "prime-rl/default*/holes",
        (5,),
        "an advantage of 0 takes the bound of a negative one; ours has no gradient, and passes",
    ),
]

NOT_COMPOSABLE = ("areal/seq_clamp_ratio_sum", "roll/weight_segment", "roll/filter_segment_ratio")


def numbers(x):
    """Tensor of a recorded matrix: null is NaN here, and so is "nan"."""
    special = {None: math.nan, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    rows = [[special.get(v, v) if v is None or isinstance(v, str) else v for v in row] for row in x]
    return torch.tensor(rows, dtype=torch.float32)


def batch_of(name, log_pi="log_pi", log_mu="log_mu", mask=None):
    b = RECORDED["batches"][name]
    mask = numbers(b["mask"]) > 0 if mask is None else mask
    return Batch.padded(numbers(b[log_pi]), numbers(b[log_mu]), mask, advantage=torch.tensor(b["advantage"]))


def ours(case):
    """(weight, keep) of each token, by the translated option."""
    option = dict(case["option"], function=case["function"])
    composed = TRANSLATE[case["framework"]](option)
    batch = batch_of(case["batch"])
    if case["id"].startswith("slime/opsm_default"):  # between the trainer's own policies: the live one and the old one
        batch = batch_of(case["batch"], "log_live", "log_pi")
    if case["id"].startswith("verl/is_token_all_masked"):
        batch = batch_of(case["batch"], mask=torch.zeros_like(batch.layout.mask))
    if isinstance(composed, list):
        first = composed[0](batch)
        w = composed[1](batch_of(case["batch"], mask=first.keep_tokens))
        return w.per_token, w.keep_tokens
    if isinstance(composed, tuple):
        whole, weights = composed
        w = self_normalised(whole)(batch, weights(batch).log_normaliser())
    else:
        w = composed(batch)
    return w.per_token, w.keep_tokens


def theirs(case):
    """(weight, keep) of each token: where it multiplies the loss and where it is 0, by a mask or by itself."""
    out, b = case["outputs"], RECORDED["batches"][case["batch"]]
    mask = numbers(b["mask"]) > 0
    weight = torch.ones(mask.shape)
    if out.get("weight_per_token") is not None:
        weight = numbers(out["weight_per_token"])
    if "weight_per_sequence" in out:
        weight = numbers([out["weight_per_sequence"]])[0][:, None].expand(mask.shape)
    keep = mask.clone()
    if "mask_out" in out:
        keep &= numbers(out["mask_out"]) > 0
    for name in ("keep_per_sequence", "sample_mask"):
        if name in out:
            keep &= numbers([out[name]])[0][:, None] > 0
    keep &= weight != 0
    return torch.where(keep, weight, 0), keep


def exceptions(case):
    return {r for pattern, rows, _ in EXCEPTIONS if fnmatch.fnmatch(case["id"], pattern) for r in rows}


def composable(case):
    return case["id"].rsplit("/", 1)[0] not in NOT_COMPOSABLE


CASES = [pytest.param(c, id=c["id"]) for c in RECORDED["cases"]]


def differing_rows(case):
    weight, keep = ours(case)
    expected, expected_keep = theirs(case)
    close = torch.isclose(weight, expected, rtol=3e-6, atol=1e-7) & (keep == expected_keep)
    return {int(r) for r in (~close).any(-1).nonzero()}


@pytest.mark.parametrize("case", CASES)
def test_weights_and_masks_are_theirs(case):
    if case["id"].rsplit("/", 1)[0] in NOT_COMPOSABLE:
        with pytest.raises(NotComposableError):
            ours(case)
    else:
        assert differing_rows(case) <= exceptions(case)


@pytest.mark.parametrize(("pattern", "rows", "reason"), EXCEPTIONS)
def test_every_exception_is_one(pattern, rows, reason):
    """One that no longer differs has to go."""
    cases = [c for c in RECORDED["cases"] if fnmatch.fnmatch(c["id"], pattern)]
    cases = [c for c in cases if c["id"].rsplit("/", 1)[0] not in NOT_COMPOSABLE]
    assert set(rows) & {r for c in cases for r in differing_rows(c)}, reason


# What a slot off the mask holds: nothing (0), a weight that a later mask removes (1), or the bounded ratio of garbage.
OFF_THE_MASK = {
    "verl/is_token_tis": 0,
    "slime/mis_token_truncate": 0,
    "areal/token_mask_ratio": 0,
    "open-instruct/rho_clamp": 0,
    "trl/token_truncate": 1,
    "skyrl/tis_token": "ratio",
    "ms-swift/token_truncate": "ratio",
    "nemo-rl/token_tis": "ratio",
    "roll/weight_token": "ratio",
}


@pytest.mark.parametrize(("name", "holds"), OFF_THE_MASK.items())
def test_off_the_mask_ours_is_0_and_theirs_is_what_is_said(name, holds):
    case = next((c for c in RECORDED["cases"] if c["id"] == f"{name}/holes"), None)
    case = case or next(c for c in RECORDED["cases"] if c["id"] == f"{name}/small")
    b = RECORDED["batches"][case["batch"]]
    off, got = numbers(b["mask"]) == 0, numbers(case["outputs"]["weight_per_token"])
    off &= ~torch.isnan(got)
    assert off.any()
    assert (ours(case)[0][off] == 0).all()
    ratio = (numbers(b["log_pi"]) - numbers(b["log_mu"])).exp()
    cap = got.max()
    expected = torch.full_like(got, holds) if isinstance(holds, int) else ratio.clamp(max=float(cap))
    torch.testing.assert_close(got[off], expected[off], rtol=1e-6, atol=1e-7)


def test_the_recording_covers_the_frameworks():
    counts = {f: sum(c["framework"] == f for c in RECORDED["cases"]) for f in TRANSLATE}
    assert min(counts.values()) >= 8
    assert sum(counts.values()) == len(RECORDED["cases"])
