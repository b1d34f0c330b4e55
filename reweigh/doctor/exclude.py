"""Says which causes the evidence rules out, whatever a test or a regression makes of them; and what is left where only
the size of the gap says anything.
"""

import math
from collections.abc import Mapping

import numpy as np

from reweigh.doctor.causes import ABOUT, CAUSES, CauseId
from reweigh.doctor.cells import Array, Keyed, ratio
from reweigh.doctor.diagnosis import NAMED, Evidence, Spread, Suspicion
from reweigh.doctor.families.distribution import BOUNDED, FORWARD, GAP, SQUARES, UP, N
from reweigh.doctor.families.noise import decode_rms, size_of
from reweigh.doctor.families.place import farthest, lag_said, sizes_by_step
from reweigh.doctor.families.responses import correlation_of, profile_of
from reweigh.doctor.family import Case, counted, once, p_above
from reweigh.stats.verdict import KL_NOTICEABLE

FEWEST = 200  # tokens, below which only what stands in the rows themselves is said
CLUSTERS = 4  # responses, or groups of them, below which nothing has an error to be judged by
_ROWS: frozenset[CauseId] = frozenset(
    ("wrong_units", "placeholder_logprob", "unmasked_context", "retokenisation", "shift", "wrong_token")
)
_OTHER_LAW: frozenset[CauseId] = frozenset(("raw_logprobs", "truncated_sampling", "vocab_padding"))
PROPER: frozenset[CauseId] = frozenset(CAUSES) - _ROWS - _OTHER_LAW - {"both_raw"}
"""Causes that leave both columns log-probs of proper policies, mu the one that sampled: the mean ratio stays 1."""
EVERYWHERE: frozenset[CauseId] = frozenset(
    (
        *("wrong_token", "raw_logprobs", "truncated_sampling", "vocab_padding", "both_raw", "trainer_temperature"),
        *("repetition_penalty", "position_encoding", "dropout", "moe_routing", "quantised_rollout", "weight_sync"),
        *("update_below_precision", "numerics", "none"),
    )
)
"""Causes that act on every response."""
_MOVING: frozenset[CauseId] = frozenset(("weight_sync", "update_below_precision", "none"))
STEADY: frozenset[CauseId] = EVERYWHERE - _MOVING | frozenset[CauseId](("template_prefix", "packing_leak"))
"""Causes that are there at each step."""

_LEAST = 1e-3  # of the mean ratio
_ONE_SIDED = 0.12  # of the squared log ratio on the other side: less is no noise and no other policy
_EVEN = 4.0  # mean log ratio over the log of the mean ratio
_UNROUNDED = 0.12  # nats, rms; or over 1 - p: no rounding of a sound engine is larger
_HELD_BACK = (5e-6, 0.03)  # nats over 1 - p: of lost roundings the first step is below, as float32 is, the last too
_GROWN_FROM = 300.0  # times
_GROWN = 0.03  # nats over 1 - p: rounding that grows with the logits stays below
_NOTHING = 1e-5
_ROUNDED = 0.06  # nats over 1 - p, the median: bfloat16 gives .02 to .055 on one side or both
_BF16 = 0.045
_OWN = (1.15, 1.5)  # the trainer's distance to the engine's prefill over that of its decode, where both only round
_ROUNDS = 0.03  # nats, rms of decode to prefill: bfloat16 gives up to .02, faults of decoding .04 and more
_TOLD = 0.9
_SERVERS = ("vllm", "sglang", "llama.cpp")  # engines whose cache and weights are often in fewer bits than they say
_FALLS = 0.3  # of an earlier step: weights that do not arrive make a gap that stays
_FLOAT32, _HALF = ("float32", "fp32", "f32"), ("bfloat16", "bf16", "float16", "fp16", "half", "f16")
_FAR = 64  # tokens: in shorter contexts positions read otherwise and what is done at a place are alike
_CUT_OFF = 0.05  # nats, half a mean square: more than is missing from pi where a sampler keeps seven tenths of the mass
_MOSTLY = 0.9  # of the tokens
_RETURNS = 30.0  # times: between the steps of a gap that is always there


@once
def mean_excludes(case: Case) -> str:
    """Says why the mean ratio cannot be that of two proper policies, the first of which sampled; "" if it can."""
    m = case.identity
    total = m.sum(0)
    if total[N] == 0 or total[SQUARES] <= 0:
        return ""
    half = min(0.5 * total[SQUARES] / total[N], 0.3)
    least = max(_LEAST, 0.25 * half)
    bounded, whole = ratio(m[:, BOUNDED], m[:, N]), ratio(m[:, FORWARD], m[:, N])
    if bounded.z > 4 and bounded.value > least:
        return "the mean ratio is over 1, which it is not if log_mu is of what was sampled"
    # Where mass is missing each ratio is about the mass that is left. Where rare large ratios were not met, so that the
    # mean is low for a while, most are far lower than their mean.
    even = whole.value > -1 and total[GAP] / total[N] > _EVEN * math.log1p(whole.value)
    if whole.z < -4 and whole.value < -least and total[UP] < _ONE_SIDED * total[SQUARES] and even:
        return "the mean ratio is under 1 and hardly a log ratio is above 0: mass is missing on one side"
    return ""


def by_mean(case: Case) -> dict[CauseId, str]:
    """Returns why causes that leave both columns proper are not named alone: beside one that does not, they may be."""
    reason = mean_excludes(case) if case.tokens >= FEWEST else ""
    return dict.fromkeys(PROPER, reason) if reason else {}


def excluded(case: Case, found: Mapping[str, float], spread: Spread | None) -> dict[CauseId, str]:
    """Returns why a cause is not named, by its name.

    Args:
        case: the sums.
        found: the numbers of `reweigh.doctor.confidence.features`.
        spread: the few responses that carry the gap, if it is so.
    """
    out: dict[CauseId, str] = {}

    def rule_out(causes: frozenset[CauseId] | tuple[CauseId, ...], reason: str) -> None:
        for cause in causes:
            out.setdefault(cause, reason)

    if spread is not None:
        rule_out(EVERYWHERE, f"it acts on every response, and the gap is in {spread.responses} of {spread.of}")
    only_engine = _engine_alone(case)
    if only_engine:
        rule_out(
            frozenset(CAUSES) - {"engine_decode", "placeholder_logprob", "wrong_units", "numerics", "none"},
            "no log-prob of a trainer was looked at",
        )

    # The mean ratio.
    if not mean_excludes(case):
        m = case.identity
        bounded, whole, gap = (ratio(m[:, i], m[:, N]) for i in (BOUNDED, FORWARD, GAP))
        total = m.sum(0)
        half = min(0.5 * total[SQUARES] / max(total[N], 1), 0.3)
        reason = "the mean ratio is 1, far more exactly than that would leave it"
        if bounded.value + 3 * bounded.se < 0.5 * half:
            rule_out(("raw_logprobs",), reason)
        if whole.value - 3 * whole.se > -0.3 * min(abs(gap.value), 0.3):
            rule_out(("truncated_sampling", "vocab_padding"), reason)

    # Places.
    profile = profile_of(case)
    if profile.kind == "step":
        rule_out(("position_encoding",), f"the gap begins or ends at token {profile.at}: a step, no slope")
    if profile.kind == "period":
        rule_out(("position_encoding",), f"the gap returns every {profile.at} tokens")
    if max(found.get("trend_in_response", -1.0), found.get("trend_in_context", -1.0)) < 0:
        rule_out(("position_encoding",), "the gap does not grow with the place")

    # Steps.
    steps = sizes_by_step(case)
    if _all_but_gone(steps):
        rule_out(STEADY, "the gap is all but gone at some steps")
    if len(steps) < 3:
        rule_out(("weight_sync", "update_below_precision"), "fewer than three training steps")
    else:
        lowest_since = steps[1:] / np.maximum(np.maximum.accumulate(steps)[:-1], _NOTHING / 10)
        if lowest_since.min() < _FALLS:
            rule_out(("weight_sync", "update_below_precision"), "the gap falls again along the run: weights do arrive")
        first, last = float(steps[0]), float(steps[-max(len(steps) // 8, 1) :].mean())
        if last < _GROWN or last < 1.5 * first:
            rule_out(("weight_sync",), "the gap does not grow beyond what rounding alone makes")
        least, most = _HELD_BACK
        if first > least or last < _GROWN_FROM * first or last > most:
            rule_out(("update_below_precision",), "the gap does not begin at nothing, or grows beyond rounding")
    if case.sums.get("lag") is not None and found.get("lags known", 0) and not found.get("lags above 0", 0):
        rule_out(("stale_weights",), "no token was sampled by older weights")

    # What only a column of its own can show.
    if "prefill" not in case.sums:
        rule_out(("engine_decode",), "no prefill of the engine")
    elif not only_engine and found.get("decode_less_prefill", 0.0) < 0:
        rule_out(("engine_decode",), "the engine's decode is nearer to its prefill than the trainer is")
    elif not only_engine and decode_rms(case) * case.temperature < _ROUNDS:
        rule_out(("engine_decode",), "the engine's decode is as near to its prefill as rounding leaves it")
    if "repeat" in case.sums and found.get("own_noise", 0.0) < 2 * 0.15:
        rule_out(("dropout",), "two passes of the trainer agree")
    if "seen" not in case.sums:
        rule_out(("repetition_penalty",), "no token ids")
    if "pack" not in case.sums:
        rule_out(("packing_leak",), "no pack_index")

    if case.baseline is not None and size_of(case) < 1.4 * size_of(Case(case.baseline, case.info)):
        rule_out(("quantised_rollout",), "sizes are those of the baseline")

    # Sizes.
    m = case.identity.sum(0)
    rms = float(np.sqrt(m[SQUARES] / max(m[N], 1))) * case.temperature
    if size_of(case) > _UNROUNDED or rms > _UNROUNDED:
        rule_out(("numerics",), "the gap is larger than rounding makes it")
    if size_of(case, 0.9) > 1e-4:
        rule_out(("none",), "there is a gap")
    if size_of(case, 0.9) < 1e-5:
        seen: frozenset[CauseId] = frozenset(
            c for c in CAUSES if ABOUT[c].order != "benign" and c not in _ROWS and c != "both_raw"
        )
        rule_out(seen, "there is no gap")
    types = tuple(str(case.info.get(name) or "").lower() for name in ("dtype_mu", "dtype_pi"))
    if all(name in _FLOAT32 for name in types) and size_of(case) > 1e-3:
        rule_out(("numerics",), "both sides say float32, whose rounding is a thousand times smaller")
    if all(name in _FLOAT32 for name in types):
        rule_out(("quantised_rollout",), "both sides say float32")
    elif types[0] and types[0] not in (*_FLOAT32, *_HALF):
        rule_out(("numerics",), f"the file says that the engine computes in {types[0]}")
    temperature = case.info.get("temperature")
    if temperature == 1.0 and not case.by_content.share.value > 0.9:
        rule_out(("trainer_temperature",), "the file says temperature 1, and more than a temperature is in the gap")
    return out


def held_back(case: Case, found: Mapping[str, float]) -> dict[CauseId, str]:
    """Returns causes that may be candidates and are not named, and why: what would tell them from their likenesses is
    not in the records, or shows nothing.

    Args:
        case: the sums.
        found: the numbers of `reweigh.doctor.confidence.features`.
    """
    if case.tokens < FEWEST or (case.identity[:, N] > 0).sum() < CLUSTERS:
        return dict.fromkeys(CAUSES, "too few tokens or responses")
    out: dict[CauseId, str] = {}
    if case.cells("tail").total[:, 0].sum() == 0:
        out["vocab_padding"] = "no entropies: a sampler that cuts off takes mass from one side, too"
        out["unmasked_context"] = "no entropies: text of a tool that is counted looks like a tool that says nothing"
    if "repeat" not in case.sums:
        out["dropout"] = "no second pass of the trainer: fewer bits and other weights make such noise, too"
    if not found.get("lags known", 0.0):
        out["weight_sync"] = "no versions: weights that arrive late make a gap that grows, too"
        out["template_prefix"] = "no versions: weights that are exchanged within a response are off at its begin, too"
        along = correlation_of(case)
        if not (np.isfinite(along.value) and p_above(along) < 0.05) and returns_of(sizes_by_step(case)) < 2:
            out["stale_weights"] = "no versions, and neither advantages nor steps show older weights"
    if farthest(case) < _FAR:
        out["position_encoding"] = f"no context is of {_FAR} tokens: how an answer unfolds makes a gap grow so, too"
    behind = always_behind(case)
    if behind is not None:
        reason = f"the newest token's weights are {lag_said(behind)} updates old: these make such gaps, too"
        alike: tuple[CauseId, ...] = ("position_encoding", "template_prefix", "trainer_temperature", "weight_sync")
        out.update(dict.fromkeys(alike, reason))
        if _gap(case) > _CUT_OFF:
            unmet = "rare large ratios are not met where weights are that far behind: mass seems to be missing"
            out.update(dict.fromkeys(("truncated_sampling", "vocab_padding"), unmet))
    return out


def _gap(case: Case) -> float:
    """Returns about the KL of a token, nats: half the mean square of log ratios."""
    m = case.identity.sum(0)
    return float(0.5 * m[SQUARES] / max(m[N], 1.0))


@once
def always_behind(case: Case) -> int | None:
    """Returns by how many updates the newest token's weights were behind the trainer's; None if it is not known, or if
    some token's were not behind: then there are tokens to hold those of older weights against."""
    keyed = case.sums.get("lag")
    if not isinstance(keyed, Keyed) or not keyed.data:
        return None
    tokens: dict[int, float] = {}
    for (_, lag), sums in keyed.data.items():
        tokens[lag] = tokens.get(lag, 0.0) + float(sums[:, 0].sum())
    late = sum(n for lag, n in tokens.items() if lag > 0)
    if late < _MOSTLY * sum(tokens.values()):
        return None
    return min(lag for lag, n in tokens.items() if lag > 0 and n > 0)


def returns_of(steps: Array) -> int:
    """Counts how often a size falls to half along the steps and doubles again: as old weights do that are replaced."""
    count, high, low = 0, -np.inf, np.inf
    least = 0.2 * steps.max(initial=0.0)  # less is what is left of a gap that faded, not one that comes back
    for size in steps:
        if low < np.inf:  # it fell; does it come back?
            low = min(low, size)
            if size > max(2 * low, least):
                count, high, low = count + 1, size, np.inf
        elif size < 0.5 * high:
            low = size
        high = max(high, size) if low == np.inf else high
    return count


def _all_but_gone(steps: Array) -> bool:
    """Tells whether a gap of some size is next to nothing between two steps that have it, or at first and is then more
    than rounding that grows with the logits. One that fades is that of a policy that grows certain."""
    if len(steps) < 4 or steps.max() <= 1e-4:
        return False
    before, after = np.maximum.accumulate(steps), np.maximum.accumulate(steps[::-1])[::-1]
    between = np.minimum(before, after) > _RETURNS * np.maximum(steps, 1e-7)
    at_first = steps.max() > max(_UNROUNDED, _RETURNS * max(float(steps[0]), 1e-7))
    return bool(between.any() or at_first)


def by_size(case: Case) -> dict[CauseId, float]:
    """Returns the confidence in rounding or in fewer bits where nothing but the size of the gap speaks for anything: by
    the number types that the files name, and by the engine's own noise."""
    middle, m = size_of(case), case.identity.sum(0)
    rms = float(np.sqrt(m[SQUARES] / max(m[N], 1))) * case.temperature
    if case.tokens < FEWEST or middle < _NOTHING:
        return {}
    if case.baseline is not None:
        usual = size_of(Case(case.baseline, case.info))
        if usual > _NOTHING:
            return {"numerics": _TOLD} if middle < 1.4 * usual else {}
    if _engine_alone(case):
        off = middle > _ROUNDED or rms > _ROUNDED or profile_of(case).kind in ("step", "period")
        return {"engine_decode": _TOLD} if off else {"numerics": NAMED}
    sampler = str(case.info.get("dtype_mu") or "").lower()
    if sampler and sampler not in (*_FLOAT32, *_HALF):
        return {"quantised_rollout": _TOLD} if middle > 1e-3 else {}
    own = _over_own_noise(case)
    if middle < _ROUNDED and rms < 0.1 and (_OWN[0] < own < _OWN[1] and middle < _BF16 if own else sampler in _HALF):
        return {"numerics": _TOLD}
    served = str(case.info.get("engine") or "").lower().replace("_", ".") in _SERVERS
    if served and sampler in _HALF and middle > 1.5 * _ROUNDED and not own:
        return {"quantised_rollout": NAMED}
    return {}


def to_test_first(case: Case, spread: Spread | None) -> Suspicion | None:
    """Returns what points to a cause that no column proves: the shape of the gap to decoding, if it is in a few
    responses or begins at a place, and the engine's prefill is not there; a lag that all tokens have to older weights,
    if the gap is larger than rounding makes it.
    """
    if case.tokens < FEWEST:
        return None
    return _decoding(case, spread) or _always_stale(case)


def _decoding(case: Case, spread: Spread | None) -> Suspicion | None:
    if "prefill" in case.sums or (size_of(case, 0.9) < 1e-4 and spread is None):
        return None
    profile = profile_of(case)
    finds: list[Evidence] = []
    if spread is not None:
        meaning = f"responses, of {spread.of:,}, that carry {spread.share:.0%} of the squared log ratio"
        finds.append(counted("few_responses", spread.responses, case.tokens, meaning))
    if profile.kind == "step":
        meaning = f"size of the log ratio from token {profile.at} on over that before: a step, as no slope makes it"
        finds.append(counted("step", profile.times, case.tokens, meaning))
    if profile.kind == "period":
        meaning = f"size of the log ratio at every {profile.at}th token over that at the others"
        finds.append(counted("period", profile.times, case.tokens, meaning))
    if not finds:
        return None
    return Suspicion("engine_decode", 1.0, 0.0, None if spread is None else spread.share, tuple(finds))


def _always_stale(case: Case) -> Suspicion | None:
    behind = always_behind(case)
    if behind is None or _engine_alone(case) or size_of(case, 0.9) < _BF16:
        return None
    if max(by_size(case).values(), default=0.0) >= NAMED or (mean_excludes(case) and _gap(case) <= _CUT_OFF):
        return None
    meaning = f"updates by which even the newest tokens' weights are behind: {lag_said(behind)}"
    finds = (counted("behind", behind, case.tokens, meaning),)
    return Suspicion("stale_weights", 1.0, 0.0, None, finds)


def _over_own_noise(case: Case) -> float:
    """Divides the trainer's distance to the engine's prefill by that of its decode; 0 if there is no prefill."""
    if "decode_to_prefill" not in case.sums:
        return 0.0
    own = size_of(case, 0.9, "decode_to_prefill")
    return size_of(case, 0.9, "trainer_to_prefill") / own if own > _NOTHING else 0.0


def too_small(case: Case) -> bool:
    """Tells whether the gap is below what matters to any run: under a thousandth of a nat a token, no mean off 1, and
    nothing wrong with the rows."""
    m = case.identity.sum(0)
    if m[N] == 0 or mean_excludes(case):
        return False
    rows_apart = case.squares - case.clean_squares > 0.1 * case.squares and case.squares / m[N] > 2 * KL_NOTICEABLE
    return bool(0.5 * m[SQUARES] / m[N] < KL_NOTICEABLE) and not rows_apart


def _engine_alone(case: Case) -> bool:
    """Tells whether the engine's prefill stands in for the trainer."""
    return bool(case.cells("engine_alone").total.sum() > 0)
