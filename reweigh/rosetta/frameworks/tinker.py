"""tinker's losses, whose ratio is always of the live policy to the sampler."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from reweigh.estimators import weigh
from reweigh.levels import TOKEN
from reweigh.named import token_is
from reweigh.rosetta.plan import Loss, Options, Plan, Reading, RefusedError, unknown_word
from reweigh.rosetta.profile import read_profile
from reweigh.transforms import Clip

_BOUNDS = ("clip_low_threshold", "clip_high_threshold")
_TAKES: Mapping[str, tuple[str, ...]] = {"ppo": _BOUNDS, "cispo": _BOUNDS, "gspo": _BOUNDS, "dro": ("beta",)}
_ONLY = "the loss's own ratio is of the live policy to the sampler, and its clip is all there is: no weight beside it"


def _compose(o: Options) -> Reading:
    kind, o = _kind(o), _inside(o)
    for name in (*_BOUNDS, "beta"):
        if name in o and o[name] is not None and name not in _TAKES.get(kind, ()):
            of = ", ".join(k for k, names in _TAKES.items() if name in names)
            raise RefusedError(f"tinker: loss_fn={kind} takes no {name}\nhint: it is of {of}")
    low, high = (default if o[n] is None else float(o[n]) for n, default in zip(_BOUNDS, (0.8, 1.2), strict=True))
    if low > high:
        raise RefusedError(f"tinker: clip_low_threshold {low:g} is over clip_high_threshold {high:g}\nhint: on pi/mu")
    loss = Loss("ratio", live="log_pi", centre="log_mu", over="sum")
    if kind == "importance_sampling":
        return Reading(Plan(token_is()), loss=loss, notes=("the ratio carries the gradient, and nothing bounds it",))
    if kind == "cispo":
        return Reading(Plan(weigh(TOKEN, Clip(low, high))), loss=replace(loss, kind="policy_gradient"))
    if kind in ("ppo", "gspo"):
        own = "gspo: the ratio is the geometric mean over sequence_ratio_mask; " if kind == "gspo" else ""
        clipped = replace(loss, kind="gspo" if kind == "gspo" else "ppo_clip", low=1 - low, high=high - 1)
        return Reading(Plan(), loss=clipped, notes=(own + _ONLY,))
    if kind == "dro":
        beta = 0.05 if o["beta"] is None else o["beta"]
        note = f"dro: -A log pi and beta / 2 (beta={beta:g}) times the squared log ratio to the sampler: no weight"
        return Reading(Plan(), notes=(note,))
    if kind == "cross_entropy":
        return Reading(Plan(), notes=("cross_entropy: -log pi with the datum's weights: nothing is corrected",))
    what = "a function of yours" if kind == "custom" else "computed by the service; its formula is not public"
    raise RefusedError(
        f"tinker: cannot tell what loss_fn={kind} computes: {what}\nhint: importance_sampling, ppo, cispo"
    )


def _kind(o: Options) -> str:
    told = o["async_config.loss_fn"]
    if told is not None:
        return told
    if isinstance(o["async_config"], dict) or (o["async_config"] not in (None, False)):
        inner = cast("dict[str, Any]", o["async_config"]) if isinstance(o["async_config"], dict) else {}
        return inner.get("loss_fn", "stable_reinforce")
    return o.word("loss_fn")


def _inside(o: Options) -> Options:
    """Put the bounds of loss_fn_config beside the other options."""
    table = o["loss_fn_config"]
    if table is None:
        return o
    if not isinstance(table, dict):
        raise RefusedError(f"tinker: loss_fn_config is a table, got {table!r}\nhint: clip_high_threshold = 1.2, say")
    told = cast("dict[str, Any]", table)
    for key, value in told.items():
        if key not in (*_BOUNDS, "beta"):
            raise unknown_word("tinker", "loss_fn_config option", key, (*_BOUNDS, "beta"))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RefusedError(f"tinker: loss_fn_config.{key} must be a number, got {value!r}\nhint: a bound on pi/mu")
    return replace(o, given={**o.given, **told})


TINKER = read_profile("tinker", _compose)
