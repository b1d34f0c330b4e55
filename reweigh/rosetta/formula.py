"""An estimator as a formula, and as the code that makes it."""

import math

from reweigh.estimators import Estimator, Factor, Statistic
from reweigh.levels import binary_kl, k1, k2, k3, log_ratio, prob_diff, signed_binary_kl
from reweigh.rosetta.parts import BandAboveZero, Within, fold_of_ratio, k3_reversed, prob_gap, signed_gap_of_sequence
from reweigh.transforms import AtMost, Clip, Identity, MeanAtMost, Reject, Screen, SoftKernel

_RATIOS = {
    "token": "r_t",
    "turn": "prod_turn r_t",
    "turn_geometric": "exp(mean_turn log r_t)",
    "sequence": "r",
    "geometric": "g",
    "worst": "max_t r_t",
}
_FOLDS = {"token": "", "sequence": "sum_t ", "geometric": "mean_t ", "worst": "max_t ", "turn": "sum_turn "}
_STATISTICS: dict[Statistic, str] = {
    k1: "k1_t",
    k2: "k2_t",
    k3: "k3_t",
    k3_reversed: "(1/r_t - 1 + log r_t)",
    prob_diff: "(pi_t - mu_t)",
    prob_gap: "|pi_t - mu_t|",
    binary_kl: "binary_kl_t",
    signed_binary_kl: "sign(log r_t) binary_kl_t",
    fold_of_ratio: "e^|log r_t|",
    signed_gap_of_sequence: "sign(log r_t) mean_t |r_t - 1|",
}
SYMBOLS = (
    "r_t = pi_t / mu_t, a token's ratio; r = prod_t r_t, the sequence's; g = exp(mean_t log r_t), its geometric mean; "
    "k1 = -log r_t, k2 = (log r_t)^2 / 2, k3 = r_t - 1 - log r_t; A the advantage; 1{...} is 1 or 0"
)


def formula(estimator: Estimator) -> str:
    """`w = ...`, one term a factor.

    Example:
        >>> from reweigh import SEQUENCE, Reject, weigh
        >>> formula(weigh(SEQUENCE, Reject(0.5, 2.0)))
        'w = r 1{0.5 <= r <= 2}'
    """
    terms = " * ".join(_term(f) for f in estimator.factors) or "1"
    over = {None: "", "batch": " / its mean over the batch", "prompt": " / its mean over the prompt"}
    return f"w = {terms}{over[estimator.normalise]}"


def code(estimator: Estimator) -> str:
    """The call that makes it.

    Example:
        >>> from reweigh import SEQUENCE, Reject, weigh
        >>> code(weigh(SEQUENCE, Reject(0.5, 2.0)))
        'weigh(SEQUENCE, Reject(0.5, 2))'
    """
    product = " * ".join(_call(f) for f in estimator.factors) or "naive()"
    by = "" if estimator.normalise == "batch" else ', by="prompt"'
    return f"self_normalised({product}{by})" if estimator.normalise else product


def _term(f: Factor) -> str:
    where = {0: "", 1: " where A > 0", -1: " where A < 0"}[f.sign]
    gates = (AtMost, MeanAtMost, Within, BandAboveZero)
    text = _gate(f) if f.of is not log_ratio or isinstance(f.transform, gates) else _weight(f)
    return f"({text}{where})" if where else text


def _weight(f: Factor) -> str:
    x, t = _RATIOS.get(f.level.name, f.level.name.replace("_", " ")), f.transform
    if isinstance(t, Identity) or (isinstance(t, Clip) and t == Clip()):
        return x
    if isinstance(t, Clip):
        inner = x if t.low == 0 else f"max({x}, {t.low:g})"
        return inner if math.isinf(t.high) else f"min({inner}, {t.high:g})"
    if isinstance(t, Reject):
        return f"{x} {_inside(x, t.low, t.high)}"
    if isinstance(t, Screen):
        return _inside(x, t.low, t.high)
    if isinstance(t, SoftKernel):
        return f"{x}^{t.a:g} e^({t.b:g} (1 - {x}))"
    return f"{t!r} of {x}"


def _inside(x: str, low: float, high: float) -> str:
    below, above = "" if low in (0, -math.inf) else f"{low:g} <= ", "" if math.isinf(high) else f" <= {high:g}"
    return f"1{{{below}{x}{above}}}" if below or above else "1"


def _gate(f: Factor) -> str:
    x = _FOLDS.get(f.level.name, f"{f.level.name} of ") + _STATISTICS.get(f.of, f.of.__name__)
    if isinstance(f.transform, MeanAtMost):
        return f"1{{the smallest {f.scale:g} {x}, as many as keep their mean <= {f.transform.bound:g}}}"
    if isinstance(f.transform, BandAboveZero):
        return f"1{{{x} <= 0 or {f.transform.low:g} <= it <= {f.transform.high:g}}}"
    if isinstance(f.transform, Within):
        return _inside(x, f.transform.low, f.transform.high)
    if not isinstance(f.transform, AtMost):
        return f"{f.transform!r} of {x}"
    bound = f.transform.bound
    if f.scale < 0:
        return f"1{{{x} >= {-bound / -f.scale:g}}}"
    return f"1{{{x} <= {bound / f.scale:g}}}"


def _call(f: Factor) -> str:
    level = f.level.name.upper() if f.level.name in _RATIOS else f"{f.level.name}"
    parts = [level] if f.transform == Identity() else [level, _transform(f)]
    parts += [f"of={f.of.__name__}"] if f.of is not log_ratio else []
    parts += [f"scale={f.scale:g}"] if f.scale != 1 else []
    call = f"weigh({', '.join(parts)})"
    return f"for_advantage({f.sign:+d}, {call})" if f.sign else call


def _transform(f: Factor) -> str:
    t = f.transform
    if isinstance(t, Clip) and t.low == 0:
        return "Identity()" if math.isinf(t.high) else f"Truncate({t.high:g})"
    if isinstance(t, (Clip, Reject, Screen, Within, BandAboveZero)):
        return f"{type(t).__name__}({t.low:g}, {'math.inf' if math.isinf(t.high) else f'{t.high:g}'})"
    if isinstance(t, (AtMost, MeanAtMost)):
        return f"{type(t).__name__}({t.bound:g})"
    return repr(t)
